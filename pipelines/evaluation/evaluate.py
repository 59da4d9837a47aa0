"""Detector + model on annotated photos: the landmarks of each face, beside the annotated ones."""

import hashlib
from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from msrrn.geometry import Box, within
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
from pipelines.dataset.screening import refused, screened
from pipelines.decoding import Photo, Undecodable, decode
from pipelines.detection import expected_box
from pipelines.engine import run_units
from pipelines.errors import UserError
from pipelines.evaluation.ert import Ert
from pipelines.evaluation.results import Evaluation, FaceResult
from pipelines.models import Model
from pipelines.progress import Counted
from pipelines.pyramid import crop, frame_around, sharpness
from pipelines.settings import VAL_SHARE, BoxesBy, Selection
from pipelines.showable import counted

PHOTOS_PER_UNIT: Final = 16
SHARPNESS_MARGIN: Final = 1.0
TRAINED_ON: Final = "trained_on"


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
        UserError: a source is unusable, a photo changed meanwhile, or not one face could be evaluated.
    """
    given, left_out = read_photos(sources, workers, source_format=source_format)
    groups, bad = screened(given)
    left_out += bad
    boxes_by = detector or model.card.detector
    chosen, selection = _chosen(groups, refused(given, groups), selection, val_share)
    seen = {group.sha256 for group in chosen if any(each.saw(group.sha256) for each in unseen_by)}
    for group in chosen:
        if group.sha256 in seen:
            left_out += group.left_out(TRAINED_ON, CHECKS[TRAINED_ON].title)
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
        raise UserError(f"{', '.join(sources)}: {_nothing(selection, len(chosen), len(seen), left_out)}")
    faces.sort(key=lambda face: (face.uri, face.annotation_uri, face.photo_sha256, face.truth.tobytes()))
    left_out.sort(key=lambda item: (item.uri, item.reason, item.message))
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


def _nothing(selection: Selection, chosen: int, seen: int, left_out: Sequence[LeftOut]) -> str:
    """Why no face could be evaluated, and what to do about it."""
    others = sorted((item.uri, item.reason, item.message) for item in left_out if item.reason != TRAINED_ON)
    told = [
        f"no face could be evaluated (selection {selection}, {counted(chosen, 'photo')}, {seen} more trained on, "
        f"{counted(len(others), 'input')} left out)"
    ]
    if others:
        uri, _, message = others[0]
        told.append(f"first {uri}: {message}")
    if seen:
        told.append("give photos that no model here was trained on")
    elif selection != "all":  # a retraining, and a gate that judges where a version was evaluated, have no --split
        told.append("give other photos, or all of these where --split can be given")
    elif not others:  # of a table of faces that has no row
        told.append("give sources that list some")
    return "; ".join(told)


def _chosen(
    groups: list[PhotoGroup], without_face: list[PhotoGroup], selection: Selection, val_share: float
) -> tuple[list[PhotoGroup], Selection]:
    if selection == "val":  # as `prepare` splits them
        split_of = assign_splits(clusters([group.seen for group in (*groups, *without_face)]), val_share)
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
        data = group.faces[0].read()
        if hashlib.sha256(data).hexdigest() != group.sha256:
            raise UserError(f"{group.faces[0].root}/{group.uri} changed while it was evaluated: run again")
        try:
            photo = decode(data)
        except Undecodable as error:
            left_out += group.left_out(error.reason, error.message)
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
