"""Where a training is: everything that a checkpoint holds."""

import copy
import io
from typing import Any, Final

import numpy as np
import torch
from torch import nn

from msrrn.config import PRESETS
from msrrn.network import MSRRN
from pipelines.errors import UserError
from pipelines.settings import TrainSettings
from pipelines.training.validation import EpochMetrics

CONTEXT_DECAY: Final = 0.2
"""Weight decay of context and heat maps, over that of the other weights."""

_WEIGHTS: Final = ("model", "averaged", "optimiser")
_PLACE: Final = ("epoch", "step", "loss", "gradient_norm", "history")
"""What of a `TrainState` a checkpoint holds: weights and what moves them, and where the run is."""


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
    network, context, doubt = ({"params": weights} for weights in parts_of(model))
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


def parts_of(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter], list[nn.Parameter]]:
    """The weights of the network, those of context and heat maps, and those of the head that estimates the error."""
    parts: tuple[list[nn.Parameter], list[nn.Parameter], list[nn.Parameter]] = ([], [], [])
    for name, weight in model.named_parameters():
        part = name.removeprefix("module.").partition(".")[0]
        parts[{"context": 1, "heat": 1, "doubt": 2}.get(part, 0)].append(weight)
    return parts
