import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flows.cli import main
from msrrn.provenance import Training
from msrrn.synthetic import SyntheticPhoto
from pipelines.annotation.faces import MEASURES, survey
from pipelines.annotation.run import annotate
from pipelines.dataset.faces import FEATURES, Features, features_of
from pipelines.dataset.faces import MEASURES as OF_DATASETS
from pipelines.dataset.manifest import MANIFEST, Manifest
from pipelines.decoding import decode
from pipelines.errors import NothingYetError, UserError
from pipelines.forgotten import Forgotten, write_forgotten
from pipelines.models import Model
from pipelines.monitoring import drift
from pipelines.monitoring.drift import OUTCOMES, DriftReport, compare
from pipelines.monitoring.page import PAGE, REPORT, drift_page, write_drift
from pipelines.monitoring.sittings import sittings
from pipelines.settings import AnnotateSettings, DriftSettings
from pipelines.storage import Store
from tests.factories import picture
from tests.pipelines.runs import drawn_run
from tests.pipelines.test_page import HOSTILE, Document

DEFAULT = DriftSettings()
EVERYTHING = [*MEASURES, OUTCOMES]


def write_dataset(folder: Path, seed: int, detector: str = "hog") -> str:
    """A dataset that only says of its faces what it does in `features.json`."""
    run, _ = drawn_run(folder / "faces", seed, 2000)
    counts = survey(run).counts
    store = Store(str(folder / "dataset"))
    said = Features(
        edges={name: measure.edges.tolist() for name, measure in OF_DATASETS.items()},
        counts={name: {"train": counts[name].tolist(), "val": [7] * len(counts[name])} for name in OF_DATASETS},
    )
    store.publish(FEATURES, said.model_dump_json().encode())
    settings = {"detector": detector}
    manifest = Manifest(
        name="dataset", code_version="0", settings=settings, counts={}, faces_by_source={}, missed=0, checks=[],
        units=[], left_out=[],
    )  # fmt: skip
    store.publish(MANIFEST, manifest.model_dump_json().encode())
    return store.url


def began(folder: Path, hour: int) -> str:
    """The run at `folder`, as if it had begun at that time."""
    os.utime(folder / "plan" / "00000.parquet", (3600 * hour, 3600 * hour))
    return str(folder)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset, three runs over pictures like its own, and four over others."""
    folder = tmp_path_factory.mktemp("place")
    write_dataset(folder, seed=99)
    runs = folder / "runs"
    for hour in range(3):
        drawn_run(runs / f"alike-{hour}", hour)
        began(runs / f"alike-{hour}", hour)
    drawn_run(folder / "bright", 11, brighter=40)
    drawn_run(folder / "small", 12, scale=0.5)
    drawn_run(folder / "bad", 13, bad=0.2)
    drawn_run(folder / "few", 14, pictures=60)
    return folder


def of(place: Path, name: str) -> DriftReport:
    runs = [str(place / "runs" / "alike-0"), began(place / name, 9)]
    return compare(runs, DEFAULT, str(place / "dataset"))


def test_samples_of_one_population_are_no_drift(place: Path) -> None:
    report = compare([str(place / "runs")], DEFAULT, str(place / "dataset"))
    assert report.verdict == "stable"
    assert report.named("stable") == EVERYTHING
    assert [run.url for run in report.runs] == [str(place / "runs" / f"alike-{n}") for n in (1, 2)]
    assert report.reference == str(place / "runs" / "alike-0")
    assert {feature.name: feature.base for feature in report.features} == {
        **dict.fromkeys(OF_DATASETS, "dataset dataset"),
        **dict.fromkeys(("relative_size", "confidence", "faces_per_picture", OUTCOMES), "the reference run"),
    }
    assert report.runs[0].pictures == 600
    assert sum(report.features[0].counts) == sum(run.faces for run in report.runs) > 1200
    assert set(report.runs[0].psi) == set(EVERYTHING)


@pytest.mark.parametrize("seed", range(20, 26))
def test_sampling_noise_raises_no_alarm(place: Path, tmp_path: Path, seed: int) -> None:
    drawn_run(tmp_path / "run", seed, pictures=120)
    report = compare([str(tmp_path / "run")], DEFAULT, str(place / "dataset"), str(place / "runs" / "alike-0"))
    assert report.named("stable") == EVERYTHING


@pytest.mark.parametrize(
    ("name", "expected"),
    [("bright", ["brightness"]), ("small", ["size", "relative_size"]), ("bad", [OUTCOMES])],
)
def test_what_drifted_is_named(place: Path, name: str, expected: list[str]) -> None:
    report = of(place, name)
    assert report.verdict == "drifted"
    assert report.named("drifted") == expected
    assert len(report.named("stable")) == len(EVERYTHING) - len(expected)


def test_of_few_nothing_is_said(place: Path) -> None:
    report = of(place, "few")
    assert report.verdict == "unknown"
    assert report.named("unknown") == EVERYTHING
    assert all(feature.note.startswith("too few to say: 100 ") for feature in report.features)
    assert report.runs[0].psi == {}


def test_without_an_older_run_what_the_dataset_cannot_tell_is_unknown(place: Path) -> None:
    report = compare([str(place / "bright")], DEFAULT, str(place / "dataset"))
    assert report.named("drifted") == ["brightness"]
    assert report.named("unknown") == ["relative_size", "confidence", "faces_per_picture", OUTCOMES]
    assert report.reference is None
    assert "no older run" in report.features[-1].note


def test_without_a_dataset_all_is_compared_with_the_reference(place: Path) -> None:
    report = compare([str(place / "bright")], DEFAULT, reference=str(place / "runs" / "alike-0"))
    assert {feature.base for feature in report.features} == {"the reference run"}
    assert report.named("drifted") == ["brightness"]


def test_only_recent_runs_are_looked_at(place: Path, tmp_path: Path) -> None:
    shutil.copytree(place / "runs", tmp_path / "runs")
    for hour in range(3):
        began(tmp_path / "runs" / f"alike-{hour}", hour)
    shutil.copytree(place / "bright", tmp_path / "runs" / "bright")
    began(tmp_path / "runs" / "bright", 7)
    for recent, psi in ((1, 0.8), (3, 0.1)):
        report = compare([str(tmp_path / "runs")], DriftSettings(recent=recent), str(place / "dataset"))
        assert len(report.runs) == recent
        (brightness,) = (feature for feature in report.features if feature.name == "brightness")
        assert brightness.psi == pytest.approx(psi, rel=0.3)
        assert report.runs[-1].psi["brightness"] > 0.5
        assert all(run.psi["brightness"] < 0.1 for run in report.runs[:-1])


def test_runs_of_another_model_or_settings_are_set_aside(place: Path, tmp_path: Path) -> None:
    old = {"model_sha256": "old", "detector": "cnn", "max_faces": 1, "min_score": 0.9, "any_rotation": True}
    names: dict[str, dict[str, Any]] = {
        "old": old | {"recipe": 0},
        "other": {"min_face": 0.3},
        "of other tables": {"schema": "1"},
        "new": {},
        "newest": {},
    }
    for hour, (name, changes) in enumerate(names.items()):
        drawn_run(tmp_path / name, hour, **changes)
        began(tmp_path / name, hour)
    report = compare([str(tmp_path)], DEFAULT, str(place / "dataset"))
    assert report.reference == str(tmp_path / "new")
    assert [run.url for run in report.runs] == [str(tmp_path / "newest")]
    assert any(note.startswith("2 runs of another model") for note in report.notes)
    report = compare([str(tmp_path / "newest")], DEFAULT, str(place / "dataset"), str(tmp_path / "old"))
    differing = "model_sha256, detector, max_faces, min_score, any_rotation, recipe"
    assert report.notes == [f"The reference run has another {differing}: nothing is compared with it."]
    assert report.named("unknown") == ["relative_size", "confidence", "faces_per_picture", OUTCOMES]


def test_a_run_is_not_compared_with_itself_under_another_spelling(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    (place / "bright" / "more").mkdir(exist_ok=True)
    spelled = ["bright", str(place / "bright"), "./bright/", f"file://{place}/bright", "bright/more/.."]
    assert len(sittings(spelled)) == 1
    assert [sitting.name for sitting in sittings(["./bright"])] == ["./bright"]
    report = compare(spelled, DEFAULT, str(place / "dataset"))
    assert (report.reference, len(report.runs)) == (None, 1)
    for spelling in spelled:
        with pytest.raises(UserError, match="there is no other run"):
            compare(["bright"], DEFAULT, reference=spelling)


def test_pictures_that_were_added_later_are_a_run_of_their_own(
    place: Path, photos: tuple[list[SyntheticPhoto], list[SyntheticPhoto]], model: Model, tmp_path: Path
) -> None:
    """Real runs: the archive grows, and the new pictures are darker."""
    album = tmp_path / "album"
    album.mkdir()
    everyone = [photo for kind in photos for photo in kind]
    for index, photo in enumerate(everyone):
        (album / f"{index}.jpg").write_bytes(photo.jpeg)
    out = str(tmp_path / "out")
    annotate(str(album), out, model, AnnotateSettings(images_per_unit=4), workers=1)
    with pytest.raises(UserError, match="there is no other run"):
        compare([out], DEFAULT, reference=out)
    for index, photo in enumerate(everyone):
        (album / f"dark-{index}.png").write_bytes(picture((0.2 * decode(photo.jpeg).rgb).astype(np.uint8)))
    annotate(str(album), out, model, AnnotateSettings(images_per_unit=4), workers=1)
    report = compare([out], DriftSettings(least=5, chance=0.2, bins=3))
    assert [run.url for run in report.runs] == [f"{out}, addition 1"]
    assert report.reference == out
    assert report.runs[0].pictures == len(everyone)
    assert "brightness" in report.named("drifted")
    assert "roll" not in report.named("drifted")
    page = (tmp_path / "out" / "index.html").read_text()
    assert "Some faces with their landmarks" in page
    assert "could not be shown" not in page


def test_a_run_that_is_not_finished_is_told(place: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(place / "bright", tmp_path / "bright"))
    records = sorted((run / "records").iterdir())
    records[0].unlink()
    report = compare([str(run)], DEFAULT, str(place / "dataset"))
    left = len(records) - 1
    assert report.notes == [f"{run} is not finished: {left} of its {len(records)} units are compared."]


def test_boxes_of_another_detector_are_told(place: Path, tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path, 99, "blazeface")
    report = compare([str(place / "bright")], DEFAULT, dataset)
    (note,) = report.notes
    assert note.startswith("Boxes of the dataset are by blazeface, those of the runs by hog: ")


def test_places_without_a_run_or_dataset_are_said(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(NothingYetError, match="holds no annotation run"):
        sittings([str(place / "runs"), str(tmp_path)])
    with pytest.raises(UserError, match="there is no other run"):
        compare([str(place / "few")], DEFAULT, reference=str(place / "few"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    with pytest.raises(NothingYetError, match="no dataset was made there yet"):
        compare([str(place / "few")], DEFAULT, str(tmp_path / "datasets"))
    (tmp_path / "datasets" / "another").mkdir(parents=True)
    with pytest.raises(
        UserError, match=r"has none named .*, on which the model in the box \(msrrn \w+; there is no champion\)"
    ):
        compare([str(place / "few")], DEFAULT, str(tmp_path / "datasets"))


def test_in_a_place_of_datasets_that_of_the_champion_is_taken(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Champion:
        label = "msrrn 7"

        class card:  # noqa: N801
            training = Training(dataset="dataset")

    monkeypatch.setattr("pipelines.opening.champion_uri", lambda: "models:/msrrn/7")
    monkeypatch.setattr("pipelines.opening.open_model", {"models:/msrrn/7": Champion}.__getitem__)
    assert drift.training_dataset(str(place)).url == str(place / "dataset")
    with pytest.raises(UserError, match=r"none named dataset, on which the champion \(msrrn 7\) was trained"):
        drift.training_dataset(str(place / "runs"))
    shutil.copytree(place / "dataset", tmp_path / "without-a-person")
    for now in ("without-a-person", None):
        write_forgotten(Store(str(tmp_path)), Forgotten(renamed={"dataset": now}))
        if now:
            assert drift.training_dataset(str(tmp_path)).url == str(tmp_path / now)
        else:
            with pytest.raises(UserError, match="none named dataset"):
                drift.training_dataset(str(tmp_path))


def test_a_dataset_without_its_features_is_surveyed(dataset: tuple[Store, Manifest], tmp_path: Path) -> None:
    store, manifest = dataset
    said = features_of(store, manifest)
    local = store.parent.local_path()
    assert local is not None
    shutil.copytree(local, tmp_path / "copy")
    copy = Store(str(tmp_path / "copy")).child(manifest.name)
    assert copy.exists(FEATURES)
    for damaged in (b"{}", b"junk", said.model_copy(update={"edges": {}}).model_dump_json().encode()):
        copy.publish(FEATURES, damaged)
        assert features_of(copy, manifest) == said
    copy.delete(FEATURES)
    assert features_of(copy, manifest) == said
    counts = {split: sum(found) for split, found in said.counts["size"].items()}
    assert counts == {"train": manifest.counts["train"], "val": manifest.counts["val"]}


def test_page_and_report_tell_the_same(place: Path, tmp_path: Path) -> None:
    report = of(place, "bright")
    assert write_drift(report, Store(str(tmp_path))) == f"{tmp_path}/{PAGE}"
    assert DriftReport.model_validate_json((tmp_path / REPORT).read_bytes()) == report
    html = (tmp_path / PAGE).read_text()
    document = Document(html)
    assert html == drift_page(report)
    assert "other faces or pictures than before: brightness: mean grey value." in document.text
    assert len(document.named("svg")) == len(MEASURES)
    assert not document.named("img")  # no picture of a person is kept
    assert "recent runs" in document.text
    assert "truncated" in document.words
    assert "://" not in re.sub(r'xmlns(:xlink)?="[^"]*"', "", html)


def test_names_are_escaped(place: Path) -> None:
    report = of(place, "bad")
    hostile = report.model_copy(update={"notes": [HOSTILE], "dataset": HOSTILE})
    hostile.features[-1].bins[0] = HOSTILE  # type: ignore[call-overload]
    document = Document(drift_page(hostile))
    assert not document.named("script")
    assert document.text.count(HOSTILE) == 3


def test_places_whose_names_are_no_utf_8_are_reported(place: Path, tmp_path: Path) -> None:
    copy = tmp_path / os.fsdecode(b"caf\xe9")
    shutil.copytree(place / "runs", copy / "runs")
    shutil.copytree(place / "dataset", copy / "dataset")
    report = compare([str(copy / "runs")], DEFAULT, str(copy / "dataset"))
    write_drift(report, Store(str(copy / "drift")))
    assert report == DriftReport.model_validate_json((copy / "drift" / REPORT).read_bytes())
    assert {report.dataset, report.reference} == {
        rf"{tmp_path}/caf\xe9/{name}" for name in ("dataset", "runs/alike-0")
    }


def test_runs_on_s3_are_found_and_ordered(place: Path, s3: str) -> None:
    for name in ("alike-0", "alike-1"):
        for path in sorted((place / "runs" / name).rglob("*.*")):
            Store(s3).publish(f"runs/{name}/{path.relative_to(place / 'runs' / name)}", path.read_bytes())
    report = compare([f"{s3}/runs"], DEFAULT, str(place / "dataset"))
    assert report.verdict == "stable"
    write_drift(report, Store(f"{s3}/drift"))
    assert json.loads(Store(s3).read_bytes(f"drift/{REPORT}"))["verdict"] == "stable"
    assert Store(s3).folders() == ["drift", "runs"]
    assert Store(f"{s3}/nothing").folders() == []
    assert np.isclose(Store(s3).modified("drift/drift.json"), Store(s3).modified(f"drift/{PAGE}"), atol=60)


def test_the_command_says_what_drifted_and_exits_with_1(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    call = ["monitor", "--dataset", str(place / "dataset"), "--out", str(tmp_path), "--runs"]
    assert main([*call, str(place / "runs")]) == 0
    assert f"stable: {tmp_path}/{PAGE}" in capsys.readouterr().out
    assert main([*call, str(place / "runs"), str(place / "bright"), "--recent", "1", "--json"]) == 1
    printed = json.loads(capsys.readouterr().out)
    assert printed["page"] == f"{tmp_path}/{PAGE}"
    assert [feature["name"] for feature in printed["features"] if feature["verdict"] == "drifted"] == ["brightness"]
    assert main([*call, str(place / "bright"), "--psi-alarm", "9", "--ks-alarm", "1", "--least", "5"]) == 0
    assert "brightness         warning" in capsys.readouterr().out
    assert main(["monitor", "--out", str(tmp_path), "--runs", str(place / "bright")]) == 0
    said = capsys.readouterr().out
    assert said.count("unknown: there is no older run of this model and these settings to compare with") == 1
    with pytest.raises(SystemExit):
        main([*call[:-1]])
    assert main([*call, str(place / "bright"), "--bins", "1"]) == 2
    assert "--bins 1: Input should be greater than or equal to 2" in capsys.readouterr().err
