"""A model by what a person calls it: a place, an alias of the registry, or one that comes with the package."""

import tempfile
from pathlib import Path
from typing import Final

from msrrn.artifact import CARD, WEIGHTS, ArtifactError
from pipelines.errors import UserError
from pipelines.models import ONNX_SUFFIX, Model, read_model
from pipelines.registry.store import store_exists
from pipelines.settings import NAME
from pipelines.storage import Store

IN_THE_BOX: Final = "box"
BOX: Final = Path(__file__).with_name("box")
PACKAGED: Final = {IN_THE_BOX: BOX, "synthetic": BOX / "synthetic"}
"""The models that come with the package; the second has seen synthetic faces alone: training may start from it."""


def open_model(model: str | None, one_look: bool = False) -> Model:
    """Reads M, as it is or looking at each face only once.

    Raises:
        UserError: there is no such model, it cannot be read, or was not made for one look.
    """
    opened = _opened(model)
    return opened.looking_once() if one_look else opened


def _opened(model: str | None) -> Model:
    """Reads M: an artifact directory or an exported `.onnx` (local or `s3://`), a `models:/name@alias` URI, or
    `box` or `synthetic`, the models that come with the package. None: the champion of the registry where there is
    one, else that in the box; one that was lost is not replaced so."""
    if model is None:
        model = champion_uri() or IN_THE_BOX
    if model in PACKAGED:
        return read_model(PACKAGED[model])
    if model.startswith("models:"):
        return _registered(model)
    if local := Store(model).local_path():
        if not local.exists():
            raise UserError(
                f"{model} does not exist: give the directory that `msrrn train` printed, an exported {ONNX_SUFFIX}, "
                f"models:/NAME@ALIAS, models:/NAME/VERSION, or {IN_THE_BOX}"
            )
        return read_model(local)
    with tempfile.TemporaryDirectory(prefix="msrrn-") as folder:
        if model.endswith(ONNX_SUFFIX):
            place, _, file = model.rpartition("/")
            Path(folder, file).write_bytes(Store(place).read_bytes(file))
            return read_model(Path(folder, file))
        store = Store(model)
        for key in (WEIGHTS, CARD):
            Path(folder, key).write_bytes(store.read_bytes(key))
        return read_model(Path(folder))


def _registered(uri: str) -> Model:
    from pipelines.registry.artifacts import fetch

    directory = fetch(uri)
    try:
        return read_model(directory)
    except UserError as error:
        if not isinstance(error.__cause__, ArtifactError):
            raise
        # They are the files that were registered, byte for byte: what registered them could read them.
        raise UserError(
            f"{uri} was made by another version of msrrn, and this one cannot read it: use that version, or another "
            "version of the model (msrrn rollback, or an alias given in MLflow's UI)"
        ) from error


def champion_uri() -> str:
    """The URI of the registry's champion; none where there is none. Without a store, MLflow is not imported."""
    if not store_exists():
        return ""
    from pipelines.registry.succession import lost_champion
    from pipelines.registry.versions import champion

    if best := champion(NAME):
        return best.uri
    if lost := lost_champion(NAME):
        raise UserError(f"{lost}, or say which model it shall be (--model; box is the one in the box)")
    return ""
