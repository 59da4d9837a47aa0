"""Memory that goes round: pictures, crops and the layers of a network are as large one after another."""

import ctypes
from functools import cache
from typing import Final

# of malloc.h
_TRIM_THRESHOLD: Final = -1
_MMAP_THRESHOLD: Final = -3
_NEVER: Final = 2**30


@cache
def keep_memory() -> None:
    """Memory that this process frees stays its own, to be used again, from now on.

    The GNU C library hands large blocks back at once. To ask for them anew, page by page, took a quarter of the time
    of a look at a face. Other libraries (macOS, musl) keep them by themselves, or cannot be told.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt:
        mallopt(_TRIM_THRESHOLD, _NEVER)
        mallopt(_MMAP_THRESHOLD, _NEVER)
