"""Every reason that a report can give, with its severity, what it is and what to do about it."""

from dataclasses import dataclass
from typing import Final, Literal

Severity = Literal["error", "warning", "info"]
"""An error is a bad input; a warning is reported and its input kept; an info is an input that is not used."""


@dataclass(frozen=True)
class Check:
    """A reason: `code` is stable, `title` and `remedy` are for people."""

    code: str
    severity: Severity
    title: str
    remedy: str


@dataclass(frozen=True)
class Problem:
    """What a check found: `code` is one of `CHECKS`, `message` says where and how much."""

    code: str
    message: str


_ANNOTATIONS: Final = (
    Check("syntax", "error", "the annotation cannot be read", "write the points as the format says"),
    Check("count", "error", "not 68 points", "annotate the 68 points of 300-W, or leave the file out"),
    Check("not_finite", "error", "a coordinate is no number, or too large", "give every point both its coordinates"),
    Check("flat", "error", "the points have no width or height, or the eyes coincide", "annotate the face anew"),
    Check(
        "eyes_swapped",
        "error",
        "left and right are exchanged",
        "a mirrored picture needs its points renumbered too; else see that x comes before y",
    ),
    Check(
        "unlike_a_face",
        "error",
        "the points form no face",
        "look for points in another order, exchanged groups, or one that was dragged away",
    ),
    Check(
        "outside",
        "error",
        "points lie far outside the picture",
        "see that the annotation belongs to this picture, at this size and orientation",
    ),
    Check(
        "displaced",
        "error",
        "the annotation lies beside the face",
        "see that the picture was not cropped, scaled or turned after it was annotated",
    ),
    Check(
        "shifted",
        "warning",
        "all annotations of a source are off by the same pixels",
        "see whether its files count pixels from 0 or from 1, and whether the pictures were cropped",
    ),
    Check("face_twice", "error", "the same face is annotated twice", "keep the better annotation"),
)

_PHOTOS: Final = (
    Check("empty", "error", "the picture has no bytes", "copy the file again"),
    Check("not_an_image", "error", "not a picture of a known format", "convert it to JPEG or PNG"),
    Check("truncated", "error", "the file ends too early", "copy the file again"),
    Check("corrupt", "error", "the file is damaged", "copy the file again"),
    Check("too_large", "error", "the picture is larger than the limits", "scale it down"),
    Check("unreadable", "error", "the file cannot be read", "see that it is there and may be read"),
    Check(
        "unsafe_member", "error", "not a regular file of the archive or folder", "put the file itself in its place"
    ),
    Check("hard_link", "error", "another name of a file that its archive has", "unpack the archive to have both"),
    Check("encrypted", "error", "the archive's member is encrypted", "make the archive without a password"),
    Check("compression", "error", "the archive's member cannot be unpacked", "make the archive with deflate"),
    Check("broken_archive", "error", "the archive cannot be read", "fetch or make the archive again"),
    Check(
        "nested_archive", "error", "in an archive or a list, or beside pictures", "unpack it, or give it by itself"
    ),
    Check("unsupported_archive", "error", "a kind of archive that is not read", "make a .tar, .tar.gz or .zip of it"),
    Check("unsupported_url", "error", "neither a file nor on S3", "download it, and name the file"),
    Check("forbidden", "error", "the file or folder may not be opened", "check its rights, and those above it"),
    Check("failed", "error", "reading the picture failed when it was annotated", "see whether the picture opens"),
    Check("crashed", "error", "what looks at pictures died of it, twice", "save it anew, or convert it to JPEG"),
    Check(
        "timeout", "error", "not done in the time for one picture", "annotate with a higher --timeout, and --retry"
    ),
    Check("quarantined", "error", "the picture was put aside when it was annotated", "see whether it opens"),
    Check("changed_picture", "error", "not the picture that was annotated", "annotate it again"),
    Check("unsafe_path", "error", "the picture's path leads out of its folder", "name pictures by paths below it"),
    Check("no_image", "error", "an annotation without its picture", "put the picture beside it, by the same name"),
    Check(
        "near_duplicate_in_two_splits",
        "error",
        "nearly the same photo is held out for validation or test",
        "nothing: training on it would flatter what is measured there; or move both into one split",
    ),
    Check(
        "near_duplicate",
        "warning",
        "nearly the same photo is there several times",
        "nothing, if you want it to weigh more; else keep the largest of them",
    ),
)

_UNUSED: Final = (
    Check("no_annotation", "info", "a picture without an annotation", "annotate it if it should be used"),
    Check("second_image", "info", "another picture has this annotation", "rename one of the two pictures"),
    Check("not_labelled", "info", "a person or box without 68 points", "annotate it if it should be used"),
    Check("crowd", "info", "a crowd, which is no single face", "annotate its faces one by one"),
    Check("ignored", "info", "neither a picture nor an annotation", "nothing"),
    Check("linked_folder", "info", "a folder, or a link to one, that is read under another name", "nothing"),
    Check("test_split", "info", "a test photo, which is never trained on", "nothing"),
    Check("forgotten", "info", "a picture that was forgotten", "nothing: see `msrrn forget`"),
    Check("trained_on", "info", "a photo that a model was trained on, which says nothing of it", "nothing"),
    Check("known_photo", "info", "the dataset has this photo already, with other annotations or by another name",
          "prepare all sources together to use these"),
)  # fmt: skip

CHECKS: Final[dict[str, Check]] = {check.code: check for check in (*_ANNOTATIONS, *_PHOTOS, *_UNUSED)}
"""By code."""
