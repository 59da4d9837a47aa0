"""Whether a challenger may replace the champion: promoted, kept, or undecided.

A challenger takes over where it is surely better, and where no floor is broken: failures, time, confidence, and every
slice of the faces, each judged by its own interval. It is kept out where it is surely worse, or breaks a floor.
Between the two nothing is decided: the champion stays, and the reason says how many faces would decide it. Floors ask
for evidence of harm, not for proof of harmlessness, which small slices could never give.
"""

from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict

from pipelines.evaluation.results import Evaluation
from pipelines.promotion.comparison import Pair, Row, error_row, faces_needed, floor_rows
from pipelines.settings import GateSettings
from pipelines.showable import counted

Verdict = Literal["promoted", "kept", "undecided"]


class Decision(BaseModel):
    """What was decided, and every figure that it rests on."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    verdict: Verdict
    reason: str
    """One sentence with the figures."""
    rows: tuple[Row, ...] = ()
    """The first one decides, the others are floors; none where nothing was compared."""
    faces_needed: int | None = None
    """about how many faces, with as many of each photo as now, would decide what is undecided; None: no number would,
    or it is decided"""

    @property
    def promote(self) -> bool:
        return self.verdict == "promoted"


def first_model(challenger: Evaluation, box: Pair | None = None) -> Decision:
    """Where there is no champion, any model with finite shapes is promoted.

    `box` is that model and the one in the box, where they could be compared: the reason says which is better.
    """
    mean = float(np.mean([face.nrmse_ip[-1] for face in challenger.faces]))
    if not np.isfinite(mean):
        return Decision(verdict="kept", reason=f"The challenger's NRMSE is not a number ({mean}).")
    reason = f"This is the first model: NRMSE {mean:.3%} (IP), and there is no champion."
    if box is not None:
        new, old = (float(errors.mean()) for errors in box.errors)
        better = "" if new <= old else ": to go on with that, `--model box`; to begin training with it, `--init box`"
        faces = counted(len(box.challenger), "face")
        reason += f" On {faces} new to both it has {new:.3%}, and the model in the box {old:.3%}{better}."
    return Decision(verdict="promoted", reason=reason)


def decide(pair: Pair, settings: GateSettings, pace: Row | None = None) -> Decision:
    """Compares two models on the same faces; `pace` is the row of their times, where they were measured."""
    new, old = pair.errors
    for who, errors in (("challenger", new), ("champion", old)):
        if not np.isfinite(errors).all():
            bad = int((~np.isfinite(errors)).sum())
            reason = f"The {who}'s NRMSE is not a number on {bad} of {len(errors)} faces: nothing can be compared."
            return Decision(verdict="kept", reason=reason)
    # Photos, not faces: an interval drawn from few photos is too narrow, however many faces each of them shows.
    photos = len(np.unique(pair.photos))
    if photos < settings.least_faces:
        return _too_few(pair, photos, settings.least_faces)
    error = error_row(pair, settings)
    floors = [*([pace] if pace else []), *floor_rows(pair, settings)]
    broken = [row for row in floors if not row.holds]
    rows = (error, *floors)
    if not error.holds:
        worse = "worse" if error.low > 0 else "not better by as much as was asked"
        return Decision(verdict="kept", reason=f"The challenger is {worse}: {_figures(error)}.", rows=rows)
    if broken:
        floor = "a floor" if len(broken) == 1 else f"{len(broken)} floors"
        reason = f"The challenger breaks {floor}: {'; '.join(map(_floor, broken))}. {_figures(error)}."
        return Decision(verdict="kept", reason=reason, rows=rows)
    if error.high < error.limit:
        better = "better" if error.high < 0 else "not worse by more than is allowed"
        return Decision(verdict="promoted", reason=f"The challenger is {better}: {_figures(error)}.", rows=rows)
    needed = faces_needed(error)
    remedy = f"about {needed:,} faces would decide it" if needed else "no number of faces would decide it"
    reason = f"Too close to call: {_figures(error)}; {remedy}."
    return Decision(verdict="undecided", reason=reason, rows=rows, faces_needed=needed)


def shown(row: Row) -> dict[str, str]:
    """A row as words: percent, factors, or plain numbers."""
    signed = {"%": "{:+.3%}", "×": "{:.2f}×", "": "{:+.3f}"}[row.unit].format
    plain = {"%": "{:.3%}", "×": "{:.3g}", "": "{:.3f}"}[row.unit].format
    return {
        "figure": row.what,
        "faces": str(row.faces),
        "challenger": plain(row.challenger),
        "champion": plain(row.champion),
        "change": signed(row.change),
        "interval": f"{signed(row.low)} to {signed(row.high)}",
        "limit": signed(row.limit),
        "holds": "yes" if row.holds else "no",
    }


def _too_few(pair: Pair, photos: int, least: int) -> Decision:
    new, old = pair.errors
    few = f"{counted(len(new), 'evaluation face')} of {counted(photos, 'photo')}"
    nothing = f"{'decides' if len(new) == 1 else 'decide'} nothing, at least {least} photos do"
    means = f"NRMSE {new.mean():.3%} against the champion's {old.mean():.3%} (IP)"
    needed = -(-least * len(new) // photos)
    return Decision(verdict="undecided", reason=f"{few} {nothing}: {means}.", faces_needed=needed)


def _figures(row: Row) -> str:
    words = shown(row)
    limit = f", asked for {words['limit']}" if row.limit < 0 else f", where {words['limit']} is allowed"
    return (
        f"NRMSE {words['challenger']} against the champion's {words['champion']} (IP) on {row.faces} faces, "
        f"a change of {words['interval']}{limit if row.limit else ''}"
    )


def _floor(row: Row) -> str:
    words = shown(row)
    return (
        f"{row.what} {words['challenger']} against {words['champion']}, {words['interval']} where {words['limit']} "
        "is allowed"
    )
