"""The files of a folder, a `.tar`, a `.tar.gz` or a `.zip`, local or on S3: one way to list and read them."""

import io
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import PurePosixPath
from typing import BinaryIO, Final

from pipelines.archives.folders import walk
from pipelines.archives.names import (
    ARCHIVE_SUFFIXES,
    UNSUPPORTED_SUFFIXES,
    has_suffix,
    is_hidden,
    is_picture,
    is_safe,
    normal,
    printable,
    split_url,
)
from pipelines.decoding import Limits
from pipelines.errors import UserError
from pipelines.outages import OutageError
from pipelines.sources.held import Changed, HeldArchive, held, is_archive, too_large
from pipelines.storage import Store

_READAHEAD: Final = 1 << 16


_State = int | str
"""A file's bytes, or the code of what keeps it from being read."""


@dataclass(frozen=True)
class Files:
    """The files below `url`; or, where `only` is set, that one of them, the others being there to be looked up.

    Names are POSIX paths below `url`, without `./`. Hidden files and what macOS adds to archives are left out.
    Linked folders are entered, each real folder once. The archives in a folder that holds no picture of its
    own are entered like folders: `lfpw.zip/trainset/a.png`; beside pictures, and inside another archive, they are
    not. Of members of one name the last counts. Files are listed once by each object, which travels as its URL alone.
    """

    url: str
    only: str = ""

    def sizes(self) -> dict[str, int | None]:
        """Every file with its bytes, sorted by name; None for what cannot be read: see `problems`."""
        return {name: state if isinstance(state, int) else None for name, state in self._states.items()}

    def problems(self) -> dict[str, str]:
        """Every name with None in `sizes`, and why: a code, with its text for people in `archives.PROBLEMS`."""
        return {name: state for name, state in self._states.items() if isinstance(state, str)}

    def exists(self, name: str) -> bool:
        """Whether `read` would find the file; False for a name that leaves `url`, too."""
        if not _is_name(name):
            return False
        archive, member = self._place(name)
        if archive is None:
            return Store(self.url).version(member) is not None
        entry = archive.entries.get(member)
        return entry is not None and not entry.problem

    def read(self, name: str, max_bytes: int | None = None) -> bytes:
        """A file's bytes, at most `max_bytes` (by default those of `decoding.Limits`).

        Raises:
            UserError: it is gone, larger, or cannot be read. Trouble that may pass is an `OSError`.
        """
        limit = Limits().max_bytes if max_bytes is None else max_bytes
        if not _is_name(name):
            raise UserError(f"{self.url}: {name!r} is no name of a file below it; correct the annotation")
        archive, member = self._place(name)
        if archive is None:
            return _read_file(Store(self.url), member, limit)
        try:
            return archive.read(member, limit)
        except Changed:  # in this moment: replaced on S3, or displaced by the archives that other threads opened
            return held(archive.url).read(member, limit)

    def open(self, name: str) -> BinaryIO:
        """A file for reading parts of it, of any size; close it. A member of an archive is read whole."""
        archive, member = self._place(name)
        return Store(self.url).open(member, _READAHEAD) if archive is None else io.BytesIO(self.read(name))

    def __reduce__(self) -> tuple[type["Files"], tuple[str, str]]:
        return Files, (self.url, self.only)

    @cached_property
    def _states(self) -> dict[str, _State]:
        store = Store(self.url)
        if is_archive(self.url):
            states = _members(held(self.url))
        elif self.only:
            states = {self.only: _length(store, self.only)}
        else:
            states = _folder(store)
        return {name: states[name] for name in sorted(states) if not is_hidden(name)}

    def _place(self, name: str) -> tuple[HeldArchive | None, str]:
        """The archive that holds the file, and its name in there; None for a file of the folder."""
        if is_archive(self.url):
            return held(self.url), normal(name)
        parts = PurePosixPath(name).parts
        for index, part in enumerate(parts[:-1], start=1):
            if has_suffix(part, ARCHIVE_SUFFIXES):
                url = Store(self.url).child("/".join(parts[:index])).url
                if is_archive(url):
                    return held(url), "/".join(parts[index:])
        return None, normal(name)


def open_files(url: str) -> Files:
    """The files at a URL: of a folder or an archive, or the one file that it names.

    Raises:
        UserError: nothing is there.
    """
    store = Store(url)
    if is_archive(store.url):
        held(store.url)
        return Files(store.url)
    if store.version() is not None:
        folder, name = split_url(str(store.local_path() or store.url))
        return Files(folder.url, name)
    if not store.exists():
        raise UserError(f"{url} does not exist: give a folder, a .tar, .tar.gz or .zip, or an annotation file")
    return Files(store.url)


def _folder(store: Store) -> dict[str, _State]:
    local = store.local_path()
    if local is not None and not local.is_dir():  # a device, or gone by now
        return {}
    states: dict[str, _State] = {
        found.key: found.problem or found.size for found in walk(store, passes=is_hidden) if not found.ignored
    }
    enter = not any(map(is_picture, states))
    for name in [name for name, state in states.items() if isinstance(state, int)]:
        if has_suffix(name, UNSUPPORTED_SUFFIXES):
            states[name] = "unsupported_archive"
        elif has_suffix(name, ARCHIVE_SUFFIXES) and not enter:
            states[name] = "nested_archive"
        elif has_suffix(name, ARCHIVE_SUFFIXES):
            try:
                members = _members(held(store.child(name).url))
            except OutageError:
                raise
            except UserError:
                states[name] = "broken_archive"
            else:
                del states[name]
                states |= {f"{name}/{member}": state for member, state in members.items()}
    return states


def _members(archive: HeldArchive) -> dict[str, _State]:
    return {name: member.problem or _closed(name) or member.size for name, member in archive.entries.items()}


def _closed(member: str) -> str:
    """The problem of an archive inside an archive."""
    return "nested_archive" if has_suffix(member, ARCHIVE_SUFFIXES + UNSUPPORTED_SUFFIXES) else ""


def _read_file(store: Store, name: str, limit: int) -> bytes:
    # A pipe would wait for ever; on S3 a folder reads as an empty file.
    data = b""
    if store.local_path() is None or store.version(name) is not None:
        with store.open(name, _READAHEAD) as file:
            data = file.read(limit + 1)
    if not data and store.version(name) is None:
        raise UserError(f"{store.url}/{name} is no file: correct the annotation, or add the file")
    if len(data) > limit:
        raise too_large(f"{store.url}/{name}", limit)
    return data


def _length(store: Store, name: str) -> int:
    with store.open(name, _READAHEAD) as file:
        return file.seek(0, os.SEEK_END)


def _is_name(name: str) -> bool:
    return is_safe(name) and name not in {"", "."} and "\0" not in name and printable(name) == name
