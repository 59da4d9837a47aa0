"""What is kept on this machine from one command to the next, and can be had again: a directory of the user's."""

import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, TypeVar

from msrrn.openvino import compiled_for
from pipelines.errors import UserError
from pipelines.settings import Precision
from pipelines.storage import Store

T = TypeVar("T")

KEPT: Final = 8
"""Files of a folder that `remembered` leaves, the last that were made."""
_DIGEST: Final = hashlib.sha256().digest_size


def cache_directory() -> Path:
    """`MSRRN_CACHE`, else `msrrn` in the user's cache directory.

    Raises:
        UserError: the user has no home.
    """
    try:
        if own := os.environ.get("MSRRN_CACHE"):
            return Path(own).expanduser()
        return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "msrrn"
    except RuntimeError:
        raise UserError("there is no home directory to keep files in: set MSRRN_CACHE to a directory") from None


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Raises UserError where a folder of the cache cannot be written."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{folder} cannot be written ({error.strerror}): set MSRRN_CACHE to a folder that can be"
        ) from error


def remembered(folder: str, name: str, make: Callable[[], bytes], take_up: Callable[[bytes], T]) -> T:
    """Takes up what `make` gave under this name before, else gives now; where nothing can be kept, made each time.

    A kept file begins with the SHA-256 of the rest: a damaged one is made again, and so is one that `take_up` refuses
    with a `RuntimeError`.
    """
    with suppress(OSError, UserError, RuntimeError):
        kept = (cache_directory() / folder / name).read_bytes()
        if hashlib.sha256(kept[_DIGEST:]).digest() == kept[:_DIGEST]:
            return take_up(kept[_DIGEST:])
    data = make()
    with suppress(OSError, UserError):
        place = cache_directory() / folder
        Store(str(place)).publish(name, hashlib.sha256(data).digest() + data)
        for path in sorted(place.iterdir(), key=lambda path: path.stat().st_mtime)[:-KEPT]:
            path.unlink()
    return take_up(data)


def compiled_once(
    data: bytes, compile_: Callable[[bytes], bytes], take_up: Callable[[bytes], T], precision: Precision = "float32"
) -> T:
    """Takes up what `compile_` makes of a network's file by `msrrn.openvino.compiled`, for machines like this one.

    `precision` is what both are told. Compiling takes a worker longer than all else that it begins with.
    """
    name = hashlib.sha256(compiled_for(precision).encode() + data).hexdigest()
    return remembered("compiled", name[:32], lambda: compile_(data), take_up)
