"""What a benchmark measured, as CSV tables and one HTML page."""

import io
from collections.abc import Mapping, Sequence
from typing import Any, Final

import pyarrow as pa
import pyarrow.csv

from pipelines.evaluation.benchmark import OFFICIAL, Benchmark
from pipelines.evaluation.results import seen_note
from pipelines.figures import ced_figure, curves_figure
from pipelines.page import Page
from pipelines.report import add_faces
from pipelines.showable import counted, no_formula, one_line
from pipelines.storage import Store

PAGE: Final = "index.html"

Rows = Sequence[Mapping[str, Any]]


def write_benchmark(result: Benchmark, out: Store) -> None:
    """Writes `table1.csv`, `table2.csv`, `ced.csv`, `robustness.csv`, `speed.csv`, `confidence.csv`, `index.html`."""
    tables: dict[str, Rows] = {
        "table1": result.table1(),
        "table2": result.table2(),
        "ced": [
            {"method": name, "nrmse_ip": round(float(error), 6)}
            for name, errors in result.errors.items()
            for error in sorted(errors)
        ],
        "robustness": [row._asdict() for row in result.robustness],
        "speed": [vars(speed) for speed in result.speeds],
        "confidence": [{"expected %": expected, "true %": true} for expected, true in result.reliability()],
    }
    for name, rows in tables.items():
        out.publish(f"{name}.csv", _csv(rows))
    out.publish(PAGE, benchmark_page(result).encode())


def shown(rows: Rows) -> list[dict[str, Any]]:
    """Rows of Table 1 or 2 for people: errors with two digits, shares with one, a dash for what is not known."""

    def cell(title: str, value: Any) -> Any:
        if isinstance(value, float):
            return f"{value:.1f}" if title.startswith("under") else f"{value:.2f}"
        return "-" if value is None else value

    return [{title: cell(title, value) for title, value in row.items()} for row in rows]


def _csv(rows: Rows) -> bytes:
    def cell(value: Any) -> Any:  # what a model is called, and what its card says, is other people's
        return no_formula(one_line(value)) if isinstance(value, str) else value

    sink = io.BytesIO()
    pyarrow.csv.write_csv(pa.Table.from_pylist([{key: cell(row[key]) for key in row} for row in rows]), sink)
    return sink.getvalue()


def benchmark_page(result: Benchmark) -> str:
    """The page as one self-contained HTML text."""
    table = result.evaluation.table()["all"]
    protocol = table["protocol"]
    page = Page(
        "Benchmark",
        f"{result.evaluation.model} in {protocol['precision']} on {counted(table['faces'], 'face')} "
        f"({result.evaluation.selection}).\n\n"
        f"Boxes: {protocol['boxes']} ({table['missed']} missed, and counted). IP: errors over the distance of the "
        f"pupils. Trained on {result.evaluation.training_set}. "
        f"{seen_note(result.evaluation)}",
    )
    _methods(page, result)
    page.section("Stages")
    _table(page, shown(result.table2()), "Table 2. All faces; each stage starts from the one before.")
    errors = {name: each.tolist() for name, each in result.errors.items()}
    page.figure(ced_figure(errors, 0.15, "NRMSE IP"), "Cumulative error distribution.")
    _robustness(page, result)
    _confidence(page, result)
    page.section(
        "Speed", "From grey crops of 200 px to shapes, 64 faces at a time (on a GPU 16,384), by turns in one process."
    )
    rows = [
        {
            "what": speed.what,
            "on": speed.where,
            "in": speed.precision,
            "faces/s": f"{speed.faces_per_second:.0f}",
            "ms a face": f"{1000 / speed.faces_per_second:.3f}",
        }
        for speed in result.speeds
    ]
    _table(page, rows)
    add_faces(page, result.evaluation)
    return page.html()


def _methods(page: Page, result: Benchmark) -> None:
    table = result.table1()
    published = any(row["figures"] == "published" for row in table)
    if result.official():
        faces = "The faces are as many as the official test sets have, so published figures may stand beside them."
    else:
        counts = ", ".join(f"{name} {int(rows.sum())}" for name, rows in result.columns().items())
        official = ", ".join(f"{name} {count}" for name, count in OFFICIAL.items())
        faces = (
            f"These are not the official test sets ({official}). Faces: {counts}. Published figures, which are on "
            f"the official sets, {'only show the scale' if published else 'are left out'}."
        )
    page.section("Methods", faces)
    quoted = " Published rows: boxes of their own, as quoted in the literature." if published else ""
    _table(page, shown(table), f"Table 1. NRMSE IP in %.{quoted}")


def _robustness(page: Page, result: Benchmark) -> None:
    page.section("Robustness", "Every face again, with a worse box or picture.")
    clean = result.robustness[0]
    rows = []
    for row in result.robustness:
        cells = {
            "perturbation": row.name,
            "IP %": f"{100 * row.nrmse_ip:.2f}",
            "of clean": f"{row.nrmse_ip / clean.nrmse_ip:.2f} ×",
            "over 0.10 %": f"{100 * row.failures:.1f}",
        }
        if result.ert:
            cells |= {
                "ERT, IP %": f"{100 * row.ert_nrmse_ip:.2f}",
                "ERT, over 0.10 %": f"{100 * row.ert_failures:.1f}",
                "ours of ERT": f"{row.nrmse_ip / row.ert_nrmse_ip:.2f} ×",
            }
        rows.append(cells)
    _table(page, rows)


def _confidence(page: Page, result: Benchmark) -> None:
    page.section("Does it know?", "The error that the model expects of each face, against the true one.")
    page.facts([(name, "-" if value is None else str(value)) for name, value in result.honesty().items()])
    points = result.reliability()
    top = max(max(point) for point in points)
    page.figure(
        curves_figure({"faces": points, "perfect": [(0, 0), (top, top)]}, "expected NRMSE IP, %", "true NRMSE IP, %"),
        "Reliability: tenths of the faces, by what the model expected.",
    )


def _table(page: Page, rows: Rows, caption: str = "") -> None:
    page.table(list(rows[0]), [list(row.values()) for row in rows], caption)
