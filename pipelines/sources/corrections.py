"""What a person did to predictions: `review.json`, which `msrrn review` leaves beside what is to be corrected.

It remembers for every picture where it came from and the points as they were drawn. So a reader of the corrected
file, whatever its format, can tell faces that a person changed, added, or marked as checked (subset `corrections`)
from those that are as the model left them (`predictions`).
"""

from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Annotated, Final, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, Field, ValidationError

from msrrn.landmarks import NUM_LANDMARKS
from pipelines.errors import UserError
from pipelines.sources.files import Files

CORRECTIONS: Final = "corrections"
PREDICTIONS: Final = "predictions"
REVIEW: Final = "review.json"
MAX_BYTES: Final = 1 << 30
UNCHANGED: Final = 0.02
"""Pixels by which no point of a face differs that nobody changed: tools write two decimals."""
CUT_OFF: Final = 1.0
"""The same where a tool writes whole pixels: FiftyOne cuts off what lies behind the point."""


class ReviewedPicture(BaseModel):
    """Where a picture came from, and the faces that were drawn: 136 numbers each, 0-based pixels."""

    uri: str
    sha256: str
    faces: list[Annotated[list[float], Field(min_length=2 * NUM_LANDMARKS, max_length=2 * NUM_LANDMARKS)]]


class Review(BaseModel):
    """`review.json`; pictures by their path below it."""

    version: Literal["1"] = "1"
    source: str
    """the archive that was annotated"""
    model: str
    pictures: dict[str, ReviewedPicture]


@dataclass(frozen=True)
class Reviewed:
    """A review and where it lies: `place` is its folder below the source with a slash, or empty."""

    place: str
    review: Review

    def picture(self, uri: str) -> ReviewedPicture | None:
        """What the review remembers of a picture of the source; None where it is none of it."""
        return self.review.pictures.get(uri.removeprefix(self.place)) if uri.startswith(self.place) else None


def subset_of(picture: ReviewedPicture, shape: NDArray[np.float64], checked: bool) -> str:
    """`predictions` for a face that seems to be as it was drawn and is not `checked`, else `corrections`."""
    drawn = np.asarray(picture.faces, np.float64).reshape(-1, NUM_LANDMARKS, 2)
    lost = CUT_OFF if (shape == np.rint(shape)).all() else UNCHANGED
    same = bool((np.abs(drawn - shape).max(axis=(1, 2), initial=0) <= lost).any())
    return PREDICTIONS if same and not checked else CORRECTIONS


def review_of(files: Files, annotation: str) -> Reviewed | None:
    """The review that an annotation file belongs to: beside it, or beside its folder `annotations`, as for pictures.

    Raises:
        UserError: its `review.json` is damaged, or of another version.
    """
    folder = PurePosixPath(annotation).parent
    for place in (folder, *([folder.parent] if folder.name.lower() == "annotations" else [])):
        name = (place / REVIEW).as_posix()
        if files.exists(name):
            return Reviewed(name.removesuffix(REVIEW), _review(files, name))
    return None


def _review(files: Files, name: str) -> Review:
    try:
        return Review.model_validate_json(files.read(name, MAX_BYTES))
    except ValidationError as error:
        raise UserError(
            f"{files.url}/{name} is damaged, or of another version of msrrn ({error.errors()[0]['msg']}): use that "
            "version, fetch it again from the review, or remove it: then nothing tells what was changed"
        ) from error
