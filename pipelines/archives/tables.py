"""A Parquet table with a column of pictures, as data sets are published: a row is a picture.

The column is binary, or a struct with `bytes` in it (as Hugging Face's datasets write images). Rows are read in
order, one at a time: one reader that goes forward reads the file once.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO, Final

import pyarrow as pa
import pyarrow.parquet as pq
import pyarrow.types as pt

from pipelines.archives.inputs import BrokenArchiveError, Input, UnsupportedArchiveError, damaged, unusable
from pipelines.archives.names import MAX_NAME, is_safe, printable, row_name
from pipelines.decoding import Undecodable
from pipelines.errors import UserError

_NAMES: Final = ("image", "img", "picture", "photo", "jpg", "jpeg", "png", "webp", "bytes", "data", "content")
"""Columns of pictures, the likeliest first; others may be pictures too."""
_CERTAIN: Final = frozenset(_NAMES[:8])
"""A binary column of such a name holds pictures, whatever its bytes look like."""
_KEYS: Final = ("uri", "path", "file_name", "filename", "key", "__key__", "url", "id")
"""Columns that name a row, the first of them that is there."""
_STARTS: Final = (b"\xff\xd8\xff", b"\x89PNG", b"RIFF", b"BM", b"II*\0", b"MM\0*", b"GIF8", b"\0\0\0\x0cjP")
_ROWS_READ: Final = 1
"""Of a dictionary, which may be small where it is packed, every row read at once gets a copy of its value. For
pictures it is as fast as more at once, and a name costs 40 µs.
"""
_ROWS_TRIED: Final = 64
_BUFFER: Final = 1 << 20
"""Bytes of a column read at once; without a buffer Arrow reads all that a row group has of it."""


class NoPicturesError(UserError):
    """A table without a column of pictures."""


@dataclass(frozen=True)
class _Column:
    name: str
    nested: bool
    """whether it is a struct with `bytes` and perhaps `path`"""
    path: bool


class Table:
    """An open Parquet table; owns `file`. One reader at a time.

    Raises:
        BrokenArchiveError: it is no Parquet table.
        NoPicturesError: it has no column of pictures.
        UnsupportedArchiveError: it has one, but not with a picture a row.
    """

    def __init__(self, file: BinaryIO, place: str, version: str) -> None:
        self._file = file
        self._version = version
        try:
            # With its type said, a column that was written as categories is read as any other.
            self._table = pq.ParquetFile(file, pre_buffer=False, buffer_size=_BUFFER, binary_type=pa.large_binary())
            column = self._pictures()
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            _raise_if_it_may_pass(error)
            raise BrokenArchiveError(f"{place} is no Parquet table, or was cut short: fetch it again") from error
        if column is None:
            if nested := next(filter(_has_nested_pictures, self._table.schema_arrow), None):
                raise UnsupportedArchiveError(
                    f"{place} has pictures in lists, or deeper, in {nested.name}: make a row of each"
                )
            raise NoPicturesError(
                f"{place} has no column of pictures: give it one of type binary, or a struct with bytes"
            )
        self._column = column
        self._batches: Iterator[Any] = iter(())
        self._start = self._stop = 0
        """the rows of `_values`"""
        self._end = 0
        """the row behind the last of the row group that is read"""
        self._values: Any = None

    def members(self) -> Iterator[Input]:
        """Rows in order, with their names for uris and no container."""
        for row, name in enumerate(self._names()):
            text = name.decode("utf-8", "surrogateescape") if isinstance(name, bytes) else str(name)
            uri = "" if name is None or len(text) > MAX_NAME else printable(text).lstrip("/")
            uri = uri if uri and is_safe(uri) else row_name(row)
            yield Input(uri, "", row, 0, 0, self._version)

    def read(self, item: Input, limit: int) -> bytes | Undecodable:
        """A row's picture, or why there is none. Trouble that may pass is raised."""
        if problem := unusable(item, limit):
            return problem
        try:
            value = self._value(item.offset)
        except (pa.ArrowException, OSError, IndexError) as error:
            self._batches, self._start, self._stop, self._end = iter(()), 0, 0, 0
            _raise_if_it_may_pass(error)
            return damaged()
        if value is None:
            return Undecodable("empty", "the row has no picture")
        if value.size > limit:
            return Undecodable("too_large", f"{value.size} bytes, the limit is {limit}")
        return bytes(value)

    def close(self) -> None:
        """Closes the file, and lets go of what was read of it."""
        self._batches, self._values = iter(()), None
        self._file.close()

    def _pictures(self) -> _Column | None:
        """The column of pictures, by its type, its name and its first bytes."""
        found = [column for column in map(_column, self._table.schema_arrow) if column is not None]
        found.sort(key=lambda column: _rank(column.name))
        sure = (column for column in found if column.name.lower() in _CERTAIN)
        return next(filter(self._has_pictures, found), next(sure, None))

    def _has_pictures(self, column: _Column) -> bool:
        """Whether one of the first rows looks like a picture."""
        rows = 0
        try:
            for values in self._read(range(self._groups()), column):
                if any(value.is_valid and _looks_like_a_picture(bytes(value.as_buffer()[:16])) for value in values):
                    return True
                rows += len(values)
                if rows >= _ROWS_TRIED:
                    break
        except (pa.ArrowException, OSError) as error:
            _raise_if_it_may_pass(error)
            return _rank(column.name) < len(_NAMES)  # what is damaged shows in the rows
        return False

    def _read(self, groups: Sequence[int], column: _Column) -> Iterator[Any]:
        """The bytes of row groups, a row at a time."""
        name = f"{column.name}.bytes" if column.nested else column.name
        for batch in self._table.iter_batches(_ROWS_READ, row_groups=groups, columns=[name], use_threads=False):
            yield batch.column(0).field("bytes") if column.nested else batch.column(0)

    def _groups(self) -> int:
        return int(self._table.metadata.num_row_groups)

    def _names(self) -> Iterator[Any]:
        """What every row calls itself; None where it does not."""
        fields = {field.name.lower(): field for field in self._table.schema_arrow if _is_name(field.type)}
        key = next((fields[name].name for name in _KEYS if name in fields), None)
        column = key or (f"{self._column.name}.path" if self._column.path else None)
        if column is None:
            yield from (None for _ in range(self._table.metadata.num_rows))
            return
        named = 0
        try:
            for batch in self._table.iter_batches(_ROWS_READ, columns=[column], use_threads=False):
                names = batch.column(0) if key else batch.column(0).field("path")
                if not pt.is_integer(names.type):
                    names = names.cast(pa.large_binary())  # they may be no UTF-8
                yield from names.to_pylist()
                named += len(names)
        except (pa.ArrowException, OSError) as error:
            _raise_if_it_may_pass(error)
            # The pictures may be sound for all that.
            yield from (None for _ in range(self._table.metadata.num_rows - named))

    def _value(self, row: int) -> Any:
        """A row's bytes, without a copy; None where it has none."""
        if not self._start <= row < self._end:
            self._open_group(row)
        while row >= self._stop:
            self._values = next(self._batches, None)
            if self._values is None:
                raise IndexError(row)
            self._start, self._stop = self._stop, self._stop + len(self._values)
        assert self._values is not None
        value = self._values[row - self._start]
        return value.as_buffer() if value.is_valid else None

    def _open_group(self, row: int) -> None:
        start = 0
        for group in range(self._groups()):
            rows = int(self._table.metadata.row_group(group).num_rows)
            if start <= row < start + rows:
                self._batches = self._read([group], self._column)
                self._start, self._stop, self._end = start, start, start + rows
                return
            start += rows
        raise IndexError(row)


def _column(field: pa.Field) -> _Column | None:
    """A field that may hold pictures."""
    if _is_bytes(field.type):
        return _Column(field.name, nested=False, path=False)
    if pt.is_struct(field.type):
        children = {child.name: child.type for child in field.type}
        if "bytes" in children and _is_bytes(children["bytes"]):
            return _Column(field.name, nested=True, path="path" in children and _is_name(children["path"]))
    return None


def _has_nested_pictures(field: pa.Field) -> bool:
    """Whether there are bytes within a field of a certain name."""
    kinds = [field.type]
    for kind in kinds:
        kinds += [kind.field(number).type for number in range(kind.num_fields)]
    certain = any(name in field.name.lower() for name in _CERTAIN)
    return certain and not _is_bytes(field.type) and any(map(_is_bytes, kinds))


def _is_bytes(kind: pa.DataType) -> bool:
    return bool(pt.is_binary(kind) or pt.is_large_binary(kind) or pt.is_binary_view(kind))


def _is_name(kind: pa.DataType) -> bool:
    return bool(pt.is_string(kind) or pt.is_large_string(kind) or pt.is_string_view(kind) or pt.is_integer(kind))


def _rank(name: str) -> int:
    """How likely a column holds the pictures, the likeliest first."""
    return next((rank for rank, known in enumerate(_NAMES) if known in name.lower()), len(_NAMES))


def _looks_like_a_picture(start: bytes) -> bool:
    return start.startswith(_STARTS) or start[4:8] == b"ftyp" or (start[:1] == b"P" and start[1:2] in b"123456")


def _raise_if_it_may_pass(error: Exception) -> None:
    if isinstance(error, OSError) and error.errno is not None:
        raise error  # of the storage; Arrow's own, about damaged bytes, have none
