"""What each station costs, side by side in one run: python -m tests.benchmarks.stations [--photos 60]

One process, one thread. The last column is the time over that of "decode + detect", which no annotation
can do without. Synthetic photographs, so the figures compare between machines.
"""

import argparse
import time
from collections.abc import Callable

import cv2
import numpy as np
import torch

from msrrn.config import PRESETS
from msrrn.network import MSRRN
from msrrn.objective import squared
from msrrn.predictor import TorchPredictor, area_halve
from msrrn.synthetic import draw_photo
from pipelines.decoding import decode
from pipelines.detection import HogDetector
from pipelines.pyramid import crop, frame_around

BATCH = 64


def seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--photos", type=int, default=60)
    photos = parser.parse_args().photos
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    torch.manual_seed(0)

    jpegs = [draw_photo(7, index).jpeg for index in range(photos)]
    detector = HogDetector()
    network = MSRRN(PRESETS["paper"])
    predictor = TorchPredictor(network, batch=BATCH)
    optimiser = torch.optim.SGD(network.parameters(), lr=1e-6, momentum=0.9)

    decoded = [decode(jpeg).rgb for jpeg in jpegs]
    boxes = [(rgb, found.box) for rgb in decoded for found in detector(rgb)]
    crops = np.stack([crop(rgb, frame_around(box, 1.5)) for rgb, box in boxes])
    batch = crops[np.arange(BATCH) % len(crops)]
    truth = torch.full((BATCH, 68, 2), 0.5)

    def update() -> None:
        network.train()
        level_200 = torch.from_numpy(batch)
        level_100 = area_halve(level_200)
        loss = squared(network(area_halve(level_100), level_100, level_200), truth)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()

    predictor.predict(batch)
    update()
    costs = {
        "decode": seconds(lambda: [decode(jpeg) for jpeg in jpegs]) / photos,
        "detect": seconds(lambda: [detector(rgb) for rgb in decoded]) / photos,
        "crop": seconds(lambda: [crop(rgb, frame_around(box, 1.5)) for rgb, box in boxes]) / len(boxes),
        "landmarks": seconds(lambda: [predictor.predict(batch) for _ in range(4)]) / (4 * BATCH),
        "training update": seconds(update) / BATCH,
    }
    floor = costs["decode"] + costs["detect"]
    print(f"{len(jpegs)} photos, {len(boxes)} faces, one thread")
    print(f"{'station':<18}{'ms each':>9}{'a second':>10}{'over decode + detect':>22}")
    for name, cost in costs.items():
        print(f"{name:<18}{1000 * cost:>9.2f}{1 / cost:>10.0f}{cost / floor:>22.3f}")


if __name__ == "__main__":
    main()
