"""What a decision leaves for people: its table, every face with both errors, and pictures, as files."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from markupsafe import Markup

from msrrn.landmarks import face_roll
from pipelines.detection import expected_box
from pipelines.drawing import BOX, PREDICTION, Colour, Picture, contact_sheet, face_tile, to_jpeg
from pipelines.evaluation.honesty import expected_and_true
from pipelines.evaluation.results import photo_of
from pipelines.figures import scatter_figure, standing_alone
from pipelines.page import Page
from pipelines.promotion.comparison import Pair
from pipelines.promotion.decision import Decision, shown
from pipelines.showable import no_formula

DECISION: Final = "decision.json"
FIGURES: Final = "figures.csv"
FACES: Final = "faces.csv"
SCATTER: Final = "errors.svg"
CHANGED: Final = "changed.jpg"
PAGE: Final = "decision.html"

CHAMPION: Final[Colour] = BOX
LEGEND: Final = "light blue: champion, red: challenger"
_SHOWN: Final = 6
"""Faces that became better most, and as many that became worse."""


@dataclass(frozen=True)
class _Changed:
    tile: Picture
    words: str


def decision_files(title: str, decision: Decision, pair: Pair | None) -> dict[str, bytes]:
    """Name → content; a decision without a comparison has no faces to show. Reads the photos that it draws."""
    files = {DECISION: decision.model_dump_json(indent=1).encode()}
    if decision.rows:
        files[FIGURES] = _csv([shown(row) for row in decision.rows])
    if pair is None:
        return files
    changed, scatter = _changed(pair), _scatter(pair)
    files |= {
        FACES: _faces(pair),
        SCATTER: standing_alone(scatter),
        PAGE: _page(title, decision, scatter, changed),
    }
    if changed:
        files[CHANGED] = to_jpeg(contact_sheet([each.tile for each in changed], _SHOWN // 2))
    return files


def _page(title: str, decision: Decision, scatter: Markup, changed: Sequence[_Changed]) -> bytes:
    page = Page(title, f"{decision.verdict.capitalize()}. {decision.reason}")
    if decision.rows:
        page.section(
            "Figures",
            "The first row decides; the others are floors, which break where the whole interval lies past the limit.",
        )
        rows = [shown(row) for row in decision.rows]
        page.table([name.capitalize() for name in rows[0]], [list(row.values()) for row in rows])
    page.section("Faces")
    page.figure(scatter, "Every face: NRMSE (IP) of both models in %. Above the line the challenger is worse.")
    if changed:
        gallery = [(to_jpeg(each.tile), each.words) for each in changed]
        page.gallery(gallery, f"The faces that changed most ({LEGEND}).")
    return page.html().encode()


def _scatter(pair: Pair) -> Markup:
    new, old = pair.errors
    return scatter_figure((100 * old).tolist(), (100 * new).tolist(), "champion, %", "challenger, %")


def _changed(pair: Pair) -> list[_Changed]:
    """Those that became better most, then those that became worse most."""
    new, old = pair.errors
    order = np.argsort(new - old, kind="stable")
    better = [index for index in order[:_SHOWN] if new[index] < old[index]]
    worse = [index for index in order[::-1][:_SHOWN] if new[index] > old[index]]
    made = []
    for index in (*better, *worse):
        face, before = pair.challenger[index], pair.champion[index]
        if (photo := photo_of(face)) is not None:
            shapes = [(before.stages[-1], CHAMPION), (face.stages[-1], PREDICTION)]
            tile = face_tile(photo.rgb, expected_box(face.truth), shapes)
            made.append(_Changed(tile, f"{face.annotation_uri}: {old[index]:.1%} → {new[index]:.1%}"))
    return made


def _faces(pair: Pair) -> bytes:
    new, old = pair.errors
    expected = [expected_and_true(faces)[0] for faces in pair]
    rows = []
    for index, face in enumerate(pair.challenger):
        names = {
            "photo_sha256": face.photo_sha256,
            "annotation_uri": no_formula(face.annotation_uri),
            "subset": no_formula(face.subset),
        }
        numbers = {
            "side_px": expected_box(face.truth).side,
            "roll_degrees": float(face_roll(face.truth)),
            "sharpness": face.sharpness,
            "challenger_nrmse_ip": new[index],
            "champion_nrmse_ip": old[index],
            "challenger_expected": expected[0][index],
            "champion_expected": expected[1][index],
        }
        rows.append(names | {name: f"{number:.6g}" for name, number in numbers.items()})
    return _csv(rows)


def _csv(rows: Sequence[Mapping[str, str]]) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n", quoting=csv.QUOTE_ALL)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode("utf-8", "surrogateescape")
