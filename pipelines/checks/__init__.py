"""Checks of annotated photographs: what each is, and pure functions that find what is wrong.

The catalogue holds every reason that a report can give; `shapes` looks at one annotation alone, in its
picture, beside the detector's boxes and beside another one; `shift` looks at a whole source. Nothing here
reads a file.
"""

from pipelines.checks.catalogue import CHECKS, Check, Problem, Severity
from pipelines.checks.shapes import check_detection, check_in_picture, check_shape, near_before, same_face
from pipelines.checks.shift import shifted_source, sideways_offset

__all__ = [
    "CHECKS",
    "Check",
    "Problem",
    "Severity",
    "check_detection",
    "check_in_picture",
    "check_shape",
    "near_before",
    "same_face",
    "shifted_source",
    "sideways_offset",
]
