"""What is appended to a dataset meets what that holds out, though its photos are gone."""

import hashlib
import io
import shutil
from pathlib import Path

import pytest
from PIL import Image

from msrrn.synthetic import SyntheticPhoto
from pipelines.dataset.forget import forget_in_datasets
from pipelines.dataset.manifest import Manifest, read_manifest
from pipelines.dataset.prepare import prepare
from pipelines.errors import UserError
from pipelines.settings import PrepareSettings
from pipelines.storage import Store
from tests.factories import write_face

PLAIN = PrepareSettings(detector="annotated", val_share=0)
Photos = tuple[list[SyntheticPhoto], list[SyntheticPhoto]]


def put(folder: Path, name: str, photo: SyntheticPhoto, jpeg: bytes = b"") -> None:
    write_face(folder, name, jpeg or photo.jpeg, photo.shapes[0])


def smaller(photo: SyntheticPhoto) -> bytes:
    """The same photograph with other bytes."""
    sink = io.BytesIO()
    Image.open(io.BytesIO(photo.jpeg)).save(sink, "JPEG", quality=60)
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
    put(tmp_path / "third", "c/x", photos[0][4])
    (tmp_path / "third" / "val.txt").write_text("c/x\n")
    with pytest.raises(UserError, match=rf"c/x\.jpg is declared val, and {old.name} has it as lfpw/testset/0\.jpg"):
        made([tmp_path / "third"], tmp_path / "out", old.name)


def test_what_is_held_out_is_forgotten_too(parts: tuple[Path, Path], photos: Photos, tmp_path: Path) -> None:
    old = made([parts[0]], tmp_path / "out")
    digest = hashlib.sha256(photos[0][4].jpeg).hexdigest()
    assert digest in {photo.sha256 for photo in old.held}
    forget_in_datasets(str(tmp_path / "out"), [digest], 1, lambda done, total, text: None)
    left = read_manifest(Store(str(tmp_path / "out" / old.name)))
    assert digest not in {photo.sha256 for photo in left.held}
    assert len(left.held) == len(old.held) - 1
