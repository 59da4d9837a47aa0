import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest

from msrrn.synthetic import SyntheticPhoto
from pipelines.dataset.deletion import Deleted, delete_datasets
from pipelines.dataset.inventory import datasets
from pipelines.dataset.manifest import MANIFEST, Manifest, read_manifest
from pipelines.dataset.prepare import prepare
from pipelines.dataset.verify import verify
from pipelines.errors import UserError
from pipelines.storage import Store
from tests.factories import SETTINGS, tree, write_face

Dataset = tuple[Store, Manifest]
Photos = tuple[list[SyntheticPhoto], list[SyntheticPhoto]]


@pytest.fixture
def grown(dataset: Dataset, annotated: Path, tmp_path: Path) -> tuple[Path, Manifest, Manifest]:
    """A place with a dataset, and with one that was made before a photo went; they share shards."""
    out = dataset[0].parent.local_path()
    assert out is not None
    place = Path(shutil.copytree(out, tmp_path / "datasets"))
    fewer = shutil.copytree(annotated, tmp_path / "fewer")
    bad = {item.uri for item in dataset[1].left_out}
    good = [path for path in sorted(fewer.rglob("*.pts")) if path.relative_to(fewer).as_posix() not in bad]
    good[0].unlink()
    made = prepare([str(fewer)], str(place), SETTINGS, workers=1)[1]
    assert 0 < len({*dataset[1].units} - {*made.units}) < len(dataset[1].units)
    return place, dataset[1], made


def of_dataset(files: Mapping[str, bytes], manifest: Manifest) -> dict[str, bytes]:
    units = {unit.key for unit in manifest.units}
    return {key: data for key, data in files.items() if manifest.name in key or Path(key).stem in units}


def test_what_no_other_dataset_lists_goes_with_one(grown: tuple[Path, Manifest, Manifest]) -> None:
    place, first, second = grown
    before = tree(place)
    assert datasets(str(place)).unlisted_units == 0
    alone = {unit.key: unit for unit in first.units if unit not in second.units}
    size = sum(unit.bytes for unit in alone.values())
    wanted = Deleted([first.name], len(alone), sum(unit.rows > 0 for unit in alone.values()), size)
    assert delete_datasets(str(place), [first.name], dry_run=True) == wanted
    assert tree(place) == before
    assert delete_datasets(str(place), [first.name]) == wanted
    assert tree(place) == of_dataset(before, second)
    assert not (place / first.name).exists()
    assert verify(f"{place}/{second.name}").problems == []
    (place / second.name / "a person's").mkdir()  # its folder stays then
    assert delete_datasets(str(place), [second.name]).datasets == [second.name]
    assert tree(place) == {}


def test_without_a_name_what_no_dataset_lists_goes(grown: tuple[Path, Manifest, Manifest]) -> None:
    place, first, second = grown
    shutil.rmtree(place / first.name)  # by hand
    foreign = [place / key for key in ("shards/000.tar", "shards/mine.parquet", "records/mine.json")]
    gone = next(unit for unit in first.units if unit not in second.units)
    foreign += [place / f"{gone.shard}.md", (place / gone.shard).with_suffix(".csv")]
    foreign.append(place / f"{second.name} of May" / "notes.txt")
    for path in foreign:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"not ours")
    faceless = next((place / "records").glob("*/")) / f"train-{'0' * 16}.json"  # there is no shard of such a unit
    faceless.write_text("{}")
    assert datasets(str(place)).unlisted_units
    assert delete_datasets(str(place), []).units == len({*first.units} - {*second.units}) + 1
    assert all(path.exists() for path in foreign)
    assert not faceless.exists()
    assert verify(f"{place}/{second.name}").problems == []


def test_a_call_that_was_killed_is_made_again(
    grown: tuple[Path, Manifest, Manifest], monkeypatch: pytest.MonkeyPatch
) -> None:
    place, first, second = grown
    before = tree(place)
    delete = Store.delete
    left = 5  # a unit's shard and record, and all of the dataset but its manifest

    def killed(store: Store, key: str) -> None:
        nonlocal left
        if not left:
            raise KeyboardInterrupt
        left -= 1
        delete(store, key)

    with monkeypatch.context() as patch:
        patch.setattr(Store, "delete", killed)
        with pytest.raises(KeyboardInterrupt):
            delete_datasets(str(place), [first.name])
    assert read_manifest(Store(f"{place}/{first.name}")) == first
    delete_datasets(str(place), [first.name])
    assert tree(place) == of_dataset(before, second)


def test_nothing_goes_while_nobody_knows_what_is_needed(grown: tuple[Path, Manifest, Manifest]) -> None:
    place, first, second = grown
    with pytest.raises(UserError, match=r"has no dataset 0123, shards: `msrrn datasets"):
        delete_datasets(str(place), ["shards", "0123", first.name])
    manifest = place / second.name / MANIFEST
    content = manifest.read_bytes()
    manifest.write_bytes(content[:100])
    before = tree(place)
    with pytest.raises(UserError, match=rf"{second.name}/.*\n?.*nothing was deleted: delete that one"):
        delete_datasets(str(place), [first.name])
    manifest.rename(manifest.with_name("lease.json"))
    with pytest.raises(UserError, match=rf"{second.name} is in the making.* nothing was deleted"):
        delete_datasets(str(place), [])
    manifest.with_name("lease.json").rename(manifest)
    assert tree(place) == before
    manifest.unlink()  # what is in the making goes where it is named
    assert set(delete_datasets(str(place), [first.name, second.name]).datasets) == {first.name, second.name}
    assert tree(place) == {}


def test_what_a_failed_prepare_left_keeps_nothing_from_going(
    grown: tuple[Path, Manifest, Manifest], photos: Photos, tmp_path: Path
) -> None:
    place, first, second = grown
    write_face(tmp_path / "in", "a", b"", photos[0][0].shapes[0])
    with pytest.raises(UserError, match="no face is left to train on"):
        prepare([str(tmp_path / "in")], str(place), SETTINGS, workers=1)
    assert [info.name for info in datasets(str(place)).datasets] == sorted([first.name, second.name])
    for dry_run in (True, False):
        assert delete_datasets(str(place), [first.name], dry_run).datasets == [first.name]
    assert verify(f"{place}/{second.name}").problems == []


def test_on_s3(grown: tuple[Path, Manifest, Manifest], s3: str) -> None:
    place, first, second = grown
    for key, data in tree(place).items():
        Store(f"{s3}/sets").publish(key, data)
    delete_datasets(f"{s3}/sets", [first.name])
    assert verify(f"{s3}/sets/{second.name}").problems == []
    assert [info.name for info in datasets(f"{s3}/sets").datasets] == [second.name]
