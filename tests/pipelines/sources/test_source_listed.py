"""What all list formats have in common, and that they and `.pts` mean the same pixels."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal
from unicodedata import normalize

import numpy as np
import pytest

from msrrn.geometry import Box
from msrrn.synthetic import SyntheticPhoto
from pipelines.errors import UserError
from pipelines.sources import AnnotatedPhoto, AnnotatedSource, Rejected, open_annotated
from pipelines.sources.coco import Coco
from pipelines.sources.csv_points import CsvPoints
from pipelines.sources.imglab import Imglab
from pipelines.sources.listed import near
from pipelines.sources.pts import format_pts
from tests.pipelines.listings import (
    PLACES,
    Face,
    a_face,
    coco,
    faces_of,
    imglab,
    put,
    reasons_of,
    rows_of,
    table,
    write,
)

Format = tuple[str, Callable[[str], AnnotatedSource], Callable[[Sequence[Face]], bytes]]
FORMATS: list[Format] = [("xml", Imglab, imglab), ("json", Coco, coco), ("csv", CsvPoints, table)]
each_format = pytest.mark.parametrize(
    ("suffix", "source", "encode"), FORMATS, ids=[format_[0] for format_ in FORMATS]
)
Reader = Callable[[str], AnnotatedSource]
Writer = Callable[[Sequence[Face]], bytes]


@each_format
@pytest.mark.parametrize("place", PLACES)
def test_the_same_faces_as_in_pts(
    place: str,
    suffix: str,
    source: Reader,
    encode: Writer,
    photos: tuple[list[SyntheticPhoto], list[SyntheticPhoto]],
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    single, double = photos
    pictures = {f"a/{n} _x.jpg": photo for n, photo in enumerate([*double, *single[:3]])}
    faces = [(name, shape) for name, photo in pictures.items() for shape in photo.shapes]
    files = {name: photo.jpeg for name, photo in pictures.items()}
    url = put(place, {**files, f"faces.{suffix}": encode(faces)}, tmp_path, request)
    found = faces_of(source(url))
    assert isinstance(open_annotated(url), source)  # type: ignore[arg-type]
    stems = {f"{name[:-4]}_{n}": (data, photo) for name, photo in pictures.items() for n, data in _pts(photo)}
    write(tmp_path / "pts", {f"{stem}.pts": data for stem, (data, _) in stems.items()})
    write(tmp_path / "pts", {f"{stem}.jpg": photo.jpeg for stem, (_, photo) in stems.items()})
    expected = faces_of(open_annotated(str(tmp_path / "pts")))
    assert len(found) == len(expected) == len(faces)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one.shape, other.shape, rtol=0, atol=1e-3)
        assert one.uri[:-4] == other.uri.rpartition("_")[0]
        assert one.shape.dtype == np.float64
        assert one.box == Box(2.5, 4.5, 12.5, 24.5)
        assert one.read() == pictures[one.uri].jpeg
        assert (one.subset, one.root) == ("faces", url)


def _pts(photo: SyntheticPhoto) -> list[tuple[int, bytes]]:
    return [(n, format_pts(shape)) for n, shape in enumerate(photo.shapes)]


@each_format
@pytest.mark.parametrize("place", ["folder", "s3"])
def test_the_file_itself_may_be_named(
    place: str, suffix: str, source: Reader, encode: Writer, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    files = {"in/a.jpg": b"a", "in/other.jpg": b"", f"in/list.{suffix}": encode([("a.jpg", a_face())])}
    url = put(place, files, tmp_path, request)
    (face,) = faces_of(source(f"{url}/in/list.{suffix}"))
    assert (face.root, face.uri, face.annotation_uri.partition("#")[0]) == (f"{url}/in", "a.jpg", f"list.{suffix}")
    assert face.read() == b"a"
    assert isinstance(open_annotated(f"{url}/in/list.{suffix}"), source)  # type: ignore[arg-type]


@each_format
def test_every_input_is_a_row(suffix: str, source: Reader, encode: Writer, tmp_path: Path) -> None:
    flat = a_face() * [1, 0]
    missing = a_face()
    missing[3] = np.nan
    faces = [("a.jpg", a_face()), ("b.jpg", a_face(1)), ("b.jpg", flat), ("gone.jpg", a_face()), ("c.jpg", missing)]
    files = dict.fromkeys(("a.jpg", "b.jpg", "c.jpg", "unlisted.PNG", "notes.txt"), b"")
    url = write(tmp_path / "faces", {**files, f"list.{suffix}": encode(faces)})
    found = reasons_of(source(url))
    number = next(uri.partition("#")[2] for uri in found if "#" in uri)
    assert found == {
        "a.jpg": "",
        "b.jpg": "",
        f"b.jpg#{number}": "flat",
        "c.jpg": "not_finite",
        "gone.jpg": "no_image",
        "unlisted.PNG": "no_annotation",
    }
    (gone,) = [row for row in rows_of(source(url)) if row.uri == "gone.jpg"]
    assert isinstance(gone, Rejected)
    assert gone.message.startswith(f"list.{suffix}#")
    assert "'gone.jpg' is not there" in gone.message


@each_format
@pytest.mark.parametrize("address", ["https://user:secret@host/b.jpg", "https://host/b.jpg?sig=secret"])
def test_what_an_address_is_signed_with_is_not_told(
    address: str, suffix: str, source: Reader, encode: Writer, tmp_path: Path
) -> None:
    faces = [("a.jpg", a_face()), (address, a_face())]
    url = write(tmp_path / "faces", {"a.jpg": b"", f"list.{suffix}": encode(faces)})
    (gone,) = [row for row in rows_of(source(url)) if isinstance(row, Rejected)]
    assert gone.reason == "no_image"
    assert "secret" not in f"{gone.uri} {gone.message}"


@each_format
@pytest.mark.parametrize("name", ["x\\a.jpg", "C:a.jpg", "\\.jpg"])
def test_a_name_may_look_like_a_path_of_windows(
    name: str, suffix: str, source: Reader, encode: Writer, tmp_path: Path
) -> None:
    url = write(tmp_path, {name: b"odd", "x/a.jpg": b"a", f"list.{suffix}": encode([(name, a_face())])})
    (found,) = (row for row in rows_of(source(url)) if isinstance(row, AnnotatedPhoto))
    assert (found.uri, found.read()) == (name, b"odd")
    if name.startswith("x"):
        (Path(url) / name).unlink()
        (found,) = (row for row in rows_of(source(url)) if isinstance(row, AnnotatedPhoto))
        assert (found.uri, found.read()) == ("x/a.jpg", b"a")


@each_format
@pytest.mark.parametrize(
    "name",
    ["../a.jpg", "x/../../a.jpg", "/etc/passwd", "C:/a.jpg", "..\\a.jpg", "\\\\host\\a.jpg", ".", "a\u0085.jpg"],
)
def test_pictures_cannot_lie_outside(name: str, suffix: str, source: Reader, encode: Writer, tmp_path: Path) -> None:
    url = write(tmp_path, {"a.jpg": b"a", "in/b.jpg": b"b", f"in/list.{suffix}": encode([(name, a_face())])})
    reasons = reasons_of(source(f"{url}/in"))
    assert reasons.pop("b.jpg") == "no_annotation"
    assert list(reasons.values()) == ["unsafe_path"]


@each_format
def test_names_of_any_kind_are_looked_up(suffix: str, source: Reader, encode: Writer, tmp_path: Path) -> None:
    write(
        tmp_path, {"sub/é ü.jpg": b"1", f"list.{suffix}": encode([("sub\\é ü.jpg", a_face()), ("a" * 300, a_face())])}
    )
    reasons = reasons_of(source(str(tmp_path / f"list.{suffix}")))
    assert reasons == {"sub/é ü.jpg": "", "a" * 300: "no_image"}


@each_format
@pytest.mark.parametrize(("there", "named"), [("NFC", "NFD"), ("NFD", "NFC")])
def test_a_letter_and_its_accent_may_be_one_or_two(
    there: Literal["NFC", "NFD"],
    named: Literal["NFC", "NFD"],
    suffix: str,
    source: Reader,
    encode: Writer,
    tmp_path: Path,
) -> None:
    """As macOS stores names, and as its archives bring them to others."""
    picture = normalize(there, "Zoë/é ü.jpg")
    url = write(tmp_path, {picture: b"1", f"list.{suffix}": encode([(normalize(named, picture), a_face())])})
    assert reasons_of(source(url)) == {picture: ""}


@each_format
@pytest.mark.parametrize(
    ("name", "picture", "split", "subset"),
    [
        ("faces", "a.jpg", None, "data"),
        ("labels_ibug_300W_train", "x/a.jpg", "train", "data"),
        ("person_keypoints_val2017", "a.jpg", "val", "data"),
        ("test_frames_keypoints", "a.jpg", "test", "data"),
        ("trainval", "a.jpg", None, "data"),
        ("train_and_test", "a.jpg", None, "data"),
        ("latest", "a.jpg", None, "data"),
        ("faces", "helen/trainset/a.jpg", "train", "helen"),
        ("faces", "LFPW/testset/a.jpg", "test", "lfpw"),
        ("faces", "ibug/a.jpg", "test", "ibug"),
    ],
)
def test_splits_and_subsets(
    name: str, picture: str, split: str, subset: str, suffix: str, source: Reader, encode: Writer, tmp_path: Path
) -> None:
    url = write(tmp_path / "data", {picture: b"", f"{name}.{suffix}": encode([(picture, a_face())])})
    (face,) = faces_of(source(url))
    assert (face.declared_split, face.subset) == (split, subset)


@each_format
def test_files_of_another_kind_are_passed_over(suffix: str, source: Reader, encode: Writer, tmp_path: Path) -> None:
    other = {"xml": b"<annotation/>", "json": b"[1]", "csv": b"a,b\n1,2\n"}[suffix]
    lists = {f"{n}.{suffix}": encode([(f"{n}.jpg", a_face(n))]) for n in (1, 2)}
    url = write(tmp_path, {"1.jpg": b"", "2.jpg": b"", f"0.{suffix}": other, **lists})
    assert [face.annotation_uri.partition("#")[0] for face in faces_of(source(url))] == [*lists]
    with pytest.raises(UserError, match=rf"0\.{suffix}"):
        source(f"{url}/0.{suffix}").scan()


@each_format
def test_nothing_to_read_is_said_at_once(suffix: str, source: Reader, encode: Writer, tmp_path: Path) -> None:
    url = write(tmp_path, {"a.jpg": b""})
    with pytest.raises(UserError, match=rf"has no \.{suffix}"):
        source(url).scan()
    with pytest.raises(UserError, match="does not exist"):
        source(f"{url}/absent").scan()
    write(tmp_path, {f"list.{suffix}": encode([])})
    with pytest.raises(UserError, match="lists no face"):
        source(url).scan()
    for junk in (b"", b"\0\1\2\xff" * 50, b"<", b"{", b"\xff\xfe"):
        write(tmp_path, {f"list.{suffix}": junk})
        with pytest.raises(UserError, match=rf"list\.{suffix}"):
            source(url).scan()


def test_usual_places_of_pictures() -> None:
    assert near("keypoints.csv") == ["", "images", "data", "keypoints", "images/keypoints"]
    assert "training" in near("training_frames_keypoints.csv")
    assert {"annotations", "val2017", "images", "images/val2017"} <= {
        *near("annotations/person_keypoints_val2017.json")
    }


def test_rows_travel(tmp_path: Path) -> None:
    import pickle

    write(tmp_path, {"a.jpg": b"a", "list.csv": table([("a.jpg", a_face())])})
    (face,) = faces_of(CsvPoints(str(tmp_path)))
    copy = pickle.loads(pickle.dumps(face))  # noqa: S301
    assert isinstance(copy, AnnotatedPhoto)
    assert copy.read() == b"a"
