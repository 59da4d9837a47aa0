"""What a dataset says of itself: the manifest, and the completion records of its units.

OUT/NAME/manifest.json          the dataset: written last, so a dataset without it is not finished
OUT/NAME/README.md, index.html  its card and its page
OUT/NAME/features.json          what its faces are like, in numbers: see `pipelines.dataset.faces`
OUT/forgotten.json              pictures that no dataset here may hold: see `pipelines.forgotten`
OUT/shards/UNIT.parquet         samples; a unit is named by the digest of its photos and settings, so
OUT/records/RECIPE/UNIT.json    datasets share those that are the same
"""

import json
from pathlib import PurePosixPath
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from msrrn.landmarks import SCHEME
from pipelines.dataset.shards import SCHEMA_VERSION, Split
from pipelines.detection.annotated import AnnotatedBoxes
from pipelines.errors import UserError
from pipelines.forgotten import read_forgotten
from pipelines.settings import PrepareSettings
from pipelines.storage import Store

MANIFEST: Final = "manifest.json"


class UnitEntry(BaseModel):
    """A unit of photos, in the manifest. One without a usable face has no shard: `rows` is 0."""

    model_config = ConfigDict(frozen=True)

    key: str
    split: Split
    photos: int
    rows: int = 0
    bytes: int = 0
    sha256: str = ""

    @property
    def shard(self) -> str:
        """The key of its shard, below the directory that holds the dataset."""
        return f"shards/{self.key}.parquet"


def unit_of(key: str) -> str:
    """The unit of a shard or a record."""
    return PurePosixPath(key).stem


class LeftOut(BaseModel):
    """An input that is not in the dataset, and why."""

    model_config = ConfigDict(frozen=True)

    uri: str
    reason: str
    message: str


class HeldPhoto(BaseModel):
    """A photo that is in no unit, so that it, and what shows the same, stays out of what is appended; see `Seen`."""

    model_config = ConfigDict(frozen=True)

    sha256: str
    uri: str
    declared: str | None
    print: str


class CheckResult(BaseModel):
    """What one check found: how often, and the first of them. Its text is in `pipelines.checks.CHECKS`."""

    code: str
    severity: Literal["error", "warning", "info"]
    count: int
    examples: list[LeftOut]


class Manifest(BaseModel):
    """`manifest.json`."""

    name: str
    schema_version: str = SCHEMA_VERSION
    scheme: str = SCHEME
    code_version: str
    settings: dict[str, Any]
    counts: dict[str, int]
    """faces_in = train + val + left_out; photos; rows"""
    faces_by_source: dict[str, dict[str, int]]
    """source → split → faces"""
    missed: int
    """faces that the detector missed, or that came without a box, and that got one predicted from their annotation"""
    checks: list[CheckResult]
    """only those that found something, sorted by code"""
    units: list[UnitEntry]
    left_out: list[LeftOut]
    """every input that is not in the dataset, sorted by uri and reason"""
    held: list[HeldPhoto] = []
    """test photos, and what shows the same as a photo of another split, sorted by digest"""

    def shards(self, split: Split | None = None) -> list[UnitEntry]:
        """The units that have a shard, of one split or of all, in order."""
        return [unit for unit in self.units if unit.rows and split in (None, unit.split)]

    @property
    def has_given_boxes(self) -> bool:
        """Whether boxes are those of the data: no detector looked, and none missed a face."""
        return bool(self.settings.get("detector") == AnnotatedBoxes.name)

    def learned(self, split: Split | None = None) -> str:
        """What names these shards, and so whatever is learned of them alone.

        The dataset's name speaks of what was left out, too: a bad annotation that came in is nothing to learn.
        """
        return " ".join(unit.key for unit in self.shards(split))


class OtherVersionError(UserError):
    """A dataset of another version of msrrn: whole, as far as this one knows."""


def read_manifest(dataset: Store) -> Manifest:
    """The dataset's manifest.

    Raises:
        UserError: there is none (not a dataset, not finished, or it has another name since a picture of it was
            forgotten), or it has another schema (an `OtherVersionError`).
    """
    if not dataset.exists(MANIFEST):
        refuse_renamed(dataset)
        raise UserError(
            f"{dataset.url}: no {MANIFEST}, so it is no finished dataset; "
            "give the URL that `msrrn prepare` printed (`msrrn datasets PLACE` lists them), or run it again to finish"
        )
    name = f"{dataset.url}/{MANIFEST}"
    try:
        content = json.loads(dataset.read_bytes(MANIFEST))
        version = content.get("schema_version") if isinstance(content, dict) else None
        if version not in (None, SCHEMA_VERSION):
            raise OtherVersionError(
                f"{name}: field `schema_version` is {version}, this version of msrrn reads {SCHEMA_VERSION}; "
                "use the other one, or prepare the dataset again"
            )
        return Manifest.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise UserError(
            f"{name}: field `{field}`: {first['msg']}; it is no dataset of msrrn, or of another version, or a "
            "damaged one: give the URL that `msrrn prepare` printed"
        ) from error
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{name}: not JSON ({error}); give the URL that `msrrn prepare` printed, or delete the file and run the "
            "same `msrrn prepare` again"
        ) from error


def made_with(dataset: Store, manifest: Manifest) -> PrepareSettings:
    """The settings of a dataset.

    Raises:
        UserError: they are those of another version.
    """
    try:
        return PrepareSettings.model_validate(manifest.settings)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, ("settings", *first["loc"])))
        raise UserError(
            f"{dataset.url}/{MANIFEST}: field `{field}`: {first['msg']}; it was made by another version of msrrn: "
            "prepare all sources together"
        ) from error


def refuse_renamed(dataset: Store) -> None:
    """Raises UserError where pictures of a dataset were forgotten, so that it has another name now, or none."""
    place = dataset.absolute()
    forgotten = read_forgotten(place.parent)
    if place.name in forgotten.renamed:
        now = forgotten.now(place.name)
        told = f"it is {now} without them: give that" if now else "nothing was left of it to train on"
        raise UserError(f"{dataset.url}: pictures of it were forgotten, and {told}")
