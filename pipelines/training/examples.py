"""Pictures that show, while a network is trained, what it makes of faces that it never sees in training."""

from contextlib import closing
from typing import Final

import numpy as np

from msrrn.geometry import LEVELS
from msrrn.network import MSRRN
from msrrn.predictor import TorchPredictor
from pipelines.dataset.loader import Loader
from pipelines.drawing import PREDICTION, TRUTH, contact_sheet, draw_shape, to_jpeg

FACES: Final = 12
COLUMNS: Final = 6


def examples(model: MSRRN, val: Loader) -> bytes | None:
    """JPEG of the first validation faces with annotation and prediction.

    None without such faces, or where predictions are no numbers, which ends the training with a better reason.
    """
    if not len(val):
        return None
    with closing(val.in_order(FACES)) as batches:
        batch = next(batches)
    crops = batch.image_200.numpy()
    shapes = TorchPredictor(model, device=str(model.mean_shape.device)).predict(crops).shapes
    if not np.isfinite(shapes).all():
        return None
    tiles = []
    for crop, truth, shape in zip(crops, batch.landmarks.numpy(), shapes, strict=True):
        tile = np.repeat(crop[..., None], 3, axis=2)
        for points, colour in ((truth, TRUTH), (shape, PREDICTION)):
            tile = draw_shape(tile, points.astype(np.float64) * LEVELS[-1] - 0.5, colour)
        tiles.append(tile)
    return to_jpeg(contact_sheet(tiles, COLUMNS))


def due(epoch: int, epochs: int) -> bool:
    """Whether an epoch is one to draw: 1, 2, 4, 8 and so on, where much changes, and the last."""
    return epoch == epochs or epoch & (epoch - 1) == 0
