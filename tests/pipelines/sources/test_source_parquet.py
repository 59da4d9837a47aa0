import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from msrrn.geometry import Box
from pipelines.annotation.tables import FACES, IMAGES
from pipelines.errors import UserError
from pipelines.sources import AnnotatedPhoto, Rejected, open_annotated
from pipelines.sources.parquet import AnnotationParquet
from tests.factories import write_tar
from tests.pipelines.containers import counted_memory

SHAPE = np.random.default_rng(0).uniform(10, 200, (68, 2)).astype(np.float32)


def face(uri: str, index: int = 0, **changes: Any) -> dict[str, Any]:
    """A row of the faces table of a picture whose bytes are its name."""
    return {
        "uri": uri,
        "sha256": hashlib.sha256(uri.encode()).hexdigest(),
        "face_index": index,
        "box": [1.0, 2.0, 30.0, 40.0],
        "detector": "dlib-hog",
        "detector_score": 1.0,
        "landmarks": (SHAPE + np.float32(index)).ravel().tolist(),
        "confidence": 0.5,
        "face_roll": 0.0,
        "brightness": 100.0,
        "sharpness": 50.0,
        "model": "m",
        "model_version": "1",
        **changes,
    }


def image(uri: str, status: str, reason: str | None = None) -> dict[str, Any]:
    row = {"uri": uri, "status": status, "reason": reason, "message": reason, "faces": 0, "bytes": 1}
    return dict.fromkeys(IMAGES.names) | row


def write(path: Path, rows: list[dict[str, Any]], schema: pa.Schema = FACES, group: int = 100) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), path, row_group_size=group)


def pictures(folder: Path, *uris: str) -> None:
    for uri in uris:
        (folder / uri).parent.mkdir(parents=True, exist_ok=True)
        (folder / uri).write_bytes(uri.encode())


def run(folder: Path, source: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "run.json").write_text(json.dumps({"source": source, "model": "m"}))


def scan(url: Path) -> list[AnnotatedPhoto | Rejected]:
    return list(AnnotationParquet(str(url)).scan())


def test_what_annotate_wrote_comes_back(tmp_path: Path) -> None:
    pictures(tmp_path / "in", "a.jpg", "b/c d.jpg", "e.jpg")
    run(tmp_path / "out", str(tmp_path / "in"))
    write(tmp_path / "out/faces/part-00000.parquet", [face("b/c d.jpg", 1), face("b/c d.jpg"), face("e.jpg")])
    write(tmp_path / "out/faces/part-00001.parquet", [face("a.jpg")])
    write(
        tmp_path / "out/images/part-00000.parquet",
        [image("b/c d.jpg", "annotated"), image("e.jpg", "annotated"), image("bad.jpg", "quarantined", "corrupt")],
        IMAGES,
    )
    write(
        tmp_path / "out/images/part-00001.parquet", [image("a.jpg", "annotated"), image("n.jpg", "no_face")], IMAGES
    )
    assert isinstance(open_annotated(str(tmp_path / "out")), AnnotationParquet)
    rows = scan(tmp_path / "out")
    assert [row.uri for row in rows] == ["a.jpg", "b/c d.jpg", "b/c d.jpg", "bad.jpg", "e.jpg", "n.jpg"]
    assert [row.reason for row in rows if isinstance(row, Rejected)] == ["corrupt", "no_annotation"]
    faces = [row for row in rows if isinstance(row, AnnotatedPhoto)]
    for row, index in zip(faces, (0, 0, 1, 0), strict=True):
        np.testing.assert_array_equal(row.shape, (SHAPE + np.float32(index)).astype(np.float64))
        assert (row.box, row.subset, row.declared_split) == (Box(1, 2, 30, 40), "predictions", None)
        assert row.read() == row.uri.encode()
    assert [row.annotation_uri for row in faces] == [
        "faces/part-00001.parquet#0",
        "faces/part-00000.parquet#1",
        "faces/part-00000.parquet#0",
        "faces/part-00000.parquet#2",
    ]


def test_another_picture_under_the_same_name_is_told_from_the_annotated_one(tmp_path: Path) -> None:
    pictures(tmp_path, "a.jpg")
    write(tmp_path / "faces.parquet", [face("a.jpg")])
    (row,) = scan(tmp_path)
    assert isinstance(row, AnnotatedPhoto)
    assert row.is_of(hashlib.sha256(row.read()).hexdigest())
    (tmp_path / "a.jpg").write_bytes(b"b.jpg")
    assert not row.is_of(hashlib.sha256(row.read()).hexdigest())


@pytest.mark.parametrize("source", ["absolute", "beside", "tar"])
@pytest.mark.parametrize("table", ["out", "out/faces/part-00000.parquet", "out/corrected.parquet"])
def test_the_pictures_are_where_the_run_found_them(
    source: str, table: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    pictures(tmp_path / "out" / "photos", "a.jpg")
    write_tar(tmp_path / "in.tar", {"./a.jpg": b"a.jpg"})
    run(tmp_path / "out", {"absolute": str(tmp_path / "out/photos"), "beside": "photos", "tar": "in.tar"}[source])
    name = "a.jpg" if source != "tar" else "./a.jpg"
    row = face(name, sha256=hashlib.sha256(b"a.jpg").hexdigest())
    write(tmp_path / ("out/faces/part-00000.parquet" if table == "out" else table), [row])
    (found,) = [row for row in open_annotated(str(tmp_path / table)).scan() if isinstance(row, AnnotatedPhoto)]
    assert (found.uri, found.read()) == ("a.jpg", b"a.jpg")


def test_a_corrected_table_says_where_its_faces_come_from(tmp_path: Path) -> None:
    pictures(tmp_path, *(f"{name}.jpg" for name in "abcd"))
    schema = FACES.append(pa.field("origin", pa.string())).append(pa.field("corrected", pa.bool_()))
    rows: list[dict[str, Any]] = [
        face("a.jpg", origin="round 2", corrected=True),
        face("b.jpg", origin=None, corrected=True),
        face("c.jpg", corrected=False),
        face("d.jpg"),
    ]
    write(tmp_path / "mine.parquet", rows, schema)
    assert [row.subset for row in scan(tmp_path) if isinstance(row, AnnotatedPhoto)] == [
        "round 2",
        "corrections",
        "predictions",
        "predictions",
    ]


def test_a_table_of_which_nobody_says_who_drew_it_is_a_persons(tmp_path: Path) -> None:
    pictures(tmp_path, "a.jpg")
    schema = pa.schema([("uri", pa.string()), ("landmarks", pa.list_(pa.float64()))])
    write(tmp_path / "mine.parquet", [{"uri": "a.jpg", "landmarks": SHAPE.ravel().tolist()}], schema)
    (row,) = scan(tmp_path)
    assert isinstance(row, AnnotatedPhoto)
    assert row.subset == "corrections"


def test_bad_rows_stop_nothing(tmp_path: Path) -> None:
    pictures(tmp_path, *"abcdef")
    points = pa.list_(pa.float64())
    schema = pa.schema([("uri", pa.string()), ("landmarks", points), ("box", points)])
    good = SHAPE.ravel().tolist()
    rows: list[dict[str, Any]] = [
        {"uri": "a", "landmarks": good},
        {"uri": "b", "landmarks": good[:134]},
        {"uri": "c", "landmarks": [*good[:135], float("nan")]},
        {"uri": "d", "landmarks": None},
        {"uri": "e", "landmarks": good, "box": [1.0, 2.0]},
        {"uri": "f", "landmarks": good[:135]},
        {"uri": "gone", "landmarks": good},
        {"uri": "../escape", "landmarks": good},
        {"uri": None, "landmarks": good},
    ]
    write(tmp_path / "t.parquet", rows, schema)
    rejected = {row.uri: row for row in scan(tmp_path) if isinstance(row, Rejected)}
    told = {
        "d": "the points are not a list",
        "e": "box is [1.0, 2.0]: write its left, top, right, bottom edge",
        "f": "135 numbers make no pairs",
    }
    assert {uri: rejected[uri].message.partition(": ")[2] for uri in told} == told
    assert {uri: row.reason for uri, row in rejected.items()} == {
        "../escape": "no_image",
        "b": "count",
        "c": "not_finite",
        "d": "syntax",
        "e": "syntax",
        "f": "count",
        "gone": "no_image",
        "t.parquet": "syntax",
    }


def test_what_is_no_table_of_ours_is_said(tmp_path: Path) -> None:
    table = tmp_path / "t.parquet"
    table.write_bytes(b"PAR1 not really PAR1")
    with pytest.raises(UserError, match=r"t\.parquet is no Parquet table"):
        open_annotated(str(tmp_path)).scan()
    write(table, [{"uri": "a"}], pa.schema([("uri", pa.string())]))
    with pytest.raises(UserError, match="no annotations of a known format"):
        open_annotated(str(tmp_path))
    write(table, [face("a")], FACES.with_metadata({"msrrn.schema": "99"}))
    with pytest.raises(UserError, match=r"its msrrn\.schema is not '2'"):
        scan(table)
    write(table, [face("a")])
    run(tmp_path, "nowhere")
    with pytest.raises(UserError, match=r"its source nowhere does not exist"):
        scan(table)
    (tmp_path / "run.json").write_text("[]")
    with pytest.raises(UserError, match=r"run\.json names no source"):
        scan(table)


def test_a_damaged_table_is_named(tmp_path: Path) -> None:
    pictures(tmp_path, "a.jpg")
    write(tmp_path / "t.parquet", [face("a.jpg", number) for number in range(50)])
    data = bytearray((tmp_path / "t.parquet").read_bytes())
    data[200:1200] = bytes(1000)
    (tmp_path / "t.parquet").write_bytes(data)
    with pytest.raises(UserError, match=r"t\.parquet is no Parquet table, or damaged"):
        scan(tmp_path)


def test_a_name_of_a_column_that_is_no_utf8_is_damage(tmp_path: Path) -> None:
    write(tmp_path / "t.parquet", [face("a.jpg")])
    data = (tmp_path / "t.parquet").read_bytes()
    (tmp_path / "t.parquet").write_bytes(data.replace(b"face_index", b"face_inde\xff"))
    with pytest.raises(UserError, match=r"t\.parquet is no Parquet table, or damaged: .*utf-8"):
        scan(tmp_path)


@pytest.mark.parametrize("column", ["uri", "origin"])
@pytest.mark.parametrize("kind", [pa.string(), pa.dictionary(pa.int32(), pa.string())])
def test_a_text_that_is_no_utf8_is_damage(tmp_path: Path, column: str, kind: pa.DataType) -> None:
    pictures(tmp_path, "a.jpg")
    text = pa.array([b"\xff.jpg"]).view(pa.string())
    columns = {"uri": ["a.jpg"], "landmarks": [SHAPE.ravel().tolist()], column: text.cast(kind)}
    pq.write_table(pa.table(columns), tmp_path / "t.parquet")
    with pytest.raises(UserError, match=r"t\.parquet is no Parquet table, or damaged: .*UTF8"):
        scan(tmp_path)


@pytest.mark.parametrize("numbers", [[1, None], [1.0, None], [None, None], ["1", None]])
def test_faces_are_sorted_by_numbers_alone(tmp_path: Path, numbers: list[object]) -> None:
    pictures(tmp_path, "a.jpg")
    columns = {"uri": ["a.jpg"] * 2, "landmarks": [SHAPE.ravel().tolist()] * 2, "face_index": numbers}
    pq.write_table(pa.table(columns), tmp_path / "t.parquet")
    if "1" not in numbers:
        assert len(scan(tmp_path)) == 2
        return
    with pytest.raises(UserError, match=r"t\.parquet: its face_index is of type string: write integers"):
        scan(tmp_path)


@pytest.mark.parametrize(("column", "value"), [("corrected", "False"), ("origin", 3), ("sha256", b"\0" * 32)])
def test_a_column_of_another_type_is_told(tmp_path: Path, column: str, value: object) -> None:
    """The text "False" made corrections of predictions."""
    pictures(tmp_path, "a.jpg")
    columns = {"uri": ["a.jpg"], "landmarks": [SHAPE.ravel().tolist()], column: [value]}
    pq.write_table(pa.table(columns), tmp_path / "t.parquet")
    with pytest.raises(UserError, match=rf"t\.parquet: its {column} is of type .*: write t"):
        scan(tmp_path)


@pytest.mark.parametrize("said", [[True, False, None], [1, 0, None], [1.0, 0.0, float("nan")]])
def test_what_is_not_said_to_be_corrected_is_as_the_model_drew_it(tmp_path: Path, said: list[object]) -> None:
    pictures(tmp_path, "a.jpg", "b.jpg", "c.jpg")
    rows = {"uri": ["a.jpg", "b.jpg", "c.jpg"], "landmarks": [SHAPE.ravel().tolist()] * 3, "model": ["m"] * 3}
    pq.write_table(pa.table({**rows, "corrected": said}), tmp_path / "t.parquet")
    found = [row.subset for row in scan(tmp_path) if isinstance(row, AnnotatedPhoto)]
    assert found == ["corrections", "predictions", "predictions"]


def test_rows_are_sorted_whatever_the_tables_order_and_few_are_held(tmp_path: Path) -> None:
    uris = [f"{number:05}.jpg" for number in range(4000)]
    pictures(tmp_path / "in", "00000.jpg")
    run(tmp_path / "out", str(tmp_path / "in"))
    shuffled = np.random.default_rng(0).permutation(uris).tolist()
    for name, order in (("sorted", uris), ("shuffled", shuffled)):
        write(tmp_path / name / "t.parquet", [face(uri) for uri in order], group=100)
        run(tmp_path / name, str(tmp_path / "in"))
        pool = pa.default_memory_pool()
        before, peak = pool.bytes_allocated(), 0
        found = []
        for row in AnnotationParquet(str(tmp_path / name)).scan():
            found.append(row.uri)
            peak = max(peak, pool.bytes_allocated() - before)
        assert found == uris
        if name == "sorted":
            assert peak < 10 * 100 * 136 * 4


def test_a_dictionary_is_not_copied_for_every_row(tmp_path: Path) -> None:
    """It may be small where it is packed."""
    text = "m" * 500_000
    write(tmp_path / "faces.parquet", [face("a.jpg", index, model=text) for index in range(500)], group=500)
    with (
        counted_memory() as counting,
        pytest.raises(UserError, match=r"faces\.parquet: rows have more than 65536 bytes each: give the folder"),
    ):
        scan(tmp_path)
    assert counting.max_memory() < 50 * len(text)


def test_the_pictures_are_those_that_were_annotated_wherever_one_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures(tmp_path / "a" / "photos", "a.jpg")
    (tmp_path / "b" / "photos").mkdir(parents=True)
    (tmp_path / "b" / "photos" / "a.jpg").write_bytes(b"another of this name")
    write(tmp_path / "a/out/faces/part-00000.parquet", [face("a.jpg")])
    claim = {"source": "photos", "archive": str(tmp_path / "a" / "photos"), "model": "m"}
    (tmp_path / "a/out/run.json").write_text(json.dumps(claim))
    for stands in ("b", "."):
        monkeypatch.chdir(tmp_path / stands)
        (photo,) = scan(tmp_path / "a/out")
        assert isinstance(photo, AnnotatedPhoto)
        assert photo.read() == b"a.jpg"


def test_a_run_over_a_list_says_how_its_pictures_come_along(tmp_path: Path) -> None:
    pictures(tmp_path, "a.jpg")
    (tmp_path / "list.txt").write_text(f"{tmp_path}/a.jpg\n")
    run(tmp_path / "out", str(tmp_path / "list.txt"))
    write(tmp_path / "out/faces/part-00000.parquet", [face(f"{tmp_path}/a.jpg")])
    with pytest.raises(UserError, match=r"annotated from the list .*list\.txt: `msrrn export --format webdataset`"):
        scan(tmp_path / "out")


def test_a_picture_of_an_archive_inside_the_source_says_how_it_comes_along(tmp_path: Path) -> None:
    pictures(tmp_path / "in", "a.jpg")
    write_tar(tmp_path / "in" / "b.tar", {"c.jpg": b"c.jpg"})
    run(tmp_path / "out", str(tmp_path / "in"))
    write(tmp_path / "out/faces/part-00000.parquet", [face("a.jpg"), face("b.tar/c.jpg")])
    found, lost = scan(tmp_path / "out")
    assert isinstance(found, AnnotatedPhoto)
    assert isinstance(lost, Rejected)
    assert "`msrrn export --format webdataset`" in lost.message
