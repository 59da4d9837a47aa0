"""dlib's ensemble of regression trees (ERT), the shape predictor that a user would otherwise pick, as the measure.

It is trained by dlib's own trainer on the same crops as a network, and asked about the same crops.
Source: Kazemi & Sullivan, "One Millisecond Face Alignment with an Ensemble of Regression Trees", CVPR 2014.
"""

import hashlib
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

import dlib
import numpy as np
from numpy.typing import NDArray

from msrrn.augmentation import mirror_shape
from msrrn.geometry import LEVELS
from pipelines.dataset.loader import Loader
from pipelines.dataset.manifest import read_manifest
from pipelines.errors import UserError
from pipelines.storage import Store

CASCADES: Final = 15
"""As many as dlib's published predictor of 68 landmarks has; the other options are dlib's defaults."""
SIDE: Final = LEVELS[-1]


@dataclass(frozen=True)
class Ert:
    """A trained predictor: a file of this machine."""

    file: Path
    crop_margin: float
    trained_on: str
    """its dataset and how many faces that has"""
    photos: frozenset[str]
    """SHA-256 of those that it was trained on"""

    def predict(self, image_200: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Grey crops (B, 200, 200) uint8 → shapes (B, 68, 2) in [0, 1] of the crop."""
        box, predictor = _box(self.crop_margin), _predictor(self.file)
        parts = [predictor(np.ascontiguousarray(image), box).parts() for image in image_200]
        pixels = np.array([[(point.x, point.y) for point in part] for part in parts], np.float32)
        return ((pixels.reshape(-1, 68, 2) + 0.5) / SIDE).astype(np.float32)


def trained_ert(
    dataset: str,
    folder: Path,
    threads: int,
    cascades: int = CASCADES,
    on_training: Callable[[int], None] = lambda faces: None,
) -> Ert:
    """Trains ERT on a dataset's faces and their mirror images, or finds it trained in `folder`.

    `on_training` is told the number of faces before they are trained on, which takes long.

    Raises:
        UserError: the dataset is not finished, or has no face to train on; the folder cannot be written.
    """
    store = Store(dataset)
    manifest = read_manifest(store)
    folder = folder.absolute()  # workers may have another working directory
    name = hashlib.sha256(f"{manifest.learned('train')} {cascades} {dlib.__version__}".encode()).hexdigest()[:12]
    file = folder / f"ert-{name}.dat"
    margin = float(manifest.settings["crop_margin"])
    data = Loader(store, manifest, "train")
    faces = data.originals()
    images, shapes = faces.image_200.numpy(), faces.landmarks.numpy()
    if not len(images):
        raise UserError(f"{dataset}: no face to train on; prepare it with more photos")
    if not file.exists():
        Store(str(folder)).require_writable(file.name)
        on_training(len(images))
        # dlib writes where it is told: beside the final name, so that a killed run leaves no half of it.
        descriptor, temporary = tempfile.mkstemp(dir=folder, prefix=".tmp-ert-", suffix=".dat")
        os.close(descriptor)
        try:
            _train(images, shapes, margin, threads, cascades).save(temporary)
            Path(temporary).replace(file)
        finally:
            Path(temporary).unlink(missing_ok=True)
    trained_on = f"{manifest.name}, {len(images)} faces and their mirror images"
    return Ert(file, margin, trained_on, frozenset(data.photos()))


def _train(images: NDArray[np.uint8], shapes: NDArray[np.float32], margin: float, threads: int, cascades: int) -> Any:
    mirrored = mirror_shape(np.stack([1 - shapes[..., 0], shapes[..., 1]], axis=-1))
    box = _box(margin)
    pictures = [np.ascontiguousarray(image) for image in (*images, *images[:, :, ::-1])]
    truth = [
        # dlib knows whole pixels only.
        [dlib.full_object_detection(box, [dlib.point(*point) for point in np.rint(shape * SIDE - 0.5).astype(int)])]
        for shape in (*shapes, *mirrored)
    ]
    options = dlib.shape_predictor_training_options()
    options.cascade_depth = cascades
    options.num_threads = threads
    options.be_verbose = False
    return dlib.train_shape_predictor(pictures, truth, options)


def _box(margin: float) -> Any:
    """The face box in the crop that was made around it, with dlib's inclusive right and bottom."""
    first = round(SIDE * (1 - 1 / margin) / 2)
    return dlib.rectangle(first, first, SIDE - first - 1, SIDE - first - 1)


@cache
def _predictor(file: Path) -> Any:
    if not file.exists():
        raise UserError(f"{file} is not on this machine: give --ert-folder a folder that all workers share")
    try:
        return dlib.shape_predictor(str(file))
    except RuntimeError as error:
        raise UserError(f"{file} is damaged, or no predictor of dlib: delete it, and it is trained anew") from error
