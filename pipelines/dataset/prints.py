"""The same photo twice, though its bytes differ: a perceptual print for each photo, and groups of like prints.

A print is a 64-bit hash (the signs of a small picture's lowest frequencies) that finds candidates, and a
thumbnail that verifies them. Of 283 photographs, copies are found again: all at JPEG quality 40, at a half and a
third of the size, in grey, or with another gamma; 94 % cropped by 3 %, 87 % where that comes off one edge, 38 % off a
corner. A mirrored copy is another picture to it. No two photographs of different scenes were taken for one
among the 2,261 of 300-W and of video frames, where 46 groups came out.
Source of the hash: Zauner, "Implementation and Benchmarking of Perceptual Image Hash Functions", 2010.
"""

import base64
from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipelines.bombs import Pieces, is_slow
from pipelines.decoding import Limits, decode

MAX_DISTANCE: Final = 7
"""Bits in which hashes of one photo's copies may differ: of four blocks of 16 bits, one then differs by 1 at most."""

MIN_CORRELATION: Final = 0.95
"""Of the thumbnails, that of brightness from pixel to pixel."""

_THUMBNAIL: Final = 12
_HASH_BYTES: Final = 8
_BLOCKS: Final = 4
_SMALL: Final = 64
"""Pixels that the shorter side keeps when the decoder scales down."""
_MIN_CONTRAST: Final = 2.0
_REDUCED: Final = {
    8: cv2.IMREAD_REDUCED_GRAYSCALE_8,
    4: cv2.IMREAD_REDUCED_GRAYSCALE_4,
    2: cv2.IMREAD_REDUCED_GRAYSCALE_2,
}


def photo_print(data: bytes) -> str:
    """The print of an encoded picture: 204 characters of base64, or "" where it shows nothing.

    The same bytes give the same print; orientation by EXIF is undone first.

    Raises:
        Undecodable: it cannot be decoded.
    """
    grey = _grey(data)
    if grey.std() < _MIN_CONTRAST:
        return ""
    small = cv2.resize(grey, (32, 32), interpolation=cv2.INTER_AREA).astype(np.float64)
    lowest = cv2.dct(small)[:8, :8].round(3)
    bits = np.packbits(lowest > np.median(lowest))
    thumbnail = cv2.resize(grey, (_THUMBNAIL, _THUMBNAIL), interpolation=cv2.INTER_AREA)
    return base64.b64encode(bits.tobytes() + thumbnail.tobytes()).decode("ascii")


def near_duplicates(prints: Sequence[str]) -> list[set[int]]:
    """Groups, of two or more, of the indices of prints that are alike, in order of their first.

    Alike is who is like a member of the group: a chain of copies of copies is one group. Exact for
    `MAX_DISTANCE`, without comparing all with all: 100,000 photos take some seconds.
    """
    if not prints:
        return []
    raw = np.frombuffer(b"".join(base64.b64decode(text) for text in prints), np.uint8).reshape(len(prints), -1)
    # Equal prints need no search; a thousand copies of one photo would be a million pairs.
    _, first, same = np.unique(raw, axis=0, return_index=True, return_inverse=True)
    distinct = raw[first]
    hashes = np.ascontiguousarray(distinct[:, :_HASH_BYTES]).view(">u8").ravel().astype(np.uint64)
    thumbnails = _normalised(distinct[:, _HASH_BYTES:])
    label = np.arange(len(distinct))
    for one, other in _candidates(hashes):
        apart = label[one] != label[other]
        one, other = one[apart], other[apart]
        alike = np.bitwise_count(hashes[one] ^ hashes[other]) <= MAX_DISTANCE
        one, other = one[alike], other[alike]
        alike = np.einsum("ij,ij->i", thumbnails[one], thumbnails[other]) >= MIN_CORRELATION
        label = _united(label, one[alike], other[alike])
    groups: dict[int, set[int]] = defaultdict(set)
    for index, number in enumerate(same.ravel()):
        groups[int(label[number])].add(index)
    return [group for group in groups.values() if len(group) > 1]


def _grey(data: bytes) -> NDArray[np.uint8]:
    """The picture in grey, upright; a JPEG is decoded at the smallest scale that keeps `_SMALL` pixels."""
    try:
        with Image.open(Pieces(data), formats=("JPEG",)) as image:
            width, height = image.size
    except Exception:  # not a JPEG, or hostile: `decode` says
        width = height = 0
    factor = next((factor for factor in _REDUCED if min(width, height) >= factor * _SMALL), 0)
    if factor and width * height <= Limits().max_pixels and not is_slow(data, (width, height)):
        grey = cv2.imdecode(np.frombuffer(data, np.uint8), _REDUCED[factor])
        if grey is not None:
            return np.asarray(grey, np.uint8)
    return np.asarray(cv2.cvtColor(decode(data).rgb, cv2.COLOR_RGB2GRAY), np.uint8)


def _normalised(thumbnails: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Mean 0 and length 1, so that a product is a correlation."""
    values = thumbnails.astype(np.float32)
    values -= values.mean(axis=1, keepdims=True)
    return np.asarray(values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-6), np.float32)


_PAIRS_AT_ONCE: Final = 1 << 16


def _candidates(hashes: NDArray[np.uint64]) -> Iterator[tuple[NDArray[np.intp], NDArray[np.intp]]]:
    """Pairs of indices, some of them twice, among which are all that differ by `MAX_DISTANCE` bits or fewer.

    Source: Norouzi, Punjani and Fleet, "Fast Search in Hamming Space with Multi-Index Hashing", CVPR 2012.
    """
    flips = np.array([0, *(1 << bit for bit in range(16))], np.uint16)
    for block in range(_BLOCKS):
        keys = ((hashes >> np.uint64(16 * block)) & np.uint64(0xFFFF)).astype(np.uint16)
        order = np.argsort(keys, kind="stable")
        ordered = keys[order]
        for flip in flips:
            wanted = keys ^ flip
            start = np.searchsorted(ordered, wanted, "left")
            counts = np.searchsorted(ordered, wanted, "right") - start
            yield from _expanded(order, start, counts)


def _expanded(
    order: NDArray[np.intp], start: NDArray[np.intp], counts: NDArray[np.intp]
) -> Iterator[tuple[NDArray[np.intp], NDArray[np.intp]]]:
    """Each index with those at `order[start : start + count]`, the smaller index first, so many pairs at once."""
    total = np.concatenate([[0], np.cumsum(counts)])
    edges = np.searchsorted(total, np.arange(0, total[-1], _PAIRS_AT_ONCE))
    for low, high in pairwise([*edges.tolist(), len(counts)]):
        part = counts[low:high]
        one = np.repeat(np.arange(low, high), part)
        within = np.arange(len(one)) - np.repeat(np.cumsum(part) - part, part)
        other = order[np.repeat(start[low:high], part) + within]
        keep = one < other
        yield one[keep], other[keep]


def _united(label: NDArray[np.intp], one: NDArray[np.intp], other: NDArray[np.intp]) -> NDArray[np.intp]:
    """Labels, each the least index of its group, after the groups of each pair became one."""
    while len(one):
        low, high = np.minimum(label[one], label[other]), np.maximum(label[one], label[other])
        np.minimum.at(label, high, low)
        while (label != label[label]).any():
            label = label[label]
        apart = label[one] != label[other]
        one, other = one[apart], other[apart]
    return label
