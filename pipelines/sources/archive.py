"""Bare photographs for bulk annotation: a folder or a `.tar`, local or on S3.

Every input is an item and gives bytes or a reason, so that the result can hold a row for each. Nothing
is ever extracted: members are read in place, by offset.
"""

import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import BinaryIO, Final

from pipelines.archives.names import is_ignored, is_safe, printable, split_url
from pipelines.decoding import Limits, Undecodable
from pipelines.errors import UserError
from pipelines.storage import OutageError, Store

PROBLEMS: Final = {
    "unsafe_member": "not a regular file inside the archive (a link, a device, or a path that leaves it)",
    "truncated": "the archive ends before this member does",
    "corrupt": "the archive is damaged here: no member after this could be read",
    "unreadable": "its name is not valid UTF-8: rename the file",
}
_TAIL: Final = "(end of archive)"


@dataclass(frozen=True, slots=True)
class ArchiveItem:
    """One input. `uri` is the member's name or the path below the folder.

    `offset` is where its bytes start in the tar (0 in a folder). `problem` is the reason code of an
    input that is known to be unusable without reading it, else empty.
    """

    uri: str
    offset: int
    size: int
    problem: str = ""


@dataclass(frozen=True)
class Archive:
    """Inputs in archive order (a folder's: by uri); `ignored` counts sidecars and hidden files."""

    url: str
    items: tuple[ArchiveItem, ...]
    ignored: int

    def part(self, start: int, stop: int) -> "Archive":
        """The same archive with only `items[start:stop]`: what to send to a worker."""
        return replace(self, items=self.items[start:stop])

    def read(
        self, items: Sequence[ArchiveItem], max_bytes: int | None = None
    ) -> Iterator[tuple[ArchiveItem, bytes | Undecodable]]:
        """Each item with its bytes, or with why there are none; one item is held at a time.

        `max_bytes` is the most that is read of one item (by default that of `decoding.Limits`).
        Trouble that may pass (a broken connection) is raised as `OSError`, for the caller to retry.
        """
        limit = Limits().max_bytes if max_bytes is None else max_bytes
        if _is_tar(self.url):
            store, name = split_url(self.url)
            with store.open(name) as file:
                for item in items:
                    yield item, _checked(item, limit) or _read_member(file, item)
        else:
            store = Store(self.url)
            for item in items:
                yield item, _checked(item, limit) or _read_file(store, item, limit)


def open_archive(url: str) -> Archive:
    """Lists a folder or a tar; `UserError` when it is neither, or has no input."""
    store = Store(url)
    if url.lower().endswith((".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst", ".zip")):
        raise UserError(f"{url} is compressed, which allows no random access: unpack it to a .tar or a folder")
    if not store.exists():
        raise UserError(f"{url} does not exist: give a folder of pictures or a .tar")
    archive = _tar(store.url) if _is_tar(url) else _folder(store)
    if not archive.items:
        raise UserError(f"{url} has no pictures ({archive.ignored} other files): give a folder or a .tar with some")
    return archive


def _is_tar(url: str) -> bool:
    return url.lower().endswith(".tar")


def _folder(store: Store) -> Archive:
    local = store.local_path()
    if local is not None and not local.is_dir():
        raise UserError(f"{store.url} is neither a folder nor a .tar: give one of the two")
    items: list[ArchiveItem] = []
    ignored = 0
    for key, size in store.sizes().items():
        uri = printable(key)
        if is_ignored(key):
            ignored += 1
        elif uri != key:
            items.append(ArchiveItem(uri, 0, size or 0, "unreadable"))
        else:
            items.append(ArchiveItem(uri, 0, size or 0, "unsafe_member" if size is None else ""))
    items.sort(key=lambda item: item.uri)
    return Archive(store.url, tuple(items), ignored)


def _tar(url: str) -> Archive:
    store, name = split_url(url)
    items: list[ArchiveItem] = []
    ignored = 0
    with store.open(name, readahead=1 << 16) as file:
        end = file.seek(0, 2)
        file.seek(0)
        try:
            for item in tar_members(file, end):
                if item.problem in {"", "unsafe_member"} and is_ignored(item.uri):
                    ignored += 1
                else:
                    items.append(item)
        except tarfile.ReadError as error:
            raise UserError(f"{url} is not a tar archive: {error}") from error
    return Archive(url, tuple(items), ignored)


def tar_members(file: BinaryIO, end: int) -> Iterator[ArchiveItem]:
    """Members but folders, and one item for a broken tail; `ReadError` when the first header is none."""
    with tarfile.open(fileobj=file, mode="r:") as tar:
        while True:
            try:
                member = tar.next()
            except tarfile.ReadError:
                yield ArchiveItem(_TAIL, end, 0, "truncated")
                return
            if member is None:
                break
            tar.members.clear()  # type: ignore[attr-defined]  # or it holds every member of a large archive
            if member.isdir():
                continue
            problem = ""
            if not member.isreg() or member.issparse() or not is_safe(member.name):
                problem = "unsafe_member"
            elif member.offset_data + member.size > end:
                problem = "truncated"
            yield ArchiveItem(printable(member.name), member.offset_data, member.size, problem)
            if problem == "truncated":
                return
        tail = tar.offset
    file.seek(tail)
    block = file.read(tarfile.BLOCKSIZE)
    if len(block) < tarfile.BLOCKSIZE:
        yield ArchiveItem(_TAIL, tail, 0, "truncated")
    elif any(block):
        yield ArchiveItem(_TAIL, tail, 0, "corrupt")


def _checked(item: ArchiveItem, limit: int) -> Undecodable | None:
    if item.problem:
        return Undecodable(item.problem, PROBLEMS[item.problem])
    if item.size > limit:
        return Undecodable("too_large", f"{item.size} bytes, the limit is {limit}")
    return None


def _read_member(file: BinaryIO, item: ArchiveItem) -> bytes | Undecodable:
    file.seek(item.offset)
    data = file.read(item.size)
    if len(data) < item.size:
        return Undecodable("unreadable", "the archive became shorter since it was listed")
    return data


def _read_file(store: Store, item: ArchiveItem, limit: int) -> bytes | Undecodable:
    try:
        with store.open(item.uri) as file:
            data = file.read(limit + 1)
    except OutageError:
        raise
    except UserError as error:
        return Undecodable("unreadable", str(error))
    return data if len(data) <= limit else Undecodable("too_large", f"the limit is {limit} bytes")
