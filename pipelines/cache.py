"""What is kept on this machine from one command to the next, and can be had again: a directory of the user's."""

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

from pipelines.errors import UserError
from pipelines.storage import Store

KEPT: Final = 8
"""Files of a folder that `remembered` leaves, the newest."""


def cache_directory() -> Path:
    """`MSRRN_CACHE`, else `msrrn` in the user's cache directory."""
    if own := os.environ.get("MSRRN_CACHE"):
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "msrrn"


def remembered(folder: str, name: str, make: Callable[[], bytes]) -> bytes:
    """What `make` gave under this name before, else gives now; where nothing can be kept, it makes it each time."""
    place = cache_directory() / folder
    with suppress(OSError):
        return (place / name).read_bytes()
    data = make()
    with suppress(OSError, UserError):
        Store(str(place)).publish(name, data)
        for path in sorted(place.iterdir(), key=lambda path: path.stat().st_mtime)[:-KEPT]:
            path.unlink()
    return data
