"""The files of registered models: an artifact becomes a version with its serving code, and is fetched again."""

import hashlib
import re
import shutil
import tempfile
import warnings
from collections.abc import Mapping
from contextlib import suppress
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Final

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
from pipelines.cache import cache_directory, writing
from pipelines.errors import UserError
from pipelines.registry.reaching import reaching_mlflow
from pipelines.registry.store import default_store
from pipelines.registry.tracking import RunRecord, connected, store_lock
from pipelines.registry.versions import DIGEST_TAG, ModelVersion, resolve, versions_of

_SIGNATURE: Final = ModelSignature(
    inputs=Schema([TensorSpec(np.dtype(np.uint8), (-1, 200, 200), "image_200")]),
    outputs=Schema([TensorSpec(np.dtype(np.float32), (-1, 136))]),
)
_SERVING_CODE: Final = Path(__file__).with_name("served_model.py")
_SERVED_WITH: Final = ("mlflow", "numpy", "pydantic", "safetensors", "torch")


class LostError(UserError):
    """Nobody can have the files of a version any more; `why` is that alone, the rest what there is to do: they are
    written to MLflow's store once."""

    def __init__(self, why: str) -> None:
        super().__init__(
            f"{why}: put them back, or use another version (msrrn rollback, or an alias given in MLflow's UI)"
        )
        self.why = why


def artifact_digest(artifact: Path) -> str:
    """SHA-256 over names, sizes and contents of the artifact's files, sorted by name."""
    digest = hashlib.sha256()
    for path in sorted(file for file in artifact.rglob("*") if file.is_file()):
        name = path.relative_to(artifact).as_posix()
        digest.update(f"{name}\0{path.stat().st_size}\0".encode())
        with path.open("rb") as file:
            hashlib.file_digest(file, lambda: digest)  # goes on with this one
    return digest.hexdigest()


def register(run: RunRecord, name: str, artifact: Path, tags: Mapping[str, str]) -> ModelVersion:
    """Logs the artifact with its serving code to the run, as a new version of `name`.

    An artifact that is registered under `name` already keeps its version, which is returned as it is: the oldest, if
    machines that did it at once have made several.

    Raises:
        UserError: `artifact` is no model artifact, or MLflow refuses the name or cannot be reached.
    """
    try:
        read_card(artifact)
    except ArtifactError as error:
        raise UserError(str(error)) from error
    digest = artifact_digest(artifact)
    with connected() as mlflow_client, store_lock(), default_store():
        for known in reversed(versions_of(mlflow_client, name)):
            if known.tags.get(DIGEST_TAG) == digest:
                return known
        try:
            mlflow_client.create_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        model_id = _log_model(mlflow_client, run, name, artifact)
        created = mlflow_client.create_model_version(
            name,
            source=f"models:/{model_id}",
            run_id=run.run_id,
            tags={**tags, DIGEST_TAG: digest},
            model_id=model_id,
        )
        return ModelVersion.of(created, {})


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


def fetch(uri: str, cache: Path | None = None) -> Path:
    """The artifact directory of a registered model, `models:/name@alias` or `models:/name/3`.

    It is downloaded once into `cache` (by default `models` in the user's cache), under its digest, which is checked
    every time.

    Raises:
        UserError: no such model, version or alias; its files are gone; MLflow cannot be reached.
    """
    found = resolve(uri)
    with reaching_mlflow(), default_store():
        return _download(found, cache or cache_directory() / "models")


def lost(version: ModelVersion) -> str:
    """Why nobody can have the files of a version any more; nothing where they are there, whoever has them in a cache.

    Nor where the store of artifacts cannot be asked: that says nothing of them.
    """
    with tempfile.TemporaryDirectory(prefix="msrrn-") as empty, suppress(Exception):
        try:
            fetch(version.uri, Path(empty))
        except LostError as error:
            return error.why
    return ""


def _download(model: ModelVersion, cache: Path) -> Path:
    digest = model.tags.get(DIGEST_TAG, "")
    if re.fullmatch("[0-9a-f]{64}", digest) is None:
        raise UserError(f"{model.uri} has no tag {DIGEST_TAG}: it was not registered by msrrn")
    target = cache / digest
    if target.is_dir():
        if artifact_digest(target) == digest:
            return target
        shutil.rmtree(target)
    files = f"{model.uri}/artifacts"
    # Asked for first: in a download, each kind of store says in words of its own that they are gone.
    if not mlflow.artifacts.list_artifacts(artifact_uri=files):
        raise LostError(f"{model.uri}: its files are gone from where MLflow keeps artifacts")
    with writing(cache):
        cache.mkdir(parents=True, exist_ok=True)
        downloads = tempfile.TemporaryDirectory(prefix=".download-", dir=cache)
    with downloads as folder:
        mlflow.artifacts.download_artifacts(artifact_uri=files, dst_path=folder)
        cards = list(Path(folder).rglob(CARD))
        if len(cards) != 1 or artifact_digest(cards[0].parent) != digest:
            raise LostError(f"{model.uri}: its files are not those that were registered")
        try:
            cards[0].parent.rename(target)
        except OSError:
            # Another process may have put it there since.
            if not target.is_dir():
                raise
    return target
