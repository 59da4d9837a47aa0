"""What datasets are in a place: the finished ones, those in the making, and shards that none of them lists."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from pipelines.dataset.manifest import MANIFEST, Manifest, OtherVersionError, read_manifest, unit_of
from pipelines.errors import UserError
from pipelines.storage import Store

NAME: Final = re.compile(r"[0-9a-f]{16}")
"""How `prepare` names a dataset: where no manifest is, nothing else tells one from any other directory."""


@dataclass(frozen=True)
class DatasetInfo:
    """One dataset. All but `name`, `state` and `note` is empty unless its manifest can be read."""

    name: str
    state: Literal["finished", "unfinished", "damaged", "other version"]
    note: str = ""
    """what is wrong, and the remedy"""
    counts: dict[str, int] = field(default_factory=dict)
    sources: dict[str, dict[str, int]] = field(default_factory=dict)
    missed: int = 0
    seed: int | None = None
    detector: str = ""
    copies: int | None = None
    shards: int = 0
    bytes: int = 0
    """of its shards; other datasets may share them"""
    code_version: str = ""


@dataclass(frozen=True)
class Datasets:
    """The datasets of a place by name, and what none of the finished ones lists."""

    datasets: list[DatasetInfo]
    unlisted_units: int
    """units that were made: of a dataset in the making, or of one that was deleted"""
    unlisted_shards: int
    unlisted_bytes: int


def place_of(url: str) -> Store:
    """A place of datasets.

    Raises:
        UserError: there is no such place.
    """
    store = Store(url)
    if not store.exists():
        raise UserError(f"{url} does not exist: give the place that `msrrn prepare` was told with --out")
    return store


def datasets(url: str) -> Datasets:
    """Looks at every manifest below `url`, and at the names and sizes of shards and records.

    Raises:
        UserError: there is no such place.
    """
    store = place_of(url)
    sizes = store.files()
    names = {key.partition("/")[0] for key in sizes if "/" in key}
    shards = {key: size for key, size in sizes.items() if key.startswith("shards/")}
    done = {unit_of(key) for key in sizes if key.startswith("records/")}
    found: list[DatasetInfo] = []
    listed: set[str] = set()
    for name in sorted(names):
        if f"{name}/{MANIFEST}" in sizes:
            try:
                manifest = read_manifest(store.child(name))
            except OtherVersionError as error:
                found.append(DatasetInfo(name, "other version", str(error)))
                continue
            except UserError as error:
                found.append(DatasetInfo(name, "damaged", str(error)))
                continue
            found.append(_finished(name, manifest, shards))
            listed.update(unit.key for unit in manifest.units)
        elif NAME.fullmatch(name):
            found.append(DatasetInfo(name, "unfinished"))
    unlisted = done - listed
    note = f"{len(unlisted)} units are made that no dataset lists; run the same `msrrn prepare` again to finish"
    found = [DatasetInfo(info.name, info.state, note) if info.state == "unfinished" else info for info in found]
    stray = [size for key, size in shards.items() if unit_of(key) not in listed]
    return Datasets(found, len(unlisted), len(stray), sum(stray))


def _finished(name: str, manifest: Manifest, shards: Mapping[str, int]) -> DatasetInfo:
    units = manifest.shards()
    wrong = sum(shards.get(unit.shard) != unit.bytes for unit in units)
    augmentation = manifest.settings.get("augmentation")
    return DatasetInfo(
        name,
        "damaged" if wrong else "finished",
        f"{wrong} of {len(units)} shards are missing or cut short; `msrrn verify` names them" if wrong else "",
        counts=manifest.counts,
        sources=manifest.faces_by_source,
        missed=manifest.missed,
        seed=_whole(manifest.settings.get("seed")),
        detector=str(manifest.settings.get("detector", "")),
        copies=_whole(augmentation.get("copies")) if isinstance(augmentation, dict) else None,
        shards=len(units),
        bytes=sum(unit.bytes for unit in units),
        code_version=manifest.code_version,
    )


def _whole(value: Any) -> int | None:
    return value if isinstance(value, int) else None
