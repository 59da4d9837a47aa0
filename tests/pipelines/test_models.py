import hashlib
import json
import pickle
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from msrrn.artifact import CARD, WEIGHTS
from msrrn.geometry import Box
from msrrn.openvino import OpenVinoPredictor
from msrrn.prediction import STAGES
from msrrn.provenance import InitialWeights
from msrrn.synthetic import SyntheticPhoto
from pipelines import models
from pipelines.decoding import decode
from pipelines.errors import UserError
from pipelines.models import GENERATIONS, ONE_LOOK, ONNX_FILE, Model, export_model, initial_weights, read_model
from pipelines.opening import open_model
from pipelines.pyramid import crop, frame_around, padding
from pipelines.settings import VAL_SHARE
from tests.factories import ANY_SHAPE, tiny_model

README = Path(__file__).parents[2] / "README.md"
CROPS = np.random.default_rng(1).integers(0, 256, (3, 200, 200), dtype=np.uint8)


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    tiny_model(tmp_path / "artifact", ANY_SHAPE)
    return tmp_path / "artifact"


@pytest.fixture
def file(exported: Path, tmp_path: Path) -> Path:
    """The file of that artifact."""
    return Path(shutil.copy(exported, tmp_path))


def test_a_model_travels(artifact: Path) -> None:
    model = read_model(artifact)
    expected = model.predictor.predict(CROPS)
    files = [(name, (artifact / name).read_bytes()) for name in (WEIGHTS, CARD)]
    whole = b"".join(f"{name} {len(data)}\n".encode() + data for name, data in files)
    assert model.digest == hashlib.sha256(whole).hexdigest()  # a run that is begun knows its model by it
    shutil.rmtree(artifact)
    copy: Model = pickle.loads(pickle.dumps(model))  # noqa: S301
    assert copy == model
    assert hash(copy) == hash(model)
    np.testing.assert_array_equal(copy.predictor.predict(CROPS).stages, expected.stages)
    assert expected.stages.shape == (3, 5, 68, 2)


def test_what_is_trained_on_all_photos_is_measured_on_the_usual_share() -> None:
    box = open_model("box")
    assert box.card.training.dataset_settings.val_share == 0
    assert box.val_share == VAL_SHARE


def test_the_predictor_is_made_once(artifact: Path, tmp_path: Path) -> None:
    model = read_model(artifact)
    assert model.predictor is model.predictor
    assert pickle.loads(pickle.dumps(model)).predictor is model.predictor  # noqa: S301
    other = tiny_model(tmp_path / "other", ANY_SHAPE, seed=1)
    assert other.predictor is not model.predictor
    assert other.digest != model.digest
    assert (model.label, other.label) == ("msrrn tiny0", "msrrn tiny1")


def test_half_the_precision_finds_nearly_the_same(artifact: Path, file: Path) -> None:
    model = read_model(artifact)
    half = model.in_precision("bfloat16")
    assert half != model
    whole, reduced = (each.predictor.predict(CROPS).shapes for each in (model, half))
    assert 0 < np.abs(whole - reduced).max() < 0.02
    np.testing.assert_array_equal(half.in_precision("float32").predictor.predict(CROPS).shapes, whole)
    assert read_model(file).in_precision("float32") == read_model(file)
    with pytest.raises(UserError, match="--precision bfloat16 needs the artifact"):
        read_model(file).in_precision("bfloat16")


def test_one_look_is_the_first_of_two_and_another_model_to_who_keeps_what_it_finds(file: Path) -> None:
    box, once = open_model("box"), open_model("box", one_look=True)
    twice, found = (each.predictor.predict(CROPS) for each in (box, once))
    moved = np.abs(found.stages - twice.stages).max(axis=(0, 2, 3))
    first = 1 + STAGES.index("stage_1")  # those behind are means of both looks; the lean lies as the last one does
    assert moved[:first].max() < 5e-4
    assert moved[first:].min() > 1e-3
    assert (once.label, once.digest != box.digest) == (f"{box.label}{ONE_LOOK}", True)
    assert not once.card.metrics  # they are of two looks
    copy: Model = pickle.loads(pickle.dumps(once.in_precision("bfloat16")))  # noqa: S301
    assert np.abs(copy.predictor.predict(CROPS).shapes - found.shapes).max() < 0.02
    assert once.looking_once() == once
    assert read_model(file).looking_once() == read_model(file)  # it never looked twice
    with pytest.raises(UserError, match="an ONNX file of two looks: --one-look needs the artifact"):
        replace(box, files=((ONNX_FILE, b"a graph"),)).looking_once()
    unknown = replace(box, card=box.card.model_copy(update={"one_look_calibration": None}))
    with pytest.raises(UserError, match=r"was not made for --one-look: .* train it anew"):
        unknown.looking_once()


def test_precision_is_chosen_by_what_the_cpu_computes_in(
    artifact: Path, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = read_model(artifact)
    for able, chosen in (({"avx512_bf16": True}, "bfloat16"), ({"amx_bf16": True}, "bfloat16"), ({}, "float32")):
        monkeypatch.setattr("torch.cpu.get_capabilities", lambda able=able: able)
        assert model.in_precision("auto").precision == chosen
        assert read_model(file).in_precision("auto").precision == "float32"


def test_openvino_gives_the_same_from_an_artifact_and_from_an_export(artifact: Path, file: Path) -> None:
    model = read_model(artifact)
    expected = model.predictor.predict(CROPS).stages
    for asked in (model, read_model(file)):
        chosen = asked.in_engine("openvino")
        assert (chosen.digest, chosen.label) == (asked.digest, asked.label)
        copy: Model = pickle.loads(pickle.dumps(chosen))  # noqa: S301
        assert type(copy.predictor) is OpenVinoPredictor
        np.testing.assert_allclose(copy.predictor.predict(CROPS).stages, expected, atol=5e-6)
        assert chosen.in_engine("native") == asked
    half = model.in_precision("bfloat16")
    halves = half.in_engine("openvino").predictor.predict(CROPS).stages
    rounded = np.abs(half.predictor.predict(CROPS).stages - expected).max()
    assert 0 < np.abs(halves - expected).max() < 3 * rounded


def test_what_openvino_runs_is_kept_for_this_model_precision_and_code(
    artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[bytes] = []

    def to_onnx(*_: object) -> bytes:
        made.append(str(len(made)).encode())
        return made[-1]

    monkeypatch.setattr(models, "to_onnx", to_onnx)
    monkeypatch.setenv("MSRRN_CACHE", str(tmp_path / "cache"))
    model = read_model(artifact)
    other = tiny_model(tmp_path / "other", ANY_SHAPE, seed=1)
    asked = (model, model.in_precision("bfloat16"), other, model)
    assert [each.in_engine("openvino").graph for each in asked] == [b"0", b"1", b"2", b"0"]
    monkeypatch.setattr("msrrn.__file__", str(tmp_path / "__init__.py"))  # another version of the package
    assert model.in_engine("openvino").graph == b"3"
    monkeypatch.setattr(models, "version", lambda name: "another")  # of what exports it
    assert model.in_engine("openvino").graph == b"4"


def test_a_worker_that_asks_openvino_loads_no_torch(artifact: Path, tmp_path: Path) -> None:
    """It would start a second later, and take 190 MB more."""
    model = read_model(artifact)
    sent = tmp_path / "sent"
    sent.write_bytes(pickle.dumps((model.in_engine("openvino").for_workers(), CROPS)))
    program = (
        "import pickle, sys, pathlib, pipelines.annotation.unit\n"
        "asked, crops = pickle.loads(pathlib.Path(sys.argv[1]).read_bytes())\n"
        "print(asked.on_one_core(crops).shapes.shape, asked.name, asked.version, 'torch' in sys.modules)"
    )
    ran = subprocess.run([sys.executable, "-c", program, str(sent)], capture_output=True, text=True, check=True)
    assert ran.stdout == f"{(len(CROPS), 68, 2)} {model.label} False\n"
    assert model.for_workers() is model


def test_what_is_missing_for_openvino_is_said(artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for place in ("models", "asked"):
        monkeypatch.setattr(f"pipelines.{place}.has_openvino", lambda: False)
    with pytest.raises(UserError, match=r"a worker's machine has no OpenVINO: .*into another place"):
        _ = replace(read_model(artifact), graph=b"made elsewhere").predictor
    with pytest.raises(UserError, match=r"OpenVINO is not installed, .*: pip install 'msrrn\[fast\]'"):
        read_model(artifact).in_engine("openvino")


def test_what_is_no_artifact_is_explained(artifact: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"absent: no card\.json, so it is not a model artifact"):
        read_model(tmp_path / "absent")
    with pytest.raises(UserError, match=r"absent does not exist: give the directory .*models:/NAME@ALIAS.*box"):
        open_model(str(tmp_path / "absent"))
    with pytest.raises(UserError, match=r"card\.json: no card\.json, so it is not a model artifact"):
        read_model(artifact / CARD)
    for key in (CARD, WEIGHTS):
        folder = Path(shutil.copytree(artifact, tmp_path / f"folder {key}"))
        (folder / key).unlink()
        (folder / key).mkdir()
        with pytest.raises(UserError, match=f"folder {key}.* (artifact|cannot be loaded)"):
            read_model(folder)


def test_a_damaged_artifact_is_explained(artifact: Path) -> None:
    weights, card = ((artifact / key).read_bytes() for key in (WEIGHTS, CARD))
    damaged = [
        (WEIGHTS, weights[: len(weights) // 2], r"weights\.safetensors: weights cannot be loaded"),
        (WEIGHTS, b"", r"weights\.safetensors: weights cannot be loaded"),
        (CARD, b"{", r"card\.json: not JSON"),
        (CARD, json.dumps(json.loads(card) | {"scheme": "wflw-98"}).encode(), "field `scheme`"),
        (CARD, card.replace(b'"hidden": 16', b'"hidden": 24'), "weights cannot be loaded"),
    ]
    for key, data, explained in damaged:
        (artifact / WEIGHTS).write_bytes(weights)
        (artifact / CARD).write_bytes(card)
        (artifact / key).write_bytes(data)
        with pytest.raises(UserError, match=explained):
            read_model(artifact)
    (artifact / CARD).write_bytes(card)
    (artifact / WEIGHTS).unlink()
    with pytest.raises(UserError, match="weights cannot be loaded"):
        read_model(artifact)


def test_an_export_is_a_model_too(artifact: Path, file: Path, tmp_path: Path) -> None:
    model = read_model(artifact)
    exported = read_model(file)
    assert exported.card == model.card
    assert exported.digest != model.digest
    copy: Model = pickle.loads(pickle.dumps(exported))  # noqa: S301
    np.testing.assert_allclose(copy.predictor.predict(CROPS).stages, model.predictor.predict(CROPS).stages, atol=5e-6)
    assert export_model(exported) == file.read_bytes()
    with pytest.raises(UserError, match="give --init the artifact"):
        initial_weights(exported)
    file.write_bytes(b"rubbish")
    with pytest.raises(UserError, match=r"face\.onnx: not an ONNX model"):
        read_model(file)
    with pytest.raises(UserError, match=r"absent\.onnx cannot be read"):
        read_model(tmp_path / "absent.onnx")


def test_of_a_long_chain_of_models_a_card_tells_the_latest(artifact: Path) -> None:
    """Each starts from the one before, as every week with `--init models:/NAME@champion`."""
    known = []
    for generation in range(3 * GENERATIONS):
        card = json.loads((artifact / CARD).read_bytes())
        _, init = initial_weights(read_model(artifact))
        known.append(init.version)
        assert told(init) == known[::-1][:GENERATIONS]
        card["version"] = f"generation {generation}"
        card["training"]["settings"]["init"] = init.model_dump()
        (artifact / CARD).write_text(json.dumps(card))
        assert told(read_model(artifact).card.training.settings.init) == known[::-1][:GENERATIONS]


def test_a_card_of_before_chains_were_cut_stays_what_it_is(artifact: Path) -> None:
    card = json.loads((artifact / CARD).read_bytes())
    chain: dict[str, Any] | None = None
    for generation in range(100):
        said = {"version": str(generation), "dataset": "d", "faces_by_source": {}, "licence": "any"}
        chain = said | ({"init": chain} if chain else {})
    card["training"] |= {"settings": {"init": chain}, "photos": f"{'a' * 12} {'b' * 12}"}
    card["training"] |= {"dataset": "of day 100", "faces_by_source": {"afw": {"train": 3}}}
    (artifact / CARD).write_text(json.dumps(card))
    model = read_model(artifact)
    before = model.card.training.settings.init
    assert before is not None
    assert before.model_dump() == chain
    _, init = initial_weights(model)
    assert told(init) == [model.version, *map(str, range(99, 100 - GENERATIONS, -1))]
    assert init.photos == ("a" * 12, "b" * 12)
    assert (init.dataset, init.faces_by_source) == ("of day 100", {"afw": {"train": 3}})
    assert [model.saw(digit * 64) for digit in "abc"] == [True, True, False]


def told(init: InitialWeights | None) -> list[str]:
    """The versions that a card tells of those before it, the latest first."""
    return [] if init is None else [init.version, *told(init.init)]


def test_the_readme_asks_an_export_as_the_pipeline_does(
    file: Path, photos: tuple[list[SyntheticPhoto], list[SyntheticPhoto]], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = README.read_text("utf-8")
    (code,) = (code for code in re.findall(r"```python\n(.*?)```", text, re.S) if "onnx" in code)
    monkeypatch.chdir(file.parent)
    # A photo that ends within the crop: what is beyond its edge is to be the same, too.
    Image.fromarray(decode(photos[0][0].jpeg).rgb[:360, :400]).save("photo.jpg", quality=95)
    said: dict[str, Any] = {}
    exec(code, said)
    frame = frame_around(Box(said["x"] - 90, said["y"] - 90, said["x"] + 90, said["y"] + 90), 1.5)
    expected = frame.shape_to_upright(said["landmarks"][0].astype(np.float64))
    np.testing.assert_allclose(said["shape"], expected, atol=1e-3)
    photo = decode(Path("photo.jpg").read_bytes())
    assert padding(frame, *photo.size) > 0.1
    ours = crop(photo.rgb, frame)
    assert np.abs(said["crop"].astype(float) - ours).mean() < 5
