"""Annotation runs in the formats of other tools, one file a format behind one protocol.

Each is written unit by unit, so that memory is bounded by a unit; what has a final name is whole. Only pictures
with a face that is taken are in it. Every format names the picture by its `uri`, by which it joins back to the
run's tables and to the archive, and has landmarks in pixels of the upright picture. Of members of an archive with one
name the last is called so; names of the others have a digest, but in `webdataset`, which holds them all.
"""

import json
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from typing import Final, Protocol

from pydantic import BaseModel

from pipelines.annotation.exports.pictures import AnnotatedPictures
from pipelines.annotation.tables import Annotations
from pipelines.errors import UserError
from pipelines.outages import MissingError
from pipelines.progress import Counted
from pipelines.settings import ExportFormat
from pipelines.sources.corrections import REVIEW
from pipelines.storage import Store


class Exporter(Protocol):
    """A format: the module of its name."""

    def write(self, pictures: AnnotatedPictures, out: Store) -> str:
        """Writes the pictures below `out`, the same bytes for the same run; returns the key of file or folder."""
        ...

    def older(self, out: Store) -> list[str]:
        """Keys of what is there already and `write` replaces or removes."""
        ...


MARK: Final = ".msrrn-exports.json"
"""What was written here, formats of exports and `review-` with one: that and nothing else is replaced by the next."""


class Exported(BaseModel):
    """What an export holds."""

    format: ExportFormat
    place: str
    finished: bool
    """whether the run was: else these are its finished units"""
    pictures: int
    faces: int
    below_confidence: int
    """faces that were left out for it"""
    unreadable: dict[str, int]
    """reason → pictures that are left out because the archive no longer gives their bytes"""


def exporter(name: ExportFormat) -> Exporter:
    """The exporter of a format, imported when it is asked for."""
    found: Exporter = import_module(f"{__name__}.{name}")
    return found


def export(
    annotations: Annotations,
    format: ExportFormat,  # noqa: A002 - as the command line says it
    out: str,
    min_confidence: float = 0.0,
    progress: Counted = lambda done, total: None,
) -> Exported:
    """Writes a run in another format below `out`; replaces an older export there.

    Faces with a lower confidence than `min_confidence` are left out.

    Raises:
        UserError: there is no run, none of its units is finished yet, or `out` holds a review, the pictures of the
            run, or what would be replaced and is no export.
    """
    _ = annotations.run  # or there is none
    annotations.require_units()
    pictures = AnnotatedPictures(annotations, min_confidence, progress)
    store = Store(out)
    if store.exists(REVIEW):
        raise UserError(f"{store.url} is a review, in which a person corrects annotations: give another --out")
    if format == "webdataset" and annotations.lies_in(store):
        raise UserError(f"{store.url} holds the pictures of this run: give another --out")
    mark(store, format, exporter(format).older)
    key = exporter(format).write(pictures, store)
    return Exported(
        format=format,
        place=f"{store.url}/{key}".rstrip("/"),
        finished=annotations.finished,
        pictures=pictures.taken,
        faces=pictures.faces,
        below_confidence=pictures.below,
        unreadable=dict(sorted(pictures.unreadable.items())),
    )


def mark(out: Store, what: str, older: Callable[[Store], list[str]]) -> None:
    """Notes that this is written here, which would replace the `older` files.

    Raises:
        UserError: these are of nobody who wrote the same here before.
    """
    before: list[str] = []
    with suppress(MissingError, ValueError, TypeError):  # one that was damaged says nothing
        before = list(json.loads(out.read_bytes(MARK)))
    if what in before:
        return
    if replaced := older(out):
        raise UserError(
            f"{out.url}/{replaced[0]} is there, and no call like this one is known to have written it: give another "
            "--out, or move it away"
        )
    out.publish(MARK, json.dumps(sorted({*before, what})).encode())


def require_own(out: Store, folder: str) -> None:
    """Raises UserError where a link leads from that folder to another, whose files would be written or removed."""
    if links := out.linked(folder):
        raise UserError(f"{out.url}/{links[0]} is a link to another folder: remove it, or give another --out")
