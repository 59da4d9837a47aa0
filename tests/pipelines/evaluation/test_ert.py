"""dlib's trainer on a dataset's crops."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from msrrn.metrics import nrmse_ip
from pipelines.dataset.loader import Loader
from pipelines.dataset.manifest import MANIFEST, Manifest
from pipelines.errors import UserError
from pipelines.evaluation import ert as station
from pipelines.evaluation.ert import trained_ert
from pipelines.storage import Store


def test_it_learns_the_faces_and_is_found_again(
    dataset: tuple[Store, Manifest], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, manifest = dataset
    told: list[int] = []
    found = trained_ert(store.url, tmp_path / "ert", 1, cascades=3, on_training=told.append)
    loader = Loader(store, manifest, "train")
    faces = loader.originals()
    images, shapes = faces.image_200.numpy(), faces.landmarks.numpy()
    assert len(images) == manifest.counts["train"]
    predicted = found.predict(images)
    assert predicted.shape == (len(images), 68, 2)
    mean = np.broadcast_to(loader.mean_shape(), shapes.shape)
    assert nrmse_ip(predicted, shapes).mean() < 0.5 * nrmse_ip(mean, shapes).mean()
    assert found.predict(images[:0]).shape == (0, 68, 2)
    monkeypatch.setattr(station, "_train", lambda *_: pytest.fail("it was trained again"))
    assert trained_ert(store.url, tmp_path / "ert", 1, cascades=3, on_training=told.append) == found
    assert told == [len(images)]
    assert [path.name for path in (tmp_path / "ert").iterdir()] == [found.file.name]
    monkeypatch.chdir(tmp_path)
    assert trained_ert(store.url, Path("ert"), 1, cascades=3) == found  # for a worker in another place, too
    with pytest.raises(UserError, match=r"other\.dat is not on this machine: give --ert-folder"):
        replace(found, file=found.file.with_name("other.dat")).predict(images)


def test_what_changes_no_shard_is_nothing_to_train_on(
    dataset: tuple[Store, Manifest], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = trained_ert(dataset[0].url, tmp_path, 1, cascades=1)
    # Other photos are left out of it, or held out.
    renamed = dataset[1].model_copy(update={"name": "renamed", "left_out": []})
    other = Store(str(shutil.copytree(dataset[0].parent.url, tmp_path / "datasets"))).child("renamed")
    other.publish(MANIFEST, renamed.model_dump_json().encode())
    monkeypatch.setattr(station, "_train", lambda *_: pytest.fail("it was trained again"))
    assert trained_ert(other.url, tmp_path, 1, cascades=1).file == first.file


def test_a_folder_that_cannot_be_written_is_told_before_the_training(
    dataset: tuple[Store, Manifest], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(station, "_train", lambda *_: pytest.fail("it was trained"))
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="check the path and the rights there"):
        trained_ert(dataset[0].url, tmp_path / "file", 1)


def test_a_killed_training_leaves_nothing_behind(
    dataset: tuple[Store, Manifest], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(station, "_train", stopped)
    with pytest.raises(KeyboardInterrupt):
        trained_ert(dataset[0].url, tmp_path, 1)
    assert not list(tmp_path.iterdir())
