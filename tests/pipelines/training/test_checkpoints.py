from pathlib import Path

import numpy as np
import pytest

from msrrn.config import PRESETS
from pipelines.errors import UserError
from pipelines.settings import TrainSettings
from pipelines.storage import Store
from pipelines.training.checkpoints import RUN, STATE, Checkpoints, unfinished
from pipelines.training.state import TrainState
from tests.factories import TINY

SETTINGS = TrainSettings(preset="best", epochs=3, checkpoint_steps=7)


@pytest.fixture(autouse=True)
def _tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PRESETS, "paper", TINY)


def begun(out: str, name: str) -> Checkpoints:
    checkpoints = Checkpoints(Store(f"{out}/runs/{name}"))
    checkpoints.begin(Store("datasets/one"), SETTINGS, "faces")
    return checkpoints


def started(settings: TrainSettings | None = None) -> TrainState:
    return TrainState(settings or TrainSettings(), np.zeros((68, 2), np.float32))


@pytest.mark.parametrize("remote", [False, True])
def test_a_run_is_found_by_its_name_or_as_the_only_one(tmp_path: Path, s3: str, remote: bool) -> None:
    out = f"{s3}/work" if remote else str(tmp_path)
    with pytest.raises(UserError, match=rf"{out}/runs: no unfinished run to go on with; give the --out of"):
        unfinished(out)
    first = begun(out, "aa")
    name, told = unfinished(out)
    assert (name, told) == unfinished(out, "aa")
    assert name == "aa"
    assert told.dataset == str(Path("datasets/one").absolute())
    assert told.experiment == "faces"
    assert told.all_settings() == SETTINGS
    assert told.all_settings().checkpoint_steps == 7
    with pytest.raises(UserError, match="no unfinished run bb to go on with; unfinished there: aa"):
        unfinished(out, "bb")
    begun(out, "bb")
    with pytest.raises(UserError, match=r"2 unfinished runs; say which: --resume aa \| bb"):
        unfinished(out)
    assert unfinished(out, "aa") == (name, told)
    first.finish()
    first.finish()
    assert unfinished(out)[0] == "bb"


@pytest.mark.parametrize("data", [b"", b"\xff", b"[]", b'{"dataset": "d"}'])
def test_a_damaged_note_is_named_with_a_remedy(tmp_path: Path, data: bytes) -> None:
    begun(str(tmp_path), "aa").place.publish(RUN, data)
    with pytest.raises(
        UserError, match=r"runs/aa/run\.json is damaged, or of another version .*: call `train` with --dataset"
    ):
        unfinished(str(tmp_path))


def test_the_last_checkpoint_is_restored_and_the_one_before_is_gone(tmp_path: Path) -> None:
    checkpoints, state = begun(str(tmp_path), "aa"), started()
    assert not checkpoints.restore(state)
    for state.epoch in (1, 2):
        checkpoints.write(state)
    assert checkpoints.place.keys("") == [RUN, STATE]
    restored = started()
    assert checkpoints.restore(restored)
    assert restored.epoch == 2
    checkpoints.finish()
    assert not (tmp_path / "runs" / "aa").exists()


def test_a_checkpoint_of_before_they_had_digests_is_gone_on_with(tmp_path: Path) -> None:
    checkpoints, state = begun(str(tmp_path), "aa"), started()
    state.epoch = 2
    checkpoints.place.publish(STATE, state.to_bytes())
    restored = started()
    assert checkpoints.restore(restored)
    assert restored.epoch == 2


def damaged(kind: str) -> bytes:
    whole = started().to_bytes()
    other = started(TrainSettings(preset="best")).to_bytes()
    return {"empty": b"", "text": b"no checkpoint", "cut": whole[:-1000], "of another network": other}[kind]


@pytest.mark.parametrize("kind", ["empty", "text", "cut", "of another network"])
def test_what_is_no_checkpoint_is_named_with_a_remedy(tmp_path: Path, kind: str) -> None:
    checkpoints = begun(str(tmp_path), "aa")
    checkpoints.place.publish(STATE, damaged(kind))
    with pytest.raises(
        UserError, match=r"runs/aa/state\.pt is damaged, or no checkpoint .*: delete it to begin anew"
    ):
        checkpoints.restore(started())
