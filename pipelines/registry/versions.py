"""What is in the MLflow model registry: versions and their aliases.

Their files go in and out by `pipelines.registry.artifacts`; the aliases move in `pipelines.registry.succession`.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, Self

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from pipelines.errors import UserError
from pipelines.registry.store import shown_uri, store_exists
from pipelines.registry.tracking import connected

CHAMPION: Final = "champion"
PREVIOUS: Final = "previous"
CHALLENGER: Final = "challenger"
ROLLED_BACK: Final = "rolled back"
"""How the decision on a version begins that a person took back."""
DIGEST_TAG: Final = "msrrn.artifact_digest"

_MODEL_URI: Final = re.compile(r"models:/(?P<name>[^/@]+)(?:/(?P<version>[0-9]+)|@(?P<alias>[^/@]+))")


@dataclass(frozen=True)
class ModelVersion:
    """A version of a registered model, as MLflow had it when it was asked."""

    name: str
    version: int
    run_id: str
    aliases: tuple[str, ...]
    tags: dict[str, str]
    created_ms: int
    """milliseconds since 1970, by the clock of MLflow"""

    @property
    def uri(self) -> str:
        """By which `resolve` knows it."""
        return f"models:/{self.name}/{self.version}"

    @classmethod
    def of(cls, version: Any, aliases: Mapping[str, int]) -> Self:
        """What MLflow gave, with those of the model's aliases that lead to it."""
        number = int(version.version)
        return cls(
            name=str(version.name),
            version=number,
            run_id=str(version.run_id),
            aliases=tuple(sorted(alias for alias, target in aliases.items() if target == number)),
            tags=dict(version.tags),
            created_ms=int(version.creation_timestamp),
        )


def require_store(wanted: str) -> None:
    """Raises `UserError` where there is no store in which something wanted could be; asking would make one."""
    if not store_exists():
        raise UserError(
            f"{wanted}: there is no MLflow store at {shown_uri()}: call from its folder, or set MLFLOW_TRACKING_URI"
        )


def resolve(uri: str) -> ModelVersion:
    """The version that `models:/name@alias` or `models:/name/3` stands for.

    Raises:
        UserError: no such model, version or alias; MLflow cannot be reached.
    """
    match = _MODEL_URI.fullmatch(uri)
    if match is None:
        raise UserError(f"{uri}: write models:/NAME@ALIAS, models:/NAME/VERSION, or a directory")
    require_store(uri)
    with connected() as mlflow:
        return _find(mlflow, match["name"], match["version"], match["alias"])


def require_model(mlflow: MlflowClient, name: str, or_none: bool = False) -> None:
    """Raises UserError where no model has this name; with `or_none`, only where others are registered."""
    if _registered(mlflow, name) is not None:
        return
    others = ", ".join(_names(mlflow))
    if others or not or_none:
        there = others or (
            "none yet: `msrrn retrain` or `msrrn promote` registers one; MLFLOW_TRACKING_URI names another registry"
        )
        raise UserError(f"No model {name!r} is registered at {shown_uri()}; there is {there}")


def find_version(mlflow: MlflowClient, name: str, version: int) -> ModelVersion:
    """Raises UserError where there is no such model or version."""
    return _find(mlflow, name, str(version), None)


def _find(mlflow: MlflowClient, name: str, version: str | None, alias: str | None) -> ModelVersion:
    versions = versions_of(mlflow, name)
    if not versions:
        require_model(mlflow, name)
    for candidate in versions:
        if alias in candidate.aliases or str(candidate.version) == version:
            return candidate
    if alias:
        aliases = sorted(known for candidate in versions for known in candidate.aliases)
        raise UserError(f"Model {name!r} has no alias {alias!r}; it has {', '.join(aliases) or 'none'}")
    numbers = ", ".join(str(candidate.version) for candidate in versions)
    raise UserError(f"Model {name!r} has no version {version}; it has {numbers or 'none'}")


def champion(name: str) -> ModelVersion | None:
    """The champion of `name`; None where there is no such model or no champion yet."""
    if not store_exists():
        return None
    with connected() as mlflow:
        return next((known for known in versions_of(mlflow, name) if CHAMPION in known.aliases), None)


def version_of(name: str, number: int) -> ModelVersion:
    """Raises UserError where there is no such model or version, or MLflow cannot be reached."""
    with connected() as mlflow:
        return find_version(mlflow, name, number)


def models(name: str | None) -> list[ModelVersion]:
    """The versions of `name`, or of every model of ours by name; newest first.

    Raises:
        UserError: others are registered, but not `name`; MLflow cannot be reached.
    """
    if not store_exists():
        return []
    with connected() as mlflow:
        return [version for each in _chosen(mlflow, name) for version in versions_of(mlflow, each)]


def aliases_of(mlflow: MlflowClient, name: str) -> dict[str, int]:
    """Alias → version; none where there is no such model."""
    found = _registered(mlflow, name)
    return {alias: int(version) for alias, version in found.aliases.items()} if found else {}


def versions_of(mlflow: MlflowClient, name: str) -> list[ModelVersion]:
    """The versions of a model, newest first."""
    if "'" in name:
        raise UserError(f"A model's name has no quotes, / or : in it, but this is {name}")
    aliases = aliases_of(mlflow, name)
    found = _pages(lambda token: mlflow.search_model_versions(f"name = '{name}'", page_token=token))
    records = [ModelVersion.of(each, aliases) for each in found]
    return sorted(records, key=lambda each: each.version, reverse=True)


def names(name: str | None) -> list[str]:
    """`name`, or every registered model of ours; none where there is no store.

    Raises:
        UserError: others are registered, but not `name`; MLflow cannot be reached.
    """
    if not store_exists():
        return []
    with connected() as mlflow:
        return _chosen(mlflow, name)


def _chosen(mlflow: MlflowClient, name: str | None) -> list[str]:
    if not name:
        return _names(mlflow)
    require_model(mlflow, name, or_none=True)
    return [name]


def _registered(mlflow: MlflowClient, name: str) -> Any:
    """What MLflow knows of a model; None where there is no such model."""
    try:
        return mlflow.get_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None


def _names(mlflow: MlflowClient) -> list[str]:
    """The models of which a version was registered here: a server may hold those of others, too."""
    ours = f"tags.`{DIGEST_TAG}` LIKE '%'"
    found = _pages(lambda token: mlflow.search_model_versions(ours, page_token=token))
    return sorted({str(each.name) for each in found})


def _pages(search: Callable[[str | None], Any]) -> Iterator[Any]:
    token = None
    while page := search(token):
        yield from page
        token = page.token
        if not token:
            return
