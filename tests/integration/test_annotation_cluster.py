"""Annotation on a cluster of two nodes, of which the driver, a worker and a whole node are killed."""

import random
import time
from pathlib import Path

import pytest

from msrrn.synthetic import SyntheticPhoto
from pipelines.annotation.run import annotate
from pipelines.annotation.summary import Summary
from pipelines.annotation.tables import SUMMARY
from pipelines.models import Model
from pipelines.settings import AnnotateSettings
from tests.cluster import cluster, kill_one
from tests.factories import start_msrrn, tree, write_model
from tests.servers import wait_for

UNITS = 20


def parts(out: Path) -> dict[str, bytes]:
    return {name: data for name, data in tree(out).items() if name.endswith(".parquet")}


def finished(out: Path, units: int, seconds: float = 600) -> bool:
    """Waits until so many units have their record; False where they have not in time."""
    end = time.monotonic() + seconds
    while len(list(out.glob("records/*.json"))) < units:
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


@pytest.mark.line
def test_what_is_killed_costs_time_and_nothing_else(
    photos: tuple[list[SyntheticPhoto], list[SyntheticPhoto]],
    model: Model,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    album, out = tmp_path / "album", tmp_path / "out"
    album.mkdir()
    jpegs = [photo.jpeg for photo in photos[0][:5]]
    for index in range(2 * UNITS):
        (album / f"{index:03d}.jpg").write_bytes(jpegs[index % 5] if index % 7 else b"broken")
    artifact = write_model(tmp_path / "model", model)
    alone = annotate(str(album), str(tmp_path / "alone"), model, AnnotateSettings(images_per_unit=2), 1)

    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    call = ("annotate", str(album), "--out", str(out), "--model", artifact, "--images-per-unit", "2")
    with cluster(0) as made:
        made.add_node()
        made.add_node()
        monkeypatch.setenv("RAY_ADDRESS", made.address)
        driver = start_msrrn(*call, "--workers", "2")
        assert finished(out, 2)
        driver.kill()
        driver.communicate()

        driver = start_msrrn(*call, "--workers", "2")
        assert finished(out, 5)
        # Units that the first driver had begun count, too: those of the second may have no worker yet.
        wait_for(lambda: kill_one(made.workers(), random.Random(0)))
        assert finished(out, 8)
        made.kill_node(1)
        _, said = driver.communicate(timeout=600)
    assert driver.returncode == 0, said
    assert parts(out) == parts(tmp_path / "alone")
    assert Summary.model_validate_json((out / SUMMARY).read_bytes()).digest == alone.digest
