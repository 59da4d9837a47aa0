from pathlib import Path

from msrrn.synthetic import SyntheticPhoto
from pipelines.annotation.run import annotate
from pipelines.annotation.tables import Annotations
from pipelines.models import Model
from pipelines.settings import AnnotateSettings
from pipelines.storage import Store
from tests.fuzz import encodings, write_containers, write_pictures


def test_every_damaged_picture_and_archive_is_accounted_for(
    photos: tuple[list[SyntheticPhoto], list[SyntheticPhoto]], model: Model, tmp_path: Path
) -> None:
    """Some of the cases of `tests.benchmarks.fuzz`, which has thousands, of real photographs."""
    seeds = [data for photo in photos[0][:3] for data in encodings(photo.jpeg, side=100)]
    pictures = write_pictures(tmp_path / "in" / "pictures", seeds, 150, seed=1)
    archives = write_containers(tmp_path / "in" / "archives", seeds, 25, seed=1)
    settings = AnnotateSettings(images_per_unit=256, timeout=30)
    summary = annotate(str(tmp_path / "in"), str(tmp_path / "out"), model, settings, 1)
    run = Annotations(Store(str(tmp_path / "out")))
    rows = [row for unit in run.units() for row in run.images(unit).to_pylist()]
    uris = [row["uri"] for row in rows]
    assert summary.images == len(rows) == summary.annotated + summary.no_face + summary.quarantined
    assert {uri for uri in uris if uri.startswith("pictures/")} == {f"pictures/{name}" for name in pictures}
    for name in archives:
        assert any(uri.startswith(f"archives/{name}") for uri in uris), name
    unforeseen = [row for row in rows if row["reason"] in {"crashed", "timeout", "failed"}]
    assert not unforeseen
    assert {"corrupt", "truncated", "not_an_image", "broken_archive"} <= summary.reasons.keys()
