import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from msrrn.artifact import CARD, Card
from msrrn.config import PRESETS
from msrrn.objective import OBJECTIVES
from msrrn.provenance import Recipe
from msrrn.synthetic import SyntheticPhoto
from pipelines import report as station
from pipelines.annotation.run import annotate
from pipelines.dataset.manifest import LeftOut, Manifest
from pipelines.evaluation.evaluate import evaluate
from pipelines.evaluation.results import shown as figures_shown
from pipelines.models import Model, read_model
from pipelines.page import Page
from pipelines.promotion.comparison import Meeting
from pipelines.promotion.decision import Decision
from pipelines.report import OBJECTIVE, Retraining, retraining_page
from pipelines.settings import AnnotateSettings, TrainSettings
from pipelines.storage import Store
from pipelines.training.outcome import TrainedModel
from pipelines.training.train import train_model
from tests.factories import TINY, picture, write_face, write_tar
from tests.pipelines.judged import judged, judged_face
from tests.pipelines.test_page import Document

HOSTILE = "<img src=x onerror=alert(1)>.jpg"


@pytest.fixture(scope="module")
def trained(dataset: tuple[Store, Manifest], tmp_path_factory: pytest.TempPathFactory) -> TrainedModel:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(PRESETS, "paper", TINY)
        out = str(tmp_path_factory.mktemp("work"))
        return train_model(dataset[0].url, out, TrainSettings(epochs=2, batch=8), 0)


@pytest.fixture(scope="module")
def network(trained: TrainedModel) -> Model:
    folder = trained.artifact.local_path()
    assert folder is not None
    return read_model(folder)


def job_of(
    dataset: tuple[Store, Manifest], trained: TrainedModel, network: Model, source: Path, archive: Path, out: Path
) -> Retraining:
    evaluation = evaluate(network, [str(source)], "all", 1)
    summary = annotate(str(archive), str(out), network, AnnotateSettings(), 1)
    manifest = dataset[1].model_copy(
        update={"left_out": [LeftOut(uri=HOSTILE, reason="empty", message="the file has no bytes")]}
    )
    decision = Decision(verdict="promoted", reason="This is the first model.")
    meeting = Meeting(evaluation, evaluation)
    return Retraining(manifest, trained, evaluation, meeting, decision, str(archive), Store(str(out)), summary)


def test_the_page_is_one_file_without_scripts_or_links(
    dataset: tuple[Store, Manifest],
    trained: TrainedModel,
    network: Model,
    annotated: Path,
    photos: tuple[list[SyntheticPhoto], list[SyntheticPhoto]],
    tmp_path: Path,
) -> None:
    write_tar(tmp_path / "in.tar", {HOSTILE: photos[0][0].jpeg, f"broken {HOSTILE}": b"", "b.jpg": photos[1][0].jpeg})
    job = job_of(dataset, trained, network, annotated, tmp_path / "in.tar", tmp_path / "out")
    html = retraining_page(job)
    document = Document(html)
    assert not [tag for tag, _ in document.tags if tag in {"script", "link", "iframe", "object"}]
    images = document.named("img")
    assert len(images) == 8
    assert all(image["src"].startswith("data:image/") for image in images)
    assert not [name for _, attributes in document.tags for name in attributes if name.startswith("on")]
    assert HOSTILE in document.text
    assert f"broken {HOSTILE}" in document.text
    assert "This is the first model." in document.text
    assert all(title in document.text for title in figures_shown(job.evaluation.table()["all"]))
    assert "light green: annotation, red: prediction" in document.text
    assert str(tmp_path) not in html
    assert retraining_page(job) == html


def test_an_archive_without_a_face_has_its_page(
    dataset: tuple[Store, Manifest], trained: TrainedModel, network: Model, annotated: Path, tmp_path: Path
) -> None:
    write_tar(tmp_path / "in.tar", {"sky.png": picture(np.full((90, 90, 3), 200, np.uint8)), "none.jpg": b""})
    job = job_of(dataset, trained, network, annotated, tmp_path / "in.tar", tmp_path / "out")
    assert job.summary is not None
    assert (job.summary.annotated, job.summary.no_face, job.summary.quarantined) == (0, 1, 1)
    assert "2 pictures = 0 annotated + 1 without a face + 1 quarantined" in retraining_page(job)


def test_photos_that_are_gone_since_are_left_off(
    dataset: tuple[Store, Manifest], trained: TrainedModel, network: Model, annotated: Path, tmp_path: Path
) -> None:
    source = Path(shutil.copytree(annotated, tmp_path / "source"))
    archive = Path(shutil.copytree(annotated / "helen", tmp_path / "archive"))
    job = job_of(dataset, trained, network, source, archive, tmp_path / "out")
    shutil.rmtree(source / "lfpw")
    for path in archive.rglob("*.jpg"):
        path.write_bytes(b"no longer a picture")
    assert "Annotated archive" in retraining_page(job)


def test_a_face_is_shown_on_its_own_photo(
    network: Model,
    photos: tuple[list[SyntheticPhoto], list[SyntheticPhoto]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two sources use the same name for two photos."""
    for source, photo in zip("ab", photos[0], strict=False):
        write_face(tmp_path / source, "x/same", photo.jpeg, photo.shapes[0])
    sources = [str(tmp_path / "a"), str(tmp_path / "b")]
    shown: list[tuple[int, ...]] = []
    monkeypatch.setattr(station, "face_tile", lambda rgb, box, shapes: shown.append(rgb.shape))
    for face in evaluate(network, sources, "all", 1).faces:
        station._face(face)
    assert sorted(shown) == sorted((photo.height, photo.width, 3) for photo in photos[0][:2])


def test_the_challenger_is_shown_beside_the_champion_on_the_faces_of_both() -> None:
    errors = (0.03, 0.03, 0.03, 0.12, 0.12)
    own = judged([judged_face(error, number) for number, error in enumerate(errors)])
    champion = judged([judged_face(0.04, number) for number in range(3)])  # it was trained on the other two
    meeting = Meeting(replace(own, faces=own.faces[:3]), champion)
    page = Page("", "")
    station._evaluation_section(page, own, meeting)
    text = " ".join(Document(page.html()).text.split())
    assert "all 5 0 6.60" in text
    assert "challenger 3 0 3.00" in text
    assert "champion 3 0 4.00" in text


def test_the_curve_of_the_loss_says_what_it_is_of(trained: TrainedModel) -> None:
    for objective, said in (("squared", "in squared crop sides"), ("log_nrmse_ip", "a fraction of the pupils'")):
        training = trained.card.training.model_copy(update={"settings": Recipe(objective=objective)})
        page = Page("", "")
        station._training_section(page, replace(trained, card=trained.card.model_copy(update={"training": training})))
        assert said in Document(page.html()).text
    assert OBJECTIVE.keys() == OBJECTIVES.keys()


def test_the_card_of_the_model_is_that_of_its_run(trained: TrainedModel) -> None:
    assert Card.model_validate_json(trained.artifact.read_bytes(CARD)) == trained.card
