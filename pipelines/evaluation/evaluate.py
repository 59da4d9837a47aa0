"""Detector + model on annotated photos: errors per face, per subset and per stage."""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from msrrn.geometry import Box, within
from msrrn.metrics import auc, failure_rate, nrmse_io, nrmse_ip, share_under
from msrrn.prediction import STAGES
from pipelines.checks import CHECKS
from pipelines.dataset.manifest import LeftOut
from pipelines.dataset.photos import (
    Finder,
    PhotoGroup,
    assign_splits,
    boxed_faces,
    clusters,
    face_finder,
    read_photos,
)
from pipelines.dataset.screening import screened
from pipelines.decoding import Photo, Undecodable, decode
from pipelines.detection import expected_box
from pipelines.engine import run_units
from pipelines.errors import UserError
from pipelines.evaluation.ert import Ert
from pipelines.models import Model
from pipelines.outages import OutageError
from pipelines.progress import Counted
from pipelines.pyramid import crop, frame_around, sharpness
from pipelines.settings import VAL_SHARE, BoxesBy, Precision, Selection
from pipelines.sources.files import Files

PHOTOS_PER_UNIT: Final = 16
SHARPNESS_MARGIN: Final = 1.0
TRAINED_ON: Final = "trained_on"
LIKE_THE_TOTAL: Final = re.compile(r"all( \(subset\))*")
"""Subsets that need another name, so that neither the total nor one another takes their place."""


@dataclass(frozen=True, eq=False)
class FaceResult:
    """One evaluated face. Shapes are 0-based pixels of the upright image."""

    root: str
    """URL of the folder or archive that holds the photo"""
    uri: str
    annotation_uri: str
    photo_sha256: str
    subset: str
    missed: bool
    """the detector did not find it: the box is predicted from its annotation"""
    box: Box
    truth: NDArray[np.float64]
    """(68, 2)"""
    stages: NDArray[np.float64]
    """(5, 68, 2), in the order of `STAGES`"""
    confidence: float
    sharpness: float
    """variance of the Laplacian of the crop around the box predicted from the annotation: the same for every model"""
    ert: NDArray[np.float64] | None = None
    """(68, 2), what dlib's ERT says of the same box, where it was asked"""

    @property
    def nrmse_ip(self) -> NDArray[np.floating]:
        """(5,), a fraction for each stage."""
        return nrmse_ip(self.stages, self.truth)

    @property
    def nrmse_io(self) -> NDArray[np.floating]:
        return nrmse_io(self.stages, self.truth)


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Results of one model on one set of faces."""

    model: str
    detector: str
    trained_on: dict[str, Any]
    selection: str
    faces: tuple[FaceResult, ...]
    left_out: tuple[LeftOut, ...]
    seen: int | None = None
    """faces on photos that the model was trained on; None where its card does not name those"""
    source_format: str = "auto"
    """of the sources, as it was said"""
    precision: Precision = "float32"

    @property
    def training_set(self) -> str:
        """What the model was trained on, for a reader."""
        dataset, faces = (self.trained_on.get(key) for key in ("dataset", "faces"))
        return f"dataset {dataset} ({faces} faces)" if dataset else "data that its card does not name"

    @property
    def faces_digest(self) -> str:
        """Names the faces and their annotations: two evaluations compare only where it is the same."""
        digest = hashlib.sha256()
        for face in self.faces:
            digest.update(f"{face.photo_sha256} {face.annotation_uri}\n".encode())
            digest.update(np.ascontiguousarray(face.truth, "<f8").tobytes())
        return digest.hexdigest()[:16]

    def table(self) -> dict[str, dict[str, Any]]:
        """One object for each subset and `all`, fractions; `all` also says the protocol.

        A subset that is called `all` is `all (subset)` there.
        """
        subsets = sorted({face.subset for face in self.faces})
        rows = {_row_name(name): _row([face for face in self.faces if face.subset == name]) for name in subsets}
        return rows | {
            "all": _row(self.faces)
            | {
                "protocol": {
                    "normalisation": "ip: distance of the pupils (mean of each eye's six points); "
                    "io: distance of the outer eye corners",
                    "boxes": f"{self.detector}; a missed face gets a box predicted from its annotation",
                    "model": self.model,
                    "precision": self.precision,
                    "trained_on": self.trained_on,
                    "selection": self.selection,
                    "faces_digest": self.faces_digest,
                    "left_out": len(self.left_out),
                    "seen_in_training": self.seen,
                }
            }
        }


def evaluate(
    model: Model,
    sources: Sequence[str],
    selection: Selection,
    workers: int,
    progress: Counted = lambda done, total: None,
    val_share: float = VAL_SHARE,
    source_format: str = "auto",
    detector: BoxesBy | None = None,
    ert: Ert | None = None,
    unseen_by: Sequence[Model] = (),
) -> Evaluation:
    """Evaluates a model on the annotated photos of the sources, with the detector that it was trained with.

    `val_share` is that of the dataset, for the selection `val`; `detector` takes boxes from another one;
    `ert` is asked about the same boxes. Photos that one of `unseen_by` was trained on are left out.

    Raises:
        UserError: a source is unusable, or not one face could be evaluated.
    """
    groups, left_out = read_photos(sources, workers, source_format=source_format)
    groups, bad = screened(groups)
    left_out += bad
    boxes_by = detector or model.card.detector
    chosen, selection = _chosen(groups, selection, val_share)
    seen = {group.sha256 for group in chosen if any(each.saw(group.sha256) for each in unseen_by)}
    left_out += [
        LeftOut(uri=face.annotation_uri, reason=TRAINED_ON, message=CHECKS[TRAINED_ON].title)
        for group in chosen
        if group.sha256 in seen
        for face in group.faces
    ]
    chosen = [group for group in chosen if group.sha256 not in seen]
    units = [tuple(chosen[start : start + PHOTOS_PER_UNIT]) for start in range(0, len(chosen), PHOTOS_PER_UNIT)]
    faces: list[FaceResult] = []
    done = 0
    for results, rejected in run_units(_evaluate_unit, (model, ert, face_finder(boxes_by, groups)), units, workers):
        faces += results
        left_out += rejected
        done += PHOTOS_PER_UNIT
        progress(min(done, len(chosen)), len(chosen))
    if not faces:
        remedy = "give photos that no model here was trained on" if seen else "try --split all"
        raise UserError(
            f"{', '.join(sources)}: no face could be evaluated (selection {selection}, {len(chosen)} photos, "
            f"{len(seen)} more trained on, {len(left_out)} inputs left out); {remedy}"
        )
    faces.sort(key=lambda face: (face.uri, face.annotation_uri, face.photo_sha256, face.truth.tobytes()))
    left_out.sort(key=lambda item: (item.uri, item.reason))
    training = model.card.training
    trained_on = training.model_dump(include={"dataset", "faces", "faces_by_source"})
    trained_on |= training.settings.model_dump(include={"init"})
    return Evaluation(
        model=model.label,
        detector=boxes_by,
        trained_on=trained_on,
        selection=selection,
        faces=tuple(faces),
        left_out=tuple(left_out),
        seen=sum(model.saw(face.photo_sha256) for face in faces) if model.photos else None,
        source_format=source_format,
        precision=model.precision,
    )


def seen_note(evaluation: Evaluation) -> str:
    """What a reader of the figures must know where some are of photos that the model has learned; else empty."""
    if evaluation.seen is None:
        return "Which photos the model was trained on its card does not say: if these are among them, it knew them."
    if evaluation.seen:
        return (
            f"The model was trained on the photos of {evaluation.seen} of these {len(evaluation.faces)} faces: the "
            "figures do not tell what it does on photos that it never saw."
        )
    return ""


def photo_of(face: FaceResult) -> Photo | None:
    """The photo of an evaluated face; None where it is gone, or another one has its name.

    Raises:
        OutageError: its storage does not answer.
    """
    try:
        data = Files(face.root).read(face.uri)
    except OutageError:
        raise
    except (UserError, OSError):
        return None
    return decode(data) if hashlib.sha256(data).hexdigest() == face.photo_sha256 else None


def _chosen(groups: list[PhotoGroup], selection: Selection, val_share: float) -> tuple[list[PhotoGroup], Selection]:
    if selection == "val":
        split_of = assign_splits(clusters([group.seen for group in groups]), val_share)
        by_split = {split: [g for g in groups if split_of[g.sha256] == split] for split in ("val", "test")}
        return by_split["val"] or by_split["test"], selection
    declared = [group for group in groups if group.seen.declared in ("val", "test")]
    return (declared, selection) if selection == "held-out" and declared else (groups, "all")


def _evaluate_unit(
    shared: tuple[Model, Ert | None, Finder], unit: Sequence[PhotoGroup]
) -> tuple[list[FaceResult], list[LeftOut]]:
    model, ert, find = shared
    results: list[FaceResult] = []
    left_out: list[LeftOut] = []
    for group in unit:
        try:
            photo = decode(group.faces[0].read())
        except Undecodable as error:
            left_out += [
                LeftOut(uri=face.annotation_uri, reason=error.reason, message=error.message) for face in group.faces
            ]
            continue
        # Which faces count must not hang on the detector: models with different ones meet on the same.
        boxed = list(boxed_faces(group, photo, find, left_out, displaced=True))
        frames = [frame_around(detection.box, model.card.crop_margin) for _, (detection, _) in boxed]
        if not frames:
            continue
        prediction = model.predictor.predict(np.stack([crop(photo.rgb, frame) for frame in frames]))
        others = _ask(ert, photo, [detection.box for _, (detection, _) in boxed]) if ert else [None] * len(boxed)
        for index, (face, (detection, found)) in enumerate(boxed):
            stages = frames[index].shape_to_upright(prediction.stages[index].astype(np.float64))
            results.append(
                FaceResult(
                    root=face.root,
                    uri=face.uri,
                    annotation_uri=face.annotation_uri,
                    photo_sha256=group.sha256,
                    subset=face.subset,
                    missed=not found,
                    box=detection.box,
                    truth=face.shape,
                    stages=np.asarray(within(stages, photo.size), np.float64),
                    confidence=float(prediction.confidence[index]),
                    sharpness=sharpness(crop(photo.rgb, frame_around(expected_box(face.shape), SHARPNESS_MARGIN))),
                    ert=others[index],
                )
            )
    return results, left_out


def _ask(ert: Ert, photo: Photo, boxes: Sequence[Box]) -> list[NDArray[np.float64] | None]:
    frames = [frame_around(box, ert.crop_margin) for box in boxes]
    shapes = ert.predict(np.stack([crop(photo.rgb, frame) for frame in frames])).astype(np.float64)
    placed = (frame.shape_to_upright(shape) for frame, shape in zip(frames, shapes, strict=True))
    return [np.asarray(within(shape, photo.size)) for shape in placed]


def _row_name(subset: str) -> str:
    return f"{subset} (subset)" if LIKE_THE_TOTAL.fullmatch(subset) else subset


def _row(faces: Sequence[FaceResult]) -> dict[str, Any]:
    ip = np.stack([face.nrmse_ip for face in faces])
    io = np.stack([face.nrmse_io for face in faces])
    detected = np.array([not face.missed for face in faces])
    stages = {name: _figures(ip[:, index], io[:, index], detected) for index, name in enumerate(STAGES)}
    counts = {"faces": len(faces), "missed": int((~detected).sum())}
    return counts | stages[STAGES[-1]] | {"stages": {name: counts | row for name, row in stages.items()}}


def _figures(
    ip: NDArray[np.floating], io: NDArray[np.floating], detected: NDArray[np.bool_]
) -> dict[str, float | None]:
    return {
        "nrmse_ip": float(ip.mean()),
        "nrmse_io": float(io.mean()),
        "nrmse_ip_detected": float(ip[detected].mean()) if detected.any() else None,
        "auc_ip_010": auc(ip, 0.10),
        "auc_io_008": auc(io, 0.08),
        "failure_ip_010": failure_rate(ip, 0.10),
        "under_ip_005": share_under(ip, 0.05),
        "under_ip_010": share_under(ip, 0.10),
    }
