"""BlazeFace, the detector of MediaPipe, run by OpenVINO: the fast one.

Source: Bazarevsky et al., "BlazeFace", arXiv 1907.05047; MediaPipe's graph `face_detection_full_range`, and
its calculators for anchors, decoding and weighted non-maximum suppression.
"""

import math
import platform
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from itertools import product
from typing import Any, ClassVar, Final

import cv2
import numpy as np
from numpy.typing import NDArray

from msrrn.geometry import Box
from msrrn.openvino import compiled, has_openvino, loaded, openvino
from msrrn.spares import Spares
from pipelines.cache import compiled_once
from pipelines.detection.boxes import MATCH_IOU, BoxMapping, Detection, ordered, require_askable, without_overlaps
from pipelines.detection.letterbox import letterbox
from pipelines.errors import UserError
from pipelines.settings import Precision

Boxes = NDArray[np.float64]
"""(N, 4): x0, y0, x1, y1, in shares of the square that the network sees."""
Window = tuple[int, int, int, int]
"""A part of a picture, x0, y0, x1, y1: from the first pixel to before the last."""

SIZE: Final = 192
STRIDE: Final = 4
MIN_SCORE: Final = 0.6
SUPPRESSION_IOU: Final = 0.3

UNSURE: Final = 0.3
"""Score of what may be a face: it is looked at again, by itself.

In 600 photographs of 300-W, 588 of the 599 annotated faces of a tenth of the longer side or more are sure at first
sight. With second looks from 0.4 it is 596, from 0.3 all of them, at 1.11 views a photograph, from 0.2 one fewer
(near the threshold no view contains another) at 1.18. What else it finds there are faces, too, and a doll.
"""

IN_A_GROUP: Final = 0.15
"""The same where two faces or more are sure: where there are some, there are more.

In 200 photographs of two people or more (all of AFW, a fourth of LFPW and HELEN, groups) are 373 faces of 0.08 of the
longer side or more that finer tiles are sure of (0.74). With second looks from 0.3 alone 362 of them are found, with
these 368, at 1.42 and 1.99 views a photograph.
"""

CLOSE: Final = (3.3, 6.0)
"""Sides of those views over the box's: where the first is not sure of it, the second is had as well.

Faces of a fifth to a third of the view are found most surely, but some profiles from further away. From 3.3 alone 361
of those 373 are found; of the 1,667 annotated faces of a tenth or more in all 1,659 photographs of 300-W but those of
`val.txt` 1,664, and 1,665 from both, at 1.18 and 1.29 views a photograph.
"""

AFAR: Final = 0.6
"""Share of what the network sees that a picture takes in which no face was found: enlarged or blurred ones are seen
better from afar.
"""

AFAR_SCORE: Final = 0.75
"""Score of a face that is seen from afar. Faces in the last 3 of 402 frames of video are found by it, and in 201
pieces of photographs that show none 3 things more than the 12 before; at 0.6 it were 14 more.
"""

REACH: Final = 0.06
"""Side of the smallest face, over that of the view, that is seen, be it unsurely: of faces of 0.06 to 0.08 two
thirds, of those of 0.08 to 0.1 nine of ten.
"""

SMALLER: Final = 0.8
"""How much smaller than asked for an unsure box may be: from near it may prove larger."""

CUT: Final = 0.05
"""Of a face's side, by which it has to keep away from the edge of a view that is not the picture's own."""

_MAPPING: Final = BoxMapping(0.004, 0.016, 0.922)
"""Measured on the 1,743 of 1,812 training faces of 300-W that it finds (5.0 ms a photograph on one core).

The medians against `expected_box`; about them the sd is 0.035 sides in x, 0.034 in y, and 0.065 of the side's
logarithm. On every fourth photograph it finds 95 % of the faces, as does the dense file; MediaPipe's file of
short range finds 92 % (2.6 ms), and its boxes follow the nose: sd 0.10 in x.
"""


_AS_FLOATS: Final = np.arange(256, dtype=np.uint8) / np.float32(127.5) - np.float32(1)
"""What the network takes for each value of a channel."""


@dataclass(frozen=True)
class BlazeFaceDetector:
    """MediaPipe's BlazeFace of full range; `model` is the bytes of its file, so a worker needs no file.

    In bfloat16 it takes two thirds of the time of float32. Of the 782 faces that it finds so in 600 photographs of
    300-W one is missing then, and two are new, none of them annotated; boxes move by 0.1 % of their side on average.
    """

    model: bytes = field(repr=False)
    precision: Precision = "float32"
    name: ClassVar[str] = "blazeface"
    resolution: ClassVar[float] = 12.0
    scores: ClassVar[tuple[float, float]] = (MIN_SCORE, 1.0)

    def __call__(self, rgb: NDArray[np.uint8], min_side: float | None = None) -> list[Detection]:
        """Faces of an upright picture (H, W, 3) uint8, largest box first, ties by x0, then y0.

        With `min_side`, what is unsure is looked at from near, in a group sooner, a picture that shows no face also
        from afar, and where the view of the whole does not reach to faces so small, tiles of the picture are viewed,
        too. Without it there is the view of the whole alone.
        """
        require_askable(rgb, min_side)
        height, width = rgb.shape[:2]
        if min_side is None:
            return ordered(self._view(rgb, (0, 0, width, height), MIN_SCORE))
        candidates: list[Detection] = []
        for window in windows(width, height, min_side / REACH):
            candidates += self._view(rgb, window, IN_A_GROUP)
        found = _surest([item for item in candidates if item.score >= MIN_SCORE])
        least, worth = IN_A_GROUP if len(found) > 1 else UNSURE, SMALLER * min_side
        unsure = [item for item in candidates if least <= item.score < MIN_SCORE and item.box.side >= worth]
        for item, factor in product(_surest(unsure), CLOSE):
            if all(item.box.iou(other.box) < MATCH_IOU for other in found):
                window = around(item.box, factor, width, height)
                longer = max(window[2] - window[0], window[3] - window[1])
                # A face that fills the picture is seen better from afar.
                found += self._view(rgb, window, MIN_SCORE, min(1.0, longer / (factor * item.box.side)))
        if not found:
            afar = self._view(rgb, (0, 0, width, height), MIN_SCORE, AFAR)
            found = [item for item in afar if item.score >= AFAR_SCORE]
        return ordered(_surest(found))

    def _view(self, rgb: NDArray[np.uint8], window: Window, threshold: float, share: float = 1.0) -> list[Detection]:
        """What scores `threshold` in a part of the picture, in pixels of the whole, unless the window cuts it.

        The part takes a share of what the network sees, which is black around it.
        """
        height, width = rgb.shape[:2]
        x0, y0, x1, y1 = window
        square, scale, corner = letterbox(rgb[y0:y1, x0:x1], SIZE, share)
        raw, logits = _run(self.model, self.precision, square)
        some = logits >= math.log(threshold / (1 - threshold)) - 1e-3  # rounding is left to the scores
        boxes, scores = decode(raw[some], logits[some], anchors()[some])
        rows: list[tuple[list[float], float]] = []
        # Sure ones are averaged among themselves: what is unsure does not move them.
        for group in (scores >= MIN_SCORE, (scores >= threshold) & (scores < MIN_SCORE)):
            merged, best = weighted_nms(boxes[group], scores[group])
            rows += zip(((merged * SIZE - corner) / scale).tolist(), best.tolist(), strict=True)
        inner = (x0 > 0, y0 > 0, x1 < width, y1 < height)
        found = []
        for (left, top, right, bottom), score in rows:
            slack = CUT * max(right - left, bottom - top)
            beyond = (left < slack, top < slack, right > x1 - x0 - slack, bottom > y1 - y0 - slack)
            if right > left and bottom > top and not any(map(all, zip(inner, beyond, strict=True))):
                box = Box(left + x0 - 0.5, top + y0 - 0.5, right + x0 - 0.5, bottom + y0 - 0.5)
                found.append(Detection(_MAPPING(box), score))
        return found


def windows(width: int, height: int, reach: float) -> Iterator[Window]:
    """The whole picture, then ever smaller tiles of it, until they are at most `reach`, or the network's view.

    Each size is about half the one before or more, and tiles overlap by a quarter: a face that no tile holds whole
    has more than an eighth of the view before.
    """
    longer = max(width, height)
    last = min(max(round(reach), SIZE), longer)
    steps = math.ceil(math.log2(longer / last) - 0.02)  # a reduced picture may have a row more than its share
    yield 0, 0, width, height
    for step in range(1, steps + 1):
        side = round(longer * (last / longer) ** (step / steps))
        for y0 in _starts(height, side):
            for x0 in _starts(width, side):
                yield x0, y0, min(width, x0 + side), min(height, y0 + side)


def _starts(length: int, side: int) -> list[int]:
    if side >= length:
        return [0]
    count = 1 + math.ceil((length - side) / (0.75 * side))
    return [round(index * (length - side) / (count - 1)) for index in range(count)]


def around(box: Box, factor: float, width: int, height: int) -> Window:
    """The square around a box, its side `factor` times as large, as far as it lies in the picture."""
    (x, y), half = box.centre, max(factor * box.side, 2.0) / 2
    x0, y0 = min(max(0, round(x - half)), width - 1), min(max(0, round(y - half)), height - 1)
    return x0, y0, max(x0 + 1, min(width, round(x + half))), max(y0 + 1, min(height, round(y + half)))


def _surest(detections: Sequence[Detection]) -> list[Detection]:
    return without_overlaps(sorted(detections, key=lambda item: (-item.score, item.box.edges)))


@cache
def anchors() -> NDArray[np.float64]:
    """Centres (N, 2) of the cells, row by row, in shares of the square; all anchors have size 1."""
    steps = (np.arange(SIZE // STRIDE) + 0.5) * STRIDE / SIZE
    x, y = np.meshgrid(steps, steps)
    return np.stack([x.ravel(), y.ravel()], axis=1)


def decode(
    raw: NDArray[np.float32], logits: NDArray[np.float32], centres: NDArray[np.float64]
) -> tuple[Boxes, NDArray[np.float64]]:
    """Boxes and scores (N,) from the network's outputs: `raw` (N, 16), `logits` (N,).

    The first four columns of `raw` are the offset from the anchor's centre, and the size, in pixels of the square.
    """
    middle = raw[:, :2] / SIZE + centres
    half = raw[:, 2:4] / (2 * SIZE)
    scores = 1 / (1 + np.exp(-np.clip(logits.astype(np.float64), -100, 100)))
    return np.hstack([middle - half, middle + half]), scores


def weighted_nms(boxes: Boxes, scores: NDArray[np.float64]) -> tuple[Boxes, NDArray[np.float64]]:
    """Overlapping boxes become one: the mean weighted by their scores, with the best score."""
    order = np.argsort(-scores, kind="stable")
    merged, kept = [], []
    while order.size:
        overlaps = _iou(boxes[order[0]], boxes[order]) > SUPPRESSION_IOU
        overlaps[0] = True  # with itself, even where it is empty
        near = order[overlaps]
        weights = scores[near][:, None]
        merged.append((boxes[near] * weights).sum(axis=0) / weights.sum(axis=0))
        kept.append(scores[order[0]])
        order = order[~overlaps]
    return np.reshape(merged, (-1, 4)), np.array(kept)


def _iou(box: NDArray[np.float64], others: Boxes) -> NDArray[np.float64]:
    shared = np.minimum(box[2:], others[:, 2:]) - np.maximum(box[:2], others[:, :2])
    area = np.prod(np.maximum(shared, 0), axis=1)
    total = np.prod(box[2:] - box[:2]) + np.prod(others[:, 2:] - others[:, :2], axis=1) - area
    return np.asarray(area / total)


def require_openvino() -> None:
    """Raises `UserError` where it is not installed."""
    if not has_openvino():
        raise UserError("detector blazeface needs OpenVINO on every machine that looks: pip install 'msrrn[fast]'")


@cache
def _network(model: bytes, precision: Precision) -> tuple[Spares[Any], Any, Any]:
    """Requests, which run the network, and its outputs, the boxes' first.

    Raises:
        UserError: it cannot be run here, which is no picture's fault.
    """
    require_openvino()
    try:
        compile_, take_up = (partial(work, precision=precision) for work in (_compiled, loaded))
        network = compiled_once(model, compile_, take_up, precision)
    except (OSError, RuntimeError) as error:
        raise UserError(f"detector blazeface cannot be started on {platform.node()}: {error}") from error
    return Spares(network.create_infer_request), *sorted(network.outputs, key=lambda output: -output.shape[-1])


def _compiled(model: bytes, precision: Precision) -> bytes:
    with tempfile.NamedTemporaryFile(suffix=".tflite") as file:  # files of this format are read by name alone
        file.write(model)
        file.flush()
        return compiled(openvino().Core().read_model(file.name), precision)


def _run(
    model: bytes, precision: Precision, square: NDArray[np.uint8]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    requests, *outputs = _network(model, precision)
    with requests.one() as request:
        request.infer([cv2.LUT(square, _AS_FLOATS)[None]])
        raw, logits = (request.get_tensor(output).data[0].copy() for output in outputs)
    return raw, logits[:, 0]
