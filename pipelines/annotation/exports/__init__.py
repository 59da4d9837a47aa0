"""Annotation runs in the formats of other tools, one file a format behind one protocol.

Each is written unit by unit, so that memory is bounded by a unit; what has a final name is whole. Only pictures
with a face that is taken are in it. Every format names the picture by its `uri`, by which it joins back to the
run's tables and to the archive, and has landmarks in pixels of the upright picture.
"""

from importlib import import_module
from typing import Final, Protocol

from pydantic import BaseModel

from pipelines.annotation.exports.pictures import AnnotatedPictures
from pipelines.annotation.tables import Annotations
from pipelines.errors import UserError
from pipelines.progress import Counted
from pipelines.settings import ExportFormat
from pipelines.sources.corrections import REVIEW
from pipelines.storage import Store


class Exporter(Protocol):
    """A format: a function with a file of its own, listed in `FORMATS`."""

    def __call__(self, pictures: AnnotatedPictures, out: Store) -> str:
        """Writes the pictures below `out`, the same bytes for the same run; returns the key of file or folder."""
        ...


FORMATS: Final[dict[ExportFormat, str]] = {
    "pts": "pipelines.annotation.exports.pts:write_pts",
    "coco": "pipelines.annotation.exports.coco:write_coco",
    "csv": "pipelines.annotation.exports.csv_points:write_csv",
    "cvat": "pipelines.annotation.exports.cvat:write_cvat",
    "imglab": "pipelines.annotation.exports.imglab:write_imglab",
    "webdataset": "pipelines.annotation.exports.webdataset:write_webdataset",
}
"""Name of a format → its exporter, imported when it is asked for."""


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
    """The exporter of a format."""
    module, _, attribute = FORMATS[name].partition(":")
    found: Exporter = getattr(import_module(module), attribute)
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
        UserError: there is no run, none of its units is finished yet, or a review lies in `out`.
    """
    _ = annotations.run  # or there is none
    if not annotations.units():
        raise UserError(f"{annotations.store.url}: no unit is finished yet; run the `msrrn annotate` again")
    pictures = AnnotatedPictures(annotations, min_confidence, progress)
    store = Store(out)
    if store.exists(REVIEW):
        raise UserError(f"{store.url} is a review, in which a person corrects annotations: give another --out")
    key = exporter(format)(pictures, store)
    return Exported(
        format=format,
        place=f"{store.url}/{key}".rstrip("/"),
        finished=annotations.finished,
        pictures=pictures.taken,
        faces=pictures.faces,
        below_confidence=pictures.below,
        unreadable=dict(sorted(pictures.unreadable.items())),
    )
