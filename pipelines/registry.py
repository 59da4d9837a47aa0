"""The MLflow model registry: versions, their artifacts, and the aliases champion, previous and challenger.

Aliases move under `tracking.store_lock`. The order of the writes is such that a crash between two of them
leaves a champion, and repeating the call mends the rest.
"""

import hashlib
import re
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Any, Final

import mlflow.artifacts
import mlflow.pyfunc
import numpy as np
from mlflow import MlflowClient
from mlflow.entities import LoggedModelOutput
from mlflow.exceptions import MlflowException
from mlflow.models import Model, ModelSignature
from mlflow.types import Schema, TensorSpec

import msrrn
from msrrn.artifact import CARD, ArtifactError, read_card
from pipelines.errors import UserError
from pipelines.tracking import (
    RunRecord,
    cache_directory,
    client,
    reaching_mlflow,
    shown_uri,
    store_exists,
    store_lock,
)

CHAMPION: Final = "champion"
PREVIOUS: Final = "previous"
CHALLENGER: Final = "challenger"
ROLLED_BACK: Final = "rolled back"
"""How the decision on a version begins that a person took back."""
DIGEST_TAG: Final = "msrrn.artifact_digest"

_SIGNATURE: Final = ModelSignature(
    inputs=Schema([TensorSpec(np.dtype(np.uint8), (-1, 200, 200), "image_200")]),
    outputs=Schema([TensorSpec(np.dtype(np.float32), (-1, 136))]),
)
_SERVING_CODE: Final = Path(__file__).with_name("served_model.py")
_SERVED_WITH: Final = ("mlflow", "numpy", "pydantic", "safetensors", "torch")
_MODEL_URI: Final = re.compile(r"models:/(?P<name>[^/@]+)(?:/(?P<version>[0-9]+)|@(?P<alias>[^/@]+))")


@dataclass(frozen=True)
class ModelVersion:
    name: str
    version: int
    run_id: str
    aliases: tuple[str, ...]
    tags: dict[str, str]


def artifact_digest(artifact: Path) -> str:
    """SHA-256 over names, sizes and contents of the artifact's files, sorted by name."""
    digest = hashlib.sha256()
    for path in sorted(file for file in artifact.rglob("*") if file.is_file()):
        name = path.relative_to(artifact).as_posix()
        digest.update(f"{name}\0{path.stat().st_size}\0".encode())
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def register(run: RunRecord, name: str, artifact: Path, tags: Mapping[str, str]) -> ModelVersion:
    """Logs the artifact with its serving code to the run, as a new version of `name`.

    An artifact that is registered under `name` already keeps its version, which is returned as it is.

    Raises:
        UserError: `artifact` is no model artifact, or MLflow refuses the name or cannot be reached.
    """
    _check(artifact)
    digest = artifact_digest(artifact)
    mlflow_client = client()
    with reaching_mlflow(), store_lock():
        for known in _versions(mlflow_client, name):
            if known.tags.get(DIGEST_TAG) == digest:
                return known
        try:
            mlflow_client.get_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            mlflow_client.create_registered_model(name)
        model_id = _log_model(mlflow_client, run, name, artifact)
        created = mlflow_client.create_model_version(
            name,
            source=f"models:/{model_id}",
            run_id=run.run_id,
            tags={**tags, DIGEST_TAG: digest},
            model_id=model_id,
        )
        return _record(created, {})


def _log_model(mlflow_client: MlflowClient, run: RunRecord, name: str, artifact: Path) -> str:
    experiment_id = mlflow_client.get_run(run.run_id).info.experiment_id
    logged = mlflow_client.create_logged_model(experiment_id, name=name, source_run_id=run.run_id)
    model = Model(run_id=run.run_id, model_id=logged.model_id)
    # MLflow would rather infer the schema than be given one, and says so past any filter: hence `record`.
    unheard = warnings.catch_warnings(record=True, action="ignore", category=UserWarning)
    with tempfile.TemporaryDirectory(prefix="msrrn-") as folder, unheard:
        mlflow.pyfunc.save_model(
            folder,
            python_model=_SERVING_CODE,
            # The package travels with the weights: a server needs nothing that is not on a package index.
            code_paths=[str(Path(str(msrrn.__file__)).parent)],
            artifacts={"model": str(artifact.absolute())},
            signature=_SIGNATURE,
            # Without "+cpu": package indexes know no local versions.
            pip_requirements=[f"{each}=={installed_version(each).split('+')[0]}" for each in _SERVED_WITH],
            mlflow_model=model,
        )
        # MLflow looks for these in the model only, yet writes down where they were on this machine.
        flavor = model.flavors[mlflow.pyfunc.FLAVOR_NAME]
        flavor["model_code_path"] = _SERVING_CODE.name
        flavor["artifacts"]["model"]["uri"] = flavor["artifacts"]["model"]["path"]
        model.save(Path(folder, "MLmodel"))
        mlflow_client.log_model_artifacts(logged.model_id, folder)
    mlflow_client.log_outputs(run.run_id, [LoggedModelOutput(logged.model_id, step=0)])
    mlflow_client.finalize_logged_model(logged.model_id, "READY")
    return str(logged.model_id)


def fetch(model: str, cache: Path | None = None) -> Path:
    """The artifact directory of `model`: a directory itself, `models:/name@alias`, or `models:/name/3`.

    A registered model is downloaded once into `cache` (by default `models` in the user's cache), under its
    digest, which is checked every time.

    Raises:
        UserError: no such directory, model, version or alias; no artifact in it; MLflow cannot be reached.
    """
    if not model.startswith("models:"):
        _check(Path(model))
        return Path(model)
    match = _MODEL_URI.fullmatch(model)
    if match is None:
        raise UserError(f"{model}: write models:/NAME@ALIAS, models:/NAME/VERSION, or a directory")
    mlflow_client = client()
    with reaching_mlflow():
        found = _find(mlflow_client, match["name"], match["version"], match["alias"])
        return _download(found, cache or cache_directory() / "models")


def _check(directory: Path) -> None:
    if not directory.is_dir():
        raise UserError(f"{directory}: no such directory; give a model artifact or models:/NAME@ALIAS")
    try:
        read_card(directory)
    except ArtifactError as error:
        raise UserError(str(error)) from error


def _find(mlflow_client: MlflowClient, name: str, version: str | None, alias: str | None) -> ModelVersion:
    versions = _versions(mlflow_client, name)
    if not versions:
        names = ", ".join(_names(mlflow_client)) or "none yet"
        raise UserError(f"No model {name!r} is registered at {shown_uri()}; there is {names}")
    for candidate in versions:
        if alias in candidate.aliases or str(candidate.version) == version:
            return candidate
    if alias:
        aliases = sorted(known for candidate in versions for known in candidate.aliases)
        raise UserError(f"Model {name!r} has no alias {alias!r}; it has {', '.join(aliases) or 'none'}")
    numbers = ", ".join(str(candidate.version) for candidate in versions)
    raise UserError(f"Model {name!r} has no version {version}; it has {numbers}")


def _download(model: ModelVersion, cache: Path) -> Path:
    uri = f"models:/{model.name}/{model.version}"
    digest = model.tags.get(DIGEST_TAG, "")
    if re.fullmatch("[0-9a-f]{64}", digest) is None:
        raise UserError(f"{uri} has no tag {DIGEST_TAG}: it was not registered by msrrn")
    target = cache / digest
    if target.is_dir():
        if artifact_digest(target) == digest:
            return target
        shutil.rmtree(target)
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".download-", dir=cache) as folder:
        mlflow.artifacts.download_artifacts(artifact_uri=f"{uri}/artifacts", dst_path=folder)
        cards = list(Path(folder).rglob(CARD))
        if len(cards) != 1 or artifact_digest(cards[0].parent) != digest:
            raise UserError(f"{uri}: its files are not those that were registered; register the model again")
        try:
            cards[0].parent.rename(target)
        except OSError:
            # Another process may have put it there since.
            if not target.is_dir():
                raise
    _check(target)
    return target


def set_champion(name: str, version: int, decision: Mapping[str, str]) -> None:
    """Makes `version` the champion and the champion of before `previous`; records the decision as tags.

    Raises:
        UserError: there is no such model or version.
    """
    with _aliases_of(name) as (mlflow_client, aliases):
        _find(mlflow_client, name, str(version), None)
        _note(mlflow_client, name, version, decision)
        old = aliases.get(CHAMPION)
        if old is not None and old != version:
            mlflow_client.set_registered_model_alias(name, PREVIOUS, str(old))
        mlflow_client.set_registered_model_alias(name, CHAMPION, str(version))
        if aliases.get(CHALLENGER) == version:
            mlflow_client.delete_registered_model_alias(name, CHALLENGER)


def set_challenger(name: str, version: int, decision: Mapping[str, str]) -> None:
    """Points `challenger` at `version`; records the decision as tags."""
    with _aliases_of(name) as (mlflow_client, _):
        _find(mlflow_client, name, str(version), None)
        _note(mlflow_client, name, version, decision)
        mlflow_client.set_registered_model_alias(name, CHALLENGER, str(version))


def rollback(name: str, reason: str, who: str) -> tuple[ModelVersion, ModelVersion]:
    """Swaps champion and previous, and returns them as they are then: (champion, previous).

    Raises:
        UserError: there is no champion, or none before it.
    """
    with _aliases_of(name) as (mlflow_client, aliases):
        old, new = aliases.get(CHAMPION), aliases.get(PREVIOUS)
        if old is None or new is None or old == new:
            lacking = CHAMPION if old is None else PREVIOUS
            raise UserError(f"Model {name!r} has no {lacking} version: there is nothing to go back to")
        # Here the champion comes first: what is urgent is to be rid of the present one.
        mlflow_client.set_registered_model_alias(name, CHAMPION, str(new))
        mlflow_client.set_registered_model_alias(name, PREVIOUS, str(old))
        note = {"reason": reason, "who": who}
        _note(mlflow_client, name, old, {"decision": f"{ROLLED_BACK} to version {new}", **note})
        _note(mlflow_client, name, new, {"decision": f"champion again after version {old}", **note})
        versions = {known.version: known for known in _versions(mlflow_client, name)}
        return versions[new], versions[old]


def champion(name: str) -> ModelVersion | None:
    """The champion of `name`; None where there is no such model or no champion yet."""
    if not store_exists():
        return None
    mlflow_client = client()
    with reaching_mlflow():
        return next((known for known in _versions(mlflow_client, name) if CHAMPION in known.aliases), None)


def models(name: str | None) -> list[ModelVersion]:
    """The versions of `name`, or of every model by name; newest first."""
    mlflow_client = client()
    with reaching_mlflow():
        names = [name] if name else _names(mlflow_client)
        return [version for each in names for version in _versions(mlflow_client, each)]


@contextmanager
def _aliases_of(name: str) -> Iterator[tuple[MlflowClient, dict[str, int]]]:
    mlflow_client = client()
    with reaching_mlflow(), store_lock():
        yield mlflow_client, _read_aliases(mlflow_client, name)


def _read_aliases(mlflow_client: MlflowClient, name: str) -> dict[str, int]:
    try:
        aliases = mlflow_client.get_registered_model(name).aliases
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return {}
    return {alias: int(version) for alias, version in aliases.items()}


def _note(mlflow_client: MlflowClient, name: str, version: int, facts: Mapping[str, str]) -> None:
    when = datetime.now(UTC).isoformat(timespec="seconds")
    for key, value in {"when": when, **facts}.items():
        mlflow_client.set_model_version_tag(name, str(version), f"msrrn.{key}", value)


def _versions(mlflow_client: MlflowClient, name: str) -> list[ModelVersion]:
    if "'" in name:
        raise UserError(f"A model's name has no quotes, / or : in it, but this is {name}")
    aliases = _read_aliases(mlflow_client, name)
    found = _pages(lambda token: mlflow_client.search_model_versions(f"name = '{name}'", page_token=token))
    records = [_record(each, aliases) for each in found]
    return sorted(records, key=lambda each: each.version, reverse=True)


def _names(mlflow_client: MlflowClient) -> list[str]:
    found = _pages(lambda token: mlflow_client.search_registered_models(page_token=token))
    return sorted(str(each.name) for each in found)


def _pages(search: Callable[[str | None], Any]) -> Iterator[Any]:
    token = None
    while page := search(token):
        yield from page
        token = page.token
        if not token:
            return


def _record(version: Any, aliases: Mapping[str, int]) -> ModelVersion:
    return ModelVersion(
        name=str(version.name),
        version=int(version.version),
        run_id=str(version.run_id),
        aliases=tuple(sorted(alias for alias, target in aliases.items() if target == int(version.version))),
        tags=dict(version.tags),
    )
