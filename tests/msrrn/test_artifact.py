import hashlib
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

from msrrn.artifact import CARD, WEIGHTS, ArtifactError, Card, load, read_card, save
from msrrn.config import PRESETS, ModelConfig
from msrrn.network import MSRRN
from msrrn.predictor import TorchPredictor
from msrrn.provenance import Training

SMALL = ModelConfig(
    preset="small", patch=12, patch_channels=(4, 4), initial_channels=(4, 4, 4), initial_hidden=16, hidden=16
)


def card(config: ModelConfig = SMALL) -> Card:
    return Card(
        version="0123456789ab",
        crop_margin=1.6,
        detector="hog",
        config=config,
        training=Training.model_validate({"dataset": "d1", "faces": 3, "λ": [1, 2.5, None]}),
        metrics={"val_nrmse_ip_stage_3": 0.05},
        licence="research only",
    )


def leaning() -> MSRRN:
    torch.manual_seed(0)
    model = MSRRN(SMALL, torch.rand(68, 2))
    model.lean.copy_(0.01 * torch.randn(68, 2))
    return model


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    save(tmp_path, leaning(), card())
    return tmp_path


def edit(directory: Path, change: Callable[[dict[str, Any]], object]) -> None:
    fields = json.loads((directory / CARD).read_text())
    change(fields)
    (directory / CARD).write_text(json.dumps(fields))


def refused(directory: Path, *words: str) -> None:
    """Loading fails, and the message names all these words."""
    with pytest.raises(ArtifactError) as caught:
        load(directory)
    message = str(caught.value)
    assert message.count("\n") <= 1
    for word in (str(directory), *words):
        assert word in message


def test_what_is_saved_is_loaded(artifact: Path) -> None:
    original = leaning()
    model, read = load(artifact)
    digest = hashlib.sha256((artifact / WEIGHTS).read_bytes()).hexdigest()
    assert read == card().model_copy(update={"weights_sha256": digest})
    assert read_card(artifact) == read
    assert not model.training
    crops = np.random.default_rng(0).integers(0, 256, (2, 200, 200), dtype=np.uint8)
    shapes = TorchPredictor(original).predict(crops).stages
    # Weights are stored as float16: some hundredths of a pixel.
    np.testing.assert_allclose(TorchPredictor(model).predict(crops).stages, shapes, atol=2e-4)
    assert torch.equal(model.mean_shape, original.mean_shape)
    assert torch.equal(model.lean, original.lean)


def test_the_best_network_is_saved_in_8_mb(tmp_path: Path) -> None:
    save(tmp_path, MSRRN(PRESETS["best"]), card(PRESETS["best"]))
    assert (tmp_path / WEIGHTS).stat().st_size <= 8_000_000


def test_the_same_model_is_saved_to_the_same_bytes(artifact: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    again = tmp_path_factory.mktemp("again")
    save(again, *load(artifact))
    assert sorted(path.name for path in again.iterdir()) == sorted([CARD, WEIGHTS])
    for name in (CARD, WEIGHTS):
        assert (again / name).read_bytes() == (artifact / name).read_bytes()


def test_without_a_card_it_is_no_artifact(artifact: Path) -> None:
    (artifact / CARD).unlink()
    refused(artifact, CARD)


def test_a_file_is_no_artifact(artifact: Path) -> None:
    with pytest.raises(ArtifactError, match=WEIGHTS):
        load(artifact / WEIGHTS)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"\xff\xfe\x00",
        b"not JSON",
        b"[" * 200_000,
        b'{"format": ' + b"1" * 5000 + b"}",
        b'{"name": "\\ud800"}',
    ],
)
def test_a_card_that_is_not_json(artifact: Path, content: bytes) -> None:
    (artifact / CARD).write_bytes(content)
    refused(artifact, CARD, "not JSON")


@pytest.mark.parametrize("content", ["[]", "null", "3"])
def test_a_card_that_is_no_object(artifact: Path, content: str) -> None:
    (artifact / CARD).write_text(content)
    refused(artifact, CARD)


@pytest.mark.parametrize("field", ["version", "crop_margin", "detector", "config"])
def test_a_missing_field_is_named(artifact: Path, field: str) -> None:
    edit(artifact, lambda fields: fields.pop(field))
    refused(artifact, CARD, f"`{field}`")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("surprise", 1),
        ("name", "two\nlines"),
        ("name", "\x1b[31mred"),
        ("version", "v" * 201),
        ("format", 2),
        ("scheme", "wflw-98"),
        ("levels", [50, 100, 400]),
        ("crop_margin", "wide"),
        ("crop_margin", 0),
        ("crop_margin", 1e-9),
        ("crop_margin", 1e9),
        ("crop_margin", float("nan")),
        ("crop_margin", float("inf")),
        ("config.patch", 13),
        ("config.hidden", 0),
        ("config.hidden", 10**9),
        ("config.patch_channels", [0, 16]),
        ("config.initial_channels", [16, 32, 10**7]),
        ("config.context", [16, 32, 64]),
        ("config.context", [16, 32, 64, 10**7]),
        ("config.surprise", 1),
        ("calibration.own", 1e308),
        ("calibration.constant", -1e308),
        ("training.faces_by_source", [1]),
        ("training.settings", None),
        ("training.settings.init", {"version": "1"}),
        ("training.dataset_settings", None),
        ("training.dataset_settings.val_share", "x"),
    ],
)
def test_an_unknown_or_wrong_field_is_named(artifact: Path, field: str, value: object) -> None:
    def change(fields: dict[str, Any]) -> None:
        *path, last = field.split(".")
        for name in path:
            fields = fields.setdefault(name, {})
        fields[last] = value

    edit(artifact, change)
    refused(artifact, CARD, f"`{field}")


def test_a_card_says_again_what_was_read(artifact: Path) -> None:
    edit(artifact, lambda fields: fields["training"].update(settings={"preset": "best", "init": None, "epochs": 3}))
    told = json.loads((artifact / CARD).read_text())["training"]
    assert read_card(artifact).training.model_dump(exclude_unset=True) == told


def test_missing_weights(artifact: Path) -> None:
    (artifact / WEIGHTS).unlink()
    refused(artifact, WEIGHTS)


def test_weights_that_are_a_directory(artifact: Path) -> None:
    (artifact / WEIGHTS).unlink()
    (artifact / WEIGHTS).mkdir()
    refused(artifact, WEIGHTS)


@pytest.mark.parametrize("kept", [0, 7, 8, 100, -1])
def test_truncated_weights(artifact: Path, kept: int) -> None:
    data = (artifact / WEIGHTS).read_bytes()
    (artifact / WEIGHTS).write_bytes(data[:kept])
    refused(artifact, WEIGHTS)


def test_weights_of_other_shapes_name_the_tensor(artifact: Path) -> None:
    wider = SMALL.model_copy(update={"initial_hidden": 24})
    save(artifact, MSRRN(wider), card())
    refused(artifact, WEIGHTS, "initial.head.0.weight")


def test_weights_of_another_model_are_refused(artifact: Path, tmp_path: Path) -> None:
    other = MSRRN(read_card(artifact).config)
    with torch.no_grad():
        other.mean_shape += 0.01
    (tmp_path / "other").mkdir()
    save(tmp_path / "other", other, read_card(artifact))
    (tmp_path / "other" / WEIGHTS).replace(artifact / WEIGHTS)
    with pytest.raises(
        ArtifactError, match=r"weights\.safetensors: not the weights of its card\.json; copy both files"
    ):
        load(artifact)


def test_weights_that_are_not_finite_are_refused(artifact: Path) -> None:
    model, card = load(artifact)
    with torch.no_grad():
        next(model.parameters()).view(-1)[0] = float("nan")
    save(artifact, model, card)
    with pytest.raises(ArtifactError, match=r"holds numbers that are not finite; train the model anew"):
        load(artifact)


def test_a_missing_and_an_unknown_tensor_are_named(artifact: Path) -> None:
    tensors = safetensors.torch.load_file(artifact / WEIGHTS)
    safetensors.torch.save_file({**tensors, "surprise": torch.zeros(1)}, artifact / WEIGHTS)
    refused(artifact, WEIGHTS, "surprise")
    del tensors["mean_shape"]
    safetensors.torch.save_file(tensors, artifact / WEIGHTS)
    refused(artifact, WEIGHTS, "mean_shape", "another version made them", "or train it anew")


def test_many_unknown_tensors_are_not_all_named(artifact: Path) -> None:
    tensors = safetensors.torch.load_file(artifact / WEIGHTS) | {f"more{n}": torch.zeros(0) for n in range(1000)}
    safetensors.torch.save_file(tensors, artifact / WEIGHTS)
    with pytest.raises(ArtifactError, match="Unexpected key") as caught:
        load(artifact)
    assert len(str(caught.value)) < 1000


def test_weights_of_an_unknown_kind_are_refused(artifact: Path) -> None:
    data = (artifact / WEIGHTS).read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    start, end = header["lean"]["data_offsets"]
    header["lean"] |= {"dtype": "F8_E8M0", "shape": [end - start]}
    told = json.dumps(header).encode()
    (artifact / WEIGHTS).write_bytes(len(told).to_bytes(8, "little") + told + data[8 + size :])
    refused(artifact, WEIGHTS, "F8_E8M0", "copy the artifact again")


class Bomb:
    """Leaves a trace where it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.trace,)


@pytest.mark.parametrize("file", [WEIGHTS, CARD])
@pytest.mark.parametrize("writer", ["pickle", "torch"])
def test_nothing_is_unpickled(artifact: Path, file: str, writer: str) -> None:
    trace = artifact / "unpickled"
    if writer == "pickle":
        (artifact / file).write_bytes(pickle.dumps(Bomb(trace)))
    else:
        torch.save({"mean_shape": Bomb(trace)}, artifact / file)
    refused(artifact, file)
    assert not trace.exists()


def test_a_card_cannot_ask_for_all_memory() -> None:
    with pytest.raises(ValueError, match="too large together"):
        ModelConfig(patch=40, patch_channels=(16, 1024), hidden=2048)
