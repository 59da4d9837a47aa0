import io
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest

from msrrn.synthetic import SyntheticPhoto
from pipelines import synthesis
from pipelines.archives import list_inputs, read_inputs
from pipelines.decoding import Undecodable, decode
from pipelines.errors import UserError
from pipelines.sources import AnnotatedPhoto, open_annotated
from pipelines.sources.pts import parse_pts
from pipelines.synthesis import CLAIM, RECORD, SYNTHETIC, synthesise, synthetic_archive
from tests.factories import killed_at_write, times, tree

Photos = tuple[list[SyntheticPhoto], list[SyntheticPhoto]]


@pytest.fixture
def quick(photos: Photos, monkeypatch: pytest.MonkeyPatch) -> list[SyntheticPhoto]:
    """Instead of drawing: two photos of two faces and then those of one, in an order that the seed turns."""
    series = [*photos[1], *photos[0]]
    monkeypatch.setattr(synthesis, "draw_photo", lambda seed, index: series[(index + seed) % len(series)])
    return series


def test_several_faces_of_a_photo_have_a_file_each(quick: list[SyntheticPhoto], tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    made, reused = synthesise(str(tmp_path), 5, 0, 1, lambda done, total: seen.append((done, total)))
    assert not reused
    assert (made.photos, made.seed, made.faces) == (5, 0, 7)
    assert seen[-1] == (5, 5)
    stems = ["000000_1", "000000_2", "000001_1", "000001_2", "000002", "000003", "000004"]
    pictures = tmp_path / SYNTHETIC
    assert sorted(path.name for path in pictures.iterdir()) == sorted(
        f"{stem}{suffix}" for stem in stems for suffix in (".jpg", ".pts")
    )
    assert (pictures / "000000_1.jpg").read_bytes() == (pictures / "000000_2.jpg").read_bytes() == quick[0].jpeg
    for index, stem in enumerate(stems[:2]):
        np.testing.assert_allclose(
            parse_pts((pictures / f"{stem}.pts").read_bytes()), quick[0].shapes[index], atol=1e-3
        )
    scanned = list(open_annotated(str(tmp_path)).scan())
    assert all(isinstance(item, AnnotatedPhoto) for item in scanned)
    assert len(scanned) == 7


def test_what_is_drawn_is_found_again(quick: list[SyntheticPhoto], tmp_path: Path) -> None:
    made, _ = synthesise(str(tmp_path), 3, 0, 1)
    before = times(tmp_path)
    assert synthesise(str(tmp_path), 3, 0, 1) == (made, True)
    assert times(tmp_path) == before
    for photos, seed in ((4, 0), (3, 1)):
        with pytest.raises(UserError, match=f"holds 3 photos of seed 0, not {photos} of seed {seed}; give another"):
            synthesise(str(tmp_path), photos, seed, 1)


def test_a_killed_run_goes_on_and_mixes_with_no_other(tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    synthesise(str(whole), 2, 5, 1)
    # Two syncs a file: the claim, one picture, and the next is about to be written.
    assert killed_at_write(5, synthesise, str(killed), 2, 5, 1) == -9
    assert RECORD not in tree(killed)
    with pytest.raises(UserError, match="holds 2 photos of seed 5, not 2 of seed 6"):
        synthesise(str(killed), 2, 6, 1)
    synthesise(str(killed), 2, 5, 1)
    assert tree(killed) == tree(whole)


@pytest.mark.parametrize("text", ["", '{"photos": 1', "[1]", '{"seed": 5}'])
def test_what_is_damaged_is_said_with_what_to_do(quick: list[SyntheticPhoto], text: str, tmp_path: Path) -> None:
    synthesise(str(tmp_path), 1, 5, 1)
    whole = tree(tmp_path)
    (tmp_path / RECORD).write_text(text)
    with pytest.raises(UserError, match=rf"{RECORD} is damaged: delete it and run again"):
        synthesise(str(tmp_path), 1, 5, 1)
    (tmp_path / RECORD).unlink()
    synthesise(str(tmp_path), 1, 5, 1)
    assert tree(tmp_path) == whole
    (tmp_path / CLAIM).write_text(text)
    with pytest.raises(UserError, match=rf"{CLAIM} is damaged: give another folder, or delete that one"):
        synthesise(str(tmp_path), 1, 5, 1)


def test_the_archive_holds_pictures_and_what_is_none(quick: list[SyntheticPhoto], tmp_path: Path) -> None:
    assert not synthetic_archive(str(tmp_path), "in/photos.tar", 0, 2, 3)
    data = (tmp_path / "in" / "photos.tar").read_bytes()
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        members = {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]
    assert [members[f"album/{index:04d}.jpg"] for index in range(3)] == [photo.jpeg for photo in quick[2:5]]
    listing = list_inputs(str(tmp_path / "in" / "photos.tar"))
    inputs = list(listing)
    assert listing.ignored == 1
    reasons = {}
    for item, content in read_inputs(str(tmp_path / "in" / "photos.tar"), inputs):
        assert isinstance(content, bytes)
        reasons[item.uri] = ""
        try:
            decode(content)
        except Undecodable as error:
            reasons[item.uri] = error.reason
    assert reasons == {
        **{f"album/{index:04d}.jpg": "" for index in range(3)},
        "album/empty.jpg": "empty",
        "album/half.jpg": "truncated",
        "album/letter.jpg": "not_an_image",
    }
    assert synthetic_archive(str(tmp_path), "in/photos.tar", 0, 2, 3)
    shutil.rmtree(tmp_path / "in")
    synthetic_archive(str(tmp_path), "in/photos.tar", 0, 2, 3)
    assert (tmp_path / "in" / "photos.tar").read_bytes() == data
