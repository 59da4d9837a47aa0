import json
import os
import shutil
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch

from msrrn.artifact import CARD, WEIGHTS, load
from msrrn.config import PRESETS
from msrrn.lean import one_sided
from msrrn.network import MSRRN
from msrrn.provenance import InitialWeights
from pipelines.dataset.loader import Loader
from pipelines.dataset.manifest import Manifest
from pipelines.dataset.prepare import prepare
from pipelines.errors import UsageError, UserError
from pipelines.forgotten import Forgotten, write_forgotten
from pipelines.models import PHOTO_DIGITS, initial_weights, read_model
from pipelines.settings import NAME, TrainSettings
from pipelines.storage import Store
from pipelines.synthesis import SYNTHETIC
from pipelines.training import on_ray, outcome, validation
from pipelines.training import train as station
from pipelines.training.checkpoints import RUN, STATE, Checkpoints
from pipelines.training.epochs import Epoch, OnEpoch
from pipelines.training.loop import DivergedError
from pipelines.training.outcome import HISTORY, TrainedModel
from pipelines.training.state import TrainState
from pipelines.training.train import Followed, resumable, run_name, train_model
from pipelines.training.validation import calibrate, lean, validate
from tests.factories import SETTINGS, TINY, times, tree

Dataset = tuple[Store, Manifest]

QUICK = TrainSettings(epochs=2, batch=8)


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """A small network, in this process."""
    monkeypatch.setitem(PRESETS, "paper", TINY)


def telling(progress: OnEpoch) -> Followed:
    return lambda: nullcontext(progress)


def local(trained: TrainedModel) -> Path:
    path = trained.artifact.local_path()
    assert path is not None
    return path


@pytest.mark.usefixtures("tiny")
def test_a_run_makes_an_artifact_that_loads(dataset: Dataset, tmp_path: Path) -> None:
    seen: list[Epoch] = []
    trained = train_model(dataset[0].url, str(tmp_path), QUICK, 0, telling(seen.append))
    assert not trained.reused
    assert trained.name == run_name(dataset[1], QUICK)
    assert local(trained) == tmp_path / "models" / trained.name
    assert sorted(tree(tmp_path)) == [f"models/{trained.name}/{key}" for key in (CARD, HISTORY, WEIGHTS)]
    assert not (tmp_path / "runs" / trained.name).exists()
    assert [epoch.metrics for epoch in seen] == list(trained.history)
    assert all(epoch.examples for epoch in seen)
    assert trained.history == json.loads((local(trained) / HISTORY).read_bytes())
    card = read_model(local(trained)).card
    assert card == trained.card
    assert card.training.dataset == dataset[1].name
    assert card.training.faces == 8
    assert (
        read_model(local(trained)).photos
        == {photo[:PHOTO_DIGITS] for photo in Loader(*dataset, "train").photos()}
        > set()
    )
    held_out = {photo[:PHOTO_DIGITS] for photo in Loader(*dataset, "val").photos()}
    assert held_out
    assert not held_out & read_model(local(trained)).photos
    assert card.training.settings.model_dump() == QUICK.model_dump()
    assert card.crop_margin == dataset[1].settings["crop_margin"]
    # They are those of the weights as they are stored, and of what annotations lean to, which the history knows not.
    model = load(local(trained))[0]
    assert model.lean.any()
    for name, figure in validate(model, Loader(*dataset, "val")).items():
        assert card.metrics[name] == pytest.approx(figure, rel=1e-3)
    assert str(tmp_path) not in (local(trained) / CARD).read_text()


@pytest.mark.usefixtures("tiny")
def test_the_confidence_is_calibrated_on_faces_that_were_not_learned(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("msrrn.calibration.LEAST_FACES", 2)
    card = train_model(dataset[0].url, str(tmp_path), QUICK, 0).card
    model = load(tmp_path / "models" / str(card.training.run))[0]
    of_val, of_train = (calibrate(model, Loader(*dataset, split)).constant for split in ("val", "train"))
    # Weights are stored with fewer digits than they had when it was fitted.
    assert abs(card.calibration.constant - of_val) < 0.1 * abs(of_val - of_train)
    assert card.one_look_calibration is None  # it looks once as it is


@pytest.mark.usefixtures("tiny")
def test_it_is_calibrated_for_one_look_too_where_a_network_looks_twice(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("msrrn.calibration.LEAST_FACES", 2)
    monkeypatch.setitem(PRESETS, "paper", PRESETS["paper"].model_copy(update={"mirrored": True}))
    card = train_model(dataset[0].url, str(tmp_path), QUICK, 0).card
    model = load(tmp_path / "models" / str(card.training.run))[0]
    val = Loader(*dataset, "val")
    twice, once = (calibrate(network, val).constant for network in (model, model.looking_once()))
    assert card.one_look_calibration is not None
    apart = abs(twice - once)
    assert apart > 1e-4
    assert abs(card.calibration.constant - twice) < 0.1 * apart
    assert abs(card.one_look_calibration.constant - once) < 0.1 * apart


@pytest.mark.usefixtures("tiny")
def test_a_second_call_finds_the_model(dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = train_model(dataset[0].url, str(tmp_path), QUICK, 0)
    before = times(tmp_path)
    monkeypatch.setattr(station, "train", lambda *arguments: pytest.fail("it trained again"))
    second = train_model(dataset[0].url, str(tmp_path), QUICK, 0)
    assert second.reused
    assert (second.name, second.card, second.history) == (first.name, first.card, first.history)
    assert times(tmp_path) == before


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize(
    ("file", "data"),
    [
        (WEIGHTS, None),
        (WEIGHTS, b"cut off"),
        (HISTORY, None),
        (HISTORY, b"[]"),
        (CARD, b'{"format": 1}'),
        (CARD, b"{"),
    ],
)
def test_a_damaged_artifact_is_not_taken_for_a_model(
    file: str, data: bytes | None, dataset: Dataset, tmp_path: Path
) -> None:
    trained = train_model(dataset[0].url, str(tmp_path), QUICK, 0)
    place = local(trained) / file
    if data is None:
        place.unlink()
    else:
        place.write_bytes(data)
    told = rf"{trained.name} is a damaged artifact \((?!\d+ validation error).*\): copy it again, or delete it"
    with pytest.raises(UserError, match=told):
        train_model(dataset[0].url, str(tmp_path), QUICK, 0)


@pytest.mark.usefixtures("tiny")
def test_a_training_that_diverged_keeps_what_it_had_before(dataset: Dataset, tmp_path: Path) -> None:
    diverging = QUICK.model_copy(update={"learning_rate": 1e6})
    for _ in range(2):  # on the same machine it does so again
        with pytest.raises(DivergedError, match=rf"is kept as it was before, at {tmp_path}/runs/\w+: call again"):
            train_model(dataset[0].url, str(tmp_path), diverging, 0)
    assert resumable(str(tmp_path)) == (dataset[0].absolute().url, diverging, NAME)


@pytest.mark.usefixtures("tiny")
def test_weights_that_no_artifact_holds_are_not_published(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def absurd(state: TrainState, *_: object) -> None:
        next(state.averaged.parameters()).data.fill_(1e6)

    monkeypatch.setattr(station, "train", absurd)
    with pytest.raises(DivergedError, match="beyond 65504; lower --learning-rate"):
        train_model(dataset[0].url, str(tmp_path), QUICK, 0)
    assert not (tmp_path / "models").exists()


@pytest.mark.usefixtures("tiny")
def test_the_same_run_elsewhere_gives_the_same_artifact(dataset: Dataset, tmp_path: Path) -> None:
    copied = shutil.copytree(str(dataset[0].parent.local_path()), tmp_path / "copy") / dataset[1].name
    first = train_model(dataset[0].url, str(tmp_path / "a"), QUICK, 0)
    second = train_model(str(copied), str(tmp_path / "b"), QUICK, 0)
    assert tree(local(first)) == tree(local(second))


def test_a_run_is_named_by_its_shards_and_settings(dataset: Dataset) -> None:
    manifest = dataset[1]
    names = {
        run_name(manifest, QUICK),
        run_name(manifest.model_copy(update={"units": manifest.units[1:]}), QUICK),
        run_name(manifest, QUICK.model_copy(update={"seed": 1})),
        run_name(manifest, QUICK.model_copy(update={"epochs": 3})),
    }
    assert len(names) == 4


@pytest.mark.usefixtures("tiny")
def test_a_bad_annotation_that_came_in_trains_nothing_anew(annotated: Path, dataset: Dataset, tmp_path: Path) -> None:
    grown = shutil.copytree(annotated, tmp_path / "grown")
    first = next(grown.rglob("*.jpg"))
    shutil.copy(first, first.with_name("late.jpg"))
    first.with_name("late.pts").write_text("version: 1\nn_points: 68\n{\nnonsense\n}\n")
    store, manifest = prepare([str(grown)], str(tmp_path / "datasets"), SETTINGS, workers=1)
    assert manifest.name != dataset[1].name
    assert len(manifest.left_out) == len(dataset[1].left_out) + 1

    before = train_model(dataset[0].url, str(tmp_path / "out"), QUICK, 0)
    after = train_model(store.url, str(tmp_path / "out"), QUICK, 0)
    assert (after.reused, after.name) == (True, before.name)


@pytest.mark.usefixtures("tiny")
def test_the_card_is_published_last(dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed at any file, a run has no artifact yet: the next call makes it."""
    written: list[str] = []
    publish = Store.publish

    full = True

    def failing(store: Store, key: str, data: bytes) -> None:
        if key == CARD and full:
            raise UserError("disk full")
        written.append(key)
        publish(store, key, data)

    monkeypatch.setattr(Store, "publish", failing)
    with pytest.raises(UserError, match="disk full"):
        train_model(dataset[0].url, str(tmp_path), QUICK, 0)
    assert written == [RUN, STATE, STATE, HISTORY, WEIGHTS]
    full = False
    written.clear()
    assert not train_model(dataset[0].url, str(tmp_path), QUICK, 0).reused
    assert written == [RUN, HISTORY, WEIGHTS, CARD]


@pytest.mark.usefixtures("tiny")
def test_a_run_that_broke_off_goes_on_from_its_checkpoint(dataset: Dataset, tmp_path: Path) -> None:
    url, settings = dataset[0].url, QUICK.model_copy(update={"epochs": 4})
    whole = train_model(url, str(tmp_path / "whole"), settings, 0)
    out = str(tmp_path / "broken")

    def breaks(epoch: Epoch) -> None:
        if epoch.metrics["epoch"] == 2:
            raise OSError("the log is full")

    with pytest.raises(OSError, match="the log is full"):
        train_model(url, out, settings, 0, telling(breaks))
    assert sorted(tree(tmp_path / "broken")) == [f"runs/{whole.name}/{key}" for key in (RUN, STATE)]
    assert resumable(out) == (url, settings, NAME)
    later: list[Epoch] = []
    assert not train_model(url, out, settings, 0, telling(later.append)).reused
    assert [(epoch.metrics["epoch"], bool(epoch.examples)) for epoch in later] == [(3, False), (4, True)]
    assert tree(tmp_path / "broken") == tree(tmp_path / "whole")
    with pytest.raises(UserError, match="no unfinished run to go on with"):
        resumable(out)


@pytest.mark.usefixtures("tiny")
def test_a_run_may_start_from_the_weights_of_another_and_its_card_says_so(dataset: Dataset, tmp_path: Path) -> None:
    first = train_model(dataset[0].url, str(tmp_path), QUICK, 0)
    network, init = initial_weights(read_model(local(first)))
    assert (init.version, init.dataset, init.licence) == (first.card.version, dataset[1].name, first.card.licence)
    elsewhere = "f" * PHOTO_DIGITS  # a photo that the first had seen, and this dataset has not
    init = init.model_copy(update={"photos": (*init.photos, elsewhere)})
    settings = TrainSettings(epochs=2, batch=8, learning_rate=1e-9, init=init)
    whole = train_model(dataset[0].url, str(tmp_path / "whole"), settings, 0, init=network)
    broken = str(tmp_path / "broken")

    def breaks(epoch: Epoch) -> None:
        raise OSError("the log is full")

    with pytest.raises(OSError, match="the log is full"):
        train_model(dataset[0].url, broken, settings, 0, telling(breaks), network)
    url, told, _ = resumable(broken)
    resumed = train_model(url, broken, told, 0)
    assert (local(whole) / WEIGHTS).read_bytes() == (local(resumed) / WEIGHTS).read_bytes()
    assert whole.name not in (first.name, run_name(dataset[1], settings.model_copy(update={"init": None})))
    assert whole.card.training.settings.init == init.model_copy(update={"photos": ()})
    for trained in (whole, resumed):
        assert read_model(local(trained)).photos == {*read_model(local(first)).photos, elsewhere}
    for name, weight in load(local(whole))[0].named_parameters():  # with next to no steps, it is still there
        torch.testing.assert_close(weight, network.get_parameter(name), atol=1e-4, rtol=1e-2)


@pytest.mark.usefixtures("tiny")
def test_what_annotations_lean_beside_its_start_is_taken_off_where_samples_are_perturbed(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[TrainState] = []

    def first(state: TrainState, *arguments: Any) -> None:
        begun.append(state)
        raise KeyboardInterrupt

    monkeypatch.setattr(station, "train", first)
    monkeypatch.setattr(validation, "LEAST_LEANING", 8)
    init = InitialWeights(version="0", dataset="0", faces_by_source={}, licence="any")
    start = MSRRN(TINY, torch.from_numpy(Loader(*dataset, "train").mean_shape()))
    start.lean.fill_(0.3)  # its own, which it has of other annotations
    for perturbed in (True, False):
        settings = QUICK.model_copy(update={"init": init, "perturbed": perturbed})
        with pytest.raises(KeyboardInterrupt):
            train_model(dataset[0].url, str(tmp_path), settings, 0, init=start)
    off, plain = begun
    assert not plain.model.lean.any()
    torch.testing.assert_close(off.averaged.lean, off.model.lean)
    start.lean.zero_()
    torch.testing.assert_close(off.model.lean, one_sided(lean(start, Loader(*dataset, "train")), start.mirror))
    assert off.model.lean.any()
    monkeypatch.setattr(validation, "LEAST_LEANING", 9)
    assert not validation.lean_to_take_off(start, Loader(*dataset, "train")).any()


@pytest.mark.usefixtures("tiny")
def test_the_lean_that_is_published_is_found_anew_and_whole(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(validation, "LEAST_LEANING", 8)
    init = InitialWeights(version="0", dataset="0", faces_by_source={}, licence="any")
    settings = QUICK.model_copy(update={"init": init, "perturbed": True})
    data = Loader(*dataset, "train")
    begun = MSRRN(TINY, torch.from_numpy(data.mean_shape()))
    taken_off = validation.lean_to_take_off(begun, data)
    trained = train_model(dataset[0].url, str(tmp_path), settings, 0, init=begun)
    model = load(local(trained))[0]
    published = model.lean.clone()
    torch.testing.assert_close(published, lean(model, data), atol=1e-4, rtol=1e-2)
    for other in (taken_off, one_sided(published, model.mirror)):
        assert (published - other).abs().max() > 1e-3


@pytest.mark.usefixtures("tiny")
def test_a_start_that_does_not_fit_is_refused(dataset: Dataset, tmp_path: Path) -> None:
    init = InitialWeights(version="0", dataset="0", faces_by_source={}, licence="any")
    settings = QUICK.model_copy(update={"init": init})
    other = MSRRN(TINY.model_copy(update={"hidden": 8}))
    with pytest.raises(UserError, match="give --init another model"):
        train_model(dataset[0].url, str(tmp_path), settings, 0, init=other)
    best = MSRRN(TINY.model_copy(update={"preset": "best"}))
    with pytest.raises(UserError, match=r"preset best .* give --preset best, or --init another model"):
        train_model(dataset[0].url, str(tmp_path), settings, 0, init=best)
    with pytest.raises(UserError, match="with --dataset and --init again"):
        train_model(dataset[0].url, str(tmp_path), settings, 0)
    assert not tree(tmp_path)


def test_validation_photos_that_its_start_had_learned_are_counted(dataset: Dataset) -> None:
    val = Loader(*dataset, "val")
    of = InitialWeights(version="0", dataset="0", faces_by_source={}, licence="any")
    learned = of.model_copy(update={"photos": (val.photos()[0][:PHOTO_DIGITS], "0" * PHOTO_DIGITS)})
    assert [outcome._seen(val, init) for init in (None, of, learned)] == [{}, {}, {outcome.SEEN: 1}]


def test_a_licence_follows_the_weights(dataset: Dataset) -> None:
    synthetic = dataset[1].model_copy(update={"faces_by_source": {SYNTHETIC: {"train": 8}}})
    real = dataset[1].model_copy(update={"faces_by_source": {"afw": {"train": 8}}})
    free, restricted = (outcome._licence(manifest, None) for manifest in (synthetic, real))
    of = InitialWeights(version="0", dataset="0", faces_by_source={}, licence=free)
    research = of.model_copy(update={"licence": restricted})
    other = of.model_copy(update={"licence": "ask its makers"})
    assert [outcome._licence(synthetic, init) for init in (of, research, other)] == [
        free,
        restricted,
        "ask its makers",
    ]
    assert [outcome._licence(real, init) for init in (of, research)] == [restricted, restricted]
    both = f"{restricted}; and that of the model it started from: ask its makers"
    assert outcome._licence(real, other) == both
    after = of.model_copy(update={"licence": both})
    assert [outcome._licence(manifest, after) for manifest in (synthetic, real)] == [both, both]


@pytest.mark.usefixtures("tiny")
def test_of_two_at_once_one_trains_and_the_other_says_what_it_waits_for(dataset: Dataset, tmp_path: Path) -> None:
    """Each trained all of it, and the later found the checkpoint gone that the first one had removed at its end."""
    begun, heard = threading.Event(), threading.Event()
    notes: list[str] = []

    def first(epoch: Epoch) -> None:
        begun.set()
        if epoch.metrics["epoch"] == QUICK.epochs:
            assert heard.wait(600)

    def wait(note: str) -> None:
        notes.append(note)
        if note:
            heard.set()

    def never(epoch: Epoch) -> None:
        raise AssertionError("it trained, too")

    with ThreadPoolExecutor() as pool:
        one = pool.submit(train_model, dataset[0].url, str(tmp_path), QUICK, 0, telling(first))
        assert begun.wait(600)
        other = train_model(dataset[0].url, str(tmp_path), QUICK, 0, telling(never), on_wait=wait)
        assert (one.result().reused, other.reused) == (False, True)
    assert notes[-1] in ("epoch 1 of 2", "epoch 2 of 2")
    assert list((tmp_path / "runs").iterdir()) == []


@pytest.mark.usefixtures("tiny")
def test_a_training_that_was_frozen_takes_the_model_of_who_took_over(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray's workers may go on meanwhile; what they wrote is gone, as it is done."""
    there = train_model(dataset[0].url, str(tmp_path / "elsewhere"), QUICK, 0)

    def frozen(*told: Any) -> TrainState:
        shutil.copytree(local(there), tmp_path / "models" / there.name)
        shutil.rmtree(tmp_path / "runs")
        raise UserError("it left no checkpoint")

    monkeypatch.setattr(station, "train_on_ray", frozen)
    trained = train_model(dataset[0].url, str(tmp_path), QUICK, 1)
    assert trained.reused
    assert trained.card == there.card


@pytest.mark.usefixtures("tiny")
def test_what_a_finished_run_left_behind_is_removed(dataset: Dataset, tmp_path: Path) -> None:
    """Killed between the card and the last deletion."""
    trained = train_model(dataset[0].url, str(tmp_path), QUICK, 0)
    left = Checkpoints(Store(f"{tmp_path}/runs/{trained.name}"))
    left.begin(dataset[0], QUICK, NAME)
    left.place.publish("ray/snapshot.json", b"{}")
    found, settings, _ = resumable(str(tmp_path))
    assert train_model(found, str(tmp_path), settings, 0).reused
    assert list((tmp_path / "runs").iterdir()) == []


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize("workers", [0, 2])
def test_a_damaged_checkpoint_is_named(dataset: Dataset, tmp_path: Path, workers: int) -> None:
    place = tmp_path / "runs" / run_name(dataset[1], QUICK)
    place.mkdir(parents=True)
    Checkpoints(Store(str(place))).write(TrainState(QUICK, np.zeros((68, 2), np.float32)))
    flipped = bytearray((place / STATE).read_bytes())
    flipped[len(flipped) // 2] ^= 64  # of a weight
    for damaged in (b"PK", bytes(flipped)):
        (place / STATE).write_bytes(damaged)
        with pytest.raises(UserError, match=rf"{place / STATE} is damaged, .*: delete it to begin anew"):
            train_model(dataset[0].url, str(tmp_path), QUICK, workers)
    (place / STATE).unlink()
    assert not train_model(dataset[0].url, str(tmp_path), QUICK, 0).reused


def test_a_run_of_another_version_is_not_resumed(dataset: Dataset, tmp_path: Path) -> None:
    Checkpoints(Store(f"{tmp_path}/runs/0123456789abcdef")).begin(dataset[0], QUICK, NAME)
    with pytest.raises(UserError, match=r"run 0123456789abcdef was begun by another version of msrrn, or "):
        resumable(str(tmp_path))


def test_a_run_whose_dataset_has_moved_is_told_how_it_goes_on(tmp_path: Path) -> None:
    Checkpoints(Store(f"{tmp_path}/runs/0123456789abcdef")).begin(Store(f"{tmp_path}/moved"), QUICK, NAME)
    with pytest.raises(UserError, match=r"moved: no manifest.*\nRun 0123456789abcdef .* call `train` with --dataset"):
        resumable(str(tmp_path))


def test_a_run_that_learned_from_what_was_forgotten_is_told_to_be_deleted(tmp_path: Path) -> None:
    Checkpoints(Store(f"{tmp_path}/runs/0123456789abcdef")).begin(Store(f"{tmp_path}/old"), QUICK, NAME)
    write_forgotten(Store(str(tmp_path)), Forgotten(renamed={"old": "new"}))
    said = rf"it is new without them: give that\nRun .* learned from them: delete {tmp_path}/runs/0123456789abcdef,"
    with pytest.raises(UserError, match=said):
        resumable(str(tmp_path))


def test_calls_that_cannot_work_are_refused(dataset: Dataset, tmp_path: Path) -> None:
    url = dataset[0].url
    with pytest.raises(UsageError, match=r"--batch 64 is more than the \d+ training samples .* more --copies"):
        train_model(url, str(tmp_path), TrainSettings(), 3)
    with pytest.raises(UserError, match=r"no manifest\.json, so it is no finished dataset"):
        train_model(str(tmp_path), str(tmp_path), QUICK, 0)
    assert tree(tmp_path) == {}


SHARED = TrainSettings(preset="best", epochs=3, batch=16, learning_rate=1e-4, checkpoint_steps=1)
"""So slow that the loss falls from the first step on: where it jumps about, each step multiplies roundings."""


def assert_alike(trained: TrainedModel, alone: TrainedModel) -> None:
    """Workers share every batch, so figures differ by rounding alone: measured, by one part in a million."""
    for row, other in zip(trained.history, alone.history, strict=True):
        assert row == pytest.approx(other, rel=1e-4)


def test_two_workers_train_as_one_does_though_one_is_killed_and_ctrl_c_stops_both(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ray_of_two: int
) -> None:
    killed: list[int] = []
    epochs: list[float] = []
    needless: list[str] = []

    def kill_one_then_stop(epoch: Epoch) -> None:
        epochs.append(epoch.metrics["epoch"])
        workers = [process for process in _descendants() if "RayTrainWorker" in " ".join(process.info["cmdline"])]
        needless.extend(_needless())
        if not killed:
            killed.append(workers[0].pid)
            os.kill(workers[0].pid, signal.SIGKILL)
        elif len(epochs) == 2:  # one that is killed while it measures an epoch tells nothing of it
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(on_ray, "WORKER_FAILURES", 0)  # Ray gives up, and there was a checkpoint since it began
    monkeypatch.chdir(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        train_model(dataset[0].url, "both", SHARED, ray_of_two, telling(kill_one_then_stop))
    assert killed
    assert not needless
    found, settings, _ = resumable("both")
    later: list[float] = []
    resumed = train_model(found, "both", settings, 0, telling(lambda epoch: later.append(epoch.metrics["epoch"])))
    assert not {*epochs} & {*later}
    assert_alike(resumed, train_model(dataset[0].url, "alone", SHARED, 0))
    assert read_model(local(resumed)).card.version == resumed.card.version
    assert not (tmp_path / "both" / "runs" / resumed.name).exists()


def _needless() -> Iterator[str]:
    """What a training on Ray does without, and costs seconds: a process more, and queues that have imported torch."""
    for process in _descendants():
        (what, *_) = process.info["cmdline"] or [""]
        with suppress(OSError):
            modules = Path(f"/proc/{process.pid}/maps").read_text()
            if "Preemption" in what or ("Queue" in what and "libtorch" in modules):
                yield what


@pytest.mark.line
@pytest.mark.usefixtures("ray_of_two")
def test_a_training_on_ray_that_is_cancelled_ends_at_a_checkpoint(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By what Prefect raises in a flow at SIGTERM: its workers were left to fail, and to be started again."""
    from ray.train.torch import TorchTrainer

    ended: list[object] = []
    fit = TorchTrainer.fit
    monkeypatch.setattr(TorchTrainer, "fit", lambda trainer: ended.append(fit(trainer)))

    class CancelledError(BaseException):
        pass

    def cancel(number: int, frame: object) -> None:
        raise CancelledError

    before = signal.signal(signal.SIGTERM, cancel)
    try:
        with pytest.raises(CancelledError):
            train_model(
                dataset[0].url,
                str(tmp_path),
                SHARED.model_copy(update={"epochs": 1000}),
                1,
                telling(lambda epoch: os.kill(os.getpid(), signal.SIGTERM) if epoch.metrics["epoch"] == 1 else None),
            )
    finally:
        signal.signal(signal.SIGTERM, before)
    assert len(ended) == 1
    assert resumable(str(tmp_path))[1].epochs == 1000


@pytest.mark.line
@pytest.mark.usefixtures("ray_of_two")
def test_a_loss_that_jumps_ends_a_training_on_ray_at_once(dataset: Dataset, tmp_path: Path) -> None:
    settings = TrainSettings(epochs=2, batch=16, learning_rate=1e6)
    with pytest.raises(DivergedError, match=r"the loss is .* at epoch 1, batch 2 of 2 .*; lower --learning-rate"):
        train_model(dataset[0].url, str(tmp_path), settings, 1)


@pytest.mark.line
@pytest.mark.usefixtures("ray_of_two")
def test_a_checkpoint_that_cannot_be_written_ends_a_training_on_ray_at_once(dataset: Dataset, tmp_path: Path) -> None:
    """As on a full disk: Ray started the workers again and again, and each trained up to it."""

    def obstruct(epoch: Epoch) -> None:
        (state,) = tmp_path.glob(f"runs/*/{STATE}")
        with suppress(OSError):  # of a checkpoint in between: after the next epoch, then
            state.unlink()
            state.mkdir()

    settings = SHARED.model_copy(update={"epochs": 1000})
    with pytest.raises(UserError, match=rf"^{tmp_path}/runs/\w+/{STATE}: Is a directory"):
        train_model(dataset[0].url, str(tmp_path), settings, 1, telling(obstruct))


@pytest.mark.usefixtures("ray_of_two")
def test_a_shard_that_is_gone_ends_a_training_on_ray_at_once(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However often Ray would try it again: it is told as it is without Ray."""
    place = tmp_path / "datasets"
    shutil.copytree(Path(dataset[0].url).parent, place)
    shutil.rmtree(place / "shards")
    monkeypatch.setattr(on_ray, "WORKER_FAILURES", 10**9)
    for workers in (0, 1):
        with pytest.raises(UserError, match=rf"^{place}/shards/\S+\.parquet is gone: run the same"):
            train_model(f"{place}/{dataset[1].name}", str(tmp_path / "out"), SHARED, workers)


def _descendants() -> list[Any]:
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            process.info = {"cmdline": process.cmdline()}
            found.append(process)
        except psutil.Error:
            continue
    return found


@pytest.mark.usefixtures("ray_of_two")
def test_a_training_on_ray_takes_no_other_checkpoint_for_its_end(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of who took over while this process was frozen, and is not as far."""
    from ray.train.torch import TorchTrainer

    place = Store(f"{tmp_path}/runs/{run_name(dataset[1], SHARED)}")

    def overtaken(trainer: TorchTrainer) -> None:
        Checkpoints(place).write(TrainState(SHARED, np.zeros((68, 2), np.float32)))

    monkeypatch.setattr(TorchTrainer, "fit", overtaken)
    with pytest.raises(UserError, match="left no last checkpoint"):
        train_model(dataset[0].url, str(tmp_path), SHARED, 1)
    assert not (tmp_path / "models").exists()
