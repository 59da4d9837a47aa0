"""A model as workers need it: the artifact's bytes, which travel, and the predictor, made once a process."""

import hashlib
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from msrrn.artifact import CARD, WEIGHTS, ArtifactError, Card, load, read_card
from msrrn.predictor import Predictor
from pipelines.errors import UserError
from pipelines.settings import VAL_SHARE


@dataclass(frozen=True)
class Model:
    """An artifact's two files. Picklable and hashable; a few megabytes."""

    files: tuple[tuple[str, bytes], ...]
    card: Card

    def __hash__(self) -> int:
        return hash(self.digest)

    @property
    def digest(self) -> str:
        """SHA-256 of the artifact's files."""
        digest = hashlib.sha256()
        for name, data in self.files:
            digest.update(f"{name} {len(data)}\n".encode() + data)
        return digest.hexdigest()

    @property
    def label(self) -> str:
        """How annotations and tables quote the model: name and version."""
        return f"{self.card.name} {self.card.version}"

    @property
    def val_share(self) -> float:
        """The share of photos that its dataset held out, where they were not declared."""
        return float(self.card.training.get("dataset_settings", {}).get("val_share", VAL_SHARE))

    @property
    def predictor(self) -> Predictor:
        return _predictor(self)


def read_model(directory: Path) -> Model:
    """Reads an artifact directory and checks that it loads.

    Raises:
        UserError: it is not a model artifact, or a damaged one, or it cannot be read.
    """
    try:
        card = read_card(directory)
        load(directory)
        return Model(tuple((name, (directory / name).read_bytes()) for name in (WEIGHTS, CARD)), card)
    except ArtifactError as error:
        raise UserError(str(error)) from error
    except OSError as error:
        raise UserError(
            f"{directory} cannot be read as a model artifact ({error.strerror or error}): give the directory "
            "that `msrrn train` printed"
        ) from error


@cache
def _predictor(model: Model) -> Predictor:
    with tempfile.TemporaryDirectory() as directory:
        for name, data in model.files:
            (Path(directory) / name).write_bytes(data)
        network, card = load(Path(directory))
    return Predictor(network, card.calibration)
