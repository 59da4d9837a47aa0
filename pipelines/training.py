"""The training loop of one worker: torch alone, no Ray, so it runs in-process, under DDP or on a lent GPU.

The order of samples, the learning rate and everything drawn depend on (seed, epoch, step) only, never on
how many workers share a batch, so a run that resumes from a checkpoint goes on as if it had never stopped.
"""

import io
import math
from collections.abc import Callable, Iterator
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn

from msrrn.metrics import nrmse_ip
from msrrn.network import MSRRN, PRESETS
from msrrn.objective import objective
from msrrn.predictor import STAGES, Predictor, area_halve
from pipelines.errors import UserError
from pipelines.settings import TrainSettings
from pipelines.shards import Samples

EpochMetrics = dict[str, float]


class TrainState:
    """Everything that a checkpoint holds: the network, the optimiser, the next epoch and the history."""

    def __init__(self, settings: TrainSettings, mean_shape: np.ndarray[Any, Any], device: str = "cpu") -> None:
        torch.manual_seed(settings.seed)
        self.model = MSRRN(PRESETS[settings.preset], torch.from_numpy(mean_shape)).to(device)
        self.optimiser = torch.optim.SGD(
            self.model.parameters(),
            lr=settings.learning_rate,
            momentum=settings.momentum,
            nesterov=settings.momentum > 0,
            weight_decay=settings.weight_decay,
        )
        self.epoch = 0
        self.history: list[EpochMetrics] = []

    def to_bytes(self) -> bytes:
        buffer = io.BytesIO()
        torch.save(
            {
                "model": self.model.state_dict(),
                "optimiser": self.optimiser.state_dict(),
                "epoch": self.epoch,
                "history": self.history,
            },
            buffer,
        )
        return buffer.getvalue()

    def load_bytes(self, data: bytes) -> None:
        """Takes over a checkpoint; nothing in it is unpickled beyond tensors and plain values."""
        device = self.model.mean_shape.device
        state = torch.load(io.BytesIO(data), weights_only=True, map_location=device)
        self.model.load_state_dict(state["model"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.epoch = state["epoch"]
        self.history = state["history"]


def mean_shape(train: Samples) -> np.ndarray[Any, Any]:
    """Mean shape (68, 2) of the unaugmented training faces, in [0, 1] of the crop."""
    mean: np.ndarray[Any, Any] = train.landmarks[train.copy == 0].mean(axis=0, dtype=np.float64)
    return mean.astype(np.float32)


def train(
    state: TrainState,
    settings: TrainSettings,
    data: Samples,
    val: Samples,
    on_epoch: Callable[[TrainState], None],
    rank: int = 0,
    world: int = 1,
    parallel: Callable[[nn.Module], nn.Module] = lambda model: model,
) -> None:
    """Trains from `state.epoch` to the end; `on_epoch` is called on every rank after each epoch.

    `parallel` wraps the model for gradient averaging (DDP); each rank takes its slice of every batch.

    Raises:
        UserError: the dataset has fewer samples than one batch, or a loss is not finite.
    """
    steps = len(data) // settings.batch
    if steps == 0 or settings.batch % world:
        raise UserError(
            f"batch {settings.batch} does not fit {len(data)} samples on {world} workers: it must divide by the "
            "number of workers and not exceed the samples; lower --batch, or prepare more faces or copies"
        )
    model = parallel(state.model)
    device = state.model.mean_shape.device
    predictor = Predictor(state.model, device=str(device))
    for epoch in range(state.epoch, settings.epochs):
        model.train()
        total = 0.0
        for step, rows in enumerate(epoch_batches(len(data), settings, epoch, rank, world)):
            level_200 = torch.from_numpy(data.image_200[rows]).to(device)
            truth = torch.from_numpy(data.landmarks[rows]).to(device)
            loss = _step(model, state.optimiser, settings, level_200, truth, epoch + step / steps)
            if not math.isfinite(loss):
                raise UserError(
                    f"training: the loss is {loss} at epoch {epoch + 1}, batch {step + 1} of {steps}; "
                    "lower --learning-rate, or look at these samples"
                )
            total += loss
        state.epoch = epoch + 1
        metrics = {"epoch": float(state.epoch), "loss": _mean_over_ranks(total, world, device) / steps}
        metrics["learning_rate"] = learning_rate(settings, state.epoch)
        state.history.append(metrics | validate(predictor, val))
        on_epoch(state)


def _mean_over_ranks(value: float, world: int, device: torch.device) -> float:
    if world == 1:
        return value
    total = torch.tensor(value, dtype=torch.float64, device=device)
    torch.distributed.all_reduce(total)
    return total.item() / world


def epoch_batches(
    samples: int, settings: TrainSettings, epoch: int, rank: int, world: int
) -> Iterator[np.ndarray[Any, Any]]:
    """This rank's rows of each batch; all ranks together see the same batches whatever their number."""
    order = np.random.default_rng((settings.seed, epoch)).permutation(samples)
    share = settings.batch // world
    for start in range(0, samples - settings.batch + 1, settings.batch):
        first = start + rank * share
        yield order[first : first + share]


def learning_rate(settings: TrainSettings, epoch: float) -> float:
    """Linear warm-up to the peak, then half a cosine to zero; `epoch` may be a fraction."""
    done = epoch / settings.epochs
    if done < settings.warmup:
        return settings.learning_rate * max(done / settings.warmup, 1e-3)
    return settings.learning_rate * 0.5 * (1 + math.cos(math.pi * (done - settings.warmup) / (1 - settings.warmup)))


def _step(
    model: nn.Module,
    optimiser: torch.optim.Optimizer,
    settings: TrainSettings,
    level_200: Tensor,
    truth: Tensor,
    epoch: float,
) -> float:
    for group in optimiser.param_groups:
        group["lr"] = learning_rate(settings, epoch)
    level_100 = area_halve(level_200)
    loss = objective(model(area_halve(level_100), level_100, level_200), truth)
    optimiser.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    nn.utils.clip_grad_norm_(model.parameters(), settings.clip_norm)
    optimiser.step()
    return loss.item()


VAL_KEYS: Final = tuple(f"val_nrmse_ip_{stage}" for stage in STAGES)


def validate(predictor: Predictor, val: Samples) -> EpochMetrics:
    """NRMSE (IP) of every stage on the validation faces, in crops; empty without validation faces."""
    if not len(val):
        return {}
    stages = predictor.predict(val.image_200).stages
    errors = nrmse_ip(stages, val.landmarks[:, None]).mean(axis=0)
    return {key: float(error) for key, error in zip(VAL_KEYS, errors, strict=True)}
