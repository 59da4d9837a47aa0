"""CSV of keypoints: a row a face, with its picture's name and 68 points.

Points are 0-based pixel centres of the upright picture; `CsvPoints(url, one_based=True)` reads 1-based ones. That
a header counts its points from 0 or from 1 says nothing about pixels and is not taken to. Columns may be apart by
commas, semicolons (numbers may then have decimal commas) or tabs; names are compared without case, spaces, `_`
and `-`. The text is UTF-8, UTF-16 with its mark, or in the code page of Windows. What is understood:

- points: `x0, y0, x1, y1, …`, `x_0, …, x_67, y_0, …, y_67`, `0_x`, `p1x`, `landmark_0_y` and the like, counted from
  0 or 1, in any order, after any common prefix. The tables of OpenFace have them so, beside points in space and
  of the eyes, which are left alone;
- points without names (no header, or one of mere numbers): x, y, x, y, … or all x, then all y, whichever of the
  two makes faces;
- the picture: a column of `csv_layout.PICTURE_COLUMNS`, else the one whose values end like pictures'; without one,
  as in OpenFace's tables, all rows are faces of the picture with the table's own name beside it;
- a box: left, top, width, height (or x, y, w, h) or left, top, right, bottom (or xmin, ymin, xmax, ymax), with or
  without `box`, `bbox`, `face` or `rect` before; pixel indices, right and bottom being the last pixel;
- `split`, `partition` or `usage`; `subset`, `dataset` or `source`; OpenFace's `success`.
"""

import codecs
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain, dropwhile, islice
from typing import BinaryIO, Final

from msrrn.geometry import Box
from msrrn.landmarks import NUM_LANDMARKS
from pipelines.archives.names import IMAGE_SUFFIXES
from pipelines.archives.rows import in_rows, text_lines
from pipelines.errors import UserError
from pipelines.sources import AnnotatedPhoto, Rejected
from pipelines.sources.annotation import BadAnnotation, pixel_box, usable_shape
from pipelines.sources.csv_layout import REMEDY, Layout, find_layout
from pipelines.sources.files import Files, open_files
from pipelines.sources.listed import Entry, OtherKind, heads, near, scan_listed
from pipelines.sources.splits import said_split

SUFFIXES: Final = (".csv", ".tsv")
_SAMPLE: Final = 32
_LONGEST_LINE: Final = 1 << 20
"""Characters: tables that hold the features of a face beside its points have thousands of columns."""


@dataclass(frozen=True)
class CsvPoints:
    """A table of keypoints, or a folder or an archive that holds some; pictures beside it, or where `near` says."""

    url: str
    one_based: bool = False

    @staticmethod
    def recognises(files: Files) -> bool:
        """See `Reader.recognises`: a table has the columns for 68 points."""
        for head in heads(files, SUFFIXES, _LONGEST_LINE):
            try:
                find_layout([line for _, line in islice(_lines(io.BytesIO(head)), 1)], "")
            except OtherKind:
                continue
            except UserError:
                return True
            return True
        return False

    def scan(self) -> Iterator[AnnotatedPhoto | Rejected]:
        """See `AnnotatedSource.scan`; every row of a table is a row."""
        read = partial(read_csv, one_based=self.one_based)
        return scan_listed(open_files(self.url), SUFFIXES, read, REMEDY, near)


def read_csv(files: Files, name: str, one_based: bool = False) -> Iterator[Entry]:
    """The rows of a table in its order, numbered by their first lines; few are held at a time."""
    where = f"{files.url}/{name}"
    with files.open(name) as file:
        lines = _lines(file)
        first = list(islice(lines, _SAMPLE))
        layout = find_layout([line for _, line in first], where)
        own = "" if layout.picture is not None else _own_picture(files, name)
        rows = islice(chain(first, lines), int(layout.has_header), None)
        for line_number, row in in_rows(rows, layout.is_whole):
            yield _entry(layout, row, line_number, own, 1.0 if one_based else 0.0)


def _of_windows(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeDecodeError)
    return error.object[error.start : error.end].decode("cp1252", "backslashreplace"), error.end


codecs.register_error("msrrn.windows", _of_windows)
"""What is no UTF-8 is in the code page of Windows, in which Excel writes what it calls CSV; names tell."""


def _lines(file: BinaryIO) -> Iterator[tuple[int, str]]:
    """Lines as they are, from the first that holds something on, with their numbers from 1."""
    lines = enumerate(text_lines(file, _LONGEST_LINE, "msrrn.windows"), start=1)
    return dropwhile(lambda numbered: not numbered[1].strip(), lines)


def _entry(layout: Layout, line: str, line_number: int, own: str, origin: float) -> Entry:
    image = own
    try:
        cells = layout.cells(line)
        image = own if layout.picture is None else cells[layout.picture]
        if layout.success is not None and not layout.numbers(cells, [layout.success]).any():
            raise BadAnnotation("not_labelled", "success is 0: no face was found")
        shape = usable_shape(layout.numbers(cells, layout.points).reshape(NUM_LANDMARKS, 2) - origin)
        split = None if layout.split is None else said_split(cells[layout.split])
        subset = "" if layout.subset is None else cells[layout.subset]
        return Entry(image, line_number, shape, _box(layout, cells, origin), split, subset)
    except BadAnnotation as error:
        return Entry(image, line_number, error)


def _box(layout: Layout, cells: Sequence[str], origin: float) -> Box | None:
    if layout.box is None or not any(cells[column] for column in layout.box[0]):
        return None
    left, top, width, height = (float(value) for value in layout.numbers(cells, layout.box[0]))
    if layout.box[1]:
        width, height = width - left + 1, height - top + 1
    try:
        return pixel_box(left - origin, top - origin, width, height)
    except ValueError as error:
        raise BadAnnotation("syntax", "the box has no width or no height") from error


def _own_picture(files: Files, name: str) -> str:
    """The picture with the table's own name beside it; a name that is not there when there is none."""
    stem = name.rpartition(".")[0]
    suffix = next((suffix for suffix in sorted(IMAGE_SUFFIXES) if files.exists(stem + suffix)), ".jpg")
    return f"{stem.rpartition('/')[2]}{suffix}"


@dataclass(frozen=True)
class OneBasedCsv(CsvPoints):
    """The same with 1-based points. Nothing in a table tells, so it is never recognised: say `--format`."""

    one_based: bool = True

    @staticmethod
    def recognises(files: Files) -> bool:
        return False
