"""A trained network, asked on a GPU: kernels recorded once for batches of one size, two batches on their way at once.

What launches kernels one after the other is slower than a GPU that runs small ones: they are replayed as one graph
(Gray, "Getting Started with CUDA Graphs", 2019). While one lane computes, the other copies.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from itertools import cycle
from threading import Lock
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from msrrn.calibration import Calibration
from msrrn.geometry import LEVELS
from msrrn.network import MSRRN
from msrrn.prediction import UNCALIBRATED, Judgement, Predictor
from msrrn.predictor import Looks

GPU_BATCH: Final = 512
"""Faces that a GPU is asked about at once; less is filled up, so that a face never gets another answer."""
LANES: Final = 2
WARM_UPS: Final = 3
"""Passes before the kernels are recorded, in which libraries choose theirs and take their memory."""


class _Lane:
    """One batch on its way: pinned memory on either side, what lies on the GPU, and the recorded kernels."""

    def __init__(self, looks: Looks, batch: int) -> None:
        self._looks = looks  # the recorded kernels read its weights where they lie
        self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        # On the CPU, whatever device whoever asks has as torch's default: no other memory is pinned.
        size = batch, LEVELS[-1], LEVELS[-1]
        self._crops = torch.zeros(size, dtype=torch.uint8, device="cpu", pin_memory=True)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.stream(self._stream):
            self._seen = self._crops.to("cuda")
            for _ in range(WARM_UPS):
                looks(self._seen)
        self._stream.synchronize()
        with torch.cuda.graph(self._graph, stream=self._stream):
            self._said = looks(self._seen)
        self._answers = [
            torch.empty(column.shape, dtype=column.dtype, device="cpu", pin_memory=True) for column in self._said
        ]
        self._faces = 0

    def begin(self, crops: NDArray[np.uint8]) -> None:
        self._stream.synchronize()  # who asked before may have gone away without an answer
        self._faces = len(crops)
        self._crops.numpy()[: self._faces] = crops
        with torch.cuda.stream(self._stream):
            self._seen[: self._faces].copy_(self._crops[: self._faces], non_blocking=True)
            self._graph.replay()
            for answer, column in zip(self._answers, self._said, strict=True):
                answer.copy_(column, non_blocking=True)

    def end(self) -> Sequence[NDArray[np.float32]]:
        """Waits for the batch that was begun."""
        self._stream.synchronize()
        return [answer.numpy()[: self._faces].copy() for answer in self._answers]


class CudaPredictor(Predictor):
    """Runs the network on a GPU, in the precision that it is in, without gradients."""

    def __init__(self, model: MSRRN, calibration: Calibration = UNCALIBRATED, batch: int = GPU_BATCH) -> None:
        super().__init__(calibration, batch)
        with torch.no_grad(), torch.autocast("cuda", enabled=False):  # the network knows its own precision
            looks = Looks(model).to("cuda")
            self._lanes = [_Lane(looks, batch) for _ in range(LANES)]
        self._free = Lock()

    def judge(self, image_200: NDArray[np.uint8]) -> Judgement:
        with self._free:  # whoever asks has both lanes
            return super().judge(image_200)

    def _runs(self, batches: Iterable[NDArray[np.uint8]]) -> Iterator[Sequence[NDArray[np.float32]]]:
        begun: deque[_Lane] = deque()
        for lane, crops in zip(cycle(self._lanes), batches, strict=False):
            if len(begun) == LANES:
                yield begun.popleft().end()
            lane.begin(crops)
            begun.append(lane)
        while begun:
            yield begun.popleft().end()

    def _run(self, crops: NDArray[np.uint8]) -> Sequence[NDArray[np.float32]]:
        return next(self._runs([crops]))
