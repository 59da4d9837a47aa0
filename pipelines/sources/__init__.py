"""Readers of annotated photographs, one file per format behind one protocol."""

from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import PurePosixPath
from typing import Final, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from msrrn.geometry import Box
from pipelines.archives import PROBLEMS
from pipelines.archives.inputs import TAIL
from pipelines.archives.names import IMAGE_SUFFIXES
from pipelines.errors import UserError
from pipelines.settings import SourceFormat
from pipelines.sources.files import Files, open_files

DeclaredSplit = Literal["train", "val", "test"]


@dataclass(frozen=True, eq=False)
class AnnotatedPhoto:
    """One annotated face with the photograph it lies in; picklable, holds no handle.

    `root` is the URL of the folder or archive that holds the photograph; `uri` and `annotation_uri` are POSIX
    paths below it. `shape` is (68, 2) float64, 0-based pixels of the upright image. `declared_split` is what
    the source itself says, `box` the face box that it gives, in any convention. `sha256` is that of the
    photograph that was annotated, where the source tells.
    """

    root: str
    uri: str
    annotation_uri: str
    subset: str
    declared_split: DeclaredSplit | None
    shape: NDArray[np.float64]
    box: Box | None = None
    sha256: str = ""

    def read(self) -> bytes:
        """The bytes that are there now, maybe of another photograph: see `is_of`; `UserError` where it is gone."""
        return Files(self.root).read(self.uri)

    def is_of(self, sha256: str) -> bool:
        """Whether the photograph of this digest was annotated, as far as the source tells."""
        return self.sha256 in ("", sha256)


@dataclass(frozen=True)
class Rejected:
    """An input left out: `reason` is a code of `pipelines.checks.CHECKS`, `message` is for people.

    What is no such code, as in a table that others wrote, is told as `quarantined`.
    """

    uri: str
    reason: str
    message: str


class AnnotatedSource(Protocol):
    """A set of annotated photographs."""

    @property
    def url(self) -> str: ...

    def scan(self) -> Iterator[AnnotatedPhoto | Rejected]:
        """Every input, sorted by uri, the same on every call; `UserError` when there is nothing to read.

        What `files.problems()` tells of pictures and annotations is among them: see `rejected_files`.
        """
        ...


class Reader(Protocol):
    """A format: a class with one file of its own, listed in `FORMATS`."""

    def __call__(self, url: str) -> AnnotatedSource: ...

    def recognises(self, files: Files) -> bool:
        """Whether the files look like this format: by their names, and the first bytes of a few.

        A static method. True does not promise that `scan` finds no fault; only an outage of the storage is raised.
        """
        ...


FORMATS: Final[dict[SourceFormat, str]] = {
    "300w": "pipelines.sources.three_hundred_w:ThreeHundredW",
    "imglab": "pipelines.sources.imglab:Imglab",
    "coco": "pipelines.sources.coco:Coco",
    "cvat": "pipelines.sources.cvat:Cvat",
    "csv": "pipelines.sources.csv_points:CsvPoints",
    "csv-1based": "pipelines.sources.csv_points:OneBasedCsv",
    "webdataset": "pipelines.sources.webdataset:WebDataset",
    "parquet": "pipelines.sources.parquet:AnnotationParquet",
}
"""Name of a format → its reader. Readers import this module, so they are imported when they are asked for."""


def reader(name: str) -> Reader:
    """The reader of a format; `UserError` when there is none of that name."""
    if name not in FORMATS:
        raise UserError(f"there is no format {name!r}: choose one of auto, {', '.join(FORMATS)}")
    module, _, attribute = FORMATS[name].partition(":")
    found: Reader = getattr(import_module(module), attribute)
    return found


def open_annotated(url: str, format: str = "auto") -> AnnotatedSource:  # noqa: A002 - as the command line says it
    """The source at a URL: a folder, an archive (`.tar`, `.tar.gz`, `.zip`) or an annotation file, local or on S3.

    `format` is a name of `FORMATS`, or `auto` to find out by looking at the names of the files.

    Raises:
        UserError: nothing is there, or it is not clear which format it has.
    """
    files = open_files(url)
    if format != "auto":
        return reader(format)(url)
    if not files.sizes():
        raise UserError(f"{url} holds no files: put annotated photos there, or leave it out")
    matching = [name for name in FORMATS if reader(name).recognises(files)]
    if len(matching) == 1:
        return reader(matching[0])(url)
    found = _summary(files)
    if not matching:
        raise UserError(f"{url} holds no annotations of a known format ({found}); say --format {'|'.join(FORMATS)}")
    raise UserError(
        f"{url} could be {' or '.join(matching)} ({found}): say which with --format, or give the annotation file"
    )


_OF_MANY: Final = frozenset({"linked_folder", "forbidden", "broken_archive", "nested_archive", "unsupported_archive"})


def rejected_files(files: Files, suffixes: Collection[str] = IMAGE_SUFFIXES) -> list[Rejected]:
    """A row for every file that cannot be read: those with these suffixes, and parts of archives and folders."""
    return [
        Rejected(name, problem, PROBLEMS[problem])
        for name, problem in files.problems().items()
        if PurePosixPath(name).suffix.lower() in suffixes or problem in _OF_MANY or PurePosixPath(name).name == TAIL
    ]


def _summary(files: Files) -> str:
    """`3 .jpg, 1 .xml`: the most frequent suffixes."""
    counts = Counter(PurePosixPath(name).suffix.lower() or "without suffix" for name in files.sizes())
    return ", ".join(f"{count} {suffix}" for suffix, count in counts.most_common(6))
