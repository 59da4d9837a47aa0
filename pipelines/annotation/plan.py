"""What an annotation run works on: every input of its archive, in units, as tables in `OUT/plan`.

The first listing makes `plan/00000.parquet`. A later run compares: inputs that are new get units of their own
behind the others, those that were replaced keep their places; both go into the next table, which overrules the
ones before it. So no input is ever in two units, and units that nothing happened to stay as they are.
"""

import hashlib
import io
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipelines.annotation.namesakes import numbered
from pipelines.archives import Input
from pipelines.errors import UserError
from pipelines.storage import Store

PLACE: Final = "plan"
_TABLE: Final = re.compile(rf"{PLACE}/\d{{5,}}\.parquet")
_LISTED_AT_ONCE: Final = 10_000
_AND_AGAIN: Final = "and run the same `msrrn annotate` again, which makes anew what is missing"

_LISTED: Final = pa.schema(
    [
        pa.field("uri", pa.string(), nullable=False),
        pa.field("container", pa.string(), nullable=False),
        pa.field("offset", pa.int64(), nullable=False),
        pa.field("size", pa.int64(), nullable=False),
        pa.field("packed", pa.int64(), nullable=False),
        pa.field("version", pa.string(), nullable=False),
        pa.field("problem", pa.string(), nullable=False),
    ]
)
_SCHEMA: Final = pa.schema(
    [pa.field("unit", pa.int32(), nullable=False), pa.field("row", pa.int32(), nullable=False), *_LISTED]
)
_STATE: Final = ("container", "offset", "size", "packed", "version", "problem")
"""What differs where an input was replaced."""


@dataclass(frozen=True)
class Unit:
    """The piece of work that is done once or again; `inputs` in input order."""

    key: str
    inputs: tuple[Input, ...]
    gone: frozenset[int] = frozenset()
    """rows of inputs that the archive no longer has"""


@dataclass(frozen=True)
class Plan:
    """`table` has the columns of `Input` behind `unit` and `row`, sorted by these."""

    table: pa.Table
    gone: NDArray[np.bool_]
    """of each row, whether the archive no longer has that input of an earlier run; what is known of it stays"""
    addition: pa.Table | None = None
    """what is new or was replaced since the last plan"""
    written: int = 0
    """tables of the plan that are there"""
    waiting: int = 0
    """inputs that are new, and that it has not taken in"""

    @property
    def inputs(self) -> int:
        return int(self.table.num_rows)

    def keys(self) -> list[str]:
        """Of all units, in input order."""
        return keys_of(self.table)

    def units(self) -> Iterator[Unit]:
        """All units, in input order; one is held at a time."""
        numbers = self.table["unit"].to_numpy()
        edges = np.flatnonzero(np.diff(numbers)) + 1
        for start, stop in zip([0, *edges.tolist()], [*edges.tolist(), len(numbers)], strict=True):
            if stop > start:
                gone = frozenset(np.flatnonzero(self.gone[start:stop]).tolist())
                yield Unit(unit_key(numbers[start]), inputs_of(self.table.slice(start, stop - start)), gone)

    @property
    def is_first(self) -> bool:
        return self.written == 0

    def publish(self, out: Store) -> None:
        """Writes what is new behind the tables that are there.

        Raises:
            UserError: another run did, since this was planned.
        """
        if self.addition is None:
            return
        sink = io.BytesIO()
        pq.write_table(self.addition, sink, compression="zstd")
        if not out.create(_table_key(self.written), sink.getvalue()):
            raise UserError(f"another run has planned what is new in {out.url} meanwhile: run again")


def unit_key(unit: int) -> str:
    """By which parts and records of a unit are named."""
    return f"{unit:06d}"


def _table_key(number: int) -> str:
    return f"{PLACE}/{number:05d}.parquet"


def _tables(out: Store) -> list[str]:
    """Keys of the plan's tables, oldest first; file managers leave files of their own beside them."""
    return [key for key in out.keys(PLACE) if _TABLE.fullmatch(key)]


def is_planned(out: Store) -> bool:
    """Whether a run has begun there."""
    return bool(_tables(out))


def keys_of(table: pa.Table) -> list[str]:
    """Of the units of a plan's rows, in their order."""
    return [unit_key(number) for number in pc.unique(table["unit"]).to_pylist()]


def inputs_of(table: pa.Table) -> tuple[Input, ...]:
    """The inputs of a plan's rows."""
    return tuple(Input(**row) for row in table.select(_LISTED.names).to_pylist())


def fingerprint(item: Input) -> str:
    """Sixteen hexadecimal digits that change when the input is replaced."""
    text = "\t".join(map(str, (item.uri, item.container, item.offset, item.size, item.version, item.problem)))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def make_plan(
    inputs: Iterator[Input],
    out: Store,
    per_unit: int,
    whole: Callable[[], bool] = lambda: True,
    progress: Callable[[int], None] = lambda listed: None,
    grows: bool = True,
) -> Plan:
    """A listing of the archive beside the plan of `out`: what is new since, all where none was. Nothing is written.

    `whole` says, when all are taken, whether the listing was of all that the archive has. A plan that does not grow
    counts what is new alone.
    """
    listed = _listed(inputs, progress)
    before = read_plan(out)
    if before is None:
        order = np.arange(listed.num_rows)
        first = _with_places(listed, order // per_unit, order % per_unit)
        return Plan(first, np.zeros(len(order), bool), first)
    written = len(_tables(out))
    gone = np.full(before.num_rows, whole())
    if listed.equals(before.select(_LISTED.names)):  # a join would take ten times the memory to find that out
        return Plan(before, np.zeros_like(gone), written=written)
    known, now = numbered(before, listed)
    joined = now.join(known, keys=["uri", "copy"], join_type="left outer", right_suffix="_known").sort_by("order")
    new = _new(joined, int(pc.max(before["unit"]).as_py()) + 1, per_unit)
    joined = joined.filter(pc.invert(_is_missing(joined)))
    gone[pc.drop_null(joined["order_known"]).to_numpy()] = False
    waiting = 0 if grows else new.num_rows
    new = new.slice(waiting)
    addition = pa.concat_tables([_changed(joined), new])
    if not addition.num_rows:
        return Plan(before, gone, written=written, waiting=waiting)
    # Units of what is new come behind all others, so the rows of before keep their order.
    gone = np.append(gone, np.zeros(new.num_rows, bool))
    return Plan(_overruled([before, addition]), gone, addition, written, waiting)


def read_table(out: Store, key: str, to_delete: str = "it") -> pa.Table:
    """A table of a run.

    Raises:
        UserError: it is damaged, or missing.
    """
    return parsed(out, key, out.read_bytes(key), to_delete)


def parsed(out: Store, key: str, data: bytes, to_delete: str = "it") -> pa.Table:
    """The table in the bytes of a key.

    Raises:
        UserError: it is damaged.
    """
    try:
        return pq.read_table(pa.BufferReader(data))
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:  # whatever Arrow says of bytes that are damaged
        reason = f"{out.url}/{key} is damaged ({(str(error).splitlines() or ['?'])[0]})"
        raise UserError(f"{reason}: delete {to_delete} {_AND_AGAIN}") from error


def read_plan(out: Store) -> pa.Table | None:
    """The plan that is there, sorted by unit and row; None where none was made.

    Raises:
        UserError: one of its tables is damaged, of another version, or missing: what the others say is not all.
    """
    keys = _tables(out)
    for number, key in enumerate(keys):
        if key != (expected := _table_key(number)):
            raise UserError(f"{out.url}/{expected} is missing: delete {_whole(out)} {_AND_AGAIN}")
    tables = [_read(out, key) for key in keys]
    return _overruled(tables) if tables else None


def _read(out: Store, key: str) -> pa.Table:
    table = read_table(out, key, _whole(out))
    if table.schema.names != _SCHEMA.names:
        raise UserError(
            f"{out.url}/{key} is of another version of msrrn: use that version, or annotate elsewhere anew"
        )
    return table


def _whole(out: Store) -> str:
    return f"the whole of {out.url}/{PLACE} (rows of pictures that are gone from the archive go with it)"


def additions(out: Store) -> list[tuple[str, list[str]]]:
    """For each table of the plan, oldest first: its key, and the units that came with it. Some bring none."""
    known: set[int] = set()
    found = []
    for key in _tables(out):
        units = _read(out, key)["unit"]
        new = sorted(set(pc.unique(units).to_pylist()) - known)
        known.update(new)
        found.append((key, [unit_key(number) for number in new]))
    return found


def overruled(out: Store) -> set[str]:
    """Units that a table has inputs of and a later one, too: some were replaced."""
    known: set[str] = set()
    found: set[str] = set()
    for key in _tables(out):
        units = set(keys_of(_read(out, key)))
        found |= units & known
        known |= units
    return found


def _listed(inputs: Iterator[Input], progress: Callable[[int], None]) -> pa.Table:
    batches = []
    count = 0
    while some := list(islice(inputs, _LISTED_AT_ONCE)):
        columns = [pa.array([getattr(item, field.name) for item in some], field.type) for field in _LISTED]
        batches.append(pa.RecordBatch.from_arrays(columns, schema=_LISTED))
        count += len(some)
        progress(count)
    return pa.Table.from_batches(batches, schema=_LISTED)


def _with_places(table: pa.Table, units: np.ndarray, rows: np.ndarray) -> pa.Table:
    places = [pa.array(units, pa.int32()), pa.array(rows, pa.int32())]
    return pa.table([*places, *table.select(_LISTED.names).columns], schema=_SCHEMA)


def _is_missing(joined: pa.Table) -> pa.ChunkedArray:
    """Whether a list still names it, and where it was no file is any more."""
    nothing = pc.and_(pc.equal(joined["version"], ""), pc.equal(joined["problem"], ""))
    return pc.fill_null(pc.and_(nothing, pc.not_equal(joined["version_known"], "")), False)


def _changed(joined: pa.Table) -> pa.Table:
    """Inputs that were replaced, in the places that they have."""
    differs = pa.array(np.zeros(joined.num_rows, bool))
    for name in _STATE:
        differs = pc.or_(differs, pc.fill_null(pc.not_equal(joined[name], joined[f"{name}_known"]), False))
    rows = joined.filter(differs)
    return _with_places(rows, rows["unit"].to_numpy(), rows["row"].to_numpy())


def _new(joined: pa.Table, first: int, per_unit: int) -> pa.Table:
    """Inputs that no unit has yet, in units of their own."""
    rows = joined.filter(pc.is_null(joined["unit"]))
    order = np.arange(rows.num_rows)
    return _with_places(rows, first + order // per_unit, order % per_unit)


def _overruled(tables: list[pa.Table]) -> pa.Table:
    """Of several rows for one place, that of the last table."""
    whole = pa.concat_tables(tables)
    if len(tables) > 1:
        order = pa.array(np.arange(whole.num_rows))
        last = whole.select(["unit", "row"]).append_column("order", order)
        kept = last.group_by(["unit", "row"]).aggregate([("order", "max")])["order_max"]
        whole = whole.take(kept)
    return whole.sort_by([("unit", "ascending"), ("row", "ascending")])
