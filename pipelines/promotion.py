"""Whether a challenger may replace the champion."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Decision:
    promote: bool
    reason: str
    """One sentence with the figures."""


def decide(challenger: Mapping[str, Any], champion: Mapping[str, Any] | None, tolerance: float = 0.0) -> Decision:
    """Promotes a challenger whose NRMSE (IP, all faces) is not worse than the champion's.

    Both evaluations hold `all.nrmse_ip` (a fraction) and `faces_digest`. `tolerance` is a fraction as well: a
    challenger worse by no more than that is promoted.

    Raises:
        ValueError: a field is missing, the evaluations are of different faces, or `tolerance` is not a
            finite number of at least 0.
    """
    if not (math.isfinite(tolerance) and tolerance >= 0):
        raise ValueError(f"tolerance must be a fraction of at least 0, not {tolerance}")
    new = _nrmse(challenger, "challenger")
    if not math.isfinite(new):
        return Decision(False, f"The challenger's NRMSE is not a number ({new}), so it was not promoted.")
    if champion is None:
        return Decision(True, f"This is the first model: NRMSE {new:.3%} (IP), and there is no champion.")
    if challenger["faces_digest"] != champion["faces_digest"]:
        raise ValueError(
            f"challenger and champion were evaluated on different faces ({challenger['faces_digest']:.12} and"
            f" {champion['faces_digest']:.12}): evaluate both on the same dataset"
        )
    old = _nrmse(champion, "champion")
    if not math.isfinite(old):
        return Decision(
            False,
            f"The champion's NRMSE is not a number ({old}), so nothing can be compared with the challenger's"
            f" {new:.3%} (IP).",
        )
    allowance = f" with a tolerance of {tolerance:.3%}" if tolerance else ""
    figures = f"NRMSE {new:.3%} against the champion's {old:.3%} (IP){allowance}"
    if new <= old + tolerance:
        return Decision(True, f"The challenger is not worse: {figures}.")
    return Decision(False, f"The challenger is worse: {figures}.")


def _nrmse(evaluation: Mapping[str, Any], whose: str) -> float:
    try:
        digest, value = evaluation["faces_digest"], evaluation["all"]["nrmse_ip"]
    except (KeyError, TypeError) as error:
        raise ValueError(f"the {whose}'s evaluation lacks `faces_digest` or `all.nrmse_ip`") from error
    if not isinstance(digest, str) or not digest:
        raise ValueError(f"the {whose}'s `faces_digest` must be a digest, not {digest!r}")
    # JSON writes a number that is not finite as null
    return math.nan if value is None else float(value)
