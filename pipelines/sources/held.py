"""Archives that this process holds open with their listing, so that reading a member costs one seek.

Members are read in place (see `pipelines.archives`). A compressed tar is unpacked nowhere: each process that
reads from it goes through it once, and then costs at most 16 MiB of unpacking for a member.
"""

import errno
import os
import threading
from collections import OrderedDict
from functools import partial
from typing import Final

from pipelines.archives.containers import open_container
from pipelines.archives.names import ARCHIVE_SUFFIXES, has_suffix, printable, split_url
from pipelines.archives.patience import insist, told
from pipelines.decoding import Undecodable
from pipelines.errors import UserError
from pipelines.storage import Store

MAX_OPEN: Final = 256
"""Archives that a process holds open."""


class Changed(Exception):  # noqa: N818 - caught here
    """The archive is no longer the one that was listed, or no longer open."""


class HeldArchive:
    """An archive held open by this process: its members, and one reader of them at a time."""

    def __init__(self, url: str, version: str) -> None:
        self.url = url
        self.version = version
        self._lock = threading.Lock()
        self._container = open_container(*split_url(url), through=False)
        try:
            self.entries = {member.uri: member for member in self._container.members()}
        except BaseException:
            self._container.close()
            raise
        self._closed = False

    def read(self, member: str, limit: int) -> bytes:
        entry = self.entries.get(member)
        name = f"{self.url}/{member}"
        if entry is None:
            raise UserError(f"{name} does not exist: correct the annotation, or add the file to the archive")
        with self._lock:
            if self._closed:
                raise Changed
            try:
                data = self._container.read(entry, limit)
            except OSError as error:
                if error.errno == errno.EBUSY:  # so s3fs says that the object was replaced since it was opened
                    raise Changed from error
                raise
        if isinstance(data, Undecodable):
            raise too_large(name, limit) if data.reason == "too_large" else UserError(f"{name}: {data.message}")
        return data

    def close(self) -> None:
        with self._lock:
            self._closed = True
            self._container.close()


_archives: OrderedDict[tuple[int, str], HeldArchive] = OrderedDict()
_archives_lock = threading.Lock()


def held(url: str) -> HeldArchive:
    """The archive, opened at most once by this process while it stays as it is; every call asks whether it does."""
    key = os.getpid(), url  # a child of fork shares the files' positions with its parent
    with _archives_lock:
        archive = _archives.get(key)
    version = Store(url).version()
    if version is None:
        raise UserError(f"{url} does not exist: check the path, or the bucket and its region")
    if archive is None or archive.version != version:
        with told(url):
            archive = insist(partial(HeldArchive, url, version))
    with _archives_lock:
        _archives[key] = archive
        _archives.move_to_end(key)
        displaced = _archives.popitem(last=False)[1] if len(_archives) > MAX_OPEN else None
    if displaced:
        displaced.close()
    return archive


def is_archive(url: str) -> bool:
    """Whether a file with the suffix of an archive lies there; a folder may have such a name."""
    if not has_suffix(url, ARCHIVE_SUFFIXES):
        return False
    return (os.getpid(), url) in _archives or Store(url).version() is not None


def without_suffix(name: str) -> str:
    """A name without the suffix of an archive: `lfpw` of `lfpw.tar.gz`."""
    suffix = max((suffix for suffix in ARCHIVE_SUFFIXES if name.lower().endswith(suffix)), key=len, default="")
    return name[: len(name) - len(suffix)] or name


def root_parts(url: str) -> tuple[str, ...]:
    """The names of a root and of the folder that it lies in; an archive's without suffix."""
    place = Store(url).absolute()
    local = place.local_path()
    parts = local.resolve().parts if local else tuple(place.url.split("/"))
    return tuple(without_suffix(printable(part)) for part in parts[-2:])


def too_large(name: str, limit: int) -> UserError:
    return UserError(f"{name} is larger than the limit of {limit} bytes")
