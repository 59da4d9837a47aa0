"""The gate as an operator sees it: tasks, artifacts, and a person who is asked.

A promotion that needs approval is held: with a Prefect server the flow run is paused, until somebody resumes it in
the UI and fills in a form; on a terminal somebody types y. Where there is neither, it is refused before any work.
"""

import base64
import shlex
import sys
import time
from functools import partial
from typing import Any, Final
from uuid import UUID, uuid4

from prefect import task
from prefect.artifacts import create_image_artifact
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State
from prefect.events import emit_event
from prefect.exceptions import Abort, CancelledRun, FlowPauseTimeout
from prefect.input import RunInput, keyset_from_paused_state
from prefect.runtime import flow_run
from prefect.settings import get_current_settings
from prefect.states import Cancelled, Paused
from pydantic import Field, ValidationError

from flows import artifacts
from flows.progress import say
from flows.tasks import STATION
from pipelines.errors import UsageError, UserError
from pipelines.promotion import gate
from pipelines.promotion.challenge import Challenge, challenge_of
from pipelines.promotion.decision import Decision, shown
from pipelines.promotion.gate import Approval, Ask, Judgement
from pipelines.promotion.page import CHANGED, LEGEND, SCATTER
from pipelines.registry.turns import whoami
from pipelines.registry.versions import ModelVersion
from pipelines.showable import no_markup

REGISTERED: Final = "msrrn.model.registered"
"""The event that says that there is a new version to be judged."""
APPROVAL_HOURS: Final = 72
POLL_SECONDS: Final = 10


enter = task(name="enter challenger", **STATION)(challenge_of)


@task(name="judge", **STATION)
def judge(challenge: Challenge, held: bool) -> Judgement:
    """Champion against challenger on the same faces; nothing moves; a promotion that is held is not told as one."""
    judgement = gate.judge(challenge)
    version, decision = judgement.version, judgement.decision
    verdict = "to be promoted, if approved" if held and decision.promote else decision.verdict
    title = f"{version.name} {version.version}: {verdict}"
    say(f"{version.name} version {version.version}: {verdict}. {decision.reason}")
    artifacts.words("promotion", title, decision.reason)
    if decision.rows:
        artifacts.table(
            "promotion-figures",
            [shown(row) for row in decision.rows],
            f"{title}. The first row decides, the others are floors. MLflow run {judgement.run}",
        )
    pictures = {
        SCATTER: ("promotion-errors", "image/svg+xml", "Every face: error of the champion and of the challenger"),
        CHANGED: ("promotion-faces", "image/jpeg", f"The faces that changed most; {LEGEND}"),
    }
    for file, (key, kind, description) in pictures.items():
        if file in judgement.files:
            data = base64.b64encode(judgement.files[file]).decode()
            create_image_artifact(key=key, image_url=f"data:{kind};base64,{data}", description=description)
    return judgement


@task(name="carry out", **STATION)
def carry_out(judgement: Judgement, approval: Approval | None) -> Decision:
    """Moves the aliases as was decided, and as a person approved."""
    decision = gate.carry_out(judgement, approval, say)
    if decision != judgement.decision:  # by a person: what was judged is said already
        say(f"{judgement.version.name} version {judgement.version.version}: {decision.verdict}. {decision.reason}")
    return decision


def pass_gate(challenge: Challenge, ask: Ask | None) -> tuple[Decision, Judgement]:
    """`pipelines.promotion.gate.pass_gate` in tasks; called by a flow, which is what can be paused."""
    return gate.pass_gate(challenge, ask, partial(judge, held=ask is not None), carry_out)


def announce(version: ModelVersion) -> None:
    """Emits the event that starts the flow `promote` where that is deployed."""
    emit_event(
        event=REGISTERED,
        resource={"prefect.resource.id": f"msrrn.model.{version.name}", "prefect.resource.name": version.name},
        payload={"name": version.name, "version": version.version, "model": version.uri},
    )


def asking(approve: bool, hours: float = APPROVAL_HOURS) -> Ask | None:
    """Who is asked: whoever resumes the paused flow run, else whoever sits at the terminal.

    Raises:
        UsageError: there is neither a Prefect server nor a terminal.
    """
    if not approve:
        return None
    if has_server():
        return lambda judgement: _pause(judgement, hours)
    if not sys.stdin.isatty():
        raise UsageError("--approve asks a person: run it on a terminal, or set PREFECT_API_URL to a Prefect server")
    return ask_here


def has_server() -> bool:
    """Whether Prefect has a server to show a flow run, and not only an API for the time of one command."""
    return bool(get_current_settings().api.url)


def ask_here(judgement: Judgement) -> Approval:
    """Asks on the terminal; anything but y or yes is no."""
    version = judgement.version
    say(f"\n{judgement.decision.reason}\nThe table and the faces: MLflow run {judgement.run}")
    approve = _answer(f"Promote {version.name} version {version.version}? [y/N] ").lower() in ("y", "yes")
    return Approval(approve=approve, note=_answer("Why? (may be empty) ")[:1000], who=whoami())


def _answer(question: str) -> str:
    print(question, end="", file=sys.stderr, flush=True)  # stdout belongs to results
    return sys.stdin.readline().strip()


class HeldRunCancelled(Abort, KeyboardInterrupt):
    """The flow run that waits for approval was cancelled, which ends all that it was about to do, as Ctrl-C does.

    Prefect leaves the state as it is where this ends a flow: after an error it would be Failed.
    """


class _Answer(Approval):
    """Of a form, which must be answered: who resumes a run without one has not said no."""

    approve: bool = Field(description="promote this version", json_schema_extra={"default": False})


def _pause(judgement: Judgement, hours: float) -> Approval:
    version = judgement.version
    form: Any = RunInput.subclass_from_base_model_type(_Answer)
    question = form.with_initial_data(
        description=f"**Promote {no_markup(version.name)} version {version.version}?**\n\n"
        f"{no_markup(judgement.decision.reason)}\n\n"
        f"The table and the faces are artifacts of this run, and in MLflow run `{judgement.run}`.",
    )
    what = f"{version.name} version {version.version}"
    call = shlex.join(["msrrn", "promote", "--approve", "--name", version.name, "--model", version.uri])
    while True:
        say(f"{what} waits for approval: resume the paused flow run")
        try:
            answer = _resumed(question, hours)
        except ValidationError:
            continue  # nobody answered: it was only said to be running (`flows.dead_runs`)
        except FlowPauseTimeout:
            ended = f"nobody approved {what} within {hours:g} hours"
            raise UserError(f"{ended}: nothing changed, and {call} asks again") from None
        except CancelledRun:
            ended = f"the flow run that waited for approval of {what} was cancelled"
            raise HeldRunCancelled(f"{ended}: nothing changed, and {call} asks again") from None
        return Approval(approve=answer.approve, note=answer.note, who=answer.who)


def _resumed(question: Any, hours: float) -> Any:
    """Pauses this flow run; returns the answer of who resumes it.

    Prefect's own `pause_flow_run` waits on where the run was cancelled, and a run that no worker began is not ended
    by anybody else.

    Raises:
        CancelledRun: the run was cancelled.
        FlowPauseTimeout: nobody resumed it.
        ValidationError: it goes on without an answer.
    """
    # A key of its own: a run that died here and was started again is asked anew, and no answer is another question's.
    paused: State[Any] = Paused(timeout_seconds=round(3600 * hours), pause_key=uuid4().hex)
    form: Any = keyset_from_paused_state(paused)
    paused.state_details.run_input_keyset = form
    until = time.monotonic() + 3600 * hours
    with get_client(sync_client=True) as client:
        client.set_flow_run_state(UUID(flow_run.id), paused)
        question.save(form)
        while True:
            time.sleep(POLL_SECONDS)
            state = client.read_flow_run(UUID(flow_run.id)).state
            if state is not None and state.is_running():
                return question.load(form)
            if state is not None and (state.is_cancelled() or state.is_cancelling()):
                client.set_flow_run_state(UUID(flow_run.id), Cancelled(), force=True)  # there is no worker that would
                raise CancelledRun
            if time.monotonic() > until:
                raise FlowPauseTimeout
