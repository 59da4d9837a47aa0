import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from msrrn.synthetic import SyntheticPhoto
from pipelines.annotation.run import annotate
from pipelines.metrics_export import COUNTED, FILE, METRICS, export_champion, export_metrics, metered
from pipelines.models import Model
from pipelines.settings import AnnotateSettings


@pytest.fixture
def metrics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "metrics"
    monkeypatch.setenv("MSRRN_METRICS_DIR", str(folder))
    return folder / FILE


def read(file: Path) -> dict[str, float]:
    """Samples as Prometheus reads them, written `name` or `name{label}`."""
    return {
        sample.name + "".join(f"{{{value}}}" for value in sample.labels.values()): sample.value
        for family in text_string_to_metric_families(file.read_text())
        for sample in family.samples
    }


def test_counters_go_on_and_gauges_are_replaced(metrics: Path) -> None:
    export_metrics(pictures={"annotated": 3, "quarantined": 1}, faces=5, quarantined={"empty": 1}, queue_units=4)
    export_metrics(pictures={"annotated": 2, "quarantined": 0}, faces=2, pictures_per_second=7.5, queue_units=0)
    assert read(metrics) == {
        "msrrn_pictures_total{annotated}": 5,
        "msrrn_pictures_total{quarantined}": 1,
        "msrrn_faces_total": 7,
        "msrrn_quarantined_total{empty}": 1,
        "msrrn_queue_units": 0,
        "msrrn_annotate_pictures_per_second": 7.5,
    }
    types = {family.name: family.type for family in text_string_to_metric_families(metrics.read_text())}
    assert types["msrrn_pictures"] == "counter"
    assert types["msrrn_queue_units"] == "gauge"
    assert [path.name for path in metrics.parent.iterdir() if path.suffix == ".prom"] == [FILE]


def test_every_metric_can_be_exported(metrics: Path) -> None:
    export_metrics(pictures={"no_face": 1}, quarantined={'a "b" \\ \n': 1}, queue_units=1, pictures_per_second=1)
    export_metrics(heard=1.8e9)
    export_champion("msrrn", 7, {"msrrn.nrmse_ip": "0.04370"}, promoted=1.7e9)
    exported = read(metrics)
    assert {name.partition("{")[0] for name in exported} == METRICS.keys()
    assert exported['msrrn_quarantined_total{a "b" \\ \n}'] == 1
    assert exported["msrrn_last_promotion_timestamp_seconds{msrrn}"] == 1.7e9
    export_champion("msrrn", 6, {"msrrn.nrmse_ip": "0.05"}, promoted=None)
    again = read(metrics)
    assert again["msrrn_champion_version{msrrn}"] == 6
    assert again["msrrn_champion_nrmse_ip{msrrn}"] == 0.05
    assert again["msrrn_last_promotion_timestamp_seconds{msrrn}"] == 1.7e9


def test_each_model_has_its_champion_or_none(metrics: Path) -> None:
    export_champion("msrrn", 7, {"msrrn.nrmse_ip": "0.04370"}, promoted=1.7e9)
    export_champion("msrrn-demo", 1, {"msrrn.nrmse_ip": "some 4 %"}, promoted=None)
    both = read(metrics)
    assert (both["msrrn_champion_version{msrrn}"], both["msrrn_champion_version{msrrn-demo}"]) == (7, 1)
    assert "msrrn_champion_nrmse_ip{msrrn-demo}" not in both
    export_champion("msrrn", None, {}, promoted=None)
    assert read(metrics).keys() == {
        "msrrn_last_promotion_timestamp_seconds{msrrn}",
        "msrrn_champion_version{msrrn-demo}",
    }


def test_metrics_of_before_they_had_labels_are_left_out(metrics: Path) -> None:
    metrics.parent.mkdir()
    metrics.write_text("msrrn_champion_version 3.0\nmsrrn_faces_total 4.0\n")
    export_metrics(queue_units=1)
    assert read(metrics) == {"msrrn_faces_total": 4, "msrrn_queue_units": 1}


def test_nothing_is_written_unless_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MSRRN_METRICS_DIR", raising=False)
    monkeypatch.chdir(tmp_path)
    export_metrics(pictures={"annotated": 1})
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_written_ends_no_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MSRRN_METRICS_DIR", str(tmp_path / "file"))
    export_metrics(queue_units=1)
    assert "metrics were not written" in caplog.text


def test_a_damaged_file_is_begun_anew(metrics: Path) -> None:
    export_metrics(pictures={"annotated": 9})
    metrics.write_bytes(b'msrrn_faces_total{"\n\xff')
    export_metrics(pictures={"annotated": 1}, faces=1)
    assert read(metrics) == {"msrrn_pictures_total{annotated}": 1, "msrrn_faces_total": 1}


def test_processes_that_write_at_once_lose_nothing(metrics: Path) -> None:
    work = (
        "from pipelines.metrics_export import export_metrics\nfor _ in range(50): export_metrics(pictures={'a': 1})"
    )
    processes = [subprocess.Popen([sys.executable, "-c", work]) for _ in range(2)]
    assert [process.wait(600) for process in processes] == [0, 0]
    assert read(metrics)["msrrn_pictures_total{a}"] == 100


def test_a_run_is_counted_once_and_new_pictures_are_added(
    model: Model, photos: tuple[list[SyntheticPhoto], list[SyntheticPhoto]], tmp_path: Path, metrics: Path
) -> None:
    album = tmp_path / "album"
    album.mkdir()
    (album / "a.jpg").write_bytes(photos[0][0].jpeg)
    (album / "b.jpg").write_bytes(b"")

    def run() -> dict[str, float]:
        out = str(tmp_path / "out")
        with metered(out, 1, lambda *_: None) as update:
            summary = annotate(str(album), out, model, AnnotateSettings(images_per_unit=1), 1, update)
        assert summary.images == len(list(album.iterdir()))
        found = read(metrics)
        del found["msrrn_annotate_heard_timestamp_seconds"]
        return found

    first = run()
    assert first["msrrn_pictures_total{quarantined}"] == first["msrrn_quarantined_total{empty}"] == 1
    assert first["msrrn_pictures_total{annotated}"] + first["msrrn_pictures_total{no_face}"] == 1
    assert first["msrrn_annotate_pictures_per_second"] > 0
    assert first["msrrn_queue_units"] == 0
    assert run() == first
    (album / "c.jpg").write_bytes(b"no picture")
    third = run()
    assert third["msrrn_pictures_total{quarantined}"] == 2
    assert third["msrrn_quarantined_total{empty}"] == 1
    assert third["msrrn_faces_total"] == first["msrrn_faces_total"]


@pytest.fixture
def broken(tmp_path: Path) -> Callable[[str], None]:
    """Puts a file into the archive that is no picture."""
    album = tmp_path / "album"
    album.mkdir()

    def write(name: str) -> None:
        (album / name).write_bytes(b"")

    return write


@pytest.fixture
def run(tmp_path: Path, model: Model, metrics: Path) -> Callable[..., float]:
    """Annotates the archive, and says how many pictures were counted as quarantined since there are metrics."""

    def annotated(began: Callable[..., None] = lambda *_: None) -> float:
        out = str(tmp_path / "out")
        with metered(out, 1, began) as update:
            annotate(str(tmp_path / "album"), out, model, AnnotateSettings(images_per_unit=1), 1, update)
        return read(metrics)["msrrn_pictures_total{quarantined}"]

    return annotated


def killed(done: int, total: int, *_: object) -> None:
    """As soon as pictures are being done."""
    if total:
        raise KeyboardInterrupt


def test_a_run_that_was_killed_over_new_pictures_counts_those_alone(
    broken: Callable[[str], None], run: Callable[..., float], tmp_path: Path, metrics: Path
) -> None:
    broken("a.jpg")
    broken("b.jpg")
    assert run() == 2
    for name in ("c.jpg", "d.jpg"):
        broken(name)
        with pytest.raises(KeyboardInterrupt):
            run(killed)
        assert not (tmp_path / "out" / "summary.json").exists()
    assert run() == 4
    assert read(metrics)["msrrn_quarantined_total{empty}"] == 4


def test_a_call_that_only_waited_for_another_counts_nothing(
    broken: Callable[[str], None], run: Callable[..., float], tmp_path: Path, metrics: Path
) -> None:
    broken("a.jpg")

    with metered(str(tmp_path / "out"), 1, lambda *_: None) as update:
        update(0, 0, "another run is at work here: waiting")
        assert run() == 1
        update(1, 1)
    assert read(metrics)["msrrn_pictures_total{quarantined}"] == 1


def test_a_place_that_was_deleted_counts_anew(
    broken: Callable[[str], None], run: Callable[..., float], tmp_path: Path
) -> None:
    broken("a.jpg")
    broken("b.jpg")
    assert run() == 2
    shutil.rmtree(tmp_path / "out")
    (tmp_path / "album" / "b.jpg").unlink()
    assert run() == 3
    assert run() == 3


@pytest.mark.parametrize("memory", [None, b"{", b'{"a": 1}'])
def test_a_finished_run_of_which_nothing_is_remembered_counts_what_is_new(
    broken: Callable[[str], None], run: Callable[..., float], metrics: Path, memory: bytes | None
) -> None:
    """One of before anything was remembered, and one whose memory was damaged."""
    broken("a.jpg")
    assert run() == 1
    counted = metrics.with_name(COUNTED)
    counted.unlink() if memory is None else counted.write_bytes(memory)
    broken("b.jpg")
    with pytest.raises(KeyboardInterrupt):
        run(killed)
    assert run() == 2


def test_a_place_is_the_same_however_it_is_spelled(
    broken: Callable[[str], None], run: Callable[..., float], tmp_path: Path, metrics: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    broken("a.jpg")
    assert run() == 1
    monkeypatch.chdir(tmp_path)
    summary = Path("out", "summary.json")
    for out in ("out", "./out/", f"file://{tmp_path}/out"):
        said = summary.read_bytes()
        summary.unlink()
        with metered(out, 1, lambda *_: None):
            summary.write_bytes(said)
    assert read(metrics)["msrrn_pictures_total{quarantined}"] == 1
    assert json.loads(metrics.with_name(COUNTED).read_bytes()).keys() == {str(tmp_path / "out")}


def test_what_cannot_be_remembered_ends_no_job_and_is_not_counted(
    broken: Callable[[str], None], run: Callable[..., float], metrics: Path, caplog: pytest.LogCaptureFixture
) -> None:
    broken("a.jpg")
    metrics.with_name(COUNTED).mkdir(parents=True)
    assert run() == 0
    assert "metrics were not written" in caplog.text


def test_a_run_is_watched_while_it_goes_on(metrics: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.metrics_export.LIVE_SECONDS", 0.0)
    seen: list[tuple[object, ...]] = []
    (tmp_path / "summary.json").write_text(json.dumps({"annotated": "what"}))  # not ours: it counts for nothing

    def interrupted() -> None:
        with metered(str(tmp_path), 10, lambda *at: seen.append(at)) as update:
            update(60, 0, "listing pictures")
            update(0, 95)
            update(30, 95)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert seen == [(60, 0, "listing pictures"), (0, 95), (30, 95)]
    exported = read(metrics)
    assert exported["msrrn_queue_units"] == 7
    # Before they are first counted: what is not there cannot increase.
    counters = {name: value for name, value in exported.items() if "_total" in name}
    assert {"msrrn_pictures_total{quarantined}", "msrrn_quarantined_total{timeout}"} < counters.keys()
    assert not any(counters.values())


def test_what_is_told_of_a_champion_is_no_word_of_a_run(
    metrics: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By its age, an alert knows that a run is stuck."""
    monkeypatch.setattr("time.time", lambda: 1.8e9)
    with metered(str(tmp_path), 10, lambda *_: None) as update:
        update(30, 95)
    monkeypatch.setattr("time.time", lambda: 1.9e9)
    export_champion("msrrn", 7, {}, promoted=None)
    assert read(metrics)["msrrn_annotate_heard_timestamp_seconds"] == 1.8e9
