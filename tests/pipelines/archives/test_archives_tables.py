import io
import random
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.archives import list_inputs, read_inputs
from pipelines.errors import UserError
from tests.pipelines.containers import counted_memory, growth, packed, publish, read

JPEG = b"\xff\xd8\xff"
HF = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
CATEGORY = pa.dictionary(pa.int8(), pa.binary())


def _table(columns: dict[str, Any], rows_per_group: int = 3, **types: pa.DataType) -> bytes:
    sink = io.BytesIO()
    arrays = {name: pa.array(values, types.get(name)) for name, values in columns.items()}
    pq.write_table(pa.table(arrays), sink, row_group_size=rows_per_group)
    return sink.getvalue()


def _write(folder: Path, columns: dict[str, Any], **types: pa.DataType) -> str:
    folder.mkdir(exist_ok=True)
    (folder / "x.parquet").write_bytes(_table(columns, **types))
    return str(folder / "x.parquet")


PICTURES = [JPEG + b"%d" % number for number in range(12)]


@pytest.mark.parametrize("place", ["local", "s3"])
@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary(), CATEGORY, HF])
def test_rows_are_pictures(place: str, kind: pa.DataType, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    url = str(tmp_path) if place == "local" else request.getfixturevalue("s3")
    values = [{"bytes": data, "path": None} for data in PICTURES] if kind == HF else PICTURES
    uris = [f"album/{number}.jpg" for number in range(12)]
    table = _table({"label": range(12), "image": values, "uri": uris}, image=kind)
    publish(url, {"x.parquet": table, "in/a.jpg": b"a", "in/deep/x.PARQUET": table})
    items = list(list_inputs(f"{url}/x.parquet"))
    assert [(item.uri, item.container, item.offset) for item in items] == [
        (uri, "x.parquet", row) for row, uri in enumerate(uris)
    ]
    rows = list(zip(uris, PICTURES, strict=True))
    assert read(f"{url}/x.parquet", items) == rows
    assert read(f"{url}/x.parquet", items[::-1]) == rows[::-1]
    assert read(f"{url}/x.parquet", items[7:9]) == rows[7:9]
    entered = [(f"deep/x.PARQUET/{uri}", data) for uri, data in rows]
    assert read(f"{url}/in") == [("a.jpg", b"a"), *entered]


@settings(max_examples=25)
@given(
    sizes=st.lists(st.integers(0, 300), min_size=1, max_size=60),
    rows_per_group=st.integers(1, 70),
    order=st.randoms(use_true_random=False),
)
def test_any_row_is_read_in_any_order(
    sizes: list[int], rows_per_group: int, order: random.Random, tmp_path_factory: pytest.TempPathFactory
) -> None:
    values = [JPEG + bytes(size) + b"%d" % row for row, size in enumerate(sizes)]
    path = tmp_path_factory.getbasetemp() / "x.parquet"
    path.write_bytes(_table({"jpg": values}, rows_per_group))
    items = list(list_inputs(str(path)))
    order.shuffle(items)
    assert all(data == values[item.offset] for item, data in read_inputs(str(path), items))
    assert len(items) == len(values)


def test_names_of_rows(tmp_path: Path) -> None:
    def uris(columns: dict[str, Any], **types: pa.DataType) -> list[str]:
        return [item.uri for item in list_inputs(_write(tmp_path, columns, **types))]

    data, ones = PICTURES[:3], [f"{row:010}" for row in range(3)]
    assert uris({"data": data}) == ones  # with as many digits in a table of any length, which may grow
    assert uris({"bytes": PICTURES})[-3:] == ["0000000009", "0000000010", "0000000011"]
    assert uris({"image": data, "id": [7, None, 9]}) == ["7", ones[1], "9"]
    assert uris({"image": data, "id": [7, 8, 9], "URL": ["https://x/a", "", None]}) == ["https://x/a", *ones[1:]]
    assert uris({"image": data, "path": ["/data/a.jpg", "../b.jpg", "ä.jpg"]}) == ["data/a.jpg", ones[1], "ä.jpg"]
    struct = [{"bytes": picture, "path": path} for picture, path in zip(data, ["a.jpg", None, "c.jpg"], strict=True)]
    assert uris({"image": struct}, image=HF) == ["a.jpg", ones[1], "c.jpg"]
    assert uris({"image": struct, "file_name": ["x", "y", "z"]}, image=HF) == ["x", "y", "z"]
    category = pa.dictionary(pa.int8(), pa.string())
    assert uris({"image": data, "path": ["a.jpg", None, "c.jpg"]}, path=category) == ["a.jpg", ones[1], "c.jpg"]
    assert uris({"image": data, "path": ["a.jpg", "b.jpg", "ä.jpg"]}, path=pa.string_view())[2] == "ä.jpg"


def test_the_column_is_found(tmp_path: Path) -> None:
    def first(columns: dict[str, Any], **types: pa.DataType) -> bytes | str:
        return read(_write(tmp_path, columns, **types))[0][1]

    thumbs = [b"\x89PNG" + data for data in PICTURES]
    assert first({"embedding": [b"abc"] * 12, "payload": PICTURES}) == PICTURES[0]
    assert first({"thumbnail": thumbs, "image": PICTURES}) == PICTURES[0]
    assert first({"a": thumbs, "b": PICTURES}) == thumbs[0]
    assert first({"data": [None, b"", b"broken", *PICTURES]}) == "empty"
    assert first({"png": [b"broken"] * 3, "mask": [b"abc"] * 3}) == b"broken"
    nothing: list[dict[str, Any]] = [{"x": [1]}, {"data": [b"abc"] * 9}, {"image": ["a.jpg"]}, {"image": [[1.0]]}]
    for columns in nothing:
        with pytest.raises(UserError, match="has no column of pictures"):
            list_inputs(_write(tmp_path, columns))
    publish(str(tmp_path / "in"), {f"{n}.parquet": _table(columns) for n, columns in enumerate(nothing)})
    publish(str(tmp_path / "in"), {"a.jpg": b"a", "b.zip": packed(".zip", {"t.parquet": b"x", "b.jpg": b"b"})})
    listing = list_inputs(str(tmp_path / "in"))
    assert [item.uri for item in listing] == ["a.jpg", "b.zip/b.jpg"]
    assert listing.ignored == 5


def test_a_table_with_several_pictures_a_row_is_a_row(tmp_path: Path) -> None:
    for kind in (pa.list_(pa.binary()), pa.list_(HF), pa.struct([("front", HF)])):
        url = _write(tmp_path / "in", {"images": pa.nulls(2, kind)}, images=kind)
        with pytest.raises(UserError, match="has pictures in lists, or deeper, in images: make a row of each"):
            list_inputs(url)
        assert read(str(tmp_path / "in")) == [("x.parquet", "unsupported_archive")]


def test_rows_without_a_picture(tmp_path: Path) -> None:
    url = _write(tmp_path, {"image": [PICTURES[0], None, b"", b"x" * 101]})
    found = [PICTURES[0], "empty", b"", "too_large"]
    assert read(url, max_bytes=100) == [(f"{row:010}", data) for row, data in enumerate(found)]
    struct = [{"bytes": PICTURES[0], "path": None}, {"bytes": None, "path": "a.jpg"}, None]
    url = _write(tmp_path, {"image": struct}, image=HF)
    assert read(url) == [("0000000000", PICTURES[0]), ("a.jpg", "empty"), ("0000000002", "empty")]


def test_a_table_that_is_none(tmp_path: Path) -> None:
    whole = _table({"image": PICTURES})
    for data in (b"", b"PAR1", whole[:-9], b"x" * 500):
        (tmp_path / "x.parquet").write_bytes(data)
        with pytest.raises(UserError, match="is no Parquet table, or was cut short"):
            list_inputs(str(tmp_path / "x.parquet"))
        assert read(str(tmp_path)) == [("x.parquet", "broken_archive")]


def test_a_damaged_group_costs_its_own_rows(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    values = [JPEG + random.Random(row).randbytes(500) for row in range(12)]
    sink = io.BytesIO()
    pq.write_table(pa.table({"image": values}), sink, row_group_size=3, use_dictionary=False)
    data = bytearray(sink.getvalue())
    chunk = pq.ParquetFile(io.BytesIO(data)).metadata.row_group(1).column(0)
    start = chunk.data_page_offset
    data[start : start + 8] = b"\xff" * 8
    path.write_bytes(data)
    found = read(str(path))
    assert [row for row, (_, value) in enumerate(found) if value == "corrupt"] == [3, 4, 5]
    assert [value for _, value in found[:3] + found[6:]] == values[:3] + values[6:]


@settings(max_examples=60)
@given(flips=st.lists(st.tuples(st.integers(0, 1 << 12), st.integers(0, 255)), min_size=1, max_size=4))
def test_damage_is_a_row_or_a_plain_error(
    flips: list[tuple[int, int]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    damaged = bytearray(_table({"image": PICTURES, "uri": [str(n) for n in range(12)]}))
    for place, value in flips:
        damaged[place % len(damaged)] = value
    path = tmp_path_factory.getbasetemp() / "damaged.parquet"
    path.write_bytes(damaged)
    try:
        items = list(list_inputs(str(path)))
    except UserError:
        return
    assert len(read(str(path), items)) == len(items)


def test_memory_is_not_that_of_a_row_group(tmp_path: Path) -> None:
    url = str(tmp_path / "x.parquet")
    noise = random.Random(0).randbytes(200_000)
    schema = pa.schema([("image", pa.binary()), ("id", pa.int64())])
    with pq.ParquetWriter(url, schema, compression="none", use_dictionary=False, data_page_size=1 << 20) as writer:
        batches = [
            pa.record_batch([[JPEG + noise] * 20, list(range(start, start + 20))], schema=schema)
            for start in range(0, 1000, 20)
        ]
        writer.write_table(pa.Table.from_batches(batches), row_group_size=1000)
    del batches
    items = list(list_inputs(url))
    process = psutil.Process()
    before = most = process.memory_info().rss
    for _, data in read_inputs(url, items):
        assert isinstance(data, bytes)
        assert len(data) == 200_003
        most = max(most, process.memory_info().rss)
    assert most - before < 60_000_000


def test_memory_is_not_that_of_the_rows(tmp_path: Path) -> None:
    _write(tmp_path, {"image": [JPEG] * 50_000, "path": [f"{row:09d}.jpg" for row in range(50_000)]})
    count, grown = growth(str(tmp_path / "x.parquet"))
    assert count == 50_000
    assert grown < 8_000_000


@pytest.mark.parametrize("large", ["image", "path"])
def test_memory_is_not_that_of_a_dictionary_for_every_row(tmp_path: Path, large: str) -> None:
    value = 5_000_000 * "a"
    columns = {"image": (JPEG, pa.binary()), "path": ("a.jpg", pa.string()), large: (value, pa.string())}
    columns["image"] = (JPEG + value.encode(), pa.binary()) if large == "image" else columns["image"]
    arrays = {
        name: pa.DictionaryArray.from_arrays(pa.array([0] * 64, pa.int8()), pa.array([one], kind))
        for name, (one, kind) in columns.items()
    }
    url = str(tmp_path / "x.parquet")
    pq.write_table(pa.table(arrays), url, compression="zstd", dictionary_pagesize_limit=1 << 30)
    with counted_memory() as counting:
        items = list(list_inputs(url))
        found = [len(data) for _, data in read_inputs(url, items) if isinstance(data, bytes)]
    assert found == [len(JPEG) + (len(value) if large == "image" else 0)] * 64
    assert [item.uri for item in items[:2]] == (["0000000000", "0000000001"] if large == "path" else ["a.jpg"] * 2)
    assert counting.max_memory() < 6 * len(value)
