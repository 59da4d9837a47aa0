"""What an annotation run is: archive, model and settings, as `run.json` holds them from its beginning on."""

import json
from typing import Any, Final

from pipelines.annotation.tables import RUN, SCHEMA_VERSION, Annotations
from pipelines.errors import UserError
from pipelines.models import ONE_LOOK, Model, read_model
from pipelines.opening import PACKAGED
from pipelines.settings import AnnotateSettings
from pipelines.storage import Store

RECIPE: Final = 3
"""Part of every run's record. Raise it with any change of code that changes rows: decoding, detection, crops, the
network. A run of another recipe, or of before there was one, can be read, but not gone on with."""


def _begun_at(place: Store) -> dict[str, Any]:
    """What the run is that was begun there; nothing where there is none.

    Raises:
        UserError: something else lies there.
    """
    if not place.exists(RUN):
        return {}
    run = Annotations(place).run
    if "source" not in run:
        raise UserError(f"{place.url}/{RUN} is not the record of a run: delete it, or give another --out")
    return {"engine": "native"} | run  # older ones had no other


def continued(place: Store, source: str, model: Model, settings: AnnotateSettings) -> AnnotateSettings:
    """What is left to choose (`auto`) as the run that was begun there chose it.

    Raises:
        UserError: another run was begun there, of other settings or another model.
    """
    begun = _begun_at(place)
    chosen = _chosen(begun, settings)
    _refuse_another(place, begun, claim_of(source, model, chosen))
    return chosen


def claim_of(source: str, model: Model, settings: AnnotateSettings) -> dict[str, Any]:
    """What a run is."""
    return {
        "source": Store(source).url,
        "archive": Store(source).absolute().url,
        "model": model.label,
        "model_sha256": model.digest,
        "schema": SCHEMA_VERSION,
        "recipe": RECIPE,
        **settings.model_dump(),
    }


def publish_claim(place: Store, claim: dict[str, Any]) -> None:
    """Writes down what the run is, where that is not written yet; raises UserError where another one is."""
    if not place.create(RUN, json.dumps(claim, indent=1).encode()):
        _refuse_another(place, _begun_at(place), claim)


def require_recipe(place: Store) -> None:
    """Raises UserError where other code has made the rows of the run: beside them, those of this one were others."""
    if _begun_at(place).get("recipe") != RECIPE:
        raise _of_another_version(place)


def refuse_a_part(place: Store, limit: int, known: int, left: int, anew: bool) -> None:
    """Raises UserError where a run is more than its first pictures, and these cannot be done alone.

    Args:
        place: where the run is.
        limit: how many are the first.
        known: how many it has, with those that wait.
        left: how many are to be done.
        anew: whether its plan was deleted since units were finished.
    """
    if anew:
        raise UserError(f"{place.url} has finished units but no plan: make it anew first, without --limit")
    if known > limit and left:
        raise UserError(
            f"{place.url}: the run has more than these {limit} pictures, and with them {left} to be done, "
            f"of all {known}; it cannot do the first alone: leave --limit out, or give another --out"
        )


def _chosen(begun: dict[str, Any], settings: AnnotateSettings) -> AnnotateSettings:
    left = {field for field, value in settings if value == "auto"}
    return settings.model_copy(update={field: begun[field] for field in left & begun.keys()})


def _refuse_another(place: Store, begun: dict[str, Any], mine: dict[str, Any]) -> None:
    if not begun:
        return
    if not _is_same_archive(begun, mine):
        raise _another(place, "source", begun.get("archive") or begun.get("source"), mine["archive"])
    if (begun.keys() ^ mine.keys()) - {"archive", "recipe"}:
        raise _of_another_version(place)
    for field, value in mine.items():
        if field not in {"source", "archive", "recipe"} and begun.get(field) != value:
            how = _the_same(begun) if field in {"model", "model_sha256"} else ""
            raise _another(place, field, begun.get(field), value, how)


def _another(place: Store, field: str, then: Any, now: Any, how: str = "") -> UserError:
    return UserError(
        f"{place.url} holds a run with {field} = {then}, this one has {now}; "
        f"ask for the same{how}, give another --out, or delete that one"
    )


def _of_another_version(place: Store) -> UserError:
    return UserError(
        f"{place.url} holds a run that another version of msrrn began, whose rows may differ from those of this one: "
        "go on with that version, give another --out, or delete that one"
    )


def _the_same(begun: dict[str, Any]) -> str:
    """How the model of a run is asked for: without --model it is that of the day."""
    once = " --one-look" if str(begun.get("model")).endswith(ONE_LOOK) else ""
    for name, folder in PACKAGED.items():
        packaged = read_model(folder)
        if begun.get("model_sha256") == packaged.digest or begun.get("model") == packaged.label + ONE_LOOK:
            return f" (--model {name}{once})"
    return f" (--model models:/NAME/VERSION{once}, or its artifact)"


def _is_same_archive(begun: dict[str, Any], mine: dict[str, Any]) -> bool:
    """The same place, however it is written; or one of the same name, where the place of then is no more: a folder
    that holds archive and run may be moved, and older runs do not know where their archive was."""
    if "archive" in begun and Store(begun["archive"]).absolute().url == mine["archive"]:
        return True
    moved = "archive" not in begun or not Store(begun["archive"]).exists()
    return moved and begun.get("source") == mine["source"]
