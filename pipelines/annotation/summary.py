"""`summary.json`: what an annotation run has come to.

The records of its units say it; it is written after all of them.
"""

import hashlib
from collections import Counter
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ValidationError

from pipelines.annotation.records import UnitRecord
from pipelines.annotation.tables import STATUSES, SUMMARY
from pipelines.outages import MissingError
from pipelines.storage import Store


class Throughput(BaseModel):
    """Of the last run that had something to do: pictures done in it, and how fast."""

    pictures: int
    seconds: float
    pictures_per_second: float
    workers: int


class Summary(BaseModel):
    """`summary.json`: images = annotated + no_face + quarantined."""

    images: int
    annotated: int
    no_face: int
    quarantined: int
    faces: int
    ignored: int
    """files beside the pictures that are no input: annotations, tables, hidden files"""
    gone: int
    """images that were in the archive when they were done, and are no longer"""
    waiting: int = 0
    """pictures that came in or were replaced before some were done again, and are still to be done"""
    new: int = 0
    """those of them that came in, at least: a limit may hide some; the others have a row, of what was there"""
    reasons: dict[str, int]
    model: str
    settings: dict[str, Any]
    digest: str
    """SHA-256 over the SHA-256 of every part"""
    throughput: Throughput | None = None


def totals(records: Mapping[str, UnitRecord]) -> dict[str, Any]:
    """What the records of units, by their keys, say of a run: those fields of its `Summary`."""
    statuses: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    digest = hashlib.sha256()
    for _, record in sorted(records.items()):
        statuses.update(record.statuses)
        reasons.update(record.reasons)
        digest.update("".join(record.parts[table] for table in sorted(record.parts)).encode())
    return {
        "images": statuses.total(),
        **{status: statuses[status] for status in STATUSES},
        "faces": sum(record.faces for record in records.values()),
        "reasons": dict(sorted(reasons.items(), key=lambda item: (-item[1], item[0]))),
        "digest": digest.hexdigest(),
    }


def summary_before(place: Store) -> Summary | None:
    """The summary that is there; None where there is none, or a damaged one."""
    try:
        return Summary.model_validate_json(place.read_bytes(SUMMARY))
    except (MissingError, ValidationError):
        return None
