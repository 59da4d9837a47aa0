"""Shards → batches, streamed: what a trainer reads, in the memory of two windows.

The unit of reading is a row group. An epoch draws an order of all row groups of a split and takes them in
windows; the samples of a window are shuffled. All of it follows from (seed, epoch): not from how many ranks
share the batches, nor from how many threads read. While one window is in use, threads read the next.

Only the finest level is read: the coarser ones are its area averages, which the device makes by itself.
"""

import math
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, BinaryIO, Final, NamedTuple, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from msrrn.geometry import LEVELS
from msrrn.landmarks import NUM_LANDMARKS
from pipelines.dataset.manifest import Manifest, UnitEntry, refuse_renamed
from pipelines.dataset.shards import SCHEMA, Split, images, landmarks, open_shard
from pipelines.errors import UserError
from pipelines.outages import MissingError
from pipelines.storage import Store

WINDOW: Final = 3072
"""Samples that are shuffled together. With what a batch leaves over they stay below 128 MiB: pinned memory is
rounded up to a power of two."""
READERS: Final = 8
"""Threads that read row groups: S3 answers late, and a GPU wants more than one core decodes."""
FOOTERS: Final = 1024
"""Footers that are kept, of some 20 kB each; with more shards, some are read again."""

_ORIGINALS: Final = 0
"""The row group of faces as they are: see `pipelines.dataset.shards`."""
SIDE: Final = LEVELS[-1]

Rows = NDArray[np.int64]
T = TypeVar("T")


class Batch(NamedTuple):
    """Crops (B, 200, 200) uint8, their landmarks (B, 68, 2) float32 in [0, 1] of the crop, and (B,) bool: whether
    photo and annotation were mirrored for it."""

    image_200: torch.Tensor
    landmarks: torch.Tensor
    mirrored: torch.Tensor

    def rows(self, first: int, end: int | None = None) -> "Batch":
        """A view of some rows."""
        return Batch(*(column[first:end] for column in self))


def share_of(batch: int, rank: int, world: int) -> slice:
    """Which samples of every batch are a rank's: as many as any other's, or one more."""
    return slice(rank * batch // world, (rank + 1) * batch // world)


class _Plan(NamedTuple):
    """What a window reads: row groups, and which of their rows in which order."""

    groups: Rows
    order: Rows


class _Window(NamedTuple):
    """Samples that threads are writing, behind room for those that the window before left over."""

    samples: Batch
    reads: list[Future[None]]


class Loader:
    """The samples of one split of a dataset.

    What it reads raises `UserError` when a shard is gone or damaged: it names the shard and the remedy.

    Args:
        window: samples that are shuffled together, and half of the memory (at least a row group).
        pinned: batches lie in pinned memory, from where CUDA fetches them by itself.
    """

    def __init__(
        self, dataset: Store, manifest: Manifest, split: Split, window: int = WINDOW, pinned: bool = False
    ) -> None:
        self._dataset = dataset
        self._shards = manifest.shards(split)
        self._window = window
        self._pinned = pinned
        self._footer: Callable[[int], pq.FileMetaData] = lru_cache(FOOTERS)(self._read_footer)
        counts = self._of_every_shard(self._group_rows)
        self._rows: Rows = np.array([rows for shard in counts for rows in shard], np.int64)
        """samples of each row group"""
        self._places = [(shard, index) for shard, rows in enumerate(counts) for index in range(len(rows))]
        """shard and row group in it, of each row group"""

    def __len__(self) -> int:
        return int(self._rows.sum())

    def epoch(
        self, seed: int, epoch: int, batch: int, start: int = 0, rank: int = 0, world: int = 1
    ) -> Generator[Batch, None, None]:
        """This rank's share (`share_of`) of each batch of an epoch, from batch `start` on; close it to stop early.

        All ranks together see the same batches whatever their number. What does not fill a batch is left out.
        Nothing is read that only earlier batches or other ranks need.

        Raises:
            ValueError: there are more ranks than samples in a batch.
        """
        if batch < world:
            raise ValueError(f"a batch of {batch} cannot be shared by {world} ranks")
        share = share_of(batch, rank, world)
        first, end = start * batch, len(self) // batch * batch

        def plans() -> Iterator[_Plan]:
            rng = np.random.default_rng((seed, epoch))
            position = 0
            for groups in self._windows(rng.permutation(len(self._rows))):
                order = rng.permutation(self._rows[groups].sum())
                at = position + np.arange(len(order))
                position += len(order)
                mine = (at >= first) & (at < end) & (at % batch >= share.start) & (at % batch < share.stop)
                if mine.any():
                    yield _Plan(groups, order[mine])

        return self._batches(plans(), share.stop - share.start)

    def in_order(self, batch: int, rank: int = 0, world: int = 1) -> Generator[Batch, None, None]:
        """Every sample of every `world`-th row group, in the order of the manifest; the last batch may be small."""
        groups = np.arange(rank, len(self._rows), world)
        plans = (_Plan(window, np.arange(self._rows[window].sum())) for window in self._windows(groups))
        return self._batches(plans, batch)

    def mean_shape(self) -> NDArray[np.float32]:
        """Mean shape (68, 2) of the faces without augmentation, in [0, 1] of the crop; reads nothing else.

        Raises:
            UserError: there is no such face.
        """

        def originals(shard: int) -> NDArray[np.float32]:
            return landmarks(self._read(shard, _ORIGINALS, ["landmarks"]))

        shapes = np.concatenate([np.zeros((0, NUM_LANDMARKS, 2), np.float32), *self._of_every_shard(originals)])
        if not len(shapes):
            raise UserError(f"{self._dataset.url}: no face to train on; prepare it with more photos")
        mean: NDArray[np.float64] = shapes.mean(axis=0, dtype=np.float64)
        return mean.astype(np.float32)

    def photos(self) -> list[str]:
        """SHA-256 of every photo, sorted; reads nothing else."""

        def digests(shard: int) -> set[str]:
            return set(self._read(shard, _ORIGINALS, ["photo_sha256"])["photo_sha256"].to_pylist())

        return sorted(set().union(*self._of_every_shard(digests)))

    def originals(self, most: int | None = None) -> Batch:
        """The crops and shapes of faces without augmentation, at once: 40 kB a face.

        With `most`, only so many shards are read, evenly spread over the manifest, as that many faces need: it lists
        what comes from one source together.
        """

        def read(shard: int) -> Batch:
            return Batch(*(torch.tensor(column) for column in self._samples(shard, _ORIGINALS)))

        faces = [rows for rows, (_, group) in zip(self._rows, self._places, strict=True) if group == _ORIGINALS]
        share = 1.0 if most is None else min(1.0, most / max(1, sum(faces)))
        chosen = np.linspace(0, len(self._shards) - 1, math.ceil(share * len(self._shards))).astype(int)
        columns = zip(self._empty(0), *self._of_every_shard(read, chosen.tolist()), strict=True)
        return Batch(*(torch.cat(column) for column in columns))

    def _windows(self, groups: Rows) -> Iterator[Rows]:
        """Cuts row groups into runs of at most `window` samples."""
        first, samples = 0, 0
        for index, rows in enumerate(self._rows[groups]):
            if samples and samples + rows > self._window:
                yield groups[first:index]
                first, samples = index, 0
            samples += rows
        if samples:
            yield groups[first:]

    def _batches(self, plans: Iterator[_Plan], size: int) -> Generator[Batch, None, None]:
        readers = ThreadPoolExecutor(READERS, "shard-reader")
        room = size - 1
        rest = self._empty(0)
        try:
            ahead = self._start(readers, next(plans, None), room)
            while ahead:
                for read in ahead.reads:
                    read.result()
                window = ahead.samples
                # Only now, so that there are never three windows.
                ahead = self._start(readers, next(plans, None), room)
                first = room - len(rest.landmarks)
                for column, left in zip(window, rest, strict=True):
                    column[first:room] = left
                window = window.rows(first)
                whole = len(window.landmarks) // size * size
                rest = self._copy(window.rows(whole))
                for start in range(0, whole - size, size):
                    yield window.rows(start, start + size)
                if whole:
                    # A view would keep this window alive while the one after the next is begun.
                    yield self._copy(window.rows(whole - size, whole))
            if len(rest.landmarks):
                yield rest
        finally:
            readers.shutdown(cancel_futures=True)

    def _start(self, readers: ThreadPoolExecutor, plan: _Plan | None, room: int) -> _Window | None:
        if plan is None:
            return None
        samples = self._empty(room + len(plan.order))
        reads = []
        before = 0
        for group in plan.groups:
            rows = self._rows[group]
            places = np.flatnonzero((plan.order >= before) & (plan.order < before + rows))
            if len(places):
                wanted = plan.order[places] - before
                reads.append(readers.submit(self._fill, samples.rows(room), places, group, wanted))
            before += rows
        return _Window(samples, reads)

    def _empty(self, rows: int) -> Batch:
        return Batch(
            torch.empty((rows, SIDE, SIDE), dtype=torch.uint8, pin_memory=self._pinned),
            torch.empty((rows, NUM_LANDMARKS, 2), pin_memory=self._pinned),
            torch.empty(rows, dtype=torch.bool, pin_memory=self._pinned),
        )

    def _copy(self, batch: Batch) -> Batch:
        copied = self._empty(len(batch.landmarks))
        for column, values in zip(copied, batch, strict=True):
            column.copy_(values)
        return copied

    def _fill(self, samples: Batch, places: Rows, group: int, rows: Rows) -> None:
        for column, values in zip(samples, self._samples(*self._places[group]), strict=True):
            column.numpy()[places] = values[rows]

    def _samples(self, shard: int, group: int) -> tuple[NDArray[Any], ...]:
        """The columns of a `Batch`; they may be read-only."""
        table = self._read(shard, group, list(Batch._fields))
        return images(table, SIDE), landmarks(table), table["mirrored"].to_numpy()

    def _read(self, shard: int, group: int, columns: list[str]) -> pa.Table:
        footer = self._footer(shard)
        with self._explained(self._shards[shard]) as file:
            parquet = pq.ParquetFile(file, metadata=footer, page_checksum_verification=True)
            return parquet.read_row_group(group, columns, use_threads=False)

    def _read_footer(self, shard: int) -> pq.FileMetaData:
        with self._explained(self._shards[shard]) as file:
            footer = pq.read_metadata(file)
            rows = self._shards[shard].rows
            if footer.num_rows != rows:
                raise pa.ArrowInvalid(f"it has {footer.num_rows} rows, and {rows} in the manifest")
            if not footer.schema.to_arrow_schema().equals(SCHEMA):
                raise pa.ArrowInvalid("it has other columns than this version reads")
            return footer

    def _group_rows(self, shard: int) -> list[int]:
        footer = self._footer(shard)
        return [footer.row_group(index).num_rows for index in range(footer.num_row_groups)]

    def _of_every_shard(self, work: Callable[[int], T], chosen: Sequence[int] | None = None) -> list[T]:
        with ThreadPoolExecutor(READERS, "shard-reader") as readers:
            return list(readers.map(work, range(len(self._shards)) if chosen is None else chosen))

    @contextmanager
    def _explained(self, entry: UnitEntry) -> Iterator[BinaryIO]:
        """The shard, open; what pyarrow finds wrong with it becomes a `UserError`. One may have been forgotten."""
        pool = self._dataset.parent
        remedy = (
            "delete it and the manifest, and run the same `msrrn prepare` again; `msrrn verify "
            f"{self._dataset.url}` finds all such shards"
        )
        try:
            with open_shard(pool, entry.shard, remedy) as file:
                yield file
        except MissingError:
            refuse_renamed(self._dataset)
            raise MissingError(
                f"{pool.url}/{entry.shard} is gone: run the same `msrrn prepare` again, which makes it; `msrrn "
                f"verify {self._dataset.url}` finds all such shards"
            ) from None
