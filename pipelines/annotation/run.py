"""Bulk annotation: every picture of an archive → a row with its status, every face → its landmarks.

The archive is cut into units of consecutive inputs (`pipelines.annotation.plan`). A unit writes one part of each
table, and last its completion record (`pipelines.annotation.unit`); `summary.json` and the page come after
all of them. A run that was killed, started again, does the units that have no record.
"""

from functools import cache
from itertools import islice

from pipelines.annotation.claim import claim_of, continued, publish_claim, refuse_a_part, require_recipe
from pipelines.annotation.page import annotation_page
from pipelines.annotation.plan import is_planned, make_plan
from pipelines.annotation.readying import prepared
from pipelines.annotation.sightings import Task
from pipelines.annotation.summary import Summary, summary_before
from pipelines.annotation.tables import PAGE, SUMMARY, Annotations
from pipelines.annotation.unit import Job
from pipelines.annotation.work import Again, Work
from pipelines.archives import list_inputs
from pipelines.errors import UserError
from pipelines.forgotten import forgotten_of_run
from pipelines.lease import hold
from pipelines.models import Model
from pipelines.progress import Progress
from pipelines.settings import AnnotateSettings
from pipelines.storage import Store


def annotate(
    source: str,
    out: str,
    model: Model,
    settings: AnnotateSettings,
    workers: int,
    progress: Progress = lambda done, total, what: None,
    *,
    limit: int | None = None,
    again: Again | None = None,
) -> Summary:
    """Annotates every picture of an archive into `out`; what is finished is not done again, but for `again`.

    Pictures that came into the archive since, or were replaced in it, are done, but not with `again`: then they wait
    for a call without it. The rows of those that were removed stay. With `limit` only the first pictures of the
    archive count.

    Raises:
        UserError: the source cannot be listed, or `out` holds a run of another model or other settings, or one that
            is not finished and of another version; with `again`, none.
    """
    place = Store(out).absolute()
    if again and not is_planned(place):
        raise UserError(f"{place.url} has no plan of a run, and so no picture to do again: leave --retry out")
    archive = Store(source).absolute().url
    chosen = continued(place, source, model, settings)
    listing = list_inputs(archive, place)
    detector, asked, inputs = prepared(model, chosen, islice(listing, limit), progress)
    with hold(place, lambda note: progress(0, 0, f"another run is at work here ({note}): waiting")) as lease:
        since = continued(place, source, model, settings)
        if since != chosen:  # another began while this one made ready, and chose what this one has left to choose
            chosen = since
            detector, asked, inputs = prepared(model, chosen, inputs, progress)
        said = {"detector": detector.name, "precision": asked.precision, "engine": asked.engine}
        chosen = chosen.model_copy(update=said)
        publish_claim(place, claim_of(source, asked, chosen))
        task = Task(archive, detector, chosen, model.card.crop_margin, forgotten_of_run(place))
        job = Job(place, asked.for_workers(), task)

        @cache
        def is_whole() -> bool:
            return limit is None or next(listing, None) is None

        plan = make_plan(
            inputs,
            place,
            chosen.images_per_unit,
            is_whole,
            lambda listed: progress(listed, 0, "listing pictures"),
            grows=again is None,
        )
        work = Work(job, plan, again)
        if limit is not None:
            refuse_a_part(place, limit, plan.inputs + plan.waiting, work.left, work.anew)
        if work.left:
            require_recipe(place)
        before = summary_before(place)
        work.begin()

        def told(done: int) -> None:
            progress(done, plan.inputs, "annotating, pictures")
            lease.note(f"{done} of {plan.inputs} pictures")

        throughput = work.run(workers, told) or (before.throughput if before else None)
        if not lease.is_lost():
            work.end()
            part = not is_whole()
            ignored, gone, new = listing.ignored, int(plan.gone.sum()), plan.waiting
            if before and part:  # a part of the archive does not tell
                ignored, gone = max(ignored, before.ignored), before.gone
                new = max(new, before.images + before.new - plan.inputs)
            summary = work.summary(ignored, gone, new, throughput)
            # The page first: where the summary says the same as now, the page is of now, too.
            if summary != before or not place.exists(PAGE):
                place.publish(PAGE, annotation_page(Annotations(place), summary).encode())
            place.publish(SUMMARY, summary.model_dump_json(indent=1).encode())
            return summary
    # Whoever took over may have found more to do: what there is now is what counts.
    return annotate(source, out, model, settings, workers, progress, limit=limit, again=again)
