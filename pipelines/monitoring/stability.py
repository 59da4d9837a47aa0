"""Are two samples alike? Counts in the same bins are compared, by the size of the difference, not by its proof.

With enough faces any two archives differ significantly; what matters is by how much. So thresholds are of the
difference itself, and chance only says which differences are too small to be seen in samples of these sizes.
"""

from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel
from scipy import special

from pipelines.settings import DriftSettings

Counts = NDArray[np.int64]

Verdict = Literal["unknown", "stable", "warning", "drifted"]
WORST_LAST: Final[tuple[Verdict, ...]] = ("unknown", "stable", "warning", "drifted")


class Difference(BaseModel):
    """How far two samples are apart; `psi_noise` and `ks_noise` are what chance alone may make of it.

    All is None where too little was counted, and the `ks` where bins have no order.
    """

    psi: float | None = None
    psi_noise: float | None = None
    ks: float | None = None
    ks_noise: float | None = None
    verdict: Verdict = "unknown"


def difference(base: Counts, now: Counts, settings: DriftSettings, ordered: bool = True) -> Difference:
    """Compares two samples by their counts (B,) in the same bins. `ordered`: bins follow one another."""
    n, m = int(base.sum()), int(now.sum())
    if min(n, m) < settings.least:
        return Difference()
    if ordered:
        base_groups, now_groups = grouped(base, now, settings.bins)
    else:
        used = (base + now) > 0
        base_groups, now_groups = base[used], now[used]
    found = Difference(psi=psi(base_groups, now_groups), psi_noise=0.0, verdict="stable")
    if len(base_groups) > 1:
        found.psi_noise = float(special.chdtri(len(base_groups) - 1, settings.chance)) * (1 / n + 1 / m)
    if ordered:
        found.ks = ks(base, now)
        found.ks_noise = float(special.kolmogi(settings.chance)) * float(np.sqrt(1 / n + 1 / m))
    if _exceeds(found, settings.psi_alarm, settings.ks_alarm):
        found.verdict = "drifted"
    elif _exceeds(found, settings.psi_warning, settings.ks_warning):
        found.verdict = "warning"
    return found


def psi(base: Counts, now: Counts) -> float:
    """Population stability index: Σ (q − p) ln(q / p) over the shares p and q of each bin.

    Half of one is added to each count: a bin that one of the two lacks would make it infinite.
    """
    p, q = ((counts + 0.5) / (counts.sum() + 0.5 * len(counts)) for counts in (base, now))
    return float(np.sum((q - p) * np.log(q / p)))


def ks(base: Counts, now: Counts) -> float:
    """Distance of Kolmogorov and Smirnov: the largest one between the two cumulative shares, at the edges of bins."""
    p, q = (np.cumsum(counts) / counts.sum() for counts in (base, now))
    return float(np.abs(p - q).max())


def grouped(base: Counts, now: Counts, most: int) -> tuple[Counts, Counts]:
    """Neighbouring bins put together, so that each of at most `most` groups holds its share of `base`.

    An index over many bins that are nearly empty would tell of chance alone.
    """
    share = base.sum() / most
    starts = [0]
    held = 0
    for index, count in enumerate(base.tolist()):
        held += count
        if held >= share:
            starts.append(index + 1)
            held = 0
    if len(starts) > 1 and base[starts[-1] :].sum() < share:
        starts.pop()
    return np.add.reduceat(base, starts), np.add.reduceat(now, starts)


def _exceeds(found: Difference, least_psi: float, least_ks: float) -> bool:
    pairs = ((found.psi, least_psi, found.psi_noise), (found.ks, least_ks, found.ks_noise))
    return any(value is not None and value >= max(least, noise or 0.0) for value, least, noise in pairs)
