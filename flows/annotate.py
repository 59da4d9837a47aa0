"""The flow `annotate`: landmarks on every face of an archive."""

from prefect import flow

from flows.parameters import Place, Workers
from flows.tasks import annotate_archive, load_model
from pipelines.annotation.claim import RECIPE
from pipelines.annotation.summary import Summary
from pipelines.settings import AnnotateSettings
from pipelines.storage import Store


@flow(name="annotate")
def annotate(
    source: Place,
    out: Place,
    model: Place | None = None,
    settings: AnnotateSettings | None = None,
    workers: Workers = 2,
    one_look: bool = False,
) -> Summary:
    """Annotates an archive of photos with a model.

    Args:
        source: a folder, `.tar`, `.tar.gz`, `.zip`, WebDataset shards, `.parquet` with an image column, or a `.txt`
            of URIs; local or `s3://`.
        out: where the tables and the page go; a run that was killed goes on from there. Without `model` it is
            OUT-VERSION-RECIPE: of each champion a run of its own, and of code that makes other rows.
        model: an artifact directory, a `models:/name@alias` URI or `box`; without one, the champion of `msrrn`
            where there is one, else the model in the box.
        settings: which faces are found, and in what units the work is done.
        workers: Ray workers.
        one_look: look at each face once, where the model looks at it again, in the mirror.
    """
    chosen = load_model(model, one_look)
    place = out if model else f"{Store(out).url}-{chosen.card.version}-{RECIPE}"
    return annotate_archive(source, place, chosen, settings or AnnotateSettings(), workers)
