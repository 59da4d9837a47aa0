"""What a JPEG is made of, told without decoding it (ITU-T T.81)."""

import re
from collections.abc import Iterator
from typing import Final

START: Final = b"\xff\xd8\xff"
"""Its first marker, and half of the next."""
SCAN: Final = b"\xff\xda"
END: Final = b"\xff\xd9"
_MARKER: Final = re.compile(rb"\xff[\x02-\xcf\xd9-\xfe]")
"""Of those that others may follow, and the end; no length is read behind one that has none."""
_FRAMES: Final = {b"\xff\xc0", b"\xff\xc1", b"\xff\xc2", b"\xff\xc9", b"\xff\xca"}
"""Of such as have coefficients: all but lossless ones."""
_COEFFICIENTS: Final = range(64)


def segments(data: bytes) -> Iterator[tuple[bytes, int]]:
    """The markers of its first picture, and where what they hold begins (B.1.1 and B.2)."""
    place = 0
    while (marker := _MARKER.search(data, place)) and marker[0] != END:
        yield marker[0], marker.end() + 2
        place = marker.end() + max(2, int.from_bytes(data[marker.end() : marker.end() + 2]))


def lacks_scans(data: bytes) -> bool:
    """Whether a coefficient of one of its components lacks bits, which come in several scans (B.2.3 and G.1.1)."""
    all_of: set[tuple[int, int]] = set()
    known: set[tuple[int, int]] = set()
    for marker, place in segments(data):
        if marker in _FRAMES:
            components = data[place + 6 : place + 6 + 3 * data[place + 5] : 3]
            all_of = {(component, index) for component in components for index in _COEFFICIENTS}
        elif marker == SCAN:
            behind = place + 1 + 2 * data[place]
            first, last, bits = data[behind : behind + 3]
            if not bits & 15:  # how many of the lowest are still to come
                of = data[place + 1 : behind : 2]
                known |= {(component, index) for component in of for index in range(first, last + 1)}
    return not all_of <= known
