"""The same faces in every format, from every place, have the same shapes."""

import io
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from xml.sax.saxutils import quoteattr

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from msrrn.landmarks import inter_ocular, inter_pupil
from pipelines.annotation.tables import FACES
from pipelines.errors import UserError
from pipelines.outages import MissingError, OutageError
from pipelines.settings import SourceFormat
from pipelines.sources import FORMATS, AnnotatedPhoto, Rejected, open_annotated, reader
from pipelines.sources.files import Files, open_files
from pipelines.sources.pts import format_pts
from tests.pipelines.containers import publish, put

Shapes = Mapping[str, NDArray[np.float64]]

RNG = np.random.default_rng(0)
SHAPES: Shapes = {name: RNG.uniform(10, 200, (68, 2)).round(3) for name in ("a.jpg", "sub/b c.PNG", "sub/ü.jpg")}
SHAPES["a.jpg"][0] = 10, 20
"""In every format but `.pts` it reads 10 20; there, where the first pixel is 1 1, it reads 11 21."""


def _pts(shapes: Shapes) -> dict[str, bytes]:
    return {f"{name[:-4]}.pts": format_pts(shape) for name, shape in shapes.items()}


def _imglab(shapes: Shapes) -> dict[str, bytes]:
    images = ""
    for name, shape in shapes.items():
        parts = "".join(f"<part name='{part:02}' x='{x!r}' y='{y!r}'/>" for part, (x, y) in enumerate(shape.tolist()))
        box = "<box top='5' left='5' width='200' height='200'>"
        images += f"<image file={quoteattr(name)}>{box}{parts}</box></image>"
    return {"faces.xml": f"<?xml version='1.0'?><dataset><images>{images}</images></dataset>".encode()}


def _coco(shapes: Shapes) -> dict[str, bytes]:
    visible = {name: np.hstack([shape, np.full((68, 1), 2)]).ravel().tolist() for name, shape in shapes.items()}
    images = [{"id": number, "file_name": name} for number, name in enumerate(shapes)]
    annotations = [{"id": id_, "image_id": id_, "keypoints": visible[name]} for id_, name in enumerate(shapes)]
    return {"coco.json": json.dumps({"images": images, "annotations": annotations}).encode()}


def _cvat(shapes: Shapes) -> dict[str, bytes]:
    images = ""
    for number, (name, shape) in enumerate(shapes.items()):
        points = ";".join(f"{x!r},{y!r}" for x, y in (shape + 0.5).tolist())
        face = f'<points label="face" occluded="0" points="{points}" z_order="0"/>'
        images += f'<image id="{number}" name={quoteattr(name)} width="300" height="300">{face}</image>'
    return {"annotations.xml": f"<?xml version='1.0'?>\n<annotations>{images}</annotations>".encode()}


def _csv(shapes: Shapes) -> dict[str, bytes]:
    lines = [",".join(["image", *(f"{axis}{point}" for point in range(68) for axis in "xy")])]
    lines += [",".join([name, *map(repr, shape.ravel().tolist())]) for name, shape in shapes.items()]
    return {"points.csv": "\n".join(lines).encode()}


def _webdataset(shapes: Shapes) -> dict[str, bytes]:
    return {f"{name[:-4]}.json": json.dumps({"points": shape.tolist()}).encode() for name, shape in shapes.items()}


def _parquet(shapes: Shapes) -> dict[str, bytes]:
    rows = [
        {"uri": name, "face_index": 0, "landmarks": shape.ravel().tolist(), "box": [0.0, 0.0, 9.0, 9.0]}
        for name, shape in shapes.items()
    ]
    schema = pa.schema([FACES.field(name) for name in rows[0]], metadata=FACES.metadata)
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), sink)
    return {"faces.parquet": sink.getvalue()}


WRITERS: dict[str, Callable[[Shapes], dict[str, bytes]]] = {
    "300w": _pts,
    "imglab": _imglab,
    "coco": _coco,
    "cvat": _cvat,
    "csv": _csv,
    "webdataset": _webdataset,
    "parquet": _parquet,
}


def _pictures(shapes: Shapes) -> dict[str, bytes]:
    return {name: name.encode() for name in shapes}


@pytest.mark.parametrize("store", ["local", "s3"])
@pytest.mark.parametrize("place", ["in", "in.zip", "in.tar", "in.tar.gz"])
@pytest.mark.parametrize("name", WRITERS)
def test_the_same_faces(
    name: SourceFormat, place: str, store: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    place_url = request.getfixturevalue("s3") if store == "s3" else str(tmp_path / "store")
    url = put(f"{place_url}/{place}", _pictures(SHAPES) | WRITERS[name](SHAPES))
    source = open_annotated(url)
    assert f"{type(source).__module__}:{type(source).__name__}" == FORMATS[name]
    rows = list(source.scan())
    assert [row.uri for row in rows] == sorted(SHAPES)
    for row in rows:
        assert isinstance(row, AnnotatedPhoto), row
        np.testing.assert_allclose(row.shape, SHAPES[row.uri], rtol=0, atol=1e-3)
        assert row.shape.dtype == np.float64
        assert row.read() == row.uri.encode()
    assert [row.uri for row in open_annotated(url, name).scan()] == sorted(SHAPES)


@pytest.mark.parametrize("name", ["imglab", "coco", "cvat", "csv", "parquet"])
def test_the_annotation_file_itself_is_a_source(name: str, tmp_path: Path) -> None:
    url = put(f"{tmp_path}/in", _pictures(SHAPES) | {"other.jpg": b""} | WRITERS[name](SHAPES))
    (file,) = WRITERS[name](SHAPES)
    rows = list(open_annotated(f"{url}/{file}").scan())
    assert [row.uri for row in rows] == sorted(SHAPES)
    assert all(isinstance(row, AnnotatedPhoto) and row.read() == row.uri.encode() for row in rows)


def test_pixels_count_from_one_in_pts_alone() -> None:
    text = {name: b"\n".join(write(SHAPES).values()).decode(errors="replace") for name, write in WRITERS.items()}
    assert "11.000000 21.000000" in text["300w"]
    assert "x='10.0' y='20.0'" in text["imglab"]
    assert "[10.0, 20.0, 2.0" in text["coco"]
    assert 'points="10.5,20.5;' in text["cvat"]
    assert "a.jpg,10.0,20.0" in text["csv"]
    assert "[[10.0, 20.0]" in text["webdataset"]


@settings(max_examples=15)
@given(shape=hnp.arrays(np.float64, (68, 2), elements=st.floats(-500, 5000), fill=st.nothing()))
def test_any_face_is_the_same_in_all(shape: NDArray[np.float64], tmp_path_factory: pytest.TempPathFactory) -> None:
    assume(np.ptp(shape, axis=0).min() > 1)
    assume(min(inter_pupil(shape), inter_ocular(shape)) >= 1e-2 * np.ptp(shape, axis=0).max())
    for name, write in WRITERS.items():
        folder = tmp_path_factory.mktemp("faces")
        for file, data in ({"a.jpg": b""} | write({"a.jpg": shape})).items():
            (folder / file).write_bytes(data)
        (row,) = reader(name)(str(folder)).scan()
        assert isinstance(row, AnnotatedPhoto), (name, row)
        np.testing.assert_allclose(row.shape, shape, rtol=0, atol=1e-3, err_msg=name)


def test_two_formats_at_once_are_not_guessed(tmp_path: Path) -> None:
    members = _pictures(SHAPES) | _csv(SHAPES) | _coco(SHAPES)
    url = put(f"{tmp_path}/in", members)
    with pytest.raises(UserError, match=r"could be coco or csv \(2 \.jpg, .*say which with --format"):
        open_annotated(url)
    assert len(list(open_annotated(url, "csv").scan())) == 3
    (tmp_path / "x.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"no annotations of a known format \(1 \.png\); say --format 300w\|imglab"):
        open_annotated(str(tmp_path / "x.png"))


@pytest.mark.parametrize("name", WRITERS)
def test_what_cannot_be_read_is_a_row(name: str, tmp_path: Path) -> None:
    url = put(f"{tmp_path}/in", _pictures(SHAPES) | WRITERS[name](SHAPES))
    (Path(url) / "a.jpg").unlink()
    (Path(url) / "a.jpg").symlink_to("nowhere.jpg")
    rows = list(open_annotated(url).scan())
    assert {row.uri for row in rows if isinstance(row, AnnotatedPhoto)} == {"sub/b c.PNG", "sub/ü.jpg"}
    assert any(isinstance(row, Rejected) for row in rows)
    assert [row.uri for row in rows] == sorted(row.uri for row in rows)


@pytest.mark.parametrize("name", FORMATS)
def test_recognition_never_raises(name: str, tmp_path: Path) -> None:
    for number, suffix in enumerate((".jpg", ".pts", ".xml", ".json", ".csv", ".parquet", ".tsv")):
        (tmp_path / f"k{suffix}").write_bytes(bytes([255, 0, number]) * 50)
    reader(name).recognises(open_files(str(tmp_path)))


@pytest.mark.parametrize(
    ("name", "data"),
    [("a.pts", format_pts(SHAPES["a.jpg"])), ("a.json", json.dumps({"points": SHAPES["a.jpg"].tolist()}).encode())],
)
def test_an_annotation_is_left_out_when_it_is_gone_and_never_when_the_storage_fails(
    name: str, data: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is said of it is the same on any machine."""
    for folder in ("here", "there"):
        publish(str(tmp_path / folder), {"a.jpg": b"a", name: data})
    error: UserError = MissingError(f"{tmp_path}/here/{name} does not exist")

    def read(files: Files, name: str, max_bytes: int | None = None) -> bytes:
        raise error

    formats: dict[str, SourceFormat] = {"a.pts": "300w", "a.json": "webdataset"}
    sources = [open_annotated(str(tmp_path / folder), formats[name]) for folder in ("here", "there")]
    monkeypatch.setattr(Files, "read", read)
    here, there = (list(source.scan()) for source in sources)
    assert here == there == [Rejected("a.jpg", "unreadable", f"{name} cannot be read, or is too large")]
    error = OutageError("S3 failed")
    with pytest.raises(OutageError):
        list(sources[0].scan())
    if name == "a.json":  # by what is in it, it is recognised
        with pytest.raises(OutageError):
            open_annotated(str(tmp_path / "here"))
