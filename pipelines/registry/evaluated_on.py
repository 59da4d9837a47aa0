"""On which photos a version was evaluated, as its tags say: there whoever finds it can judge it later."""

import json
from collections.abc import Sequence
from typing import Annotated, Final, Literal

from pydantic import BaseModel, Field, Json, ValidationError

from pipelines.errors import UserError
from pipelines.evaluation.results import Evaluation
from pipelines.registry.versions import resolve
from pipelines.settings import Selection, SourceFormat
from pipelines.storage import Store

SOURCES_TAG: Final = "msrrn.eval_sources"
SELECTION_TAG: Final = "msrrn.eval_selection"
FORMAT_TAG: Final = "msrrn.eval_format"


class EvaluatedOn(BaseModel):
    """What the tags say. Older ones say no format: theirs was found out by looking at the photos."""

    sources: Json[Annotated[list[str], Field(min_length=1)]] = Field(alias=SOURCES_TAG)
    selection: Selection = Field(alias=SELECTION_TAG)
    source_format: Literal["auto", SourceFormat] = Field("auto", alias=FORMAT_TAG)


def evaluation_tags(evaluation: Evaluation, sources: Sequence[str]) -> dict[str, str]:
    """The tags of a version that was evaluated so; places are absolute there."""
    return {
        SOURCES_TAG: json.dumps([Store(source).absolute().url for source in sources]),
        SELECTION_TAG: evaluation.selection,
        FORMAT_TAG: evaluation.source_format,
    }


def evaluated_on(artifact: str) -> EvaluatedOn:
    """Where the version of a `models:` URI was evaluated.

    Raises:
        UserError: it is no version, or its tags do not say.
    """
    tags = resolve(artifact).tags if artifact.startswith("models:") else {}
    if SOURCES_TAG not in tags:
        raise UserError(f"{artifact} does not say which photos it was evaluated on: name them (data, or --data)")
    try:
        return EvaluatedOn.model_validate(tags)
    except ValidationError as error:  # tags can be edited
        first = error.errors()[0]
        raise UserError(
            f"{artifact}: the tag `{first['loc'][0]}` does not say how it was evaluated ({first['msg']}): correct it "
            "in MLflow, or name the photos (data, or --data)"
        ) from None
