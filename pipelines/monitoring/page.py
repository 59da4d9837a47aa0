"""The page of a comparison of runs: each feature with its verdict, and both histograms. It holds no picture."""

from typing import Final

from pipelines.annotation.faces import MEASURES
from pipelines.figures import binned_figure
from pipelines.monitoring.drift import DriftReport, FeatureDrift
from pipelines.page import Page
from pipelines.storage import Store

REPORT: Final = "drift.json"
PAGE: Final = "index.html"

_LEADS: Final = {
    "drifted": "Drift: recent runs see other faces or pictures than before",
    "warning": "No drift, but something to look at",
    "stable": "No drift",
    "unknown": "Nothing can be said yet",
}
_METHOD: Final = """
The population stability index (PSI) is Σ (q − p) ln(q / p) over {bins} groups of about equal size in the base; KS is
the largest distance between the two cumulative shares. A feature drifted where its PSI is {psi_alarm} or more, or its
KS {ks_alarm} or more; it is worth a look from {psi_warning} and {ks_warning}. By the convention of credit scoring a
PSI under 0.1 is no change and one over 0.25 a large one (E. M. Lewis, An Introduction to Credit Scoring, 1994); two
normal distributions half a standard deviation apart have a PSI of 0.25 and a KS of 0.2.

What chance makes of samples of these sizes, with probability {chance}, stands behind each number as ≤: a difference
below it is none. For the PSI that is the quantile of χ² with as many degrees of freedom as groups less one, times
1/n + 1/m (B. Yurdakul, Statistical Properties of Population Stability Index, 2018).
"""


def write_drift(report: DriftReport, out: Store) -> str:
    """Publishes `drift.json` and the page below `out`; gives the page's place."""
    out.publish(REPORT, report.model_dump_json(indent=1).encode())
    out.publish(PAGE, drift_page(report).encode())
    return f"{out.url}/{PAGE}"


def drift_page(report: DriftReport) -> str:
    """The page as one self-contained HTML text; the same report gives the same text."""
    drifted = [feature.label for feature in report.features if feature.verdict == "drifted"]
    page = Page(
        "Drift",
        f"{_LEADS[report.verdict]}{': ' + ', '.join(drifted) if drifted else ''}.\n\n" + " ".join(report.notes),
    )
    page.section("Verdicts")
    page.facts(
        [
            ("Recent runs", f"{len(report.runs)}, with {sum(run.pictures for run in report.runs)} pictures"),
            ("Dataset", report.dataset or "none given"),
            ("Reference run", report.reference or "none"),
        ]
    )
    columns = ["Feature", "Verdict", "Compared with", "There", "Now", "PSI", "KS", "Note"]
    page.table(columns, [_row(feature) for feature in report.features])
    page.section("Runs", "Each by itself: its PSI, where it has enough to say.")
    names = [feature.name for feature in report.features]
    rows = [
        [run.url, run.pictures, run.faces, *(f"{run.psi[name]:.2f}" if name in run.psi else "–" for name in names)]
        for run in report.runs
    ]
    page.table(["Run", "Pictures", "Faces", *names], rows)
    _distributions(page, report)
    page.section("How it is judged", _METHOD.format(**report.settings.model_dump()))
    return page.html()


def _row(feature: FeatureDrift) -> list[object]:
    return [
        feature.label,
        feature.verdict,
        feature.base or "–",
        sum(feature.base_counts),
        sum(feature.counts),
        _number(feature.psi, feature.psi_noise),
        _number(feature.ks, feature.ks_noise),
        feature.note,
    ]


def _number(value: float | None, noise: float | None) -> str:
    return "–" if value is None else f"{value:.3f} (≤ {noise:.3f})"


def _distributions(page: Page, report: DriftReport) -> None:
    page.section("Distributions")
    for feature in report.features:
        series = {feature.base: feature.base_counts} if feature.base else {}
        series["recent runs"] = feature.counts
        if measure := MEASURES.get(feature.name):
            figure = binned_figure(series, measure.edges.tolist(), feature.label, measure.log, feature.of)
            page.figure(figure, f"{feature.label}: {feature.verdict}.")
        else:
            rows = [
                [name, *(f"{100 * counts[index] / max(1, sum(counts)):.2f} %" for counts in series.values())]
                for index, name in enumerate(feature.bins)
            ]
            page.table(["", *series], rows, f"{feature.label}, in % of {feature.of}: {feature.verdict}.")
