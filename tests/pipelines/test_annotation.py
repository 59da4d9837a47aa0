import hashlib
import io
import os
import random
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from msrrn.synthetic import SyntheticPhoto
from pipelines import annotation as station
from pipelines.annotation import FACES, IMAGES, RUN, SUMMARY, Summary, annotate, read_table
from pipelines.decoding import decode
from pipelines.detection import Detection, HogDetector
from pipelines.errors import UserError
from pipelines.models import Model
from pipelines.settings import AnnotateSettings
from pipelines.sources.pts import parse_pts
from pipelines.storage import Store
from tests.factories import (
    killed_after,
    killed_at_write,
    picture,
    start_msrrn,
    times,
    tiny_model,
    tree,
    write_tar,
)

SETTINGS = AnnotateSettings(images_per_unit=3)
Photos = tuple[list[SyntheticPhoto], list[SyntheticPhoto]]


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


def tables(out: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    store = Store(str(out))
    return read_table(store, "images").to_pylist(), read_table(store, "faces").to_pylist()


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
        written = pq.read_schema(out / table / "part-00000.parquet")
        assert written.equals(schema)
        assert written.metadata == schema.metadata
    images, faces = tables(out)
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


def test_pts_files_hold_the_table_counted_from_one(done: tuple[Path, Summary]) -> None:
    out, _ = done
    _, faces = tables(out)
    expected = {f"pts/{row['uri']}.{row['face_index']}.pts": row["landmarks"] for row in faces}
    files = {name: data for name, data in tree(out).items() if name.startswith("pts/")}
    assert set(files) == set(expected)
    for name, data in files.items():
        shape = np.array(expected[name]).reshape(68, 2)
        np.testing.assert_allclose(parse_pts(data), shape, rtol=0, atol=1e-3)
        first = [float(word) for word in data.decode().splitlines()[3].split()]
        np.testing.assert_allclose(first, shape[0] + 1, rtol=0, atol=1e-3)


def test_a_tar_gives_what_its_folder_gives(
    done: tuple[Path, Summary], album: Path, model: Model, tmp_path: Path
) -> None:
    names = sorted(path.relative_to(album).as_posix() for path in album.rglob("*.*") if path.is_file())
    write_tar(tmp_path / "album.tar", {name: (album / name).read_bytes() for name in names})
    summary = annotate(str(tmp_path / "album.tar"), str(tmp_path / "out"), model, SETTINGS, 1)
    assert summary == done[1]
    made, expected = tree(tmp_path / "out"), tree(done[0])
    assert made.pop("run.json") != expected.pop("run.json")  # they name their sources
    assert made == expected


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
    assert annotate("album", "out", model, SETTINGS, ray_of_two) == done[1]
    made, expected = tree(tmp_path / "out"), tree(done[0])
    assert made.pop("run.json") != expected.pop("run.json")  # they name their sources
    assert made == expected


def test_a_second_run_does_no_picture_again(
    done: tuple[Path, Summary], album: Path, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, summary = done
    before = {name: stamp for name, stamp in times(out).items() if not name.endswith(SUMMARY)}
    monkeypatch.setattr(station, "decode", lambda data: pytest.fail("a picture was decoded again"))
    seen: list[tuple[int, int]] = []
    assert annotate(str(album), str(out), model, SETTINGS, 1, lambda *now: seen.append(now)) == summary
    assert seen == [(11, 11)]
    assert {name: stamp for name, stamp in times(out).items() if not name.endswith(SUMMARY)} == before


def test_a_killed_run_goes_on_to_the_same_bytes(
    done: tuple[Path, Summary], album: Path, model: Model, tmp_path: Path
) -> None:
    moments = random.Random(1)
    whole = tree(done[0])
    codes = []
    for attempt in range(8):
        job = (annotate, str(album), str(tmp_path), model, SETTINGS, 1)
        if attempt % 2:
            codes.append(killed_after(moments.uniform(0.05, 0.5), *job))
        else:
            codes.append(killed_at_write(moments.randint(1, 12), *job))
        finished = tree(tmp_path)
        assert finished.items() <= whole.items()
        if SUMMARY in finished:
            break
    assert -9 in codes
    assert annotate(str(album), str(tmp_path), model, SETTINGS, 1) == done[1]
    assert tree(tmp_path) == whole


def test_another_run_into_the_same_place_is_refused(
    done: tuple[Path, Summary], album: Path, model: Model, tmp_path: Path
) -> None:
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
        with pytest.raises(UserError, match=f"holds a run with {field}"):
            annotate(str(album), str(out), *job, 1)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "a.jpg").write_bytes(b"another picture")
    with pytest.raises(UserError, match="holds a run with source"):
        annotate(str(tmp_path / "elsewhere"), str(out), model, SETTINGS, 1)
    assert tree(out) == before
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / RUN).write_bytes(b"#!/bin/sh\n")
    with pytest.raises(UserError, match=rf"{RUN}.* give another --out"):
        annotate(str(album), str(tmp_path / "foreign"), model, SETTINGS, 1)


def test_a_lost_part_and_a_damaged_record_are_made_again(album: Path, model: Model, tmp_path: Path) -> None:
    annotate(str(album), str(tmp_path), model, SETTINGS, 1)
    whole = tree(tmp_path)
    (tmp_path / "images" / "part-00000.parquet").unlink()
    (tmp_path / "records" / "00001.json").write_text("{")
    annotate(str(album), str(tmp_path), model, SETTINGS, 1)
    assert tree(tmp_path) == whole


def test_new_and_lost_pictures_change_only_their_units(album: Path, model: Model, tmp_path: Path) -> None:
    folder, out = shutil.copytree(album, tmp_path / "album"), tmp_path / "out"
    first = annotate(str(folder), str(out), model, SETTINGS, 1)
    before, stamps = tree(out), times(out)
    for name in ("d/1.jpg", "d/2.jpg"):
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copy(folder / "c/face.jpg", folder / name)
    second = annotate(str(folder), str(out), model, SETTINGS, 1)
    assert (second.images, second.annotated) == (13, first.annotated + 2)
    assert len(tables(out)[0]) == 13
    redone = {name for name, stamp in times(out).items() if stamps.get(name) != stamp}
    for unit in range(3):
        assert not {name for name in redone if f"{unit:05d}" in name}
    shutil.rmtree(folder / "d")
    third = annotate(str(folder), str(out), model, SETTINGS, 1)
    assert third == first
    assert len(tables(out)[0]) == 11
    for name, data in before.items():
        assert (out / name).read_bytes() == data, name


def test_a_picture_that_upsets_a_library_costs_only_itself(
    face: bytes, model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Upset:
        def __call__(self, rgb: np.ndarray[Any, Any]) -> list[Detection]:
            if rgb.shape[:2] == (40, 41):
                raise RuntimeError("internal error in the detector")
            return HogDetector()(rgb)

    monkeypatch.setattr(station, "open_detector", lambda name: Upset())
    for name, data in {"a.jpg": face, "b.png": picture(np.zeros((40, 41), np.uint8)), "c.jpg": face}.items():
        (tmp_path / "in").mkdir(exist_ok=True)
        (tmp_path / "in" / name).write_bytes(data)
    annotate(str(tmp_path / "in"), str(tmp_path / "out"), model, SETTINGS, 1)
    assert statuses(tmp_path / "out") == {
        "a.jpg": ("annotated", None),
        "b.png": ("quarantined", "failed"),
        "c.jpg": ("annotated", None),
    }
    assert tables(tmp_path / "out")[0][1]["message"] == "RuntimeError: internal error in the detector"


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
    assert [row["uri"] for row in images] == names
    assert {row["uri"] for row in images if row["reason"] == "unsafe_member"} == set(names[:3])
    assert summary.annotated == len(names) - 3
    # Each face has a file of its own.
    assert len([name for name in tree(work / "out") if name.startswith("pts/")]) == len(faces)
    assert (work / "out" / "pts" / "x.jpg.0.pts").is_file()


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
    left, whole = tree(small_disk), tree(done[0])
    assert SUMMARY not in left
    assert left.items() <= whole.items()
    assert not list(small_disk.rglob(".tmp-*"))


def test_ctrl_c_ends_in_one_line_and_the_next_run_completes(
    done: tuple[Path, Summary], album: Path, model: Model, tmp_path: Path
) -> None:
    artifact, out = tmp_path / "model", tmp_path / "out"
    artifact.mkdir()
    for name, data in model.files:
        (artifact / name).write_bytes(data)
    call = ("annotate", str(album), "--out", str(out), "--model", str(artifact), "--images-per-unit", "3")
    process = start_msrrn(*call, "--workers", "1")
    while not (out / RUN).exists() and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert errors.splitlines()[-1] == "msrrn: interrupted; the same command goes on where this one stopped"
    assert "Traceback" not in errors
    assert annotate(str(album), str(out), model, SETTINGS, 1) == done[1]
    assert tree(out) == tree(done[0])
