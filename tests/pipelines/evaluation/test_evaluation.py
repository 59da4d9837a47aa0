import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray

from msrrn.geometry import Box
from msrrn.prediction import STAGES
from msrrn.provenance import Training
from msrrn.synthetic import SyntheticPhoto
from pipelines.annotation.tables import FACES
from pipelines.dataset.photos import read_photos
from pipelines.decoding import decode
from pipelines.detection import Detection, expected_box
from pipelines.errors import UserError
from pipelines.evaluation import evaluate as station
from pipelines.evaluation.evaluate import evaluate
from pipelines.evaluation.results import Evaluation, photo_of, seen_note
from pipelines.models import PHOTO_DIGITS, Model
from pipelines.settings import Selection
from pipelines.sources.pts import parse_pts
from pipelines.texts import evaluation_text
from tests.factories import picture, write_face

FIGURES = {
    "faces",
    "missed",
    "nrmse_ip",
    "nrmse_io",
    "auc_ip_010",
    "auc_io_008",
    "failure_ip_010",
    "under_ip_005",
    "under_ip_010",
    "nrmse_ip_detected",
}
SHARES = {"auc_ip_010", "auc_io_008", "failure_ip_010", "under_ip_005", "under_ip_010"}


@pytest.fixture(scope="module")
def everything(model: Model, annotated: Path) -> Evaluation:
    return evaluate(model, [str(annotated)], "all", workers=1)


def test_the_table_has_the_figures_of_the_protocol(everything: Evaluation) -> None:
    table = json.loads(json.dumps(everything.table(), allow_nan=False))
    assert set(table) == {"afw", "helen", "ibug", "lfpw", "all"}
    for name, row in table.items():
        assert set(row) == FIGURES | {"stages"} | ({"protocol"} if name == "all" else set())
        assert list(row["stages"]) == ["mean_shape", "initial", "stage_1", "stage_2", "stage_3"]
        for figures in (row, *row["stages"].values()):
            assert set(figures) >= FIGURES
            assert all(0 <= figures[share] <= 1 for share in SHARES)
            assert figures["under_ip_005"] <= figures["under_ip_010"] <= 1 - figures["failure_ip_010"] + 1e-9
            assert 1.2 < figures["nrmse_ip"] / figures["nrmse_io"] < 1.6
        assert {key: row[key] for key in FIGURES} == {key: row["stages"]["stage_3"][key] for key in FIGURES}
    assert {name: row["faces"] for name, row in table.items()} == {
        "afw": 4,
        "helen": 2,
        "ibug": 1,
        "lfpw": 5,
        "all": 12,
    }
    assert table["all"]["missed"] == sum(face.missed for face in everything.faces)
    protocol = table["all"]["protocol"]
    assert protocol["selection"] == "all"
    assert "hog" in protocol["boxes"]
    assert "pupils" in protocol["normalisation"]


def test_where_no_face_is_left_the_first_that_is_bad_is_named(model: Model, annotated: Path, tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(next(annotated.rglob("*.jpg")).read_bytes())
    (tmp_path / "a.pts").write_text("nonsense")
    with pytest.raises(UserError, match=r"1 input left out\); first a\.jpg: a\.pts: "):
        evaluate(model, [str(tmp_path)], "all", workers=1)


def test_a_table_of_faces_without_a_row_is_told(model: Model, tmp_path: Path) -> None:
    pq.write_table(FACES.empty_table(), tmp_path / "faces.parquet")
    with pytest.raises(UserError, match=r"0 inputs left out\); give sources that list some"):
        evaluate(model, [str(tmp_path)], "all", workers=1)


def test_a_subset_that_is_called_all_keeps_its_row(everything: Evaluation) -> None:
    names = ["all", "all (subset)", "lfpw"]
    faces = tuple(replace(face, subset=names[min(index, 2)]) for index, face in enumerate(everything.faces))
    table = replace(everything, faces=faces).table()
    assert {name: row["faces"] for name, row in table.items()} == {
        "all (subset)": 1,
        "all (subset) (subset)": 1,
        "lfpw": 10,
        "all": 12,
    }
    assert table["all"]["nrmse_ip"] == everything.table()["all"]["nrmse_ip"]


def test_figures_are_those_of_the_faces(everything: Evaluation, annotated: Path) -> None:
    everyone = everything.table()["all"]
    errors = []
    for face in everything.faces:
        truth = parse_pts((annotated / face.annotation_uri).read_bytes())
        np.testing.assert_array_equal(face.truth, truth)
        pupils = np.linalg.norm(truth[36:42].mean(axis=0) - truth[42:48].mean(axis=0))
        errors.append(np.linalg.norm(face.stages - truth, axis=-1).mean(axis=-1) / pupils)
    means = np.mean(errors, axis=0)
    for index, stage in enumerate(STAGES):
        assert everyone["stages"][stage]["nrmse_ip"] == pytest.approx(means[index], rel=1e-5)
    last = np.array(errors)[:, -1]
    assert everyone["failure_ip_010"] == pytest.approx(np.mean(last > 0.10))
    assert everyone["under_ip_010"] == pytest.approx(np.mean(last < 0.10))
    assert 0 < everyone["stages"]["mean_shape"]["nrmse_ip"] < 1.5


def test_a_missed_face_counts_in_every_figure_but_one(
    model: Model, annotated: Path, everything: Evaluation, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = everything.faces[0]
    size = decode((annotated / wanted.uri).read_bytes()).rgb.shape

    class Blind:
        def __call__(self, rgb: NDArray[np.uint8]) -> list[Detection]:
            return [Detection(expected_box(wanted.truth), 1.0)] if rgb.shape == size else []

    monkeypatch.setattr(station, "face_finder", lambda name, photos: Blind())
    blind = evaluate(model, [str(annotated)], "all", 1)
    row = blind.table()["all"]
    seen = [face for face in blind.faces if not face.missed]
    assert seen
    assert row["faces"] == 12
    assert row["missed"] == 12 - len(seen) > 0
    assert row["nrmse_ip"] == pytest.approx(np.mean([face.nrmse_ip[-1] for face in blind.faces]))
    assert row["nrmse_ip_detected"] == pytest.approx(np.mean([face.nrmse_ip[-1] for face in seen]))
    nobody = Evaluation("m", "d", {}, "all", tuple(face for face in blind.faces if face.missed), ())
    assert nobody.table()["all"]["nrmse_ip_detected"] is None
    boxless = replace(nobody, detector="annotated").table()["all"]["protocol"]["boxes"]
    assert boxless.startswith("annotated; a face that comes without one counts as missed")
    json.dumps(nobody.table(), allow_nan=False)


def test_which_faces_count_does_not_hang_on_the_detector(
    model: Model, annotated: Path, everything: Evaluation, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Beside:
        """Finds every face half its side to the right."""

        def __call__(self, rgb: NDArray[np.uint8]) -> list[Detection]:
            sizes = {decode((annotated / face.uri).read_bytes()).rgb.shape: face.truth for face in everything.faces}
            boxes = [expected_box(truth) for shape, truth in sizes.items() if shape == rgb.shape]
            return [Detection(Box(b.x0 + b.side / 2, b.y0, b.x1 + b.side / 2, b.y1), 1.0) for b in boxes]

    monkeypatch.setattr(station, "face_finder", lambda name, photos: Beside())
    assert evaluate(model, [str(annotated)], "all", 1).faces_digest == everything.faces_digest


def test_photos_that_a_model_was_trained_on_are_left_out(
    model: Model, annotated: Path, everything: Evaluation
) -> None:
    known = sorted({face.photo_sha256 for face in everything.faces})[:3]
    photos = " ".join(digest[:PHOTO_DIGITS] for digest in known)
    other = replace(model, card=model.card.model_copy(update={"training": Training(photos=photos)}))
    left = evaluate(model, [str(annotated)], "all", 1, unseen_by=[model, other])
    assert [face.uri for face in left.faces] == [
        face.uri for face in everything.faces if face.photo_sha256 not in known
    ]
    out = [item for item in left.left_out if item.reason == "trained_on"]
    assert len(out) == len(everything.faces) - len(left.faces) > 0
    learned = evaluate(other, [str(annotated)], "all", 1)
    assert learned.faces_digest == everything.faces_digest
    assert learned.seen == learned.table()["all"]["protocol"]["seen_in_training"] == len(out)
    assert f"trained on the photos of {len(out)} of these 12 faces" in evaluation_text(learned).replace("\n", " ")
    assert left.seen is None, "the card of the toy model names no photo"
    assert "its card does not say" in evaluation_text(left)
    assert not seen_note(replace(learned, seen=0))
    one = replace(learned, seen=1, faces=learned.faces[:1])
    assert "was trained on the photo of this face: the figures" in seen_note(one)


def test_a_photo_that_was_trained_on_is_counted_once(
    model: Model, photos: tuple[list[SyntheticPhoto], list[SyntheticPhoto]], tmp_path: Path
) -> None:
    write_face(tmp_path, "a/known", photos[0][0].jpeg, photos[0][0].shapes[0])
    digest = hashlib.sha256(photos[0][0].jpeg).hexdigest()[:PHOTO_DIGITS]
    other = replace(model, card=model.card.model_copy(update={"training": Training(photos=digest)}))
    counts = r"\(selection all, 0 photos, 1 more trained on, 0 inputs left out\)"
    with pytest.raises(UserError, match=counts):
        evaluate(model, [str(tmp_path)], "all", 1, unseen_by=[other])
    write_face(tmp_path, "a/empty", b"", photos[0][0].shapes[0])
    counts = r"\(selection all, 0 photos, 1 more trained on, 1 input left out\); first a/empty\.pts: .*; give photos"
    with pytest.raises(UserError, match=counts):
        evaluate(model, [str(tmp_path)], "all", 1, unseen_by=[other])


def test_selections(model: Model, annotated: Path, tmp_path: Path) -> None:
    held_out = evaluate(model, [str(annotated)], "held-out", 1)
    assert {face.annotation_uri for face in held_out.faces} == {
        "lfpw/trainset/3.pts",
        "helen/trainset/1.pts",
        "lfpw/testset/0.pts",
        "ibug/image_1 _01.pts",
    }
    val = evaluate(model, [str(annotated)], "val", 1)
    assert {face.annotation_uri for face in val.faces} == {"lfpw/trainset/3.pts", "helen/trainset/1.pts"}
    assert (held_out.selection, val.selection) == ("held-out", "val")
    shutil.copytree(annotated / "afw", tmp_path / "afw")
    undeclared = evaluate(model, [str(tmp_path / "afw")], "held-out", 1)
    assert (undeclared.selection, len(undeclared.faces)) == ("all", 4)
    with pytest.raises(UserError, match=r"no face .*\(selection val, 0 photos.* all of these where --split can be"):
        evaluate(model, [str(tmp_path / "afw")], "val", 1, val_share=0)


@pytest.mark.parametrize("selection", ["all", "val"])
def test_where_no_face_is_left_the_first_reason_is_said(
    model: Model,
    photos: tuple[list[SyntheticPhoto], list[SyntheticPhoto]],
    tmp_path: Path,
    selection: Selection,
) -> None:
    for name in ("a/empty", "a/void"):
        write_face(tmp_path, name, b"", photos[0][0].shapes[0])
    with pytest.raises(UserError, match=r"2 inputs left out\); first a/empty\.pts: \w.*") as caught:
        evaluate(model, [str(tmp_path)], selection, 1)
    assert "void" not in str(caught.value)
    assert ("--split" in str(caught.value)) == (selection == "val")


def test_the_order_of_sources_changes_nothing(
    model: Model, photos: tuple[list[SyntheticPhoto], list[SyntheticPhoto]], tmp_path: Path
) -> None:
    for source, photo in zip("ab", photos[0], strict=False):
        write_face(tmp_path / source, "x/same name", photo.jpeg, photo.shapes[0])
    a, b = str(tmp_path / "a"), str(tmp_path / "b")
    first, second = evaluate(model, [a, b], "all", 1), evaluate(model, [b, a], "all", 1)
    assert first.faces_digest == second.faces_digest
    assert first.table() == second.table()
    assert evaluate(model, [a], "all", 1).faces_digest != first.faces_digest


def test_the_order_of_sources_changes_nothing_of_what_is_left_out(
    model: Model, photos: tuple[list[SyntheticPhoto], list[SyntheticPhoto]], tmp_path: Path
) -> None:
    """The same is wrong with two pictures of one name: their rows differ in the message alone."""
    write_face(tmp_path / "a", "x/good", photos[0][0].jpeg, photos[0][0].shapes[0])
    for source, photo, points in zip("ab", photos[0][1:], (66, 67), strict=False):
        write_face(tmp_path / source, "x/bad", photo.jpeg, photo.shapes[0][:points])
    a, b = str(tmp_path / "a"), str(tmp_path / "b")
    left_out = evaluate(model, [a, b], "all", 1).left_out
    assert evaluate(model, [b, a], "all", 1).left_out == left_out
    assert len({(item.uri, item.reason) for item in left_out}) == 1
    assert len({item.message for item in left_out}) == 2


def test_what_a_refused_test_photo_shows_is_no_validation_photo_either(
    model: Model, photos: tuple[list[SyntheticPhoto], list[SyntheticPhoto]], tmp_path: Path
) -> None:
    """As in the dataset, which leaves it out."""
    bad, good = photos[0][:2]
    again = picture(decode(bad.jpeg).rgb)
    write_face(tmp_path, "lfpw/testset/bad", bad.jpeg, bad.shapes[0][::-1])
    write_face(tmp_path, "lfpw/again", again, bad.shapes[0], ".png")
    write_face(tmp_path, "lfpw/good", good.jpeg, good.shapes[0])
    made = evaluate(model, [str(tmp_path)], "val", 1, val_share=1)
    assert [face.uri for face in made.faces] == ["lfpw/good.jpg"]


def test_a_photo_that_changes_while_it_is_evaluated_ends_the_run(
    model: Model,
    photos: tuple[list[SyntheticPhoto], list[SyntheticPhoto]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It was chosen by the bytes that were there before."""
    write_face(tmp_path, "a/0", photos[0][0].jpeg, photos[0][0].shapes[0])

    def spy(*given: Any, **more: Any) -> Any:
        found = read_photos(*given, **more)
        (tmp_path / "a/0.jpg").write_bytes(photos[0][1].jpeg)
        return found

    monkeypatch.setattr("pipelines.evaluation.evaluate.read_photos", spy)
    with pytest.raises(UserError, match=r"a/0\.jpg changed while it was evaluated: run again"):
        evaluate(model, [str(tmp_path)], "all", 1)


def test_bad_inputs_are_left_out_and_counted(
    model: Model, photos: tuple[list[SyntheticPhoto], list[SyntheticPhoto]], tmp_path: Path
) -> None:
    shape = photos[0][0].shapes[0]
    write_face(tmp_path, "a/good", photos[0][0].jpeg, shape)
    write_face(tmp_path, "a/empty", b"", shape)
    write_face(tmp_path, "a/outside", picture(np.zeros((8, 8), np.uint8)), shape, ".png")
    made = evaluate(model, [str(tmp_path)], "all", 1)
    assert [face.uri for face in made.faces] == ["a/good.jpg"]
    assert {item.uri: item.reason for item in made.left_out} == {
        "a/empty.pts": "empty",
        "a/outside.pts": "outside",
    }
    assert made.table()["all"]["protocol"]["left_out"] == 2


def test_another_photo_of_the_same_name_is_not_taken_for_one_that_was_evaluated(
    model: Model, photos: tuple[list[SyntheticPhoto], list[SyntheticPhoto]], tmp_path: Path
) -> None:
    for index, photo in enumerate(photos[0][:3]):
        write_face(tmp_path, f"a/{index}", photo.jpeg, photo.shapes[0])
    stays, changes, goes = evaluate(model, [str(tmp_path)], "all", 1).faces
    (tmp_path / changes.uri).write_bytes(photos[0][3].jpeg)
    (tmp_path / goes.uri).unlink()
    known = photo_of(stays)
    assert known is not None
    np.testing.assert_array_equal(known.rgb, decode(photos[0][0].jpeg).rgb)
    assert photo_of(changes) is None
    assert photo_of(goes) is None
