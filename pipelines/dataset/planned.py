"""What a run of `prepare` will do, as `pipelines.dataset.planning` finds it out."""

import hashlib
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass

from pipelines.dataset.manifest import CheckResult, LeftOut
from pipelines.dataset.photos import Finder, PhotoGroup, Seen
from pipelines.dataset.shards import Split
from pipelines.errors import UserError
from pipelines.sources.files import Files
from pipelines.storage import Store


@dataclass(frozen=True, eq=False)
class PlannedPhoto:
    """A photo of a unit: its annotations, or the unit that holds its rows already, or both."""

    key: str
    split: Split
    seen: Seen
    faces: int
    group: PhotoGroup | None
    made_in: str | None


@dataclass(frozen=True, eq=False)
class Unit:
    """The work of one shard."""

    key: str
    split: Split
    photos: tuple[PlannedPhoto, ...]


@dataclass(frozen=True, eq=False)
class Plan:
    """What a run of `prepare` will do, and what it leaves out before looking at any face."""

    name: str
    sources: tuple[str, ...]
    out: Store
    records: str
    """where records of these settings lie, below `out`"""
    units: tuple[Unit, ...]
    finished: frozenset[str]
    """keys of units that were made before, for this dataset or for others"""
    left_out: tuple[LeftOut, ...]
    warnings: tuple[CheckResult, ...]
    find: Finder
    faces: int
    """inputs: annotated faces, and what was left out"""

    held: tuple[Seen, ...]
    """photos that are in no unit for what they show, sorted by digest"""
    places: Mapping[str, tuple[str, str] | None]
    """root and uri of the photos of annotations, by the names of these; None where several have the same"""
    forgotten: frozenset[str]
    """SHA-256 of pictures that the place must not hold, nor its pages show"""

    def picture(self, item: LeftOut) -> bytes | None:
        """The bytes of an input that was left out; None where it is no picture, is gone, or was forgotten.

        Nor is it known which one it is where several sources have its name.
        """
        found = []
        places = [self.places[item.uri]] if item.uri in self.places else [(it, item.uri) for it in self.sources]
        for root, uri in filter(None, places):
            with suppress(UserError, OSError):
                found.append(Files(root).read(uri))
        return found[0] if len(found) == 1 and hashlib.sha256(found[0]).hexdigest() not in self.forgotten else None

    @property
    def dataset(self) -> Store:
        return self.out.child(self.name)

    @property
    def pending(self) -> list[Unit]:
        """What is to be done, the largest first: no worker is left alone with a large one at the end."""
        return sorted(
            (unit for unit in self.units if unit.key not in self.finished),
            key=lambda unit: sum(photo.faces for photo in unit.photos),
            reverse=True,
        )
