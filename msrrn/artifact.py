"""The model artifact: a directory with `weights.safetensors` and `card.json`. Nothing in it is unpickled."""

import hashlib
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import safetensors
import safetensors.torch
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from msrrn.calibration import Calibration
from msrrn.config import ModelConfig
from msrrn.geometry import LEVELS
from msrrn.landmarks import SCHEME
from msrrn.network import MSRRN
from msrrn.provenance import Training

WEIGHTS: Final = "weights.safetensors"
CARD: Final = "card.json"
FORMAT: Final = 1
_LONGEST_REASON: Final = 300
"""Characters: PyTorch names every tensor that is too many, of which a file may have any number."""

_Quoted = Annotated[str, Field(max_length=200, pattern=r"^\P{Cc}*$")]
"""What rows of tables, terminals and pages quote: on one line."""


class ArtifactError(ValueError):
    """A model artifact is missing, damaged, or of another format. The message names file, field and remedy."""


class Card(BaseModel):
    """What a model is, what it saw, and what it may be used for."""

    model_config = ConfigDict(extra="forbid")

    format: Literal[1] = FORMAT
    name: _Quoted = Field("msrrn", description="what annotations quote as the model's name")
    version: _Quoted = Field(description="digest of the weights, what annotations quote as its version")
    weights_sha256: str = Field("", description="of the weights' file; empty in artifacts of before it was told")
    scheme: Literal["ibug-68"] = SCHEME
    levels: tuple[Literal[50], Literal[100], Literal[200]] = LEVELS
    crop_margin: float = Field(
        ge=1, le=4, allow_inf_nan=False, description="side of the crop over the side of the face box"
    )
    detector: str = Field(description="whose boxes the model was trained on")
    config: ModelConfig
    calibration: Calibration = Field(Calibration(), description="from the network's doubt to the error to expect")
    one_look_calibration: Calibration | None = Field(
        None, description="the same where a network that is `mirrored` looks at a face only once"
    )
    training: Training = Field(Training(), description="dataset, settings, seed, code version")
    metrics: dict[str, Any] = Field(default_factory=dict, description="validation figures and their protocol")
    licence: str = Field("unknown", description="what the model may be used for")

    def is_of(self, weights: bytes) -> bool:
        """Whether it is the card of the weights' file that has these bytes; where it does not tell, it may be."""
        return self.weights_sha256 in ("", hashlib.sha256(weights).hexdigest())


def save(directory: Path, model: MSRRN, card: Card) -> None:
    """Writes the artifact's two files into an existing directory; the caller publishes it.

    Weights are stored as float16 (coordinates of the mean shape as float32): that moves no landmark by more than
    some hundredths of a pixel and halves the file.
    """
    halved = {name for name, _ in model.named_parameters()}
    tensors = {
        name: (tensor.half() if name in halved else tensor).detach().cpu().contiguous()
        for name, tensor in model.state_dict().items()
    }
    data = safetensors.torch.save(tensors)
    (directory / WEIGHTS).write_bytes(data)
    told = card.model_copy(update={"weights_sha256": hashlib.sha256(data).hexdigest()})
    (directory / CARD).write_text(told.model_dump_json(indent=2) + "\n", encoding="utf-8")


def read_card(directory: Path) -> Card:
    """Reads and checks `card.json`.

    Raises:
        ArtifactError: there is none, it is not JSON, or a field is missing, unknown or wrong.
    """
    path = directory / CARD
    try:
        return card_of(path.read_bytes(), str(path))
    except (FileNotFoundError, NotADirectoryError):
        raise ArtifactError(
            f"{directory}: no {CARD}, so it is not a model artifact; give the directory that `msrrn train` printed, "
            "OUT/models/NAME"
        ) from None


def card_of(data: bytes, name: str) -> Card:
    """The card in the bytes of a file, or of a part of one, that is called `name`.

    Raises:
        ArtifactError: it is not JSON, or a field is missing, unknown or wrong.
    """
    try:
        return Card.model_validate_json(data)
    except ValidationError as error:
        first = error.errors(include_input=False)[0]
        if first["type"] == "json_invalid":
            raise ArtifactError(f"{name}: not JSON ({first['msg']}); copy the model again") from None
        field = ".".join(str(part) for part in first["loc"])
        raise ArtifactError(
            f"{name}: field `{field}`: {first['msg']}; it was made by another version, or is damaged: copy the model "
            "again"
        ) from None


def load(directory: Path) -> tuple[MSRRN, Card]:
    """Loads the model in evaluation mode, on the CPU.

    Raises:
        ArtifactError: the card is wrong, or the weights are missing, damaged, not finite, of another model or
            of other shapes.
    """
    card = read_card(directory)
    with torch.device("cpu"):
        model = MSRRN(card.config)
    path = directory / WEIGHTS
    try:
        data = path.read_bytes()
        model.load_state_dict(safetensors.torch.load(data))
    except (OSError, safetensors.SafetensorError, RuntimeError, KeyError) as error:
        # PyTorch's first line says only that it failed, the second which tensor. A KeyError is a kind of number that
        # it does not have.
        reason = " ".join(line.strip() for line in str(error).splitlines()[:2])[:_LONGEST_REASON]
        raise ArtifactError(
            f"{path}: weights cannot be loaded ({reason}): another version made them, or they are damaged; copy the "
            "artifact again, or train it anew"
        ) from None
    if not card.is_of(data):
        raise ArtifactError(f"{path}: not the weights of its {CARD}; copy both files of the artifact again")
    broken = next((name for name, tensor in model.state_dict().items() if not tensor.isfinite().all()), None)
    if broken:
        raise ArtifactError(f"{path}: {broken} holds numbers that are not finite; train the model anew")
    return model.eval(), card
