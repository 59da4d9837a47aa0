"""The page of a dataset: what is in it, what was left out and why, and pictures of both."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import chain, zip_longest
from typing import Any, Final

from pipelines.checks import CHECKS
from pipelines.dataset.faces import MEASURES, Face, Survey, copies, tiles
from pipelines.dataset.manifest import CheckResult, LeftOut, Manifest
from pipelines.decoding import Limits, Undecodable, decode
from pipelines.drawing import Picture, contact_sheet, photo_tile, to_jpeg
from pipelines.figures import binned_figure
from pipelines.page import Page
from pipelines.showable import counted
from pipelines.storage import Store

PAGE: Final = "index.html"

COLUMNS: Final = 4
REJECTED: Final = 12
REJECTED_TRIES: Final = 48
"""Pictures that are read, at most, to show `REJECTED` of them: many of them cannot be decoded."""
REJECTED_LIMITS: Final = Limits(max_bytes=32 << 20, max_pixels=40_000_000)
NOT_REJECTED: Final = frozenset({"test_split", "known_photo", "forgotten"})
"""Reasons that find no fault with a picture."""

_SEVERITIES: Final = ("error", "warning", "info")


def dataset_page(
    dataset: Store,
    manifest: Manifest,
    found: Survey,
    rejected_bytes: Callable[[LeftOut], bytes | None] = lambda item: None,
) -> str:
    """The page as one self-contained HTML text; the same dataset gives the same text.

    `found` is the survey of its faces. `rejected_bytes` gives the picture of an input that was left out, or None
    where it has none.
    """
    counts = manifest.counts
    page = Page(
        f"Dataset {manifest.name}",
        f"{counted(counts['train'], 'face')} to train on and {counts['val']} to validate, from "
        f"{counted(counts['photos'], 'photograph')}, in {counted(counts['rows'], 'sample')}. "
        f"{counted(counts['left_out'], 'input')} left out.",
    )
    pictures = tiles(dataset.parent, chain.from_iterable(found.chosen.values()))
    _totals(page, manifest)
    _checks(page, manifest.checks)
    _left_out(page, manifest, rejected_bytes)
    _sheets(page, found, pictures)
    _augmentation(page, dataset.parent, found)
    _histograms(page, manifest, found)
    return page.html()


def _totals(page: Page, manifest: Manifest) -> None:
    counts, settings = manifest.counts, manifest.settings
    boxes = "of the data; none" if manifest.has_given_boxes else f"of detector {settings.get('detector')}; missed"
    page.section("What is in it")
    page.facts(
        [
            ("Faces given", f"{counts['faces_in']} = train + validation + left out"),
            (
                "For training",
                f"{counted(counts['train'], 'face')}, "
                f"{counted(counts['rows'] - counts['val'], 'sample')} with copies",
            ),
            ("For validation", f"{counted(counts['val'], 'face')}, not augmented"),
            ("Left out", str(counts["left_out"])),
            ("Boxes", f"{boxes}, and boxed from the annotation: {manifest.missed}"),
            ("Split", "by photo (its SHA-256), before augmentation"),
            ("Shards", f"{len(manifest.shards())}, {sum(unit.bytes for unit in manifest.units) / 1e6:,.1f} MB"),
            ("Seed", str(settings.get("seed"))),
            ("Made by", f"msrrn {manifest.code_version}, schema {manifest.schema_version}"),
        ]
    )
    page.table(
        ["Source", "Train", "Validation"],
        [[name, faces.get("train", 0), faces.get("val", 0)] for name, faces in manifest.faces_by_source.items()],
        "Faces by source",
    )


def _checks(page: Page, checks: Sequence[CheckResult]) -> None:
    page.section("Checks", "" if checks else "No check found anything.")
    if checks:
        ordered = sorted(checks, key=lambda check: (_SEVERITIES.index(check.severity), check.code))
        rows = [
            [check.severity, _title(check.code), check.count, _names(check.examples), _remedy(check.code)]
            for check in ordered
        ]
        page.table(["Severity", "What", "Count", "For example", "What to do"], rows)


def _title(code: str) -> str:
    return f"{CHECKS[code].title} ({code})" if code in CHECKS else code


def _remedy(code: str) -> str:
    return CHECKS[code].remedy if code in CHECKS else ""


def _names(items: Sequence[LeftOut]) -> str:
    return ", ".join(item.uri for item in items[:3])


def _left_out(page: Page, manifest: Manifest, rejected_bytes: Callable[[LeftOut], bytes | None]) -> None:
    by_reason: dict[str, list[LeftOut]] = {}
    for item in manifest.left_out:
        by_reason.setdefault(item.reason, []).append(item)
    if not by_reason:
        page.section("Left out", "Every input is in the dataset.")
        return
    page.section("Left out")
    rows = [
        [_title(reason), len(items), _names(items), items[0].message] for reason, items in sorted(by_reason.items())
    ]
    page.table(["Reason", "Inputs", "For example", "Message of the first"], rows, "The manifest lists all of them")
    # One of each reason in turn, so that a common one does not hide the others.
    rejected = [items for reason, items in sorted(by_reason.items()) if reason not in NOT_REJECTED]
    turns = [item for turn in zip_longest(*(items[:REJECTED_TRIES] for items in rejected)) for item in turn if item]
    shown: dict[str, tuple[bytes, str]] = {}
    for item in turns[:REJECTED_TRIES]:
        if len(shown) < REJECTED and item.uri not in shown and (data := rejected_bytes(item)) is not None:
            with suppress(Undecodable, MemoryError):
                tile = photo_tile(decode(data, REJECTED_LIMITS).rgb, [], 200)
                shown[item.uri] = to_jpeg(tile), f"{item.reason}: {item.uri}"
    if shown:
        page.gallery(list(shown.values()), "Rejected pictures that can be shown, some of each reason.")


def _sheets(page: Page, found: Survey, pictures: dict[str, Picture]) -> None:
    page.section("Faces", "Crops as the network sees them, with their annotation in light green.")
    for kind, of in (("train", "training"), ("val", "validation")):
        if faces := found.chosen[kind]:
            sheet = contact_sheet([pictures[face.row["face_id"]] for face in faces], COLUMNS)
            words = f"{counted(len(faces), f'{of} face')}, drawn by their digest."
            page.picture(to_jpeg(sheet), words, f"Some {of} faces")
    hardest: list[tuple[str, str, Callable[[Face], str]]] = [
        (
            "padding",
            "The most of the crop outside the picture",
            lambda face: f"{100 * face.row['padding']:.0f} % outside",
        ),
        ("small", "The smallest faces", lambda face: f"box of {face.side:.0f} px"),
        ("blurred", "The blurriest faces", lambda face: f"sharpness {face.row['sharpness']:.1f}"),
        ("missed", "Some whose box was predicted from the annotation", lambda face: ""),
    ]
    for kind, caption, words_of in hardest:
        if faces := found.chosen[kind]:
            page.gallery([_shown(face, pictures, words_of(face)) for face in faces], f"{caption}.")


def _shown(face: Face, pictures: dict[str, Picture], words: str) -> tuple[bytes, str]:
    name = f"{face.row['photo_uri']} ({face.unit.split})"
    return to_jpeg(pictures[face.row["face_id"]]), f"{words}: {name}" if words else name


def _augmentation(page: Page, pool: Store, found: Survey) -> None:
    if not found.chosen["train"]:
        return
    face = found.chosen["train"][0]
    made = copies(pool, face)
    page.section("Augmentation", f"One face of {face.row['photo_uri']}, as it is and its copies.")
    shown = [(to_jpeg(tile), _drawn(copy, drawn)) for copy, (tile, drawn) in enumerate(made)]
    page.gallery(shown, "Roll in degrees, clockwise; shift in sides of the box; noise in sds of the crop.")


def _drawn(copy: int, drawn: dict[str, Any]) -> str:
    if copy == 0:
        return "0: as it is"
    x, y = drawn["shift"]
    mirrored = ", mirrored" if drawn["mirrored"] else ""
    return (
        f"{copy}: roll {drawn['roll']:+.1f}°, shift {x:+.2f} {y:+.2f}, scale ×{drawn['scale']:.2f}, "
        f"noise {drawn['noise_sigma']:.2f}{mirrored}"
    )


def _histograms(page: Page, manifest: Manifest, found: Survey) -> None:
    page.section("Distributions", "Of the faces as they are, in % of each split.")
    for name, measure in MEASURES.items():
        series = {split: counts.tolist() for split, counts in sorted(found.counts[name].items())}
        page.figure(binned_figure(series, measure.edges.tolist(), measure.label, measure.log), f"{measure.label}.")
    total = {split: max(1, manifest.counts[split]) for split in ("train", "val")}
    rows = [
        [source, *(f"{100 * faces.get(split, 0) / count:.1f} %" for split, count in total.items())]
        for source, faces in manifest.faces_by_source.items()
    ]
    page.table(["Source", "Train", "Validation"], rows, "Share of each source")
