"""What an annotation run is: archive, model and settings, as `run.json` holds them from its beginning on."""

from typing import Any

from pipelines.annotations import RUN, SCHEMA_VERSION, Annotations
from pipelines.errors import UserError
from pipelines.models import Model
from pipelines.settings import AnnotateSettings
from pipelines.storage import Store


def _begun_at(place: Store) -> dict[str, Any]:
    """What the run is that was begun there; nothing where there is none.

    Raises:
        UserError: something else lies there.
    """
    if not place.exists(RUN):
        return {}
    return {"engine": "native"} | Annotations(place).run  # older ones had no other


def as_begun(place: Store, settings: AnnotateSettings) -> AnnotateSettings:
    """What is left to choose (`auto`) as the run that was begun there chose it."""
    begun = _begun_at(place)
    left = {field for field, value in settings if value == "auto"}
    return settings.model_copy(update={field: begun[field] for field in left & begun.keys()})


def claim_of(source: str, model: Model, settings: AnnotateSettings) -> dict[str, Any]:
    """What a run is."""
    return {
        "source": source,
        "model": model.label,
        "model_sha256": model.digest,
        "schema": SCHEMA_VERSION,
        **settings.model_dump(),
    }


def refuse_another(place: Store, mine: dict[str, Any]) -> None:
    """Raises UserError where another run, of other settings or another model, was begun here."""
    theirs = _begun_at(place)
    if not theirs:
        return
    for field, value in mine.items():
        if theirs.get(field) != value:
            raise UserError(
                f"{place.url} holds a run with {field} = {theirs.get(field)}, this one has {value}; "
                "ask for the same, give another --out, or delete that one"
            )
