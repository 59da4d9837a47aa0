"""What a place is called: a path, `file://` or `s3://`, and what lies beside, above and below it."""

import os
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Self
from urllib.parse import quote, unquote, urlsplit

from pipelines.errors import UserError
from pipelines.secrecy import has_password, without_secrets


@dataclass(frozen=True)
class Location:
    """A directory, or a file, local or on S3.

    `url` is as the user gave it, without a trailing slash. Keys are relative POSIX paths.
    """

    url: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "url", self.url.rstrip("/") or self.url[:1])
        scheme = re.match(r"([A-Za-z][A-Za-z0-9+.-]*)://", self.url)
        slip = re.match(r"(?i)(s3|https?|gs|az):(/(?!/)|$)", self.url)
        if not self.url or slip or (scheme and scheme[1] not in {"file", "s3"}):
            raise UserError(
                f"cannot open {without_secrets(self.url)!r}: give a folder, file:///folder or s3://bucket/prefix"
            )
        if self._remote and has_password(self.url):
            object.__setattr__(self, "url", "s3://")
            raise UserError("S3 credentials go into AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, not into a URL")

    def local_path(self) -> Path | None:
        """The directory of a local store, None for a remote one."""
        if self._remote:
            return None
        if self._by_file_url:
            with suppress(ValueError):  # of brackets where a host would be
                parts = urlsplit(self.url)
                if parts.netloc in {"", "localhost"}:
                    return Path(unquote(parts.path, errors="surrogateescape") or "/")
            raise UserError(f"cannot open {self.url!r}: a file URL has three slashes, file:///folder")
        try:
            # Not what `Path` makes of ./~name.
            return Path(self.url).expanduser() if self.url.startswith("~") else Path(self.url)
        except RuntimeError:
            raise UserError(
                f"{self.url}: there is no such user; write ./{self.url} for a name that begins so"
            ) from None

    def absolute(self) -> Self:
        """The same place for a process with another working directory."""
        local = self.local_path()
        if local is None:
            return self
        place = local.absolute()
        if ".." in place.parts:
            plain = Path(os.path.normpath(place))
            place = plain if plain.resolve() == place.resolve() else place  # it may lead back from behind a link
        return type(self)(str(place))

    def child(self, key: str) -> Self:
        below = _quoted(_checked(key)) if self._by_file_url else _checked(key)
        return type(self)(f"{self.url.rstrip('/')}/{below}")

    @property
    def parent(self) -> Self:
        """The directory above; a root, or a bucket, is above itself."""
        local = self.local_path()
        if local is None:
            above = self.url.rpartition("/")[0]
            return self if above == "s3:/" else type(self)(above)
        path = local if self._by_file_url else Path(self.url)
        path = path / ".." if self.url in {".", "~"} or path.name == ".." else path.parent
        return type(self)(f"file://{_quoted(str(path))}" if self._by_file_url else str(path))

    @property
    def name(self) -> str:
        """What the directory, or the file, is called in the one above."""
        local = self.local_path()
        return self.url.rpartition("/")[2] if local is None else local.name

    @property
    def _remote(self) -> bool:
        return self.url.startswith("s3://")

    @property
    def _by_file_url(self) -> bool:
        return self.url.startswith("file:")

    def _path(self, key: str) -> Path:
        root = self.local_path()
        assert root is not None
        return root / _checked(key)

    def _address(self, key: str) -> str:
        _checked(key.lstrip("/"))  # on S3 a name that begins with a slash leads nowhere else
        return f"{self.url}/{key}".rstrip("/")


def _quoted(path: str) -> str:
    """A path as it stands in a `file://` URL."""
    return quote(path, errors="surrogateescape")


def _checked(key: str) -> str:
    pure = PurePosixPath(key)
    if pure.is_absolute() or ".." in pure.parts:
        raise ValueError(f"key {key!r} leaves its store")
    return "" if key in {"", "."} else key
