"""What is wrong with inputs, told before a face's pixels are looked at, and how much of it a dataset may have."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from heapq import nsmallest
from typing import Final

import numpy as np

from pipelines.checks import CHECKS, Problem, check_shape, near_before, same_face
from pipelines.dataset.manifest import CheckResult, LeftOut
from pipelines.dataset.photos import HELD, PhotoGroup, Seen, face_order
from pipelines.errors import UserError
from pipelines.settings import Tolerance
from pipelines.sources import AnnotatedPhoto
from pipelines.sources.corrections import CORRECTIONS, PREDICTIONS

EXAMPLES: Final = 20
TRUSTED: Final = {CORRECTIONS: 0, PREDICTIONS: 2}
"""By subset, how early a face counts where it is annotated twice; 1 for all others."""


def screened(groups: Sequence[PhotoGroup]) -> tuple[list[PhotoGroup], list[LeftOut]]:
    """The photos with only those faces whose annotation can be one.

    Of two of the same face the one stays that a person corrected, before one that a source has, before one that a
    model drew; of two of a kind, the first.
    """
    kept: list[PhotoGroup] = []
    left_out: list[LeftOut] = []
    for group in groups:
        faces: dict[int, AnnotatedPhoto] = {}
        by_trust = sorted(group.faces, key=lambda face: TRUSTED.get(face.subset, 1))
        near = near_before(np.array([face.shape for face in by_trust]))
        for index, (face, others) in enumerate(zip(by_trust, near, strict=True)):
            problem = check_shape(face.shape) or _twice(face, (faces[other] for other in others if other in faces))
            if problem:
                left_out.append(LeftOut(uri=face.annotation_uri, reason=problem.code, message=problem.message))
            else:
                faces[index] = face
        if faces:
            kept.append(replace(group, faces=tuple(sorted(faces.values(), key=face_order))))
    return kept, left_out


def refused(groups: Sequence[PhotoGroup], kept: Sequence[PhotoGroup]) -> list[PhotoGroup]:
    """Photos declared val or test of which `screened` kept no face: what shows the same is not trained on either."""
    left = {group.sha256 for group in kept}
    return [group for group in groups if group.seen.declared in HELD and group.sha256 not in left]


def _twice(face: AnnotatedPhoto, others: Iterable[AnnotatedPhoto]) -> Problem | None:
    for other in others:
        problem = same_face(face.shape, other.shape)
        if problem:
            return Problem(problem.code, f"the face of {other.annotation_uri}: {problem.message}")
    return None


def near_duplicates_found(alike: Sequence[Sequence[Seen]]) -> list[CheckResult]:
    """The warning for photos that show the same, though their bytes differ."""
    pairs = ((photo.uri, cluster[0].uri) for cluster in alike for photo in cluster[1:])
    examples = [
        LeftOut(uri=uri, reason="near_duplicate", message=f"shows what {other} shows")
        for uri, other in nsmallest(EXAMPLES, pairs)
    ]
    count = sum(len(cluster) - 1 for cluster in alike)
    return [CheckResult(code="near_duplicate", severity="warning", count=count, examples=examples)] if count else []


def checks_of(left_out: Sequence[LeftOut], warnings: Sequence[CheckResult]) -> list[CheckResult]:
    """One result for every reason and every warning, sorted by code."""
    by_reason: dict[str, list[LeftOut]] = {}
    for item in left_out:
        by_reason.setdefault(item.reason, []).append(item)
    results = [_result(reason, items) for reason, items in by_reason.items()]
    return sorted([*results, *warnings], key=lambda result: result.code)


def _result(code: str, items: Sequence[LeftOut]) -> CheckResult:
    examples = sorted(items, key=lambda item: (item.uri, item.message))[:EXAMPLES]
    return CheckResult(code=code, severity=CHECKS[code].severity, count=len(items), examples=examples)


def warning(code: str, uri: str, message: str) -> CheckResult:
    """A finding about a whole source."""
    return _result(code, [LeftOut(uri=uri, reason=code, message=message)])


def enforce(tolerance: Tolerance, left_out: Sequence[LeftOut], faces_in: int) -> None:
    """Ends the run where there is more bad input than the user allows.

    Raises:
        UserError: names the reasons with their counts, the first bad input, and the remedy.
    """
    bad = [item for item in left_out if CHECKS[item.reason].severity == "error"]
    if not bad or (tolerance.on_bad == "quarantine" and len(bad) <= tolerance.max_bad * faces_in):
        return
    reasons = ", ".join(f"{reason} × {count}" for reason, count in Counter(item.reason for item in bad).most_common())
    allowed = "none are allowed" if tolerance.on_bad == "fail" else f"{tolerance.max_bad:.2%} are allowed"
    first = min(bad, key=lambda item: (item.uri, item.reason))
    raise UserError(
        f"{len(bad)} of {faces_in} inputs are bad, {allowed} ({reasons}); first {first.uri}: {first.message}. "
        f"{CHECKS[first.reason].remedy.capitalize()}; or leave them out with --on-bad quarantine and --max-bad"
    )
