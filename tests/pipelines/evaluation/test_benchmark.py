"""The benchmark on drawn faces: tables, page, and what they are made of."""

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.csv
import pytest

from flows.cli import main
from msrrn.geometry import Box
from msrrn.metrics import nrmse_ip
from pipelines.dataset.manifest import Manifest
from pipelines.errors import UserError
from pipelines.evaluation import robustness as station
from pipelines.evaluation.benchmark import ERT, PUBLISHED, SEEN, Benchmark, Speed, benchmark
from pipelines.evaluation.benchmark_page import benchmark_page, shown, write_benchmark
from pipelines.evaluation.ert import Ert, trained_ert
from pipelines.evaluation.evaluate import evaluate
from pipelines.evaluation.results import Evaluation, FaceResult
from pipelines.evaluation.robustness import PERTURBATIONS, RobustnessRow, robustness
from pipelines.models import Model
from pipelines.storage import Store
from pipelines.texts import evaluation_text
from tests.msrrn.test_landmarks import FACE


@pytest.fixture(scope="module")
def ert(dataset: tuple[Store, Manifest], tmp_path_factory: pytest.TempPathFactory) -> Ert:
    return trained_ert(dataset[0].url, tmp_path_factory.mktemp("ert"), 1, cascades=2)


def test_every_table_and_the_page_are_written(annotated: Path, model: Model, ert: Ert, tmp_path: Path) -> None:
    result = benchmark(model, [str(annotated)], "all", 1, ert)
    write_benchmark(result, Store(str(tmp_path)))
    names = ("table1", "table2", "ced", "robustness", "speed", "confidence")
    tables = {name: pyarrow.csv.read_csv(tmp_path / f"{name}.csv").to_pylist() for name in names}
    assert {path.name for path in tmp_path.iterdir()} == {f"{name}.csv" for name in names} | {"index.html"}
    faces = len(result.evaluation.faces)
    assert len(tables["ced"]) == 3 * faces
    measured = {row["method"]: row for row in tables["table1"] if row["figures"] == "measured"}
    assert set(measured) == {"mean shape", ERT, model.label}
    assert measured[ERT]["all"] < measured["mean shape"]["all"]
    assert "mirror images" in measured[ERT]["trained on"]
    assert 0 < measured[ERT][SEEN] < faces, "the dataset has what it holds out from these photos"
    assert [row["name"] for row in tables["robustness"]] == [perturbation.name for perturbation in PERTURBATIONS]
    clean = tables["robustness"][0]
    assert 100 * clean["nrmse_ip"] == pytest.approx(measured[model.label]["all"], abs=0.006)
    assert 100 * clean["ert_nrmse_ip"] == pytest.approx(measured[ERT]["all"], abs=0.006)
    assert [row["stage"] for row in tables["table2"]] == ["mean_shape", "initial", "stage_1", "stage_2", "stage_3"]
    assert {(row["what"], row["precision"]) for row in tables["speed"]} >= {("model", "float32"), (ERT, "float32")}
    html = (tmp_path / "index.html").read_text()
    assert "These are not the official test sets" in html
    assert str(annotated) not in html


def face(subset: str, error: float, confidence: float) -> FaceResult:
    truth = FACE * 100.0
    right = np.array([1.0, 0.0])
    per_pixel = float(nrmse_ip(truth + right, truth))
    stages = np.stack([truth + error / per_pixel * (5 - stage) * right for stage in range(5)])
    return FaceResult("", "a", "a", "0" * 64, subset, False, Box(0, 0, 1, 1), truth, stages, confidence, 100.0)


AFW = {"dataset": "d", "faces": 3, "faces_by_source": {"afw": {"train": 3}}}


def result(*faces: FaceResult, trained: Mapping[str, Any] = AFW) -> Benchmark:
    evaluation = Evaluation("msrrn 1", "hog", dict(trained), "all", faces, ())
    rows = [RobustnessRow(it.name, 0.1, 0.2, float("nan"), float("nan")) for it in PERTURBATIONS]
    return Benchmark(evaluation, None, rows, [Speed("model", "here", "bfloat16", 10.0)])


def test_what_others_wrote_is_no_formula_and_no_row_in_a_table(tmp_path: Path) -> None:
    one = result(face("afw", 0.05, 0.9))
    written = replace(one.evaluation, model="=1+1", trained_on={"faces_by_source": {"d\n\x1b[2J": {}}})
    write_benchmark(replace(one, evaluation=written), Store(str(tmp_path)))
    line = (tmp_path / "table1.csv").read_text().splitlines()[-1]
    assert line.startswith('"./=1+1","measured","d \\x1b[2J 0"')


def test_columns_are_those_that_the_data_have() -> None:
    one = result(face("lfpw", 0.02, 0.9), face("helen", 0.04, 0.5), face("ibug", 0.12, 0.3), face("other", 0.2, 0.2))
    rows = one.table1()
    assert list(rows[0]) == [
        "method",
        "figures",
        "trained on",
        SEEN,
        "lfpw",
        "helen",
        "common",
        "challenging",
        "full",
        "all",
    ]
    assert len(rows) == len(PUBLISHED) + 2
    ours = rows[-1]
    assert (ours["lfpw"], ours["common"], ours["challenging"], ours["full"], ours["all"]) == (2, 3, 12, 6, 9.5)
    assert ours["trained on"] == "3 faces (afw 3)"
    published = {row["method"]: row for row in rows if row["figures"] == "published"}
    assert published["LBF (Ren 2014)"]["common"] == 4.95
    assert published["LBF (Ren 2014)"]["full"] is None
    no_ibug = result(face("lfpw", 0.02, 0.9), face("other", 0.2, 0.2)).table1()
    assert list(no_ibug[0])[4:] == ["lfpw", "all"]
    assert one.table2()[-1] == {"stage": "stage_3", "NRMSE IP %": 9.5, "under 0.05 %": 50.0, "under 0.10 %": 50.0}
    assert list(shown(one.table2())[-1].values()) == ["stage_3", "9.50", "50.0", "50.0"]
    assert list(shown(rows)[-1].values())[4:] == ["2.00", "4.00", "3.00", "12.00", "6.00", "9.50"]
    assert {row["method"]: row["full"] for row in shown(rows)}["LBF (Ren 2014)"] == "-"
    page = benchmark_page(one)
    assert "nan" not in page
    assert page.count(">9.50</td>") == 2  # in both tables
    assert ">5.50</td>" in page  # CFAN's


def test_only_what_was_published_on_the_columns_of_the_data_is_quoted() -> None:
    own = result(face("other", 0.2, 0.2))
    assert [row["figures"] for row in own.table1()] == ["measured", "measured"]
    page = benchmark_page(own)
    assert "Published figures, which are on the official sets, are left out." in page
    assert "as quoted in the literature" not in page
    ibug = [row["method"] for row in result(face("ibug", 0.2, 0.2)).table1()]
    assert ibug == [row.method for row in PUBLISHED if row.challenging] + ["mean shape", "msrrn 1"]


def test_all_that_the_weights_were_ever_trained_on_is_named() -> None:
    drawn = {"faces_by_source": {"synthetic": {"train": 9, "val": 1}}}
    chain = AFW | {"init": {"faces_by_source": {"lfpw": {"train": 5}}, "init": drawn}}
    said = result(face("lfpw", 0.02, 0.9), trained=chain).table1()[-1]["trained on"]
    assert said == (
        "3 faces (afw 3), from weights trained on others (lfpw 5), from weights trained on others (synthetic 9)"
    )


def test_a_card_that_does_not_say_what_a_model_was_trained_on() -> None:
    silent = result(face("lfpw", 0.02, 0.9), trained={"dataset": None, "faces": None, "faces_by_source": {}})
    assert silent.table1()[-1]["trained on"] == "not known"
    assert "Trained on data that its card does not name." in benchmark_page(silent)
    assert "None" not in evaluation_text(silent.evaluation)


def test_accuracy_and_speed_say_their_precision() -> None:
    one = result(face("lfpw", 0.02, 0.9))
    assert "msrrn 1 in float32 on 1 face (" in benchmark_page(one)
    assert "<td>bfloat16</td>" in benchmark_page(one)
    assert "msrrn 1 in float32 on 1 face (" in evaluation_text(one.evaluation)


def test_one_face_is_not_several() -> None:
    one = result(face("lfpw", 0.02, 0.9), trained=AFW | {"faces": 1})
    page = benchmark_page(one)
    for said in ("Trained on dataset d (1 face).", "Best 1 face (", "Faces: lfpw 1, all 1."):
        assert said in page
    assert "1 faces" not in page + evaluation_text(one.evaluation)
    untold = result(face("lfpw", 0.02, 0.9), trained=AFW | {"faces": None})
    assert untold.evaluation.training_set == "dataset d"


def test_the_official_sets_are_known_by_their_counts() -> None:
    faces = [face("lfpw", 0.03, 0.8)] * 224 + [face("helen", 0.03, 0.8)] * 330
    assert result(*faces).official()
    assert not result(*faces[1:]).official()
    assert not result(face("other", 0.1, 0.5)).official()


def test_what_the_model_expects_is_held_against_the_truth() -> None:
    errors = np.linspace(0.02, 0.2, 40)
    honest = result(*(face("lfpw", error, 1 / (1 + error / 0.05)) for error in errors))
    assert honest.honesty()["rank correlation"] == 1
    assert honest.honesty()["failures among the least certain 5 %"] == 2
    for expected, true in honest.reliability():
        assert expected == pytest.approx(true, rel=1e-6)
    assert result(*(face("lfpw", error, error) for error in errors)).honesty()["rank correlation"] == -1


def test_two_faces_do_not_show_that_the_model_knows_nothing() -> None:
    few = result(face("lfpw", 0.02, 0.8), face("lfpw", 0.2, 0.2))
    assert few.honesty()["rank correlation"] is None
    assert re.search(r"rank correlation</dt>\s*<dd>-</dd>", benchmark_page(few))


def test_what_is_no_number_is_a_failure_everywhere() -> None:
    broken = result(*(face("lfpw", error, 0.5) for error in (0.02, 0.2, float("nan")))).honesty()
    assert (broken["failures"], broken["share of failures"]) == (2, round(2 / 3, 4))


def test_the_order_in_which_units_end_changes_no_bit(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    units = np.random.default_rng(0).random((6, 16, len(PERTURBATIONS), 2))
    orders = []
    for ended in (units, units[::-1], units[[3, 0, 5, 1, 4, 2]]):
        monkeypatch.setattr(station, "run_units", lambda *job, ended=ended: iter(ended))
        orders.append(robustness(model, None, [], 1))
    assert [[row[:4] for row in rows] for rows in orders] == [[row[:4] for row in orders[0]]] * 3


def test_a_face_that_is_gone_is_left_out_of_no_row(annotated: Path, model: Model) -> None:
    found = evaluate(model, [str(annotated)], "held-out", 1)
    gone = replace(found.faces[0], uri="gone.jpg")
    with pytest.raises(UserError, match=r"^the photos of 1 face are gone since"):
        robustness(model, None, [gone], 1)


def test_the_command_says_what_it_measured(
    annotated: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], ert: Ert
) -> None:
    call = ["benchmark", "--data", str(annotated), "--model", "box", "--out", str(tmp_path), "--workers", "1"]
    assert main(call) == 0
    said = capsys.readouterr().out
    assert "mean shape" in said
    assert "stage_3" in said
    assert f"{tmp_path}/index.html" in said


def test_a_damaged_predictor_is_named(ert: Ert, tmp_path: Path) -> None:
    (tmp_path / "ert-x.dat").write_bytes(ert.file.read_bytes()[:200])
    with pytest.raises(UserError, match=r"ert-x\.dat is damaged, or no predictor of dlib: delete it"):
        replace(ert, file=tmp_path / "ert-x.dat").predict(np.zeros((1, 200, 200), np.uint8))
