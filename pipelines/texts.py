"""Results as text for a terminal."""

import io
import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from pipelines.annotation.summary import Summary
from pipelines.annotation.tables import PAGE
from pipelines.dataset.deletion import Deleted
from pipelines.dataset.inventory import Datasets
from pipelines.evaluation.results import Evaluation, seen_note, shown
from pipelines.forgotten import Forgot
from pipelines.location import Location
from pipelines.showable import counted, one_line, showable

if TYPE_CHECKING:  # they bring torch and MLflow, seconds to import, and each text is of one result
    from pipelines.annotation.rehearsal import Rehearsal
    from pipelines.monitoring.drift import DriftReport
    from pipelines.registry.ledger import Line
    from pipelines.registry.versions import ModelVersion


def training_text(result: Mapping[str, Any]) -> str:
    """What a training came to, a line a figure: the errors in percent, and over what they are."""
    error = "val_nrmse_ip_"
    rows = []
    for name, value in result.items():
        if name.startswith(error):
            rows.append((f"validation NRMSE (inter-pupil), {name.removeprefix(error)}", f"{value:.2%}"))
        else:
            rows.append((name, f"{value:g}" if isinstance(value, float) else str(value)))
    return showable("\n".join(f"{name:<43} {value}" for name, value in rows))


def evaluation_text(evaluation: Evaluation) -> str:
    """The figures by subset and by stage, in percent, with their protocol."""
    table = evaluation.table()
    protocol = table["all"]["protocol"]
    lines = [
        f"{evaluation.model} in {evaluation.precision} on {counted(len(evaluation.faces), 'face')} "
        f"({evaluation.selection}); trained on {evaluation.training_set}",
        f"boxes: {protocol['boxes']}",
        *filter(None, [seen_note(evaluation), _left_out(evaluation)]),
        rows_text([{"subset": name, **shown(row)} for name, row in table.items()]),
        rows_text([{"stage, all faces": name, **shown(row)} for name, row in table["all"]["stages"].items()]),
    ]
    return showable("\n".join(lines))


def _left_out(evaluation: Evaluation) -> str:
    reasons = Counter(each.reason for each in evaluation.left_out)
    return f"left out: {listed(dict(sorted(reasons.items())))}" if reasons else ""


def listed(counts: Mapping[str, int]) -> str:
    """How many there are of each, in their order."""
    return ", ".join(f"{count} {name}" for name, count in counts.items()) or "none"


def datasets_text(found: Datasets) -> str:
    """The datasets of a place, a line each, and what none of them lists."""
    rows = [
        (
            info.name,
            info.state,
            *(str(info.counts.get(name, "-")) for name in ("train", "val", "left_out")),
            f"{info.bytes / 1e6:.1f}",
            info.detector or "-",
            " ".join(info.sources) or info.note,
        )
        for info in found.datasets
    ]
    columns = ("dataset", "state", "train", "val", "left out", "MB", "boxes", "sources")
    text = _rendered(columns, rows) if rows else "no dataset here"
    notes = [f"{info.name}: {info.note}" for info in found.datasets if info.note and info.sources]
    if found.unlisted_units:
        unlisted = _units(found.unlisted_units, found.unlisted_shards, found.unlisted_bytes)
        notes.append(f"{unlisted} of no finished dataset")
    return "\n".join([text, *notes])


def deleted_text(deleted: Deleted, dry_run: bool) -> str:
    """What was deleted of a place of datasets, or would be."""
    went = [*deleted.datasets, f"{_units(deleted.units, deleted.shards, deleted.bytes)} that no other dataset lists"]
    return f"{'would delete' if dry_run else 'deleted'} " + ", ".join(went)


def forgot_text(forgot: Forgot) -> str:
    """What was removed of pictures from one place, what became of its datasets, and what to look at."""
    lines: list[str] = []
    for picture in forgot.pictures:
        rows = f"{counted(picture.rows, 'row')} of {counted(picture.files, 'file')}"
        before = picture.sha256 in forgot.earlier
        lines.append(f"{picture.sha256}: " + (f"already forgotten: {rows}" if before else f"{rows} removed"))
    for old, new in forgot.datasets.items():
        lines.append(f"dataset {old} is now {new or 'gone: nothing was left to train on'}")
    lines += [f"{digest} shows nearly the same: forget it too?" for digest in forgot.alike]
    return showable("\n".join(f"{forgot.place}: {line}" for line in lines))


def _units(units: int, shards: int, size: int) -> str:
    return f"{counted(units, 'unit')} ({counted(shards, 'shard')}, {size / 1e6:.1f} MB)"


def annotation_text(out: str, summary: Summary) -> str:
    """What a run of `annotate` came to."""
    place = Location(out).url  # on S3 a second slash would lead elsewhere
    lines = [
        f"{place}: {counted(summary.images, 'picture')} = {summary.annotated} annotated + {summary.no_face} without "
        f"a face + {summary.quarantined} quarantined; {counted(summary.faces, 'face')} by {summary.model}"
    ]
    lines += [f"  quarantined, {reason}: {count}" for reason, count in summary.reasons.items()]
    if summary.ignored:
        lines.append(f"  not looked at, hidden or by their names no pictures: {counted(summary.ignored, 'file')}")
    if summary.gone:
        lines.append(f"  no longer in the archive: {summary.gone}")
    if summary.waiting:
        lines.append(f"  came in or were replaced since, left for a call without --retry: {summary.waiting}")
    if summary.throughput:
        lines.append(
            f"  {counted(summary.throughput.pictures, 'picture')} in {summary.throughput.seconds:g} s, "
            f"{summary.throughput.pictures_per_second:g} a second by {counted(summary.throughput.workers, 'worker')}"
        )
    return showable("\n".join([*lines, f"  page: {place}/{PAGE}"]))


def rehearsal_text(rehearsal: "Rehearsal", model: str, workers: int) -> str:
    """What a run would do, and how long it would take."""
    lines = [
        f"{counted(rehearsal.pictures, 'picture')}, {rehearsal.bytes / 1e9:.2f} GB ({listed(rehearsal.suffixes)}); "
        f"{counted(rehearsal.ignored, 'file')} ignored, hidden or by their names no pictures",
        *([f"{rehearsal.to_do} of them are left to be done"] if rehearsal.begun else []),
        f"unusable as listed: {listed(rehearsal.unusable)}",
        f"of {rehearsal.looked_at} drawn at random: {listed(rehearsal.statuses)}; {counted(rehearsal.faces, 'face')} "
        f"found by {rehearsal.detector}, landmarks by {model}"
        + (f"; quarantined as {listed(rehearsal.reasons)}" if rehearsal.reasons else ""),
        f"{rehearsal.seconds_per_picture:g} s a picture; with {counted(workers, 'worker')} like this one it would "
        f"take some {_duration(rehearsal.hours)}, beside their start. Nothing was written",
    ]
    return showable("\n".join(lines))


def _duration(hours: float) -> str:
    if hours < 1 / 60:
        return counted(max(1, round(3600 * hours)), "second")
    return counted(round(60 * hours), "minute") if hours < 2 else f"{hours:.1f} hours"


def rows_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows of the same columns, as a table."""
    return _rendered(list(rows[0]), [[str(cell) for cell in row.values()] for row in rows])


def models_text(versions: "Sequence[ModelVersion]") -> str:
    """The registry, a line a version, and below the reasons of what was decided."""
    if not versions:
        return "no model is registered yet: `msrrn retrain` or `msrrn promote` registers one"
    rows, reasons = [], []
    for known in versions:
        error, decision, reason = (known.tags.get(f"msrrn.{tag}", "") for tag in ("nrmse_ip", "decision", "reason"))
        with suppress(ValueError):  # there is none, or a person edited it
            error = f"{float(error):.2%}"
        rows.append((known.name, str(known.version), ", ".join(known.aliases), error, decision))
        reasons += [_folded(f"{known.name} {known.version}: {reason}")] if reason else []
    return "\n".join([_rendered(("model", "version", "aliases", "NRMSE IP", "decision"), rows), *reasons])


def drift_text(report: "DriftReport") -> str:
    """A line for each feature, and the notes: of features that have the same one, it is there once."""
    rows = [
        (
            feature.name,
            feature.verdict,
            feature.base or "-",
            str(sum(feature.base_counts)),
            str(sum(feature.counts)),
            *("-" if value is None else f"{value:.3f}" for value in (feature.psi, feature.ks)),
        )
        for feature in report.features
    ]
    table = _rendered(("feature", "verdict", "compared with", "there", "now", "PSI", "KS"), rows)
    notes = dict.fromkeys(f"{feature.verdict}: {feature.note}" for feature in report.features if feature.note)
    return "\n".join([table, *notes, *report.notes])


def log_text(lines: "Mapping[str, Sequence[Line]]", champions: Mapping[str, int | None]) -> str:
    """The ledger of every model, oldest first: of each decision when, what, who and how it ended, below it why.

    `champions` are those of now, whom a person may have given since.
    """
    said = []
    for name, each in lines.items():
        if not each and champions[name]:
            why = "it became so by hand, or the model was renamed without its experiment, OLDNAME-promotions"
            said.append(_folded(f"{name}: version {champions[name]} is champion, and no line says so: {why}"))
        champion_of = [*(line.turn.champion for line in each), champions[name]]
        for line, then in zip(each, champion_of[1:], strict=True):
            turn = line.turn
            decision = f"{turn.what}, version {turn.version}, by {turn.who}"
            said.append(_folded(f"{name} {line.number}: {turn.when} {decision}: {line.end or 'no end yet'}"))
            said.append(_folded(f"  {turn.reason}"))
            if line.done and then != turn.champion_after:
                was = f"version {turn.champion_after}" if turn.champion_after else "none"
                moved = f"from {was} to {then or 'none'}"
                said.append(_folded(f"{name}: champion moved by hand, {moved}"))
    return "\n".join(said) or "nothing was decided yet"


def _folded(text: str) -> str:
    """A sentence as a terminal of 80 columns shows it, with what does not fit below it."""
    return textwrap.fill(showable(text), 80, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)


def _rendered(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index == 0 else "right", overflow="fold")
    for row in rows:
        table.add_row(*map(one_line, row))
    # Names and reasons are other people's: "[/data/new]" is no markup, ":smile:" no picture, and nothing in them an
    # order to the terminal, or a row of its own.
    console = Console(file=io.StringIO(), width=130, markup=False, emoji=False)
    console.print(table)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().rstrip()
