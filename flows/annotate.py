"""The flow `annotate`: landmarks on every face of an archive."""

from prefect import flow

from flows.tasks import annotate_archive, load_model
from pipelines.annotation import Summary
from pipelines.settings import AnnotateSettings


@flow(name="annotate")
def annotate(source: str, out: str, model: str | None = None, workers: int = 2, images_per_unit: int = 64) -> Summary:
    """Annotates a folder or tar of photos with a model.

    Args:
        source: a folder or a `.tar`, local or `s3://`.
        out: where the tables and `.pts` files go; a run that was killed goes on from there.
        model: an artifact directory, a `models:/name@alias` URI or `box`; without one, the champion of `msrrn`
            where there is one, else the model in the box.
        workers: Ray workers.
        images_per_unit: pictures a unit, the piece of work that is done once or again.
    """
    settings = AnnotateSettings(images_per_unit=images_per_unit)
    return annotate_archive(source, out, load_model(model), settings, workers)
