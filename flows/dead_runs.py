"""Flow runs whose process died: they are crashed, so that they hold no later run up, and started again.

The automation of infra/prefect/ does the first within two minutes, unless the server was away meanwhile: what it did
not hear it does not count. What was begun again goes on where it stopped, as every flow here does.
"""

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Final

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import (
    DeploymentFilter,
    DeploymentFilterId,
    FlowFilter,
    FlowFilterName,
    FlowRunFilter,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.client.schemas.sorting import FlowRunSort
from prefect.events.filters import EventFilter, EventNameFilter, EventResourceFilter
from prefect.runtime import flow_run
from prefect.settings import get_current_settings
from prefect.states import AwaitingRetry, Cancelled, Crashed, Running

from flows.gate import has_server
from pipelines.promotion.reconcile import Finding

STARTS: Final = 3
"""What dies so often is not begun again."""
DAY: Final = timedelta(days=1)
"""Nor is what died so long ago."""
SILENCE_SECONDS: Final = 75.0
"""Runs beat every 30 s (prefect.yaml); two beats are missing then."""

_FLOWS: Final = ("retrain", "promote", "annotate", "monitor", "reconcile")
_OPEN: Final = (StateType.PENDING, StateType.RUNNING, StateType.PAUSED, StateType.CANCELLING)


def free_dead_runs(minutes: float, sleep: Callable[[float], None] = time.sleep) -> list[Finding]:
    """Crashes the deployments' runs that nobody works on, and starts again what crashed; returns what it found.

    Nobody works on a run that is in its state for `minutes` and does not beat while this function watches. A crashed
    run is begun up to `STARTS` times in all, unless a later one did the same. Where no Prefect server runs, or
    runs do not say that they live (`PREFECT_FLOWS_HEARTBEAT_FREQUENCY`), it does nothing.
    """
    if not has_server() or get_current_settings().flows.heartbeat_frequency is None:
        return []
    with get_client(sync_client=True) as client:
        before = [(run, _beats(client, run)) for run in _doubtful(client, minutes)]
        if not before:
            return []
        sleep(SILENCE_SECONDS)
        found = []
        for run, beats in before:
            now = client.read_flow_run(run.id)
            if now.state_id == run.state_id and (finding := _mended(client, now, _beats(client, run) > beats)):
                found.append(finding)
        return found


def _doubtful(client: SyncPrefectClient, minutes: float) -> list[FlowRun]:
    """What has been at work for so long, and what crashed and may be begun again."""
    # Apart: of what crashed the server keeps all, and gives the latest 200, among which an open run may not be.
    found = [*_runs(client, *_OPEN), *_runs(client, StateType.CRASHED)]
    return [
        run
        for run in found
        if run.deployment_id and str(run.id) != flow_run.id and run.state
        if (_age(run) >= timedelta(minutes=minutes) if run.state.type in _OPEN else _may_start(client, run))
    ]


def _runs(client: SyncPrefectClient, *states: StateType) -> list[FlowRun]:
    """The latest of our flows' runs in one of these states."""
    return client.read_flow_runs(
        flow_filter=FlowFilter(name=FlowFilterName(any_=list(_FLOWS))),
        flow_run_filter=FlowRunFilter(state=FlowRunFilterState(type=FlowRunFilterStateType(any_=list(states)))),
        sort=FlowRunSort.START_TIME_DESC,
    )


def _mended(client: SyncPrefectClient, run: FlowRun, beats: bool) -> Finding | None:
    assert run.state is not None
    where = f"flow run {run.name}"
    if beats and run.state.type == StateType.CRASHED:
        # The automation took the silence of a server that was away for that of the run.
        client.set_flow_run_state(run.id, Running())
        return Finding(where=where, what="crashed, but somebody works on it", done="running")
    if beats:
        return None
    if run.state.type == StateType.CANCELLING:
        client.set_flow_run_state(run.id, Cancelled(message="Its worker is gone."), force=True)
        return Finding(where=where, what="its worker died before it was cancelled", done="cancelled")
    what, done = "crashed", "started again"
    if run.state.type in _OPEN:
        what, done = f"{run.state.name}, but nobody works on it", "crashed, and started again"
        message = f"No sign of life for {SILENCE_SECONDS:.0f} s; its worker or machine is gone."
        client.set_flow_run_state(run.id, Crashed(message=message), force=True)
        run = client.read_flow_run(run.id)
        if not _may_start(client, run):
            return Finding(where=where, what=what, done="crashed")
    elif not _may_start(client, run):
        return None  # another began meanwhile
    client.set_flow_run_state(run.id, AwaitingRetry())
    return Finding(where=where, what=what, done=done)


def _may_start(client: SyncPrefectClient, run: FlowRun) -> bool:
    """Not a run of `reconcile`: the next one is as good."""
    assert run.deployment_id is not None
    if _age(run) > DAY or _crashes(client, run) >= STARTS:
        return False
    if client.read_flow(run.flow_id).name == "reconcile":
        return False
    others = client.read_flow_runs(
        deployment_filter=DeploymentFilter(id=DeploymentFilterId(any_=[run.deployment_id])),
        sort=FlowRunSort.START_TIME_DESC,
    )
    began = run.start_time or run.expected_start_time
    later = (other for other in others if other.run_count and other.start_time and began and other.start_time > began)
    return all(other.parameters != run.parameters for other in later)


def _crashes(client: SyncPrefectClient, run: FlowRun) -> int:
    """How often it died; `run_count` knows nothing of a run that dies before it begins, and would never end that."""
    return sum(state.type == StateType.CRASHED for state in client.read_flow_run_states(run.id))


def _beats(client: SyncPrefectClient, run: FlowRun) -> int:
    """How often the server heard of a run: a number, so that no clocks are compared."""
    name = EventNameFilter(name=["prefect.flow-run.heartbeat"])
    of_run = EventResourceFilter(id=[f"prefect.flow-run.{run.id}"])
    return int(client.read_events(EventFilter(event=name, resource=of_run), limit=1).total)


def _age(run: FlowRun) -> timedelta:
    """Since it came into its state."""
    assert run.state is not None
    return datetime.now(UTC) - run.state.timestamp
