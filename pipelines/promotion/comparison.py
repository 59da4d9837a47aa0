"""Two models on the same faces, paired by face: how far they differ, and how sure that is.

The pairing takes out what makes faces easy or hard, which is most of the spread. Intervals are percentiles of a
seeded bootstrap (`scipy.stats.bootstrap`) that draws photos, not faces: the faces of a photo share its light.
"""

from collections.abc import Callable, Sequence
from typing import Any, Final, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from msrrn.metrics import failed
from pipelines.errors import UserError
from pipelines.evaluation.honesty import expected_and_true, rank_correlation
from pipelines.evaluation.results import Evaluation, FaceResult, crops_of
from pipelines.evaluation.slices import slices
from pipelines.models import Model
from pipelines.pace import one_core, race
from pipelines.settings import GateSettings

TIMED_FACES: Final = 64
_LEAST_ERROR: Final = 1e-5
_AT_ONCE: Final = 200
"""Resamples that are in memory."""

Errors = NDArray[np.float64]


class Row(BaseModel):
    """One figure of both models, and its change from champion to challenger with the interval of that."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    what: str
    unit: Literal["%", "×", ""]
    """`%`: fractions, and their difference. `×`: the change is a factor. Else plain numbers and their difference."""
    faces: int
    challenger: float
    champion: float
    change: float
    low: float
    high: float
    limit: float
    holds: bool
    """False where the change is past the limit, the whole interval with it"""


class Pair(NamedTuple):
    """Both models on the same faces in the same order."""

    challenger: Sequence[FaceResult]
    champion: Sequence[FaceResult]

    @property
    def errors(self) -> tuple[Errors, Errors]:
        """(faces,) each: NRMSE (IP) of challenger and champion, fractions."""
        new, old = (np.array([float(face.nrmse_ip[-1]) for face in faces]) for faces in self)
        return new, old

    @property
    def photos(self) -> NDArray[np.intp]:
        """(faces,): the number of each face's photo, from 0."""
        return np.unique([face.photo_sha256 for face in self.challenger], return_inverse=True)[1]


class Meeting(NamedTuple):
    """Two models, each evaluated on the photos that neither was trained on."""

    challenger: Evaluation
    champion: Evaluation


def paired(challenger: Evaluation, champion: Evaluation) -> Pair:
    """The faces of both evaluations.

    Raises:
        UserError: they are not of the same faces.
    """
    if challenger.faces_digest != champion.faces_digest:
        raise UserError(
            f"challenger and champion were evaluated on different faces ({len(challenger.faces)}, digest "
            f"{challenger.faces_digest}; {len(champion.faces)}, digest {champion.faces_digest}): the evaluation "
            "photos changed meanwhile, so judge again"
        )
    return Pair(challenger.faces, champion.faces)


def error_row(pair: Pair, settings: GateSettings) -> Row:
    """NRMSE (IP) on all faces. It `holds` where the challenger is not surely worse than it must be."""
    new, old = pair.errors
    limit = 0.0 - settings.least_gain * float(old.mean())
    return _difference("NRMSE (IP)", pair.photos, new, old, limit, settings)


def floor_rows(pair: Pair, settings: GateSettings) -> list[Row]:
    """What may not become worse whatever the mean says: failures, the confidence, every slice of the faces."""
    new, old = pair.errors
    photos = pair.photos
    new_failed, old_failed = (failed(errors).astype(np.float64) for errors in (new, old))
    more = settings.more_failures
    rows = [_difference("failures, NRMSE over 0.1", photos, new_failed, old_failed, more, settings)]
    rows += [_correlation_row(pair, settings), _bias_row(pair, settings)]
    for name, members in slices(pair.challenger).items():
        witnesses = len(np.unique(photos[members]))
        if witnesses > 1:
            limit = settings.slice_loss * float(old[members].mean())
            row = _difference(f"NRMSE (IP), {name}", photos[members], new[members], old[members], limit, settings)
            rows.append(row if witnesses >= settings.slice_faces else row.model_copy(update={"holds": True}))
    return rows


def pace_row(challenger: Model, champion: Model, pair: Pair, settings: GateSettings) -> Row:
    """Time for a face on one core, uint8 crop to landmarks, both by turns; the interval is that of the rounds.

    Raises:
        UserError: the photos are gone since they were evaluated.
    """
    with one_core():
        seconds = race(
            {
                "challenger": _asked(challenger, pair.challenger[:TIMED_FACES]),
                "champion": _asked(champion, pair.champion[:TIMED_FACES]),
            }
        )
    ratios = seconds["challenger"] / seconds["champion"]
    new, old = (float(np.median(seconds[name])) / TIMED_FACES * 1000 for name in ("challenger", "champion"))
    low, high = float(ratios.min()), float(ratios.max())
    return Row(
        what="milliseconds for a face",
        unit="×",
        faces=min(TIMED_FACES, len(pair.challenger)),
        challenger=new,
        champion=old,
        change=float(np.median(ratios)),
        low=low,
        high=high,
        limit=settings.slower,
        holds=low <= settings.slower,
    )


def faces_needed(row: Row) -> int | None:
    """About how many faces would leave the limit outside the interval, if the change stayed what it is.

    An interval shrinks with the root of the photos, and so of the faces, if a photo shows as many as now. None where
    no number of faces would do: the change is at the limit.
    """
    distance = abs(row.change - row.limit)
    reach = row.change - row.low if row.change > row.limit else row.high - row.change
    if distance <= 0 or reach / distance > 1e3:
        return None
    needed = row.faces * (reach / distance) ** 2
    step: int = 10 ** max(0, len(str(int(needed))) - 2)
    return int(np.ceil(needed / step)) * step


def _asked(model: Model, faces: Sequence[FaceResult]) -> Callable[[], object]:
    crops = crops_of(faces, model.card.crop_margin)
    if not crops:
        raise UserError("the evaluation photos are gone since they were evaluated: judge again")
    batch = np.resize(np.stack(crops), (TIMED_FACES, *crops[0].shape))
    predictor = model.predictor
    return lambda: predictor.predict(batch)


def _difference(
    what: str, photos: NDArray[np.intp], new: Errors, old: Errors, limit: float, settings: GateSettings
) -> Row:
    change = new - old
    low, high = _mean_interval(change, photos, settings)
    return Row(
        what=what,
        unit="%",
        faces=len(new),
        challenger=float(new.mean()),
        champion=float(old.mean()),
        change=float(change.mean()),
        low=low,
        high=high,
        limit=limit,
        holds=low <= limit,
    )


def _correlation_row(pair: Pair, settings: GateSettings) -> Row:
    new, old = (expected_and_true(faces) for faces in pair)
    photos = pair.photos
    of_photo = np.split(np.argsort(photos, kind="stable"), np.cumsum(np.bincount(photos))[:-1])

    def loss(drawn: NDArray[np.intp]) -> float:
        faces = np.concatenate([of_photo[photo] for photo in drawn])
        return rank_correlation(*(each[faces] for each in new)) - rank_correlation(*(each[faces] for each in old))

    low, high = _interval((np.arange(len(of_photo)),), loss, settings, vectorized=False)
    correlations = [rank_correlation(*each) for each in (new, old)]
    return Row(
        what="rank correlation of expected and true error",
        unit="",
        faces=len(new[0]),
        challenger=correlations[0],
        champion=correlations[1],
        change=correlations[0] - correlations[1],
        low=low,
        high=high,
        limit=-settings.rank_loss,
        holds=high >= -settings.rank_loss,
    )


def _bias_row(pair: Pair, settings: GateSettings) -> Row:
    new, old = (_log_bias(faces) for faces in pair)
    low, high = _mean_interval(new, pair.photos, settings)
    off = [float(np.exp(abs(values.mean()))) for values in (new, old)]
    limit = max(settings.bias, off[1])
    nearest = float(np.exp(max(0.0, low, -high)))
    return Row(
        what="expected error off the true one by",
        unit="×",
        faces=len(new),
        challenger=off[0],
        champion=off[1],
        change=off[0],
        low=nearest,
        high=float(np.exp(max(abs(low), abs(high)))),
        limit=limit,
        holds=nearest <= limit,
    )


def _log_bias(faces: Sequence[FaceResult]) -> Errors:
    expected, true = (np.log(np.maximum(values, _LEAST_ERROR)) for values in expected_and_true(faces))
    return np.asarray(expected - true)


def _mean_interval(values: Errors, photos: NDArray[np.intp], settings: GateSettings) -> tuple[float, float]:
    """Of the mean over faces, when photos are drawn."""
    numbers = np.unique(photos, return_inverse=True)[1]
    counts = np.bincount(numbers).astype(np.float64)
    sums = np.bincount(numbers, values).astype(np.float64)

    def mean(sums: Errors, counts: Errors, axis: int) -> Errors:
        return np.asarray(sums.sum(axis=axis) / counts.sum(axis=axis))

    return _interval((sums, counts), mean, settings)


def _interval(
    columns: Sequence[NDArray[Any]],
    statistic: Callable[..., Errors | float],
    settings: GateSettings,
    vectorized: bool = True,
) -> tuple[float, float]:
    """Of a statistic of columns (photos,) each; unless it is `vectorized`, it takes one draw at a time."""
    from scipy.stats import bootstrap  # a second to import, which who judges nothing does without

    found = bootstrap(
        columns,
        statistic,
        paired=True,
        vectorized=vectorized,
        n_resamples=settings.resamples,
        batch=_AT_ONCE,
        confidence_level=settings.confidence,
        method="percentile",
        rng=np.random.default_rng(settings.seed),
    ).confidence_interval
    return float(found.low), float(found.high)
