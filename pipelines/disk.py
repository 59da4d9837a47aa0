"""How a file appears on a disk: whole, under a name of its own first, and synced before it gets the final one.

And which files are there.
"""

import ctypes
import errno
import os
import secrets
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, Final

from pipelines.errors import UserError

TEMP_PREFIX: Final = ".tmp-"
_WITHOUT_LINKS: Final = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EMLINK, errno.ENOSYS}
_libc: Final = ctypes.CDLL(None, use_errno=True)
_HERE: Final = -100
"""`AT_FDCWD` of `fcntl.h`."""
_RENAME_NOREPLACE: Final = 1


@contextmanager
def temporary(path: Path, data: bytes) -> Iterator[Path]:
    """A complete, synced file beside `path` that is gone afterwards unless it was renamed."""
    with growing(path) as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
        yield Path(file.name)


@contextmanager
def growing(path: Path | None) -> Iterator[BinaryIO]:
    """An open file beside `path`, or on this machine where that is None; gone afterwards unless it was renamed.

    Raises:
        UserError: its folder would lie behind a link that leads to none.
    """
    folder = Path(tempfile.gettempdir()) if path is None else path.parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        link = Path(error.filename)
        if not link.is_symlink():
            raise
        raise UserError(
            f"{link} is a link to {link.readlink()}, where no folder is: make that, or mount its disk, and run again"
        ) from None
    temporary = folder / f"{TEMP_PREFIX}{secrets.token_hex(8)}"
    file = temporary.open("xb")
    try:
        yield file
    finally:
        with suppress(OSError):  # of what did not fit on the disk, which was told
            file.close()
        temporary.unlink(missing_ok=True)


def named(temporary: Path, path: Path) -> bool:
    """Gives a whole file its final name; False where that is taken. Its first name stays until it is removed."""
    try:
        path.hardlink_to(temporary)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in _WITHOUT_LINKS or not hasattr(_libc, "renameat2"):
            raise
        return _renamed(temporary, path)
    return True


def _renamed(temporary: Path, path: Path) -> bool:
    """`named` where there are no hard links, as on memory cards; Python has no name for this call of Linux."""
    if _libc.renameat2(_HERE, os.fsencode(temporary), _HERE, os.fsencode(path), _RENAME_NOREPLACE) == 0:
        return True
    number = ctypes.get_errno()
    if number == errno.EEXIST:
        return False
    raise OSError(number, os.strerror(number), str(path))


def sync_directory(directory: Path) -> None:
    """Returns when the names in a directory would outlive a loss of power."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def files_below(folder: Path, strict: bool) -> Iterator[tuple[Path, int]]:
    """Regular files at any depth with their bytes, but for temporary ones; none where there is no such folder.

    Links to files count, folders behind links are not entered. What may not be looked at is passed over, unless it is
    to be `strict`.
    """

    def failed(error: OSError) -> None:
        if isinstance(error, PermissionError) and not strict:
            return
        if not isinstance(error, FileNotFoundError | NotADirectoryError):
            raise error

    for place, _, names in os.walk(folder, onerror=failed):
        for path in (Path(place, name) for name in names if not name.startswith(TEMP_PREFIX)):
            try:
                status = path.stat()
            except PermissionError as error:
                failed(error)
            except OSError:  # a dangling or looping link, or a file gone since it was listed
                continue
            else:
                if stat.S_ISREG(status.st_mode):
                    yield path, status.st_size
