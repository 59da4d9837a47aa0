"""Faces a second on this machine's GPU, and how far that is from what it could do: python -m tests.benchmarks.gpu

In one run, the network of --model (an artifact; the box's where none is given) on drawn faces, in float32 and in
bfloat16, in batches of several sizes: end to end, from uint8 crops in the host's memory to shapes in it, and the
recorded kernels alone. Beside them: what the GPU's memory and its matrix units reach here, what bytes and operations
a face takes, and how far the shapes are from those of the CPU in float32.
"""

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

import msrrn
from msrrn.artifact import load
from msrrn.cuda import CudaPredictor
from msrrn.geometry import Box
from msrrn.metrics import nrmse_ip
from msrrn.network import MSRRN
from msrrn.predictor import Looks, TorchPredictor
from msrrn.synthetic import draw_photo
from pipelines.pace import race
from pipelines.pyramid import CROP, crop, frame_around

# `pipelines.opening` has it, too, but needs what reads places and S3: this runs where there is little but torch.
BOX: Final = Path(msrrn.__file__).parent.parent / "pipelines" / "box"
MARGIN: Final = 1.5
FACES: Final = 32_768
DRAWN: Final = 192
COUNTED: Final = 256
BATCHES: Final = (128, 512, 2048)
WARM_UP: Final = 3
TIMES: Final = 30


class Bytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts what operations read and write, each tensor once for each of them; views are free."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if not func.is_view:
            parts = tree_leaves((args, kwargs, result))
            self.total += sum(part.nbytes for part in parts if isinstance(part, Tensor))
        return result


def drawn_faces() -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Crops around the boxes of the landmarks, and the landmarks in them."""
    crops, shapes = [], []
    for index in range(DRAWN):
        photo = draw_photo(23, index)
        grey = cv2.imdecode(np.frombuffer(photo.jpeg, np.uint8), cv2.IMREAD_GRAYSCALE)
        assert grey is not None
        frame = frame_around(Box.around(photo.shapes[0]), MARGIN)
        crops.append(crop(np.asarray(grey, np.uint8), frame))
        shapes.append(frame.shape_to_crop(photo.shapes[0]))
    return np.stack(crops), np.stack(shapes).astype(np.float32)


def seconds(work: Callable[[], object]) -> float:
    """Median over several times, by the GPU's own clock."""
    taken = []
    for _ in range(WARM_UP + TIMES):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        begin.record()
        work()
        end.record()
        end.synchronize()
        taken.append(begin.elapsed_time(end) / 1000)
    return float(np.median(taken[WARM_UP:]))


def ceilings() -> tuple[float, float]:
    """Bytes a second (read and written) of a copy, and operations a second of a matrix product in bfloat16."""
    here, there = torch.empty((2, 2**31), dtype=torch.uint8, device="cuda").random_().unbind()
    left, right = torch.randn((2, 8192, 8192), dtype=torch.bfloat16, device="cuda").unbind()
    return 2 * len(here) / seconds(lambda: there.copy_(here)), 2 * 8192**3 / seconds(lambda: left @ right)


@torch.inference_mode()
def work_of(model: MSRRN, crops: Tensor) -> tuple[float, float]:
    """Bytes and operations a face, as torch runs the network."""
    looks = Looks(model).cuda()
    with Bytes() as moved:
        looks(crops)
    with FlopCounterMode(display=False) as counter:
        looks(crops)
    return moved.total / len(crops), counter.get_total_flops() / len(crops)


@torch.inference_mode()
def recorded(model: MSRRN, crops: Tensor) -> torch.cuda.CUDAGraph:
    """The kernels of one batch, without the way there and back; they read weights and crops where they lie."""
    looks, graph = Looks(model).cuda(), torch.cuda.CUDAGraph()
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    with torch.cuda.stream(stream):
        looks(crops)
    stream.synchronize()
    with torch.cuda.graph(graph, stream=stream):
        looks(crops)
    return graph


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=BOX)
    call = parser.parse_args()
    bandwidth, rate = ceilings()
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}")
    print(f"memory {bandwidth / 1e12:.2f} TB/s (copy), matrix products {rate / 1e12:.0f} TFLOP/s (bfloat16)")
    crops, truth = drawn_faces()
    exact = TorchPredictor(load(call.model)[0]).predict(crops).shapes
    print(f"drawn faces, CPU in float32: NRMSE (IP) {100 * nrmse_ip(exact, truth).mean():.3f} %")
    many = np.resize(crops, (FACES, CROP, CROP))
    print(f"{'':<12}{'batch':>6}{'faces/s':>10}{'kernels':>10}{'of memory':>11}{'of products':>12}  against the CPU")
    for precision in ("float32", "bfloat16"):
        network, card = load(call.model)
        if precision == "bfloat16":
            network.reduce()
        moved, operations = work_of(network, torch.from_numpy(many[:COUNTED]).cuda())
        print(f"{precision}: {moved / 1e6:.2f} MB and {operations / 1e6:.1f} MFLOP a face")
        for batch in BATCHES:
            predictor = CudaPredictor(network, card.calibration, batch)
            found = predictor.predict(crops).shapes
            apart = CROP * np.linalg.norm(found - exact, axis=-1)
            whole = FACES / float(np.median(race({"whole": partial(predictor.predict, many)})["whole"]))
            lying = torch.from_numpy(many[:batch]).cuda()
            alone = batch / seconds(recorded(network, lying).replay)
            print(
                f"{'':<12}{batch:>6}{whole:>10.0f}{alone:>10.0f}{alone * moved / bandwidth:>10.0%}"
                f"{alone * operations / rate:>12.1%}  {apart.mean():.4f} px, at most {apart.max():.3f}, NRMSE "
                f"{100 * nrmse_ip(found, truth).mean():.3f} %"
            )


if __name__ == "__main__":
    main()
