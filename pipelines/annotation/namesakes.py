"""Which inputs of two listings of an archive are the same: those of one name, which may be there several times."""

from collections import defaultdict, deque
from collections.abc import Iterator
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipelines.archives.names import row_name

_CONTENT: Final = ("size", "packed", "version", "problem")
"""What an input has wherever in its archive it lies."""
_STATE: Final = (*_CONTENT, "container", "offset")


def numbered(known: pa.Table, listed: pa.Table) -> tuple[pa.Table, pa.Table]:
    """Both with `order`, and with `copy`: inputs of one `uri` and `copy` are the same one.

    Where a name is there several times, those of the same size and time are the same input: first the ones that lie
    where they lay, then in their order. What is left of either listing is so in its order.
    """
    known = _with_digits(known)
    copies = np.zeros(known.num_rows, np.int32), np.zeros(listed.num_rows, np.int32)
    for before, now in _of_one_name(known, listed):
        copies[0][before] = np.arange(len(before))
        copies[1][now] = _matched(_states(known, before), _states(listed, now))
    return _numbered(known, copies[0]), _numbered(listed, copies[1])


def _numbered(table: pa.Table, copies: NDArray[np.int32]) -> pa.Table:
    return table.append_column("copy", pa.array(copies)).append_column("order", pa.array(np.arange(table.num_rows)))


def _of_one_name(*tables: pa.Table) -> Iterator[tuple[list[int], ...]]:
    """For each name that one of the tables has several times: its rows in each of them."""
    counts = [pc.value_counts(table["uri"]) for table in tables]
    several = [each.field("values").filter(pc.greater(each.field("counts"), 1)) for each in counts]
    rows: defaultdict[str, tuple[list[int], ...]] = defaultdict(lambda: tuple([] for _ in tables))
    names = pa.concat_arrays(several)
    for index, table in enumerate(tables):
        for row in np.flatnonzero(pc.is_in(table["uri"], names).to_numpy(zero_copy_only=False)).tolist():
            rows[table["uri"][row].as_py()][index].append(row)
    yield from rows.values()


def _states(table: pa.Table, rows: list[int]) -> list[tuple[object, ...]]:
    return [tuple(table[name][row].as_py() for name in _STATE) for row in rows]


def _matched(before: list[tuple[object, ...]], now: list[tuple[object, ...]]) -> list[int]:
    """For each of now: the place of the same one before, or one behind all of these."""
    same: dict[int, int] = {}
    for known in (len(_STATE), len(_CONTENT)):
        free: defaultdict[tuple[object, ...], deque[int]] = defaultdict(deque)
        for place in sorted(set(range(len(before))) - set(same.values())):
            free[before[place][:known]].append(place)
        for index, state in enumerate(now):
            if index not in same and free[state[:known]]:
                same[index] = free[state[:known]].popleft()
    left = iter(sorted(set(range(max(len(before), len(now)))) - set(same.values())))
    return [same[index] if index in same else next(left) for index in range(len(now))]


def _with_digits(known: pa.Table) -> pa.Table:
    """Rows of tables that have no names were named by fewer digits in older plans."""
    nameless = pc.and_(
        pc.ends_with(pc.utf8_lower(known["container"]), ".parquet"),
        pc.match_substring_regex(known["uri"], r"(^|/)[0-9]{1,9}$"),
    )
    names = known["uri"].to_pylist() if pc.any(nameless).as_py() else []
    for row in np.flatnonzero(nameless.to_numpy(zero_copy_only=False)).tolist() if names else []:
        folder, slash, name = names[row].rpartition("/")
        if int(name) == known["offset"][row].as_py():
            names[row] = f"{folder}{slash}{row_name(int(name))}"
    return known.set_column(known.schema.get_field_index("uri"), "uri", pa.array(names)) if names else known
