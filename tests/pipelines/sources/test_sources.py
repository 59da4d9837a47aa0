import os
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from msrrn.landmarks import inter_ocular, inter_pupil
from pipelines.checks import check_in_picture
from pipelines.decoding import decode
from pipelines.errors import UserError
from pipelines.sources import AnnotatedPhoto, Rejected, open_annotated
from pipelines.sources.annotation import BadAnnotation
from pipelines.sources.pts import format_pts, parse_pts
from pipelines.storage import Store
from tests.factories import refuse_entry
from tests.msrrn.test_landmarks import FACE

SHAPE = np.random.default_rng(0).uniform(10, 200, (68, 2)).round(3)
PTS = format_pts(SHAPE)


def _body(points: NDArray[np.float64]) -> str:
    return "".join(f"{x} {y}\n" for x, y in points)


def _fill(url: str, *keys: str) -> None:
    for key in keys:
        Store(url).publish(key, PTS if key.lower().endswith(".pts") else f"bytes of {key}".encode())


def _scan(url: str) -> list[AnnotatedPhoto | Rejected]:
    return list(open_annotated(url).scan())


def _photos(url: str) -> dict[str, AnnotatedPhoto]:
    return {row.uri: row for row in _scan(url) if isinstance(row, AnnotatedPhoto)}


def _reason(data: bytes) -> str:
    with pytest.raises(BadAnnotation) as caught:
        parse_pts(data)
    assert caught.value.message
    return caught.value.reason


@given(hnp.arrays(np.float64, (68, 2), elements=st.floats(-0.1, 0.1)), st.floats(0.01, 1e4), st.floats(-1e5, 1e5))
def test_what_is_written_reads_back(bent: NDArray[np.float64], size: float, place: float) -> None:
    shape = size * (FACE + bent) + place
    assume(min(inter_pupil(shape), inter_ocular(shape)) >= 1e-3 * np.ptp(shape, axis=0).max())
    np.testing.assert_allclose(parse_pts(format_pts(shape)), shape, rtol=0, atol=1e-6)


@given(st.binary(max_size=300) | st.text("0123456789.-einaf{}: \r\n", max_size=300).map(str.encode))
def test_nothing_but_a_bad_annotation_is_raised(data: bytes) -> None:
    with pytest.raises(BadAnnotation):
        parse_pts(data)


def test_files_count_from_one() -> None:
    assert parse_pts(PTS)[0] == pytest.approx(SHAPE[0])
    first = PTS.decode().splitlines()[3]
    assert [float(word) for word in first.split()] == pytest.approx(SHAPE[0] + 1)


@pytest.mark.parametrize(
    "text",
    [
        _body(SHAPE + 1),
        PTS.decode().replace("\n", "\r\n"),
        "version:1\nn_points:  68\n{\n" + _body(SHAPE + 1) + "}",
        "\ufeffversion: 1\nn_points: 68 \n\n{ \n" + _body(SHAPE + 1).replace(" ", " \t ") + "} \n\n",
        _body(SHAPE + 1).replace("\n", "  \n"),
    ],
    ids=["no header", "windows", "tight", "spaced", "trailing spaces"],
)
def test_dialects(text: str) -> None:
    np.testing.assert_allclose(parse_pts(text.encode()), SHAPE, atol=1e-9)


def test_bad_annotations_have_reasons() -> None:
    lines = PTS.decode().splitlines()
    assert _reason("\n".join(lines[:-2]).encode()) == "count"
    assert _reason("\n".join([*lines[:-1], "1 2", "}"]).encode()) == "count"
    assert _reason(PTS.replace(b"n_points: 68", b"n_points: 29")) == "count"
    assert _reason(b"") == "count"
    for value in ("nan", "inf", "-INF", "1e999"):
        assert _reason("\n".join([*lines[:20], f"{value} 3", *lines[21:]]).encode()) == "not_finite"
    for line in ("12.5", "1 2 3", "1,5 2,5", "x y", "points: 3", "n_points: " + "6" * 5000, "1_0_0 2"):
        assert _reason("\n".join([*lines[:20], line, *lines[21:]]).encode()) == "syntax"
    assert _reason(b"\xff\xd8\xff\xe0" * 20) == "syntax"
    assert _reason(b"1 1\n" * 2_000_000) == "syntax"
    assert _reason(b"-1 -1\n" * 68) == "flat"


def test_the_message_names_the_line() -> None:
    with pytest.raises(BadAnnotation, match=r"line 5 .*'oops'"):
        parse_pts(PTS.replace(PTS.splitlines()[4], b"oops", 1))


@pytest.mark.parametrize("place", ["local", "s3"])
def test_pairs_and_orphans(place: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    url = str(tmp_path / "faces") if place == "local" else f"{request.getfixturevalue('s3')}/faces"
    _fill(url, "b/image_092 _01.jpg", "b/image_092 _01.pts", "a/X.JPG", "a/X.PTS", "c/d/e.tiff", "c/d/e.pts")
    _fill(url, "a/lonely.png", "b/orphan.pts", "b/notes.txt", "c/._e.tiff", ".hidden/y.jpg", ".hidden/y.pts")
    rows = _scan(url)
    uris = ["a/X.JPG", "a/lonely.png", "b/image_092 _01.jpg", "b/orphan.pts", "c/d/e.tiff"]
    assert [row.uri for row in rows] == uris
    assert {row.uri: row.reason for row in rows if isinstance(row, Rejected)} == {
        "a/lonely.png": "no_annotation",
        "b/orphan.pts": "no_image",
    }
    photo = _photos(url)["b/image_092 _01.jpg"]
    assert photo.annotation_uri == "b/image_092 _01.pts"
    assert photo.shape.shape == (68, 2)
    assert photo.shape.dtype == np.float64
    copy = pickle.loads(pickle.dumps(photo))  # noqa: S301
    assert copy.read() == photo.read() == b"bytes of b/image_092 _01.jpg"


@pytest.mark.parametrize("suffix", [".jfif", ".jpe", ".HIF", ".pgm", ".pnm"])
def test_a_picture_of_a_rare_suffix_is_one(tmp_path: Path, suffix: str) -> None:
    """As Chrome saves a JPEG on Windows, a camera a HEIC, and old data sets come in grey."""
    _fill(str(tmp_path), f"a{suffix}", "a.pts", f"b{suffix}")
    assert [(row.uri, isinstance(row, AnnotatedPhoto)) for row in _scan(str(tmp_path))] == [
        (f"a{suffix}", True),
        (f"b{suffix}", False),
    ]


def test_a_bad_annotation_stops_nothing(tmp_path: Path) -> None:
    _fill(str(tmp_path), "a.jpg", "a.pts", "b.jpg", "c.jpg", "c.pts")
    Store(str(tmp_path)).publish("b.pts", b"1 2\n")
    good, bad, last = _scan(str(tmp_path))
    assert isinstance(good, AnnotatedPhoto)
    assert isinstance(last, AnnotatedPhoto)
    assert isinstance(bad, Rejected)
    assert (bad.uri, bad.reason) == ("b.jpg", "count")
    assert bad.message.startswith("b.pts: 1 points")


def test_one_annotation_serves_one_picture(tmp_path: Path) -> None:
    _fill(str(tmp_path), "a.jpg", "a.png", "a.pts")
    first, second = _scan(str(tmp_path))
    assert isinstance(first, AnnotatedPhoto)
    assert isinstance(second, Rejected)
    assert (first.uri, second.uri, second.reason) == ("a.jpg", "a.png", "second_image")


def test_a_second_annotation_of_one_name_is_told(tmp_path: Path) -> None:
    names = ("a.PTS", "a.Pts", "a.jpg", "a.pts", "b.PTS", "b.pts")
    with zipfile.ZipFile(tmp_path / "z.zip", "w") as archive:  # on some disks these were one file
        for name in names:
            archive.writestr(name, PTS)
    rows = _scan(str(tmp_path / "z.zip"))
    assert [(row.uri, row.reason if isinstance(row, Rejected) else row.annotation_uri) for row in rows] == [
        *[("a.Pts", "face_twice"), ("a.jpg", "a.PTS"), ("a.pts", "face_twice")],
        *[("b.PTS", "no_image"), ("b.pts", "face_twice")],
    ]
    assert isinstance(rows[0], Rejected)
    assert rows[0].message == "a.PTS was taken for the annotation of this name"


def test_faces_of_one_picture_are_numbered(tmp_path: Path) -> None:
    """As an export of an annotation run has them."""
    _fill(
        str(tmp_path), "b/x.jpg", "b/x.jpg.10.pts", "b/x.jpg.2.pts", "y.png", "y.pts", "y.png.0.pts", "gone.jpg.0.pts"
    )
    _fill(str(tmp_path), "z.jpg", "z.jpg.1.jpg", "z.jpg.1.pts")
    rows = [
        (row.uri, row.annotation_uri if isinstance(row, AnnotatedPhoto) else row.reason)
        for row in _scan(str(tmp_path))
    ]
    assert rows == [
        *[("b/x.jpg", "b/x.jpg.2.pts"), ("b/x.jpg", "b/x.jpg.10.pts"), ("gone.jpg.0.pts", "no_image")],
        *[("y.png", "y.pts"), ("y.png", "y.png.0.pts"), ("z.jpg", "no_annotation"), ("z.jpg.1.jpg", "z.jpg.1.pts")],
    ]


def test_a_numbered_face_is_not_taken_for_the_annotation_of_a_picture_that_has_its_own(tmp_path: Path) -> None:
    _fill(str(tmp_path), "a.jpg", "a.jpg.0.jpg", "a.jpg.0.pts", "a.jpg.0.jpg.0.pts")
    pairs = [(row.uri, row.annotation_uri) for row in _scan(str(tmp_path)) if isinstance(row, AnnotatedPhoto)]
    assert pairs == [("a.jpg", "a.jpg.0.pts"), ("a.jpg.0.jpg", "a.jpg.0.jpg.0.pts")]


def test_a_numbered_face_is_one_of_a_file_of_any_name(tmp_path: Path) -> None:
    """As annotation takes them: a file without a suffix, of a rare one, with a blank or a dot behind it."""
    names = ["b.mpo", "c.jpg ", "d.jpg.", "scan", "scan.jpg"]
    _fill(str(tmp_path), *names, *(f"{name}.1.pts" for name in names), "scan.pts", "gone.0.pts", "x.pts.0.pts")
    rows = _scan(str(tmp_path))
    pairs = [(row.uri, row.annotation_uri) for row in rows if isinstance(row, AnnotatedPhoto)]
    assert sorted(pairs) == sorted([*((name, f"{name}.1.pts") for name in names), ("scan.jpg", "scan.pts")])
    assert [row.uri for row in rows if isinstance(row, Rejected)] == ["gone.0.pts", "x.pts.0.pts"]


def test_a_number_that_is_too_long_is_no_face(tmp_path: Path) -> None:
    """A name in an archive may be longer than one on disk, and than what Python reads as a number."""
    names = ("a.jpg", "a.jpg.2.pts", f"a.jpg.{'1' * 5000}.pts")
    with zipfile.ZipFile(tmp_path / "z.zip", "w") as archive:
        for name in names:
            archive.writestr(name, PTS)
    face, orphan = _scan(str(tmp_path / "z.zip"))
    assert isinstance(face, AnnotatedPhoto)
    assert isinstance(orphan, Rejected)
    assert (face.annotation_uri, orphan.uri[:20], orphan.uri[-8:]) == (names[1], names[2][:20], "1111.pts")
    assert orphan.reason == "unreadable"


def test_a_face_without_the_first_is_not_taken_for_another_pictures(tmp_path: Path) -> None:
    _fill(str(tmp_path), "a.jpg", "a.jpg.0.jpg", "a.jpg.0.pts", "a.jpg.0.jpg.1.pts")
    pairs = [(row.uri, row.annotation_uri) for row in _scan(str(tmp_path)) if isinstance(row, AnnotatedPhoto)]
    assert pairs == [("a.jpg", "a.jpg.0.pts"), ("a.jpg.0.jpg", "a.jpg.0.jpg.1.pts")]


def test_subsets_and_splits_of_the_official_layout(tmp_path: Path) -> None:
    url = str(tmp_path / "300w")
    for stem in ("lfpw/trainset/a", "lfpw/testset/a", "helen/trainset/a", "afw/a", "ibug/a", "Own/a", "a"):
        _fill(url, f"{stem}.jpg", f"{stem}.pts")
    assert {uri: (photo.subset, photo.declared_split) for uri, photo in _photos(url).items()} == {
        "lfpw/trainset/a.jpg": ("lfpw", "train"),
        "lfpw/testset/a.jpg": ("lfpw", "test"),
        "helen/trainset/a.jpg": ("helen", "train"),
        "afw/a.jpg": ("afw", None),
        "ibug/a.jpg": ("ibug", "test"),
        "Own/a.jpg": ("Own", None),
        "a.jpg": ("300w", None),
    }


def test_a_subset_is_a_text_whatever_its_root_is_called(tmp_path: Path) -> None:
    url = str(tmp_path / os.fsdecode(b"caf\xe9"))
    _fill(url, "a.jpg", "a.pts")
    assert _photos(url)["a.jpg"].subset == "caf\\xe9"


def test_a_subset_may_be_the_root_itself(tmp_path: Path) -> None:
    url = str(tmp_path / "300w" / "LFPW")
    _fill(url, "trainset/a.jpg", "trainset/a.pts")
    assert _photos(url)["trainset/a.jpg"].subset == "lfpw"
    assert _photos(f"{url}/trainset/")["a.jpg"].subset == "lfpw"


def test_a_validation_list_decides_what_is_not_for_testing(tmp_path: Path) -> None:
    url = str(tmp_path)
    for stem in ("lfpw/trainset/a b", "lfpw/trainset/c", "lfpw/testset/d", "afw/e"):
        _fill(url, f"{stem}.jpg", f"{stem}.pts")
    Store(url).publish("val.txt", b"lfpw/trainset/a b\r\n\r\n")
    splits = {uri: photo.declared_split for uri, photo in _photos(url).items()}
    assert splits == {
        "afw/e.jpg": "train",
        "lfpw/testset/d.jpg": "test",
        "lfpw/trainset/a b.jpg": "val",
        "lfpw/trainset/c.jpg": "train",
    }


@pytest.mark.parametrize("beside", [(), ("README.md", "LICENSE")])
def test_the_list_may_lie_in_the_one_folder_of_the_root(tmp_path: Path, beside: tuple[str, ...]) -> None:
    """Files beside that folder do not make two of it: without its list, photos to validate with were trained on."""
    url = str(tmp_path)
    _fill(url, "300w/a.jpg", "300w/a.pts", "300w/b.jpg", "300w/b.pts", *beside)
    Store(url).publish("300w/val.txt", b"b\n")
    splits = {uri: photo.declared_split for uri, photo in _photos(url).items()}
    assert splits == {"300w/a.jpg": "train", "300w/b.jpg": "val"}


def test_each_folder_of_the_root_may_have_a_list(tmp_path: Path) -> None:
    """One beside another folder counted for nothing, and photos to validate with were trained on."""
    url = str(tmp_path)
    for stem in ("300w/helen/trainset/a", "300w/b", "mine/c", "mine/d", "yolo/e"):
        _fill(url, f"{stem}.jpg", f"{stem}.pts")
    Store(url).publish("300w/val.txt", b"helen/trainset/a\n")
    Store(url).publish("mine/val.txt", b"d\n")
    Store(url).publish("yolo/val.txt", b"/home/of/another/list.jpg\n")
    assert {uri: photo.declared_split for uri, photo in _photos(url).items()} == {
        "300w/b.jpg": "train",
        "300w/helen/trainset/a.jpg": "val",
        "mine/c.jpg": "train",
        "mine/d.jpg": "val",
        "yolo/e.jpg": None,
    }
    Store(url).publish("mine/val.txt", b"d\nnone\n")
    with pytest.raises(UserError, match=r"mine/val\.txt lists 1 pictures that do not exist, first 'mine/none'"):
        _scan(url)


def test_a_folder_that_may_be_listed_and_not_entered_is_not_asked_for_a_list(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _fill(str(tmp_path), "a/1.jpg", "a/1.pts", "listed/2.jpg", "listed/2.pts")
    refuse_entry(monkeypatch, "listed")
    rows = {row.uri: getattr(row, "reason", "read") for row in _scan(str(tmp_path))}
    assert rows == {"a/1.jpg": "read", "listed/2.jpg": "forbidden", "listed/2.pts": "forbidden"}


def test_a_wrong_validation_list_is_refused(tmp_path: Path) -> None:
    _fill(str(tmp_path), "a.jpg", "a.pts", "ibug/b.jpg", "ibug/b.pts")
    Store(str(tmp_path)).publish("val.txt", b"a\nnone\n")
    with pytest.raises(UserError, match=r"val\.txt lists 1 pictures that do not exist, first 'none'"):
        _scan(str(tmp_path))
    Store(str(tmp_path)).publish("val.txt", b"ibug/b\n")
    with pytest.raises(UserError, match="a test picture"):
        _scan(str(tmp_path))
    Store(str(tmp_path)).publish("val.txt", "a\n".encode("utf-16"))
    with pytest.raises(UserError, match=r"val\.txt is no text in UTF-8: save it as that"):
        _scan(str(tmp_path))


def test_nothing_to_read_is_said_at_once(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"absent does not exist: give a folder"):
        open_annotated(str(tmp_path / "absent")).scan()
    with pytest.raises(UserError, match="holds no files: put annotated photos there, or leave it out"):
        open_annotated(str(tmp_path)).scan()
    with pytest.raises(UserError, match="has no pictures: a source is a folder or an archive"):
        open_annotated(str(tmp_path), "300w").scan()
    _fill(str(tmp_path), "a.jpg")
    with pytest.raises(UserError, match=r"1 pictures but no \.pts"):
        open_annotated(str(tmp_path), "300w").scan()


@pytest.mark.parametrize("place", ["local", "s3"])
def test_one_annotation_is_no_source(place: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    url = str(tmp_path / "faces") if place == "local" else f"{request.getfixturevalue('s3')}/faces"
    _fill(url, "a.jpg", "a.pts", "b.jpg.0.pts")
    for name in ("a.pts", "b.jpg.0.pts"):
        with pytest.raises(UserError, match=rf"faces/{name} is one file: give its folder; a source is a folder or"):
            _scan(f"{url}/{name}")


def test_the_real_faces(data_root: Path) -> None:
    rows = _scan(str(data_root / "300w"))
    photos = [row for row in rows if isinstance(row, AnnotatedPhoto)]
    assert len(rows) == len(photos) == 2012
    assert [row.uri for row in rows] == sorted(row.uri for row in rows)
    counts = {subset: sum(photo.subset == subset for photo in photos) for subset in ("lfpw", "helen", "afw")}
    assert counts == {"lfpw": 805, "helen": 870, "afw": 337}
    assert sum(photo.declared_split == "val" for photo in photos) == 200
    assert sum(photo.declared_split == "train" for photo in photos) == 1812
    for photo in photos[::40]:
        height, width = decode(photo.read()).rgb.shape[:2]
        assert check_in_picture(photo.shape, width, height) is None


@pytest.mark.parametrize(("folder", "split"), [("testset", "test"), ("trainset", "train"), ("faces", None)])
def test_the_split_is_read_from_the_roots_own_path_too(tmp_path: Path, folder: str, split: str | None) -> None:
    url = str(tmp_path / "helen" / folder)
    _fill(url, "a.jpg", "a.pts")
    photo = _photos(url)["a.jpg"]
    assert (photo.subset, photo.declared_split) == ("helen", split)


def test_eyes_that_coincide_are_refused() -> None:
    shape = np.stack([np.arange(68.0), np.arange(68.0) ** 1.5], axis=1)
    shape[36:48] = shape[36]
    assert _reason(format_pts(shape)) == "flat"
