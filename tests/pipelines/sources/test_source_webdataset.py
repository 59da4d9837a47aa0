import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from msrrn.geometry import Box
from pipelines.errors import UserError
from pipelines.sources import AnnotatedPhoto, Rejected, open_annotated
from pipelines.sources.annotation import BadAnnotation, points_of
from pipelines.sources.pts import format_pts
from pipelines.sources.three_hundred_w import ThreeHundredW
from pipelines.sources.webdataset import WebDataset
from tests.factories import calls_of, write_tar

SHAPE = np.random.default_rng(0).uniform(10, 200, (68, 2))
DIGEST = hashlib.sha256(b"a").hexdigest()


def _json(**fields: object) -> bytes:
    return json.dumps({"landmarks": SHAPE.tolist(), **fields}).encode()


def _rows(url: Path) -> dict[str, AnnotatedPhoto | Rejected]:
    rows = list(WebDataset(str(url)).scan())
    assert [row.uri for row in rows] == sorted({row.uri for row in rows})
    return {row.uri: row for row in rows}


def _reasons(url: Path) -> dict[str, str]:
    return {uri: row.reason if isinstance(row, Rejected) else "" for uri, row in _rows(url).items()}


def _face(url: Path, uri: str) -> AnnotatedPhoto:
    row = _rows(url)[uri]
    assert isinstance(row, AnnotatedPhoto), row
    return row


def test_samples_of_a_folder_of_tars(tmp_path: Path) -> None:
    folder = tmp_path / "faces"
    folder.mkdir()
    said = _json(split="val", subset="web", box=[1, 2, 3, 4.5], sha256=DIGEST)
    write_tar(folder / "shard-0.tar", {"00.jpg": b"a", "00.json": said})
    write_tar(folder / "shard-1.tar", {"00.png": b"b", "00.cls": b"3", "00.json": _json()})
    first, second = (_face(folder, f"shard-{number}.tar/00.{suffix}") for number, suffix in enumerate(("jpg", "png")))
    assert (first.declared_split, first.subset, first.box) == ("val", "web", Box(1, 2, 3, 4.5))
    assert (second.declared_split, second.subset, second.box) == (None, "faces", None)
    assert (first.read(), second.read()) == (b"a", b"b")
    assert (first.sha256, second.sha256) == (DIGEST, "")
    np.testing.assert_array_equal(first.shape, SHAPE)
    assert isinstance(open_annotated(str(folder)), WebDataset)


def test_a_subset_is_what_a_table_can_hold(tmp_path: Path) -> None:
    said = _json(subset="\ud800" + "s" * 100_000)
    write_tar(tmp_path / "in.tar", {"00.jpg": b"a", "00.json": said})
    assert _face(tmp_path / "in.tar", "00.jpg").subset == "\\ud800" + "s" * 249


@pytest.mark.parametrize("field", ["landmarks", "keypoints", "points"])
def test_points_are_pairs_or_flat_and_count_from_zero(field: str, tmp_path: Path) -> None:
    for name, value in (("pairs", SHAPE.tolist()), ("flat", SHAPE.ravel().tolist())):
        write_tar(tmp_path / f"{name}.tar", {"k.x.JPG": b"a", "k.JSON": json.dumps({field: value}).encode()})
        face = _face(tmp_path / f"{name}.tar", "k.x.JPG")
        np.testing.assert_array_equal(face.shape, SHAPE)
        assert face.subset == name


def test_a_pts_decides_where_the_points_are(tmp_path: Path) -> None:
    other = _json(landmarks=(SHAPE + 7).tolist(), split="test", box=[1, 2, 3, 4.5], sha256=DIGEST)
    write_tar(tmp_path / "in.tar", {"k.jpg": b"a", "k.pts": format_pts(SHAPE), "k.json": other})
    face = _face(tmp_path / "in.tar", "k.jpg")
    np.testing.assert_allclose(face.shape, SHAPE, atol=1e-6)
    assert (face.annotation_uri, face.declared_split) == ("k.pts", "test")
    assert (face.box, face.sha256) == (Box(1, 2, 3, 4.5), DIGEST)
    assert _reasons(tmp_path / "in.tar") == {"k.jpg": ""}
    assert open_annotated(str(tmp_path / "in.tar"), "webdataset") == WebDataset(str(tmp_path / "in.tar"))
    write_tar(tmp_path / "in.tar", {"a.jpg": b"a", "a.json": other, "k.jpg": b"a", "k.pts": format_pts(SHAPE)})
    assert isinstance(open_annotated(str(tmp_path / "in.tar")), ThreeHundredW)


def test_every_input_has_a_row(tmp_path: Path) -> None:
    bad = {
        "count": _json(landmarks=SHAPE[:5].tolist()),
        "flat": _json(landmarks=[[1, 1]] * 68),
        "not_finite": _json(landmarks=[[1e999, 1]] * 68),
        "syntax": b"{",
        "syntax_array": b"[1, 2]",
        "syntax_missing": b"{}",
        "syntax_text": _json(landmarks=[["1", "2"]] * 68),
        "syntax_split": _json(split="holdout"),
        "syntax_subset": _json(subset=3),
        "syntax_sha256": _json(sha256=3),
        "syntax_box": _json(box=[3, 2, 1, 4]),
        "syntax_deep": b"[" * 100_000,
    }
    members = {
        f"{key}.{suffix}": data for key, data in bad.items() for suffix, data in (("jpg", b""), ("json", data))
    }
    members |= {"good.jpg": b"", "good.json": _json(), "good.png": b"", "lonely.jpg": b"", "orphan.json": _json()}
    members |= {"../up.jpg": b"", "../up.json": _json()}
    write_tar(tmp_path / "in.tar", members)
    assert _reasons(tmp_path / "in.tar") == {
        **{f"{key}.jpg": key if key == "not_finite" else key.partition("_")[0] for key in bad},
        "good.jpg": "",
        "good.png": "second_image",
        "lonely.jpg": "no_annotation",
        "orphan.json": "no_image",
        "../up.jpg": "unsafe_member",
        "../up.json": "unsafe_member",
    }


@pytest.mark.parametrize("kind", ["pts", "json"])
def test_an_annotation_that_is_not_taken_is_told(kind: str, tmp_path: Path) -> None:
    points = {"pts": format_pts(SHAPE), "json": _json()}[kind]
    names = [f"k.{number}.{kind}" for number in range(3)]
    members = {"k.jpg": b"a", **dict.fromkeys(names, points), "k.meta.json": b'{"licence": "none"}'}
    write_tar(tmp_path / "in.tar", members)
    assert _face(tmp_path / "in.tar", "k.jpg").annotation_uri == names[0]
    assert _reasons(tmp_path / "in.tar") == {"k.jpg": "", names[1]: "face_twice", names[2]: "face_twice"}


def test_a_picture_with_many_faces(tmp_path: Path) -> None:
    faces = [{"landmarks": (SHAPE + n).tolist(), "box": [n, 2, 30, 40]} for n in range(3)]
    faces[1]["landmarks"] = [[0, 0]]
    crowd = json.dumps({"faces": faces, "split": "val", "sha256": DIGEST}).encode()
    write_tar(tmp_path / "in.tar", {"k.jpg": b"a", "k.json": crowd})
    first, bad, third = WebDataset(str(tmp_path / "in.tar")).scan()
    assert isinstance(bad, Rejected)
    assert (bad.uri, bad.reason, bad.message) == ("k.jpg", "count", "k.json#1: 1 points instead of 68")
    for number, row in ((0, first), (2, third)):
        assert isinstance(row, AnnotatedPhoto)
        np.testing.assert_array_equal(row.shape, SHAPE + number)
        assert (row.annotation_uri, row.declared_split, row.box) == (
            f"k.json#{number}",
            "val",
            Box(number, 2, 30, 40),
        )
        assert row.read() == b"a"
    assert isinstance(open_annotated(str(tmp_path / "in.tar")), WebDataset)
    write_tar(tmp_path / "other.tar", {"k.jpg": b"b", "k.json": crowd})
    changed = next(iter(WebDataset(str(tmp_path / "other.tar")).scan()))
    assert isinstance(changed, AnnotatedPhoto)
    assert changed.is_of(DIGEST)
    assert not changed.is_of(hashlib.sha256(changed.read()).hexdigest())


@pytest.mark.parametrize(
    ("faces", "reason"), [([], "no_annotation"), ({}, "syntax"), ([1], "syntax"), ("x", "syntax"), (None, "syntax")]
)
def test_odd_lists_of_faces(faces: object, reason: str, tmp_path: Path) -> None:
    write_tar(tmp_path / "in.tar", {"k.jpg": b"a", "k.json": json.dumps({"faces": faces}).encode()})
    assert _reasons(tmp_path / "in.tar") == {"k.jpg": reason}


def test_nothing_to_read_is_said(tmp_path: Path) -> None:
    write_tar(tmp_path / "in.tar", {"a.jpg": b"", "b.json": b"{}"})
    with pytest.raises(UserError, match="no picture with an annotation of its key"):
        WebDataset(str(tmp_path / "in.tar")).scan()
    with pytest.raises(UserError, match=r"1 \.jpg, 1 \.json"):
        open_annotated(str(tmp_path / "in.tar"))


@settings(max_examples=50)
@given(st.recursive(st.none() | st.booleans() | st.floats() | st.integers() | st.text(), st.lists, max_leaves=8))
def test_whatever_the_points_are(value: object) -> None:
    try:
        points = points_of(value)
    except BadAnnotation:
        return
    assert points.shape[1:] == (2,)


@pytest.mark.parametrize("broken", [b"{", b"{}", b"[]"])
def test_a_broken_first_sample_hides_nothing(broken: bytes, tmp_path: Path) -> None:
    write_tar(tmp_path / "in.tar", {"0.jpg": b"a", "0.json": broken, "1.jpg": b"b", "1.json": _json()})
    source = open_annotated(str(tmp_path / "in.tar"))
    assert isinstance(source, WebDataset)
    assert [type(row) for row in source.scan()] == [Rejected, AnnotatedPhoto]


def test_frames_that_share_a_key_cost_as_many_others(tmp_path: Path) -> None:
    def cost(frames: int) -> int:
        tar = tmp_path / f"{frames}.tar"
        names = [f"shot.{frame:04}.{suffix}" for frame in range(frames) for suffix in ("jpg", "json")]
        write_tar(tar, dict.fromkeys(names, _json()))
        return calls_of(lambda: _reasons(tar))

    assert cost(200) < 3 * cost(100)
