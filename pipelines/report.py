"""The page of a retraining: what went in, what came out, how well, and pictures of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final

from msrrn.prediction import STAGES
from pipelines.annotation.faces import survey
from pipelines.annotation.page import add_pictures
from pipelines.annotation.summary import Summary
from pipelines.annotation.tables import PAGE, Annotations
from pipelines.annotation.tiles import drawn_tiles
from pipelines.dataset.manifest import Manifest
from pipelines.drawing import PREDICTION, TRUTH, Picture, contact_sheet, face_tile, to_jpeg
from pipelines.evaluation.results import Evaluation, FaceResult, photo_of, seen_note, shown
from pipelines.figures import ced_figure, curves_figure
from pipelines.page import Page
from pipelines.promotion.comparison import Meeting
from pipelines.promotion.decision import Decision
from pipelines.showable import counted
from pipelines.storage import Store
from pipelines.training.outcome import TrainedModel

TILES: Final = 12
REJECTED: Final = 20
COLUMNS: Final = 3
OBJECTIVE: Final = {
    "squared": "Objective, summed over coordinates and stages, in squared crop sides.",
    "log_nrmse_ip": "Objective, summed over stages: near the landmarks' mean distance, a fraction of the pupils'; "
    "large distances weigh less.",
}
"""What the loss is, by the name of the objective."""
LEGEND: Final = "light green: annotation, red: prediction"


@dataclass(frozen=True)
class Retraining:
    """Everything that one retraining made."""

    manifest: Manifest
    model: TrainedModel
    evaluation: Evaluation
    meeting: Meeting | None
    """with the champion, where there was one to meet"""
    decision: Decision | None
    """None: judged elsewhere, later"""
    archive: str | None
    annotations: Store | None
    summary: Summary | None


def retraining_page(job: Retraining) -> str:
    """The page as one self-contained HTML text. Reads the photos that it shows again."""
    everything = job.evaluation.table()["all"]
    page = Page(
        "Retraining report",
        f"{job.decision.reason if job.decision else 'Not judged yet.'} Model {job.evaluation.model}, dataset "
        f"{job.manifest.name}, {everything['faces']} evaluation faces.",
    )
    _dataset_section(page, job.manifest)
    _training_section(page, job.model)
    _evaluation_section(page, job.evaluation, job.meeting)
    add_faces(page, job.evaluation)
    if job.summary and job.archive and job.annotations:
        _annotation_section(page, job.summary, Annotations(job.annotations))
    return page.html()


def _dataset_section(page: Page, manifest: Manifest) -> None:
    counts = manifest.counts
    missed = "Came without a box" if manifest.has_given_boxes else "Not found by the detector"
    page.section("What went in")
    page.facts(
        [
            ("Faces given", str(counts["faces_in"])),
            (
                "For training",
                f"{counted(counts['train'], 'face')}, "
                f"{counted(counts['rows'] - counts['val'], 'sample')} with copies",
            ),
            ("For validation", f"{counted(counts['val'], 'face')}, not augmented"),
            ("Left out", str(counts["left_out"])),
            (missed, f"{counted(manifest.missed, 'face')}, boxed from the annotation"),
            ("Split", "by photo (its SHA-256), before augmentation"),
        ]
    )
    rows = [
        [source, by_split.get("train", 0), by_split.get("val", 0)]
        for source, by_split in manifest.faces_by_source.items()
    ]
    page.table(["Source", "Train", "Validation"], rows, "Faces by source")
    if manifest.left_out:
        shown = [[item.uri, item.reason, item.message] for item in manifest.left_out[:20]]
        caption = f"Left out: {len(shown)} of {counts['left_out']}; the manifest lists all"
        page.table(["Input", "Reason", "Message"], shown, caption)


def _training_section(page: Page, model: TrainedModel) -> None:
    page.section("Training")
    history = model.history
    page.figure(
        curves_figure(
            {"loss": [(row["epoch"], row["loss"]) for row in history]}, "epoch", "loss per face", log_y=True
        ),
        OBJECTIVE.get(model.card.training.settings.objective or "", "Objective."),
    )
    stages = {
        stage: [(row["epoch"], 100 * row[key]) for row in history if key in row]
        for stage in STAGES
        if (key := f"val_nrmse_ip_{stage}")
    }
    if any(stages.values()):
        page.figure(
            curves_figure(stages, "epoch", "NRMSE IP, %", log_y=True),
            "Validation faces of the dataset. No epoch was chosen by them: the last one is the model.",
        )


def _evaluation_section(page: Page, evaluation: Evaluation, meeting: Meeting | None) -> None:
    table = evaluation.table()
    protocol = table["all"]["protocol"]
    page.section(
        "Accuracy",
        f"Boxes: {protocol['boxes']}. Normalisation: {protocol['normalisation']}. "
        f"Trained on {evaluation.training_set}. "
        f"Faces: {evaluation.selection}. {seen_note(evaluation)}",
    )
    _table(page, table, "Last stage, by subset")
    _table(page, table["all"]["stages"], "All faces, by stage")
    if meeting:
        both = {name: each.table()["all"] for name, each in meeting._asdict().items()}
        _table(page, both, "Against the champion, on the same faces")
    errors = {stage: [float(face.nrmse_ip[index]) for face in evaluation.faces] for index, stage in enumerate(STAGES)}
    page.figure(ced_figure(errors, 0.2, "NRMSE IP"), "Cumulative error distribution, every stage.")


def _table(page: Page, rows: Mapping[str, Mapping[str, Any]], caption: str) -> None:
    cells = {name: shown(row) for name, row in rows.items()}
    titles = next(iter(cells.values()))
    page.table(["", *titles], [[name, *row.values()] for name, row in cells.items()], caption)


def add_faces(page: Page, evaluation: Evaluation) -> None:
    """Adds the best, median and worst faces, with annotation and prediction."""
    page.section("Faces")
    ordered = by_error(evaluation)
    middle = max(0, len(ordered) // 2 - TILES // 2)
    chosen = {
        "Best": ordered[:TILES],
        "Median": ordered[middle : middle + TILES],
        "Worst": ordered[::-1][:TILES],
    }
    for label, faces in chosen.items():
        errors = ", ".join(f"{100 * face.nrmse_ip[-1]:.1f}" for face in faces)
        caption = f"{label} {counted(len(faces), 'face')} ({LEGEND}). NRMSE IP in %: {errors}."
        page.picture(faces_sheet(faces), caption, f"{label} evaluated faces")


def by_error(evaluation: Evaluation) -> list[FaceResult]:
    """The evaluated faces, best first."""
    return sorted(evaluation.faces, key=lambda face: float(face.nrmse_ip[-1]))


def faces_sheet(faces: Sequence[FaceResult]) -> bytes:
    """JPEG of the faces with annotation and prediction, in order; their photos are read again."""
    tiles = [tile for face in faces if (tile := _face(face)) is not None]
    return to_jpeg(contact_sheet(tiles, COLUMNS))


def _face(face: FaceResult) -> Picture | None:
    photo = photo_of(face)
    if photo is None:
        return None
    return face_tile(photo.rgb, face.box, [(face.truth, TRUTH), (face.stages[-1], PREDICTION)])


def _annotation_section(page: Page, summary: Summary, annotations: Annotations) -> None:
    page.section(
        "Annotated archive",
        f"{counted(summary.images, 'picture')} = {summary.annotated} annotated + {summary.no_face} without a face "
        f"+ {summary.quarantined} quarantined; {counted(summary.faces, 'face')}. Model {summary.model}. "
        f"More of them: {'/'.join(annotations.store.url.split('/')[-2:])}/{PAGE}.",
    )
    columns = ["uri", "reason", "message"]
    rejected = (
        [row[name] for name in columns]
        for unit in annotations.units()
        for row in annotations.images(unit).select([*columns, "status"]).to_pylist()
        if row["status"] == "quarantined"
    )
    if shown := list(islice(rejected, REJECTED)):
        page.table(["Quarantined", "Reason", "Message"], shown, f"{len(shown)} of {summary.quarantined}")
    found = survey(annotations)
    add_pictures(page, found, drawn_tiles(annotations, found.chosen))
