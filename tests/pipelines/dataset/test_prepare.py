import hashlib
import io
import json
import multiprocessing
import random
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

import pipelines.dataset.prepare as station
from msrrn.augmentation import AugmentationSettings, draw, generator
from msrrn.geometry import Box
from msrrn.landmarks import MIRROR
from msrrn.synthetic import SyntheticPhoto, draw_photo
from pipelines.dataset.manifest import MANIFEST, Manifest
from pipelines.dataset.photos import Finder, PhotoGroup, Seen, assign_splits, clusters, face_order, read_photos
from pipelines.dataset.planning import plan
from pipelines.dataset.prepare import prepare
from pipelines.dataset.samples import photo_rows
from pipelines.dataset.shards import SCHEMA, Split
from pipelines.decoding import decode
from pipelines.detection import expected_box
from pipelines.errors import UserError
from pipelines.lease import LEASE, Lease, hold
from pipelines.outages import MissingError, OutageError
from pipelines.settings import PrepareSettings, Tolerance
from pipelines.sources import AnnotatedPhoto
from pipelines.sources.pts import format_pts, parse_pts
from pipelines.storage import Store
from tests.cluster import is_worker
from tests.factories import SETTINGS, killed_after, killed_at_write, picture, times, tree, write_face

Dataset = tuple[Store, Manifest]
Photos = tuple[list[SyntheticPhoto], list[SyntheticPhoto]]

PLAIN = PrepareSettings(augmentation=AugmentationSettings(copies=0), val_share=0)


def out_of(dataset: Dataset) -> Path:
    """The folder that holds the dataset and its shards."""
    local = dataset[0].local_path()
    assert local is not None
    return local.parent


def alike(folder: Path) -> list[list[Seen]]:
    return clusters([group.seen for group in read_photos([str(folder)], 1)[0]])


def rows_of(dataset: Dataset, images: bool = False) -> list[dict[str, Any]]:
    """Every row of every shard, in the order of the manifest."""
    store, manifest = dataset
    names = None if images else [f for f in SCHEMA.names if "image" not in f]
    parent = store.parent
    tables = [pq.read_table(io.BytesIO(parent.read_bytes(unit.shard)), columns=names) for unit in manifest.shards()]
    return [row for table in tables for row in table.to_pylist()]


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def copied(annotated: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(annotated, tmp_path / "somewhere" / "else" / "300w"))


def test_counts_add_up(dataset: Dataset) -> None:
    rows, manifest = rows_of(dataset), dataset[1]
    counts = manifest.counts
    faces = Counter(row["split"] for row in rows if row["copy"] == 0)
    assert counts["faces_in"] == 12
    assert (counts["train"], counts["val"], counts["left_out"]) == (8, 2, 2) == (faces["train"], faces["val"], 2)
    assert counts["rows"] == len(rows) == sum(shard.rows for shard in manifest.shards())
    assert manifest.faces_by_source == {
        "afw": {"train": 4},
        "helen": {"train": 1, "val": 1},
        "lfpw": {"train": 3, "val": 1},
    }
    assert manifest.missed == sum(not row["detected"] for row in rows if row["copy"] == 0)
    assert {item.reason for item in manifest.left_out} == {"test_split"}
    assert len({(row["face_id"], row["copy"]) for row in rows}) == len(rows)


def test_train_faces_have_all_their_copies_and_others_none(dataset: Dataset) -> None:
    copies: dict[str, list[int]] = {}
    for row in rows_of(dataset):
        copies.setdefault(f"{row['split']} {row['face_id']}", []).append(row["copy"])
    for face, numbers in copies.items():
        assert numbers == ([0, 1, 2, 3] if face.startswith("train") else [0])


def test_no_test_photo_is_in_any_shard(dataset: Dataset, annotated: Path) -> None:
    used = {row["photo_sha256"] for row in rows_of(dataset)}
    for stem in ("lfpw/testset/0", "ibug/image_1 _01"):
        assert digest(annotated / f"{stem}.jpg") not in used
    assert digest(annotated / "lfpw/trainset/0.jpg") in used


def test_declared_validation_photos_are_those_of_val(dataset: Dataset) -> None:
    val = {row["annotation_uri"] for row in rows_of(dataset) if row["split"] == "val"}
    assert val == {"lfpw/trainset/3.pts", "helen/trainset/1.pts"}


def test_the_same_photo_is_one_photo_whatever_its_files(dataset: Dataset, annotated: Path) -> None:
    afw = [row for row in rows_of(dataset) if row["source"] == "afw" and row["copy"] == 0]
    for number in range(2):
        faces = [row for row in afw if row["photo_sha256"] == digest(annotated / f"afw/{number}_1.jpg")]
        assert {row["annotation_uri"] for row in faces} == {f"afw/{number}_1.pts", f"afw/{number}_2.pts"}
        assert [row["face_index"] for row in faces] == [0, 1]
        assert len({row["split"] for row in faces}) == 1
        areas = [(row["box"][2] - row["box"][0]) * (row["box"][3] - row["box"][1]) for row in faces]
        assert areas == sorted(areas, reverse=True)


def test_validation_is_carved_by_photo_where_none_is_declared(annotated: Path, tmp_path: Path) -> None:
    folder = copied(annotated, tmp_path)
    (folder / "val.txt").unlink()
    shutil.rmtree(folder / "lfpw" / "testset")
    for path in [*folder.rglob("*.jpg"), *folder.rglob("*.pts")]:
        if "ibug" not in path.parts:
            path.rename(folder / path.relative_to(folder).as_posix().replace("/", "_"))
    photos = alike(folder)
    halves = assign_splits(photos, 0.5)
    assert halves[digest(folder / "ibug" / "image_1 _01.jpg")] == "test"
    for sha256, split in halves.items():
        assert split in ("test", "val" if int(sha256[32], 16) < 8 else "train")
    none = assign_splits(photos, 0)
    assert Counter(none.values()) == {"train": 8, "test": 1}


def test_landmarks_lie_where_the_annotation_says(dataset: Dataset, annotated: Path) -> None:
    seen = Counter[bool]()
    for row in rows_of(dataset):
        truth = parse_pts((annotated / row["annotation_uri"]).read_bytes())
        shape = np.array(row["landmarks"], np.float64).reshape(68, 2)
        to_crop = np.array(row["to_crop"]).reshape(2, 3)
        seen[row["mirrored"]] += 1
        assert row["mirrored"] == (np.linalg.det(to_crop[:, :2]) < 0)
        if row["mirrored"]:
            shape = shape[MIRROR]
        back = np.linalg.solve(to_crop[:, :2], (shape - to_crop[:, 2]).T).T
        np.testing.assert_allclose(back, truth, rtol=0, atol=1e-3)
        assert np.isfinite(shape).all()
        assert -0.5 < shape.min() < shape.max() < 1.5
    assert seen[True]
    assert seen[False]


def test_what_is_drawn_hangs_on_seed_face_and_copy_alone(dataset: Dataset) -> None:
    for row in rows_of(dataset):
        rng = generator(SETTINGS.seed, row["face_id"], row["copy"])
        drawn = vars(draw(SETTINGS.augmentation, rng, row["copy"]))
        assert {name: row[name] for name in drawn} == drawn | {"shift": list(drawn["shift"])}


def test_crops_show_what_their_frame_says(annotated: Path, dataset: Dataset) -> None:
    """Crop pixels are those of the photo at the place that `to_crop` maps there, but for smoothing and noise."""
    row = next(row for row in rows_of(dataset, images=True) if row["copy"] == 0)
    grey = np.asarray(Image.open(annotated / row["photo_uri"]).convert("L"), np.float64)
    to_crop = np.array(row["to_crop"]).reshape(2, 3)
    crop = np.frombuffer(row["image_200"], np.uint8).reshape(200, 200).astype(np.float64)
    centres = np.stack(np.meshgrid(np.arange(200), np.arange(200)), axis=-1).reshape(-1, 2)
    x, y = np.rint(np.linalg.solve(to_crop[:, :2], ((centres + 0.5) / 200 - to_crop[:, 2]).T)).astype(int)
    inside = (x >= 0) & (y >= 0) & (x < grey.shape[1]) & (y < grey.shape[0])
    assert np.corrcoef(grey[y[inside], x[inside]], crop.ravel()[inside])[0, 1] > 0.95
    halved = crop.reshape(100, 2, 100, 2).mean(axis=(1, 3))
    assert np.abs(np.frombuffer(row["image_100"], np.uint8).reshape(100, 100) - halved).max() <= 0.5


def test_the_same_data_elsewhere_is_the_same_dataset(dataset: Dataset, annotated: Path, tmp_path: Path) -> None:
    copy = copied(annotated, tmp_path)
    again = prepare([str(copy)], str(tmp_path / "out"), SETTINGS, workers=1)
    assert again[1].name == dataset[1].name
    assert tree(out_of(again)) == tree(out_of(dataset))


def test_two_workers_make_the_same_bytes_from_relative_paths(
    dataset: Dataset, annotated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ray_of_two: int
) -> None:
    copied(annotated, tmp_path)
    monkeypatch.chdir(tmp_path)
    again = prepare(["somewhere/else/300w"], "out", SETTINGS, workers=ray_of_two)
    assert again[1] == dataset[1]
    assert tree(tmp_path / "out") == tree(out_of(dataset))


def test_the_order_of_sources_changes_nothing(photos: Photos, tmp_path: Path) -> None:
    """Two sources use the same names for one photo and its two faces, for different photos, and others for one."""
    single, double = photos
    for source, shape in zip("ab", double[0].shapes, strict=True):
        write_face(tmp_path / source, "x/twice", double[0].jpeg, shape)
    for source, photo in zip("ab", single, strict=False):
        write_face(tmp_path / source, "x/other", photo.jpeg, photo.shapes[0])
        write_face(tmp_path / source, f"x/{source}", single[2].jpeg, single[2].shapes[0])
    a, b = str(tmp_path / "a"), str(tmp_path / "b")
    first = prepare([a, b], str(tmp_path / "ab"), PLAIN, workers=1)
    second = prepare([b, a], str(tmp_path / "ba"), PLAIN, workers=1)
    assert first[1].name == second[1].name
    assert tree(out_of(first)) == tree(out_of(second))
    assert first[1].counts["train"] == 5
    assert [item.uri for item in first[1].left_out] == ["x/b.pts"], "of two annotations of a face the first stays"


def test_the_order_of_sources_changes_no_name_where_two_are_left_out_alike(photos: Photos, tmp_path: Path) -> None:
    """Their rows differ in the message alone."""
    write_face(tmp_path / "a", "x/good", photos[0][0].jpeg, photos[0][0].shapes[0])
    for source, photo, points in zip("ab", photos[0][1:], (66, 67), strict=False):
        write_face(tmp_path / source, "x/bad", photo.jpeg, photo.shapes[0][:points])
    a, b = str(tmp_path / "a"), str(tmp_path / "b")
    first = prepare([a, b], str(tmp_path / "ab"), PLAIN, workers=1)[1]
    assert prepare([b, a], str(tmp_path / "ba"), PLAIN, workers=1)[1] == first
    assert len({(item.uri, item.reason) for item in first.left_out}) == 1
    assert len({item.message for item in first.left_out}) == 2


def test_shards_of_two_sources_with_the_same_names_are_read_once(
    photos: Photos, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each was prepared before; together, in the order of their names, their photos come by turns."""
    for index, photo in enumerate(photos[0]):
        write_face(tmp_path / "ab"[index % 2], f"{index // 2}", photo.jpeg, photo.shapes[0])
    a, b, out = (str(tmp_path / name) for name in ("a", "b", "out"))
    shards = {unit.shard for source in (a, b) for unit in prepare([source], out, PLAIN, 1)[1].shards()}
    made, read = counted(monkeypatch), Counter[str]()
    read_bytes = Store.read_bytes

    def spy(store: Store, key: str) -> bytes:
        read[key] += 1
        return read_bytes(store, key)

    monkeypatch.setattr(Store, "read_bytes", spy)
    together = prepare([a, b], out, PLAIN, 1)
    assert not made
    assert {key: read[key] for key in shards} == dict.fromkeys(shards, 1)
    fresh = prepare([a, b], str(tmp_path / "fresh"), PLAIN, 1)
    assert together[1] == fresh[1]


@pytest.mark.parametrize(
    "other",
    [
        SETTINGS.model_copy(update={"seed": 1}),
        SETTINGS.model_copy(update={"crop_margin": 1.6}),
        SETTINGS.model_copy(update={"augmentation": AugmentationSettings(copies=4)}),
    ],
)
def test_other_settings_have_another_name(dataset: Dataset, annotated: Path, other: PrepareSettings) -> None:
    assert plan([str(annotated)], "unused", other).name != dataset[1].name


def test_other_annotations_have_another_name(dataset: Dataset, annotated: Path, tmp_path: Path) -> None:
    folder = copied(annotated, tmp_path)
    path = folder / "lfpw/trainset/0.pts"
    shape = parse_pts(path.read_bytes())
    shape[7, 1] += 0.01
    path.write_bytes(format_pts(shape))
    assert plan([str(folder)], "unused", SETTINGS).name != dataset[1].name
    (folder / "val.txt").write_text("lfpw/trainset/2\n")
    path.write_bytes((annotated / "lfpw/trainset/0.pts").read_bytes())
    assert plan([str(folder)], "unused", SETTINGS).name != dataset[1].name


def test_a_second_run_writes_nothing(dataset: Dataset, annotated: Path) -> None:
    before = times(out_of(dataset))
    again = prepare([str(annotated)], str(out_of(dataset)), SETTINGS, workers=1)
    assert again == dataset
    assert times(out_of(dataset)) == before


def test_a_killed_run_goes_on_to_the_same_bytes(dataset: Dataset, annotated: Path, tmp_path: Path) -> None:
    moments = random.Random(0)
    codes = []
    for attempt in range(8):
        job = (prepare, [str(annotated)], str(tmp_path), SETTINGS, 1)
        if attempt % 2:
            codes.append(killed_after(moments.uniform(0.05, 0.6), *job))
        else:
            codes.append(killed_at_write(moments.randint(1, 9), *job))
        finished = tree(tmp_path)
        finished.pop(f"{dataset[1].name}/{LEASE}", None)
        for name, data in finished.items():
            assert (out_of(dataset) / name).read_bytes() == data, name
        if f"{dataset[1].name}/{MANIFEST}" in finished:
            break
    assert -9 in codes
    prepare([str(annotated)], str(tmp_path), SETTINGS, 1)
    assert tree(tmp_path) == tree(out_of(dataset))


def test_the_manifest_is_published_last(annotated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed at any other file, a run is not finished: the next call makes what is missing."""
    written: list[str] = []
    publish = Store.publish

    def noted(store: Store, key: str, data: bytes) -> None:
        written.append(key)
        publish(store, key, data)

    monkeypatch.setattr(Store, "publish", noted)
    prepare([str(annotated)], str(tmp_path), PLAIN, 1)
    assert written.index(MANIFEST) == len(written) - 1 > 3


def test_a_deleted_shard_is_made_again(dataset: Dataset, annotated: Path, tmp_path: Path) -> None:
    made = prepare([str(annotated)], str(tmp_path), SETTINGS, 1)
    shard = tmp_path / made[1].shards("train")[0].shard
    shard.unlink()
    prepare([str(annotated)], str(tmp_path), SETTINGS, 1)
    assert tree(tmp_path) == tree(out_of(dataset))


@pytest.fixture
def smaller(annotated: Path, tmp_path: Path) -> tuple[str, Path, Manifest, Manifest]:
    """Photos of which one was taken away since their dataset was made at `out`: they, that place, its manifest, and
    that of a dataset of what is left, at `fresh`."""
    folder = copied(annotated, tmp_path)
    _, manifest = prepare([str(folder)], str(tmp_path / "out"), SETTINGS, 1)
    for suffix in ("jpg", "pts"):
        (folder / f"lfpw/trainset/0.{suffix}").unlink()
    return str(folder), tmp_path / "out", manifest, prepare([str(folder)], str(tmp_path / "fresh"), SETTINGS, 1)[1]


def test_a_damaged_shard_that_stays_is_named(smaller: tuple[str, Path, Manifest, Manifest]) -> None:
    folder, out, manifest, fresh = smaller
    kept = min({unit.shard for unit in manifest.shards()} & {unit.shard for unit in fresh.shards()})
    size = (out / kept).stat().st_size
    (out / kept).write_bytes(b"\0" * size)
    with pytest.raises(UserError, match=rf"{kept}: damaged \(.+\); delete it, and run the `msrrn prepare` again"):
        prepare([folder], str(out), SETTINGS, 1)
    (out / kept).unlink()
    assert prepare([folder], str(out), SETTINGS, 1)[1] == fresh


def test_rows_of_a_damaged_shard_are_not_copied(
    smaller: tuple[str, Path, Manifest, Manifest], tmp_path: Path
) -> None:
    """A unit is cut anew, and the shard that held its photos and another one has wrong bytes."""
    folder, out, manifest, fresh = smaller
    before, now = ({unit.shard for unit in made.shards()} for made in (manifest, fresh))
    assert before & now
    assert now - before
    for shard in before - now:
        data = bytearray((out / shard).read_bytes())
        for tenth in range(1, 10):
            data[tenth * len(data) // 10] ^= 1
        (out / shard).write_bytes(data)
    assert prepare([folder], str(out), SETTINGS, 1)[1] == fresh
    for shard in now - before:
        assert (out / shard).read_bytes() == (tmp_path / "fresh" / shard).read_bytes()


def without(annotated: Path, tmp_path: Path, *stems: str) -> Path:
    folder = copied(annotated, tmp_path)
    for stem in stems:
        (folder / f"{stem}.jpg").unlink()
        (folder / f"{stem}.pts").unlink()
    return folder


def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The photos whose rows are made from pixels from now on."""
    made: list[str] = []
    original = photo_rows

    def spy(group: PhotoGroup, data: bytes, split: Split, settings: PrepareSettings, find: Finder) -> Any:
        made.append(group.uri)
        return original(group, data, split, settings, find)

    monkeypatch.setattr(station, "photo_rows", spy)
    return made


def test_photos_that_came_in_later_are_all_that_is_processed(
    dataset: Dataset, annotated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = without(annotated, tmp_path, "lfpw/trainset/2")
    out = tmp_path / "out"
    old = prepare([str(before)], str(out), SETTINGS, 1)
    made = counted(monkeypatch)
    told: list[tuple[int, int]] = []

    def progress(done: int, total: int, what: str) -> None:
        if what == "making shards":
            told.append((done, total))

    new = prepare([str(annotated)], str(out), SETTINGS, 1, progress)
    assert made == ["lfpw/trainset/2.jpg"]
    shared = {unit.key for unit in old[1].units} & {unit.key for unit in new[1].units}
    assert (told[0][0], *told[-1]) == (len(shared), len(new[1].units), len(new[1].units))
    assert new[1] == dataset[1]
    assert old[1].name != new[1].name
    assert shared, "nothing is shared"
    grown = tree(out)
    for name, data in tree(out_of(dataset)).items():
        assert grown[name] == data, name


def test_what_is_appended_gives_what_all_sources_together_give(
    dataset: Dataset, annotated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The photos of the old dataset are gone when the new ones come."""
    before = without(annotated, tmp_path, "lfpw/trainset/2", "helen/trainset/0")
    out = tmp_path / "out"
    _, old = prepare([str(before)], str(out), SETTINGS, 1)
    shutil.rmtree(before)
    for stem in ("lfpw/trainset/2", "helen/trainset/0"):
        for suffix in (".jpg", ".pts"):
            path = tmp_path / "late" / f"{stem}{suffix}"
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(annotated / f"{stem}{suffix}", path)
    made = counted(monkeypatch)
    new = prepare([str(tmp_path / "late")], str(out), SETTINGS, 1, append_to=old.name)
    assert sorted(made) == ["helen/trainset/0.jpg", "lfpw/trainset/2.jpg"]
    assert new[1] == dataset[1]
    again = prepare([str(tmp_path / "late")], str(out), SETTINGS, 1, append_to=new[1].name)
    assert again[1] == new[1], "what is there already was appended again"


def test_appending_with_other_settings_or_annotations_is_said(
    dataset: Dataset, annotated: Path, photos: Photos, tmp_path: Path
) -> None:
    out = Path(shutil.copytree(out_of(dataset), tmp_path / "out"))
    other = SETTINGS.model_copy(update={"seed": 1})
    with pytest.raises(UserError, match="was made with seed = 0, this run has 1"):
        prepare([str(annotated)], str(out), other, 1, append_to=dataset[1].name)
    with pytest.raises(UserError, match=r"no manifest\.json"):
        prepare([str(annotated)], str(out), SETTINGS, 1, append_to="0123")
    moved = photos[0][0].shapes[0] + 1.0
    write_face(tmp_path / "in", "lfpw/trainset/0", (annotated / "lfpw/trainset/0.jpg").read_bytes(), moved)
    new = next(photo for index in range(99) if len((photo := draw_photo(9, index)).shapes) == 1)
    write_face(tmp_path / "in", "lfpw/trainset/new", new.jpeg, new.shapes[0])
    grown = prepare([str(tmp_path / "in")], str(out), SETTINGS, 1, append_to=dataset[1].name)
    assert grown[1].counts["train"] == dataset[1].counts["train"] + 1
    assert Counter(item.reason for item in grown[1].left_out) == {"test_split": 2, "known_photo": 1}


def test_a_photo_that_was_trained_on_cannot_be_declared_held_out_later(photos: Photos, tmp_path: Path) -> None:
    for index, photo in enumerate(photos[0][:2]):
        write_face(tmp_path / "in", f"a/{index}", photo.jpeg, photo.shapes[0])
    _, old = prepare([str(tmp_path / "in")], str(tmp_path / "out"), PLAIN, 1)
    write_face(tmp_path / "late", "lfpw/testset/0", photos[0][0].jpeg, photos[0][0].shapes[0])
    with pytest.raises(UserError, match=r"testset/0\.jpg is declared test, and \w+ has it in train"):
        prepare([str(tmp_path / "late")], str(tmp_path / "out"), PLAIN, 1, append_to=old.name)


def test_a_damaged_record_of_what_is_appended_to_is_said(dataset: Dataset, annotated: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(out_of(dataset), tmp_path / "out"))
    record = next((out / "records").rglob("*.json"))
    record.write_bytes(record.read_bytes()[:-9])
    with pytest.raises(UserError, match=rf"{record.name} is damaged: run the"):
        prepare([str(annotated)], str(out), SETTINGS, 1, append_to=dataset[1].name)
    assert prepare([str(annotated)], str(out), SETTINGS, 1) == (Store(str(out / dataset[1].name)), dataset[1])


def test_what_another_run_finished_meanwhile_is_not_made_again(
    dataset: Dataset, annotated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other one works between this one's plan and its turn."""
    done: list[int] = []
    made = counted(monkeypatch)

    @contextmanager
    def turn(*arguments: Any) -> Iterator[Lease]:
        if not done:
            done.append(len(made))
            prepare([str(annotated)], str(tmp_path), SETTINGS, 1)
            done.append(len(made))
        with hold(*arguments) as lease:
            yield lease

    monkeypatch.setattr(station, "hold", turn)
    prepare([str(annotated)], str(tmp_path), SETTINGS, 1)
    assert done[0] == 0 < done[1] == len(made)
    assert tree(tmp_path) == tree(out_of(dataset))


def test_two_runs_at_once_make_one_dataset(dataset: Dataset, annotated: Path, tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    runs = [context.Process(target=prepare, args=([str(annotated)], str(tmp_path), SETTINGS, 1)) for _ in range(2)]
    for run in runs:
        run.start()
    for run in runs:
        run.join(600)
        assert run.exitcode == 0
    assert tree(tmp_path) == tree(out_of(dataset))


def test_on_s3_it_is_the_same(dataset: Dataset, annotated: Path, s3: str) -> None:
    store = Store(f"{s3}/data")
    for name, data in tree(annotated).items():
        store.publish(name, data)
    made, manifest = prepare([f"{s3}/data"], f"{s3}/out", SETTINGS, 1)
    assert manifest == dataset[1]
    assert {key: made.parent.read_bytes(key) for key in made.parent.files()} == tree(out_of(dataset))


def test_one_photo_in_two_splits_is_refused(photos: Photos, tmp_path: Path) -> None:
    jpeg, shape = photos[0][0].jpeg, photos[0][0].shapes[0]
    write_face(tmp_path / "a", "lfpw/trainset/x", jpeg, shape)
    write_face(tmp_path / "b", "lfpw/testset/y", jpeg, shape)
    with pytest.raises(UserError) as caught:
        prepare([str(tmp_path / "a"), str(tmp_path / "b")], str(tmp_path / "out"), SETTINGS, 1)
    assert f"{tmp_path}/a/lfpw/trainset/x.jpg (split train)" in str(caught.value)
    assert f"{tmp_path}/b/lfpw/testset/y.jpg (split test)" in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_place_without_data_is_said_at_once(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        prepare([str(tmp_path / "absent")], str(tmp_path / "out"), SETTINGS, 1)
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "a.jpg").write_bytes(b"x")
    with pytest.raises(UserError, match=r"no annotations of a known format \(1 \.jpg\)"):
        prepare([str(tmp_path / "bare")], str(tmp_path / "out"), SETTINGS, 1)
    assert not (tmp_path / "out").exists()


def test_bad_inputs_are_left_out_with_their_reason(photos: Photos, tmp_path: Path) -> None:
    jpeg, shape = photos[0][0].jpeg, photos[0][0].shapes[0]
    width = decode(jpeg).rgb.shape[1]
    lines = format_pts(shape).splitlines(keepends=True)
    bad_pts = {
        "count": b"".join([*lines[:-2], lines[-1]]),
        "not_finite": b"".join([*lines[:9], b"nan 3\n", *lines[10:]]),
        "outside": format_pts(shape + [width, 0.0]),
        "syntax": b"\xff\xfe no points",
    }
    for reason, pts in bad_pts.items():
        write_face(tmp_path / "in", f"p/{reason}", jpeg, shape)
        (tmp_path / "in" / "p" / f"{reason}.pts").write_bytes(pts)
    wide = io.BytesIO()
    Image.new("L", (40_000, 8)).save(wide, "PNG")
    bad_images = {
        "empty": b"",
        "truncated": jpeg[: len(jpeg) // 2],
        "not_an_image": b"Dear grandmother\n" * 9,
        "too_large": wide.getvalue(),
    }
    for reason, data in bad_images.items():
        write_face(tmp_path / "in", f"i/{reason}", data, shape)
    write_face(tmp_path / "in", "good/a", jpeg, shape)
    write_face(tmp_path / "in", "lonely/b", photos[0][1].jpeg, photos[0][1].shapes[0])
    (tmp_path / "in" / "lonely" / "b.pts").rename(tmp_path / "in" / "lonely" / "c.pts")
    _, manifest = prepare([str(tmp_path / "in")], str(tmp_path / "out"), PLAIN, 1)
    reasons = {item.uri: item.reason for item in manifest.left_out}
    # `bad_images` and `outside` are told by their annotation, what was found while scanning by its picture.
    assert reasons == {
        **{f"i/{reason}.pts": reason for reason in bad_images},
        **{f"p/{reason}.jpg": reason for reason in bad_pts if reason != "outside"},
        "p/outside.pts": "outside",
        "lonely/b.jpg": "no_annotation",
        "lonely/c.pts": "no_image",
    }
    assert all(item.message for item in manifest.left_out)
    assert manifest.counts["faces_in"] == 11
    assert manifest.counts["train"] == 1
    again = prepare([str(tmp_path / "in")], str(tmp_path / "out"), PLAIN, 1)
    assert [row["source"] for row in rows_of(again)] == ["good"]


def test_nothing_left_to_train_on_is_an_error_without_a_dataset(photos: Photos, tmp_path: Path) -> None:
    write_face(tmp_path / "in", "a", b"", photos[0][0].shapes[0])
    with pytest.raises(UserError, match="no face is left to train on \\(empty × 1\\)"):
        prepare([str(tmp_path / "in")], str(tmp_path / "out"), PLAIN, 1)
    assert not list((tmp_path / "out").rglob(MANIFEST))


def test_faces_that_are_all_held_out_are_told_as_that(photos: Photos, tmp_path: Path) -> None:
    write_face(tmp_path / "in", "a", photos[0][0].jpeg, photos[0][0].shapes[0])
    (tmp_path / "in" / "val.txt").write_text("a\n")
    with pytest.raises(UserError, match="no face is left to train on \\(held out for validation × 1\\)"):
        prepare([str(tmp_path / "in")], str(tmp_path / "out"), PLAIN, 1)


def test_every_kind_of_picture_gives_the_same_face(photos: Photos, tmp_path: Path) -> None:
    """Grey, RGBA, 16 bits, CMYK, and turned by EXIF, where the annotation is in upright coordinates."""
    photo = next(photo for photo in photos[0] if photo.width != photo.height)
    image = Image.fromarray(decode(photo.jpeg).rgb)
    grey = np.asarray(image.convert("L"))
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = np.asarray(image.rotate(90, expand=True))
    kinds = {
        "rgb": picture(np.asarray(image)),
        "grey": picture(grey),
        "rgba": picture(np.asarray(image.convert("RGBA"))),
        "deep": picture(grey.astype(np.uint16) * 257),
        "turned": picture(turned, exif=exif),
    }
    cmyk = io.BytesIO()
    image.convert("CMYK").save(cmyk, "JPEG", quality=98)
    for kind, data in kinds.items():
        write_face(tmp_path / "in", kind, data, photo.shapes[0], ".png")
    write_face(tmp_path / "in", "cmyk", cmyk.getvalue(), photo.shapes[0])
    made = prepare([str(tmp_path / "in")], str(tmp_path / "out"), PLAIN, 1)
    rows = {Path(row["photo_uri"]).stem: row for row in rows_of(made, images=True)}
    assert made[1].counts["train"] == len(rows) == 6
    reference = np.frombuffer(rows["rgb"]["image_200"], np.uint8)
    for kind, row in rows.items():
        # Detector boxes may differ by a pixel between grey and colour; then so do the crops.
        np.testing.assert_allclose(row["landmarks"], rows["rgb"]["landmarks"], atol=0.04, err_msg=kind)
        assert np.corrcoef(reference, np.frombuffer(row["image_200"], np.uint8))[0, 1] > 0.8, kind
    for kind in ("rgba", "turned"):
        np.testing.assert_array_equal(rows[kind]["landmarks"], rows["rgb"]["landmarks"])
        assert rows[kind]["image_200"] == rows["rgb"]["image_200"]


INTERRUPTED = """
import os, signal
left, sync = 7, os.fsync
def fsync(descriptor):
    global left
    left -= 1
    if not left:
        os.kill(os.getpid(), signal.SIGINT)
    sync(descriptor)
os.fsync = fsync
from flows.cli import entry
entry()
"""
"""Ctrl-C at the next thing that is written after the lease, a shard and its record, however fast the machine is."""


def test_ctrl_c_ends_in_one_line_and_the_next_run_completes(
    dataset: Dataset, annotated: Path, tmp_path: Path
) -> None:
    call = ["prepare", "--data", str(annotated), "--out", str(tmp_path), "--copies", "3", "--workers", "1"]
    ended = subprocess.run([sys.executable, "-c", INTERRUPTED, *call], capture_output=True, text=True, check=False)
    assert ended.returncode == 130
    assert ended.stderr.splitlines()[-1] == "msrrn: interrupted; the same command goes on where this one stopped"
    assert "Traceback" not in ended.stderr
    assert not list(tmp_path.rglob(".tmp-*"))
    settings = PrepareSettings(augmentation=AugmentationSettings(copies=3))
    _, manifest = prepare([str(annotated)], str(tmp_path), settings, 1)
    assert sum(unit.rows for unit in manifest.shards("train")) == 8 * 4


def test_a_full_disk_leaves_nothing_half_written(
    dataset: Dataset, annotated: Path, small_disk: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"disk full: .* was not written"):
        prepare([str(annotated)], str(small_disk), SETTINGS, 1)
    left = tree(small_disk)
    assert f"{dataset[1].name}/{MANIFEST}" not in left
    left.pop(f"{dataset[1].name}/{LEASE}", None)
    for name, data in left.items():
        assert (out_of(dataset) / name).read_bytes() == data, name
    assert not list(small_disk.rglob(".tmp-*"))
    shutil.copytree(small_disk, tmp_path / "larger")
    prepare([str(annotated)], str(tmp_path / "larger"), SETTINGS, 1)
    assert tree(tmp_path / "larger") == tree(out_of(dataset))


def test_of_two_photos_one_is_held_out_whatever_their_digests(photos: Photos, tmp_path: Path) -> None:
    for index, photo in enumerate(photos[0][:2]):
        write_face(tmp_path, str(index), photo.jpeg, photo.shapes[0])
    both = alike(tmp_path)
    assert sorted(assign_splits(both, 1e-9).values()) == ["train", "val"]
    assert set(assign_splits(both[:1], 1e-9).values()) == {"train"}
    assert set(assign_splits(both, 0.0).values()) == {"train"}


def test_bad_input_can_fail_the_run(photos: Photos, tmp_path: Path) -> None:
    for index, photo in enumerate(photos[0][:3]):
        write_face(tmp_path / "in", f"a/{index}", photo.jpeg, photo.shapes[0])
    write_face(tmp_path / "in", "a/half", photos[0][3].jpeg[:900], photos[0][3].shapes[0])
    job = ([str(tmp_path / "in")], str(tmp_path / "out"), PLAIN, 1)
    with pytest.raises(UserError, match=r"1 of 4 inputs are bad, none are allowed \(\w+ × 1\); first a/half\.pts"):
        prepare(*job, tolerance=Tolerance(on_bad="fail"))
    with pytest.raises(UserError, match=r"24\.00% are allowed"):
        prepare(*job, tolerance=Tolerance(max_bad=0.24))
    assert not list((tmp_path / "out").rglob(MANIFEST))
    assert prepare(*job, tolerance=Tolerance(max_bad=0.25))[1].counts["train"] == 3
    with pytest.raises(UserError, match="none are allowed"):
        prepare(*job, tolerance=Tolerance(on_bad="fail"))
    (tmp_path / "in" / "a" / "half.pts").unlink()
    write_face(tmp_path / "in", "a/0", photos[0][0].jpeg, photos[0][0].shapes[0] + 1000)  # seen with its pixels alone
    late = ([str(tmp_path / "in")], str(tmp_path / "late"), PLAIN, 1)
    with pytest.raises(UserError, match=r"none are allowed \(outside × 1\)"):
        prepare(*late, tolerance=Tolerance(on_bad="fail"))
    assert not list((tmp_path / "late").rglob(MANIFEST))
    assert prepare(*late)[1].counts["train"] == 2
    with pytest.raises(UserError, match=r"none are allowed \(outside × 1\)"):
        prepare(*late, tolerance=Tolerance(on_bad="fail"))


def test_what_is_no_picture_is_not_the_same_photo_as_another(photos: Photos, tmp_path: Path) -> None:
    for index, photo in enumerate(photos[0][:2]):
        write_face(tmp_path / "in", f"lfpw/trainset/{index}", photo.jpeg, photo.shapes[0])
    for name in ("lfpw/trainset/e", "lfpw/testset/e"):
        write_face(tmp_path / "in", name, b"", photos[0][2].shapes[0])
    manifest = prepare([str(tmp_path / "in")], str(tmp_path / "out"), PLAIN, 1)[1]
    assert {item.uri: item.reason for item in manifest.left_out} == {
        "lfpw/testset/e.pts": "empty",
        "lfpw/trainset/e.pts": "empty",
    }


def test_one_bad_row_of_a_table_stops_nothing(photos: Photos, tmp_path: Path) -> None:
    """Boxes and points that no picture has, and a table that says little of what it put aside."""
    shape = photos[0][0].shapes[0]
    faces = {
        "good": {"landmarks": shape.ravel().tolist()},
        "box": {"landmarks": shape.ravel().tolist(), "box": [0, 0, float("inf"), 10]},
        "far": {"landmarks": (shape.astype(np.float64) * 1e200).ravel().tolist()},
    }
    for index, (name, face) in enumerate(faces.items()):
        (tmp_path / "web").mkdir(exist_ok=True)
        (tmp_path / "web" / f"{name}.jpg").write_bytes(photos[0][index].jpeg)
        (tmp_path / "web" / f"{name}.json").write_text(json.dumps(face))
    (tmp_path / "run" / "images").mkdir(parents=True)
    (tmp_path / "run" / "faces").mkdir()
    (tmp_path / "run" / "0.jpg").write_bytes(photos[0][3].jpeg)
    row = {"uri": "0.jpg", "landmarks": photos[0][3].shapes[0].ravel().tolist()}
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "run" / "faces" / "0.parquet")
    images = [
        {"uri": "0.jpg", "status": "annotated", "reason": None},
        {"uri": "1.jpg", "status": "quarantined", "reason": None},
        {"uri": "2.jpg", "status": "quarantined", "reason": "sunspots"},
    ]
    pq.write_table(pa.Table.from_pylist(images), tmp_path / "run" / "images" / "0.parquet")
    sources = [str(tmp_path / "web"), str(tmp_path / "run")]
    manifest = prepare(sources, str(tmp_path / "out"), PLAIN, 1)[1]
    assert manifest.counts["train"] == 2
    assert {item.uri: item.reason for item in manifest.left_out} == {
        "1.jpg": "quarantined",
        "2.jpg": "quarantined",
        "box.jpg": "syntax",
        "far.jpg": "not_finite",
    }


def test_what_is_wrong_is_counted_and_told(photos: Photos, tmp_path: Path) -> None:
    """A mirrored picture with its old labels, a face annotated twice, and a smaller copy of a validation photo."""
    single, _ = photos
    folder = tmp_path / "in"
    for index, photo in enumerate(single[:3]):
        write_face(folder, f"lfpw/trainset/{index}", photo.jpeg, photo.shapes[0])
    flipped = np.ascontiguousarray(decode(single[3].jpeg).rgb[:, ::-1])
    mirrored = single[3].shapes[0] * [-1, 1] + [single[3].width - 1, 0]
    write_face(folder, "lfpw/trainset/mirrored", picture(flipped), mirrored, ".png")
    write_face(folder, "lfpw/trainset/again", single[0].jpeg, single[0].shapes[0] + 1.0)
    image = Image.fromarray(decode(single[1].jpeg).rgb)
    smaller = np.asarray(image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX))
    write_face(folder, "lfpw/trainset/smaller", picture(smaller), (single[1].shapes[0] + 0.5) / 2 - 0.5, ".png")
    (folder / "val.txt").write_text("lfpw/trainset/1\n")
    made = prepare([str(folder)], str(tmp_path / "out"), PLAIN, 1)
    reasons = {item.uri: (item.reason, item.message) for item in made[1].left_out}
    assert {uri: reason for uri, (reason, _) in reasons.items()} == {
        "lfpw/trainset/mirrored.pts": "eyes_swapped",
        "lfpw/trainset/again.pts": "face_twice",
        "lfpw/trainset/smaller.pts": "near_duplicate_in_two_splits",
    } or reasons["lfpw/trainset/0.pts"][0] == "face_twice"
    counts = {check.code: (check.severity, check.count) for check in made[1].checks}
    assert counts == {
        "eyes_swapped": ("error", 1),
        "face_twice": ("error", 1),
        "near_duplicate": ("warning", 1),
        "near_duplicate_in_two_splits": ("error", 1),
    }
    used = {row["annotation_uri"] for row in rows_of(made)}
    assert {"lfpw/trainset/1.pts", "lfpw/trainset/2.pts"} <= used
    assert "lfpw/trainset/smaller.pts" not in used
    page = (out_of(made) / made[1].name / "index.html").read_text()
    assert "left and right are exchanged" in page


def test_near_duplicates_are_in_one_split_where_nothing_is_declared() -> None:
    def photo(name: str, declared: str | None = None, settled: str | None = None) -> Seen:
        return Seen(name * 64, name, declared, "", settled)

    assert assign_splits([[photo("0"), photo("f")], [photo("e")]], 0.5) == {
        "0" * 64: "val",
        "f" * 64: "val",
        "e" * 64: "train",
    }
    some = assign_splits([[photo("0")], [photo("f", "val")]], 0.5)
    assert some == {"0" * 64: "train", "f" * 64: "val"}, "there is one to validate on"
    more = assign_splits([[photo("8")], [photo("9")], [photo("f", settled="val")]], 1e-9)
    assert more == {"8" * 64: "train", "9" * 64: "train", "f" * 64: "val"}, "there is one already"
    declared = assign_splits([[photo("0"), photo("f", "val")], [photo("1", "train"), photo("2", "test")]], 0.5)
    assert declared == {"0" * 64: "shadowed", "f" * 64: "val", "1" * 64: "shadowed", "2" * 64: "test"}
    grown = assign_splits([[photo("0"), photo("f", settled="train")], [photo("1", settled="val")]], 0.5)
    assert grown == {"0" * 64: "train", "f" * 64: "train", "1" * 64: "val"}
    between = assign_splits([[photo("0"), photo("1", settled="val"), photo("f", settled="train")]], 0.5)
    assert between == {"0" * 64: "shadowed", "1" * 64: "val", "f" * 64: "train"}, "a chain joined two splits"
    late = assign_splits([[photo("0", "val"), photo("1", "test"), photo("f", settled="train")]], 0.5)
    assert late == {"0" * 64: "shadowed", "1" * 64: "test", "f" * 64: "train"}, "validated on what was trained on"


def test_many_copies_of_few_photos_are_held_out_as_often_as_others() -> None:
    digests = [hashlib.sha256(str(number).encode()).hexdigest() for number in range(20_000)]
    copies = [Seen(digest, "", None, "") for digest in digests]
    many = [sorted(copies[start : start + 50], key=lambda seen: seen.sha256) for start in range(0, 20_000, 50)]
    share = Counter(assign_splits(many, 0.1).values())["val"] / 20_000
    assert share == pytest.approx(0.1, abs=0.05)


def test_boxes_of_the_data_need_no_detector(photos: Photos, tmp_path: Path) -> None:
    """Tight boxes around the landmarks, as many tools give them, are mapped to what a detector would give."""
    parts = []
    (tmp_path / "in").mkdir()
    for index, photo in enumerate(photos[0]):
        (tmp_path / "in" / f"{index}.jpg").write_bytes(photo.jpeg)
        (x0, y0), (x1, y1) = photo.shapes[0].min(axis=0), photo.shapes[0].max(axis=0)
        points = "".join(f'<part name="{n:02}" x="{x}" y="{y}"/>' for n, (x, y) in enumerate(photo.shapes[0]))
        box = f'top="{y0:.0f}" left="{x0:.0f}" width="{x1 - x0:.0f}" height="{y1 - y0:.0f}"'
        parts.append(f'<image file="{index}.jpg"><box {box}>{points}</box></image>')
    (tmp_path / "in" / "faces.xml").write_text(f"<dataset><images>{''.join(parts)}</images></dataset>")
    settings = PLAIN.model_copy(update={"detector": "annotated"})
    made = prepare([str(tmp_path / "in")], str(tmp_path / "out"), settings, 1)
    assert made[1].missed == 0
    assert made[1].counts["train"] == 8
    for row in rows_of(made):
        shape = parse_pts(format_pts(photos[0][int(Path(row["photo_uri"]).stem)].shapes[0]))
        assert Box(*row["box"]).iou(expected_box(shape)) > 0.6


def test_boxes_are_mapped_by_their_own_source_wherever_it_lies(photos: Photos, tmp_path: Path) -> None:
    """Two sources with boxes of two kinds; on another machine their folders have each other's names."""

    def source(name: str, numbers: Iterable[int], margin: float) -> str:
        folder = tmp_path / name
        folder.mkdir(parents=True)
        for number in numbers:
            photo = photos[0][number]
            (folder / f"{number}.jpg").write_bytes(photo.jpeg)
            (low, high), points = (photo.shapes[0].min(axis=0), photo.shapes[0].max(axis=0)), photo.shapes[0].tolist()
            box = [*(low - margin * (high - low)).tolist(), *(high + margin * (high - low)).tolist()]
            said = json.dumps({"points": points, "box": box, "subset": "x"})
            (folder / f"{number}.json").write_text(said)
        return str(folder)

    settings = PLAIN.model_copy(update={"detector": "annotated"})
    here = [source("here/a", range(3), 0.0), source("here/b", range(3, 6), 0.5)]
    there = [source("there/b", range(3), 0.0), source("there/a", range(3, 6), 0.5)]
    made = prepare(here, str(tmp_path / "out"), settings, 1)
    assert prepare(there, str(tmp_path / "other"), settings, 1)[1] == made[1]
    # A photo that moves from one to the other is mapped as its new neighbours are.
    for suffix in ("jpg", "json"):
        (tmp_path / "here/a" / f"0.{suffix}").rename(tmp_path / "here/b" / f"0.{suffix}")
    grown = prepare(here, str(tmp_path / "out"), settings, 1)
    fresh = prepare(here, str(tmp_path / "fresh"), settings, 1)
    assert rows_of(grown) == rows_of(fresh)
    assert grown[1] == fresh[1]


def test_annotations_of_one_face_that_differ_in_the_box_alone_have_an_order(photos: Photos) -> None:
    face = AnnotatedPhoto("/a", "1.jpg", "1.pts", "x", None, photos[0][0].shapes[0])
    other = replace(face, root="/b", box=Box(0, 0, 9, 9))
    assert face_order(face) != face_order(other) != face_order(replace(other, box=Box(0, 0, 8, 9)))


def test_a_worker_that_is_killed_changes_nothing(
    dataset: Dataset, annotated: Path, tmp_path: Path, ray_of_two: int
) -> None:
    """Ray's worker processes get SIGKILL while they make shards; the driver lives on."""
    killed = 0

    def kill(done: int, total: int, what: str) -> None:
        nonlocal killed
        if what == "making shards" and killed < 3:
            workers = filter(is_worker, psutil.Process().children(recursive=True))  # and nobody else's
            for process in islice(workers, 1):
                process.kill()
                killed += 1

    made = prepare([str(annotated)], str(tmp_path), SETTINGS, ray_of_two, kill)
    assert killed
    assert made[1] == dataset[1]
    assert tree(tmp_path) == tree(out_of(dataset))


def test_through_a_faulty_s3_it_is_the_same(dataset: Dataset, annotated: Path, faulty_s3: str) -> None:
    made, manifest = prepare([str(annotated)], f"{faulty_s3}/out", SETTINGS, 1)
    assert manifest == dataset[1]
    assert {key: made.parent.read_bytes(key) for key in made.parent.files()} == tree(out_of(dataset))


def test_a_rejected_picture_whose_name_two_sources_have_is_not_shown(photos: Photos, tmp_path: Path) -> None:
    """It could be another person's."""
    for name, photo in (("a", photos[0][0]), ("b", photos[0][1])):
        write_face(tmp_path / name, "x/1", photo.jpeg, photo.shapes[0])
        (tmp_path / name / "x" / f"alone_{name}.jpg").write_bytes(photo.jpeg)
    (tmp_path / "b/x/1.pts").write_text("broken")
    work = plan([str(tmp_path / "a"), str(tmp_path / "b")], str(tmp_path / "out"), PLAIN)
    shown = {item.uri: work.picture(item) for item in work.left_out}
    assert shown["x/alone_b.jpg"] == photos[0][1].jpeg
    assert [data for uri, data in shown.items() if uri.startswith("x/1")] == [None]
    write_face(tmp_path / "b", "x/1", photos[0][1].jpeg, photos[0][1].shapes[0][::-1])
    work = plan([str(tmp_path / "a"), str(tmp_path / "b")], str(tmp_path / "out"), PLAIN)
    assert [work.picture(item) for item in work.left_out if item.uri == "x/1.pts"] == [None]


def test_a_photo_that_changes_while_its_dataset_is_made_ends_the_run(photos: Photos, tmp_path: Path) -> None:
    """Its split and its name are those of the bytes that were there before."""
    for index, photo in enumerate(photos[0][:2]):
        write_face(tmp_path / "in", f"a/{index}", photo.jpeg, photo.shapes[0])

    def progress(done: int, total: int, what: str) -> None:
        if what == "making shards":
            (tmp_path / "in/a/1.jpg").write_bytes(photos[0][2].jpeg)

    with pytest.raises(UserError, match=r"a/1\.jpg changed while its dataset was made: run again"):
        prepare([str(tmp_path / "in")], str(tmp_path / "out"), PLAIN, 1, progress)
    assert not list((tmp_path / "out").rglob(MANIFEST))


def test_a_photo_is_left_out_when_it_is_gone_and_never_when_the_storage_fails(
    photos: Photos, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_face(tmp_path, "a", photos[0][0].jpeg, photos[0][0].shapes[0])
    error: UserError = MissingError("a.jpg does not exist")

    def read(_: AnnotatedPhoto) -> bytes:
        raise error

    monkeypatch.setattr(AnnotatedPhoto, "read", read)
    groups, left_out = read_photos([str(tmp_path)], 1)
    assert (groups, [item.reason for item in left_out]) == ([], ["unreadable"])
    error = OutageError("S3 failed")
    with pytest.raises(OutageError):
        read_photos([str(tmp_path)], 1)


def test_a_picture_that_changed_since_it_was_annotated_says_so(photos: Photos, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    rows = []
    for index, photo in enumerate(photos[0][:2]):
        (tmp_path / "in" / f"{index}.jpg").write_bytes(photo.jpeg)
        rows.append(
            {
                "uri": f"{index}.jpg",
                "landmarks": photo.shapes[0].ravel().tolist(),
                "sha256": hashlib.sha256(photo.jpeg).hexdigest(),
            }
        )
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "in" / "faces.parquet")
    (tmp_path / "in" / "1.jpg").write_bytes(photos[0][2].jpeg)
    _, manifest = prepare([str(tmp_path / "in")], str(tmp_path / "out"), PLAIN, 1)
    (item,) = manifest.left_out
    assert item.reason == "changed_picture"
    shutil.copytree(tmp_path / "in", tmp_path / "elsewhere" / "in")
    assert prepare([str(tmp_path / "elsewhere" / "in")], str(tmp_path / "other"), PLAIN, 1)[1] == manifest


@pytest.mark.parametrize("name", ["0", "x0"])
def test_a_face_of_a_picture_that_was_there_before_takes_no_other_with_it(
    name: str, photos: Photos, tmp_path: Path
) -> None:
    """An annotation run looked at a picture that was replaced since; its table sorts before, or after, the .pts."""
    for stem, photo in zip((name, f"{name}1"), photos[0], strict=False):
        write_face(tmp_path / "in", stem, photo.jpeg, photo.shapes[0])
    (tmp_path / "run/faces").mkdir(parents=True)
    (tmp_path / "run/run.json").write_text(json.dumps({"source": str(tmp_path / "in")}))
    before = {
        "uri": f"{name}.jpg",
        "landmarks": (photos[0][0].shapes[0] / 2).ravel().tolist(),
        "sha256": hashlib.sha256(photos[0][2].jpeg).hexdigest(),
    }
    pq.write_table(pa.Table.from_pylist([before]), tmp_path / "run/faces/part.parquet")
    urls = [str(tmp_path / "in"), str(tmp_path / "run")]
    made = prepare(urls, str(tmp_path / "out"), PLAIN, 1)
    assert prepare(urls[::-1], str(tmp_path / "other"), PLAIN, 1)[1] == made[1]
    assert {row["annotation_uri"] for row in rows_of(made)} == {f"{name}.pts", f"{name}1.pts"}
    (item,) = made[1].left_out
    assert (item.uri, item.reason) == ("faces/part.parquet#0", "changed_picture")
