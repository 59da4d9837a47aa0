"""The tables of an annotation run: their schemas, and a reader of what is finished, unit by unit.

`OUT/run.json` says what the run is, `OUT/plan` what it works on, `OUT/records` which units are finished. A unit
has one part of each table. A run that is not finished can be read: it gives its finished units.
"""

import hashlib
import json
import re
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from msrrn.landmarks import NUM_LANDMARKS, SCHEME
from pipelines.annotation.plan import inputs_of, keys_of, parsed, read_plan, read_table
from pipelines.annotation.records import RECORDS, STAGED, found_record, staged_key
from pipelines.archives import PROBLEMS, read_inputs
from pipelines.decoding import Undecodable
from pipelines.errors import NothingYetError, UserError
from pipelines.forgotten import MESSAGE, REASON
from pipelines.outages import MissingError
from pipelines.storage import Store

SCHEMA_VERSION: Final = "2"
RUN: Final = "run.json"
SUMMARY: Final = "summary.json"
PAGE: Final = "index.html"
STATUSES: Final = ("annotated", "no_face", "quarantined")
REASONS: Final = frozenset(
    {*PROBLEMS, "empty", "not_an_image", "truncated", "corrupt", "too_large", "failed", "crashed", "timeout", REASON}
)
"""Why a picture may be quarantined."""

_METADATA: Final = {
    "msrrn.schema": SCHEMA_VERSION,
    "msrrn.scheme": SCHEME,
    "msrrn.coordinates": "0-based pixel centres of the upright image, x before y",
}

IMAGES: Final = pa.schema(
    [
        pa.field("uri", pa.string(), nullable=False),
        pa.field("status", pa.string(), nullable=False),
        pa.field("reason", pa.string()),
        pa.field("message", pa.string()),
        pa.field("faces", pa.int32(), nullable=False),
        pa.field("width", pa.int32()),
        pa.field("height", pa.int32()),
        pa.field("orientation", pa.int32()),
        pa.field("turned", pa.int32()),
        pa.field("bytes", pa.int64(), nullable=False),
        pa.field("sha256", pa.string()),
    ],
    metadata=_METADATA,
)
"""One row for every input, in input order.

`width` and `height` are those of the upright image, which is as the EXIF `orientation` (1 to 8) says to look.
`turned` is by how many degrees, clockwise, that was turned on to find its faces: 0, 90, 180 or 270. Whatever it
is, boxes and landmarks are in pixels of the upright image, and landmarks within it.
"""

FACES: Final = pa.schema(
    [
        pa.field("uri", pa.string(), nullable=False),
        pa.field("sha256", pa.string(), nullable=False),
        pa.field("face_index", pa.int32(), nullable=False),
        pa.field("box", pa.list_(pa.float64(), 4), nullable=False),
        pa.field("detector", pa.string(), nullable=False),
        pa.field("detector_score", pa.float64(), nullable=False),
        pa.field("landmarks", pa.list_(pa.float32(), 2 * NUM_LANDMARKS), nullable=False),
        pa.field("confidence", pa.float32(), nullable=False),
        pa.field("face_roll", pa.float32(), nullable=False),
        pa.field("brightness", pa.float32(), nullable=False),
        pa.field("sharpness", pa.float32(), nullable=False),
        pa.field("model", pa.string(), nullable=False),
        pa.field("model_version", pa.string(), nullable=False),
    ],
    metadata=_METADATA,
)
"""One row for every face, largest box first within its image.

`box` is left, top, right and bottom edge. `face_roll`, degrees, is by how much the line of the pupils is turned
clockwise; `brightness`, the mean grey value, and `sharpness`, the variance of the Laplacian, are of the crop at
200 px, as in training shards.
"""
TABLES: Final = {"images": IMAGES, "faces": FACES}

_TABLE: Final = "|".join(TABLES)
_OF_A_UNIT: Final = re.compile(
    rf"(?:{RECORDS}/(\d{{6,}})\.json|(?:(?:{_TABLE})/part|{STAGED}/(?:{_TABLE}))-(\d{{6,}})\.parquet)"
)


def forgotten_row(uri: str) -> dict[str, Any]:
    """The row of `IMAGES` for a picture that was forgotten: its name alone."""
    row = dict.fromkeys(IMAGES.names) | {"uri": uri, "bytes": 0, "faces": 0}
    return row | {"status": "quarantined", "reason": REASON, "message": MESSAGE}


def part_key(table: str, unit: str) -> str:
    """Of a unit's part of a table."""
    return f"{table}/part-{unit}.parquet"


def unit_of(key: str) -> str:
    """The unit that a record or a part is of; of anything else, which is not ours to delete, none."""
    found = _OF_A_UNIT.fullmatch(key)
    return (found[1] or found[2]) if found else ""


def without(
    digests: Collection[str], images: Sequence[dict[str, Any]], faces: Sequence[dict[str, Any]]
) -> dict[str, list[dict[str, Any]]]:
    """The rows of both tables, in which pictures of these digests are forgotten."""
    return {
        "images": [forgotten_row(row["uri"]) if row["sha256"] in digests else row for row in images],
        "faces": [row for row in faces if row["sha256"] not in digests],
    }


def runs_at(url: str) -> list[Store]:
    """The run at this place, or those at the places directly below it, by name.

    Raises:
        NothingYetError: there is none.
    """
    store = Store(url)
    places = [store] if store.exists(RUN) else [store.child(name) for name in store.folders()]
    runs = [place for place in places if place.exists(RUN)]
    if not runs:
        raise NothingYetError(f"{url} holds no annotation run: give the --out of `msrrn annotate`, or their folder")
    return runs


@dataclass(frozen=True)
class Annotations:
    """What a run wrote, finished or not; `store` is its place."""

    store: Store

    @property
    def run(self) -> dict[str, Any]:
        """What the run is: `source`, `model`, `model_sha256`, `schema`, and its settings.

        Raises:
            UserError: no run wrote here, or one of another version.
        """
        run = self._record
        if (schema := run.get("schema", SCHEMA_VERSION)) != SCHEMA_VERSION:
            raise UserError(
                f"{self.store.url} holds a run of another version of msrrn, with tables of schema {schema}, "
                f"not {SCHEMA_VERSION}: use that version, or annotate elsewhere anew and delete this run"
            )
        return run

    @property
    def is_of_this_version(self) -> bool:
        """Whether its tables have the columns that are read here."""
        return bool(self._record.get("schema", SCHEMA_VERSION) == SCHEMA_VERSION)

    def units(self) -> list[str]:
        """Keys of the finished units, in input order."""
        return [unit for key in self.store.keys(RECORDS) if (unit := unit_of(key))]

    def whole_units(self) -> set[str]:
        """Keys of the finished units that have their part of each table: the others are done again."""
        written = {key for table in TABLES for key in self.store.keys(table)}
        return {unit for unit in self.units() if all(part_key(table, unit) in written for table in TABLES)}

    def require_units(self) -> None:
        """Raises `UserError` where no unit is finished yet."""
        if not self.units():
            raise UserError(f"{self.store.url}: no unit is finished yet; run the `msrrn annotate` again")

    @property
    def finished(self) -> bool:
        """Whether all units of the plan are, and the run has come to its end."""
        return self._plan is not None and keys_of(self._plan) == self.units() and self.store.exists(SUMMARY)

    def images(self, unit: str) -> pa.Table:
        """A unit's rows of `IMAGES`."""
        return self._part("images", unit)

    def faces(self, unit: str) -> pa.Table:
        """A unit's rows of `FACES`, in the order of its images."""
        return self._part("faces", unit)

    def names(self) -> Iterator[str]:
        """The uri of every input, finished or not, in input order."""
        for batch in self._plan["uri"].iterchunks() if self._plan is not None else ():
            yield from map(str, batch)

    def pictures(self, uris: Collection[str], unit: str | None = None) -> Iterator[tuple[str, bytes | Undecodable]]:
        """The bytes of these pictures, each once, in input order, or why there are none; few are held at a time.

        With `unit` they are looked for among its own.
        """
        plan = self._plan
        if plan is None or not uris:
            return
        if unit is not None:
            start, stop = np.searchsorted(self._unit_numbers, np.array([int(unit), int(unit) + 1], np.int32))
            plan = plan.slice(start, stop - start)
        wanted = plan.filter(pc.is_in(plan["uri"], pa.array(uris, pa.string())))
        yield from ((item.uri, data) for item, data in read_inputs(self._source, inputs_of(wanted)))

    def lies_in(self, place: Store) -> bool:
        """Whether the archive is this place, or lies below it."""
        archive = Store(self._source).absolute()
        here, there = archive.local_path(), place.absolute().local_path()
        if here and there:
            return there.resolve() in {here.resolve(), *here.resolve().parents}
        return f"{archive.url}/".startswith(f"{place.url}/")

    @property
    def _record(self) -> dict[str, Any]:
        if not self.store.exists(RUN):
            raise UserError(f"{self.store.url} has no {RUN}: give the --out of `msrrn annotate`")
        try:
            return dict(json.loads(self.store.read_bytes(RUN)))
        except (ValueError, TypeError) as error:
            place = f"{self.store.url}/{RUN}"
            raise UserError(f"{place} is not the record of a run ({error}); give another place") from error

    @cached_property
    def _plan(self) -> pa.Table | None:
        return read_plan(self.store)

    @cached_property
    def _unit_numbers(self) -> NDArray[np.int32]:
        """Of the plan's rows, which are sorted by them."""
        return np.zeros(0, np.int32) if self._plan is None else self._plan["unit"].to_numpy()

    @property
    def _source(self) -> str:
        """Where the pictures are. Were they moved since, a relative path is seen from the working directory, or from
        this place."""
        run = self.run
        if "archive" in run and Store(run["archive"]).exists():
            return str(run["archive"])
        source = str(run["source"])
        local = Store(source).local_path()
        below = f"{self.store.absolute().url}/{source}"
        return below if local and not local.is_absolute() and not local.exists() and Store(below).exists() else source

    def _part(self, table: str, unit: str) -> pa.Table:
        # A unit that was done again may have been killed while its parts were put in their places, one by one.
        staged = staged_key(table, unit)
        if staged in self._staged and (record := found_record(self.store, unit)) and record.staged:
            with suppress(MissingError):  # it was moved since
                data = self.store.read_bytes(staged)
                if hashlib.sha256(data).hexdigest() == record.parts[table]:
                    return parsed(self.store, staged, data)
        return read_table(self.store, part_key(table, unit))

    @cached_property
    def _staged(self) -> frozenset[str]:
        return frozenset(self.store.keys(STAGED))
