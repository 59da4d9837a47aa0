"""Figures as SVG text: the same input gives the same bytes.

Lettering takes the colour of the page around it (`currentColor`), so a figure reads on light and on
dark. One unit is one pixel on a phone 360 px wide. The type `Markup` tells the page that a text is
a figure of ours, and safe to embed.
"""

import io
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
from markupsafe import Markup
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from pipelines.showable import showable

_INK: Final = "#010203"
"""Stands for `currentColor`, which matplotlib does not know; no figure uses it otherwise."""
_COLOURS: Final = ("#2b86c5", "#d55e00", "#009e73", "#cc79a7", "#c98b00", "#7f7f7f")
"""After Okabe and Ito's colour-blind safe set, kept mid-light to read on black and on white."""
_DASHES: Final = ("-", "--", "-.", ":")
_OURS: Final[dict[str, Any]] = {
    "axes.axisbelow": True,
    "axes.edgecolor": _INK,
    "axes.grid": True,
    "axes.labelcolor": _INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 12,
    "grid.alpha": 0.18,
    "grid.color": _INK,
    "grid.linewidth": 0.8,
    "legend.fontsize": 11.5,
    "legend.frameon": False,
    "legend.handlelength": 1.8,
    "lines.linewidth": 2.0,
    "svg.fonttype": "none",
    "svg.hashsalt": "msrrn",
    "text.color": _INK,
    "text.parse_math": False,
    "xtick.color": _INK,
    "xtick.labelsize": 11.5,
    "ytick.color": _INK,
    "ytick.labelsize": 11.5,
}
_STYLE: Final = ("default", _OURS)
"""On top of matplotlib's own: a user's `matplotlibrc` may ask for LaTeX, or for other letters than the pages have."""
_WIDTH, _HEIGHT = 360, 245
_CED_STEPS: Final = 240
_SCATTERED: Final = 2000


def ced_figure(errors: Mapping[str, Sequence[float]], limit: float, xlabel: str) -> Markup:
    """Cumulative error distribution of each stage or model: the % of faces with an error up to x.

    x runs from 0 to `limit`, in the unit of the errors; the legend keeps the order given. An error
    that is not finite counts as a face beyond every limit.
    """
    with style.context(_STYLE):
        figure, axes = _axes(xlabel, "% of faces")
        grid = np.linspace(0.0, limit, _CED_STEPS + 1)
        for index, (name, values) in enumerate(errors.items()):
            ordered = np.sort(np.asarray(values, dtype=np.float64))
            share = 100 * np.searchsorted(ordered, grid, side="right") / max(1, ordered.size)
            label = name if ordered.size else f"{name} (no faces)"
            _line(axes, index, grid if ordered.size else [], share if ordered.size else [], label)
        axes.set_xlim(0, limit)
        axes.set_ylim(0, 102)
        axes.set_yticks(range(0, 101, 20))
        axes.xaxis.set_major_locator(MaxNLocator(nbins=5))
        _legend(axes)
        return _svg(figure)


def curves_figure(
    series: Mapping[str, Sequence[tuple[float, float]]], xlabel: str, ylabel: str, log_y: bool = False
) -> Markup:
    """Lines through (x, y) points, one for each series; points that cannot be shown leave a gap."""
    with style.context(_STYLE):
        figure, axes = _axes(xlabel, ylabel)
        if log_y:
            axes.set_yscale("log", nonpositive="mask")
            _plain_ticks(axes.yaxis)
        for index, (name, points) in enumerate(series.items()):
            x, y = np.asarray(points, dtype=np.float64).reshape(-1, 2).T
            line = _line(axes, index, x, np.where(np.isfinite(y), y, np.nan), name)
            if len(x) <= 12:
                line.set_marker("o")
                line.set_markersize(4.5)
        _legend(axes)
        return _svg(figure)


def binned_figure(
    counts: Mapping[str, Sequence[int]], edges: Sequence[float], xlabel: str, log_x: bool = False, of: str = "faces"
) -> Markup:
    """Shares of each series in bins counted before, as steps: series of unlike sizes compare.

    `of` says what was counted. `edges` has one element more than each series; empty bins at both ends are cut off.
    """
    with style.context(_STYLE):
        figure, axes = _axes(xlabel, f"% of {of}")
        totals = np.sum([np.asarray(series) for series in counts.values()], axis=0) if counts else np.zeros(0)
        used = np.flatnonzero(totals)
        if not used.size:
            _nothing(axes)
            return _svg(figure)
        first, last = int(used[0]), int(used[-1]) + 1
        for index, (name, series) in enumerate(counts.items()):
            share = 100 * np.asarray(series, np.float64)[first:last] / max(1, sum(series))
            steps = np.concatenate([[0.0], np.repeat(share, 2), [0.0]])
            _line(axes, index, np.repeat(np.asarray(edges)[first : last + 1], 2), steps, name)
        if log_x:
            axes.set_xscale("log")
            _plain_ticks(axes.xaxis)
        else:
            axes.xaxis.set_major_locator(MaxNLocator(nbins=5))
        axes.set_ylim(bottom=0)
        _legend(axes)
        return _svg(figure)


def scatter_figure(x: Sequence[float], y: Sequence[float], xlabel: str, ylabel: str) -> Markup:
    """Points of positive coordinates on logarithmic axes of one range, and the line on which both are equal.

    Of more than `_SCATTERED` points, evenly spaced ones are drawn.
    """
    with style.context(_STYLE):
        figure, axes = _axes(xlabel, ylabel)
        points = np.stack([np.asarray(x, np.float64), np.asarray(y, np.float64)], axis=1)
        points = points[np.isfinite(points).all(axis=1) & (points > 0).all(axis=1)]
        if not len(points):
            _nothing(axes)
            return _svg(figure)
        points = points[:: -(-len(points) // _SCATTERED)]
        ends = [0.9 * points.min(), 1.1 * points.max()]
        axes.plot(ends, ends, color=_INK, linewidth=1.0, alpha=0.5)
        axes.scatter(points[:, 0], points[:, 1], s=14, color=_COLOURS[0], alpha=0.55, linewidths=0)
        axes.set(xscale="log", yscale="log", xlim=ends, ylim=ends, aspect="equal")
        _plain_ticks(axes.xaxis)
        _plain_ticks(axes.yaxis)
        return _svg(figure)


def standing_alone(svg: Markup) -> bytes:
    """A figure as a file of its own, where no page gives it a colour: a grey that reads on light and on dark."""
    return str(svg).replace("currentColor", "#808080").encode()


def _axes(xlabel: str, ylabel: str) -> tuple[Figure, Axes]:
    """With place for labels around them: to have matplotlib look for it takes as long as to draw them."""
    figure = Figure(figsize=(_WIDTH / 72, _HEIGHT / 72))
    FigureCanvasSVG(figure)
    figure.subplots_adjust(left=68 / _WIDTH, right=1 - 16 / _WIDTH, bottom=44 / _HEIGHT, top=1 - 10 / _HEIGHT)
    axes = figure.add_subplot()
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    axes.tick_params(length=0, pad=6)
    return figure, axes


def _plain_ticks(logarithmic: Axis) -> None:
    """1, 2, 5, 10, … instead of powers of ten."""
    logarithmic.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    logarithmic.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    logarithmic.set_minor_locator(NullLocator())


def _line(
    axes: Axes, index: int, x: Sequence[float] | np.ndarray, y: Sequence[float] | np.ndarray, name: str
) -> Line2D:
    (line,) = axes.plot(x, y, color=_COLOURS[index % len(_COLOURS)], linestyle=_DASHES[index % len(_DASHES)])
    # matplotlib hides labels that begin with an underscore; a zero-width space keeps them.
    label = showable(name)
    line.set_label(f"\u200b{label}" if label.startswith("_") else label)
    return line


def _legend(axes: Axes) -> None:
    if axes.get_lines():
        # Above the plot, where it can hide no curve; wider than the figure, it would make the plot narrow.
        longest = max(len(str(line.get_label())) for line in axes.get_lines())
        columns = min(3, max(1, 36 // max(1, longest)))
        rows = -(-len(axes.get_lines()) // columns)
        axes.figure.subplots_adjust(top=1 - (10 + 18 * rows) / _HEIGHT)
        axes.legend(loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=columns, borderaxespad=0.2, handlelength=1.8)
    else:
        _nothing(axes)


def _nothing(axes: Axes) -> None:
    axes.text(0.5, 0.5, "no data", transform=axes.transAxes, ha="center", va="center")


def _svg(figure: Figure) -> Markup:
    buffer = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    text = buffer.getvalue()
    # The declaration and the document type have no place inside HTML, and name an external DTD.
    return Markup(text[text.index("<svg") :].replace(_INK, "currentColor"))
