import hashlib
import io
import random
import shutil
import signal
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from msrrn.augmentation import AugmentationSettings
from msrrn.landmarks import MIRROR
from msrrn.synthetic import SyntheticPhoto
from pipelines.decoding import decode
from pipelines.errors import UserError
from pipelines.photos import assign_splits, group_photos
from pipelines.prepare import plan, prepare
from pipelines.settings import PrepareSettings
from pipelines.shards import MANIFEST, SCHEMA, Manifest, read_samples
from pipelines.sources.pts import format_pts, parse_pts
from pipelines.storage import Store
from tests.factories import SETTINGS, killed_after, killed_at_write, picture, start_msrrn, times, tree, write_face

Dataset = tuple[Store, Manifest]
Photos = tuple[list[SyntheticPhoto], list[SyntheticPhoto]]

PLAIN = PrepareSettings(augmentation=AugmentationSettings(copies=0), val_share=0)


def folder_of(dataset: Dataset) -> Path:
    local = dataset[0].local_path()
    assert local is not None
    return local


def rows_of(dataset: Dataset, images: bool = False) -> list[dict[str, Any]]:
    """Every row of every shard, in the order of the manifest."""
    store, manifest = dataset
    names = None if images else [f for f in SCHEMA.names if "image" not in f]
    tables = [pq.read_table(io.BytesIO(store.read_bytes(entry.key)), columns=names) for entry in manifest.shards]
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
    assert counts["rows"] == len(rows) == sum(shard.rows for shard in manifest.shards)
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
    groups, _ = group_photos([str(folder)])
    halves = assign_splits(groups, 0.5)
    assert halves[digest(folder / "ibug" / "image_1 _01.jpg")] == "test"
    for sha256, split in halves.items():
        assert split in ("test", "val" if int(sha256[0], 16) < 8 else "train")
    none = assign_splits(groups, 0)
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


def test_crops_show_what_their_frame_says(annotated: Path, dataset: Dataset) -> None:
    """Crop pixels are those of the photo at the place that `to_crop` maps there, but for smoothing and noise."""
    row = next(row for row in rows_of(dataset, images=True) if row["copy"] == 0)
    grey = np.asarray(Image.open(annotated / row["photo_uri"]).convert("L"), np.float64)
    to_crop = np.array(row["to_crop"]).reshape(2, 3)
    crop = np.asarray(row["image_200"], np.float64).reshape(200, 200)
    centres = np.stack(np.meshgrid(np.arange(200), np.arange(200)), axis=-1).reshape(-1, 2)
    x, y = np.rint(np.linalg.solve(to_crop[:, :2], ((centres + 0.5) / 200 - to_crop[:, 2]).T)).astype(int)
    inside = (x >= 0) & (y >= 0) & (x < grey.shape[1]) & (y < grey.shape[0])
    assert np.corrcoef(grey[y[inside], x[inside]], crop.ravel()[inside])[0, 1] > 0.95
    halved = crop.reshape(100, 2, 100, 2).mean(axis=(1, 3))
    assert np.abs(np.asarray(row["image_100"]).reshape(100, 100) - halved).max() <= 0.5


def test_the_same_data_elsewhere_is_the_same_dataset(dataset: Dataset, annotated: Path, tmp_path: Path) -> None:
    copy = copied(annotated, tmp_path)
    again = prepare([str(copy)], str(tmp_path / "out"), SETTINGS, workers=1)
    assert again[1].name == dataset[1].name
    assert tree(folder_of(again)) == tree(folder_of(dataset))


def test_two_workers_make_the_same_bytes_from_relative_paths(
    dataset: Dataset, annotated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ray_of_two: int
) -> None:
    copied(annotated, tmp_path)
    monkeypatch.chdir(tmp_path)
    again = prepare(["somewhere/else/300w"], "out", SETTINGS, workers=ray_of_two)
    assert again[0].url == f"out/{dataset[1].name}"
    assert tree(tmp_path / "out" / dataset[1].name) == tree(folder_of(dataset))


def test_the_order_of_sources_changes_nothing(photos: Photos, tmp_path: Path) -> None:
    """Two sources use the same names for one photo and its two faces, and for different photos."""
    single, double = photos
    for source, shape in zip("ab", double[0].shapes, strict=True):
        write_face(tmp_path / source, "x/twice", double[0].jpeg, shape)
    for source, photo in zip("ab", single, strict=False):
        write_face(tmp_path / source, "x/other", photo.jpeg, photo.shapes[0])
    a, b = str(tmp_path / "a"), str(tmp_path / "b")
    first = prepare([a, b], str(tmp_path / "ab"), PLAIN, workers=1)
    second = prepare([b, a], str(tmp_path / "ba"), PLAIN, workers=1)
    assert first[1].name == second[1].name
    assert tree(folder_of(first)) == tree(folder_of(second))
    assert first[1].counts["train"] == 4


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
    before = times(folder_of(dataset))
    again = prepare([str(annotated)], str(folder_of(dataset).parent), SETTINGS, workers=1)
    assert again == dataset
    assert times(folder_of(dataset)) == before


def test_a_killed_run_goes_on_to_the_same_bytes(dataset: Dataset, annotated: Path, tmp_path: Path) -> None:
    moments = random.Random(0)
    codes = []
    for attempt in range(8):
        job = (prepare, [str(annotated)], str(tmp_path), SETTINGS, 1)
        if attempt % 2:
            codes.append(killed_after(moments.uniform(0.05, 0.6), *job))
        else:
            codes.append(killed_at_write(moments.randint(1, 9), *job))
        finished = tree(tmp_path / dataset[1].name)
        for name, data in finished.items():
            assert (folder_of(dataset) / name).read_bytes() == data, name
        if MANIFEST in finished:
            break
    assert -9 in codes
    prepare([str(annotated)], str(tmp_path), SETTINGS, 1)
    assert tree(tmp_path / dataset[1].name) == tree(folder_of(dataset))


def test_a_damaged_shard_is_noticed_and_mended(dataset: Dataset, annotated: Path, tmp_path: Path) -> None:
    store, manifest = prepare([str(annotated)], str(tmp_path), SETTINGS, 1)
    whole = tree(folder_of((store, manifest)))
    entry = next(entry for entry in manifest.shards if entry.split == "train")
    path = folder_of((store, manifest)) / entry.key
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match=rf"{entry.key}: its SHA-256 .* delete it together with {MANIFEST}"):
        read_samples(store, manifest, "train")
    path.unlink()
    (path.parents[1] / MANIFEST).unlink()
    prepare([str(annotated)], str(tmp_path), SETTINGS, 1)
    assert tree(folder_of((store, manifest))) == whole


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
    with pytest.raises(UserError, match=r"1 pictures but no \.pts"):
        prepare([str(tmp_path / "bare")], str(tmp_path / "out"), SETTINGS, 1)
    assert not (tmp_path / "out").exists()


def test_bad_inputs_are_left_out_with_their_reason(photos: Photos, tmp_path: Path) -> None:
    jpeg, shape = photos[0][0].jpeg, photos[0][0].shapes[0]
    width = decode(jpeg).rgb.shape[1]
    lines = format_pts(shape).splitlines(keepends=True)
    bad_pts = {
        "pts_count": b"".join([*lines[:-2], lines[-1]]),
        "pts_nan": b"".join([*lines[:9], b"nan 3\n", *lines[10:]]),
        "pts_outside": format_pts(shape + [width, 0.0]),
        "pts_syntax": b"\xff\xfe no points",
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
    # `bad_images` and `pts_outside` are told by their annotation, what was found while scanning by its picture.
    assert reasons == {
        **{f"i/{reason}.pts": reason for reason in bad_images},
        **{f"p/{reason}.jpg": reason for reason in bad_pts if reason != "pts_outside"},
        "p/pts_outside.pts": "pts_outside",
        "lonely/b.jpg": "no_annotation",
        "lonely/c.pts": "no_image",
    }
    assert all(item.message for item in manifest.left_out)
    assert manifest.counts["faces_in"] == 11
    assert manifest.counts["train"] == 1
    again, _ = prepare([str(tmp_path / "in")], str(tmp_path / "out"), PLAIN, 1)
    assert read_samples(again, manifest, "train").source == ("good",)


def test_nothing_left_to_train_on_is_an_error_without_a_dataset(photos: Photos, tmp_path: Path) -> None:
    write_face(tmp_path / "in", "a", b"", photos[0][0].shapes[0])
    with pytest.raises(UserError, match="no face is left to train on \\(empty × 1\\)"):
        prepare([str(tmp_path / "in")], str(tmp_path / "out"), PLAIN, 1)
    assert not list((tmp_path / "out").rglob(MANIFEST))


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
    reference = np.asarray(rows["rgb"]["image_200"], np.float64).ravel()
    for kind, row in rows.items():
        # Detector boxes may differ by a pixel between grey and colour; then so do the crops.
        np.testing.assert_allclose(row["landmarks"], rows["rgb"]["landmarks"], atol=0.04, err_msg=kind)
        assert np.corrcoef(reference, np.asarray(row["image_200"], np.float64).ravel())[0, 1] > 0.8, kind
    for kind in ("rgba", "turned"):
        np.testing.assert_array_equal(rows[kind]["landmarks"], rows["rgb"]["landmarks"])
        np.testing.assert_array_equal(rows[kind]["image_200"], rows["rgb"]["image_200"])


def test_ctrl_c_ends_in_one_line_and_the_next_run_completes(
    dataset: Dataset, annotated: Path, tmp_path: Path
) -> None:
    call = ["prepare", "--data", str(annotated), "--out", str(tmp_path), "--copies", "100", "--workers", "1"]
    process = start_msrrn(*call)
    while not list(tmp_path.rglob("*.json")) and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert errors.splitlines()[-1] == "msrrn: interrupted; the same command goes on where this one stopped"
    assert "Traceback" not in errors
    assert not list(tmp_path.rglob(".tmp-*"))
    settings = PrepareSettings(augmentation=AugmentationSettings(copies=100))
    store, manifest = prepare([str(annotated)], str(tmp_path), settings, 1)
    assert len(read_samples(store, manifest, "train")) == 8 * 101


def test_a_full_disk_leaves_nothing_half_written(
    dataset: Dataset, annotated: Path, small_disk: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"disk full: .* was not written"):
        prepare([str(annotated)], str(small_disk), SETTINGS, 1)
    left = tree(small_disk)
    assert f"{dataset[1].name}/{MANIFEST}" not in left
    for name, data in left.items():
        assert (folder_of(dataset).parent / name).read_bytes() == data, name
    assert not list(small_disk.rglob(".tmp-*"))
    shutil.copytree(small_disk / dataset[1].name, tmp_path / dataset[1].name)
    prepare([str(annotated)], str(tmp_path), SETTINGS, 1)
    assert tree(tmp_path / dataset[1].name) == tree(folder_of(dataset))


def test_of_two_photos_one_is_held_out_whatever_their_digests(photos: Photos, tmp_path: Path) -> None:
    for index, photo in enumerate(photos[0][:2]):
        write_face(tmp_path, str(index), photo.jpeg, photo.shapes[0])
    groups, _ = group_photos([str(tmp_path)])
    assert sorted(assign_splits(groups, 1e-9).values()) == ["train", "val"]
    assert set(assign_splits(groups[:1], 1e-9).values()) == {"train"}
    assert set(assign_splits(groups, 0.0).values()) == {"train"}
