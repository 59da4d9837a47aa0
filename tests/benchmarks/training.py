"""How fast a network learns here: python -m tests.benchmarks.training [--steps 30] [--batch 64]

Samples a second of forward, backward and update, side by side in one run: every preset, in every precision, on one
thread and on all cores; and two DDP processes of one thread each over one such process, at equal global batch.
Random pixels: what they show does not matter to the time.
"""

import argparse
import multiprocessing
import os
import tempfile
import time
from itertools import product
from typing import Final, get_args

import numpy as np
import torch
from torch.nn.parallel import DistributedDataParallel

from msrrn.config import Preset
from msrrn.disturbance import draw_disturbance
from pipelines.dataset.loader import Batch
from pipelines.memory import keep_memory
from pipelines.settings import Precision, TrainSettings
from pipelines.training.loop import Seen, update
from pipelines.training.state import TrainState

WARM_UP: Final = 3


def samples_a_second(
    preset: Preset, precision: Precision, threads: int, batch: int, steps: int, world: int = 1
) -> float:
    """Of all ranks together, each of which sees its share of the batch."""
    torch.set_num_threads(threads)
    keep_memory()  # as `train` does
    settings = TrainSettings(preset=preset, precision=precision, batch=batch, learning_rate=1e-6)
    rng = np.random.default_rng(0)
    share = batch // world
    mean_shape = rng.uniform(0.25, 0.75, (68, 2)).astype(np.float32)
    state = TrainState(settings, mean_shape)
    images = torch.from_numpy(rng.integers(0, 256, (share, 200, 200), dtype=np.uint8))
    shapes = torch.from_numpy(mean_shape + rng.normal(0, 0.02, (share, 68, 2)).astype(np.float32))
    drawn = (
        draw_disturbance(share, state.model.regressor.features.size, mean_shape, rng) if settings.perturbed else None
    )
    seen: Seen = (Batch(images, shapes, torch.zeros(share, dtype=torch.bool)), drawn)
    model = DistributedDataParallel(state.model) if world > 1 else state.model
    for step in range(WARM_UP + steps):
        if step == WARM_UP:
            began = time.perf_counter()
        update(model, state.optimiser, settings, seen, 1.0, world)
    return batch * steps / (time.perf_counter() - began)


def ddp(rank: int, meeting: str, preset: Preset, batch: int, steps: int) -> float:
    torch.distributed.init_process_group("gloo", f"file://{meeting}", rank=rank, world_size=2)
    try:
        return samples_a_second(preset, "float32", 1, batch, steps, world=2)
    finally:
        torch.distributed.destroy_process_group()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--batch", type=int, default=64)
    call = parser.parse_args()
    cores = len(os.sched_getaffinity(0))
    presets, precisions = get_args(Preset), get_args(Precision)
    print(f"{'preset':<8}{'precision':<11}{'threads':>8}{'samples/s':>11}")
    alone = {}
    for preset, precision, threads in product(presets, precisions, sorted({1, cores})):
        rate = samples_a_second(preset, precision, threads, call.batch, call.steps)
        alone[preset, precision, threads] = rate
        print(f"{preset:<8}{precision:<11}{threads:>8}{rate:>11.0f}", flush=True)
    print("\ntwo DDP processes of one thread, float32, over one")
    for preset in presets:
        with tempfile.TemporaryDirectory() as folder, multiprocessing.get_context("spawn").Pool(2) as pool:
            calls = [(rank, f"{folder}/meeting", preset, call.batch, call.steps) for rank in range(2)]
            both = min(pool.starmap(ddp, calls))
        print(f"{preset:<8}{both:>11.0f}{both / alone[preset, 'float32', 1]:>8.2f}", flush=True)


if __name__ == "__main__":
    main()
