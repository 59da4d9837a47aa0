"""Faces a second, beside dlib's ERT: python -m tests.benchmarks.landmarks --dataset DATASETS/ID [--model DIR]

One process for each core, all at the same work at the same time; from uint8 crops to shapes, batches of 64 faces. By
turns in one run: ERT of 15 cascades, trained on the dataset or found trained in --ert, and the network (the box's, or
an artifact's) with one look at each face and with two, in float32 and in bfloat16, by torch and by OpenVINO.
"""

import argparse
import multiprocessing
import os
import time
from collections.abc import Iterator
from itertools import product
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Final

import numpy as np

from msrrn.artifact import load
from msrrn.onnx import to_onnx
from msrrn.openvino import OPENVINO_BATCH, OpenVinoPredictor, compiled_prediction
from msrrn.prediction import Predictor
from msrrn.predictor import TorchPredictor
from pipelines.dataset.loader import Loader
from pipelines.dataset.manifest import read_manifest
from pipelines.evaluation.ert import Ert, trained_ert
from pipelines.opening import BOX
from pipelines.pace import one_core
from pipelines.pyramid import CROP
from pipelines.storage import Store

BATCH: Final = 64
ROUNDS: Final = 15
ERT: Final = "ERT, 15 cascades"


def networks(model: Path) -> Iterator[tuple[str, Predictor]]:
    for looks, precision in product((1, 2), ("float32", "bfloat16")):
        network, card = load(model)
        if looks == 1:
            network = network.looking_once()
        if precision == "bfloat16":
            network.reduce()
        what = f"{looks} look{'s' * (looks - 1)}, {precision}"
        yield f"torch, {what}", TorchPredictor(network)
        yield (
            f"OpenVINO, {what}",
            OpenVinoPredictor(compiled_prediction(to_onnx(network, card, OPENVINO_BATCH)), card.calibration),
        )


def rates(core: int, model: Path, ert: Ert, dataset: str, together: Barrier) -> dict[str, float]:
    """Faces a second of one process: the median of the rounds."""
    os.sched_setaffinity(0, {core})
    faces = Loader(Store(dataset), read_manifest(Store(dataset)), "val").originals(BATCH)
    crops = np.resize(faces.image_200.numpy(), (BATCH, CROP, CROP))
    seconds: dict[str, list[float]] = {}
    with one_core():
        contestants = {ERT: ert} | dict(networks(model))
        for _ in range(ROUNDS + 1):
            for name, contestant in contestants.items():
                together.wait()
                began = time.perf_counter()
                contestant.predict(crops)
                seconds.setdefault(name, []).append(time.perf_counter() - began)
    return {name: len(crops) / float(np.median(taken[1:])) for name, taken in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--model", type=Path, default=BOX)
    parser.add_argument("--ert", type=Path, default=Path("ert"))
    call = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0))
    ert = trained_ert(call.dataset, call.ert, len(cores))
    context = multiprocessing.get_context("spawn")
    with context.Manager() as manager, context.Pool(len(cores)) as pool:
        together = manager.Barrier(len(cores))
        each = pool.starmap(rates, [(core, call.model, ert, call.dataset, together) for core in cores])
    totals = {name: sum(found[name] for found in each) for name in each[0]}
    print(f"{'on ' + str(len(cores)) + ' cores':<30}{'faces/s':>9}{'over ERT':>10}")
    for name, rate in totals.items():
        print(f"{name:<30}{rate:>9.0f}{rate / totals[ERT]:>10.2f}")


if __name__ == "__main__":
    main()
