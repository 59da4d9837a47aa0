"""Takes datasets away, and with them the units that no other one lists."""

import re
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from pipelines.dataset.inventory import NAME, place_of
from pipelines.dataset.manifest import MANIFEST, Manifest, read_manifest, unit_of
from pipelines.errors import UserError
from pipelines.storage import Store

_OF_A_UNIT: Final = re.compile(
    r"(shards/[a-z]+-[0-9a-f]{16}\.parquet|records/[0-9a-f]{16}/[a-z]+-[0-9a-f]{16}\.json)"
)
"""The keys of shards and records: what else lies beside them is not ours to delete."""


@dataclass(frozen=True)
class Deleted:
    """What was deleted, or would be."""

    datasets: list[str]
    units: int
    shards: int
    bytes: int
    """of the shards"""


def delete_datasets(url: str, names: Collection[str], dry_run: bool = False) -> Deleted:
    """Deletes the datasets of these names, and every unit that no dataset lists any more; a dry run only counts.

    A call that was killed does the rest when it is made again, for those that are still there.

    Raises:
        UserError: one of them is not there; or another is in the making, or cannot be read, so that nobody knows
            which units it needs. Nothing is deleted then.
    """
    place = place_of(url).absolute()
    known = {name for name in place.folders() if NAME.fullmatch(name)}
    if strange := sorted({*names} - known):
        raise UserError(f"{url} has no dataset {', '.join(strange)}: `msrrn datasets {url}` lists what it has")
    others = sorted(known.difference(names))
    # A folder without a file is in nobody's making: a `prepare` that failed leaves that of its lease.
    if begun := [name for name in others if not place.child(name).exists(MANIFEST) and place.keys(name)]:
        raise UserError(
            f"{url}: {', '.join(begun)} is in the making, and nobody knows which shards it needs: finish it with the "
            "same `msrrn prepare`, or delete it, too; nothing was deleted"
        )
    kept = {
        unit.key for manifest in manifests(place, "nothing was deleted", names).values() for unit in manifest.units
    }
    unlisted = {
        key: size for key, size in place.files().items() if _OF_A_UNIT.fullmatch(key) and unit_of(key) not in kept
    }
    shards = [size for key, size in unlisted.items() if key.startswith("shards/")]
    if not dry_run:
        delete_units(place, {unit_of(key) for key in unlisted})
        for name in names:
            delete_dataset(place.child(name))
    return Deleted(sorted(names), len({unit_of(key) for key in unlisted}), len(shards), sum(shards))


def manifests(place: Store, told: str, without: Collection[str] = ()) -> dict[str, Manifest]:
    """Name → manifest of each finished dataset at a place, but for some.

    Raises:
        UserError: one cannot be read; says what was `told`, and to delete it or to move it away.
    """
    names = [name for name in place.folders() if name not in without and place.child(name).exists(MANIFEST)]
    try:
        return {name: read_manifest(place.child(name)) for name in names}
    except UserError as error:
        raise UserError(f"{error}\n{told}: delete that one, or move it away, and call again") from error


def delete_units(place: Store, units: Collection[str]) -> None:
    """Deletes their shards and then their records: a record without its shard stands for nothing."""
    for folder, suffix in (("shards", ".parquet"), ("records", ".json")):
        for key in place.keys(folder):
            if key.endswith(suffix) and unit_of(key) in units:
                place.delete(key)


def delete_dataset(dataset: Store) -> None:
    """Deletes all of it but its shards, the manifest last: a kill is noticed."""
    for key in sorted(dataset.keys(), key=lambda key: key == MANIFEST):
        dataset.delete(key)
    if folder := dataset.local_path():
        with suppress(OSError):  # it may have folders, which are not ours
            folder.rmdir()
