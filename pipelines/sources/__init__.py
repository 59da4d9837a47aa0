"""Readers of annotated photographs, one class per format behind one protocol."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from pipelines.storage import Store

Split = Literal["train", "val", "test"]


@dataclass(frozen=True, eq=False)
class AnnotatedPhoto:
    """One annotated face with the photograph it lies in; picklable, holds no handle.

    `root` is the source's URL; `uri` and `annotation_uri` are POSIX paths below it. `shape` is (68, 2)
    float64, 0-based pixels of the upright image. `declared_split` is what the source itself says.
    """

    root: str
    uri: str
    annotation_uri: str
    subset: str
    declared_split: Split | None
    shape: NDArray[np.float64]

    def read(self) -> bytes:
        """The photograph's bytes; `UserError` when it is gone."""
        return Store(self.root).read_bytes(self.uri)


@dataclass(frozen=True)
class Rejected:
    """An input left out: `reason` is a stable code, `message` is for people."""

    uri: str
    reason: str
    message: str


class AnnotatedSource(Protocol):
    """A set of annotated photographs."""

    @property
    def url(self) -> str: ...

    def scan(self) -> Iterator[AnnotatedPhoto | Rejected]:
        """Every input, sorted by uri, the same on every call; `UserError` when there is nothing to read."""
        ...


def open_annotated(url: str) -> AnnotatedSource:
    """The source at a URL: a folder, local or on S3, in the layout of 300-W."""
    from pipelines.sources.three_hundred_w import ThreeHundredW  # readers import this module

    return ThreeHundredW(url)
