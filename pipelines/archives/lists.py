"""A list of pictures: a path or URI a line, or in the first column of a `.csv`.

It is UTF-8, or UTF-16 with its mark. Relative paths are seen from the list's folder; `file://` and `s3://` are
followed wherever they lead. Blank lines, and what begins with `#`, are passed over. A table whose first column has a
heading may have semicolons or tabs between its columns; one of numbers without a heading may precede it, as pandas
writes it, and a line that says what separates columns, as spreadsheets want it. Nothing is asked of S3 while listing.
"""

import csv
import errno
import posixpath
import re
from collections.abc import Iterable, Iterator
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Final

from pipelines.archives.inputs import Input
from pipelines.archives.names import (
    ARCHIVE_SUFFIXES,
    TABLE_SUFFIXES,
    UNSUPPORTED_SUFFIXES,
    has_suffix,
    printable,
    split_url,
)
from pipelines.archives.patience import insist
from pipelines.archives.rows import in_rows, text_lines
from pipelines.errors import UserError
from pipelines.secrecy import masked
from pipelines.storage import Store

MAX_LINE: Final = 1 << 16
"""Characters: more than any path has."""
_HEADINGS: Final = frozenset(
    {"uri", "url", "path", "file", "filename", "filepath", "image", "imagefile", "imagename", "imagepath", "imageurl",
     "img", "imgpath", "picture", "photo", "key", "name"}
)  # fmt: skip
"""Without case, blanks, `_` and `-`."""
_SEPARATED_BY: Final = re.compile(r"sep=[,;\t]?", re.IGNORECASE)
"""A tab at the end of a line is gone by then."""
_URI: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://|file:/")
"""Java writes the URI of a file with one slash."""


def list_entries(store: Store, name: str) -> Iterator[Input]:
    """The entries of a list, as they are written, in order."""
    lines = _lines(store, name)
    for entry in _first_cells(lines) if has_suffix(name, (".csv",)) else _said(lines):
        shown = masked(entry)  # tables are read by others
        uri = printable(shown)
        problem = _problem(store, uri, entry) if shown == entry else "unsupported_url"
        size, version = (0, "") if problem else _state(*place_of(store, entry))
        yield Input(uri, "", 0, size, size, version, problem)


def _lines(store: Store, name: str) -> Iterator[str]:
    with store.open(name) as file:
        yield from text_lines(file, MAX_LINE, "surrogateescape", "\n")


def _said(lines: Iterable[str]) -> Iterator[str]:
    """Those that say something."""
    return (text for line in lines if (text := line.strip()) and not text.startswith("#"))


def _first_cells(lines: Iterator[str]) -> Iterator[str]:
    """Of a table without its heading; empty ones are left out."""
    first = next((line for line in _said(lines) if not _SEPARATED_BY.fullmatch(line)), "")
    place = 1 if first.startswith((",", ";")) else 0
    headed = (mark for mark in ",;\t" if re.sub(r"[ _-]", "", _cell(first, mark, place).lower()) in _HEADINGS)
    separator = next(headed, "")
    left, place = (lines, place) if separator else (chain([f"{first}\n"], lines), 0)
    rows = in_rows(enumerate(left), partial(_is_row, separator=separator or ","))
    return filter(None, (_cell(row, separator or ",", place) for row in _said(row for _, row in rows)))


def place_of(store: Store, entry: str) -> tuple[Store, str]:
    """Where an entry of a list in this folder lies: a folder and a name there.

    Raises:
        UserError: it cannot be a file, or is on a kind of storage that is not read.
    """
    if not _URI.match(entry):
        entry = _joined(store, entry)
    local = Store(entry).local_path()
    if local is not None:
        return Store(str(local.parent)), local.name
    return split_url(entry)


def _joined(store: Store, entry: str) -> str:
    """A path of a list as a path or URI that depends on nothing."""
    local = store.local_path()
    if local is not None or entry.startswith("/"):
        return str(((local or Path("/")) / entry).absolute())
    bucket, _, folder = store.url.removeprefix("s3://").partition("/")
    return f"s3://{bucket}{posixpath.normpath(posixpath.join('/', folder, entry))}"


def _cell(row: str, separator: str, place: int) -> str:
    try:
        return next(csv.reader([row], delimiter=separator))[place].strip()
    except (csv.Error, StopIteration, IndexError):
        return row


def _is_row(text: str, separator: str) -> bool:
    """Whether all quotes end in it."""
    try:
        list(csv.reader([text], delimiter=separator, strict=True))
    except csv.Error:
        return False
    return True


def _problem(store: Store, uri: str, entry: str) -> str:
    if uri != entry or "\0" in entry or entry.rpartition("/")[2] in {"", ".", ".."} or len(entry) > MAX_LINE // 16:
        return "unreadable"
    if has_suffix(entry, ARCHIVE_SUFFIXES + UNSUPPORTED_SUFFIXES + TABLE_SUFFIXES):
        return "nested_archive"
    try:
        folder, name = place_of(store, entry)
    except UserError:
        return "unsupported_url"
    # What a URI spells as %00 or %2E%2E.
    return "unreadable" if name == ".." or "\0" in f"{folder.url}/{name}" else ""


def _state(store: Store, name: str) -> tuple[int, str]:
    """Size and time of a local file; nothing is known of others, nor of what reading will find missing.

    A disk that cannot say is asked again: without them the file would be taken for one that was replaced.
    """
    local = store.local_path()
    try:
        status = insist((local / name).stat) if local is not None else None
    except OSError as error:
        if error.errno == errno.EIO:
            raise
        status = None
    return (status.st_size, f"{status.st_mtime_ns}") if status else (0, "")
