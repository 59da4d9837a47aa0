"""What is appended to a dataset meets what that holds out, though its photos are gone."""

import hashlib
import io
import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

from msrrn.synthetic import SyntheticPhoto, draw_photo
from pipelines.dataset import planning
from pipelines.dataset.forget import forget_in_datasets
from pipelines.dataset.manifest import Manifest, read_manifest
from pipelines.dataset.prepare import prepare
from pipelines.dataset.verify import verify
from pipelines.errors import UserError
from pipelines.settings import PrepareSettings
from pipelines.storage import Store
from tests.factories import write_face

PLAIN = PrepareSettings(detector="annotated", val_share=0)
Photos = tuple[list[SyntheticPhoto], list[SyntheticPhoto]]


def put(folder: Path, name: str, photo: SyntheticPhoto, jpeg: bytes = b"") -> None:
    write_face(folder, name, jpeg or photo.jpeg, photo.shapes[0])


def smaller(photo: SyntheticPhoto, quality: int = 60) -> bytes:
    """The same photograph with other bytes."""
    sink = io.BytesIO()
    Image.open(io.BytesIO(photo.jpeg)).save(sink, "JPEG", quality=quality)
    return sink.getvalue()


@pytest.fixture
def parts(photos: Photos, tmp_path: Path) -> tuple[Path, Path]:
    """Photos of which two are for tests; and copies of those under other names, with a new one."""
    single = photos[0]
    first, second = tmp_path / "first", tmp_path / "second"
    for index in range(4):
        put(first, f"lfpw/trainset/{index}", single[index])
    put(first, "lfpw/testset/0", single[4])
    put(first, "lfpw/testset/1", single[5])
    put(first, "lfpw/trainset/leak", single[5], smaller(single[5]))
    put(second, "new/same", single[4])
    put(second, "new/smaller", single[4], smaller(single[4]))
    put(second, "new/leak", single[5], smaller(single[5]))
    put(second, "new/good", single[6])
    return first, second


def made(sources: list[Path], out: Path, append_to: str = "") -> Manifest:
    return prepare([str(source) for source in sources], str(out), PLAIN, 1, append_to=append_to)[1]


def test_copies_of_test_photos_stay_out_when_they_are_appended(parts: tuple[Path, Path], tmp_path: Path) -> None:
    whole = made(list(parts), tmp_path / "whole")
    assert whole.counts["train"] == 5
    old = made([parts[0]], tmp_path / "out")
    assert old.counts["train"] == 4
    shutil.rmtree(parts[0])
    grown = made([parts[1]], tmp_path / "out", old.name)
    assert grown.counts["train"] == 5
    assert {unit.key for unit in grown.units} == {unit.key for unit in whole.units}
    assert sorted(photo.sha256 for photo in grown.held) == sorted(photo.sha256 for photo in whole.held)
    again = made([parts[1]], tmp_path / "out", grown.name)
    assert {unit.key for unit in again.units} == {unit.key for unit in whole.units}


@pytest.mark.parametrize("declared", ["test", "val"])
def test_a_held_out_photo_stays_so_though_its_annotation_is_refused(
    declared: str, photos: Photos, tmp_path: Path
) -> None:
    """The same bytes come later from a folder that says nothing of splits; what shows the same is there already."""
    single = photos[0]
    first, second = tmp_path / "first", tmp_path / "second"
    folder = "testset" if declared == "test" else "trainset"
    write_face(first, f"lfpw/{folder}/bad", single[4].jpeg, single[4].shapes[0][::-1])
    if declared == "val":
        (first / "val.txt").write_text("lfpw/trainset/bad\n")
    put(first, "lfpw/trainset/smaller", single[4], smaller(single[4]))
    put(first, "lfpw/trainset/good", single[0])
    put(second, "new/same", single[4])
    put(second, "new/good", single[1])
    old = made([first], tmp_path / "out")
    assert (old.counts["train"], old.counts["val"]) == (1, 0)
    assert {item.uri: item.reason for item in old.left_out}["lfpw/trainset/smaller.pts"] == (
        "near_duplicate_in_two_splits"
    )
    grown = made([second], tmp_path / "out", old.name)
    assert grown.counts["train"] == 2
    assert grown.counts["val"] == (declared == "val")  # it came again, mended
    held = hashlib.sha256(single[4].jpeg).hexdigest() in {photo.sha256 for photo in grown.held}
    assert held == (declared == "test")
    assert verify(str(tmp_path / "out" / grown.name)).problems == []


def test_a_photo_keeps_its_name(photos: Photos, tmp_path: Path) -> None:
    put(tmp_path / "first", "a/0", photos[0][0])
    put(tmp_path / "second", "week-2/0", photos[0][0])
    old = made([tmp_path / "first"], tmp_path / "out")
    grown = made([tmp_path / "second"], tmp_path / "out", old.name)
    assert grown.units == old.units
    assert [(item.uri, item.reason) for item in grown.left_out] == [("week-2/0.pts", "known_photo")]
    assert "by another name" in grown.left_out[0].message
    assert made([tmp_path / "second"], tmp_path / "out", grown.name) == grown, "the same photo was told of again"


def test_what_is_bad_in_other_words_now_is_listed_once(photos: Photos, tmp_path: Path) -> None:
    for index in range(2):
        put(tmp_path / "first", f"a/{index}", photos[0][index])
    bad = tmp_path / "first" / "a" / "1.pts"
    bad.write_bytes(b"1 1\n")
    old = made([tmp_path / "first"], tmp_path / "out")
    bad.write_bytes(b"1 1\n2 2\n")
    grown = made([tmp_path / "first"], tmp_path / "out", old.name)
    assert [item.message[9:17] for item in (*old.left_out, *grown.left_out)] == ["1 points", "2 points"]
    assert grown.counts["faces_in"] == old.counts["faces_in"] == 2


def test_a_photo_that_comes_again_stays_what_it_was_declared(photos: Photos, tmp_path: Path) -> None:
    for index in range(2):
        put(tmp_path / "first", f"a/{index}", photos[0][index])
        put(tmp_path / "second", f"a/{index}", photos[0][index])
    (tmp_path / "first" / "val.txt").write_text("a/0\n")
    old = made([tmp_path / "first"], tmp_path / "out")
    assert made([tmp_path / "second"], tmp_path / "out", old.name) == old


def test_a_test_photo_that_shows_what_is_trained_on_is_refused(photos: Photos, tmp_path: Path) -> None:
    put(tmp_path / "first", "a/0", photos[0][0])
    put(tmp_path / "first", "a/1", photos[0][1])
    old = made([tmp_path / "first"], tmp_path / "out")
    put(tmp_path / "second", "lfpw/testset/x", photos[0][0], smaller(photos[0][0]))
    with pytest.raises(
        UserError, match=rf"testset/x\.jpg is declared test, and shows what a/0\.jpg shows.*{old.name}"
    ):
        made([tmp_path / "second"], tmp_path / "out", old.name)
    together = made([tmp_path / "first", tmp_path / "second"], tmp_path / "out")
    assert (together.counts["train"], together.counts["left_out"]) == (1, 2)


def test_a_photo_cannot_become_another_ones_split(parts: tuple[Path, Path], photos: Photos, tmp_path: Path) -> None:
    old = made([parts[0]], tmp_path / "out")
    for shape in (photos[0][4].shapes[0], photos[0][4].shapes[0][::-1]):  # the other one is refused
        write_face(tmp_path / "third", "c/x", photos[0][4].jpeg, shape)
        (tmp_path / "third" / "val.txt").write_text("c/x\n")
        with pytest.raises(UserError, match=rf"c/x\.jpg is declared val, and {old.name} has it as lfpw/testset/0"):
            made([tmp_path / "third"], tmp_path / "out", old.name)


def test_what_is_held_out_is_forgotten_too(parts: tuple[Path, Path], photos: Photos, tmp_path: Path) -> None:
    old = made([parts[0]], tmp_path / "out")
    digest = hashlib.sha256(photos[0][4].jpeg).hexdigest()
    assert digest in {photo.sha256 for photo in old.held}
    forgot = forget_in_datasets(str(tmp_path / "out"), [digest], 1, lambda done, total, text: None)
    left = read_manifest(Store(str(tmp_path / "out" / str(forgot.datasets[old.name]))))
    assert digest not in {photo.sha256 for photo in left.held}
    assert len(left.held) == len(old.held) - 1
    assert left.units == old.units
    assert made([parts[0]], tmp_path / "out") == left


def test_what_a_dataset_of_another_version_holds_out_is_forgotten_where_it_is(
    parts: tuple[Path, Path], photos: Photos, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(planning, "RECIPE", planning.RECIPE - 1)
        old = made([parts[0]], tmp_path / "out")
    digest = hashlib.sha256(photos[0][4].jpeg).hexdigest()
    forgot = forget_in_datasets(str(tmp_path / "out"), [digest], 1, lambda done, total, text: None)
    left = read_manifest(Store(str(tmp_path / "out" / old.name)))
    assert (left.units, len(left.held)) == (old.units, len(old.held) - 1)
    assert digest not in {photo.sha256 for photo in left.held}
    assert forgot.datasets == {}
    assert verify(str(tmp_path / "out" / old.name)).problems == []


def test_a_test_photo_that_was_replaced_makes_another_dataset(parts: tuple[Path, Path], tmp_path: Path) -> None:
    old = made([parts[0]], tmp_path / "out")
    put(parts[0], "lfpw/testset/0", draw_photo(9, 0))
    new = made([parts[0]], tmp_path / "out")
    assert new.units == old.units
    assert new.name != old.name
    assert {photo.sha256 for photo in new.held} != {photo.sha256 for photo in old.held}


def test_what_shows_the_same_in_val_and_test_is_no_trouble_later(photos: Photos, tmp_path: Path) -> None:
    put(tmp_path / "first", "lfpw/trainset/0", photos[0][0])
    put(tmp_path / "first", "lfpw/trainset/1", photos[0][1])
    put(tmp_path / "first", "lfpw/testset/0", photos[0][0], smaller(photos[0][0]))
    (tmp_path / "first" / "val.txt").write_text("lfpw/trainset/0\n")
    old = made([tmp_path / "first"], tmp_path / "out")
    assert (old.counts["train"], old.counts["val"], len(old.held)) == (1, 1, 1)
    put(tmp_path / "second", "a/2", photos[0][2])
    put(tmp_path / "second", "lfpw/testset/1", photos[0][0], smaller(photos[0][0], 50))
    grown = made([tmp_path / "second"], tmp_path / "out", old.name)
    assert grown == made([tmp_path / "first", tmp_path / "second"], tmp_path / "whole")


def test_what_was_left_out_for_its_pixels_is_so_once(photos: Photos, tmp_path: Path) -> None:
    put(tmp_path / "first", "a/0", photos[0][0])
    write_face(tmp_path / "first", "a/1", photos[0][1].jpeg, photos[0][1].shapes[0] + 1000)
    old = made([tmp_path / "first"], tmp_path / "out")
    assert [item.reason for item in old.left_out] == ["outside"]
    put(tmp_path / "second", "a/2", photos[0][2])
    grown = made([tmp_path / "second"], tmp_path / "out", old.name)
    assert grown == made([tmp_path / "first", tmp_path / "second"], tmp_path / "whole")


def test_photos_that_were_declared_later_are_so_for_what_is_appended(photos: Photos, tmp_path: Path) -> None:
    settings = PLAIN.model_copy(update={"val_share": 0.5})
    for index in range(6):
        put(tmp_path / "first", f"a/{index}", photos[0][index])
    job = ([str(tmp_path / "first")], str(tmp_path / "out"), settings, 1)
    drawn = prepare(*job)[1]
    records = (json.loads(path.read_bytes()) for path in (tmp_path / "out" / "records").rglob("val-*.json"))
    chosen = [photo["uri"].removesuffix(".jpg") for record in records for photo in record["photos"]]
    (tmp_path / "first" / "val.txt").write_text("\n".join(chosen))
    declared = prepare(*job)[1]
    assert declared.counts == drawn.counts
    digests = [hashlib.sha256(photo.jpeg).hexdigest() for photo in photos[0][6:]]
    assert any(int(digest[32:40], 16) < 16**8 / 2 for digest in digests), "none would be held out anyway"
    put(tmp_path / "second", "a/6", photos[0][6])
    put(tmp_path / "second", "a/7", photos[0][7])
    grown = prepare([str(tmp_path / "second")], *job[1:], append_to=declared.name)[1]
    assert grown.counts["val"] == declared.counts["val"]


def test_a_shard_that_is_gone_is_told_and_made_again_of_all_sources(parts: tuple[Path, Path], tmp_path: Path) -> None:
    old = made([parts[0]], tmp_path / "out")
    for unit in old.shards():
        (tmp_path / "out" / unit.shard).unlink()
    for given in ([parts[1]], list(parts)):
        with pytest.raises(UserError, match=r"that held .* is gone or damaged: .* prepare all sources together"):
            made(given, tmp_path / "out", old.name)
    whole = made(list(parts), tmp_path / "out")
    assert whole.counts["train"] == 5
    assert made([parts[0]], tmp_path / "out") == old
    assert verify(str(tmp_path / "out" / old.name)).problems == []
