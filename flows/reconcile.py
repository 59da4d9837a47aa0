"""The flow `reconcile`: finishes what an event missed, and frees what a dead worker left."""

from typing import Annotated

from prefect import flow
from pydantic import Field

from flows import artifacts
from flows.dead_runs import free_dead_runs
from flows.gate import APPROVAL_HOURS, asking, enter, pass_gate
from flows.parameters import Place, RegisteredName, Workers
from flows.progress import say
from pipelines.promotion.reconcile import Finding
from pipelines.promotion.reconcile import reconcile as mend
from pipelines.registry.versions import ModelVersion
from pipelines.settings import RECONCILE_MINUTES, GateSettings


@flow(name="reconcile")
def reconcile(
    name: RegisteredName | None = None,
    places: list[Place] | None = None,
    minutes: Annotated[float, Field(ge=0, le=24 * 60)] = RECONCILE_MINUTES,
    settings: GateSettings | None = None,
    approve: bool = False,
    approval_hours: Annotated[float, Field(gt=0, le=24 * 365)] = APPROVAL_HOURS,
    workers: Workers = 2,
) -> list[Finding]:
    """Mends what was left half done. It may run at any time, and finds nothing the second time.

    Runs of the deployments that nobody works on any more are crashed; what crashed is started again.

    Args:
        name: one registered model; none: all that msrrn registered.
        places: where datasets and annotations lie, whose leases a dead worker may have left.
        minutes: what is younger may still be at work.
        settings: thresholds of the gate, for versions that were never judged.
        approve: hold their promotion until a person resumes the paused run: as the deployment `promote` does.
        approval_hours: for how long.
        workers: Ray workers.
    """
    ask = asking(approve, approval_hours)

    def judge(version: ModelVersion) -> str:
        challenge = enter(version.uri, None, None, version.name, workers, settings or GateSettings())
        decision, _ = pass_gate(challenge, ask)
        return f"{decision.verdict}. {decision.reason}"

    found = [*free_dead_runs(minutes), *mend(judge, name, places or [], minutes, on_wait=say)]
    for each in found:
        say(f"{each.where}: {each.what}: {each.done}")
    if found:
        artifacts.table(
            "reconciled",
            [each.model_dump() for each in found],
            f"{len(found)} things that were not as they should be, and what was done about them",
        )
    return found
