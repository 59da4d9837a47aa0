"""The loop of `pipelines.training.loop` on the workers of Ray Train, elastic on a cluster."""

import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager
from functools import partial
from typing import Any, Final

import numpy as np

from pipelines.dataset.loader import Loader
from pipelines.dataset.manifest import read_manifest
from pipelines.engine import in_a_thread, start_ray
from pipelines.errors import UserError
from pipelines.outages import OutageError
from pipelines.settings import TrainSettings
from pipelines.storage import Store
from pipelines.training.checkpoints import Checkpoints
from pipelines.training.epochs import Epoch, OnEpoch, epoch_done, interruptible
from pipelines.training.loop import DivergedError, train
from pipelines.training.state import TrainState

WORKER_FAILURES: Final = 3
"""Of workers, or of their machines, that a training stands without a checkpoint in between."""
POLL_SECONDS: Final = 0.2
"""how often it is looked whether a person wants the training to stop"""
ANSWER_SECONDS: Final = 10.0
"""How long Ray has to take the wish to stop. A signal that went to all processes has ended Ray, too: nothing of it
answers then, and after a minute it would end this process without a word."""
STOP_SECONDS: Final = 20.0
"""How long a training that is cancelled has to come to a checkpoint: Prefect kills a run after 30 s."""


def train_on_ray(
    store: Store, name: str, settings: TrainSettings, workers: int, checkpoints: Checkpoints, progress: OnEpoch
) -> TrainState:
    """Trains as `pipelines.training.loop.train` does, on up to `workers` workers; its reports come back through a
    queue.

    Raises:
        UserError: training failed.
        KeyboardInterrupt: after Ctrl-C, at a checkpoint, as what else a signal raises.
    """
    state = TrainState(settings, np.zeros((68, 2), np.float32))
    checkpoints.restore(state)  # a damaged one is found here, not by workers that Ray would start again
    start_ray(workers)
    import ray.train

    with _followed(progress) as (following, reports, wishes), interruptible() as stopping:
        config = {"dataset": store.absolute(), "settings": settings, "checkpoints": checkpoints}
        config |= {"reports": reports, "wishes": wishes}
        while True:
            before = checkpoints.version
            fitting = in_a_thread(_trainer(config, min(workers, settings.batch)).fit)
            # What `progress` raises ends the training, too, as it does without Ray.
            _wait_for(fitting, lambda: stopping() or following.done(), wishes)
            if stopping():
                raise KeyboardInterrupt
            if following.done():
                following.result()
            try:
                fitting.result()
                break
            except (ray.train.TrainingFailedError, ray.exceptions.RayActorError) as error:
                # Ray counts the failures of the whole training; machines may come and go for days. But where what
                # watches over the workers died, it keeps their places, for which others would wait without end.
                if checkpoints.version != before and isinstance(error, ray.train.TrainingFailedError):
                    continue
                raise UserError(f"training {name} failed: {why(error)}") from error
    if not checkpoints.restore(state) or state.epoch < settings.epochs:
        # The latter where another took over meanwhile, and is not as far.
        raise UserError(
            f"training {name} left no last checkpoint at {checkpoints.place.url}; run it again with --debug"
        )
    return state


def why(error: Exception) -> str:
    """What a person has to know of what Ray says of a training that failed."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if outage := next((line for line in lines if "OutageError: " in line), None):
        return outage.rpartition("OutageError: ")[2]
    if any("The actor died" in line or "The actor is dead" in line for line in lines):
        return (
            "its processes died, perhaps for want of memory; what is finished is kept: run again with fewer workers "
            "(--workers 0 needs the least)"
        )
    return lines[-1]


def _trainer(config: dict[str, Any], workers: int) -> Any:
    """A `TorchTrainer` of up to so many workers, which get `config`."""
    import ray.train
    from ray.train.torch import TorchTrainer

    here = ray.cluster_resources()
    gpus = int(here.get("GPU", 0))
    # A local Ray never grows: it would wait for more than it has without end. On a cluster, training begins with what
    # is there, and takes in workers as they come and go, each time from the last checkpoint.
    elastic = bool(os.environ.get("RAY_ADDRESS"))
    most = workers if elastic else min(workers, gpus or int(here["CPU"]))
    return TorchTrainer(
        _worker,
        train_loop_config=config,
        torch_config=_across_machines() if elastic else None,
        scaling_config=ray.train.ScalingConfig(num_workers=(1, most) if elastic else most, use_gpu=gpus > 0),
        run_config=ray.train.RunConfig(
            name="ray",
            storage_path=config["checkpoints"].place.url,
            failure_config=ray.train.FailureConfig(max_failures=WORKER_FAILURES),
        ),
    )


def _wait_for(fitting: Future[Any], stopping: Callable[[], bool], wishes: Any) -> None:
    """Hands the wish to stop on to the workers; returns when they are done, or nothing of Ray answers any more."""
    asked: Future[None] | None = None
    try:
        while not wait([fitting], POLL_SECONDS).done:
            if asked is None and stopping():
                asked = in_a_thread(partial(wishes.put, "stop"))
                if not wait([asked], ANSWER_SECONDS).done or asked.exception():
                    return
    except KeyboardInterrupt:  # the second one
        raise
    except BaseException:  # what cancels a flow: workers would fail, and be started while this process ends
        in_a_thread(partial(wishes.put, "stop"))
        wait([fitting], STOP_SECONDS)
        raise


def _across_machines() -> Any:
    """Torch's settings for workers that find each other where Ray's nodes do.

    By itself gloo listens where the machine's name leads, which on Debian is 127.0.1.1.
    """
    from ray.train.torch import TorchConfig

    usual: Any = TorchConfig().backend_cls

    class Backend(usual):  # type: ignore[misc]
        def on_start(self, worker_group: Any, backend_config: Any) -> None:
            worker_group.execute(listen_at_the_node)
            super().on_start(worker_group, backend_config)

    class Config(TorchConfig):  # type: ignore[misc]
        @property
        def backend_cls(self) -> Any:
            return Backend

    return Config()


def listen_at_the_node() -> None:
    """Has gloo in this process listen on the interface of the node's address, unless the operator names another."""
    import psutil
    from ray.util import get_node_ip_address

    node = get_node_ip_address()
    for name, addresses in psutil.net_if_addrs().items():
        if any(each.address == node for each in addresses):
            os.environ.setdefault("GLOO_SOCKET_IFNAME", name)


def _worker(config: dict[str, Any]) -> None:
    """The loop on one Ray worker; what would end in the same way however often Ray tries it goes into the queue."""
    if not config["wishes"].empty():  # Ray has started it anew after one before had said why it cannot go on
        return
    try:
        _train_here(config)
    except OutageError:
        raise
    except UserError as error:
        config["reports"].put(error)
        raise  # or the others would wait for it


def _train_here(config: dict[str, Any]) -> None:
    import ray.train
    from ray.train.torch import prepare_model

    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    settings: TrainSettings = config["settings"]
    manifest = read_manifest(config["dataset"])
    device = ray.train.torch.get_device()
    checkpoints: Checkpoints = config["checkpoints"]
    data = Loader(config["dataset"], manifest, "train", pinned=device.type == "cuda")
    val = Loader(config["dataset"], manifest, "val")
    state = TrainState(settings, data.mean_shape(), str(device))
    # Every rank reads the same one: DDP waits for all of them before rank 0 can write the next.
    checkpoints.restore(state)

    wished = threading.Event()

    def listen() -> None:
        # It is left in the queue: if this worker dies now, the one after it shall find it, too.
        while config["wishes"].empty():
            time.sleep(POLL_SECONDS)
        wished.set()

    if rank == 0:
        in_a_thread(listen)

    def report(now: TrainState) -> None:
        if rank != 0:
            return
        try:
            checkpoints.write(now)
        except OutageError:
            raise
        except UserError as error:
            # As of a full disk. Ray would start all workers again, several times, to the same end.
            config["reports"].put(error)
            wished.set()
            return
        if now.step == 0:
            config["reports"].put(tuple(epoch_done(now, settings, val)))

    try:
        train(state, settings, data, val, report, wished.is_set, rank, world, prepare_model)
    except DivergedError as error:
        if rank == 0:  # all of them end so
            config["reports"].put(str(error))


@contextmanager
def _followed(progress: OnEpoch) -> Iterator[tuple[Future[None], Any, Any]]:
    """A queue that workers put their epochs into, and one where they find the wish to stop.

    A queue is a process of Ray's, which would import torch to take in what else is of this package: it gets plain
    tuples, a `UserError`, and what a `DivergedError` says.

    `progress` is called for each epoch in a thread of this process; its end comes with the queues.

    Raises:
        UserError: what a worker put into the queue instead of an epoch; also what `progress` raises.
    """
    import ray
    from ray.util.queue import Queue
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    # Elsewhere they would die with a node that the training can do without.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    reports, wishes = (Queue(actor_options={"num_cpus": 0, "scheduling_strategy": here}) for _ in range(2))

    def follow() -> None:
        while (told := reports.get()) is not None:
            if isinstance(told, str):
                raise DivergedError(told)
            if isinstance(told, UserError):
                raise told
            progress(Epoch(*told))

    following = in_a_thread(follow)
    try:
        yield following, reports, wishes
        reports.put(None)
        following.result()
    finally:
        for queue in (reports, wishes):
            queue.shutdown(force=True)
