"""Removes pictures from datasets, by the digests of their bytes, and keeps them out.

What is left of a dataset is put together anew, under the name that it then has, without looking at any photo
again; the old one goes, and so does every shard and record that held one of the pictures. A call that was
killed, made again, does the rest.
"""

from collections import Counter
from collections.abc import Collection
from contextlib import suppress
from typing import Final

import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import ValidationError

from pipelines.dataset.deletion import delete_dataset, delete_units, manifests
from pipelines.dataset.faces import survey
from pipelines.dataset.inventory import place_of
from pipelines.dataset.manifest import MANIFEST, Manifest, made_with, unit_of
from pipelines.dataset.page import NOT_REJECTED, PAGE, dataset_page
from pipelines.dataset.photos import Seen, clusters
from pipelines.dataset.prepare import NoFaceError, prepare
from pipelines.dataset.shards import open_shard
from pipelines.dataset.unit_records import UnitRecord
from pipelines.errors import UserError
from pipelines.forgotten import Forgot, forgot_at, read_forgotten, remember, remember_found, write_forgotten
from pipelines.lease import hold
from pipelines.outages import MissingError, OutageError
from pipelines.progress import Progress
from pipelines.storage import Store

_UNCHANGED: Final = "no dataset was changed"


def forget_in_datasets(url: str, digests: Collection[str], workers: int, progress: Progress) -> Forgot:
    """Removes pictures from every dataset at a place; `prepare` leaves them out from now on.

    Raises:
        UserError: there is no such place, or a dataset in it cannot be read; or, after all others were seen to, one
            cannot be put together anew.
    """
    place = place_of(url).absolute()
    with hold(place, lambda note: progress(0, 0, "another call is forgetting there: waiting")):
        remember(place, digests)
        found = manifests(place, _UNCHANGED)
        forgotten = read_forgotten(place)
        wanted = forgotten.digests
        holding, alike = _holding(place, wanted)
        counts = _found(place, holding, wanted)
        remember_found(place, counts)
        stuck: dict[str, UserError] = {}
        made: dict[str, str | None] = {}
        for name, manifest in found.items():
            if name in forgotten.renamed and forgotten.now(name) in {None, *found}:
                made[name] = forgotten.renamed[name]  # a call that was killed may have deleted some of the old one
                continue
            in_units = not holding.isdisjoint(unit.key for unit in manifest.units)
            if not in_units and wanted.isdisjoint(photo.sha256 for photo in manifest.held):
                _hide_rejected(place.child(name), manifest)
                continue
            try:
                made[name] = _made_anew(place, name, manifest, workers, progress)
            except UserError as error:
                if in_units or isinstance(error, OutageError):
                    stuck[name] = error
                else:
                    _forget_held(place.child(name), manifest, wanted)
        _clear(place, holding)
        place.sweep()
    if stuck:
        listed = "\n".join(f"{url}/{name} still holds a picture: {error}" for name, error in stuck.items())
        raise UserError(f"{listed}\ndelete what still holds one, and forget again")
    return forgot_at(place, digests, counts).model_copy(update={"place": url, "datasets": made, "alike": alike})


def _holding(place: Store, wanted: Collection[str]) -> tuple[set[str], list[str]]:
    """Units that hold one of the pictures, and SHA-256 of photos that show nearly the same."""
    unknown = set(place.keys("shards"))
    holding: set[str] = set()
    seen: dict[str, Seen] = {}
    for key in place.keys("records"):
        try:
            record = UnitRecord.model_validate_json(place.read_bytes(key))
        except ValidationError:
            continue  # a damaged record stands for nothing: the shard is looked at
        unknown.discard(record.entry.shard)
        seen |= {photo.sha256: photo.seen(record.entry.split) for photo in record.photos}
        if any(photo.sha256 in wanted for photo in record.photos):
            holding.add(record.entry.key)
    holding |= {unit_of(shard) for shard in unknown if not _rows(place, shard).keys().isdisjoint(wanted)}
    alike = [{photo.sha256 for photo in cluster} for cluster in clusters(list(seen.values()))]
    return holding, sorted(set().union(*(some for some in alike if not some.isdisjoint(wanted))).difference(wanted))


def _rows(place: Store, shard: str) -> Counter[str]:
    """SHA-256 of the photos in a shard → its rows of each; nothing where there is no such shard."""
    try:
        with open_shard(place, shard, "delete it, and forget again") as file:
            counts = pc.value_counts(pq.read_table(file, columns=["photo_sha256"])["photo_sha256"])
    except MissingError:
        return Counter()
    return Counter(dict(zip(counts.field("values").to_pylist(), counts.field("counts").to_pylist(), strict=True)))


def _found(place: Store, holding: Collection[str], wanted: Collection[str]) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for unit in holding:
        for digest, rows in _rows(place, f"shards/{unit}.parquet").items():
            if digest in wanted:
                found.setdefault(digest, []).append(rows)
    return found


def _made_anew(place: Store, name: str, manifest: Manifest, workers: int, progress: Progress) -> str | None:
    """Makes a dataset of what is left, and writes down its name; None where nothing is."""
    settings = made_with(place.child(name), manifest)
    new: str | None = None
    with suppress(NoFaceError):
        new = prepare([], place.url, settings, workers, progress, append_to=name)[1].name
    if new == name:
        raise UserError("without it, it would be what it is")
    forgotten = read_forgotten(place)
    forgotten.renamed[name] = new
    write_forgotten(place, forgotten)
    return new


def _clear(place: Store, holding: Collection[str]) -> None:
    """Deletes datasets that were made anew, and units that held a picture or that only those datasets had."""
    renamed = read_forgotten(place).renamed
    now = manifests(place, _UNCHANGED)
    kept = {unit.key for name, manifest in now.items() if name not in renamed for unit in manifest.units}
    old = {unit.key for name, manifest in now.items() if name in renamed for unit in manifest.units}
    delete_units(place, (old | set(holding)) - kept)
    for name in now.keys() & renamed.keys():
        delete_dataset(place.child(name))


def _forget_held(dataset: Store, manifest: Manifest, wanted: Collection[str]) -> None:
    """Takes photos, which it only holds out of its units, from a dataset that cannot be made anew: it keeps its name.

    Those of another version cannot.
    """
    held = [photo for photo in manifest.held if photo.sha256 not in wanted]
    dataset.publish(MANIFEST, manifest.model_copy(update={"held": held}).model_dump_json(indent=1).encode())


def _hide_rejected(dataset: Store, manifest: Manifest) -> None:
    """Draws a page anew without its gallery of rejected pictures: whose they are is not known any more."""
    if any(item.reason not in NOT_REJECTED for item in manifest.left_out):
        dataset.publish(PAGE, dataset_page(dataset, manifest, survey(dataset.parent, manifest)).encode())
