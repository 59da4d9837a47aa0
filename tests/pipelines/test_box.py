"""The model that comes with the package."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from matplotlib import cbook

from msrrn.artifact import WEIGHTS
from msrrn.config import PRESETS
from pipelines.decoding import decode
from pipelines.detection import open_detector
from pipelines.errors import UserError
from pipelines.evaluation.evaluate import evaluate
from pipelines.opening import BOX, PACKAGED, open_model
from pipelines.pyramid import crop, frame_around
from pipelines.registry.tracking import client
from pipelines.retraining import started_from
from pipelines.settings import NAME, TrainSettings
from pipelines.training.state import TrainState
from tests.msrrn.test_onnx import exported_once
from tests.pipelines.registry.test_succession import make_versions, promote_two


def test_without_a_champion_it_is_the_model_in_the_box(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    model = open_model(None)
    assert model.digest == open_model("box").digest
    assert not list(tmp_path.iterdir()), "looking for a champion must not make a registry"


def test_a_champion_that_was_lost_is_not_replaced_by_it(mlflow_store: Path) -> None:
    make_versions(NAME, 2)
    assert open_model(None).digest == open_model("box").digest
    promote_two(NAME)
    client().delete_registered_model_alias(NAME, "champion")
    with pytest.raises(UserError, match=r"no champion any more .*give the alias 'champion' to version 1.*--model"):
        open_model(None)


def test_it_is_small_and_says_what_it_may_be_used_for() -> None:
    assert (BOX / WEIGHTS).stat().st_size <= 8_000_000
    card = open_model("box").card
    assert "research only" in card.licence
    assert card.config.preset == "best"
    assert card.training.faces_by_source.keys() == {"lfpw", "helen", "afw"}


def test_it_finds_the_landmarks_of_real_faces(data_root: Path, tmp_path: Path) -> None:
    """It was trained on these: what is tested is that boxes, crops, weights and coordinates fit each other."""
    for annotation in sorted((data_root / "300w" / "lfpw" / "trainset").glob("*.pts"))[:12]:
        for path in (annotation, annotation.with_suffix(".jpg")):
            shutil.copy(path, tmp_path)
    faces = evaluate(open_model("box"), [str(tmp_path)], "all", 0).faces
    Path(tmp_path, "face.onnx").write_bytes(exported_once(PRESETS["best"]))
    for face, same in zip(
        faces, evaluate(open_model(f"{tmp_path}/face.onnx"), [str(tmp_path)], "all", 0).faces, strict=True
    ):
        pixel = face.box.width * 1.5 / 200
        assert np.abs(face.stages - same.stages).max() < 1e-3 * pixel, "both back ends agree"
    assert len(faces) == 12
    errors = np.stack([face.nrmse_ip for face in faces]).mean(axis=0)
    assert errors[-1] < 0.04
    assert errors[-1] < 0.75 * errors[1], "the stages improve on the initial shape"


@pytest.mark.parametrize("one_look", [False, True])
def test_it_finds_the_landmarks_of_a_photo_of_no_dataset(one_look: bool) -> None:
    """Without research data: a portrait in the public domain that comes with Matplotlib. A person looked where eyes,
    nose, mouth and chin are."""
    model, photo = open_model("box", one_look), cbook.get_sample_data("grace_hopper.jpg", asfileobj=False)
    rgb = decode(Path(str(photo)).read_bytes()).rgb
    (face,) = open_detector("hog")(rgb, 40)
    frame = frame_around(face.box, model.card.crop_margin)
    (shape,) = model.predictor.predict(crop(rgb, frame)[None]).shapes
    found = frame.shape_to_upright(shape)
    seen = {
        "one eye": (slice(36, 42), (221, 190)),
        "the other": (slice(42, 48), (305, 188)),
        "below the nose": (slice(33, 34), (268, 252)),
        "one corner of the mouth": (slice(48, 49), (229, 281)),
        "the other corner": (slice(54, 55), (308, 280)),
        "the chin": (slice(8, 9), (268, 331)),
    }
    away = {what: np.linalg.norm(found[points].mean(axis=0) - place) for what, (points, place) in seen.items()}
    assert max(away.values()) < 0.1 * (305 - 221), away


def test_it_finds_the_landmarks_of_drawn_faces(annotated: Path) -> None:
    """Without research data: it never saw a drawn face, so they are found roughly."""
    faces = evaluate(open_model("box"), [str(annotated)], "all", 0).faces
    assert np.median([face.nrmse_ip[-1] for face in faces]) < 0.2


def test_the_one_that_saw_synthetic_faces_alone_is_free_and_where_best_starts() -> None:
    free = open_model("synthetic").card
    assert (PACKAGED["synthetic"] / WEIGHTS).stat().st_size <= 8_000_000
    assert free.licence.startswith("Apache-2.0")
    assert free.training.faces_by_source.keys() == {"synthetic"}
    best = TrainSettings(preset="best")
    settings, network = started_from(None, best)
    assert settings.init is not None
    assert settings.init.version == free.version
    assert network is not None
    TrainState(settings, np.zeros((68, 2), np.float32)).start_from(network)
    assert settings.model_copy(update={"init": None}) == best
    assert started_from("none", best) == (best, None)
    assert started_from(None, TrainSettings()) == (TrainSettings(), None)


def test_what_starts_from_the_box_names_what_the_box_had_started_from() -> None:
    box, synthetic = (started_from(name, TrainSettings())[0].init for name in ("box", "synthetic"))
    assert box is not None
    assert synthetic is not None
    assert box.init == synthetic
    assert box.init.faces_by_source.keys() == {"synthetic"}
    assert "init" not in synthetic.model_dump(), "it would name runs of before anew"
