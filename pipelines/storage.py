"""One way to open a place.

Whatever lies under a final name is whole: files are published by one rename or one put, and
completion records are created exclusively. S3 is reached through s3fs (`pipelines.s3`).
"""

import asyncio
import errno
import os
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final, cast

from pipelines.disk import TEMP_PREFIX, files_below, growing, named, sync_directory, temporary
from pipelines.errors import UserError
from pipelines.location import Location
from pipelines.outages import FULL, explained
from pipelines.s3 import s3_files

_ABSENT: Final = {errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG}
_CONDITION_FAILED: Final = {errno.EINVAL, 412}
"""How s3fs reports a put refused because the key exists (HTTP 412 has no errno of its own)."""
_KEYS_A_PAGE: Final = 1000
"""Of a listing on S3, which gives no more."""


@dataclass(frozen=True)
class Store(Location):
    """A directory, local or on S3. Cheap, immutable, picklable: connections are made where it is used.

    Errors a person can mend (missing, no permission, disk full) are `UserError`, and so is what S3 still
    refuses after several attempts; others stay `OSError`, so that the caller may retry.
    """

    def exists(self, key: str = "") -> bool:
        """Whether a file or a directory lies there; on S3 a directory exists when something is below it."""
        with explained(self.url, key):
            try:
                if self._remote:
                    s3_files().info(self._address(key))
                else:
                    self._path(key).stat()
            except ValueError:  # no name has a zero byte
                return False
            except OSError as error:  # what `Path.exists` makes of others depends on the Python
                if _is_absence(error):
                    return False
                raise
            return True

    def present(self, *keys: str) -> list[str]:
        """Those of the keys at which something lies, in their order."""
        return [key for key in keys if self.exists(key)]

    def version(self, key: str = "") -> str | None:
        """What changes when the file changes (its size, time and inode, or the ETag); None where no file is."""
        with explained(self.url, key):
            try:
                if self._remote:
                    info = s3_files().info(self._address(key))
                    return str(info["ETag"]) if info["type"] == "file" else None
                status = self._path(key).stat()
            except OSError as error:
                if _is_absence(error):
                    return None
                raise
            return f"{status.st_size} {status.st_mtime_ns} {status.st_ino}" if stat.S_ISREG(status.st_mode) else None

    def read_bytes(self, key: str) -> bytes:
        with explained(self.url, key):
            if self._remote:
                return cast(bytes, s3_files().cat_file(self._address(key)))
            return self._path(key).read_bytes()

    def reading(self, key: str, most: int) -> Callable[[], bytes]:
        """Begins to read the first `most` bytes of a regular file; what it returns waits for them.

        On S3 the request is on its way at once. A disk is told what will be read.
        """
        if self._remote:
            with explained(self.url, key):
                files = s3_files()
                # The coroutines of fsspec's filesystems run on its loop: no thread for each request.
                begun = asyncio.run_coroutine_threadsafe(
                    files._cat_file(self._address(key), start=0, end=most), files.loop
                )

            def receive() -> bytes:
                try:
                    return cast(bytes, begun.result())
                except OSError as error:
                    if error.errno == errno.EINVAL and files.size(self._address(key)) == 0:
                        return b""  # of an empty object any range is refused
                    raise

            return explained(self.url, key)(receive)
        path = self._path(key)
        if hasattr(os, "posix_fadvise"):
            with suppress(OSError), path.open("rb") as file:  # whatever it is, reading will say so
                os.posix_fadvise(file.fileno(), 0, most, os.POSIX_FADV_WILLNEED)

        def read() -> bytes:
            with path.open("rb") as file:
                return file.read(most)

        return explained(self.url, key)(read)

    def open(self, key: str, readahead: int = 1 << 20, *, through: bool = False) -> BinaryIO:
        """A seekable binary file for reading parts of a large object; close it.

        `readahead` is how many bytes beyond those asked for one request to S3 brings. A file that is read `through`,
        from its beginning to its end, comes in blocks of so many bytes, the next one meanwhile; no more than two are
        kept, so ask for no more than one at once.
        """
        with explained(self.url, key):
            if self._remote:
                blocks = {"cache_type": "background", "cache_options": {"maxblocks": 2}} if through else {}
                file = s3_files().open(self._address(key), "rb", block_size=readahead, **blocks)
                file.cache.fetcher = explained(self.url, key)(file.cache.fetcher)  # later reads fail as this one does
                return cast(BinaryIO, file)
            return self._path(key).open("rb")

    def objects(self, prefix: str = "") -> Iterator[tuple[str, int, str]]:
        """Of a store on S3: every object below `prefix` with its bytes and ETag, in S3's order, page by page."""
        with explained(self.url, prefix):
            bucket, root, _ = s3_files().split_path(self._address(""))
        root = f"{root}/" if root else ""
        below = f"{root}{prefix}/" if prefix else root
        page: dict[str, Any] = {"IsTruncated": True}
        while page.get("IsTruncated"):
            token = page.get("NextContinuationToken")
            with explained(self.url, prefix):
                page = s3_files().call_s3(
                    "list_objects_v2",
                    Bucket=bucket,
                    Prefix=below,
                    MaxKeys=_KEYS_A_PAGE,
                    **({"ContinuationToken": token} if token else {}),
                )
            for found in page.get("Contents", ()):
                # An object named "folder/" stands for an empty folder in S3 browsers.
                if not found["Key"].endswith("/"):
                    yield found["Key"].removeprefix(root), int(found["Size"]), str(found["ETag"])

    def keys(self, prefix: str = "") -> list[str]:
        """Keys of all regular files below `prefix` (a directory), sorted, relative to the store; see `files`."""
        return list(self.files(prefix))

    def files(self, prefix: str = "") -> dict[str, int]:
        """All regular files below `prefix` (a directory) with their bytes, sorted by key; never temporary files.

        Links to files count, folders behind links are not entered. An absent directory has no files.

        Raises:
            UserError: a folder below `prefix` may not be opened. Without a prefix it is passed over: beside ours
                there may be others.
        """
        if self._remote:
            return dict(sorted((key, size) for key, size, _ in self.objects(prefix)))
        with explained(self.url, prefix):
            root = self._path("")
            found = files_below(self._path(prefix), strict=bool(prefix))
            return dict(sorted((path.relative_to(root).as_posix(), size) for path, size in found))

    def linked(self, prefix: str) -> list[str]:
        """Keys of links to folders at `prefix` and below it, through which files would lie elsewhere; none on S3."""
        if self._remote:
            return []
        root, top = self._path(""), self._path(prefix)
        below = (Path(place, name) for place, names, _ in os.walk(top) for name in names)
        return [path.relative_to(root).as_posix() for path in (top, *below) if path.is_symlink() and path.is_dir()]

    def folders(self) -> list[str]:
        """Names of the directories directly below, sorted; none where there is no such place."""
        with explained(self.url, ""):
            try:
                if not self._remote:
                    return sorted(path.name for path in self._path("").iterdir() if path.is_dir())
                below = s3_files().ls(self.url, detail=True)
            except OSError as error:
                if _is_absence(error):
                    return []
                raise
            return sorted(info["name"].rpartition("/")[2] for info in below if info["type"] == "directory")

    def modified(self, key: str) -> float:
        """When a file was written, in seconds since 1970 by the storage's clock."""
        with explained(self.url, key):
            if self._remote:
                return float(s3_files().modified(self._address(key)).timestamp())
            return self._path(key).stat().st_mtime

    def require_writable(self, key: str) -> None:
        """Raises UserError where `key` could not be published: asked before what takes long. Leaves no file."""
        with explained(self.url, key):
            if self._remote:
                bucket, name, _ = s3_files().split_path(self._address(key))
                begun = s3_files().call_s3("create_multipart_upload", Bucket=bucket, Key=name)
                with suppress(PermissionError):  # to write is one right, to give up another
                    s3_files().call_s3("abort_multipart_upload", Bucket=bucket, Key=name, UploadId=begun["UploadId"])
                return
            path = self._path(key)
            if path.is_dir():
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
            with temporary(path, b""):
                pass

    def publish(self, key: str, data: bytes) -> None:
        """Writes a whole file or nothing; an older one is replaced in one step."""
        with explained(self.url, key):
            if self._remote:
                s3_files().pipe_file(self._address(key), data)
                return
            path = self._path(key)
            with temporary(path, data) as beside:
                beside.replace(path)
                sync_directory(path.parent)

    @contextmanager
    def writing(self, key: str) -> Iterator[BinaryIO]:
        """A new file to write, of any size, that is published when the block ends well; else nothing is there.

        It grows beside its final name, or in the folder for temporary files where that is on S3.
        """
        path = None if self._remote else self._path(key)
        with ExitStack() as stack:
            with explained(self.url, key):
                file = stack.enter_context(growing(path))
            try:
                yield file
            except OSError as error:
                if error.errno not in FULL:
                    raise  # of something else that the block did
                with explained(self.url, key):
                    raise
            with explained(self.url, key):
                file.flush()
                if path is None:
                    s3_files().put_file(file.name, self._address(key))
                    return
                os.fsync(file.fileno())
                Path(file.name).replace(path)
                sync_directory(path.parent)

    def create(self, key: str, data: bytes) -> bool:
        """Writes a whole file if the key is free; False when it exists (of racing writers one gets True).

        On S3 an object with just these bytes counts as one's own: the answer to its put may have been lost.
        """
        with explained(self.url, key):
            if self._remote:
                return self._create_remote(key, data)
            path = self._path(key)
            with temporary(path, data) as beside:
                if not named(beside, path):
                    return False
                sync_directory(path.parent)
            return True

    def delete(self, key: str) -> None:
        """Removes a file; one that is gone already is no error."""
        with explained(self.url, key):
            if self._remote:
                s3_files().rm_file(self._address(key))
            else:
                self._path(key).unlink(missing_ok=True)

    def sweep(self, seconds: float = 3600) -> None:
        """Removes temporary files of writers that were killed: those not written to for so long. S3 has none.

        One that cannot be removed is an error: it may hold what is to be forgotten.
        """
        root = self.local_path()
        for path in root.rglob(f"{TEMP_PREFIX}*") if root else ():
            with explained(str(path), ""), suppress(FileNotFoundError):
                status = path.lstat()
                if stat.S_ISREG(status.st_mode) and time.time() - status.st_mtime >= seconds:
                    path.unlink()

    def _create_remote(self, key: str, data: bytes) -> bool:
        try:
            s3_files().pipe_file(self._address(key), data, mode="create")
        except OSError as error:
            if not isinstance(error, FileExistsError) and (
                error.errno not in _CONDITION_FAILED or not self.exists(key)
            ):
                raise
            return self.read_bytes(key) == data
        return True


def _is_absence(error: OSError) -> bool:
    """Whether it says that nothing lies there; s3fs sets no errno."""
    return isinstance(error, FileNotFoundError) or error.errno in _ABSENT


def publish_file(url: str, data: bytes) -> None:
    """Publishes a file that is given by its own path or URL."""
    place = Store(url)
    place.parent.publish(place.name, data)


def require_writable_file(url: str) -> None:
    """`Store.require_writable` of a file that is given by its own path or URL; no device, which it would replace."""
    place = Store(url)
    path = place.local_path()
    if path is not None and (path.parent == Path("/dev") or (path.exists() and not path.is_file() | path.is_dir())):
        raise UserError(f"{url} is a device or a pipe, whose place a file would take: give the path of a file")
    place.parent.require_writable(place.name)
