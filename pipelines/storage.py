"""One way to open a place: a path, `file://` or `s3://`.

Whatever lies under a final name is whole: files are published by one rename or one put, and
completion records are created exclusively. S3 is reached through s3fs with the standard `AWS_*`
variables (endpoint, credentials, region).
"""

import errno
import hashlib
import os
import re
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, Final, cast
from urllib.parse import unquote, urlsplit

import fsspec
from botocore.exceptions import NoCredentialsError  # type: ignore[import-untyped]

from pipelines.errors import UserError

_TEMP_PREFIX: Final = ".tmp-"
_FULL: Final = {errno.ENOSPC, errno.EDQUOT}
_REFUSED: Final = {
    errno.EACCES,
    errno.EEXIST,
    errno.EPERM,
    errno.EROFS,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.ENAMETOOLONG,
    errno.EOPNOTSUPP,
}
_CONDITION_FAILED: Final = {errno.EINVAL, 412}
"""How s3fs reports a put refused because the key exists (HTTP 412 has no errno of its own)."""


@dataclass(frozen=True)
class Store:
    """A directory, local or on S3. Cheap, immutable, picklable: connections are made where it is used.

    `url` is as the user gave it, without a trailing slash. Keys are relative POSIX paths.
    Errors a person can mend (missing, no permission, disk full) are `UserError`; others stay `OSError`,
    so that the caller may retry.
    """

    url: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "url", self.url.rstrip("/") or self.url[:1])
        scheme = re.match(r"([A-Za-z][A-Za-z0-9+.-]*)://", self.url)
        if not self.url or (scheme and scheme[1] not in {"file", "s3"}) or self.url == "s3:":
            raise UserError(f"cannot open {self.url!r}: give a folder, file:///folder or s3://bucket/prefix")

    def local_path(self) -> Path | None:
        """The directory of a local store, None for a remote one."""
        if self._remote:
            return None
        if self.url.startswith("file:"):
            parts = urlsplit(self.url)
            if parts.netloc not in {"", "localhost"}:
                raise UserError(f"cannot open {self.url!r}: a file URL has three slashes, file:///folder")
            return Path(unquote(parts.path) or "/")
        return Path(self.url).expanduser()

    def absolute(self) -> "Store":
        """The same place for a process with another working directory."""
        local = self.local_path()
        return Store(str(local.absolute())) if local else self

    def child(self, key: str) -> "Store":
        return Store(f"{self.url.rstrip('/')}/{_checked(key)}")

    def exists(self, key: str = "") -> bool:
        """Whether a file or a directory lies there; on S3 a directory exists when something is below it."""
        with self._explained(key):
            return bool(_s3().exists(self._address(key))) if self._remote else self._path(key).exists()

    def read_bytes(self, key: str) -> bytes:
        with self._explained(key):
            if self._remote:
                return cast(bytes, _s3().cat_file(self._address(key)))
            return self._path(key).read_bytes()

    def open(self, key: str, readahead: int = 1 << 20) -> BinaryIO:
        """A seekable binary file for reading parts of a large object; close it.

        `readahead` is how many bytes beyond those asked for one request to S3 brings.
        """
        with self._explained(key):
            if self._remote:
                return cast(BinaryIO, _s3().open(self._address(key), "rb", block_size=readahead))
            return self._path(key).open("rb")

    def sizes(self, prefix: str = "") -> dict[str, int | None]:
        """Every file below `prefix` (a directory) with its bytes, sorted by key; never temporary files.

        What is not a regular file, nor a link to one, has None: folders behind links are not entered.
        An absent directory has no files.
        """
        with self._explained(prefix):
            found = self._remote_sizes(prefix) if self._remote else self._local_sizes(prefix)
            return dict(sorted(found))

    def keys(self, prefix: str = "") -> list[str]:
        """Keys of all regular files below `prefix` (a directory), sorted, relative to the store."""
        return [key for key, size in self.sizes(prefix).items() if size is not None]

    def publish(self, key: str, data: bytes) -> None:
        """Writes a whole file or nothing; an older one is replaced in one step."""
        with self._explained(key):
            if self._remote:
                _s3().pipe_file(self._address(key), data)
                return
            path = self._path(key)
            with _temporary(path, data) as temporary:
                temporary.replace(path)
                _sync_directory(path.parent)

    def create(self, key: str, data: bytes) -> bool:
        """Writes a whole file if the key is free; False when it exists (of racing writers one gets True)."""
        with self._explained(key):
            if self._remote:
                return self._create_remote(key, data)
            path = self._path(key)
            with _temporary(path, data) as temporary:
                try:
                    path.hardlink_to(temporary)
                except FileExistsError:
                    return False
                _sync_directory(path.parent)
            return True

    @property
    def _remote(self) -> bool:
        return self.url.startswith("s3://")

    def _path(self, key: str) -> Path:
        root = self.local_path()
        assert root is not None
        return root / _checked(key)

    def _address(self, key: str) -> str:
        return f"{self.url}/{_checked(key)}".rstrip("/")

    def _local_sizes(self, prefix: str) -> Iterator[tuple[str, int | None]]:
        root = self._path("")
        for folder, folders, files in os.walk(self._path(prefix)):
            linked = [name for name in folders if Path(folder, name).is_symlink()]
            for name in (*files, *linked):
                if not name.startswith(_TEMP_PREFIX):
                    path = Path(folder, name)
                    yield path.relative_to(root).as_posix(), _regular_size(path)

    def _remote_sizes(self, prefix: str) -> Iterator[tuple[str, int | None]]:
        root = self._address("").removeprefix("s3://")
        for address, info in _s3().find(self._address(prefix), detail=True).items():
            key = address.removeprefix(root).lstrip("/")
            # An object named "folder/" stands for an empty folder in S3 browsers.
            if key and not address.endswith("/") and info["type"] == "file":
                yield key, int(info["size"])

    def _create_remote(self, key: str, data: bytes) -> bool:
        try:
            _s3().pipe_file(self._address(key), data, mode="create")
        except FileExistsError:
            return False
        except OSError as error:
            if error.errno not in _CONDITION_FAILED or not self.exists(key):
                raise
            return False
        return True

    @contextmanager
    def _explained(self, key: str) -> Iterator[None]:
        name = f"{self.url}/{key}" if key else self.url
        try:
            yield
        except FileNotFoundError as error:
            raise UserError(f"{name} does not exist: check the path, or the bucket and its region") from error
        except NoCredentialsError as error:
            raise UserError(f"{name}: no S3 credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY") from error
        except OSError as error:
            if error.errno in _FULL:
                raise UserError(
                    f"disk full: {name} was not written; nothing half-written was left. Free some space"
                ) from error
            if isinstance(error, PermissionError) or error.errno in _REFUSED:
                raise UserError(f"{name}: {error.strerror or error}; check the path and its rights") from error
            raise


def short_digest(text: str) -> str:
    """Eight hexadecimal digits that stand for a text in a name."""
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:8]


def _s3() -> Any:
    # fsspec keeps one instance per process and drops it after a fork; listings must not be stale.
    return fsspec.filesystem("s3", use_listings_cache=False)


def _checked(key: str) -> str:
    pure = PurePosixPath(key)
    if pure.is_absolute() or ".." in pure.parts:
        raise ValueError(f"key {key!r} leaves its store")
    return "" if key in {"", "."} else key


def _regular_size(path: Path) -> int | None:
    try:
        status = path.stat()
    except OSError:  # a dangling or looping link, or a file gone since it was listed
        return None
    return status.st_size if stat.S_ISREG(status.st_mode) else None


@contextmanager
def _temporary(path: Path, data: bytes) -> Iterator[Path]:
    """A complete, synced file beside `path` that is gone afterwards unless it was renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{_TEMP_PREFIX}{secrets.token_hex(8)}")
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
