"""A network on the faces of its dataset: how far it errs, leans to one side, and knows what it errs by."""

from typing import Final

import numpy as np
import torch

from msrrn.calibration import Calibration, Signs, fit
from msrrn.lean import one_sided
from msrrn.metrics import nrmse_ip
from msrrn.network import MSRRN
from msrrn.prediction import STAGES
from msrrn.predictor import TorchPredictor
from msrrn.sampling import frames_of
from pipelines.dataset.loader import Batch, Loader

EpochMetrics = dict[str, float]

VAL_KEYS: Final = tuple(f"val_nrmse_ip_{stage}" for stage in STAGES)
LEAN_FACES: Final = 4096
"""Training faces that the lean is the mean of."""
LEAST_LEANING: Final = 32
"""Faces: of fewer, what is found is more of them than of who annotated them. Of 16 of 300-W it is 0.8 px of the crop
beside what hundreds show, which is 0.7."""
LEAST_SIZE: Final = 0.05
"""Over the mean shape: a smaller one, of a network that has learned nothing, tells nothing of annotations."""


def validate(model: MSRRN, val: Loader, rank: int = 0, world: int = 1) -> EpochMetrics:
    """NRMSE (IP) of every stage on the validation faces, in crops; empty without validation faces.

    Ranks share the faces; all of them get the mean over all.
    """
    if not len(val):
        return {}
    predictor = TorchPredictor(model, device=str(model.mean_shape.device))
    sums = np.zeros(len(STAGES))
    for batch in val.in_order(predictor.batch, rank, world):
        stages = predictor.predict(batch.image_200.numpy()).stages
        sums += nrmse_ip(stages, batch.landmarks.numpy()[:, None]).sum(axis=0, dtype=np.float64)
    total = over_ranks(sums.tolist(), world, model.mean_shape.device)
    return {key: error / len(val) for key, error in zip(VAL_KEYS, total, strict=True)}


def lean(model: MSRRN, data: Loader) -> torch.Tensor:
    """(68, 2) for `MSRRN.lean`: what annotations lie beside the model's shapes, on the mean of training faces.

    Annotations of faces in the mirror are mirrored annotations. Where annotators tend to one side, as those of 300-W
    do by half a pixel of the crop, a network that sees both can only learn what is between.
    """
    return _lean(model, data.originals(LEAN_FACES))


def lean_to_take_off(model: MSRRN, data: Loader) -> torch.Tensor:
    """(68, 2): what annotations lie to one side of what the start of a training finds; 0 of few faces."""
    faces = data.originals(LEAN_FACES)
    if len(faces.landmarks) < LEAST_LEANING:
        return torch.zeros_like(model.lean)
    return one_sided(_lean(model, faces), model.mirror)


def _lean(model: MSRRN, faces: Batch) -> torch.Tensor:
    shapes = torch.from_numpy(TorchPredictor(model).predict(faces.image_200.numpy()).shapes)
    frames = frames_of(model.mean_shape, shapes)
    of_size = torch.linalg.det(frames) > LEAST_SIZE**2
    if not of_size.any():
        return model.lean.clone()
    beside: torch.Tensor = (faces.landmarks - shapes)[of_size] @ torch.linalg.inv(frames[of_size])
    return beside.mean(dim=0) + model.lean


def calibrate(model: MSRRN, val: Loader) -> Calibration:
    """Fits what the model says about its errors to its errors on the validation faces, in crops."""
    predictor = TorchPredictor(model)
    judged = []
    for batch in val.in_order(predictor.batch) if len(val) else ():
        judgement = predictor.judge(batch.image_200.numpy())
        true = nrmse_ip(judgement.stages[:, -1], batch.landmarks.numpy())
        judged.append(np.stack([*judgement.signs, true]))
    *signs, true = np.concatenate([np.zeros((len(Signs._fields) + 1, 0)), *judged], axis=1)
    return fit(Signs(*signs), true)


def over_ranks(values: list[float], world: int, device: torch.device) -> list[float]:
    """The sum of each value over all ranks."""
    if world == 1:
        return values
    total = torch.tensor(values, dtype=torch.float64, device=device)
    torch.distributed.all_reduce(total)
    return total.tolist()
