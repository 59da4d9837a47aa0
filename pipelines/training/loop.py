"""The training loop of one worker: torch alone, no Ray, so it runs in-process, under DDP or on any GPU.

The order of samples, the learning rate and everything drawn depend on (seed, epoch, step) only, never on
how many workers share a batch, so a run that resumes from a checkpoint goes on as if it had never stopped.
"""

import math
from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from typing import Final

import numpy as np
import torch
from torch import nn

from msrrn.disturbance import Disturbance, draw_disturbance
from msrrn.lean import without_lean
from msrrn.objective import OBJECTIVES, misjudged, misplaced
from msrrn.perturbation import draw, perturb
from msrrn.predictor import area_halve
from pipelines.dataset.loader import Batch, Loader, share_of
from pipelines.engine import default_workers
from pipelines.errors import UserError
from pipelines.memory import keep_memory
from pipelines.settings import TrainSettings
from pipelines.training.state import TrainState, parts_of
from pipelines.training.validation import over_ranks, validate

Seen = tuple[Batch, Disturbance | None]
"""What one update sees."""

SPIKE: Final = 20.0
"""A loss of so many times the usual one is no learning any more; also what is not a number ends a run."""
USUAL: Final = 10
"""Batches whose mean is the usual loss, at least, once there were so many. At the peak of the learning rate the loss
may swing from one batch to the next: tenfold where 47 faces of 300-W made six an epoch."""

HEAT: Final = 0.01
"""Weight of the heat maps' cross entropy beside the objective: more of it costs accuracy."""
PERTURBERS: Final = min(8, max(1, default_workers() // 2))
"""Threads that perturb batches ahead of the one in use; OpenCV lets them work beside each other."""


class DivergedError(UserError):
    """The loss jumps or is not finite: on every rank alike, and again however often it is tried."""


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
    keep_memory()
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
    network, context, doubt = parts_of(model)
    norm, _ = (nn.utils.clip_grad_norm_(weights, settings.clip_norm) for weights in (network + context, doubt))
    optimiser.step()
    return loss.item(), norm.item()
