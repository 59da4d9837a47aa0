"""The flow `monitor`: do recent annotation runs see what the model was trained on?"""

from typing import Annotated, Final

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.events import emit_event
from prefect.states import Completed
from pydantic import Field

from flows.parameters import Place
from flows.tasks import compare_runs
from pipelines.monitoring.drift import DriftReport
from pipelines.settings import DriftSettings

DRIFT_DETECTED: Final = "msrrn.drift.detected"


@flow(name="monitor")
def monitor(
    runs: Annotated[list[Place], Field(min_length=1)],
    out: Place,
    dataset: Place | None = None,
    reference: Place | None = None,
    settings: DriftSettings | None = None,
) -> DriftReport | State[None]:
    """Compares recent annotation runs with the training dataset; emits `msrrn.drift.detected` where they drifted.

    Args:
        runs: places of annotation runs, or folders of such places.
        out: where the report and its page go.
        dataset: what the model was trained on, or a place of datasets: there, what the champion was trained on.
        reference: a run to compare with; without one, the oldest that has the model and settings of the newest.
        settings: thresholds, and how many runs are recent.

    Where nothing was annotated yet, there is nothing to compare, and nothing wrong with that.
    """
    found = compare_runs(runs, out, settings or DriftSettings(), dataset, reference)
    if isinstance(found, str):
        return Completed(message=found)
    report, page = found
    if report.verdict == "drifted":
        emit_event(
            event=DRIFT_DETECTED,
            resource={"prefect.resource.id": "msrrn.annotations", "prefect.resource.name": "annotations"},
            payload={"features": report.named("drifted"), "page": page, "runs": [run.url for run in report.runs]},
        )
    return report
