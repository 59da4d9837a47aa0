import json
import shutil
from pathlib import Path

import pytest

from pipelines.dataset.inventory import DatasetInfo, Datasets, datasets
from pipelines.dataset.manifest import MANIFEST, Manifest, UnitEntry
from pipelines.errors import UserError
from pipelines.storage import Store
from tests.factories import SETTINGS

Dataset = tuple[Store, Manifest]


@pytest.fixture
def place(dataset: Dataset, tmp_path: Path) -> Path:
    """A place with one finished dataset, to be damaged."""
    out = dataset[0].parent.local_path()
    assert out is not None
    return Path(shutil.copytree(out, tmp_path / "datasets"))


def test_a_finished_dataset_is_told_by_its_manifest(dataset: Dataset) -> None:
    store, manifest = dataset
    assert datasets(store.parent.url) == Datasets(
        [
            DatasetInfo(
                manifest.name,
                "finished",
                counts=manifest.counts,
                sources=manifest.faces_by_source,
                missed=manifest.missed,
                seed=0,
                detector=SETTINGS.detector,
                copies=3,
                shards=len(manifest.shards()),
                bytes=sum(unit.bytes for unit in manifest.units),
                code_version=manifest.code_version,
            )
        ],
        unlisted_units=0,
        unlisted_shards=0,
        unlisted_bytes=0,
    )


def test_a_dataset_without_manifest_is_unfinished(dataset: Dataset, place: Path) -> None:
    manifest = dataset[1]
    (place / manifest.name / MANIFEST).rename(place / manifest.name / "lease.json")
    found = datasets(str(place))
    note = f"{len(manifest.units)} units are made that no dataset lists; run the same `msrrn prepare` again to finish"
    assert found.datasets == [DatasetInfo(manifest.name, "unfinished", note)]
    assert found.unlisted_units == len(manifest.units)
    assert found.unlisted_shards == len(manifest.shards())
    assert found.unlisted_bytes == sum(unit.bytes for unit in manifest.units)


def test_datasets_are_listed_by_name(tmp_path: Path) -> None:
    names = [digit * 16 for digit in "9307a1f"]
    for name in names:
        Store(str(tmp_path)).publish(f"{name}/lease.json", b"{}")
    assert [info.name for info in datasets(str(tmp_path)).datasets] == sorted(names)


def test_shards_that_no_dataset_lists_are_counted(dataset: Dataset, place: Path) -> None:
    faceless = UnitEntry(key="train-89ab", split="train", photos=1)  # it has a record alone
    listing = dataset[1].model_copy(update={"units": [*dataset[1].units, faceless]})
    (place / listing.name / MANIFEST).write_text(listing.model_dump_json())
    (place / "records" / "recipe").mkdir()
    for unit in ("train-0123", faceless.key):
        (place / "records" / "recipe" / f"{unit}.json").write_text("{}")
    (place / "shards" / "train-0123.parquet").write_bytes(b"0123456789")
    (place / "shards" / "train-4567.parquet").write_bytes(b"0123")  # its record was not written yet
    found = datasets(str(place))
    assert [info.state for info in found.datasets] == ["finished"]
    assert (found.unlisted_units, found.unlisted_shards, found.unlisted_bytes) == (1, 2, 14)


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"\xff", b"[]", b'{"name": "My web app"}', b"[" * 100_000],
    ids=["empty", "cut", "binary", "list", "foreign", "deep"],
)
def test_a_damaged_manifest_is_a_row(dataset: Dataset, place: Path, content: bytes) -> None:
    good = dataset[1].name
    (place / "broken").mkdir()
    (place / "broken" / MANIFEST).write_bytes(content)
    found = datasets(str(place)).datasets
    assert [info.name for info in found] == sorted(["broken", good])
    broken, whole = sorted(found, key=lambda info: info.name != "broken")
    assert (broken.name, broken.state) == ("broken", "damaged")
    assert f"broken/{MANIFEST}" in broken.note
    assert (whole.name, whole.state) == (good, "finished")


def test_a_dataset_of_another_version_is_not_called_damaged(dataset: Dataset, place: Path) -> None:
    path = place / dataset[1].name / MANIFEST
    path.write_text(json.dumps(json.loads(path.read_bytes()) | {"schema_version": "0"}))
    (info,) = datasets(str(place)).datasets
    assert info.state == "other version"
    assert "`schema_version` is 0, this version of msrrn reads" in info.note


def test_settings_of_any_kind_are_shown_as_far_as_they_go(dataset: Dataset, place: Path) -> None:
    path = place / dataset[1].name / MANIFEST
    content = json.loads(path.read_bytes())
    for settings in ({}, {"seed": "x", "augmentation": 3}, {"augmentation": {"copies": None}}):
        path.write_text(json.dumps(content | {"settings": settings}))
        (info,) = datasets(str(place)).datasets
        assert (info.state, info.seed, info.copies) == ("finished", None, None)


def test_a_dataset_whose_shards_are_gone_is_damaged(dataset: Dataset, place: Path) -> None:
    first, second, third = dataset[1].shards()[:3]
    (place / first.shard).unlink()
    (place / second.shard).write_bytes(b"cut short")
    (place / third.shard).write_bytes(b"longer" * third.bytes)
    (info,) = datasets(str(place)).datasets
    assert info.state == "damaged"
    assert info.note.startswith(f"3 of {len(dataset[1].shards())} shards are missing or cut short")


def test_what_is_no_dataset_is_not_listed(tmp_path: Path) -> None:
    for key in ("photos/a.jpg", "README.md", "0" * 16, "0123abcd/a.jpg", f"{'1' * 16} of May/a.jpg"):
        (tmp_path / key).parent.mkdir(exist_ok=True)
        (tmp_path / key).write_bytes(b"a")
    assert datasets(str(tmp_path)) == Datasets([], 0, 0, 0)
    with pytest.raises(UserError, match="does not exist: give the place"):
        datasets(str(tmp_path / "nowhere"))


def test_datasets_on_s3_are_listed(dataset: Dataset, s3: str) -> None:
    store, manifest = dataset
    there = Store(f"{s3}/sets")
    there.publish(f"{manifest.name}/{MANIFEST}", store.read_bytes(MANIFEST))
    for unit in manifest.shards():
        there.publish(unit.shard, store.parent.read_bytes(unit.shard))
    assert datasets(there.url).datasets == datasets(store.parent.url).datasets
