import hashlib
import io
import json
import os
import random
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from msrrn.prediction import Prediction, Predictor
from msrrn.synthetic import SyntheticPhoto
from pipelines.annotation import readying, rehearsal
from pipelines.annotation import run as driver
from pipelines.annotation.claim import claim_of, publish_claim
from pipelines.annotation.pictures import Rows
from pipelines.annotation.readying import prepared
from pipelines.annotation.records import RECORDS, STAGED, UnitRecord
from pipelines.annotation.rehearsal import LOOKED_AT, rehearse
from pipelines.annotation.run import annotate
from pipelines.annotation.sightings import Task
from pipelines.annotation.summary import Summary
from pipelines.annotation.tables import FACES, IMAGES, PAGE, RUN, STATUSES, SUMMARY, Annotations
from pipelines.annotation.work import Again
from pipelines.archives import Input, Listing
from pipelines.asked import Asked
from pipelines.decoding import decode
from pipelines.detection import Detector, HogDetector, open_detector
from pipelines.detection.blazeface import BlazeFaceDetector
from pipelines.detection.cnn import CnnDetector
from pipelines.detection.yunet import YuNetDetector
from pipelines.disk import TEMP_PREFIX
from pipelines.errors import UsageError, UserError
from pipelines.forgotten import remember
from pipelines.lease import LEASE, Lease, hold
from pipelines.models import ONE_LOOK, Model
from pipelines.opening import open_model
from pipelines.progress import Progress
from pipelines.settings import AnnotateSettings
from pipelines.sources import AnnotatedPhoto, open_annotated
from pipelines.sources.corrections import PREDICTIONS
from pipelines.storage import Store
from tests.factories import (
    killed_after,
    killed_at_write,
    picture,
    start_msrrn,
    times,
    tiny_model,
    tree,
    write_model,
    write_tar,
)
from tests.faulty import FaultyEndpoint
from tests.upset import UPSETTING, Upset

SETTINGS = AnnotateSettings(images_per_unit=3)
Photos = tuple[list[SyntheticPhoto], list[SyntheticPhoto]]
Call = tuple[str, str, Model, AnnotateSettings, int]


@pytest.fixture(scope="module")
def face(photos: Photos) -> bytes:
    """A photo in which the detector finds one face or more, whatever the generator draws."""
    everyone = [photo.jpeg for kind in photos for photo in kind]
    return next(jpeg for jpeg in everyone if HogDetector()(decode(jpeg).rgb))


@pytest.fixture(scope="module")
def album(photos: Photos, face: bytes, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten pictures, among them two that are none and one without a face; units of three."""
    folder = tmp_path_factory.mktemp("album")
    files = {f"b/{index}.jpg": photo.jpeg for index, photo in enumerate(photos[0][:4])}
    files |= {f"a/{index}.jpg": photo.jpeg for index, photo in enumerate(photos[1])}
    files |= {"a/empty.jpg": b"", "c/half.jpg": photos[0][0].jpeg[:5000], "c/letter.doc": b"Dear aunt,\n" * 40}
    files |= {"c/blue sky.png": picture(np.full((90, 120, 3), (90, 150, 250), np.uint8))}
    files |= {"notes.txt": b"not a picture", "b/0.pts": b"old", "c/face.jpg": face}
    for name, data in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


@pytest.fixture(scope="module")
def done(album: Path, model: Model, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Summary]:
    out = tmp_path_factory.mktemp("out") / "annotations"
    return out, annotate(str(album), str(out), model, SETTINGS, workers=1)


@pytest.fixture
def ended(done: tuple[Path, Summary], album: Path, model: Model, tmp_path: Path) -> Call:
    """A call that is done, of a copy of the album at `in`, with its run at `out`."""
    folder, out = shutil.copytree(album, tmp_path / "in"), shutil.copytree(done[0], tmp_path / "out")
    record = json.loads((out / RUN).read_bytes()) | {"source": str(folder), "archive": str(folder)}
    (out / RUN).write_text(json.dumps(record))
    return str(folder), str(out), model, SETTINGS, 1


def tables(out: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    run = Annotations(Store(str(out)))
    images = [row for unit in run.units() for row in run.images(unit).to_pylist()]
    return images, [row for unit in run.units() for row in run.faces(unit).to_pylist()]


def result(out: Path) -> dict[str, bytes]:
    """Every file of a run but what tells how fast it was, and what names its source."""
    files = tree(out)
    summary = Summary.model_validate_json(files[SUMMARY]) if SUMMARY in files else None
    if summary:
        files[SUMMARY] = timeless(summary).model_dump_json().encode()
    return {name: data for name, data in files.items() if name != RUN}


def timeless(summary: Summary) -> Summary:
    return summary.model_copy(update={"throughput": None})


def statuses(out: Path) -> dict[str, tuple[str, str | None]]:
    return {row["uri"]: (row["status"], row["reason"]) for row in tables(out)[0]}


def test_every_input_has_a_row_in_input_order(done: tuple[Path, Summary], album: Path) -> None:
    out, summary = done
    images, faces = tables(out)
    uris = [row["uri"] for row in images]
    assert uris == sorted(uris)
    assert set(uris) == {
        path.relative_to(album).as_posix()
        for path in album.rglob("*.*")
        if path.is_file() and path.suffix not in {".txt", ".pts"}
    }
    assert summary.images == len(images) == 11
    assert summary.images == summary.annotated + summary.no_face + summary.quarantined
    assert summary.ignored == 2
    assert summary.faces == len(faces) == sum(row["faces"] for row in images) > 0
    assert summary.reasons == {"empty": 1, "not_an_image": 1, "truncated": 1}
    for status in ("annotated", "no_face", "quarantined"):
        assert getattr(summary, status) == sum(row["status"] == status for row in images) > 0
    for row in images:
        data = (album / row["uri"]).read_bytes()
        assert row["bytes"] == len(data)
        assert row["sha256"] == hashlib.sha256(data).hexdigest()
        assert bool(row["reason"]) == bool(row["message"]) == (row["status"] == "quarantined")
        assert (row["width"] is None) == (row["status"] == "quarantined")
        assert (row["status"] == "annotated") == (row["faces"] > 0)
    assert Summary.model_validate_json((out / SUMMARY).read_bytes()) == summary


def test_faces_have_their_schema_and_order(done: tuple[Path, Summary], model: Model) -> None:
    out, _ = done
    for table, schema in (("faces", FACES), ("images", IMAGES)):
        written = pq.read_schema(out / table / "part-000000.parquet")
        assert written.equals(schema)
        assert written.metadata == schema.metadata
    images, faces = tables(out)
    # What `auto` is here is settled when the run begins.
    detector = open_detector(SETTINGS.detector).name
    assert {row["detector"] for row in faces} == {Annotations(Store(str(out))).run["detector"]} == {detector}
    order = [row["uri"] for row in images]
    assert [order.index(row["uri"]) for row in faces] == sorted(order.index(row["uri"]) for row in faces)
    for image in images:
        own = [row for row in faces if row["uri"] == image["uri"]]
        assert [row["face_index"] for row in own] == list(range(image["faces"]))
        areas = [(x1 - x0) * (y1 - y0) for x0, y0, x1, y1 in (row["box"] for row in own)]
        assert areas == sorted(areas, reverse=True)
        for row in own:
            assert row["sha256"] == image["sha256"]
            assert (row["model"], row["model_version"]) == (model.card.name, model.card.version)
            assert 0 < row["confidence"] <= 1
            x, y = np.array(row["landmarks"]).reshape(68, 2).mean(axis=0)
            x0, y0, x1, y1 = row["box"]
            assert x0 < x < x1
            assert y0 < y < y1


def test_what_was_annotated_is_a_source_of_predictions(done: tuple[Path, Summary]) -> None:
    rows = list(open_annotated(str(done[0])).scan())
    faces = [row for row in rows if isinstance(row, AnnotatedPhoto)]
    assert len(faces) == done[1].faces
    assert {face.subset for face in faces} == {PREDICTIONS}


def test_a_tar_gives_what_its_folder_gives(
    done: tuple[Path, Summary], album: Path, model: Model, tmp_path: Path
) -> None:
    names = sorted(path.relative_to(album).as_posix() for path in album.rglob("*.*") if path.is_file())
    write_tar(tmp_path / "album.tar", {name: (album / name).read_bytes() for name in names})
    summary = annotate(str(tmp_path / "album.tar"), str(tmp_path / "out"), model, SETTINGS, 1)
    assert summary.digest == done[1].digest
    assert tables(tmp_path / "out") == tables(done[0])


def test_two_workers_make_the_same_bytes_from_relative_paths(
    done: tuple[Path, Summary],
    album: Path,
    model: Model,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    ray_of_two: int,
) -> None:
    shutil.copytree(album, tmp_path / "album")
    monkeypatch.chdir(tmp_path)
    summary = annotate("album", "out", model, SETTINGS, ray_of_two)
    assert timeless(summary) == timeless(done[1])
    assert tables(tmp_path / "out") == tables(done[0])


def test_a_second_run_does_no_picture_again(done: tuple[Path, Summary], album: Path, model: Model) -> None:
    out, summary = done
    before = {name: stamp for name, stamp in times(out).items() if not name.endswith(SUMMARY)}
    seen: list[tuple[int, int, str]] = []
    assert annotate(str(album), str(out), model, SETTINGS, 1, lambda *now: seen.append(now)) == summary
    assert [now for now in seen if now[2] == "annotating, pictures"] == [(11, 11, "annotating, pictures")]
    assert {name: stamp for name, stamp in times(out).items() if not name.endswith(SUMMARY)} == before


def test_a_killed_run_goes_on_to_the_same_bytes(
    done: tuple[Path, Summary], album: Path, model: Model, tmp_path: Path
) -> None:
    moments = random.Random(1)
    whole = result(done[0])
    codes = []
    for attempt in range(6):
        job = (annotate, str(album), str(tmp_path), model, SETTINGS, 1)
        if attempt % 2:
            codes.append(killed_after(moments.uniform(0.1, 1.0), *job))
        else:
            codes.append(killed_at_write(moments.randint(1, 14), *job))
        finished = {name: data for name, data in result(tmp_path).items() if name != LEASE}
        assert finished.items() <= whole.items()
        if SUMMARY in finished:
            break
    assert -9 in codes
    assert timeless(annotate(str(album), str(tmp_path), model, SETTINGS, 1)) == timeless(done[1])
    assert result(tmp_path) == whole


def test_another_run_into_the_same_place_is_refused(
    done: tuple[Path, Summary], album: Path, model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the archive is listed, which may take an hour; and once more by whoever begins at the same moment."""
    monkeypatch.setattr(driver, "list_inputs", lambda *_: pytest.fail("it is listed"))
    out = done[0]
    mean = np.full((68, 2), 0.5, np.float32)
    other = tiny_model(tmp_path / "other", mean, seed=1)
    retrained = tiny_model(tmp_path / "retrained", mean, seed=0)
    before = tree(out)
    for job, field in (
        ((other, SETTINGS), "model = msrrn tiny0, this one has msrrn tiny1"),
        ((retrained, SETTINGS), f"model_sha256 = {model.digest}, this one has {retrained.digest}"),
        ((model, AnnotateSettings(images_per_unit=4)), "images_per_unit = 3, this one has 4"),
    ):
        how = r" \(--model models:/NAME/VERSION, or its artifact\)" if field.startswith("model") else ""
        with pytest.raises(UserError, match=f"holds a run with {field}; ask for the same{how}, give"):
            annotate(str(album), str(out), *job, 1)
    begun = AnnotateSettings.model_validate(done[1].settings)
    publish_claim(Store(str(out)), claim_of(str(album), model, begun))
    with pytest.raises(UserError, match="holds a run with model = msrrn tiny0, this one has msrrn tiny1"):
        publish_claim(Store(str(out)), claim_of(str(album), other, begun))
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "a.jpg").write_bytes(b"another picture")
    with pytest.raises(UserError, match="holds a run with source"):
        annotate(str(tmp_path / "elsewhere"), str(out), model, SETTINGS, 1)
    assert tree(out) == before
    (tmp_path / "foreign").mkdir()
    anothers = "give another place"
    for content, remedy in ((b"#!/bin/sh\n", anothers), (b"[1]", anothers), (b"{}", "delete it, or give another")):
        (tmp_path / "foreign" / RUN).write_bytes(content)
        with pytest.raises(UserError, match=rf"{RUN} is not the record of a run.* {remedy}"):
            annotate(str(album), str(tmp_path / "foreign"), model, SETTINGS, 1)
    newer = "holds a run that another version of msrrn began, .*: go on with that version, give another --out, or"
    for told, said in (
        ({"schema": "1"}, "holds a run of another version of msrrn, with tables of schema 1, not 2: use that"),
        ({"unheard_of": True}, newer),
        ({"model_sha256": open_model("synthetic").digest}, r"holds .*ask for the same \(--model synthetic\), give"),
        ({"model": open_model("box", one_look=True).label}, r"ask for the same \(--model box --one-look\), give"),
        ({"model": model.label + ONE_LOOK}, r"\(--model models:/NAME/VERSION --one-look, or its artifact\), give"),
    ):
        (tmp_path / "foreign" / RUN).write_text(json.dumps(json.loads(before[RUN]) | told))
        with pytest.raises(UserError, match=said):
            annotate(str(album), str(tmp_path / "foreign"), model, SETTINGS, 1)


def test_a_run_of_another_version_is_found_finished_and_not_gone_on_with(ended: Call) -> None:
    """Its rows and those of this version would lie side by side."""
    source, out = map(Path, ended[:2])
    summary, record = annotate(*ended), json.loads((out / RUN).read_bytes())
    for then in ({"recipe": record["recipe"] + 1}, {}):  # at first none was told
        (out / RUN).write_text(json.dumps({**{k: v for k, v in record.items() if k != "recipe"}, **then}))
        assert annotate(*ended) == summary
        before = tree(out)
        with pytest.raises(UserError, match=r"run that another version of msrrn began, .* give another --out"):
            annotate(*ended, again=Again("quarantined"))
        shutil.copy(source / "c" / "face.jpg", source / "new.jpg")
        with pytest.raises(UserError, match=r"run that another version of msrrn began, .* give another --out"):
            annotate(*ended)
        with pytest.raises(UserError, match=r"run that another version of msrrn began, .* give another --out"):
            rehearse(ended[0], *ended[2:], out=ended[1])
        (source / "new.jpg").unlink()
        assert tree(out) == before


def test_a_lost_part_and_a_damaged_record_are_made_again(
    done: tuple[Path, Summary], album: Path, model: Model, tmp_path: Path
) -> None:
    out, whole = shutil.copytree(done[0], tmp_path / "out"), result(done[0])
    (out / "images" / "part-000000.parquet").unlink()
    (out / "records" / "000001.json").write_text("{")
    annotate(str(album), str(out), model, SETTINGS, 1)
    assert result(out) == whole


def test_pictures_that_came_went_or_were_replaced(
    done: tuple[Path, Summary], ended: Call, face: bytes, tmp_path: Path
) -> None:
    folder, out, first = tmp_path / "in", tmp_path / "out", done[1]
    before, stamps = tables(out), times(out)
    for name in ("a/9.jpg", "d/2.jpg"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(face)
    (folder / "c/half.jpg").write_bytes(face)  # it came whole this time
    (folder / "b/0.jpg").unlink()
    second = annotate(*ended)
    assert second.throughput is not None
    assert second.throughput.pictures == 3
    assert (second.images, second.annotated, second.gone) == (13, first.annotated + 3, 1)
    images, faces = tables(out)
    assert [row["uri"] for row in images] == [row["uri"] for row in before[0]] + ["a/9.jpg", "d/2.jpg"]
    assert statuses(out)["c/half.jpg"] == ("annotated", None)
    assert [row for row in images[:11] if row["uri"] != "c/half.jpg"] == [
        row for row in before[0] if row["uri"] != "c/half.jpg"
    ]
    old = [row for row in faces if row["uri"] not in {"a/9.jpg", "d/2.jpg", "c/half.jpg"}]
    assert old == before[1]
    redone = {Path(name).stem for name, stamp in times(out).items() if stamps.get(name) != stamp and "part" in name}
    unit = next(index for index, row in enumerate(before[0]) if row["uri"] == "c/half.jpg") // 3
    assert redone == {f"part-{unit:06d}", "part-000004"}
    assert not (out / STAGED).exists() or not list((out / STAGED).iterdir())
    assert annotate(*ended) == second


def test_a_run_is_not_finished_while_what_was_replaced_is_not_done(
    ended: Call, face: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    out = Store(str(tmp_path / "out"))
    assert Annotations(out).finished
    (tmp_path / "in/c/half.jpg").write_bytes(face)
    monkeypatch.setattr("pipelines.annotation.work.run_units", stopped)
    with pytest.raises(KeyboardInterrupt):
        annotate(*ended)
    monkeypatch.undo()
    assert not Annotations(out).finished
    annotate(*ended)
    assert Annotations(out).finished


def test_the_number_of_threads_changes_no_bit(
    done: tuple[Path, Summary], album: Path, model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sums of several threads are rounded otherwise, and a worker may see any number of cores."""
    seen = []
    predict = Predictor.predict

    def watched(self: Predictor, crops: np.ndarray[Any, Any]) -> Prediction:
        seen.append(torch.get_num_threads())
        return predict(self, crops)

    monkeypatch.setattr(Predictor, "predict", watched)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert annotate(str(album), str(tmp_path), model, SETTINGS, 1).digest == done[1].digest
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert set(seen) == {1}


def test_a_limit_takes_the_first_and_the_next_run_the_others(
    done: tuple[Path, Summary], album: Path, model: Model, tmp_path: Path
) -> None:
    first = annotate(str(album), str(tmp_path), model, SETTINGS, 1, limit=4)
    assert (first.images, first.gone) == (4, 0)
    assert tables(tmp_path)[0] == tables(done[0])[0][:4]
    again = annotate(str(album), str(tmp_path), model, SETTINGS, 1, limit=2)
    assert (again.images, again.gone) == (4, 0)
    whole = annotate(str(album), str(tmp_path), model, SETTINGS, 1)
    assert whole.images == 11
    images, faces = tables(tmp_path)
    assert images == tables(done[0])[0]
    for face, other in zip(faces, tables(done[0])[1], strict=True):
        # Faces are asked about in other company, and sums are rounded differently.
        np.testing.assert_allclose(face["landmarks"], other["landmarks"], rtol=0, atol=1e-3)


def test_a_call_that_is_refused_changes_nothing(album: Path, model: Model, tmp_path: Path) -> None:
    folder = shutil.copytree(album, tmp_path / "in")
    annotate(str(folder), str(tmp_path / "out"), model, SETTINGS, 1, limit=4)
    before = result(tmp_path / "out"), tree(tmp_path / "out")
    shutil.copy(folder / "b" / "0.jpg", folder / "0.jpg")  # the first of all
    for job in (annotate, rehearse):
        with pytest.raises(
            UserError, match=r"more than these 4 pictures, and with them 1 to be done, of all 5; it cannot"
        ):
            job(source=str(folder), out=str(tmp_path / "out"), model=model, settings=SETTINGS, workers=1, limit=4)
    assert (result(tmp_path / "out"), tree(tmp_path / "out")) == before


def test_what_is_known_of_pictures_that_are_gone_stays_though_others_are_done_again(
    ended: Call, tmp_path: Path
) -> None:
    bad = [name for name, (status, _) in statuses(tmp_path / "out").items() if status == "quarantined"]
    assert len(bad) > 1
    before = tables(tmp_path / "out")
    (tmp_path / "in" / bad[0]).unlink()
    for limit in (None, 50):  # of more than there is
        again = annotate(*ended, again=Again("quarantined"), limit=limit)
        assert again.throughput is not None
        assert again.throughput.pictures == len(bad) - 1
        assert tables(tmp_path / "out") == before


def test_what_is_gone_is_not_done_again_where_a_limit_hides_that_it_is(
    done: tuple[Path, Summary], ended: Call, face: bytes, tmp_path: Path
) -> None:
    limit, before = done[1].images, tables(tmp_path / "out")
    (tmp_path / "in" / "c" / "half.jpg").unlink()
    for name in ("0.jpg", "1.jpg"):  # before all others
        (tmp_path / "in" / name).write_bytes(face)
    with pytest.raises(UserError, match=rf"more than these {limit} pictures, .* of all {limit + 2}; it cannot"):
        annotate(*ended, again=Again("quarantined"), limit=limit)
    assert tables(tmp_path / "out") == before


def test_only_what_is_asked_for_is_done_again_and_what_came_in_since_waits(
    ended: Call, face: bytes, tmp_path: Path
) -> None:
    before = statuses(tmp_path / "out")
    truncated = [name for name, (_, reason) in before.items() if reason == "truncated"]
    other = next(
        name for name, (status, reason) in before.items() if status == "quarantined" and reason != "truncated"
    )
    for name in (truncated[0], other, "new.jpg"):  # the first two were mended
        (tmp_path / "in" / name).write_bytes(face)
    retried = annotate(*ended[:-1], workers=2, again=Again("quarantined", "truncated"))
    assert retried.throughput is not None
    assert retried.throughput.pictures == len(truncated)
    assert retried.throughput.workers == 1, "one unit is one worker's"
    assert (retried.images, retried.waiting) == (len(before), 2)
    assert statuses(tmp_path / "out") == before | {truncated[0]: ("annotated", None)}
    again = annotate(*ended, again=Again("quarantined", "truncated"))
    assert (again.throughput, again.waiting) == (retried.throughput, 2)
    whole = annotate(*ended)
    assert whole.throughput is not None
    assert (whole.throughput.pictures, whole.waiting) == (2, 0)
    assert statuses(tmp_path / "out") == before | dict.fromkeys((truncated[0], other, "new.jpg"), ("annotated", None))


def test_what_a_killed_run_left_is_done_beside_what_is_done_again(
    done: tuple[Path, Summary], ended: Call, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    (out / "records" / "000000.json").unlink()
    (out / SUMMARY).unlink()
    left = [row["reason"] for row in tables(out)[0][SETTINGS.images_per_unit :]]
    again = annotate(*ended, again=Again("quarantined", "truncated"))
    assert again.throughput is not None
    assert again.throughput.pictures == SETTINGS.images_per_unit + left.count("truncated")
    assert timeless(again) == timeless(done[1])


def test_what_a_file_manager_leaves_in_a_run_is_not_of_it(
    done: tuple[Path, Summary], album: Path, model: Model, tmp_path: Path
) -> None:
    out = shutil.copytree(done[0], tmp_path / "out")
    for place in ("plan", RECORDS, "images", "faces"):
        (out / place / ".DS_Store").write_bytes(b"\0\0\0\1Bud1")
    assert Annotations(Store(str(out))).finished
    assert annotate(str(album), str(out), model, SETTINGS, 1) == done[1]


def test_a_run_may_write_into_its_own_archive(
    done: tuple[Path, Summary], album: Path, model: Model, tmp_path: Path
) -> None:
    folder = shutil.copytree(album, tmp_path / "in")
    call = (str(folder), str(folder / "b" / "out"), model, SETTINGS, 1)
    first = annotate(*call)
    assert first.digest == done[1].digest
    (folder / "b" / "out" / "of-a-person.jpg").write_bytes(b"x")
    assert annotate(*call) == first
    assert rehearse(str(folder), model, SETTINGS, 1, out=str(folder / "b" / "out")).pictures == first.images


def test_a_limit_leaves_what_is_known_of_the_whole_archive(album: Path, ended: Call, tmp_path: Path) -> None:
    (tmp_path / "in" / "b" / "0.jpg").unlink()
    whole = annotate(*ended)
    assert (whole.gone, whole.ignored) == (1, 2)
    before = result(tmp_path / "out")
    assert annotate(*ended, limit=3) == whole
    assert result(tmp_path / "out") == before
    shutil.copy(album / "b" / "1.jpg", tmp_path / "in" / "z.jpg")
    assert annotate(*ended, again=Again("quarantined", "timeout")).waiting == 1
    assert annotate(*ended, limit=3).waiting == 1
    assert annotate(*ended, limit=50).waiting == 0


def test_what_waits_behind_a_limit_still_does_when_others_are_done_again(
    done: tuple[Path, Summary], ended: Call, face: bytes, tmp_path: Path
) -> None:
    for name in ("z.jpg", "a/empty.jpg"):
        (tmp_path / "in" / name).write_bytes(face)
    assert annotate(*ended, again=Again("quarantined", "timeout")).waiting == 2
    again = annotate(*ended, again=Again("quarantined"), limit=done[1].images)
    assert (again.throughput and again.throughput.pictures, again.waiting) == (3, 1)
    (tmp_path / "in" / "b" / "0.jpg").write_bytes(face + b"replaced")
    assert annotate(*ended, limit=done[1].images).waiting == 1


def test_a_limit_of_more_than_there_is_tells_of_the_whole_archive(
    done: tuple[Path, Summary], ended: Call, tmp_path: Path
) -> None:
    (tmp_path / "in" / "b" / "0.jpg").unlink()
    next((tmp_path / "in").rglob("*.txt")).unlink()
    told = annotate(*ended, limit=50)
    assert (told.gone, told.ignored) == (1, done[1].ignored - 1)


def test_a_retry_that_ends_before_its_page_leaves_a_run_that_is_not_finished(
    done: tuple[Path, Summary], ended: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(driver, "annotation_page", Mock(side_effect=KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            annotate(*ended, again=Again("quarantined"))
    assert not Annotations(Store(str(tmp_path / "out"))).finished
    assert timeless(annotate(*ended)) == timeless(done[1])


def test_what_a_killed_writer_left_half_written_goes_with_the_next_run(ended: Call, tmp_path: Path) -> None:
    of_another = tmp_path / "out" / f"{TEMP_PREFIX}of_another"
    of_another.write_bytes(b"beside the folders of the run")
    for folder in ("images", "faces", "records", "plan"):
        (tmp_path / "out" / folder / f"{TEMP_PREFIX}1").write_bytes(b"half")
    annotate(*ended)
    assert list(tmp_path.rglob(f"{TEMP_PREFIX}*")) == [of_another]


def test_a_damaged_plan_is_made_again_where_it_is_deleted_and_no_picture_is_twice(
    album: Path, model: Model, tmp_path: Path
) -> None:
    call = (str(tmp_path / "in"), str(tmp_path / "out"), model, SETTINGS, 1)
    shutil.copytree(album, tmp_path / "in", ignore=shutil.ignore_patterns("b"))
    annotate(*call)
    shutil.copytree(album, tmp_path / "in", dirs_exist_ok=True)
    whole = annotate(*call)
    assert len(list((tmp_path / "out" / RECORDS).iterdir())) == 5
    plan = tmp_path / "out" / "plan"
    oldest, newest = sorted(plan.iterdir())
    (oldest.parent / newest.name).write_bytes(newest.read_bytes()[:50])
    with pytest.raises(UserError, match=rf"plan/00001.parquet is damaged \(.*\): delete the whole of {plan} \(rows"):
        annotate(*call)
    oldest.unlink()
    with pytest.raises(UserError, match=rf"plan/00000.parquet is missing: delete the whole of {plan} \(rows"):
        annotate(*call)
    shutil.rmtree(plan)
    before = tree(tmp_path / "out")
    with pytest.raises(UserError, match=r"has finished units but no plan: make it anew first, without --limit"):
        annotate(*call, limit=2)
    with pytest.raises(UserError, match=r"has finished units but no plan: make it anew first, without --limit"):
        rehearse(call[0], *call[2:], limit=2, out=call[1])
    with pytest.raises(UserError, match=r"has no plan of a run, and so no picture to do again: leave --retry out"):
        annotate(*call, again=Again("quarantined"))
    assert tree(tmp_path / "out") == before
    again = annotate(*call)
    for place in (RECORDS, "images", "faces"):
        assert len(list((tmp_path / "out" / place).iterdir())) == 4
    assert (again.images, again.annotated) == (whole.images, whole.annotated)
    rows, faces = tables(tmp_path / "out")
    assert len(rows) == len({row["uri"] for row in rows}) == whole.images
    assert len(faces) == whole.faces
    assert Annotations(Store(str(tmp_path / "out"))).finished
    assert annotate(*call) == again


def test_a_damaged_table_is_named_and_made_again_where_it_is_deleted(
    done: tuple[Path, Summary], album: Path, model: Model, tmp_path: Path
) -> None:
    out, good = shutil.copytree(done[0], tmp_path / "out"), result(done[0])
    call = (str(album), str(out), model, SETTINGS, 1)
    reading: dict[str, Callable[[], object]] = {
        "images/part-000001.parquet": lambda: tables(out),
        "plan/00000.parquet": lambda: annotate(*call),
    }
    for key, read in reading.items():
        (out / key).write_bytes(good[key][:100])
        what = rf"the whole of {out}/plan \(rows .* with it\)" if "plan" in key else "it"
        with pytest.raises(
            UserError, match=rf"{key} is damaged \(.*\): delete {what} and run the same `msrrn annota"
        ):
            read()
        (out / key).unlink()
        assert annotate(*call).digest == done[1].digest
        assert result(out) == good


@pytest.mark.parametrize("left", [0, 100])
def test_a_table_that_was_cut_is_made_again(
    done: tuple[Path, Summary], album: Path, model: Model, tmp_path: Path, left: int
) -> None:
    out, good = shutil.copytree(done[0], tmp_path / "out"), result(done[0])
    for table in ("images", "faces"):
        (out / table / "part-000001.parquet").write_bytes(good[f"{table}/part-000001.parquet"][:left])
    assert annotate(str(album), str(out), model, SETTINGS, 1).throughput
    assert result(out) == good


def test_a_limit_cannot_cut_what_is_planned_already(album: Path, model: Model, tmp_path: Path) -> None:
    assert killed_at_write(9, annotate, str(album), str(tmp_path), model, SETTINGS, 1) == -9
    with pytest.raises(
        UserError, match=r"more than these 2 .* and with them \d+ to be done, of all 11;.*--limit out"
    ):
        annotate(str(album), str(tmp_path), model, SETTINGS, 1, limit=2)
    assert annotate(str(album), str(tmp_path), model, SETTINGS, 1).images == 11


def test_a_page_of_before_a_crash_is_made_anew(
    done: tuple[Path, Summary], album: Path, model: Model, tmp_path: Path
) -> None:
    out = shutil.copytree(done[0], tmp_path / "out")
    of_all = (out / PAGE).read_bytes()
    (out / PAGE).write_bytes(b"of four pictures")  # as a kill leaves it between the last unit and the page
    (out / SUMMARY).unlink()
    annotate(str(album), str(out), model, SETTINGS, 1)
    assert (out / PAGE).read_bytes() == of_all


def test_an_archive_is_known_by_its_place_however_it_is_written(
    done: tuple[Path, Summary], album: Path, model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for parent in ("here", "there"):
        shutil.copytree(album, tmp_path / parent / "album")
    monkeypatch.chdir(tmp_path / "here")
    first = annotate("album", "../out", model, SETTINGS, 1)
    for source in ("./album/", "../here/album", str(tmp_path / "here" / "album")):
        assert annotate(source, "../out", model, SETTINGS, 1) == first
    begun = json.loads((tmp_path / "out" / RUN).read_bytes())
    older = begun | {"archive": str(tmp_path / "here" / ".." / "here" / "album")}
    (tmp_path / "out" / RUN).write_text(json.dumps(older))
    assert annotate("album", "../out", model, SETTINGS, 1) == first
    monkeypatch.chdir(tmp_path / "there")
    with pytest.raises(UserError, match=r"holds a run with source = .*/here/album, this one has .*/there/album"):
        annotate("album", "../out", model, SETTINGS, 1)
    shutil.rmtree(tmp_path / "here")  # now it was moved
    shutil.copytree("album", "other")
    del older["archive"]  # as runs of before were recorded
    for record, then in ((begun, ".*/here/album"), (older, "album")):
        (tmp_path / "out" / RUN).write_text(json.dumps(record))
        assert annotate("album", "../out", model, SETTINGS, 1).digest == first.digest
        with pytest.raises(UserError, match=f"holds a run with source = {then}, this one has .*/there/other"):
            annotate("other", "../out", model, SETTINGS, 1)


def test_a_picture_that_upsets_crashes_or_hangs_costs_only_itself(
    face: bytes, model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {"a.jpg": face, "z.jpg": face}
    files |= {f"{name}.png": picture(np.zeros((40, width), np.uint8)) for name, width in UPSETTING.items()}
    for name, data in files.items():
        (tmp_path / "in").mkdir(exist_ok=True)
        (tmp_path / "in" / name).write_bytes(data)
    settings = SETTINGS.model_copy(update={"timeout": 6.0})
    job = (str(tmp_path / "in"), str(tmp_path / "out"), model)
    monkeypatch.setattr(readying, "open_detector", lambda name, precision: Upset())
    summary = annotate(*job, settings, 1)
    bad = {"b raises.png": "failed", "c dies.png": "crashed", "d hangs.png": "timeout"}
    good = dict.fromkeys(("a.jpg", "z.jpg"), ("annotated", None))
    assert statuses(tmp_path / "out") == good | {name: ("quarantined", reason) for name, reason in bad.items()}
    assert summary.reasons == {"crashed": 1, "failed": 1, "timeout": 1}
    messages = {row["uri"]: row["message"] for row in tables(tmp_path / "out")[0]}
    assert messages["b raises.png"] == "RuntimeError: internal error in the detector"
    assert messages["c dies.png"].endswith("killed by SIGSEGV")
    assert messages["d hangs.png"].endswith("not done after 6 seconds")

    stamps = times(tmp_path / "out")
    monkeypatch.setattr(readying, "open_detector", lambda name, precision: Upset(patient=True))
    retried = annotate(*job, settings, 1, again=Again.parse("quarantined:timeout"))
    assert retried.throughput is not None
    assert retried.throughput.pictures == 1
    assert statuses(tmp_path / "out")["d hangs.png"] == ("no_face", None)
    assert retried.reasons == {"crashed": 1, "failed": 1}
    parts = {Path(name).name for name, stamp in times(tmp_path / "out").items() if stamps.get(name) != stamp}
    assert "part-000001.parquet" in parts
    assert "part-000000.parquet" not in parts


def test_a_retry_that_is_killed_leaves_the_unit_whole(
    done: tuple[Path, Summary], album: Path, model: Model, tmp_path: Path
) -> None:
    whole = tables(done[0])
    for write in range(1, 12, 2):
        out = shutil.copytree(done[0], tmp_path / str(write))
        code = killed_at_write(write, _retry, str(album), str(out), model)
        assert tables(out)[0] == whole[0]
        annotate(str(album), str(out), model, SETTINGS, 1)
        assert tables(out) == whole
        assert not (out / STAGED).exists() or not list((out / STAGED).iterdir())
        if code == 0:
            break


def test_a_unit_of_which_all_is_done_again_stays_whole_when_that_is_killed(
    album: Path, face: bytes, model: Model, tmp_path: Path
) -> None:
    """What its record says of the parts holds at any moment, though every row of the unit is another one."""
    folder, settings = tmp_path / "album", SETTINGS.model_copy(update={"images_per_unit": 1})
    shutil.copytree(album / "c", folder / "c")
    annotate(str(folder), str(tmp_path / "first"), model, settings, 1)
    (folder / "c/half.jpg").write_bytes(face)
    codes = []
    for write in range(6, 19, 2):  # before each file of the unit has its name, and after the last one has
        out = shutil.copytree(tmp_path / "first", tmp_path / str(write))
        codes.append(killed_at_write(write, annotate, str(folder), str(out), model, settings, 1))
        for path in (out / RECORDS).glob("*.json"):
            record = UnitRecord.model_validate_json(path.read_bytes())
            for table, digest in record.parts.items():
                part = (out / table / f"part-{path.stem}.parquet").read_bytes()
                assert record.staged or hashlib.sha256(part).hexdigest() == digest
        annotate(str(folder), str(out), model, settings, 1)
        assert statuses(out)["c/half.jpg"] == ("annotated", None)
    assert set(codes) == {-9}


def _retry(album: str, out: str, model: Model) -> None:
    annotate(album, out, model, SETTINGS, 1, again=Again("quarantined", "truncated"))


@pytest.mark.parametrize("text", ["done", "annotated", "annotated:x", "quarantined:", "no_face:small", ""])
def test_what_cannot_be_retried_is_said(text: str) -> None:
    if text == "quarantined:":
        assert Again.parse(text) == Again("quarantined")
        return
    with pytest.raises(ValueError, match="write no_face, quarantined, or quarantined:REASON"):
        Again.parse(text)


def test_a_reason_that_is_none_is_not_waited_for() -> None:
    with pytest.raises(ValueError, match=r"there is no such reason; is it timeout\?"):
        Again.parse("quarantined:timeot")
    with pytest.raises(ValueError, match=r"there is no such reason; there are broken_archive, .*, truncated, "):
        Again.parse("quarantined:nonsense")


def test_bad_pictures_are_quarantined_and_odd_ones_are_not(face: bytes, model: Model, tmp_path: Path) -> None:
    image = Image.fromarray(decode(face).rgb)
    grey = np.asarray(image.convert("L"))
    wide, cmyk = io.BytesIO(), io.BytesIO()
    Image.new("L", (40_000, 8)).save(wide, "PNG")
    image.convert("CMYK").save(cmyk, "JPEG", quality=98)
    exif = Image.Exif()
    exif[0x0112] = 6
    odd = {
        "cmyk.jpg": cmyk.getvalue(),
        "deep.png": picture(grey.astype(np.uint16) * 257),
        "grey.png": picture(grey),
        "rgb.png": picture(np.asarray(image)),
        "rgba.png": picture(np.asarray(image.convert("RGBA"))),
        "turned.png": picture(np.asarray(image.rotate(90, expand=True)), exif=exif),
    }
    bad = {"empty.jpg": b"", "half.jpg": face[: len(face) // 2], "wide.png": wide.getvalue()}
    for name, data in (odd | bad).items():
        (tmp_path / "in").mkdir(exist_ok=True)
        (tmp_path / "in" / name).write_bytes(data)
    (tmp_path / "in" / "gone.jpg").symlink_to(tmp_path / "nowhere")
    annotate(str(tmp_path / "in"), str(tmp_path / "out"), model, SETTINGS, 1)
    assert statuses(tmp_path / "out") == {
        **dict.fromkeys(odd, ("annotated", None)),
        "empty.jpg": ("quarantined", "empty"),
        "half.jpg": ("quarantined", "truncated"),
        "wide.png": ("quarantined", "too_large"),
        "gone.jpg": ("quarantined", "unsafe_member"),
    }
    images, faces = tables(tmp_path / "out")
    first = {row["uri"]: row for row in reversed(faces)}
    reference = np.array(first["rgb.png"]["landmarks"])
    np.testing.assert_array_equal(first["rgba.png"]["landmarks"], reference)
    np.testing.assert_array_equal(first["turned.png"]["landmarks"], reference)
    assert {row["uri"]: row["orientation"] for row in images if row["orientation"] != 1} == {
        "turned.png": 6,
        **dict.fromkeys(("empty.jpg", "gone.jpg", "half.jpg", "wide.png")),
    }
    assert {(row["width"], row["height"]) for row in images if row["width"]} == {image.size}


def test_a_run_goes_on_as_it_began(
    face: bytes, model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also on a machine that would have chosen otherwise."""
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "face.jpg").write_bytes(face)
    run = str(tmp_path / "in"), str(tmp_path / "out"), model
    monkeypatch.setattr("pipelines.models.has_bfloat16", lambda: True)
    monkeypatch.setattr("pipelines.detection.has_model_file", lambda name: False)
    chosen = {"detector": "hog", "precision": "bfloat16", "engine": "openvino"}
    begun = annotate(*run, SETTINGS.model_copy(update={"engine": "openvino"}), workers=1)
    assert begun.settings.items() >= chosen.items()
    monkeypatch.setattr("pipelines.models.has_bfloat16", lambda: False)
    monkeypatch.setattr("pipelines.detection.has_model_file", lambda name: True)
    (tmp_path / "in" / "again.jpg").write_bytes(face)
    then = annotate(*run, SETTINGS, workers=1)
    assert (then.images, then.settings) == (2, begun.settings)
    for field, other in (("precision", "float32"), ("engine", "native"), ("detector", "blazeface")):
        with pytest.raises(UserError, match=f"holds a run with {field} = {chosen[field]}, this one has {other}"):
            annotate(*run, SETTINGS.model_copy(update={field: other}), workers=1)
    record = tmp_path / "out" / RUN
    older = json.loads(record.read_text())
    del older["engine"]  # as runs were recorded when there was no other than native
    record.write_text(json.dumps(older))
    assert annotate(*run, SETTINGS, workers=1).settings["engine"] == "native"


def test_openvino_is_chosen_for_many_pictures(
    face: bytes, model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of them are listed, once, and `--limit` counts."""
    (tmp_path / "in").mkdir()
    for number in range(4):
        (tmp_path / "in" / f"{number}.jpg").write_bytes(face)
    monkeypatch.setattr("pipelines.annotation.readying.MANY_PICTURES", 3)
    auto = AnnotateSettings(detector="hog", precision="bfloat16")
    for limit, engine in ((2, "native"), (3, "openvino"), (None, "openvino")):
        run = str(tmp_path / "in"), str(tmp_path / f"{limit}"), model
        summary = annotate(*run, auto, workers=1, limit=limit)
        assert (summary.images, summary.settings["engine"]) == (limit or 4, engine)
    assert rehearse(str(tmp_path / "in"), model, auto, workers=1).pictures == 4
    monkeypatch.setattr("pipelines.annotation.readying.has_openvino", lambda: False)
    summary = annotate(str(tmp_path / "in"), str(tmp_path / "without"), model, auto, workers=1)
    assert summary.settings["engine"] == "native"


def test_what_another_run_chose_meanwhile_is_what_counts(
    face: bytes, model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "face.jpg").write_bytes(face)
    run = str(tmp_path / "in"), str(tmp_path / "out"), model

    @contextmanager
    def overtaken(place: Store, *others: Any) -> Iterator[Lease]:
        monkeypatch.setattr(driver, "hold", hold)
        # As of the tests before: the graph of another precision would be exported for this one.
        annotate(*run, SETTINGS.model_copy(update={"engine": "openvino", "precision": "bfloat16"}), workers=1)
        with hold(place, *others) as lease:
            yield lease

    monkeypatch.setattr(driver, "hold", overtaken)
    assert annotate(*run, SETTINGS, workers=1).settings["engine"] == "openvino"


def test_a_run_that_was_taken_over_says_what_there_is_at_the_end(face: bytes, model: Model, tmp_path: Path) -> None:
    """It was frozen for longer than its lease, and meanwhile another one found more pictures."""
    (tmp_path / "in").mkdir()
    for number in range(2):
        (tmp_path / "in" / f"{number}.jpg").write_bytes(face)
    run = str(tmp_path / "in"), str(tmp_path / "out"), model, SETTINGS, 1

    def frozen(done: int, total: int, what: str) -> None:
        if (done, total) == (2, 2):
            (tmp_path / "in" / "2.jpg").write_bytes(face)
            (tmp_path / "out" / LEASE).unlink()  # as whoever takes over and ends leaves it
            annotate(*run)

    assert annotate(*run, frozen).images == 3
    assert Summary.model_validate_json((tmp_path / "out" / SUMMARY).read_bytes()).images == 3
    assert not (tmp_path / "out" / LEASE).exists()


def test_what_cannot_be_is_said_before_an_archive_is_listed(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipelines.models.has_openvino", lambda: False)
    asked = SETTINGS.model_copy(update={"engine": "openvino"})
    for name, job in (("rehearsal", rehearse), ("run", partial(annotate, out=str(tmp_path / "out")))):
        monkeypatch.setattr(f"pipelines.annotation.{name}.list_inputs", lambda *_: map(pytest.fail, ["it is listed"]))
        with pytest.raises(UserError, match="OpenVINO is not installed"):
            job(str(tmp_path), model=model, settings=asked, workers=1)


def test_a_score_that_its_detector_never_gives_is_refused(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else no picture would have a face, and nobody would be told why."""
    (tmp_path / "a.jpg").touch()
    surest, more = (SETTINGS.model_copy(update={"min_score": score}) for score in (1.0, 1.5))
    detectors: list[Detector] = [HogDetector(), CnnDetector(b""), BlazeFaceDetector(b""), YuNetDetector(b"")]
    for detector in detectors:
        monkeypatch.setattr(readying, "open_detector", lambda *_, one=detector: one)
        assert prepared(model, surest, iter(()), Mock())[0] is detector
        if detector.name in {"hog", "cnn"}:
            assert prepared(model, more, iter(()), Mock())[0] is detector
            continue
        said = f"^--min-score 1.5: the scores of detector {detector.name} are from {detector.scores[0]} to 1, so"
        for job in (rehearse, partial(annotate, out=str(tmp_path / "out"))):
            with pytest.raises(UsageError, match=said):
                job(str(tmp_path), model=model, settings=more, workers=1)
    assert not (tmp_path / "out").exists()


def test_what_is_missing_on_a_machine_ends_the_run_and_no_picture(
    face: bytes, model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What looks for faces there cannot be started, though the driver's could."""
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "face.jpg").write_bytes(face)
    monkeypatch.setattr(readying, "open_detector", lambda name, precision: BlazeFaceDetector(b"no model at all"))
    with pytest.raises(UserError, match="detector blazeface cannot be started on"):
        annotate(str(tmp_path / "in"), str(tmp_path / "out"), model, SETTINGS, workers=1)
    assert not list((tmp_path / "out" / RECORDS).glob("*"))


def test_the_detector_computes_in_the_precision_of_the_network(
    face: bytes, model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "face.jpg").write_bytes(face)
    opened: list[str] = []

    def opening(name: str, precision: str) -> Detector:
        opened.append(precision)
        return HogDetector()

    monkeypatch.setattr(readying, "open_detector", opening)
    for precision in ("float32", "bfloat16"):
        settings = SETTINGS.model_copy(update={"precision": precision})
        annotate(str(tmp_path / "in"), str(tmp_path / precision), model, settings, workers=1)
        rehearse(str(tmp_path / "in"), model, settings, workers=1)
    assert opened == ["float32", "float32", "bfloat16", "bfloat16"]


def test_landmarks_lie_within_the_picture(
    face: bytes, model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As those of 300-W do, though a network says where a cheek would be that the edge cuts off."""
    asked = Predictor.predict

    def scattered(predictor: Predictor, crops: NDArray[np.uint8]) -> Prediction:
        found = asked(predictor, crops)
        return found._replace(stages=(0.5 + 40 * (found.stages - 0.5)).astype(np.float32))

    monkeypatch.setattr(Predictor, "predict", scattered)
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "face.jpg").write_bytes(face)
    annotate(str(tmp_path / "in"), str(tmp_path / "out"), model, SETTINGS, workers=1)
    landmarks = pq.read_table(tmp_path / "out" / "faces")["landmarks"][0].as_py()
    height, width = decode(face).rgb.shape[:2]
    places = np.reshape(landmarks, (68, 2))
    assert places.min(axis=0).tolist() == [0, 0]
    assert places.max(axis=0).tolist() == [width - 1, height - 1]


@pytest.mark.parametrize(("field", "number"), [("stages", np.nan), ("stages", -np.inf), ("expected_nrmse", np.nan)])
def test_what_is_no_number_is_no_landmark(
    field: str, number: float, face: bytes, model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Finite weights may give it, and the edge of the picture would make a number of what is infinite."""
    asked = Predictor.predict

    def broken(predictor: Predictor, crops: NDArray[np.uint8]) -> Prediction:
        found = asked(predictor, crops)
        return found._replace(**{field: np.full_like(getattr(found, field), number)})

    monkeypatch.setattr(Predictor, "predict", broken)
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "face.jpg").write_bytes(face)
    with pytest.raises(
        UserError, match=rf"^{model.label} gives landmarks that are not finite .*: give another --mod"
    ):
        annotate(str(tmp_path / "in"), str(tmp_path / "out"), model, SETTINGS, workers=1)
    assert not (tmp_path / "out" / "faces").exists()


def test_hostile_names_stay_inside_the_place(face: bytes, model: Model, tmp_path: Path) -> None:
    long, deep = "n" * 251 + ".jpg", "d/" * 1200
    names = [
        "../escaped.jpg",
        f"{tmp_path}/absolute.jpg",
        "a/../../escaped.jpg",
        long,
        f"{'f' * 300}/x.jpg",
        f"{deep}x.jpg",
        "new\nline.jpg",
        '=HYPERLINK("http://evil", "x").jpg',
        "<script>alert(1)</script>.jpg",
        "grüße 顔.jpg",
        "x.jpg",
        "x.jpg.0.pts/y.jpg",
        "con:aux|?*.jpg",
        "-rf.jpg",
    ]
    write_tar(tmp_path / "in.tar", dict.fromkeys(names, face))
    work = tmp_path / "work"
    summary = annotate(str(tmp_path / "in.tar"), str(work / "out"), model, AnnotateSettings(images_per_unit=64), 1)
    assert {path.name for path in tmp_path.iterdir()} == {"in.tar", "work"}
    assert {path.name for path in work.iterdir()} == {"out"}
    images, faces = tables(work / "out")
    uris = [name.replace("//", "/") for name in names]
    assert [row["uri"] for row in images] == uris
    assert {row["uri"] for row in images if row["reason"] == "unsafe_member"} == set(uris[:3])
    assert summary.annotated == len(names) - 3
    assert {row["uri"] for row in faces} == set(uris[3:])


def test_names_that_are_no_utf8_have_a_row(face: bytes, model: Model, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    Path(os.fsdecode(os.fsencode(tmp_path / "in") + b"/caf\xe9.jpg")).write_bytes(face)
    (tmp_path / "in" / "ok.jpg").write_bytes(face)
    annotate(str(tmp_path / "in"), str(tmp_path / "out"), model, SETTINGS, 1)
    assert statuses(tmp_path / "out") == {
        "caf\\xe9.jpg": ("quarantined", "unreadable"),
        "ok.jpg": ("annotated", None),
    }


def test_a_place_without_pictures_is_said_at_once(model: Model, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for source, explained in (("absent", "does not exist"), ("empty", r"has no pictures \(0 other files\)")):
        with pytest.raises(UserError, match=explained):
            annotate(str(tmp_path / source), str(tmp_path / "out"), model, SETTINGS, 1)
    assert not (tmp_path / "out").exists()


def test_a_full_disk_leaves_nothing_half_written(
    done: tuple[Path, Summary], album: Path, model: Model, small_disk: Path, tmp_path: Path
) -> None:
    (small_disk / "ballast").write_bytes(b"x" * 200_000)
    with pytest.raises(UserError, match=r"disk full: .* was not written"):
        annotate(str(album), str(small_disk), model, SETTINGS, 1)
    (small_disk / "ballast").unlink()
    left, whole = result(small_disk), result(done[0])
    assert SUMMARY not in left
    assert left.items() <= whole.items()
    assert not list(small_disk.rglob(".tmp-*"))


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_whoever_stops_it_is_told_so_in_one_line_and_the_next_run_completes(
    ending: signal.Signals, done: tuple[Path, Summary], album: Path, model: Model, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    artifact = write_model(tmp_path / "model", model)
    call = ("annotate", str(album), "--out", str(out), "--model", artifact, "--images-per-unit", "3")
    process = start_msrrn(*call, "--workers", "1")
    while not (out / RUN).exists() and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(ending)
    _, errors = process.communicate(timeout=600)
    assert process.returncode == 130
    assert not (out / LEASE).exists()
    assert errors.splitlines()[-1] == "msrrn: interrupted; the same command goes on where this one stopped"
    assert "Traceback" not in errors
    assert timeless(annotate(str(album), str(out), model, SETTINGS, 1)) == timeless(done[1])
    assert tables(out) == tables(done[0])


def test_a_bucket_that_fails_a_tenth_of_its_requests(
    done: tuple[Path, Summary], album: Path, model: Model, s3: str, faulty: FaultyEndpoint
) -> None:
    for path in album.rglob("*.*"):
        if path.is_file():
            Store(f"{s3}/in").publish(path.relative_to(album).as_posix(), path.read_bytes())
    faulty.share = 0.1
    summary = annotate(f"{s3}/in", f"{s3}/out", model, SETTINGS, 1)
    faulty.share = 0.0
    assert summary.digest == done[1].digest
    run = Annotations(Store(f"{s3}/out"))
    assert [row for unit in run.units() for row in run.images(unit).to_pylist()] == tables(done[0])[0]
    again = annotate(f"{s3}/in", f"{s3}/out", model, SETTINGS, 1)
    assert again == summary


def test_a_rehearsal_tells_and_writes_nothing(
    done: tuple[Path, Summary], album: Path, model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = tree(tmp_path)
    monkeypatch.setattr(rehearsal, "time", SimpleNamespace(monotonic=iter([100.0, 122.0]).__next__))
    told = rehearse(str(album), model, SETTINGS, workers=4, out=str(tmp_path / "new"))
    assert (told.pictures, told.ignored, told.looked_at) == (11, 2, 11)
    assert told.statuses == {status: getattr(done[1], status) for status in STATUSES}
    assert told.faces == done[1].faces
    assert told.reasons == {"empty": 1, "not_an_image": 1, "truncated": 1}
    assert told.suffixes == {".jpg": 9, ".doc": 1, ".png": 1}
    assert told.bytes == sum(row["bytes"] for row in tables(done[0])[0])
    assert (told.begun, told.to_do, told.seconds_per_picture) == (False, 11, 2.0)
    assert tree(tmp_path) == before


@pytest.mark.parametrize(("pictures", "hours"), [(3, 11 / 4), (6, 11 / 2), (64, 11)])
def test_workers_for_whom_there_is_no_unit_shorten_nothing(
    pictures: int, hours: float, album: Path, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rehearsal, "_looked_at", lambda *_: ([], 3600.0))
    settings = AnnotateSettings(images_per_unit=pictures)
    assert rehearse(str(album), model, settings, workers=4).hours == hours


def test_a_rehearsal_looks_at_pictures_of_the_whole_archive(monkeypatch: pytest.MonkeyPatch, model: Model) -> None:
    """However many there are; of their time it makes what those to do will take."""
    names = [f"{number}{'.JPG' if number % 2 else '.jpg'}" for number in range(998)]
    names += ["998", "999.photograph"]
    inputs = [Input(name, "", 0, 10, 10, "", "unsafe_member" if name == "7.JPG" else "") for name in names]
    monkeypatch.setattr(rehearsal, "list_inputs", lambda *_: Listing(iter(inputs)))
    looked_at: list[int] = []

    def look(task: Task, asked: Asked, drawn: list[Input], progress: Progress) -> tuple[list[Rows], float]:
        looked_at.extend(int(item.uri.partition(".")[0]) for item in drawn)
        return [], 7.2

    monkeypatch.setattr(rehearsal, "_looked_at", look)
    settings = SETTINGS.model_copy(update={"detector": "hog", "engine": "native"})
    told = rehearse("archive", model, settings, workers=4)
    assert len(set(looked_at)) == len(looked_at) == LOOKED_AT
    assert 300 < np.mean(looked_at) < 700
    assert told.suffixes == {".jpg": 998, "other": 2}
    assert (told.unusable, told.bytes, told.hours) == ({"unsafe_member": 1}, 10_000, 0.5)


def test_a_rehearsal_knows_what_is_done(
    ended: Call, face: bytes, model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, out = tmp_path / "in", tmp_path / "out"
    (folder / "c/half.jpg").write_bytes(face)
    (folder / "d.jpg").write_bytes(face)
    before = tree(out)
    told = rehearse(str(folder), model, SETTINGS, 1, out=str(out))
    assert (told.pictures, told.begun, told.to_do) == (12, True, 2)
    assert tree(out) == before
    monkeypatch.setattr(rehearsal, "_looked_at", lambda *_: ([], 3600.0))
    record = out / "records" / "000003.json"  # of two pictures, one of which was replaced
    whole = record.read_text()
    for damaged in ("{", json.dumps(json.loads(whole) | {"inputs": []})):
        record.write_text(damaged)
        assert rehearse(str(folder), model, SETTINGS, 1, out=str(out)).to_do == 3
    record.write_text(whole)
    (out / "records" / "000000.json").unlink()
    assert rehearse(str(folder), model, SETTINGS, 1, out=str(out)).to_do == 5
    with pytest.raises(UserError, match=r"more than these 1 pictures, and with them 3 to be done, of all 11;"):
        rehearse(str(folder), model, SETTINGS, 1, limit=1, out=str(out))
    (out / "faces" / "part-000001.parquet").unlink()
    told = rehearse(str(folder), model, SETTINGS, 2, out=str(out))
    assert (told.to_do, told.hours) == (8, 4.0)


def test_a_rehearsal_leaves_alone_what_was_forgotten(face: bytes, model: Model, tmp_path: Path) -> None:
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    (folder / "a.jpg").write_bytes(face)
    remember(Store(str(out)), [hashlib.sha256(face).hexdigest()])
    told = rehearse(str(folder), model, SETTINGS, 1, out=str(out))
    assert (told.faces, told.reasons) == (0, {"forgotten": 1})


def test_a_rehearsal_counts_what_waits_since_some_were_done_again(
    ended: Call, face: bytes, model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rehearsal, "_looked_at", lambda *_: ([], 3600.0))
    folder, out = tmp_path / "in", tmp_path / "out"
    for name in ("a/empty.jpg", "c/half.jpg", "d.jpg"):
        (folder / name).write_bytes(face)
    assert annotate(*ended, again=Again("quarantined", "truncated")).waiting == 2
    before = tree(out)
    assert rehearse(str(folder), model, SETTINGS, 1, out=str(out)).to_do == 2
    assert tree(out) == before
    (folder / "a/empty.jpg").rename(tmp_path / "away")  # it was replaced, and is no more
    assert rehearse(str(folder), model, SETTINGS, 1, out=str(out)).to_do == 1
    (tmp_path / "away").rename(folder / "a/empty.jpg")
    done = annotate(*ended)
    assert done.throughput is not None
    assert done.throughput.pictures == 2
    assert rehearse(str(folder), model, SETTINGS, 1, out=str(out)).to_do == 0
