"""`msrrn serve`: the deployments of prefect.yaml on one machine, without a work pool and its worker.

The file is the one that `prefect deploy` reads, so that a deployment is described once.
"""

import asyncio
import os
import signal
import threading
import time
from collections.abc import Sequence
from http import HTTPStatus
from importlib import import_module
from pathlib import Path
from typing import Any, Final, cast

import psutil
import yaml
from prefect import Flow
from prefect.client.schemas.objects import ConcurrencyLimitConfig
from prefect.deployments.runner import RunnerDeployment
from prefect.events import DeploymentTriggerTypes
from prefect.exceptions import PrefectHTTPStatusError
from prefect.runner import Runner
from prefect.schedules import Schedule
from prefect.types.entrypoint import EntrypointType
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, with_config

from flows.gate import has_server
from flows.progress import say
from pipelines.errors import UsageError, UserError

WAIT: Final = 30.0
"""Seconds that runs have after Ctrl-C, as long as Prefect gives those that it cancels."""
_TRIGGERS: Final[TypeAdapter[list[Any]]] = TypeAdapter(list[DeploymentTriggerTypes])


@with_config(extra="forbid")
class _Schedule(Schedule):
    """As Prefect knows it; what it does not know is refused, as `prefect deploy` does."""


class _JobVariables(BaseModel):
    model_config = ConfigDict(extra="ignore")

    env: dict[str, str] = {}


class _WorkPool(BaseModel):
    """The pool itself does not concern one machine; the environment of its runs does."""

    model_config = ConfigDict(extra="ignore")

    job_variables: _JobVariables = _JobVariables()


class _Deployment(BaseModel):
    """What of a deployment's entry in prefect.yaml concerns one machine."""

    model_config = ConfigDict(extra="ignore")

    name: str
    entrypoint: str = Field(pattern=r"^flows/\w+\.py:\w+$")
    description: str | None = None
    parameters: dict[str, Any] = {}
    tags: list[str] = []
    paused: bool | None = None
    concurrency_limit: ConcurrencyLimitConfig | int | None = None
    schedules: list[_Schedule] = []
    triggers: list[dict[str, Any]] = []
    work_pool: _WorkPool = _WorkPool()


def deployments(file: Path) -> tuple[list[RunnerDeployment], dict[str, str]]:
    """The deployments that the file describes, and the environment of their runs: here, they share one.

    Raises:
        UserError: there is no such file, or it is not as it should be.
    """
    try:
        described = yaml.safe_load(file.read_text("utf-8"))
        found = TypeAdapter(list[_Deployment]).validate_python(described["deployments"])
        return [_made(each) for each in found], {
            name: value for each in found for name, value in each.work_pool.job_variables.env.items()
        }
    except OSError as error:
        raise UserError(f"{file} cannot be read ({error.strerror}): give --file, a prefect.yaml") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise UserError(f"{file} describes no deployments: {where}: {first['msg']}") from error
    except (yaml.YAMLError, KeyError, TypeError, ValueError, ImportError, AttributeError) as error:
        raise UserError(f"{file} describes no deployments: {str(error).splitlines()[0]}") from error


def serve(file: Path, limit: int) -> None:
    """Deploys to the server of PREFECT_API_URL and runs what is due, at most `limit` runs at once, until Ctrl-C,
    SIGTERM, or the end of its terminal.

    Raises:
        UsageError: there is no Prefect server.
        UserError: the file cannot be used, or the server refuses a parameter in it.
    """
    found, environment = deployments(file)
    if not has_server():
        raise UsageError(
            "set PREFECT_API_URL to the Prefect server that keeps schedules and runs: `prefect server start` and "
            "PREFECT_API_URL=http://127.0.0.1:4200/api"
        )
    os.environ.update(environment)  # runs inherit it
    try:
        run(found, limit)
    except PrefectHTTPStatusError as error:
        if error.response.status_code != HTTPStatus.CONFLICT:
            raise
        said = error.response.json()["detail"]
        raise UserError(f"the Prefect server refuses what {file} says: {said}") from error


def run(found: Sequence[RunnerDeployment], limit: int) -> None:
    """Registers deployments and runs what is due until a signal ends it."""
    runner = _Runner(limit=limit)
    for each in found:
        runner.add_deployment(each)
    names = ", ".join(each.name for each in found)
    say(f"serving {names}; `prefect deployment run NAME/NAME` starts one at once, Ctrl-C ends all")
    asyncio.run(runner.start())


class _Runner(Runner):
    """Lets runs end, trainings at a checkpoint, before it ends itself.

    Prefect's own kills them: a training loses what it did since its last checkpoint, and the server takes the run for
    one that goes on until somebody looks after it.
    """

    async def start(self, run_once: bool = False, webserver: bool | None = None) -> None:
        loop = asyncio.get_running_loop()
        if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:  # as in the background of a script
            loop.add_signal_handler(signal.SIGINT, self._end, WAIT)
        if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # as by `nohup`
            loop.add_signal_handler(signal.SIGHUP, self._end, 0.0)
            # A terminal that is closed tells all of its processes, and would end the runs at once. They inherit what
            # this thread does not hear.
            threading.Thread(target=threading.Event().wait, name="hears-hangup", daemon=True).start()
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
        await super().start(run_once, webserver)

    def handle_sigterm(self, *_: object, **__: object) -> None:
        asyncio.get_running_loop().call_soon_threadsafe(self._end, 0.0)

    def _end(self, seconds: float) -> None:
        asyncio.get_running_loop().remove_signal_handler(signal.SIGINT)  # a second one, of either, waits for nothing
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        self._ending = asyncio.create_task(self._ended(seconds))

    async def _ended(self, seconds: float) -> None:
        """A terminal tells the runs as well, which end at once where they are told twice."""
        say("stopping: what runs is ended first")
        runs = psutil.Process().children()
        until = time.monotonic() + seconds
        while time.monotonic() < until and any(run.is_running() for run in runs):
            await asyncio.sleep(0.2)
        await self.astop()


def _made(described: _Deployment) -> RunnerDeployment:
    module, name = described.entrypoint.split(":")
    flow = cast("Flow[Any, Any]", getattr(import_module(module.removesuffix(".py").replace("/", ".")), name))
    triggers = [{"name": f"{described.name}__automation_{n}", **each} for n, each in enumerate(described.triggers, 1)]
    made = flow.to_deployment(
        described.name,
        description=described.description,
        tags=described.tags,
        paused=described.paused,
        parameters=described.parameters,
        concurrency_limit=described.concurrency_limit,
        schedules=list(described.schedules),
        triggers=_TRIGGERS.validate_python(triggers),
        entrypoint_type=EntrypointType.MODULE_PATH,
    )
    return cast(RunnerDeployment, made)
