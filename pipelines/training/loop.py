"""The training loop of one worker: torch alone, no Ray, so it runs in-process, under DDP or on any GPU.

The order of samples, the learning rate and everything drawn depend on (seed, epoch, step) only, never on
how many workers share a batch, so a run that resumes from a checkpoint goes on as if it had never stopped.
"""

import copy
import io
import math
import os
from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from typing import Any, Final

import numpy as np
import torch
from torch import nn

from msrrn.config import PRESETS
from msrrn.disturbance import Disturbance, draw_disturbance
from msrrn.lean import without_lean
from msrrn.network import MSRRN
from msrrn.objective import OBJECTIVES, misjudged, misplaced
from msrrn.perturbation import draw, perturb
from msrrn.predictor import area_halve
from pipelines.dataset.loader import Batch, Loader, share_of
from pipelines.errors import UserError
from pipelines.settings import TrainSettings
from pipelines.training.validation import EpochMetrics, over_ranks, validate

Seen = tuple[Batch, Disturbance | None]
"""What one update sees."""

SPIKE: Final = 20.0
"""A loss of so many times the usual one is no learning any more; also what is not a number ends a run."""
USUAL: Final = 10
"""Batches whose mean is the usual loss, at least, once there were so many. At the peak of the learning rate the loss
may swing from one batch to the next: tenfold where 47 faces of 300-W made six an epoch."""

HEAT: Final = 0.01
"""Weight of the heat maps' cross entropy beside the objective: more of it costs accuracy."""
CONTEXT_DECAY: Final = 0.2
"""Weight decay of context and heat maps, over that of the other weights."""
PERTURBERS: Final = min(8, max(1, (os.cpu_count() or 1) // 2))
"""Threads that perturb batches ahead of the one in use; OpenCV lets them work beside each other."""

_WEIGHTS: Final = ("model", "averaged", "optimiser")
_PLACE: Final = ("epoch", "step", "loss", "gradient_norm", "history")
"""What of a `TrainState` a checkpoint holds: weights and what moves them, and where the run is."""


class DivergedError(UserError):
    """The loss jumps or is not finite: on every rank alike, and again however often it is tried."""


class TrainState:
    """Everything that a checkpoint holds: the network, the optimiser, the history, and where the run is.

    `model` is what is trained, `averaged` the running mean of its weights, which is validated and published.
    `epoch` epochs are done, and of the next one `step` batches, whose losses add up to `loss` and the lengths of
    whose gradients to `gradient_norm`.
    """

    def __init__(self, settings: TrainSettings, mean_shape: np.ndarray[Any, Any], device: str = "cpu") -> None:
        torch.manual_seed(settings.seed)
        self.model = MSRRN(PRESETS[settings.preset], torch.from_numpy(mean_shape)).to(device)
        self.optimiser = _optimiser(self.model, settings)
        self.averaged = copy.deepcopy(self.model).eval().requires_grad_(False)
        self.model.reduced = settings.precision == "bfloat16"
        self.epoch = 0
        self.step = 0
        self.loss = 0.0
        self.gradient_norm = 0.0
        self.history: list[EpochMetrics] = []

    def start_from(self, model: MSRRN) -> None:
        """Takes over the weights of another network, but for what belongs to its dataset.

        Raises:
            UserError: it is built in another way.
        """
        if model.config != self.model.config:
            theirs, ours = model.config.preset, self.model.config.preset
            if theirs == ours or theirs not in PRESETS:
                raise UserError(
                    f"another version of msrrn made the network that training shall start from, of preset {theirs}: "
                    "give --init another model"
                )
            raise UserError(
                f"a network of preset {theirs} cannot be the start of one of preset {ours}: give --preset {theirs}, "
                "or --init another model"
            )
        own = {"mean_shape": self.model.mean_shape, "lean": self.model.lean}
        for network in (self.model, self.averaged):
            network.load_state_dict(model.state_dict() | own)

    def to_bytes(self) -> bytes:
        buffer = io.BytesIO()
        weights = {name: getattr(self, name).state_dict() for name in _WEIGHTS}
        torch.save(weights | {name: getattr(self, name) for name in _PLACE}, buffer)
        return buffer.getvalue()

    def load_bytes(self, data: bytes) -> None:
        """Takes over a checkpoint; nothing in it is unpickled beyond tensors and plain values."""
        device = self.model.mean_shape.device
        state = torch.load(io.BytesIO(data), weights_only=True, map_location=device)
        for name in _WEIGHTS:
            getattr(self, name).load_state_dict(state[name])
        for name in _PLACE:
            setattr(self, name, state[name])

    def lean_to(self, lean: torch.Tensor) -> None:
        """A lean (68, 2) that perturbed samples shall be learned without, and that is added where it is validated."""
        for network in (self.model, self.averaged):
            network.lean.copy_(lean)

    @torch.no_grad()
    def average(self, decay: float) -> None:
        """Takes the weights into their running mean; a decay of 0 makes it these weights."""
        for mean, weight in zip(self.averaged.parameters(), self.model.parameters(), strict=True):
            mean.lerp_(weight, 1 - decay)


def _optimiser(model: MSRRN, settings: TrainSettings) -> torch.optim.Optimizer:
    network, context, doubt = ({"params": weights} for weights in _parts(model))
    parts: list[dict[str, Any]] = [
        network,
        # Filters see every place of every face: they learn no face by heart.
        context | {"weight_decay": CONTEXT_DECAY * settings.weight_decay},
        # Its few weights cannot either, and a strong decay would leave nothing of them.
        doubt | {"weight_decay": 0.0},
    ]
    parts = [part for part in parts if part["params"]]
    if settings.optimiser == "adamw":
        return torch.optim.AdamW(parts, lr=settings.learning_rate, weight_decay=settings.weight_decay, fused=True)
    return torch.optim.SGD(
        parts,
        lr=settings.learning_rate,
        momentum=settings.momentum,
        nesterov=settings.momentum > 0,
        weight_decay=settings.weight_decay,
        fused=True,
    )


def _parts(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter], list[nn.Parameter]]:
    """The weights of the network, those of context and heat maps, and those of the head that estimates the error."""
    parts: tuple[list[nn.Parameter], list[nn.Parameter], list[nn.Parameter]] = ([], [], [])
    for name, weight in model.named_parameters():
        part = name.removeprefix("module.").partition(".")[0]
        parts[{"context": 1, "heat": 1, "doubt": 2}.get(part, 0)].append(weight)
    return parts


def train(
    state: TrainState,
    settings: TrainSettings,
    data: Loader,
    val: Loader,
    on_checkpoint: Callable[[TrainState], None],
    stopping: Callable[[], bool] = lambda: False,
    rank: int = 0,
    world: int = 1,
    parallel: Callable[[nn.Module], nn.Module] = lambda model: model,
) -> None:
    """Trains from where `state` is to the end, or to the checkpoint after `stopping`.

    `on_checkpoint` is called on every rank after each epoch, when `state.step` is 0, and within an epoch after
    each `checkpoint_steps` batches; `stopping`, after each batch: one rank's wish is all ranks'. `parallel` wraps
    the model for gradient averaging (DDP); each rank takes its share of every batch, and its gradient counts for as
    much.

    Raises:
        UserError: the dataset has fewer samples than one batch, or a shard is damaged.
        DivergedError: a loss jumps or is not finite.
    """
    steps = len(data) // settings.batch
    if steps == 0 or settings.batch < world:
        raise UserError(
            f"batch {settings.batch} does not fit {len(data)} samples on {world} workers: it must not exceed the "
            "samples, nor be exceeded by the workers; change --batch, or prepare more faces or copies"
        )
    model = parallel(state.model)
    device = state.model.mean_shape.device
    wishes = 0.0
    for epoch in range(state.epoch, settings.epochs):
        model.train()
        with closing(batches_seen(state, settings, data, epoch, rank, world)) as batches:
            for seen in batches:
                own, gradient_norm = update(model, state.optimiser, settings, seen, epoch + state.step / steps, world)
                total, wishes = over_ranks([own, float(stopping())], world, device)
                loss = total / world
                # The mean over few updates, at the beginning, must not be one of the first weights.
                done = epoch * steps + state.step
                state.average(min(settings.averaged, (1 + done) / (10 + done)) if settings.averaged else 0.0)
                _require_learning(state, loss, steps)
                state.step += 1
                state.loss += loss
                state.gradient_norm += gradient_norm
                if state.step < steps and (wishes or state.step % settings.checkpoint_steps == 0):
                    on_checkpoint(state)
                    if wishes:
                        return
        metrics = {
            "epoch": epoch + 1.0,
            "loss": state.loss / steps,
            "learning_rate": learning_rate(settings, epoch + 1),
            "gradient_norm": state.gradient_norm / steps,
        }
        state.history.append(metrics | validate(state.averaged, val, rank, world))
        state.epoch, state.step, state.loss, state.gradient_norm = epoch + 1, 0, 0.0, 0.0
        on_checkpoint(state)
        if wishes:
            return


def _require_learning(state: TrainState, loss: float, steps: int) -> None:
    """Raises DivergedError where the next loss is no number, or far above the mean of its epoch; while that has few
    batches, of those before, too."""
    total, count = state.loss, state.step
    for epoch in reversed(state.history):
        if count >= USUAL:
            break
        total, count = total + epoch["loss"] * steps, count + steps
    usual = total / count if count else loss
    if not loss < SPIKE * usual:
        raise DivergedError(
            f"training: the loss is {loss:.4g} at epoch {state.epoch + 1}, batch {state.step + 1} of {steps} (mean "
            f"before: {usual:.4g}); lower --learning-rate, or check the dataset by `msrrn verify`"
        )


def learning_rate(settings: TrainSettings, epoch: float) -> float:
    """Linear warm-up to the peak, then half a cosine to zero; `epoch` may be a fraction."""
    done = epoch / settings.epochs
    if done < settings.warmup:
        return settings.learning_rate * max(done / settings.warmup, 1e-3)
    return settings.learning_rate * 0.5 * (1 + math.cos(math.pi * (done - settings.warmup) / (1 - settings.warmup)))


def batches_seen(
    state: TrainState, settings: TrainSettings, data: Loader, epoch: int, rank: int, world: int
) -> Generator[Seen, None, None]:
    """This rank's share of the epoch's batches from `state.step` on; where the settings say so, perturbed ahead, and
    without the lean of `state`."""
    batches = data.epoch(settings.seed, epoch, settings.batch, state.step, rank, world)
    if not settings.perturbed:
        with closing(batches):
            yield from ((batch, None) for batch in batches)
        return
    strength = 0.5 if epoch >= (1 - settings.calm) * settings.epochs else 1.0
    features, mean_shape = state.model.regressor.features.size, state.model.mean_shape.cpu()
    lean = state.model.lean.cpu()

    def perturbed(batch: Batch, step: int) -> Seen:
        rng = np.random.default_rng((settings.seed, epoch, step))
        mine = share_of(settings.batch, rank, world)
        draws = draw(settings.batch, rng, strength).rows(mine)
        disturbance = draw_disturbance(settings.batch, features, mean_shape.numpy(), rng)
        annotated = without_lean(batch.landmarks, batch.mirrored, lean, mean_shape)
        images, shapes = perturb(batch.image_200.numpy(), annotated.numpy(), draws)
        seen = batch._replace(image_200=torch.from_numpy(images), landmarks=torch.from_numpy(shapes))
        return seen, Disturbance(*(column[mine] for column in disturbance))

    pending: deque[Future[Seen]] = deque()
    with closing(batches), ThreadPoolExecutor(PERTURBERS, "perturber") as threads:
        for step, batch in enumerate(batches, state.step):
            # Copied, since a view would keep the loader's window alive.
            copied = Batch(*(column.clone() for column in batch))
            pending.append(threads.submit(perturbed, copied, step))
            if len(pending) > 2 * PERTURBERS:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


def update(
    model: nn.Module, optimiser: torch.optim.Optimizer, settings: TrainSettings, seen: Seen, epoch: float, world: int
) -> tuple[float, float]:
    """One update; returns the loss, and the length of its gradient before it was clipped.

    The mean of the losses over all ranks is that of the whole batch.
    """
    for group in optimiser.param_groups:
        group["lr"] = learning_rate(settings, epoch)
    device = next(model.parameters()).device
    # The host goes on where the batch lies in pinned memory.
    level_200, truth = (column.to(device, non_blocking=True) for column in (seen[0].image_200, seen[0].landmarks))
    disturbance = seen[1] and Disturbance(*(column.to(device, non_blocking=True) for column in seen[1]))
    level_100 = area_halve(level_200)
    stages = model(area_halve(level_100), level_100, level_200, disturbance)
    # Ranks may have one sample more than others, and gradients of ranks are averaged.
    weight = len(truth) * world / settings.batch
    loss = weight * OBJECTIVES[settings.objective](stages, truth)
    optimiser.zero_grad()
    beside = weight * (HEAT * misplaced(stages, truth) + misjudged(stages, truth))
    (loss + beside).backward()  # type: ignore[no-untyped-call]
    # The head that estimates the error learns beside the network: neither may shorten the other's steps.
    network, context, doubt = _parts(model)
    norm, _ = (nn.utils.clip_grad_norm_(weights, settings.clip_norm) for weights in (network + context, doubt))
    optimiser.step()
    return loss.item(), norm.item()
