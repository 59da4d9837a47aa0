"""The `.pts` files of 300-W: 68 points as text, 1-based (the first pixel's centre is 1, 1)."""

import math
import re
from typing import Final

import numpy as np
from numpy.typing import NDArray

from msrrn.landmarks import NUM_LANDMARKS
from pipelines.sources.annotation import MAX_BYTES, BadAnnotation, number, usable_shape

_HEADER: Final = re.compile(r"(version|n_points)\s*:\s*(\d{1,9})", re.IGNORECASE)


def parse_pts(data: bytes) -> NDArray[np.float64]:
    """The points of a file, float64 (68, 2), 0-based pixels; with or without header and braces.

    Raises `BadAnnotation`: syntax, count, not_finite, flat.
    """
    points: list[tuple[float, float]] = []
    declared = NUM_LANDMARKS
    for row, line in enumerate(_text(data).splitlines(), start=1):
        words = line.strip().strip("{}").split()
        header = _HEADER.fullmatch(" ".join(words))
        if header:
            declared = int(header[2]) if header[1].lower() == "n_points" else declared
        elif words:
            points.append(_point(words, row))
    if declared != NUM_LANDMARKS or len(points) != NUM_LANDMARKS:
        raise BadAnnotation("count", f"{len(points)} points (header: {declared}) instead of {NUM_LANDMARKS}")
    return usable_shape(np.array(points, dtype=np.float64) - 1.0)


def format_pts(shape: NDArray[np.floating]) -> bytes:
    """The file of a shape (68, 2), 0-based pixels: header, 1-based, six decimals."""
    rows = "".join(f"{x:.6f} {y:.6f}\n" for x, y in np.asarray(shape, np.float64) + 1.0)
    return f"version: 1\nn_points: {len(shape)}\n{{\n{rows}}}\n".encode("ascii")


def _text(data: bytes) -> str:
    if len(data) > MAX_BYTES:
        raise BadAnnotation("syntax", f"{len(data)} bytes are too many for {NUM_LANDMARKS} points")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadAnnotation("syntax", "not a text file") from error


def _point(words: list[str], line: int) -> tuple[float, float]:
    try:
        x, y = (number(word) for word in words)
    except ValueError as error:
        raise BadAnnotation("syntax", f"line {line} is not a point: {' '.join(words)[:60]!r}") from error
    return (x, y) if math.isfinite(x) and math.isfinite(y) else (math.nan, math.nan)
