import csv
import hashlib
import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from msrrn.geometry import Box
from msrrn.synthetic import SyntheticPhoto
from pipelines.drawing import BOX, PREDICTION, Colour, Picture, face_tile
from pipelines.evaluation.results import FaceResult
from pipelines.promotion import page as page_module
from pipelines.promotion.comparison import Pair
from pipelines.promotion.decision import Decision, decide
from pipelines.promotion.page import CHANGED, DECISION, FACES, FIGURES, PAGE, SCATTER, decision_files
from pipelines.settings import GateSettings
from tests.pipelines.judged import errors_of, pair_of

GATE = GateSettings(least_faces=2, resamples=100)
HOSTILE = "=cmd|' /C calc'!A0.pts"


def on_photos(pair: Pair, folder: Path, photos: list[SyntheticPhoto]) -> Pair:
    """The same errors on faces that can be drawn."""
    sides: list[list[FaceResult]] = []
    for faces in pair:
        side = []
        for face, photo in zip(faces, photos, strict=False):
            (folder / face.uri).write_bytes(photo.jpeg)
            shift = face.stages - face.truth
            side.append(
                replace(
                    face,
                    root=str(folder),
                    truth=photo.shapes[0],
                    stages=photo.shapes[0] + shift,
                    photo_sha256=hashlib.sha256(photo.jpeg).hexdigest(),
                )
            )
        sides.append(side)
    return Pair(*sides)


def test_every_face_is_told_with_both_errors_and_no_name_is_a_formula() -> None:
    old = errors_of(30, 0.05)
    pair = pair_of(0.9 * old, old)
    pair = Pair([replace(face, annotation_uri=HOSTILE, subset="@evil") for face in pair.challenger], pair.champion)
    files = decision_files("title", decide(pair, GATE), pair)
    rows = list(csv.DictReader(io.StringIO(files[FACES].decode())))
    assert [float(row["champion_nrmse_ip"]) for row in rows] == [float(f"{error:.6g}") for error in old]
    assert [float(row["champion_expected"]) for row in rows] == pytest.approx(old, rel=1e-4)
    assert [float(row["challenger_expected"]) for row in rows] == pytest.approx(0.9 * old, rel=1e-4)
    assert {row["annotation_uri"] for row in rows} == {f"./{HOSTILE}"}
    assert {row["subset"] for row in rows} == {"./@evil"}
    figures = list(csv.DictReader(io.StringIO(files[FIGURES].decode())))
    assert figures[0]["figure"] == "NRMSE (IP)"
    assert figures[0]["change"] == f"{-0.1 * old.mean():+.3%}"


def test_photos_that_are_gone_are_not_drawn() -> None:
    old = errors_of(30, 0.05)
    pair = pair_of(0.9 * old, old)
    files = decision_files("title", decide(pair, GATE), pair)
    assert CHANGED not in files
    assert files[SCATTER].startswith(b"<svg")
    assert b"currentColor" not in files[SCATTER]


def test_the_faces_that_changed_most_are_drawn_with_both_shapes(
    photos: tuple[list[SyntheticPhoto], list[SyntheticPhoto]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[dict[Colour, float]] = []

    def seen(rgb: Picture, box: Box, shapes: list[tuple[NDArray[np.float64], Colour]]) -> Picture:
        drawn.append({colour: float(shape[0, 0]) for shape, colour in shapes})
        return face_tile(rgb, box, shapes)

    monkeypatch.setattr(page_module, "face_tile", seen)
    old = np.full(8, 0.05)
    new = old + np.array([0.0, 0.04, -0.03, 0.01, 0, 0, 0, 0])
    pair = on_photos(pair_of(new, old), tmp_path, photos[0])
    files = decision_files("a <title>", decide(pair, GATE), pair)
    page = files[PAGE].decode()
    order = [page.index(f"{number}.pts: ") for number in (2, 1, 3)]
    assert order == sorted(order)  # better ones first, then those that became worse, most first
    assert "0.pts: " not in page
    assert "7.pts: " not in page
    # Both err to the right, and the first of these faces became better.
    assert [each[BOX] > each[PREDICTION] for each in drawn] == [True, False, False]
    assert "a &lt;title&gt;" in page
    assert files[CHANGED][:2] == b"\xff\xd8"


def test_a_decision_without_a_comparison_is_its_reason_alone() -> None:
    files = decision_files("title", Decision(verdict="promoted", reason="first"), None)
    assert list(files) == [DECISION]
