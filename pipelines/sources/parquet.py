"""Annotations that this project wrote come back: the `faces` table of `annotate`, as it is or corrected.

Landmarks are 0-based pixels of the upright picture. Beside the columns that `annotate` writes, a table may
have `origin` (a name that becomes the face's subset) and `corrected`: faces for which it is true get the subset
`corrections`. Others are `predictions` where it is false, and where a `model` says who drew them.

A table's row groups are read one after the other where their uris do not overlap, as `annotate` leaves them;
what is held at once is the row groups that overlap.
"""

import heapq
import json
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import PurePosixPath
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq
import pyarrow.types as pt

from msrrn.landmarks import SCHEME
from pipelines.archives.names import LIST_SUFFIXES, has_suffix, normal, split_url
from pipelines.errors import UserError
from pipelines.sources import AnnotatedPhoto, Rejected
from pipelines.sources.annotation import BadAnnotation, box_of, points_of, usable_shape
from pipelines.sources.corrections import CORRECTIONS, PREDICTIONS
from pipelines.sources.files import Files, open_files
from pipelines.sources.held import is_archive
from pipelines.storage import Store

RUN: Final = "run.json"
_FACE_COLUMNS: Final = ("uri", "landmarks", "face_index", "sha256", "box", "model", "origin", "corrected")
_IMAGE_COLUMNS: Final = ("uri", "status", "reason", "message")
_FORMAT: Final = {b"msrrn.schema": (b"1", b"2"), b"msrrn.scheme": (SCHEME.encode(),)}
"""What is read; the second schema has more columns than the first."""
_REMEDY: Final = "give the folder that `msrrn annotate` wrote, or a faces table"

_ROWS_READ: Final = 8
"""At once: each gets a copy of its value in a dictionary, which may be small where it is packed."""
MOST_BYTES: Final = 1 << 16
"""Of a row; a face of `annotate` has 1 kB."""

_EXPORT: Final = "`msrrn export --format webdataset` writes all pictures with their faces, and is a source"

Row = AnnotatedPhoto | Rejected
_Key = tuple[str, int, str, int]
"""uri, face, table, row: no two are equal"""
_ToRow = Callable[[dict[str, Any], str], Row | None]


@dataclass(frozen=True)
class AnnotationParquet:
    """What `annotate` wrote (`run.json`, `images/` and `faces/`), or one faces table beside such a `run.json`.

    The pictures are where `archive` of `run.json` says; were they moved since, where its `source` does: a relative
    path is seen from the working directory, or from the folder of `run.json`. Without a `run.json` they lie beside
    the table.
    """

    url: str

    @staticmethod
    def recognises(files: Files) -> bool:
        """See `Reader.recognises`: there are tables of faces."""
        return bool(_tables(files)[0])

    def scan(self) -> Iterator[Row]:
        """See `AnnotatedSource.scan`; every face of the table, and every picture without one that it tells of."""
        files = open_files(self.url)
        faces, images = _tables(files)
        if not faces:
            raise UserError(f"{self.url} has no table of faces: {_REMEDY}")
        pictures = _Pictures(_source(files, faces[0]))
        groups = [group for name in faces for group in _groups(files, name, _FACE_COLUMNS, pictures.face)]
        groups += [group for name in images for group in _groups(files, name, _IMAGE_COLUMNS, _without_face)]
        return _merged(groups)


@dataclass(frozen=True)
class _Group:
    """A row group: the least uri in it, and its rows in the order of `_Key`."""

    first: str
    rows: Callable[[], Iterator[tuple[_Key, Row]]]


class _Pictures:
    """Where the photographs lie; listed once."""

    def __init__(self, files: Files) -> None:
        self._url = files.url
        self._names = {name for name, size in files.sizes().items() if size is not None}

    def face(self, row: dict[str, Any], place: str) -> Row:
        uri = row["uri"]
        if uri not in self._names:
            return Rejected(
                uri,
                "no_image",
                f"{place}: there is no such picture among the files of its source (those in archives and tables are "
                f"not looked for: {_EXPORT})",
            )
        try:
            box = box_of(row.get("box"))
            shape = usable_shape(points_of(row["landmarks"]))
        except BadAnnotation as error:
            return Rejected(uri, error.reason, f"{place}: {error.message}")
        return AnnotatedPhoto(self._url, uri, place, _subset(row), None, shape, box, row.get("sha256") or "")


def _without_face(row: dict[str, Any], place: str) -> Row | None:
    if row["status"] == "annotated":
        return None
    if row["status"] == "no_face":
        return Rejected(row["uri"], "no_annotation", f"{place}: no face was found in it")
    return Rejected(row["uri"], row.get("reason") or row["status"], f"{place}: {row.get('message')}")


def _subset(row: dict[str, Any]) -> str:
    said = row.get("corrected")
    unsaid = said is None or said != said  # polars keeps what is no number, where pandas writes nothing
    drawn = row.get("model") is not None if unsaid else not said
    return row.get("origin") or (PREDICTIONS if drawn else CORRECTIONS)


def _tables(files: Files) -> tuple[list[str], list[str]]:
    """The tables of faces, and those of images: by their folders, else by their columns."""
    names = [name for name, size in files.sizes().items() if size and name.lower().endswith(".parquet")]
    found: dict[str, list[str]] = {
        table: [name for name in names if PurePosixPath(name).parent.name == table] for table in ("faces", "images")
    }
    if not found["faces"] and len(names) == 1:
        found["faces"] = names if _has_faces(files, names[0]) else []
    return found["faces"], found["images"]


def _has_faces(files: Files, name: str) -> bool:
    try:
        with _table(files, name) as table:
            return {"uri", "landmarks"} <= set(table.schema_arrow.names)
    except UserError:
        return True  # for `scan` to tell what is wrong with it


@contextmanager
def _table(files: Files, name: str) -> Iterator[pq.ParquetFile]:
    """An open table; what is wrong with it is a `UserError`."""
    try:
        with files.open(name) as file, pq.ParquetFile(file) as table:
            yield table
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # of the storage; Arrow's own, about damaged bytes, have none
        raise UserError(f"{files.url}/{name} is no Parquet table, or damaged: {error}") from error


def _groups(files: Files, name: str, columns: Sequence[str], to_row: _ToRow) -> Iterator[_Group]:
    with _table(files, name) as table:
        schema = table.schema_arrow
        for field, values in _FORMAT.items():
            if (schema.metadata or {}).get(field, values[0]) not in values:
                raise UserError(f"{files.url}/{name}: its {field.decode()} is not {values[-1].decode()!r}: {_REMEDY}")
        missing = [column for column in columns[:2] if column not in schema.names]
        if missing:
            raise UserError(f"{files.url}/{name} has no column {missing[0]!r}: {_REMEDY}")
        present = [column for column in columns if column in schema.names]
        for column, (is_of, wanted) in _KINDS.items():
            if column in present and not is_of(kind := schema.field(column).type):
                raise UserError(f"{files.url}/{name}: its {column} is of type {kind}: write {wanted}")
        start = 0
        for index in range(table.num_row_groups):
            uris = _read(table, index, ["uri"], f"{files.url}/{name}")["uri"].to_pylist()
            if uris:
                yield _Group(
                    min(_uri(uri, name) for uri in uris), partial(_rows, files, name, index, start, present, to_row)
                )
            start += len(uris)


def _read(table: pq.ParquetFile, index: int, columns: Sequence[str], where: str) -> pa.Table:
    """A row group. Arrow reads strings that are no UTF-8, too, which Python then fails at."""
    batches = []
    for batch in table.iter_batches(_ROWS_READ, row_groups=[index], columns=list(columns), use_threads=False):
        if batch.nbytes > MOST_BYTES * batch.num_rows:
            raise UserError(f"{where}: rows have more than {MOST_BYTES} bytes each: {_REMEDY}")
        batches.append(batch)
    group = pa.Table.from_batches(batches, batches[0].schema if batches else table.schema_arrow).combine_chunks()
    group.validate(full=True)
    return group


def _is_number(kind: pa.DataType) -> bool:
    """Whether face numbers can be sorted by it; pandas makes floats of integers where one is missing."""
    return bool(pt.is_integer(kind) or pt.is_floating(kind) or pt.is_null(kind))


def _is_flag(kind: pa.DataType) -> bool:
    """Whether it says yes or no; the text "False" would be a yes."""
    return bool(pt.is_boolean(kind) or _is_number(kind))


def _is_text(kind: pa.DataType) -> bool:
    own = kind.value_type if pt.is_dictionary(kind) else kind
    return bool(pt.is_string(own) or pt.is_large_string(own) or pt.is_string_view(own) or pt.is_null(own))


_KINDS: Final[dict[str, tuple[Callable[[pa.DataType], bool], str]]] = {
    "face_index": (_is_number, "integers"),
    "sha256": (_is_text, "text"),
    "origin": (_is_text, "text"),
    "corrected": (_is_flag, "true and false"),
}
"""What a column must be of where it is there, and what to write."""


def _rows(
    files: Files, name: str, index: int, start: int, columns: Sequence[str], to_row: _ToRow
) -> Iterator[tuple[_Key, Row]]:
    with _table(files, name) as table:
        group = _read(table, index, columns, f"{files.url}/{name}")
    uris = [_uri(uri, name) for uri in group["uri"].to_pylist()]
    faces = group["face_index"].to_pylist() if "face_index" in columns else [0] * len(uris)
    keys: list[_Key] = [
        (uri, face or 0, name, start + row) for row, (uri, face) in enumerate(zip(uris, faces, strict=True))
    ]
    for row in sorted(range(len(keys)), key=keys.__getitem__):
        place = f"{name}#{start + row}"
        if uris[row] == name:
            yield keys[row], Rejected(name, "syntax", f"{place}: a row without a uri")
            continue
        made = to_row(group.slice(row, 1).to_pylist()[0] | {"uri": uris[row]}, place)
        if made is not None:
            yield keys[row], made


def _uri(value: object, table: str) -> str:
    """The picture's name; the table's where a row has none, which no picture has."""
    return normal(value) if isinstance(value, str) and value else table


def _merged(groups: Sequence[_Group]) -> Iterator[Row]:
    """The rows of all groups in order; a group is read when the first of its uris is due."""
    waiting = deque(sorted(groups, key=lambda group: group.first))
    heap: list[tuple[_Key, Row, Iterator[tuple[_Key, Row]]]] = []
    while waiting or heap:
        while waiting and (not heap or waiting[0].first <= heap[0][0][0]):
            _push(heap, waiting.popleft().rows())
        if heap:
            _, row, rest = heapq.heappop(heap)
            yield row
            _push(heap, rest)


def _push(heap: list[tuple[_Key, Row, Iterator[tuple[_Key, Row]]]], rows: Iterator[tuple[_Key, Row]]) -> None:
    head = next(rows, None)
    if head is not None:
        heapq.heappush(heap, (*head, rows))


def _source(files: Files, table: str) -> Files:
    """The files among which the photographs are."""
    record = _run(files, table)
    if record is None:
        return Files(files.url)
    place, data = record
    try:
        run = json.loads(data)
        source, archive = run["source"], run.get("archive")
    except (ValueError, TypeError, KeyError, RecursionError, AttributeError):
        source = archive = None
    if not isinstance(source, str) or not source:
        raise UserError(f"{place}/{RUN} names no source: {_REMEDY}")
    local = Store(source).local_path()
    candidates = [archive] if isinstance(archive, str) and archive else []
    candidates += [source] if local is None or local.is_absolute() else [source, f"{place}/{source}"]
    for candidate in candidates:
        if Store(candidate).exists():
            if has_suffix(candidate, LIST_SUFFIXES):
                raise UserError(f"{files.url} was annotated from the list {candidate}: {_EXPORT}")
            return open_files(candidate)
    raise UserError(f"{place}/{RUN}: its source {source} does not exist: write there where the pictures are now")


def _run(files: Files, table: str) -> tuple[str, bytes] | None:
    """`run.json` of a table: beside it, or in the folder above; with the folder that a path in it is seen from."""
    folder = PurePosixPath(table).parent
    for place in (folder, folder.parent):
        name = (place / RUN).as_posix()
        if files.exists(name):
            return (
                split_url(files.url)[0] if is_archive(files.url) else Store(files.url).child(place.as_posix())
            ).url, files.read(name)
    if files.only:
        above = split_url(Store(files.url).absolute().url)[0]
        if above.version(RUN) is not None:
            return above.url, Files(above.url).read(RUN)
    return None
