import io
import os
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from msrrn.network import PRESETS
from pipelines.errors import UserError
from pipelines.settings import TrainSettings
from pipelines.shards import Manifest, Samples, read_samples
from pipelines.storage import Store
from pipelines.training import VAL_KEYS, TrainState, epoch_batches, learning_rate, mean_shape, train
from tests.factories import TINY

SETTINGS = TrainSettings(epochs=4, batch=8)


@pytest.fixture(scope="module")
def samples(dataset: tuple[Store, Manifest]) -> tuple[Samples, Samples]:
    return read_samples(*dataset, "train"), read_samples(*dataset, "val")


@pytest.fixture(autouse=True)
def _tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is tested is the loop, so the network may be small."""
    monkeypatch.setitem(PRESETS, "paper", TINY)


def started(samples: tuple[Samples, Samples], settings: TrainSettings = SETTINGS) -> TrainState:
    return TrainState(settings, mean_shape(samples[0]))


def trained(
    samples: tuple[Samples, Samples],
    settings: TrainSettings = SETTINGS,
    on_epoch: Callable[[TrainState], None] = lambda state: None,
) -> TrainState:
    state = started(samples, settings)
    train(state, settings, *samples, on_epoch)
    return state


def weights(state: TrainState) -> dict[str, list[float]]:
    return {name: tensor.flatten().tolist() for name, tensor in state.model.state_dict().items()}


def test_the_mean_shape_is_that_of_faces_without_augmentation(samples: tuple[Samples, Samples]) -> None:
    data = samples[0]
    assert mean_shape(data).dtype == np.float32
    np.testing.assert_allclose(mean_shape(data), data.landmarks[data.copy == 0].mean(axis=0), atol=1e-6)
    assert np.abs(mean_shape(data) - data.landmarks.mean(axis=0)).max() > 1e-4


def test_the_loss_falls_and_every_epoch_is_measured(samples: tuple[Samples, Samples]) -> None:
    settings = SETTINGS.model_copy(update={"epochs": 10})
    history = trained(samples, settings).history
    assert [row["epoch"] for row in history] == list(range(1, 11))
    assert history[-1]["loss"] < 0.7 * history[0]["loss"]
    for row in history:
        assert set(row) == {"epoch", "loss", "learning_rate", *VAL_KEYS}
        assert all(np.isfinite(value) for value in row.values())


def test_a_run_without_validation_faces_has_no_validation_figures(samples: tuple[Samples, Samples]) -> None:
    data, val = samples
    none = Samples(val.image_200[:0], val.landmarks[:0], val.copy[:0], ())
    state = started(samples)
    train(state, SETTINGS, data, none, lambda now: None)
    assert set(state.history[-1]) == {"epoch", "loss", "learning_rate"}


def test_the_same_seed_gives_the_same_weights(samples: tuple[Samples, Samples]) -> None:
    first, second = trained(samples), trained(samples)
    assert weights(first) == weights(second)
    assert first.history == second.history
    assert weights(trained(samples, SETTINGS.model_copy(update={"seed": 1}))) != weights(first)


@pytest.mark.parametrize("epoch", [1, 3])
def test_a_resumed_run_ends_as_one_that_never_stopped(samples: tuple[Samples, Samples], epoch: int) -> None:
    checkpoints: list[bytes] = []
    whole = trained(samples, on_epoch=lambda state: checkpoints.append(state.to_bytes()))
    torch.rand(7)  # a process that resumes has another global random state
    resumed = started(samples)
    resumed.load_bytes(checkpoints[epoch - 1])
    epochs: list[int] = []
    train(resumed, SETTINGS, *samples, lambda state: epochs.append(state.epoch))
    assert epochs == list(range(epoch + 1, 5))
    assert weights(resumed) == weights(whole)
    assert resumed.history == whole.history


class Malicious:
    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, ("touch pwned",)


def test_a_checkpoint_runs_no_code(
    samples: tuple[Samples, Samples], tmp_path: os.PathLike[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    buffer = io.BytesIO()
    torch.save({"model": {}, "optimiser": {}, "epoch": Malicious(), "history": []}, buffer)
    state = started(samples)
    with pytest.raises(Exception, match=r"Weights only load failed|Unsupported"):
        state.load_bytes(buffer.getvalue())
    assert os.listdir(tmp_path) == []  # noqa: PTH208
    assert state.epoch == 0


@given(st.integers(4, 90), st.sampled_from([4, 8, 12]), st.integers(0, 3), st.integers(0, 5))
def test_ranks_share_the_batches_that_one_worker_sees(count: int, batch: int, epoch: int, seed: int) -> None:
    settings = TrainSettings(batch=batch, seed=seed)
    alone = [rows.tolist() for rows in epoch_batches(count, settings, epoch, 0, 1)]
    assert len(alone) == count // batch
    assert len({row for rows in alone for row in rows}) == batch * len(alone)
    for world in (2, 4):
        ranks = [epoch_batches(count, settings, epoch, rank, world) for rank in range(world)]
        together = [np.concatenate(shares).tolist() for shares in zip(*ranks, strict=True)]
        assert together == alone


def test_every_epoch_has_its_own_order() -> None:
    orders = [np.concatenate(list(epoch_batches(64, SETTINGS, epoch, 0, 1))).tolist() for epoch in range(3)]
    assert all(sorted(order) == list(range(64)) for order in orders)
    assert orders[0] != orders[1] != orders[2] != orders[0]


@pytest.mark.parametrize("warmup", [0.0, 0.15, 0.5])
def test_the_learning_rate_rises_to_its_peak_and_falls_to_nothing(warmup: float) -> None:
    settings = TrainSettings(epochs=20, learning_rate=0.1, warmup=warmup)
    rates = np.array([learning_rate(settings, epoch) for epoch in np.linspace(0, 20, 401)])
    peak = int(rates.argmax())
    assert rates[peak] == pytest.approx(0.1, rel=1e-3)
    assert peak == round(warmup * 400)
    assert (np.diff(rates[: peak + 1]) >= 0).all()
    assert (np.diff(rates[peak:]) < 0).all()
    assert rates.min() >= 0
    assert rates[-1] == pytest.approx(0, abs=1e-9)


def test_a_loss_that_is_no_number_names_its_batch(samples: tuple[Samples, Samples]) -> None:
    data = samples[0]
    landmarks = data.landmarks.copy()
    landmarks[list(epoch_batches(len(data), SETTINGS, 0, 0, 1))[2][0]] = np.nan
    state = started(samples)
    with pytest.raises(UserError, match=r"the loss is nan at epoch 1, batch 3 of 4; lower --learning-rate, or look"):
        train(state, SETTINGS, replace(data, landmarks=landmarks), samples[1], lambda now: None)
    assert state.history == []


def test_a_batch_that_does_not_fit_is_refused(samples: tuple[Samples, Samples]) -> None:
    with pytest.raises(UserError, match=r"batch 64 does not fit 32 samples on 1 workers: .* lower --batch"):
        trained(samples, SETTINGS.model_copy(update={"batch": 64}))
    with pytest.raises(UserError, match="batch 8 does not fit 32 samples on 3 workers"):
        train(started(samples), SETTINGS, *samples, lambda now: None, rank=0, world=3)
