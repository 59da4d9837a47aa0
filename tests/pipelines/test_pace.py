from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch

from pipelines.pace import ROUNDS, one_core, race


def test_contestants_take_turns_and_the_first_round_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    clock = 0.0

    def contestant(name: str, first: float, later: float) -> Callable[[], object]:
        def work() -> None:
            nonlocal clock
            clock += later if name in order else first
            order.append(name)

        return work

    monkeypatch.setattr("pipelines.pace.time", SimpleNamespace(perf_counter=lambda: clock))
    seconds = race({"slow": contestant("slow", 64, 2), "quick": contestant("quick", 32, 1)})
    assert order == ["slow", "quick"] * (ROUNDS + 1)
    assert {name: taken.tolist() for name, taken in seconds.items()} == {"slow": [2] * ROUNDS, "quick": [1] * ROUNDS}


def test_one_core_is_for_the_time_of_the_block() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with one_core():
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
