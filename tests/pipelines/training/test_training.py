import io
import itertools
import os
from collections.abc import Callable
from contextlib import closing
from typing import Any, get_args

import numpy as np
import pytest
import torch

from msrrn.config import PRESETS, Preset
from msrrn.lean import one_sided, without_lean
from msrrn.metrics import nrmse_ip
from msrrn.network import MSRRN
from msrrn.perturbation import Draws, perturb
from msrrn.predictor import TorchPredictor
from pipelines.dataset.loader import Batch, Loader
from pipelines.errors import UserError
from pipelines.settings import TrainSettings
from pipelines.training import loop
from pipelines.training.loop import DivergedError, batches_seen, learning_rate, train, update
from pipelines.training.state import TrainState
from pipelines.training.validation import VAL_KEYS, lean, validate
from tests.factories import TINY, Dataset
from tests.msrrn.test_view import MEAN

SETTINGS = TrainSettings(epochs=4, batch=8)


Splits = tuple[Loader, Loader]


@pytest.fixture(scope="module")
def splits(dataset: Dataset) -> Splits:
    return Loader(*dataset, "train"), Loader(*dataset, "val")


@pytest.fixture(autouse=True)
def _tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is tested is the loop, so the network may be small."""
    monkeypatch.setitem(PRESETS, "paper", TINY)
    best = {"pooled": False, "patch": 16, "landmark_features": 4, "context": (4, 4, 8, 8), "context_features": 8}
    monkeypatch.setitem(PRESETS, "best", TINY.model_copy(update=best | {"mirrored": True}))


def started(splits: Splits, settings: TrainSettings = SETTINGS) -> TrainState:
    return TrainState(settings, splits[0].mean_shape())


def trained(
    splits: Splits,
    settings: TrainSettings = SETTINGS,
    on_epoch: Callable[[TrainState], None] = lambda state: None,
) -> TrainState:
    state = started(splits, settings)
    train(state, settings, *splits, on_epoch)
    return state


def weights(state: TrainState) -> dict[str, list[float]]:
    """What is trained, and what is published."""
    both = {"model": state.model.state_dict(), "averaged": state.averaged.state_dict()}
    return {f"{of}.{name}": tensor.flatten().tolist() for of in both for name, tensor in both[of].items()}


def test_the_loss_falls_and_every_epoch_is_measured(splits: Splits) -> None:
    settings = SETTINGS.model_copy(update={"epochs": 10})
    history = trained(splits, settings).history
    assert [row["epoch"] for row in history] == list(range(1, 11))
    assert history[-1]["loss"] < 0.7 * history[0]["loss"]
    for row in history:
        assert set(row) == {"epoch", "loss", "learning_rate", "gradient_norm", *VAL_KEYS}
        assert all(np.isfinite(value) for value in row.values())


def test_a_run_without_validation_faces_has_no_validation_figures(dataset: Dataset) -> None:
    store, manifest = dataset
    none = Loader(store, manifest.model_copy(update={"units": manifest.shards("train")}), "val")
    state = trained((Loader(*dataset, "train"), none))
    assert set(state.history[-1]) == {"epoch", "loss", "learning_rate", "gradient_norm"}


def test_validation_measures_every_face_once(splits: Splits, monkeypatch: pytest.MonkeyPatch) -> None:
    state = started(splits)
    (batch,) = splits[1].in_order(64)
    stages = TorchPredictor(state.model).predict(batch.image_200.numpy()).stages
    whole = nrmse_ip(stages, batch.landmarks.numpy()[:, None]).mean(axis=0)
    assert list(validate(state.model, splits[1]).values()) == pytest.approx(whole.tolist(), rel=1e-6)
    in_order = Loader.in_order
    monkeypatch.setattr(Loader, "in_order", lambda self, batch, rank, world: in_order(self, 1, rank, world))
    assert list(validate(state.model, splits[1]).values()) == pytest.approx(whole.tolist(), rel=1e-6)


def test_the_same_seed_gives_the_same_weights(splits: Splits) -> None:
    first, second = trained(splits), trained(splits)
    assert weights(first) == weights(second)
    assert first.history == second.history
    assert weights(trained(splits, SETTINGS.model_copy(update={"seed": 1}))) != weights(first)


@pytest.mark.parametrize("preset", get_args(Preset))
@pytest.mark.parametrize("every", [1, 3])
def test_a_resumed_run_ends_as_one_that_never_stopped(splits: Splits, every: int, preset: str) -> None:
    """From any checkpoint, between epochs or within one, bit for bit."""
    settings = TrainSettings.model_validate({"preset": preset, "epochs": 3, "batch": 8, "checkpoint_steps": every})
    checkpoints: list[tuple[int, int, bytes]] = []

    def keep(state: TrainState) -> None:
        checkpoints.append((state.epoch, state.step, state.to_bytes()))

    whole = trained(splits, settings, keep)
    places = [(epoch, step) for epoch, step, _ in checkpoints]
    steps = range(every, 4, every)
    assert places == sorted([(epoch, step) for epoch in range(3) for step in steps] + [(1, 0), (2, 0), (3, 0)])
    for index, (_, _, data) in enumerate(checkpoints):
        torch.rand(7)  # a process that resumes has another global random state
        resumed = started(splits, settings)
        resumed.load_bytes(data)
        later: list[tuple[int, int]] = []
        train(resumed, settings, *splits, lambda state, later=later: later.append((state.epoch, state.step)))  # type: ignore[misc]
        assert later == places[index + 1 :]
        assert weights(resumed) == weights(whole)
        assert resumed.history == whole.history


@pytest.mark.parametrize(("wished", "places"), [(1, [(0, 1)]), (3, [(0, 3)]), (4, [(1, 0)]), (6, [(1, 0), (1, 2)])])
def test_a_run_that_was_asked_to_stop_ends_as_one_that_never_stopped(
    splits: Splits, wished: int, places: list[tuple[int, int]]
) -> None:
    settings = TrainSettings(preset="best", epochs=3, batch=8)
    state, asked = started(splits, settings), itertools.count(1)
    stopped: list[tuple[int, int]] = []
    train(state, settings, *splits, lambda now: stopped.append((now.epoch, now.step)), lambda: next(asked) >= wished)
    assert stopped == places
    resumed, whole = started(splits, settings), trained(splits, settings)
    resumed.load_bytes(state.to_bytes())
    train(resumed, settings, *splits, lambda now: None)
    assert weights(resumed) == weights(whole)
    assert resumed.history == whole.history


def test_half_the_precision_trains_what_is_published_in_full(splits: Splits) -> None:
    settings = TrainSettings(preset="best", epochs=2, batch=8, precision="bfloat16")
    state = trained(splits, settings)
    assert state.history[-1]["loss"] < state.history[0]["loss"]
    assert state.history[-1]["loss"] == pytest.approx(
        trained(splits, settings.model_copy(update={"precision": "float32"})).history[-1]["loss"], rel=0.05
    )
    assert not state.averaged.reduced
    assert {weight.dtype for weight in state.averaged.parameters()} == {torch.float32}


def test_context_decays_less_than_other_weights_and_the_estimate_of_errors_not_at_all(splits: Splits) -> None:
    state = started(splits, TrainSettings(preset="best", batch=8, weight_decay=0.5))
    decays = {
        id(weight): group["weight_decay"] for group in state.optimiser.param_groups for weight in group["params"]
    }
    for part, decay in (("initial", 0.5), ("regressor", 0.5), ("context", 0.1), ("heat", 0.1), ("doubt", 0.0)):
        weights = [decays[id(weight)] for weight in state.model.get_submodule(part).parameters()]
        assert weights == pytest.approx([decay] * len(weights))


def always(size: float) -> MSRRN:
    """A network that always finds the mean shape, of another size, and the same in the mirror."""
    model = MSRRN(PRESETS["best"], MEAN).eval()
    head = model.initial.head[-1]
    assert isinstance(head, torch.nn.Linear)
    centred = MEAN - MEAN.mean(dim=0)
    with torch.no_grad():
        for weight in (head.weight, model.regressor.output.weight, *model.regressor.local.parameters()):  # type: ignore[union-attr]
            weight.zero_()
        head.bias.copy_(((size - 1) * centred).flatten())
    return model


def test_what_annotations_lean_to_is_found_in_the_frame_of_the_face(
    splits: Splits, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = always(1.5)
    centred = MEAN - MEAN.mean(dim=0)
    rng = np.random.default_rng(0)
    sideways = torch.tensor([0.01, 0.0]) + torch.from_numpy(rng.normal(0, 0.002, (68, 2))).float()
    noise = torch.from_numpy(rng.normal(0, 0.02, (20, 68, 2))).float()
    annotations = MEAN.mean(dim=0) + 1.5 * (centred + sideways) + noise - noise.mean(dim=0)
    images = torch.from_numpy(rng.integers(0, 256, (20, 200, 200), np.uint8))
    faces = Batch(images, annotations, torch.zeros(20, dtype=torch.bool))
    monkeypatch.setattr(Loader, "originals", lambda self, most: faces)
    for _ in range(2):  # also where some of it was found before
        found = lean(model, splits[0])
        torch.testing.assert_close(found, sideways, atol=1e-5, rtol=0)
        model.lean.copy_(found)


@pytest.mark.parametrize("size", [0.0, 1e-5])
def test_a_network_whose_shapes_have_no_size_finds_no_lean(splits: Splits, size: float) -> None:
    assert not lean(always(size), splits[0]).any()


def test_a_run_that_goes_on_learns_without_the_same_lean(splits: Splits) -> None:
    state, resumed = started(splits), started(splits)
    state.lean_to(torch.full((68, 2), 0.01))
    resumed.load_bytes(state.to_bytes())
    for network in (resumed.model, resumed.averaged):
        assert (network.lean == 0.01).all()


@pytest.mark.parametrize("preset", get_args(Preset))
def test_perturbed_samples_are_learned_without_the_lean(
    splits: Splits, preset: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is taken off before they are perturbed, which may mirror them once more."""
    perturbed: list[torch.Tensor] = []

    def noted(images: Any, shapes: Any, draws: Draws) -> Any:
        perturbed.append(torch.from_numpy(shapes.copy()))
        return perturb(images, shapes, draws)

    monkeypatch.setattr(loop, "perturb", noted)
    settings = TrainSettings.model_validate({"preset": preset, "batch": 8})
    state = started(splits, settings)
    found = one_sided(0.01 * torch.randn(68, 2), state.model.mirror)
    state.lean_to(found)
    (annotated, *_), (seen, *_) = splits[0].epoch(0, 0, 8), batches_seen(state, settings, splits[0], 0, 0, 1)
    assert 0 < annotated.mirrored.sum() < 8
    expected = without_lean(annotated.landmarks, annotated.mirrored, found, state.model.mean_shape)
    assert not torch.equal(expected, annotated.landmarks)
    if settings.perturbed:
        torch.testing.assert_close(perturbed[0], expected)
        assert not torch.equal(seen[0].landmarks, expected)
    else:
        torch.testing.assert_close(seen[0].landmarks, annotated.landmarks)


def test_a_preset_brings_its_settings_and_what_is_given_wins() -> None:
    best = TrainSettings(preset="best", epochs=3)
    assert (best.objective, best.optimiser, best.perturbed, best.epochs) == ("log_nrmse_ip", "adamw", True, 3)
    assert not TrainSettings().perturbed
    assert TrainSettings.model_validate_json(best.model_dump_json()) == best


def test_the_last_epochs_are_the_calm_ones(splits: Splits) -> None:
    def seen(calm: float, epoch: int) -> list[list[float]]:
        settings = TrainSettings(preset="best", epochs=4, batch=8, calm=calm)
        batches = batches_seen(started(splits, settings), settings, splits[0], epoch, 0, 1)
        return [batch.landmarks.flatten().tolist() for batch, _ in batches]

    assert [seen(0.5, epoch) == seen(0.0, epoch) for epoch in range(4)] == [True, True, False, False]
    assert seen(0.5, 3) == seen(1.0, 3)


def test_ranks_perturb_their_shares_as_one_would(splits: Splits) -> None:
    settings = TrainSettings(preset="best", batch=8)
    state = started(splits, settings)
    state.lean_to(one_sided(0.01 * torch.randn(68, 2), state.model.mirror))

    def seen(rank: int, world: int, epoch: int = 2) -> list[tuple[torch.Tensor, ...]]:
        batches = list(batches_seen(state, settings, splits[0], epoch, rank, world))
        return [(batch.image_200, batch.landmarks, *disturbance) for batch, disturbance in batches if disturbance]

    whole = seen(0, 1)
    assert len(whole) == 4
    for columns, first, second in zip(whole, seen(0, 2), seen(1, 2), strict=True):
        for column, *parts in zip(columns, first, second, strict=True):
            torch.testing.assert_close(torch.cat(parts), column)
    for one, other in itertools.combinations([*whole, *seen(0, 1, epoch=3)], 2):
        for column, unlike in zip(one, other, strict=True):
            assert not torch.equal(column, unlike)


@pytest.mark.parametrize("preset", get_args(Preset))
def test_uneven_shares_count_for_what_they_are(splits: Splits, preset: str) -> None:
    """Three ranks share eight samples: the mean of their gradients is that of the whole batch, as is their loss."""
    settings = TrainSettings.model_validate({"preset": preset, "batch": 8, "clip_norm": 1e9, "learning_rate": 1e-12})

    def updated(rank: int, world: int) -> tuple[float, list[torch.Tensor]]:
        state = started(splits, settings)
        with closing(batches_seen(state, settings, splits[0], 0, rank, world)) as batches:
            loss, _ = update(state.model, state.optimiser, settings, next(batches), 0.0, world)
        return loss, [weight.grad for weight in state.model.parameters() if weight.grad is not None]

    (loss, whole), *ranks = updated(0, 1), *(updated(rank, 3) for rank in range(3))
    assert np.mean([own for own, _ in ranks]) == pytest.approx(loss, rel=1e-5)
    for gradient, *parts in zip(whole, *(own for _, own in ranks), strict=True):
        torch.testing.assert_close(torch.stack(parts).mean(dim=0), gradient, rtol=1e-3, atol=1e-5)


def test_the_published_weights_are_a_running_mean(splits: Splits) -> None:
    settings = SETTINGS.model_copy(update={"averaged": 0.9})
    state = trained(splits, settings)
    assert weights(trained(splits))["model.mean_shape"] == weights(state)["averaged.mean_shape"]
    far = {name: 0.0 for name, _ in state.model.named_parameters()}
    for name, mean in state.averaged.named_parameters():
        far[name] = float((mean - state.model.get_parameter(name)).detach().abs().max())
    assert max(far.values()) > 0
    plain = trained(splits)
    for name, weight in plain.averaged.named_parameters():
        assert torch.equal(weight, plain.model.get_parameter(name))


def test_how_often_it_is_saved_changes_nothing(splits: Splits) -> None:
    often = SETTINGS.model_copy(update={"checkpoint_steps": 1})
    assert trained(splits, often).to_bytes() == trained(splits).to_bytes()
    assert often.model_dump() == SETTINGS.model_dump()


class Malicious:
    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, ("touch pwned",)


def test_a_checkpoint_runs_no_code(
    splits: Splits, tmp_path: os.PathLike[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    buffer = io.BytesIO()
    torch.save({"model": {}, "optimiser": {}, "epoch": Malicious(), "step": 0, "loss": 0.0, "history": []}, buffer)
    state = started(splits)
    with pytest.raises(Exception, match=r"Weights only load failed|Unsupported"):
        state.load_bytes(buffer.getvalue())
    assert os.listdir(tmp_path) == []  # noqa: PTH208
    assert state.epoch == 0


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


@pytest.mark.parametrize(
    ("rotten", "said"), [(float("nan"), "nan"), (float("inf"), "inf"), (300.0, r"4\.8[78]\d*e\+07")]
)
def test_a_loss_that_is_no_number_or_jumps_names_its_batch(
    splits: Splits, rotten: float, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches = list(splits[0].epoch(0, 0, SETTINGS.batch))
    batches[2] = batches[2]._replace(landmarks=torch.full_like(batches[2].landmarks, rotten))
    monkeypatch.setattr(Loader, "epoch", lambda *arguments: (batch for batch in batches))
    state = started(splits)
    told = rf"the loss is {said} at epoch 1, batch 3 of 4 .*; lower --learning-rate, or check the dataset by `msrrn v"
    with pytest.raises(DivergedError, match=told):
        train(state, SETTINGS, *splits, lambda now: None)
    assert state.history == []


@pytest.mark.parametrize("steps", [1, 4])
def test_a_jump_at_the_beginning_of_an_epoch_is_one(
    splits: Splits, steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = SETTINGS.model_copy(update={"batch": len(splits[0]) // steps})
    batches = list(splits[0].epoch(0, 0, settings.batch))
    rotten = [batches[0]._replace(landmarks=batches[0].landmarks + 300), *batches[1:]]
    monkeypatch.setattr(Loader, "epoch", lambda *told: (batch for batch in (rotten if told[2] else batches)))
    state = started(splits)
    with pytest.raises(DivergedError, match=rf"at epoch 2, batch 1 of {steps} "):
        train(state, settings, *splits, lambda now: None)
    assert len(state.history) == 1


def test_a_loss_that_swings_from_batch_to_batch_is_no_jump(splits: Splits, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it did with 47 faces of 300-W, which make six batches an epoch."""
    losses = iter([2.0, 6.0, 2.0, 6.0, 0.2, 5.0, 0.2, 5.0])
    monkeypatch.setattr(loop, "update", lambda *told: (next(losses), 1.0))
    settings = SETTINGS.model_copy(update={"epochs": 2})
    assert [row["loss"] for row in trained(splits, settings).history] == [4.0, 2.6]


def test_a_training_of_one_batch_an_epoch_can_be_stopped(splits: Splits) -> None:
    state = started(splits)
    train(state, SETTINGS.model_copy(update={"batch": len(splits[0])}), *splits, lambda now: None, lambda: True)
    assert (state.epoch, state.step, len(state.history)) == (1, 0, 1)


def test_a_batch_that_does_not_fit_is_refused(splits: Splits) -> None:
    with pytest.raises(UserError, match=r"batch 64 does not fit 32 samples on 1 workers: .* change --batch"):
        trained(splits, SETTINGS.model_copy(update={"batch": 64}))
    with pytest.raises(UserError, match="batch 8 does not fit 32 samples on 9 workers"):
        train(started(splits), SETTINGS, *splits, lambda now: None, rank=0, world=9)
