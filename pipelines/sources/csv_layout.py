"""Which columns of a table hold what: the names and orders that `pipelines.sources.csv_points` understands."""

import csv
import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from msrrn.geometry import fit_similarity
from msrrn.landmarks import NUM_LANDMARKS
from msrrn.synthetic.anatomy import MEAN
from pipelines.archives.names import is_picture
from pipelines.errors import UserError
from pipelines.sources.annotation import BadAnnotation, number, usable_shape
from pipelines.sources.listed import OtherKind

PICTURE_COLUMNS: Final = (
    "imagepath", "filepath", "imgpath", "path", "imagefile", "imgfile", "filename", "file", "imagename", "imgname",
    "image", "img", "picture", "photo", "uri", "name",
)  # fmt: skip
"""In the order in which they are preferred where a table has several."""
_NUMBERS: Final = 2 * NUM_LANDMARKS
_BOXES: Final = (
    ("left", "top", "width", "height"), ("x", "y", "w", "h"), ("x", "y", "width", "height"),
    ("left", "top", "right", "bottom"), ("xmin", "ymin", "xmax", "ymax"),
)  # fmt: skip
_TO_LAST_PIXEL: Final = {"right", "xmax"}
_AXIS_FIRST: Final = re.compile(r"(.*?)([xyzXYZ])([ _.\-]?)\[?(\d{1,3})\]?")
_INDEX_FIRST: Final = re.compile(r"(.*?)(\d{1,3})([ _.\-]?)([xyzXYZ])")
_A_FACE: Final = 0.65
"""The part of a shape that no similarity of the mean face explains. Measured on 905 annotated faces: at most 0.41;
their points read in the wrong order: at least 0.94."""
REMEDY: Final = "name the columns x0, y0, …, x67, y67 and file"


@dataclass(frozen=True)
class Layout:
    """Which columns hold what; `points` are the 136 columns of x0, y0, x1, y1, …"""

    separator: str
    header: Sequence[str]
    columns: int
    points: Sequence[int]
    picture: int | None
    box: tuple[Sequence[int], bool] | None
    """The four columns, and whether the latter two are the last pixel instead of a size."""
    split: int | None
    subset: int | None
    success: int | None

    @property
    def has_header(self) -> bool:
        return bool(self.header)

    def cells(self, row: str) -> list[str]:
        """Those of a row, without blanks around them but for the picture's, whose name may have some."""
        written = _written(row, self.separator)
        cells = [cell if column == self.picture else cell.strip() for column, cell in enumerate(written)]
        if len(cells) > self.columns and not any(cells[self.columns :]):
            cells = cells[: self.columns]
        if len(cells) != self.columns:
            raise BadAnnotation("syntax", f"{len(cells)} columns instead of {self.columns}")
        return cells

    def is_whole(self, row: str) -> bool:
        """Whether all columns are there; else a cell in quotes may go on in the next line."""
        try:
            self.cells(row)
        except BadAnnotation:
            return False
        return True

    def numbers(self, cells: Sequence[str], columns: Sequence[int]) -> NDArray[np.float64]:
        return np.array([self._number(cells, column) for column in columns], np.float64)

    def _number(self, cells: Sequence[str], column: int) -> float:
        text = cells[column]
        try:
            return _decimal(text, self.separator)
        except ValueError as error:
            title = self.header[column] if self.header else str(column + 1)
            raise BadAnnotation("syntax", f"column {title}: {text[:40]!r} is not a number") from error


def find_layout(sample: Sequence[str], where: str) -> Layout:
    """The layout of a table by its first lines; `UserError` when it is not clear, `OtherKind` when it is none."""
    if not sample:
        raise OtherKind(f"{where} is empty: {REMEDY}")
    separator = max("\t;,", key=lambda one: _columns_by(sample[0], one))
    try:
        first = _cells(sample[0], separator)
    except BadAnnotation as error:
        raise OtherKind(f"{where}, line 1: {error.message}: {REMEDY}") from error
    what = f"{where} starts with {len(first)} columns, {', '.join(first[:4])[:80]}, …"
    if len(first) < _NUMBERS:
        raise OtherKind(f"{what}: {NUM_LANDMARKS} points need {_NUMBERS}: {REMEDY}")
    numeric = [_is_number(cell) for cell in first]
    unnamed = _counted(first)
    has_header = bool(unnamed) or sum(numeric) < len(first) // 2
    header = first if has_header else ()
    rows = _rows(sample[has_header:], separator, len(first))
    points = _named_points(header, what) if has_header and not unnamed else None
    if points is None:
        candidates = unnamed or [column for column in range(len(first)) if _mostly(rows, column, _is_number)]
        points = _by_numbers(rows, candidates, separator, what)
    names = {_plain(title): column for column, title in reversed(list(enumerate(header)))}
    return Layout(
        separator,
        header,
        len(first),
        points,
        _picture_column(names, rows, len(first)),
        _box_columns(header, points),
        _column(names, "split", "partition", "usage"),
        _column(names, "subset", "dataset", "source"),
        _column(names, "success"),
    )


def _columns_by(line: str, separator: str) -> int:
    """How many columns a separator makes; none where quotes end elsewhere, as they do by a wrong one."""
    try:
        return len(_cells(line, separator))
    except BadAnnotation:
        return 0


def _rows(lines: Sequence[str], separator: str, columns: int) -> list[list[str]]:
    rows = []
    for line in lines:
        try:
            cells = _cells(line, separator)
        except BadAnnotation:
            continue
        if len(cells) == columns:
            rows.append(cells)
    return rows


def _named_points(header: Sequence[str], what: str) -> list[int]:
    """Columns of x0, y0, x1, … by their names: those of the one group that has 68 in the plane."""
    groups: dict[tuple[str, ...], dict[str, dict[int, int]]] = defaultdict(lambda: defaultdict(dict))
    for column, title in enumerate(header):
        if match := _AXIS_FIRST.fullmatch(title):
            prefix, axis, apart, index = match.groups()
        elif match := _INDEX_FIRST.fullmatch(title):
            prefix, index, apart, axis = match.groups()
        else:
            continue
        case = "upper" if axis.isupper() else "lower"
        groups[prefix, apart, case][axis.lower()].setdefault(int(index), column)
    flat = {key: axes for key, axes in groups.items() if axes.keys() == {"x", "y"}}
    whole = [
        [axes[axis][index] for index in sorted(axes["x"]) for axis in "xy"]
        for axes in flat.values()
        if axes["x"].keys() == axes["y"].keys() and sorted(axes["x"]) in (_counts(0), _counts(1))
    ]
    if len(whole) > 1:
        raise UserError(f"{what}: {len(whole)} sets of {NUM_LANDMARKS} points: keep one, or rename the others")
    if not whole:
        most = max((len(axes["x"]) for axes in flat.values()), default=0)
        raise OtherKind(f"{what}: names of {most} points instead of {NUM_LANDMARKS}: {REMEDY}")
    return whole[0]


def _counts(start: int) -> list[int]:
    return list(range(start, start + NUM_LANDMARKS))


def _counted(first: Sequence[str]) -> list[int]:
    """The columns of a header `, 0, 1, …, 135` (or from 1), which names its numbers by counting."""
    digits = [column for column, cell in enumerate(first) if cell.isascii() and cell.isdigit()]
    values = [int(first[column][:9]) for column in digits]
    counted = len(values) == _NUMBERS and values in (list(range(_NUMBERS)), list(range(1, _NUMBERS + 1)))
    return digits if counted else []


def _by_numbers(rows: Sequence[Sequence[str]], columns: Sequence[int], separator: str, what: str) -> list[int]:
    """The order of unnamed columns that makes faces: x, y, x, y, … or all x, then all y."""
    if len(columns) != _NUMBERS:
        raise UserError(f"{what}: {len(columns)} of them hold numbers, not {_NUMBERS}, and have no names: {REMEDY}")
    pairs = list(columns)
    blocks = [column for pair in zip(pairs[:NUM_LANDMARKS], pairs[NUM_LANDMARKS:], strict=True) for column in pair]
    fitting = [order for order in (pairs, blocks) if _strangeness(rows, order, separator) < _A_FACE]
    if len(fitting) != 1:
        raise UserError(f"{what}: neither x, y, x, y, … nor all x, then all y makes faces of its numbers: {REMEDY}")
    return fitting[0]


def _strangeness(rows: Sequence[Sequence[str]], columns: Sequence[int], separator: str) -> float:
    """The median over the rows of the part of a shape that no similarity of the mean face explains; at most 1."""
    mean = MEAN[:NUM_LANDMARKS, :2]
    parts = []
    for cells in rows:
        try:
            values = [_decimal(cells[column], separator) for column in columns]
            shape = usable_shape(np.array(values).reshape(NUM_LANDMARKS, 2))
        except (ValueError, BadAnnotation):
            continue
        rest = fit_similarity(mean, shape)(mean) - shape
        parts.append(float(np.linalg.norm(rest) / np.linalg.norm(shape - shape.mean(axis=0))))
    return float(np.median(parts)) if parts else 1.0


def _picture_column(names: Mapping[str, int], rows: Sequence[Sequence[str]], columns: int) -> int | None:
    """By its name, else by its values; None when there is none."""
    named = _column(names, *PICTURE_COLUMNS)
    if named is not None:
        return named
    return next((column for column in range(columns) if _mostly(rows, column, is_picture)), None)


def _box_columns(header: Sequence[str], points: Sequence[int]) -> tuple[Sequence[int], bool] | None:
    names = {
        re.sub(r"^(face|bbox|box|rect)+", "", _plain(title)): column
        for column, title in enumerate(header)
        if column not in points
    }
    for titles in _BOXES:
        if all(title in names for title in titles):
            return [names[title] for title in titles], titles[2] in _TO_LAST_PIXEL
    return None


def _column(names: Mapping[str, int], *titles: str) -> int | None:
    return next((names[title] for title in titles if title in names), None)


def _plain(title: str) -> str:
    return re.sub(r"[^a-z0-9]", "", title.lower())


def _mostly(rows: Sequence[Sequence[str]], column: int, test: Callable[[str], bool]) -> bool:
    return 2 * sum(test(cells[column]) for cells in rows) > len(rows)


def _decimal(text: str, separator: str) -> float:
    """A number, with a decimal comma where commas part no columns."""
    return number(text if separator == "," else text.replace(",", "."))


def _is_number(text: str) -> bool:
    try:
        number(text.replace(",", "."))
    except ValueError:
        return False
    return True


def _cells(line: str, separator: str) -> list[str]:
    return [cell.strip() for cell in _written(line, separator)]


def _written(row: str, separator: str) -> list[str]:
    try:
        rows = list(csv.reader([row], delimiter=separator, skipinitialspace=True, strict=True))
    except csv.Error as error:
        raise BadAnnotation("syntax", f"not a row of a table ({error})") from error
    return rows[0] if rows else []
