"""CVAT's XML ("CVAT for images 1.1"): faces as shapes of 68 points, or as skeletons of 68.

    <annotations><version>1.1</version><meta>…</meta>
      <image id="0" name="a.jpg" width="640" height="480">
        <points label="face" points="12.50,30.12;…"><attribute name="checked">true</attribute></points>

CVAT counts from the corner of the first pixel, so pixel centres lie at 0.5, 1.5, …: half a pixel is taken off. The
elements of a skeleton have numbers for labels, 0 to 67 or 1 to 68, and are in the order of these; one that is
`outside` was not labelled. Other shapes and tags are left alone. Pictures lie beside the XML or where `near` says.
In the XML of a project, a picture names the subset of its task, whose pictures CVAT puts into `images/SUBSET`; where
that is a word for a split, it is the picture's. The frames of a video are named without the suffix of
their files.

Source: https://docs.cvat.ai/docs/other/xml_format; see `pipelines.annotation.exports.cvat`.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from msrrn.landmarks import NUM_LANDMARKS
from pipelines.sources import AnnotatedPhoto, Rejected
from pipelines.sources.annotation import BadAnnotation, number, usable_shape
from pipelines.sources.files import Files, open_files
from pipelines.sources.listed import Entry, heads, near, scan_listed
from pipelines.sources.splits import split_in
from pipelines.sources.xml_listing import XmlListing, read_xml

SUFFIXES: Final = (".xml",)
ORIGIN: Final = 0.5
"""Where the centre of the first pixel lies."""
_ROOT: Final = re.compile(rb"<annotations[\s>]")
_REMEDY: Final = "give the XML of CVAT's format “CVAT for images 1.1”, with faces of 68 points"
_FRAME: Final = re.compile(r"frame_\d{6,}")
"""A frame of a video, which CVAT saves as `.PNG`."""
_LONGEST: Final = 1 << 16
"""Characters of a shape's points."""


@dataclass(frozen=True)
class Cvat:
    """A CVAT XML, or a folder or an archive that holds some."""

    url: str

    @staticmethod
    def recognises(files: Files) -> bool:
        """See `Reader.recognises`: an XML starts `<annotations>`."""
        return any(_ROOT.search(head) for head in heads(files, SUFFIXES, 4096))

    def scan(self) -> Iterator[AnnotatedPhoto | Rejected]:
        """See `AnnotatedSource.scan`; every shape of points is a row, and every picture without one."""
        return scan_listed(open_files(self.url), SUFFIXES, read_cvat, _REMEDY, near)


def read_cvat(files: Files, name: str) -> Iterator[Entry]:
    """The faces of an XML in its order, numbered from 1; what is held in memory is one face at a time."""
    return read_xml(files, name, _Listing)


class _Listing(XmlListing):
    root = "annotations"
    tool = "CVAT"
    remedy = _REMEDY

    def __init__(self, where: str) -> None:
        super().__init__(where)
        self._image: str | None = None
        self._subset = ""
        self._is_empty = True
        self._count = 0
        self._shape = ""
        """the tag of the shape that is open: points or skeleton"""
        self._line = 0
        self._points: list[Mapping[str, str]] = []
        self._attribute: str | None = None
        self._text = ""
        self._said: dict[str, str] = {}

    def start(self, tag: str, attributes: dict[str, str]) -> None:
        if tag == "image":
            name = attributes.get("name", "")
            self._image, self._is_empty = f"{name}.PNG" if _FRAME.fullmatch(name) else name, True
            self._subset = attributes.get("subset", "")
        elif tag in {"points", "skeleton"} and self._image is not None and not self._shape:
            self._shape, self._line, self._said = tag, self.line, {}
            self._points = [attributes] if tag == "points" else []
        elif tag == "points" and self._shape == "skeleton":
            self._points.append(attributes if len(self._points) < NUM_LANDMARKS else {})
        elif tag == "attribute" and self._shape:
            self._attribute, self._text = attributes.get("name", ""), ""

    def text(self, data: str) -> None:
        if self._attribute is not None and len(self._text) < _LONGEST:
            self._text += data

    def end(self, tag: str) -> None:
        if tag == "attribute" and self._attribute is not None:
            self._said[self._attribute] = self._text
            self._attribute = None
        elif tag == self._shape:
            self._add(self._face(), self._said.get("checked", "").strip().lower() == "true")
            self._shape, self._is_empty = "", False
        elif tag == "image" and self._image is not None:
            if self._is_empty:
                self._add(BadAnnotation("no_annotation", "a picture without a shape of points"))
            self._image = None

    def _add(self, face: BadAnnotation | NDArray[np.float64], checked: bool = False) -> None:
        self._count += 1
        subset = self._subset
        entry = Entry(self._image or "", self._count, face, split=split_in(subset), checked=checked, folder=subset)
        self.done.append(entry)

    def _face(self) -> BadAnnotation | NDArray[np.float64]:
        try:
            points = _skeleton(self._points) if self._shape == "skeleton" else _pairs(self._points[0])
            return usable_shape(points - ORIGIN)
        except BadAnnotation as error:
            return BadAnnotation(error.reason, f"line {self._line}: {error.message}")


def _pairs(shape: Mapping[str, str]) -> NDArray[np.float64]:
    """The points of a shape, (N, 2)."""
    text = shape.get("points", "")
    pairs = [pair.split(",") for pair in text[:_LONGEST].split(";")]
    try:
        return np.array([(number(x), number(y)) for x, y in pairs], np.float64)
    except ValueError as error:
        raise BadAnnotation("syntax", f"its points are {text[:40]!r} instead of x,y;x,y;…") from error


def _skeleton(elements: list[Mapping[str, str]]) -> NDArray[np.float64]:
    """The points of a skeleton in the order of their labels' numbers."""
    if len(elements) != NUM_LANDMARKS:
        raise BadAnnotation("count", f"{len(elements)} elements instead of {NUM_LANDMARKS}")
    labels = [element.get("label", "") for element in elements]
    order = [int(label) if label.isascii() and label.isdigit() and len(label) < 10 else -1 for label in labels]
    if sorted(order) not in (list(range(NUM_LANDMARKS)), list(range(1, NUM_LANDMARKS + 1))):
        raise BadAnnotation(
            "count", f"the labels of its elements, {labels[0][:40]!r}, …, are not the numbers 1 to 68"
        )
    absent = sum(element.get("outside", "0") == "1" for element in elements)
    if absent:
        raise BadAnnotation("not_labelled", f"{absent} of {NUM_LANDMARKS} points are not labelled (outside)")
    points = [_pairs(elements[index]) for index in np.argsort(order)]
    if any(len(point) != 1 for point in points):
        raise BadAnnotation("syntax", "an element has more than one point")
    return np.concatenate(points)
