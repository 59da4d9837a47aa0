import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.promotion import decide

errors = st.floats(0, 1)


def evaluation(nrmse: float | None, faces: str = "f" * 64) -> dict[str, Any]:
    return {"all": {"faces": 200, "missed": 3, "nrmse_ip": nrmse}, "faces_digest": faces}


@given(new=errors, old=errors, tolerance=st.floats(0, 0.1))
def test_promotes_exactly_the_models_that_are_not_worse(new: float, old: float, tolerance: float) -> None:
    decision = decide(evaluation(new), evaluation(old), tolerance)
    assert decision.promote == (new <= old + tolerance)
    assert f"{new:.3%}" in decision.reason
    assert f"{old:.3%}" in decision.reason


def test_promotes_the_first_model() -> None:
    decision = decide(evaluation(0.3), None)
    assert decision.promote
    assert "first model" in decision.reason


@pytest.mark.parametrize("bad", [math.nan, math.inf, None])
def test_promotes_nothing_that_is_not_a_number(bad: float | None) -> None:
    assert not decide(evaluation(bad), None).promote
    assert not decide(evaluation(bad), evaluation(0.1)).promote
    assert not decide(evaluation(0.1), evaluation(bad)).promote


def test_refuses_to_compare_on_different_faces() -> None:
    with pytest.raises(ValueError, match="different faces"):
        decide(evaluation(0.1, "a" * 64), evaluation(0.2, "b" * 64))


@pytest.mark.parametrize("incomplete", [{}, {"faces_digest": "a"}, {"all": {"nrmse_ip": 0.1}}])
def test_refuses_incomplete_evaluations(incomplete: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="challenger's evaluation lacks"):
        decide(incomplete, None)


@pytest.mark.parametrize("tolerance", [-0.01, math.nan, math.inf])
def test_refuses_tolerances_that_would_let_everything_pass(tolerance: float) -> None:
    with pytest.raises(ValueError, match="tolerance"):
        decide(evaluation(0.2), evaluation(0.1), tolerance)
