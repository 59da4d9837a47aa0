"""Fixtures of all tests: the real faces where they are at hand, and an S3 server on loopback."""

import os
import shutil
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from msrrn.synthetic import SyntheticPhoto, draw_photo
from pipelines.engine import start_ray
from pipelines.models import Model
from pipelines.prepare import prepare
from pipelines.shards import Manifest, read_samples
from pipelines.storage import Store
from pipelines.training import mean_shape
from tests.factories import SETTINGS, tiny_model, write_300w


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
    from moto.server import ThreadedMotoServer  # seconds to import, for few tests

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    fsspec.get_filesystem_class("s3").clear_instance_cache()  # they hold connections to this server
    server.stop()


@pytest.fixture
def s3(s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URL of an empty bucket; processes started by the test see the same server."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_endpoint)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    bucket = f"faces-{uuid.uuid4().hex[:12]}"
    fsspec.filesystem("s3", use_listings_cache=False).mkdir(bucket)
    return f"s3://{bucket}"


@pytest.fixture(scope="session")
def photos() -> tuple[list[SyntheticPhoto], list[SyntheticPhoto]]:
    """Eight synthetic photographs of one face, and two of two."""
    single: list[SyntheticPhoto] = []
    double: list[SyntheticPhoto] = []
    index = 0
    while len(single) < 8 or len(double) < 2:
        photo = draw_photo(0, index)
        index += 1
        for kind, faces, wanted in ((single, 1, 8), (double, 2, 2)):
            if len(photo.shapes) == faces and len(kind) < wanted:
                kind.append(photo)
    return single, double


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
    return tiny_model(tmp_path_factory.mktemp("model"), mean_shape(read_samples(*dataset, "train")))


@pytest.fixture(scope="session")
def ray_of_two() -> Iterator[int]:
    """A local Ray of two workers, started once; its workers were started in another directory than a test's."""
    with pytest.MonkeyPatch.context() as patch:
        import ray

        patch.delenv("RAY_ADDRESS", raising=False)
        ray.shutdown()  # another test may have started a smaller one
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
