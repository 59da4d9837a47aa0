"""Is the trainer ever kept waiting? python -m tests.benchmarks.loader [--data 300W] [--photos 96] [--steps 20]

Side by side in one run: samples a second of the loader, of one `.npy` a sample with PyTorch's DataLoader, and of
WebDataset (where it is installed), against what training consumes here; bytes on disk; and the peak memory of
the loader for ten times as many samples. Without --data the photographs are synthetic.
"""

import argparse
import importlib
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable, Iterable
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import cv2
import numpy as np
import psutil
import torch
from torch.utils.data import DataLoader, Dataset

from msrrn.augmentation import AugmentationSettings
from msrrn.config import PRESETS
from msrrn.network import MSRRN
from msrrn.objective import squared
from msrrn.predictor import area_halve
from msrrn.synthetic import draw_photo
from pipelines.dataset.loader import Batch, Loader
from pipelines.dataset.manifest import Manifest
from pipelines.dataset.prepare import prepare
from pipelines.settings import PrepareSettings
from pipelines.storage import Store
from tests.factories import write_face, write_tar

BATCH: Final = 64
TIMES: Final = 10


class Files(Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """One `.npy` a sample: pixels, then landmarks."""

    def __init__(self, paths: list[Path]) -> None:
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        data = np.load(self.paths[index])
        pixels, landmarks = data[:40_000].reshape(200, 200), data[40_000:].view(np.float32).reshape(68, 2)
        return torch.from_numpy(pixels), torch.from_numpy(landmarks)


def write_photos(folder: Path, count: int) -> None:
    index = 0
    for number in range(count):
        while len((photo := draw_photo(7, index)).shapes) != 1:
            index += 1
        write_face(folder, f"lfpw/trainset/{number}", photo.jpeg, photo.shapes[0])
        index += 1


def repeated(folder: Path, manifest: Manifest, times: int) -> Manifest:
    """The same shards under other names."""
    units = []
    for unit in manifest.shards("train"):
        for number in range(times):
            again = unit.model_copy(update={"key": f"{unit.key}-{times}-{number}"})
            (folder / again.shard).hardlink_to(folder / unit.shard)
            units.append(again)
    return manifest.model_copy(update={"units": units})


def forget(folder: Path) -> None:
    """Drops the files of a folder from the page cache."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


@contextmanager
def one_core() -> Any:
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)


def samples_a_second(batches: Callable[[], Iterable[Any]], warm: bool = True) -> float:
    """Of one pass, after another where `warm`; every batch is touched."""
    if warm:
        count(batches())
    began = time.perf_counter()
    samples = count(batches())
    return samples / (time.perf_counter() - began)


def count(batches: Iterable[Any]) -> int:
    return sum(len(batch[0]) for batch in batches if int(torch.as_tensor(batch[0])[0, 0, 0]) >= 0)


def peak(dataset: Store, manifest: Manifest) -> float:
    """MB that going through an epoch adds to a process; run it in one of its own."""
    before = psutil.Process().memory_info().rss
    count(Loader(dataset, manifest, "train").epoch(0, 0, BATCH))
    # Not what getrusage says, which goes on from the process that started this one.
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    added: float = int(line.split()[1]) * 1024 - before
    return added / 1e6


def training(batches: list[Batch], steps: int) -> float:
    """Samples a second of forward, backward and update, on all cores."""
    torch.manual_seed(0)
    network = MSRRN(PRESETS["paper"])
    optimiser = torch.optim.SGD(network.parameters(), lr=1e-4, momentum=0.9)

    def update(batch: Batch) -> None:
        level_100 = area_halve(batch.image_200)
        loss = squared(network(area_halve(level_100), level_100, batch.image_200), batch.landmarks)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()

    update(batches[0])
    began = time.perf_counter()
    for step in range(steps):
        update(batches[step % len(batches)])
    return steps * BATCH / (time.perf_counter() - began)


def bytes_below(folder: Path) -> int:
    """As the file system counts them."""
    return sum(path.stat().st_blocks * 512 for path in folder.rglob("*") if path.is_file())


def web_dataset(tars: list[str]) -> Callable[[], Iterable[Any]] | None:
    try:
        wds = importlib.import_module("webdataset")
    except ImportError:
        return None
    shards = wds.WebDataset(tars, shardshuffle=len(tars)).shuffle(1000).decode()
    return lambda: shards.to_tuple("image.npy", "landmarks.npy").batched(BATCH, partial=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--photos", type=int, default=96)
    parser.add_argument("--steps", type=int, default=20)
    call = parser.parse_args()
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as temporary:
        measure(Path(temporary), call.data, call.photos, call.steps)


def measure(folder: Path, data: Path | None, photos: int, steps: int) -> None:
    if data is None:
        data = folder / "photos"
        write_photos(data, photos)
    settings = PrepareSettings(augmentation=AugmentationSettings(copies=8), val_share=0)
    dataset, manifest = prepare([str(data)], str(folder / "out"), settings, workers=1)
    loader = Loader(dataset, manifest, "train")
    batches = list(loader.epoch(0, 0, BATCH))
    samples = [
        (image.numpy(), shape.numpy())
        for batch in loader.in_order(BATCH)
        for image, shape, _ in zip(*batch, strict=True)
    ]
    (folder / "npy").mkdir()
    (folder / "tar").mkdir()
    for number, (image, shape) in enumerate(samples):
        np.save(folder / "npy" / f"{number}.npy", np.concatenate([image.ravel(), shape.ravel().view(np.uint8)]))
    members = {}
    for number, (image, shape) in enumerate(samples):
        for name, array in (("image", image), ("landmarks", shape)):
            np.save(folder / "one.npy", array)
            members[f"{number:06d}.{name}.npy"] = (folder / "one.npy").read_bytes()
    names = list(members)
    tars = [folder / "tar" / f"{first:06d}.tar" for first in range(0, len(names), 900)]
    for tar, first in zip(tars, range(0, len(names), 900), strict=True):
        write_tar(tar, {name: members[name] for name in names[first : first + 900]})
    del members

    sizes = {place: bytes_below(folder / place) / len(samples) for place in ("out/shards", "npy", "tar")}
    eaten = training(batches, steps)
    print(f"{len(samples)} samples; training on {torch.get_num_threads()} threads: {eaten:.0f} samples/s\n")
    print(f"{'reader, one core':<34}{'samples/s':>10}{'over training':>15}{'bytes a sample':>16}")

    def row(name: str, rate: float | None, place: str) -> None:
        figures = f"{rate:>10.0f}{rate / eaten:>15.1f}" if rate else f"{'not installed':>25}"
        print(f"{name:<34}{figures}{sizes[place]:>16.0f}", flush=True)

    ten = repeated(folder / "out", manifest, TIMES)
    many = Loader(dataset, ten, "train")
    # Warm passes are over as many samples by all readers: what a pass begins and ends with weighs the same.
    paths = sorted((folder / "npy").iterdir())
    threads = torch.get_num_threads()
    with one_core():
        torch.set_num_threads(1)
        row("loader, warm", samples_a_second(lambda: many.epoch(0, 0, BATCH)), "out/shards")
        forget(folder / "out" / "shards")
        row("loader, cold", samples_a_second(lambda: loader.epoch(0, 0, BATCH), warm=False), "out/shards")
        for kind, files in (("warm", Files(paths * TIMES)), ("cold", Files(paths))):
            forget(folder / "npy")
            alone = DataLoader(files, BATCH, shuffle=True, drop_last=True)
            row(f"one .npy a sample, {kind}", samples_a_second(alone.__iter__, kind == "warm"), "npy")
        web = web_dataset([str(tar) for tar in tars] * TIMES)
        row("WebDataset, warm", samples_a_second(web) if web else None, "tar")
    torch.set_num_threads(threads)
    row("loader, warm, all cores", samples_a_second(lambda: many.epoch(0, 0, BATCH)), "out/shards")
    two = DataLoader(
        Files(paths * TIMES), BATCH, shuffle=True, drop_last=True, num_workers=2, persistent_workers=True
    )
    row("one .npy a sample, 2 workers", samples_a_second(lambda: two), "npy")

    print(f"\n{'samples':>10}{'MB at its peak':>24}")
    for what in (ten, repeated(folder / "out", manifest, TIMES * TIMES)):
        with multiprocessing.get_context("spawn").Pool(1) as process:
            print(f"{sum(unit.rows for unit in what.units):>10}{process.apply(peak, (dataset, what)):>24.0f}")


if __name__ == "__main__":
    main()
