"""Archives that this process holds open with their listing, so that reading a member costs one seek.

Members are read in place. A compressed tar has no random access: each process that reads from it unpacks it
once into a temporary file without a name. No size in a header is trusted: what is read is limited.
"""

import errno
import gzip
import os
import shutil
import stat
import tarfile
import tempfile
import threading
import zipfile
import zlib
from collections import OrderedDict
from contextlib import suppress
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import BinaryIO, Final, cast

from pipelines.errors import UserError
from pipelines.sources.archive import PROBLEMS, is_safe, tar_members
from pipelines.storage import Store

ARCHIVE_SUFFIXES: Final = (".tar", ".tar.gz", ".tgz", ".zip")
MAX_OPEN: Final = 256
"""Archives that a process holds open."""
MAX_UNPACKED: Final = 64 << 30
"""Bytes of a `.tar.gz` once unpacked; half of the free disk space is the other limit."""
MESSAGES: Final = PROBLEMS | {
    "linked_folder": "a link to a folder that is read under another name",
    "encrypted": "encrypted: unpack the archive and make a new one without a password",
    "compression": "compressed by a method other than deflate: make the archive again",
    "broken_archive": "an archive that cannot be read: fetch or make it again",
}
_READAHEAD: Final = 1 << 16
_UNIX: Final = 3


@dataclass(frozen=True, slots=True)
class Entry:
    """A file as it is listed: its bytes, and the code of what keeps it from being read."""

    size: int
    problem: str = ""
    offset: int = 0
    """of a tar's member; a zip has its own directory"""


class Changed(Exception):  # noqa: N818 - caught here
    """The archive is no longer the one that was listed, or no longer open."""


class HeldArchive:
    """An archive held open by this process: its members, and one reader of them at a time."""

    def __init__(self, url: str, version: str) -> None:
        self.url = url
        self.version = version
        self._lock = threading.Lock()
        self._zip: zipfile.ZipFile | None = None
        self._infos: dict[str, zipfile.ZipInfo] = {}
        file: BinaryIO = Store(url).open("", readahead=_READAHEAD)
        try:
            if url.lower().endswith(".zip"):
                self._zip = _open_zip(file, url)
                self._infos = {normal(_zip_name(info)): info for info in self._zip.infolist() if not info.is_dir()}
                self.entries = {name: _zip_entry(name, info) for name, info in self._infos.items()}
            else:
                file = file if url.lower().endswith(".tar") else _unpacked(file, url)
                self.entries = _tar_entries(file, url)
        except BaseException:
            file.close()
            raise
        self._file = file

    def read(self, member: str, limit: int) -> bytes:
        entry = self.entries.get(member)
        name = f"{self.url}/{member}"
        if entry is None:
            raise UserError(f"{name} does not exist: correct the annotation, or add the file to the archive")
        if entry.problem:
            raise UserError(f"{name}: {MESSAGES[entry.problem]}")
        if entry.size > limit:
            raise too_large(name, limit)
        with self._lock:
            data = self._member(member, entry, limit)
        if len(data) != entry.size:
            raise UserError(f"{name}: the archive is damaged, or changed: fetch or make it again")
        return data

    def close(self) -> None:
        with self._lock:
            self._file.close()

    def _member(self, member: str, entry: Entry, limit: int) -> bytes:
        if self._file.closed:
            raise Changed
        try:
            if self._zip is None:
                self._file.seek(entry.offset)
                return self._file.read(entry.size)
            with self._zip.open(self._infos[member]) as file:
                return file.read(limit + 1)
        except OSError as error:
            if error.errno == errno.EBUSY:  # so s3fs says that the object was replaced since it was opened
                raise Changed from error
            raise
        except (zipfile.BadZipFile, zlib.error, EOFError, ValueError, NotImplementedError, RuntimeError) as error:
            raise UserError(f"{self.url}/{member} is damaged ({error}): fetch or make the archive again") from error


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
        archive = HeldArchive(url, version)
    with _archives_lock:
        _archives[key] = archive
        _archives.move_to_end(key)
        displaced = _archives.popitem(last=False)[1] if len(_archives) > MAX_OPEN else None
    if displaced:
        displaced.close()
    return archive


def is_archive(url: str) -> bool:
    """Whether a file with the suffix of an archive lies there; a folder may have such a name."""
    if not url.lower().endswith(ARCHIVE_SUFFIXES):
        return False
    return (os.getpid(), url) in _archives or Store(url).version() is not None


def _tar_entries(file: BinaryIO, url: str) -> dict[str, Entry]:
    end = file.seek(0, os.SEEK_END)
    file.seek(0)
    try:
        return {normal(item.uri): Entry(item.size, item.problem, item.offset) for item in tar_members(file, end)}
    except tarfile.ReadError as error:
        raise UserError(f"{url} is not a tar archive: {error}") from error


def _unpacked(file: BinaryIO, url: str) -> BinaryIO:
    unpacked = cast(BinaryIO, tempfile.TemporaryFile())  # noqa: SIM115 - it lives as long as the archive
    try:
        _unpack(file, unpacked, url)
    except BaseException as error:
        with suppress(OSError):  # of the last block, which does not fit either
            unpacked.close()
        if isinstance(error, OSError) and error.errno in {errno.ENOSPC, errno.EDQUOT}:
            place = tempfile.gettempdir()
            raise UserError(f"disk full: {url} does not fit into {place}: unpack it, or set TMPDIR") from error
        raise
    return unpacked


def _unpack(file: BinaryIO, unpacked: BinaryIO, url: str) -> None:
    limit = min(MAX_UNPACKED, shutil.disk_usage(tempfile.gettempdir()).free // 2)
    try:
        with file, gzip.GzipFile(fileobj=file) as stream:
            while block := stream.read1(1 << 20):  # `read` would lose what precedes a break
                unpacked.write(block)
                if unpacked.tell() > limit:
                    raise UserError(f"{url} unpacks to more than {limit} bytes: unpack it, or set TMPDIR")
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        # What came before is sound, and the tar says by itself that it ends too early.
        if not unpacked.tell():
            raise UserError(f"{url} is not a compressed tar: {error}") from error
    unpacked.flush()


def _open_zip(file: BinaryIO, url: str) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(file)
    except OSError:
        raise
    except Exception as error:  # the directory is unpacked by hand there, and anything may be in it
        raise UserError(f"{url} is not a zip archive, or was cut short ({error}): fetch it again") from error


def _zip_name(info: zipfile.ZipInfo) -> str:
    # Some programs for Windows write its own separator, which the format forbids.
    return info.filename if "/" in info.filename else info.filename.replace("\\", "/")


def _zip_entry(name: str, info: zipfile.ZipInfo) -> Entry:
    kind = stat.S_IFMT(info.external_attr >> 16) if info.create_system == _UNIX else 0
    if not is_safe(name) or kind not in {0, stat.S_IFREG}:
        return Entry(info.file_size, "unsafe_member")
    if info.flag_bits & 1:
        return Entry(info.file_size, "encrypted")
    if info.compress_type not in {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}:
        return Entry(info.file_size, "compression")  # of the others, one small block may unpack to any size
    return Entry(info.file_size)


def without_suffix(name: str) -> str:
    """A name without the suffix of an archive: `lfpw` of `lfpw.tar.gz`."""
    suffix = max((suffix for suffix in ARCHIVE_SUFFIXES if name.lower().endswith(suffix)), key=len, default="")
    return name[: len(name) - len(suffix)] or name


def root_parts(url: str) -> tuple[str, ...]:
    """The names of a root and of the folder that it lies in; an archive's without suffix."""
    place = Store(url).absolute()
    local = place.local_path()
    parts = local.resolve().parts if local else tuple(place.url.split("/"))
    return tuple(without_suffix(part) for part in parts[-2:])


def normal(name: str) -> str:
    """A member's name without `./` and doubled slashes."""
    return PurePosixPath(name).as_posix()


def too_large(name: str, limit: int) -> UserError:
    return UserError(f"{name} is larger than the limit of {limit} bytes")
