"""Who was champion before this one, and can be so again."""

from collections.abc import Callable, Sequence

from mlflow import MlflowClient

from pipelines.registry.ledger import Line
from pipelines.registry.turns import became_champion
from pipelines.registry.versions import CHAMPION, PREVIOUS, ModelVersion, versions_of

Lost = Callable[[ModelVersion], str]
"""Why nobody can use a version any more; nothing where that is not known."""


def before(mlflow: MlflowClient, name: str, lines: Sequence[Line], aliases: dict[str, int]) -> int | None:
    """The champion before this one: `previous`; where a person moved `champion` alone, the one of the ledger."""
    left = {move.alias: move.after for line in lines if line.done for move in line.turn.moves}
    was, champion, previous = left.get(CHAMPION), aliases.get(CHAMPION), aliases.get(PREVIOUS)
    if champion in (was, previous) or previous != left.get(PREVIOUS):
        return previous
    # One of a model that was deleted may have had its number.
    known = {each.version for each in versions_of(mlflow, name) if became_champion(each)}
    return was if was in known else previous


def way_back(versions: Sequence[ModelVersion], champion: int, back: ModelVersion, why: str, lost: Lost) -> str:
    """What to do where `back`, to which a champion would go back, is lost; `versions` are newest first."""
    others = (each for each in versions if each.version not in (champion, back.version) and became_champion(each))
    usable = next((each.version for each in others if not lost(each)), None)
    which = f"version {usable}, which was champion, too" if usable else "a version whose files are there"
    return (
        f"{back.name}: version {champion} stays champion: nobody could use version {back.version}, the one before "
        f"({why}). Put its files back, or give the alias {PREVIOUS!r} to {which}, in MLflow's UI; then call again"
    )
