"""Archives and tables as containers of pictures: opened, listed, and kept open for the next call of this process."""

import os
import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import BinaryIO, Final, Protocol

from pipelines.archives.inputs import PIECE, Input
from pipelines.archives.names import ARCHIVE_SUFFIXES, TABLE_SUFFIXES, UNSUPPORTED_SUFFIXES, has_suffix, is_ignored
from pipelines.archives.tables import Table
from pipelines.archives.tars import Tar
from pipelines.archives.zips import Zip
from pipelines.decoding import Undecodable
from pipelines.outages import MissingError
from pipelines.storage import Store

SUFFIXES: Final = ARCHIVE_SUFFIXES + TABLE_SUFFIXES
MAX_IDLE: Final = 4
"""Containers that a process keeps open: a compressed tar has been unpacked up to where it was read last."""
_READAHEAD: Final = 1 << 16


class Container(Protocol):
    """One open archive or table."""

    def members(self) -> Iterator[Input]:
        """Its pictures and other files, in order, with names for uris and no container."""

    def read(self, item: Input, limit: int) -> bytes | Undecodable:
        """The bytes of one, or why there are none; `OSError` or `OutageError` for what may pass."""

    def close(self) -> None:
        """Closes the file."""


def open_container(store: Store, key: str, *, through: bool = True) -> Container:
    """Opens one by its suffix, to read it `through`, from its beginning to its end, or a member here and there.

    Raises:
        BrokenArchiveError: it is not what its name says.
        NoPicturesError: it is a table without pictures.
        UnsupportedArchiveError: it is a table with several pictures a row.
        UserError: it is not there, or may not be opened.
    """
    table = has_suffix(key, TABLE_SUFFIXES)
    through = through and not table  # of a table, all that a column has in a row group is read at once
    file: BinaryIO = store.open(key, PIECE if through else _READAHEAD, through=through)
    place = f"{store.url}/{key}"
    try:
        if table:
            return Table(file, place, _version(store, key))
        return Zip(file, place) if has_suffix(key, (".zip",)) else Tar(file, place)
    except BaseException:
        file.close()
        raise


def list_container(store: Store, key: str, prefix: str = "") -> Iterator[Input | None]:
    """The inputs of a container, their uris after `prefix`; None for each file that is ignored."""
    container = open_container(store, key)
    try:
        for member in container.members():
            name, problem = member.uri, member.problem
            if isinstance(container, Table):
                yield replace(member, uri=prefix + name, container=key)
                continue
            if (is_ignored(name) or has_suffix(name, TABLE_SUFFIXES)) and problem not in {"truncated", "corrupt"}:
                yield None
                continue
            if not problem and has_suffix(name, ARCHIVE_SUFFIXES + UNSUPPORTED_SUFFIXES):
                problem = "nested_archive"
            yield replace(member, uri=prefix + name, container=key, problem=problem)
    finally:
        container.close()


_idle: OrderedDict[tuple[int, str, str], Container] = OrderedDict()
_idle_lock = threading.Lock()


@contextmanager
def borrowed(store: Store, key: str) -> Iterator[Container]:
    """A container for one caller at a time, opened anew only where no other left it open, or it changed.

    Raises:
        UserError: see `open_container`.
    """
    version = store.version(key)
    if version is None:
        raise MissingError(f"{store.url}/{key} does not exist: it was there when it was listed")
    place = os.getpid(), f"{store.url}/{key}", version  # a child of fork shares files' positions with its parent
    with _idle_lock:
        container = _idle.pop(place, None)
    if container is None:
        container = open_container(store, key)
    usable = False
    try:
        yield container
        usable = True
    except GeneratorExit:  # the caller wants no more
        usable = True
        raise
    finally:
        if usable:
            _give_back(place, container)
        else:
            container.close()


def _give_back(place: tuple[int, str, str], container: Container) -> None:
    with _idle_lock:
        displaced = _idle.pop(place, None)
        _idle[place] = container
        if displaced is None and len(_idle) > MAX_IDLE:
            displaced = _idle.popitem(last=False)[1]
    if displaced is not None:
        displaced.close()


def _version(store: Store, key: str) -> str:
    local = store.local_path()
    return f"{(local / key).stat().st_mtime_ns}" if local is not None else store.version(key) or ""
