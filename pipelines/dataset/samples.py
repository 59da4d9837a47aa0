"""One annotated photograph → the rows of its samples: detect, crop, augment."""

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from msrrn.augmentation import Draw, add_noise, draw, generator, mirror_shape
from msrrn.geometry import CropFrame
from msrrn.landmarks import face_roll
from pipelines.checks import sideways_offset
from pipelines.dataset.manifest import LeftOut
from pipelines.dataset.photos import Finder, PhotoGroup, boxed_faces
from pipelines.dataset.shards import Split
from pipelines.decoding import Photo, Undecodable, decode
from pipelines.detection import Detection
from pipelines.errors import UserError
from pipelines.pyramid import CROP, crops, frame_around, padding, pyramid, sharpness
from pipelines.settings import PrepareSettings
from pipelines.sources import AnnotatedPhoto


def photo_rows(
    group: PhotoGroup, data: bytes, split: Split, settings: PrepareSettings, find: Finder
) -> tuple[list[dict[str, Any]], list[LeftOut]]:
    """The rows (see `pipelines.dataset.shards.SCHEMA`) of all samples of a photo, given the bytes of its file, and
    its faces that gave none.
    """
    if hashlib.sha256(data).hexdigest() != group.sha256:
        raise UserError(f"{group.faces[0].root}/{group.uri} changed while its dataset was made: run again")
    try:
        photo = decode(data)
    except Undecodable as error:
        return [], group.left_out(error.reason, error.message)
    rows: list[dict[str, Any]] = []
    left_out: list[LeftOut] = []
    for index, (face, boxed) in enumerate(boxed_faces(group, photo, find, left_out, displaced=False)):
        rows += _face_rows(group, face, index, photo, boxed, split, settings)
    return rows, left_out


def sideways_offsets(rows: Sequence[dict[str, Any]]) -> dict[str, list[tuple[float, float]]]:
    """Source → what `sideways_offset` says of its faces, in pixels of the photo; only where it says something."""
    offsets: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        if row["copy"] == 0:
            scale = 1 / np.sqrt(abs(np.linalg.det(row["to_crop"].reshape(2, 3)[:, :2]))) / CROP
            shape = row["landmarks"].reshape(-1, 2) * CROP - 0.5
            offset, distance = (sideways_offset(row["image_200"], shape) * scale).tolist()
            if np.isfinite(offset) and np.isfinite(distance):
                offsets.setdefault(row["source"], []).append((round(offset, 3), round(distance, 1)))
    return offsets


def _face_rows(
    group: PhotoGroup,
    face: AnnotatedPhoto,
    index: int,
    photo: Photo,
    boxed: tuple[Detection, bool],
    split: Split,
    settings: PrepareSettings,
) -> list[dict[str, Any]]:
    detection, detected = boxed
    face_id = f"{group.sha256}:{index}"
    count = settings.augmentation.copies if split == "train" else 0
    rngs = [generator(settings.seed, face_id, copy) for copy in range(count + 1)]
    drawn = [draw(settings.augmentation, rng, copy) for copy, rng in enumerate(rngs)]
    frames = [
        frame_around(detection.box, settings.crop_margin, it.shift, it.scale, np.deg2rad(it.roll), it.mirrored)
        for it in drawn
    ]
    pixels = crops(photo.rgb, frames)
    copies = [_copy(face.shape, photo, *each) for each in zip(drawn, frames, pixels, rngs, strict=True)]
    plain = copies[0]["image_200"]
    fixed = {
        "face_id": face_id,
        "photo_uri": face.uri,
        "photo_sha256": group.sha256,
        "face_index": index,
        "annotation_uri": face.annotation_uri,
        "source": face.subset,
        "split": split,
        "box": detection.box.edges,
        "detected": detected,
        "detector_score": detection.score if detected else None,
        "face_roll": float(face_roll(face.shape)),
        "brightness": float(plain.mean()),
        "sharpness": sharpness(plain),
    }
    return [fixed | copy for copy in copies]


def _copy(
    shape: NDArray[np.float64],
    photo: Photo,
    drawn: Draw,
    frame: CropFrame,
    pixels: NDArray[np.uint8],
    rng: np.random.Generator,
) -> dict[str, Any]:
    levels = pyramid(add_noise(pixels, drawn.noise_sigma, rng))
    in_crop = frame.shape_to_crop(shape)
    if drawn.mirrored:
        in_crop = mirror_shape(in_crop)
    height, width = photo.rgb.shape[:2]
    return vars(drawn) | {
        "image_200": levels.level_200,
        "image_100": levels.level_100,
        "image_50": levels.level_50,
        "landmarks": in_crop.astype(np.float32).ravel(),
        "to_crop": np.hstack([frame.to_crop.matrix, frame.to_crop.offset[:, None]]).ravel(),
        "padding": padding(frame, width, height),
    }
