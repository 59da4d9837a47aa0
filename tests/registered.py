"""Versions in a registry, as a training leaves them."""

from pathlib import Path

from pipelines.evaluation.evaluate import evaluate
from pipelines.models import read_model
from pipelines.registry.record import record
from pipelines.registry.versions import ModelVersion


def register_model(artifact: str, name: str, source: Path) -> ModelVersion:
    """A version that was evaluated on the validation photos of `source`, and never judged."""
    model = read_model(Path(artifact))
    return record(artifact, model, evaluate(model, [str(source)], "val", 1), name, [str(source)])
