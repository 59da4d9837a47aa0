"""Boxes, similarity transforms and crop frames.

Coordinates are 0-based pixel centres of the upright image, x before y: the first pixel covers
[-0.5, 0.5]. Coordinates of a crop are in [0, 1] of its side, independent of its resolution:
a pixel centre p of a level with `size` pixels a side is u = (p + ½) / size.
"""

from dataclasses import dataclass
from typing import Final, Self

import numpy as np
from numpy.typing import NDArray

Points = NDArray[np.floating]

LEVELS: Final = (50, 100, 200)
"""Pixels a side of the pyramid, coarse to fine: stage t reads level t."""
FARTHEST: Final = 1 << 24
"""Pixels: no picture reaches so far, and float32 no longer tells neighbours apart."""


@dataclass(frozen=True)
class Box:
    """A face box by its edges: pixels of the upright image, `x1` and `y1` are right and bottom edges."""

    x0: float
    y0: float
    x1: float
    y1: float

    def __post_init__(self) -> None:
        if not all(abs(edge) < FARTHEST for edge in self.edges):
            raise ValueError(f"box {self} is not of a picture: edges must be finite, and less than {FARTHEST}")
        if not (self.x1 > self.x0 and self.y1 > self.y0):
            raise ValueError(f"box {self} is empty: x1 must exceed x0, and y1 exceed y0")

    @property
    def width(self) -> float:
        return self.x1 - self.x0

    @property
    def height(self) -> float:
        return self.y1 - self.y0

    @property
    def area(self) -> float:
        return self.width * self.height

    @property
    def centre(self) -> tuple[float, float]:
        return (self.x0 + self.x1) / 2, (self.y0 + self.y1) / 2

    @property
    def side(self) -> float:
        """Side of the square of equal area, in pixels."""
        return float(np.sqrt(self.area))

    def scaled(self, factor: float) -> Self:
        """The same box on an image resized by `factor`: edges are scaled about the image's own edge."""
        return type(self)(*(float((edge + 0.5) * factor - 0.5) for edge in self.edges))

    def mapped(self, transform: "Similarity") -> Self:
        """The box of its two corners under a transform, which may not turn them."""
        (x0, y0), (x1, y1) = transform(np.array(self.edges).reshape(2, 2)).tolist()
        return type(self)(x0, y0, x1, y1)

    @property
    def edges(self) -> tuple[float, float, float, float]:
        return self.x0, self.y0, self.x1, self.y1

    def iou(self, other: "Box") -> float:
        """Intersection over union, in [0, 1]."""
        width = min(self.x1, other.x1) - max(self.x0, other.x0)
        height = min(self.y1, other.y1) - max(self.y0, other.y0)
        shared = max(0.0, width) * max(0.0, height)
        return shared / (self.area + other.area - shared)

    @classmethod
    def around(cls, shape: Points) -> Self:
        """The tight box of a shape `(68, 2)`."""
        (x0, y0), (x1, y1) = shape.min(axis=0), shape.max(axis=0)
        return cls(float(x0), float(y0), float(x1), float(y1))


@dataclass(frozen=True)
class Similarity:
    """p ↦ M p + t with M of shape (2, 2) and t of shape (2,), float64; M may hold a reflection."""

    matrix: NDArray[np.float64]
    offset: NDArray[np.float64]

    def __call__(self, points: Points) -> Points:
        """Maps points `(..., 2)`; the dtype is kept."""
        mapped = points @ self.matrix.T + self.offset
        return mapped.astype(points.dtype, copy=False)

    def inverse(self) -> "Similarity":
        matrix = np.asarray(np.linalg.inv(self.matrix), np.float64)
        return Similarity(matrix, -matrix @ self.offset)

    def after(self, first: "Similarity") -> "Similarity":
        """The map that applies `first`, then this one."""
        return Similarity(self.matrix @ first.matrix, self.matrix @ first.offset + self.offset)

    @property
    def scale(self) -> float:
        return float(np.sqrt(abs(np.linalg.det(self.matrix))))

    @classmethod
    def identity(cls) -> Self:
        return cls(np.eye(2), np.zeros(2))


def fit_similarity(source: Points, target: Points) -> Similarity:
    """Least-squares similarity without reflection from `source` (N, 2) to `target` (N, 2).

    Source: Umeyama, "Least-squares estimation of transformation parameters", PAMI 1991, in its
    closed form for two dimensions.
    """
    source_mean, target_mean = source.mean(axis=0), target.mean(axis=0)
    a, b = source - source_mean, target - target_mean
    norm = float((a * a).sum())
    if norm == 0:
        raise ValueError("the source points coincide: no similarity maps them")
    cos = float((a * b).sum()) / norm
    sin = float((a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0]).sum()) / norm
    matrix = np.array([[cos, -sin], [sin, cos]])
    return Similarity(matrix, np.asarray(target_mean - matrix @ source_mean, np.float64))


@dataclass(frozen=True)
class CropFrame:
    """The square of the upright image that a crop shows, and the maps between them.

    `to_crop` takes upright pixels to [0, 1] of the crop; its linear part may rotate and mirror.
    """

    to_crop: Similarity

    @classmethod
    def square(cls, centre: tuple[float, float], side: float, roll: float = 0.0, mirrored: bool = False) -> Self:
        """A square of `side` pixels around `centre`.

        `roll` (radians) turns the crop's content: a positive roll turns it clockwise on screen.
        `mirrored` flips the crop left to right, after the rotation.
        """
        cos, sin = np.cos(roll), np.sin(roll)
        matrix = np.array([[cos, -sin], [sin, cos]]) / side
        if mirrored:
            matrix = np.array([[-1.0, 0.0], [0.0, 1.0]]) @ matrix
        return cls(Similarity(matrix, 0.5 - matrix @ np.asarray(centre)))

    def shape_to_crop(self, shape: Points) -> Points:
        """Upright pixels (..., 68, 2) → [0, 1] of the crop. The mirror permutation is the caller's."""
        return self.to_crop(shape)

    def shape_to_upright(self, shape: Points) -> Points:
        """[0, 1] of the crop (..., 68, 2) → upright pixels."""
        return self.to_crop.inverse()(shape)

    @property
    def side(self) -> float:
        """Side of the square in upright pixels."""
        return 1.0 / self.to_crop.scale

    def to_pixels(self, size: int) -> Similarity:
        """From upright pixel centres to pixel centres of the crop at `size` px a side."""
        return Similarity(np.eye(2) * size, np.full(2, -0.5)).after(self.to_crop)


def within(points: Points, size: tuple[int, int]) -> Points:
    """Points (..., 2), those beyond a picture of `size` (width, height) moved to its outermost pixels' centres.

    So the annotators of 300-W have it: of 2,012 training faces none has a landmark more than 0.7 px outside, those
    that the edge of their picture cuts off included.
    """
    return np.clip(points, 0, np.asarray(size) - 1)
