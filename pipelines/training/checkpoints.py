"""Runs of training that are not finished: what each was told, and where it is.

`OUT/runs/NAME` holds `run.json` and the last checkpoint, `state.pt`, and the lease of who is at it; all go when the
artifact is there. They are the same with Ray and without, and for any number of workers.
"""

import hashlib
import shutil
from dataclasses import dataclass
from typing import Final

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pipelines.errors import UserError
from pipelines.lease import LEASE
from pipelines.settings import TrainSettings
from pipelines.storage import Store
from pipelines.training.state import TrainState

RUNS: Final = "runs"
RUN: Final = "run.json"
STATE: Final = "state.pt"
_DIGEST: Final = 32
"""Bytes of the SHA-256 that a checkpoint begins with, of what follows."""
_ZIP: Final = b"PK\x03\x04"
"""What an older one begins with, which has no digest."""


class Told(BaseModel):
    """`run.json`: what makes the run again."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    dataset: str
    settings: TrainSettings
    checkpoint_steps: int = Field(ge=1, description="beside the settings, since it fixes nothing of the model")
    experiment: str | None = Field(None, description="of MLflow, in which the run is followed; older ones do not say")
    init_photos: tuple[str, ...] = Field((), description="of the model that it starts from")

    @classmethod
    def of(cls, dataset: str, settings: TrainSettings, experiment: str) -> "Told":
        """With what the dump of the settings leaves out, since it is no part of a run's name."""
        return cls(
            dataset=dataset,
            settings=settings,
            checkpoint_steps=settings.checkpoint_steps,
            experiment=experiment,
            init_photos=settings.init.photos if settings.init else (),
        )

    def all_settings(self) -> TrainSettings:
        """The settings that `of` was given."""
        init = self.settings.init and self.settings.init.model_copy(update={"photos": self.init_photos})
        return self.settings.model_copy(update={"checkpoint_steps": self.checkpoint_steps, "init": init})


def checked(checkpoint: bytes) -> bytes:
    """What `TrainState.to_bytes` gave; ValueError where bits have changed since, with which torch would take it.

    Of an older checkpoint that is not known.
    """
    if checkpoint.startswith(_ZIP):
        return checkpoint
    data = checkpoint[_DIGEST:]
    if hashlib.sha256(data).digest() != checkpoint[:_DIGEST]:
        raise ValueError("it is not what was written")
    return data


@dataclass(frozen=True)
class Checkpoints:
    """The place of one run's checkpoints."""

    place: Store

    def begin(self, dataset: Store, settings: TrainSettings, experiment: str) -> None:
        """Notes what the run is, where its dataset lies now, and where it is followed."""
        told = Told.of(dataset.absolute().url, settings, experiment)
        self.place.publish(RUN, told.model_dump_json(indent=1).encode())

    def write(self, state: TrainState) -> None:
        """The last checkpoint is replaced in one step."""
        data = state.to_bytes()
        self.place.publish(STATE, hashlib.sha256(data).digest() + data)

    @property
    def version(self) -> str | None:
        """What changes with each checkpoint; None where there is none."""
        return self.place.version(STATE)

    def restore(self, state: TrainState) -> bool:
        """Takes `state` to the last checkpoint; False where there is none.

        Raises:
            UserError: the checkpoint is damaged.
        """
        if not self.place.exists(STATE):
            return False
        data = self.place.read_bytes(STATE)
        try:
            state.load_bytes(checked(data))
        except (MemoryError, torch.cuda.OutOfMemoryError):
            raise
        except Exception as error:  # bytes may be wrong in more ways than torch has kinds of errors
            raise UserError(
                f"{self.place.url}/{STATE} is damaged, or no checkpoint of this run: delete it to begin anew"
            ) from error
        return True

    def finish(self) -> None:
        """What a finished run does not need goes: `run.json` after the rest, which is found by it; last its lease."""
        for key in (*(key for key in self.place.keys("") if key not in (RUN, LEASE)), RUN, LEASE):
            self.place.delete(key)
        if folder := self.place.local_path():
            shutil.rmtree(folder, ignore_errors=True)  # empty folders, and what a killed process was writing


def unfinished(out: str, name: str = "") -> tuple[str, Told]:
    """Name and `run.json` of the one run below `out` that is not finished, or of the one of this name.

    Raises:
        UserError: there is none, or more than one and no name says which, or `run.json` is damaged.
    """
    runs = Store(out).child(RUNS)
    names = [key.removesuffix(f"/{RUN}") for key in runs.keys("") if key.endswith(f"/{RUN}")]
    chosen = [each for each in names if name in ("", each)]
    if not chosen:
        there = f"unfinished there: {', '.join(names)}" if names else "give the --out of the stopped training"
        raise UserError(f"{runs.url}: no unfinished run{f' {name}' if name else ''} to go on with; {there}")
    if len(chosen) > 1:
        raise UserError(f"{runs.url}: {len(chosen)} unfinished runs; say which: --resume {' | '.join(chosen)}")
    data = runs.read_bytes(f"{chosen[0]}/{RUN}")
    try:
        return chosen[0], Told.model_validate_json(data)
    except ValidationError as error:
        raise UserError(
            f"{runs.url}/{chosen[0]}/{RUN} is damaged, or of another version of msrrn: call `train` with --dataset "
            "instead, which goes on where it can"
        ) from error
