"""The page of an annotation run: what became of its pictures, what its faces are like, and pictures of both."""

from functools import partial
from itertools import zip_longest
from typing import Final

from markupsafe import Markup

from pipelines.annotation.faces import MEASURES, Survey, survey
from pipelines.annotation.summary import Summary
from pipelines.annotation.tables import Annotations
from pipelines.annotation.tiles import Tiles, drawn_tiles
from pipelines.checks import CHECKS
from pipelines.drawing import contact_sheet, to_jpeg
from pipelines.engine import in_a_thread
from pipelines.figures import binned_figure
from pipelines.page import Page
from pipelines.showable import counted

COLUMNS: Final = 6
FAILURES_SHOWN: Final = 40


def annotation_page(annotations: Annotations, summary: Summary) -> str:
    """The page as one self-contained HTML text; the same tables and pictures give the same text.

    Reads the few pictures that it shows again; those that changed or are gone are left out, with a word.
    """
    page = Page(
        f"Annotations {summary.digest[:16]}",
        f"{counted(summary.images, 'picture')} = {summary.annotated} annotated + {summary.no_face} without a "
        f"face + {summary.quarantined} quarantined. {counted(summary.faces, 'face')}, by {summary.model}.",
    )
    found = survey(annotations)
    tiles = in_a_thread(partial(drawn_tiles, annotations, found.chosen))  # which waits for another process meanwhile
    figures = [(measure.label, _distribution(found, name)) for name, measure in MEASURES.items()]
    _totals(page, summary)
    _failures(page, summary, found)
    add_pictures(page, found, tiles.result())
    page.section("Distributions", "Of every face; of the pictures that were looked at, where it says so.")
    for label, figure in figures:
        page.figure(figure, f"{label}.")
    return page.html()


def add_pictures(page: Page, found: Survey, tiles: Tiles) -> None:
    """Adds faces and whole pictures with the landmarks that were found."""
    _faces(page, found, tiles)
    _pictures(page, found, tiles)


def _totals(page: Page, summary: Summary) -> None:
    def share(count: int) -> str:
        return f"{count} ({count / max(1, summary.images):.1%})"

    page.section("What was done")
    page.facts(
        [
            ("Pictures", str(summary.images)),
            ("Annotated", share(summary.annotated)),
            ("Without a face", share(summary.no_face)),
            ("Quarantined", share(summary.quarantined)),
            ("Faces", str(summary.faces)),
            ("Other files", f"{summary.ignored}, hidden or by their names no pictures: not looked at"),
            ("Model", summary.model),
            ("Digest", summary.digest),
        ]
    )
    page.table(["Setting", "Value"], [[name, str(value)] for name, value in sorted(summary.settings.items())])


def _distribution(found: Survey, name: str) -> Markup:
    measure = MEASURES[name]
    counts = {measure.of: found.counts[name].tolist()}
    return binned_figure(counts, measure.edges.tolist(), measure.label, measure.log, measure.of)


def _failures(page: Page, summary: Summary, found: Survey) -> None:
    if not summary.reasons:
        page.section("Quarantined", "Every picture could be looked at.")
        return
    page.section("Quarantined")
    rows = []
    for reason, count in sorted(summary.reasons.items(), key=lambda item: (-item[1], item[0])):
        first = found.failures.get(reason, [])
        check = CHECKS.get(reason)
        title, remedy = (f"{check.title} ({reason})", check.remedy) if check else (reason, "")
        rows.append([title, count, ", ".join(failure.uri for failure in first[:3]), remedy])
    page.table(["Reason", "Pictures", "For example", "What to do"], rows)
    # One of each reason in turn, so that a common one does not hide the others.
    turns = zip_longest(*(found.failures[reason] for reason in sorted(found.failures)))
    failures = [failure for turn in turns for failure in turn if failure]
    shown = [[failure.uri, failure.reason, failure.message] for failure in failures[:FAILURES_SHOWN]]
    total = sum(summary.reasons.values())
    page.table(["Picture", "Reason", "Message"], shown, f"{len(shown)} of {total}; the table `images` has all.")


def _faces(page: Page, found: Survey, tiles: Tiles) -> None:
    page.section("Faces", f"As they are in the pictures, with the landmarks that were found.{_unread(found, tiles)}")
    if random := [tiles[key] for key in sorted(tiles) if key[0] == "random"]:
        words = f"{counted(len(random), 'face')}, drawn by the digest of their picture, copies of one once."
        page.picture(to_jpeg(contact_sheet(random, COLUMNS)), words, "Some faces with their landmarks")
    doubtful = [
        (to_jpeg(tiles["doubtful", place]), f"{shown.faces[0].confidence:.2f}: {shown.uri}")
        for place, shown in enumerate(found.chosen["doubtful"])
        if ("doubtful", place) in tiles
    ]
    if doubtful:
        page.gallery(doubtful, "The least certain, with their confidence, copies of a picture once.")


def _pictures(page: Page, found: Survey, tiles: Tiles) -> None:
    several = [key for key in sorted(tiles) if key[0] == "several"]
    none = [
        (to_jpeg(tiles["none", place]), shown.uri)
        for place, shown in enumerate(found.chosen["none"])
        if ("none", place) in tiles
    ]
    if several or none:
        page.section("Whole pictures")
    if several:
        sheet = contact_sheet([tiles[key] for key in several], COLUMNS // 2)
        names = ", ".join(found.chosen["several"][place].uri for _, place in several)
        page.picture(to_jpeg(sheet), f"With several faces: {names}.", "Pictures with several faces")
    if none:
        page.gallery(none, "In which no face was found.")


def _unread(found: Survey, tiles: Tiles) -> str:
    missing = sum(map(len, found.chosen.values())) - len(tiles)
    return f" {missing} could not be shown: their pictures are gone, or changed." if missing else ""
