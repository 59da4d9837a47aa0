"""How a file appears on a disk: whole, under a name of its own first, and synced before it gets the final one."""

import os
import secrets
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, Final

TEMP_PREFIX: Final = ".tmp-"


def regular_size(path: Path) -> int | None:
    try:
        status = path.stat()
    except OSError:  # a dangling or looping link, or a file gone since it was listed
        return None
    return status.st_size if stat.S_ISREG(status.st_mode) else None


@contextmanager
def temporary(path: Path, data: bytes) -> Iterator[Path]:
    """A complete, synced file beside `path` that is gone afterwards unless it was renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{TEMP_PREFIX}{secrets.token_hex(8)}")
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def growing(path: Path | None) -> Iterator[BinaryIO]:
    """An open file beside `path`, or on this machine where that is None; gone afterwards unless it was renamed."""
    folder = Path(tempfile.gettempdir()) if path is None else path.parent
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f"{TEMP_PREFIX}{secrets.token_hex(8)}"
    file = temporary.open("xb")
    try:
        yield file
    finally:
        with suppress(OSError):  # of what did not fit on the disk, which was told
            file.close()
        temporary.unlink(missing_ok=True)


def sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
