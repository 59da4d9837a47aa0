import shutil
import threading
from collections.abc import Iterable
from contextlib import closing
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import s3fs
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.dataset import loader as module
from pipelines.dataset.loader import Batch, Loader
from pipelines.dataset.manifest import Manifest
from pipelines.dataset.shards import encode_shard, images
from pipelines.errors import UserError
from pipelines.storage import Store
from tests.factories import Dataset, numbered_row, write_shards

TRAIN = ((5, 5, 5), (7, 7, 7), (1, 1, 1), (4, 4, 4))
SAMPLES = 51
VAL = ((3,), (6,), (2,))


@pytest.fixture(scope="module")
def numbered(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return write_shards(tmp_path_factory.mktemp("numbered"), TRAIN, VAL)


def numbers(batches: Iterable[Batch]) -> list[list[int]]:
    """The samples of each batch; all columns are of the same one."""
    found = []
    for batch in batches:
        found.append(batch.landmarks[:, 0, 0].int().tolist())
        assert (batch.image_200 == batch.image_200[:, :1, :1]).all()
        assert batch.image_200[:, 199, 0].tolist() == [number % 251 for number in found[-1]]
        assert batch.mirrored.tolist() == [number % 3 == 0 for number in found[-1]]
    return found


windows = st.sampled_from([1, 8, 20, 51, 1000])
few = settings(max_examples=20)
batch_sizes = st.sampled_from([2, 4, 6, 12, 48])


@few
@given(windows, batch_sizes, st.integers(0, 3), st.integers(0, 5))
def test_an_epoch_has_every_sample_once_but_for_what_fills_no_batch(
    numbered: Dataset, window: int, batch: int, epoch: int, seed: int
) -> None:
    batches = numbers(Loader(*numbered, "train", window).epoch(seed, epoch, batch))
    assert [len(rows) for rows in batches] == [batch] * (SAMPLES // batch)
    seen = {row for rows in batches for row in rows}
    assert len(seen) == SAMPLES // batch * batch
    assert seen <= set(range(SAMPLES))


@few
@given(windows, batch_sizes, st.integers(0, 3), st.integers(0, 24))
def test_ranks_share_the_batches_that_one_worker_sees(
    numbered: Dataset, window: int, batch: int, epoch: int, start: int
) -> None:
    """Also when they start in the middle."""
    loader = Loader(*numbered, "train", window)
    alone = numbers(loader.epoch(0, epoch, batch))[start:]
    for world in {1, 2, 3, batch // 2, batch} & {*range(1, batch + 1)}:
        ranks = [numbers(loader.epoch(0, epoch, batch, start, rank, world)) for rank in range(world)]
        assert [[*chain(*shares)] for shares in zip(*ranks, strict=True)] == alone
    with pytest.raises(ValueError, match=f"a batch of {batch} cannot be shared by {batch + 1} ranks"):
        loader.epoch(0, epoch, batch, world=batch + 1)


def test_every_epoch_and_every_seed_has_its_own_order(numbered: Dataset) -> None:
    loader = Loader(*numbered, "train")
    orders = [numbers(loader.epoch(seed, epoch, 51)) for seed in (0, 1) for epoch in (0, 1, 2)]
    assert all(sorted(order[0]) == list(range(SAMPLES)) for order in orders)
    assert len({tuple(order[0]) for order in orders}) == len(orders)
    assert numbers(loader.epoch(1, 2, 51)) == orders[-1]


def test_the_order_of_an_epoch_stays_what_it_is(numbered: Dataset) -> None:
    """Another order makes other models: raise RECIPE in pipelines.training.train with it."""
    assert numbers(Loader(*numbered, "train", 20).epoch(0, 0, 8))[2] == [24, 47, 35, 33, 50, 31, 32, 34]


def test_samples_of_a_window_are_shuffled_over_its_shards(numbered: Dataset) -> None:
    (order,) = numbers(Loader(*numbered, "train").epoch(0, 0, 51))
    steps = np.abs(np.diff(order))
    assert (steps == 1).mean() < 0.2
    assert (steps > 15).mean() > 0.3


def test_validation_goes_through_all_samples_in_order(numbered: Dataset) -> None:
    for window in (1, 5, 100):
        loader = Loader(*numbered, "val", window)
        assert numbers(loader.in_order(4)) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10]]
        assert numbers(loader.in_order(4, 0, 2)) == [[0, 1, 2, 9], [10]]
        assert numbers(loader.in_order(4, 1, 2)) == [[3, 4, 5, 6], [7, 8]]
        assert numbers(loader.in_order(4, 3, 4)) == []


def test_one_shard_of_one_row_group_is_enough(tmp_path: Path) -> None:
    loader = Loader(*write_shards(tmp_path, [[5]]), "train", 2)
    assert len(loader) == 5
    assert len({*chain(*numbers(loader.epoch(0, 0, 2)))}) == 4
    assert sorted(numbers(loader.epoch(0, 0, 5))[0]) == list(range(5))
    assert numbers(loader.epoch(0, 0, 6)) == []


def test_a_split_without_faces_has_no_samples(numbered: Dataset, tmp_path: Path) -> None:
    loader = Loader(*write_shards(tmp_path, [[2]]), "val")
    assert len(loader) == 0
    assert list(loader.in_order(4)) == list(loader.epoch(0, 0, 4)) == []
    with pytest.raises(UserError, match="no face to train on"):
        loader.mean_shape()


def test_the_mean_shape_is_that_of_faces_without_augmentation(numbered: Dataset) -> None:
    first = [*range(5), *range(15, 22), 36, *range(39, 43)]
    shapes = [numbered_row(number, 0, "train")["landmarks"].reshape(68, 2) for number in first]
    mean = Loader(*numbered, "train").mean_shape()
    assert mean.dtype == np.float32
    np.testing.assert_allclose(mean, np.mean(shapes, axis=0, dtype=np.float64), rtol=1e-6)


@pytest.mark.parametrize(
    ("most", "shards"),
    [(None, [0, 1, 2, 3]), (1000, [0, 1, 2, 3]), (17, [0, 1, 2, 3]), (12, [0, 1, 3]), (8, [0, 3]), (4, [0]), (0, [])],
)
def test_faces_without_augmentation_come_from_shards_all_over_the_dataset(
    numbered: Dataset, most: int | None, shards: list[int]
) -> None:
    first = [[*range(5)], [*range(15, 22)], [36], [*range(39, 43)]]
    assert numbers([Loader(*numbered, "train").originals(most)]) == [[*chain(*(first[shard] for shard in shards))]]


class Reads:
    """Which row groups were read."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.groups: list[tuple[int, int]] = []
        read = Loader._read

        def counted(loader: Loader, shard: int, group: int, columns: list[str]) -> object:
            self.groups.append((shard, group))
            return read(loader, shard, group, columns)

        patch.setattr(Loader, "_read", counted)


def test_two_windows_are_read_ahead_and_nothing_before_the_start(
    numbered: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    loader = Loader(*numbered, "train", 8)
    reads = Reads(monkeypatch)
    whole = numbers(loader.epoch(0, 0, 4))
    assert len(reads.groups) == len(set(reads.groups)) == 12
    reads.groups.clear()
    assert numbers(loader.epoch(0, 0, 4, 10)) == whole[10:]
    assert 2 <= len(reads.groups) <= 5  # 11 samples, of which 3 are left out
    reads.groups.clear()
    with closing(loader.epoch(0, 0, 4)) as batches:
        next(batches)
        in_use = len(reads.groups)
    assert in_use <= 6


def test_stopping_early_leaves_no_thread(numbered: Dataset) -> None:
    def readers() -> list[str]:
        return [thread.name for thread in threading.enumerate() if thread.name.startswith("shard-reader")]

    batches = Loader(*numbered, "train", 8).epoch(0, 0, 4)
    assert len(list(islice(batches, 2))) == 2
    assert readers()
    batches.close()
    assert not readers()


def test_what_fails_in_a_reading_thread_is_raised_where_batches_are_used(
    numbered: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    loader = Loader(*numbered, "train", 8)
    calls: list[int] = []

    def failing(table: Any, size: int) -> object:
        calls.append(size)
        if len(calls) == 5:
            raise MemoryError("no more")
        return images(table, size)

    monkeypatch.setattr(module, "images", failing)
    with pytest.raises(MemoryError, match="no more"):
        list(loader.epoch(0, 0, 4))
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("shard-reader")]


def damaged(numbered: Dataset, folder: Path) -> tuple[Store, Manifest, Path]:
    """A copy of the dataset, and its second shard of training."""
    root = numbered[0].parent.local_path()
    assert root is not None
    shutil.copytree(root, folder / "out")
    return Store(str(folder / "out" / "numbered")), numbered[1], folder / "out" / "shards" / "train-1.parquet"


REMEDY = r"shards/train-1\.parquet: damaged \(.+\); delete it and the manifest, .* `msrrn verify .*/numbered` finds"


def test_a_byte_that_changed_is_noticed(numbered: Dataset, tmp_path: Path) -> None:
    store, manifest, path = damaged(numbered, tmp_path)
    column = pq.read_metadata(path).row_group(1).column(8)
    assert column.path_in_schema == "image_200"
    data = bytearray(path.read_bytes())
    data[column.data_page_offset + column.total_compressed_size // 2] ^= 1
    path.write_bytes(data)
    loader = Loader(store, manifest, "train")
    loader.mean_shape()  # reads no pixels
    with pytest.raises(UserError, match=REMEDY):
        list(loader.epoch(0, 0, 4))


@pytest.mark.parametrize("kept", [0, 7, 0.5, -1])
def test_a_shard_cut_short_is_noticed(numbered: Dataset, tmp_path: Path, kept: float) -> None:
    store, manifest, path = damaged(numbered, tmp_path)
    data = path.read_bytes()
    path.write_bytes(data[: int(kept * len(data)) if kept == 0.5 else int(kept)])
    with pytest.raises(UserError, match=REMEDY):
        Loader(store, manifest, "train")


def test_a_shard_that_vanished_or_was_replaced_is_named(numbered: Dataset, tmp_path: Path) -> None:
    store, manifest, path = damaged(numbered, tmp_path)
    path.write_bytes(encode_shard([numbered_row(0, 0, "train")], "{}"))
    with pytest.raises(UserError, match=r"train-1\.parquet: damaged \(it has 1 rows, and 21 in the manifest\)"):
        Loader(store, manifest, "train")
    table = pq.read_table(numbered[0].parent.local_path() / "shards" / "train-1.parquet")  # type: ignore[operator]
    pq.write_table(table.drop_columns(["copy"]), path)
    with pytest.raises(UserError, match=r"train-1\.parquet: damaged \(it has other columns"):
        Loader(store, manifest, "train")
    path.unlink()
    with pytest.raises(UserError, match=r"train-1\.parquet is gone: run the same `msrrn prepare` again"):
        Loader(store, manifest, "train")


def test_a_disk_that_fails_is_not_a_damaged_shard(numbered: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    loader = Loader(*numbered, "train")
    monkeypatch.setattr(pq, "ParquetFile", lambda *source, **options: (_ for _ in ()).throw(OSError(5, "I/O error")))
    with pytest.raises(OSError, match="I/O error"):
        next(loader.epoch(0, 0, 4))


def test_s3_gives_the_same_samples_in_two_requests_a_row_group(
    numbered: Dataset, s3: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    local, manifest = numbered
    for unit in manifest.shards():
        Store(s3).publish(unit.shard, local.parent.read_bytes(unit.shard))
    requests: list[str] = []
    call = s3fs.S3FileSystem._call_s3

    async def counted(fs: Any, method: str, *arguments: Any, **options: Any) -> Any:
        requests.append(method)
        return await call(fs, method, *arguments, **options)

    monkeypatch.setattr(s3fs.S3FileSystem, "_call_s3", counted)
    loader = Loader(Store(s3).child("numbered"), manifest, "train", 20)
    assert len(requests) == 2 * len(TRAIN)
    requests.clear()
    assert numbers(loader.epoch(3, 1, 4)) == numbers(Loader(*numbered, "train", 20).epoch(3, 1, 4))
    assert len(requests) <= 2 * 12
