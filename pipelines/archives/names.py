"""What names of files and of members of archives say: the kind, and whether they are safe or beside the point."""

from pathlib import PurePosixPath
from typing import Final

from pipelines.storage import Store

ARCHIVE_SUFFIXES: Final = (".tar", ".tar.gz", ".tgz", ".zip")
UNSUPPORTED_SUFFIXES: Final = (".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".7z", ".rar")
"""Archives without random access, or without a library that reads them safely."""
TABLE_SUFFIXES: Final = (".parquet",)
LIST_SUFFIXES: Final = (".txt", ".lst", ".csv")
COMMON_SUFFIXES: Final = frozenset(
    {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".avif", ".heic", ".heif", ".jp2", ".ppm"}
)
"""By which every tool knows a picture."""
IMAGE_SUFFIXES: Final = COMMON_SUFFIXES | {".jfif", ".jpe", ".hif", ".pgm", ".pnm"}

SIDECARS: Final = frozenset(
    {".pts", ".csv", ".tsv", ".json", ".jsonl", ".txt", ".lst", ".cls", ".xml", ".md", ".html", ".npy"}
)
"""Suffixes of files that lie beside photographs and are none: counted, not read."""
MAX_NAME: Final = 4096
"""Characters: no file system has a longer path. Longer ones, of a megabyte in a tar, would fill tables and memory."""
_NAME_END: Final = 64
"""Characters that are kept of the end of a longer one, which tells its kind."""
_CLUTTER: Final = frozenset({"thumbs.db", "desktop.ini"})
"""What Windows leaves in folders."""


def has_suffix(name: str, suffixes: tuple[str, ...]) -> bool:
    """Whether a name ends like this, in capitals or not."""
    return name.lower().endswith(suffixes)


def is_hidden(uri: str) -> bool:
    """Whether a file or a folder above it is hidden, or was added by macOS to an archive."""
    parts = PurePosixPath(uri).parts
    return any((part.startswith(".") and part not in {".", ".."}) or part == "__MACOSX" for part in parts)


def is_picture(name: str) -> bool:
    """Whether a name ends like a picture's."""
    return PurePosixPath(name).suffix.lower() in IMAGE_SUFFIXES


def is_ignored(uri: str) -> bool:
    """Whether a file is no input by its name: hidden, a sidecar, or clutter."""
    path = PurePosixPath(uri)
    return path.suffix.lower() in SIDECARS or path.name.lower() in _CLUTTER or is_hidden(uri)


def is_safe(name: str) -> bool:
    """Whether a member's name stays below the archive that holds it."""
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts


def normal(name: str) -> str:
    """A member's name without `./` and doubled slashes."""
    return PurePosixPath(name).as_posix()


def printable(name: str) -> str:
    """A name for tables and people: those that are not UTF-8 come with lone surrogates, which no table can hold."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def shortened(name: str) -> str:
    """A name, of at most `MAX_NAME` characters: of a longer one the beginning and the end."""
    return name if len(name) <= MAX_NAME else f"{name[: MAX_NAME - _NAME_END - 1]}…{name[-_NAME_END:]}"


def split_url(url: str) -> tuple[Store, str]:
    """The folder that a file lies in, and its name there."""
    if url.startswith("file:"):
        return Store(url).parent, Store(url).name
    parent, _, name = url.rpartition("/")
    if url.startswith("s3://"):
        folder = parent.rstrip("/")
        return Store(folder), f"{parent[len(folder) :]}{name}"  # an object's name may begin with slashes
    return Store(parent or ("/" if url.startswith("/") else ".")), name


def row_name(row: int) -> str:
    """Of a table's row without a name: of as many digits in every table, or names would change as it grows."""
    return f"{row:010}"
