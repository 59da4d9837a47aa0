import time

import torch

from pipelines.pace import ROUNDS, one_core, race


def test_contestants_take_turns_and_the_first_round_does_not_count() -> None:
    order: list[str] = []

    def slow() -> None:
        order.append("slow")
        time.sleep(0.2 if len(order) == 1 else 0.01)

    seconds = race({"slow": slow, "quick": lambda: order.append("quick")})
    assert order == ["slow", "quick"] * (ROUNDS + 1)
    assert seconds["slow"].shape == (ROUNDS,)
    assert seconds["slow"].min() >= 0.01
    assert seconds["slow"].max() < 0.2
    assert seconds["quick"].max() < 0.01


def test_one_core_is_for_the_time_of_the_block() -> None:
    before = torch.get_num_threads()
    with one_core():
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == before
