"""Types of the flows' parameters: what the UI's form says of each, and refuses before a run starts."""

from typing import Annotated, Any, Literal

from prefect.utilities import callables
from pydantic import Field

from pipelines.secrecy import USERINFO
from pipelines.settings import MODEL_NAME, REGISTERED_NAME, SourceFormat

ModelName = Annotated[
    str, Field(pattern=MODEL_NAME, description="a registered model: letters, digits, - and _, at most 100")
]
RegisteredName = Annotated[
    str, Field(pattern=REGISTERED_NAME, description="a registered model: not empty, and without / and :")
]
Workers = Annotated[int, Field(ge=1, le=4096, description="Ray workers")]
Place = Annotated[
    str,
    # The server checks against the schema alone, before it keeps the parameters of a run.
    Field(
        min_length=1,
        description="a folder, file:///folder or s3://bucket/prefix",
        json_schema_extra={"not": {"pattern": f"^{USERINFO}"}},
    ),
]
Sources = Annotated[
    list[Place], Field(min_length=1, description="annotated photos: folders, archives or files, local or s3://")
]
Format = Annotated[
    Literal["auto", SourceFormat], Field(description="of the annotated photos; auto: found out by looking at them")
]


class _Closed(callables.ParameterSchema):
    """Knows no parameters but those of the flow: by Prefect's own, a misspelt one is found when a run crashes."""

    additionalProperties: bool  # noqa: N815, as JSON Schema spells it

    def __init__(self, **schema: Any) -> None:
        super().__init__(**schema, additionalProperties=False)  # what is not given here is not sent to the server


callables.ParameterSchema = _Closed  # type: ignore[misc]  # whoever deploys a flow loads it, and comes by here
