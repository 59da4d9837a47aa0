"""dlib's imglab XML with 68-part boxes, the format of its own `labels_ibug_300W.xml`.

    <dataset><images>
      <image file='helen/trainset/1.jpg'>
        <box top='224' left='78' width='138' height='138'>
          <part name='00' x='55' y='253'/> ...

Parts are pixel indices as dlib has them: 0-based centres, like ours. A box covers the pixels from `left` to
`left + width - 1` (dlib's rectangle includes both ends), so its edges lie half a pixel further out. Paths are
relative to the XML's folder and stay below it. dlib says that its files are in ISO-8859-1, and writes the bytes of
names as they are, which is UTF-8 nearly everywhere, and in which an ampersand is no XML.

Source: dlib, `dlib/data_io/image_dataset_metadata.h` and its `.cpp`.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from msrrn.geometry import Box
from msrrn.landmarks import NUM_LANDMARKS
from pipelines.sources import AnnotatedPhoto, Rejected
from pipelines.sources.annotation import BadAnnotation, number, pixel_box, usable_shape
from pipelines.sources.files import Files, open_files
from pipelines.sources.listed import Entry, heads, scan_listed
from pipelines.sources.xml_listing import XmlListing, read_xml

SUFFIXES: Final = (".xml",)
_BY_DLIB: Final = re.compile(rb"<\?xml [^>]*ISO-8859-1", re.IGNORECASE)
_BARE: Final = re.compile(rb"&(?!(?:amp|lt|gt|quot|apos|#\d{1,7}|#x[\da-fA-F]{1,6});)")
_LONGEST_REFERENCE: Final = 10
_REMEDY: Final = "give an XML file of dlib's imglab, or a folder or an archive that holds one"


@dataclass(frozen=True)
class Imglab:
    """An imglab XML, or a folder or an archive that holds some."""

    url: str

    @staticmethod
    def recognises(files: Files) -> bool:
        """See `Reader.recognises`: an XML starts a `<dataset>`."""
        return any(b"<dataset" in head for head in heads(files, SUFFIXES, 4096))

    def scan(self) -> Iterator[AnnotatedPhoto | Rejected]:
        """See `AnnotatedSource.scan`; every box is a row, and every picture without one."""
        return scan_listed(open_files(self.url), SUFFIXES, read_imglab, _REMEDY)


def read_imglab(files: Files, name: str) -> Iterator[Entry]:
    """The boxes of an XML in its order, numbered from 1; what is held in memory is one box at a time."""
    return read_xml(files, name, _Listing)


class _Listing(XmlListing):
    root = "dataset"
    tool = "imglab"
    remedy = _REMEDY

    def __init__(self, where: str) -> None:
        super().__init__(where)
        self._image: str | None = None
        self._is_empty = True
        self._box: dict[str, str] | None = None
        self._line = 0
        self._parts: list[dict[str, str]] = []
        self._surplus = 0
        self._count = 0
        self._by_dlib: bool | None = None
        self._held = b""

    def feed(self, data: bytes, final: bool = False) -> list[Entry]:
        """See `XmlListing.feed`; dlib writes and reads an ampersand in a name as it is."""
        if self._by_dlib is None:
            self._by_dlib = _BY_DLIB.match(data) is not None
        if self._by_dlib:
            data = self._held + data
            # What the last one begins may go on in the next piece.
            start = -1 if final else data.rfind(b"&", -_LONGEST_REFERENCE)
            cut = len(data) if start < 0 else start
            self._held, data = data[cut:], _BARE.sub(b"&amp;", data[:cut])
        return super().feed(data, final)

    def start(self, tag: str, attributes: dict[str, str]) -> None:
        if tag == "image":
            self._image, self._is_empty = _name(attributes.get("file", ""), bool(self._by_dlib)), True
        elif tag == "box" and self._image is not None:
            self._box, self._parts, self._surplus = attributes, [], 0
            self._line = self.line
        elif tag == "part" and self._box is not None:
            if len(self._parts) < NUM_LANDMARKS:
                self._parts.append(attributes)
            else:
                self._surplus += 1

    def end(self, tag: str) -> None:
        if tag == "box" and self._box is not None:
            self._is_empty = False
            self._add(self._entry(self._box))
            self._box = None
        elif tag == "image" and self._image is not None:
            if self._is_empty:
                self._add(BadAnnotation("no_annotation", "a picture without a box"))
            self._image = None

    def _add(self, face: BadAnnotation | tuple[NDArray[np.float64], Box]) -> None:
        self._count += 1
        shape, box = (face, None) if isinstance(face, BadAnnotation) else face
        self.done.append(Entry(self._image or "", self._count, shape, box))

    def _entry(self, box: dict[str, str]) -> BadAnnotation | tuple[NDArray[np.float64], Box]:
        try:
            if box.get("ignore", "0") not in {"0", "false"}:
                raise BadAnnotation("ignored", "a box that says ignore")
            if len(self._parts) + self._surplus != NUM_LANDMARKS:
                raise BadAnnotation("count", f"{len(self._parts) + self._surplus} parts instead of {NUM_LANDMARKS}")
            return usable_shape(_points(self._parts)), _box(box)
        except BadAnnotation as error:
            return BadAnnotation(error.reason, f"line {self._line}: {error.message}")


def _name(text: str, by_dlib: bool) -> str:
    """A picture's name, whose bytes dlib does not encode as it declares; what is no UTF-8 is what it says it is."""
    if not by_dlib:
        return text
    try:
        return text.encode("latin-1").decode("utf-8")
    except UnicodeError:
        return text


def _points(parts: list[dict[str, str]]) -> NDArray[np.float64]:
    """Parts in the order of their names, 0 to 67."""
    points = np.full((NUM_LANDMARKS, 2), np.nan)
    seen: set[int] = set()
    for part in parts:
        name = part.get("name", "")
        index = int(name) if name.isascii() and name.isdigit() and len(name) < 10 else -1
        if index not in range(NUM_LANDMARKS):
            raise BadAnnotation("count", f"a part is named {name[:40]!r} instead of 0 to {NUM_LANDMARKS - 1}")
        if index in seen:
            raise BadAnnotation("count", f"part {name} is there twice")
        seen.add(index)
        try:
            points[index] = number(part["x"]), number(part["y"])
        except (KeyError, ValueError) as error:
            raise BadAnnotation("syntax", f"part {name} has no x and y that are numbers") from error
    return points


def _box(attributes: dict[str, str]) -> Box:
    try:
        return pixel_box(*(number(attributes[side]) for side in ("left", "top", "width", "height")))
    except (KeyError, ValueError) as error:
        raise BadAnnotation("syntax", "the box needs numbers: left, top, a width and a height above 0") from error
