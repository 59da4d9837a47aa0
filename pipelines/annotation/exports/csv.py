"""`faces.csv`: a row a face, with its picture's name, its box, its confidence and 68 points.

Columns are `uri, face_index, left, top, width, height, confidence, x0, y0, …, x67, y67`. Points are 0-based pixel
centres; the box is in pixel indices, so that its edges lie at `left - 0.5` and `left + width - 0.5`.

A name that a spreadsheet could take for a formula (it starts with =, +, -, @, a tab, …) is written as the same path
below `./`: `./=1+1.jpg`. So it is text to a spreadsheet, the same file to every program that opens it and to our
own reader, and joins with the tables once a leading `./` is taken away. Names are always in quotes, so that a
spreadsheet that splits at semicolons finds no cell in one either.
"""

import csv
import io
from typing import Final

from msrrn.landmarks import NUM_LANDMARKS
from pipelines.annotation.exports.pictures import AnnotatedPictures, numbers
from pipelines.showable import no_formula
from pipelines.storage import Store

FILE: Final = "faces.csv"
COLUMNS: Final = (
    *("uri", "face_index", "left", "top", "width", "height", "confidence"),
    *(f"{axis}{point}" for point in range(NUM_LANDMARKS) for axis in "xy"),
)


def write(pictures: AnnotatedPictures, out: Store) -> str:
    """See `Exporter`."""
    with out.writing(FILE) as file:
        text = io.TextIOWrapper(file, "utf-8", newline="")
        table = csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)
        table.writerow(COLUMNS)
        for picture in pictures:
            name = no_formula(pictures.name(picture))
            for face in picture.faces:
                left, top, right, bottom = face.edges
                box = numbers([left + 0.5, top + 0.5, right - left, bottom - top])
                row = [*box, *numbers([face.confidence]), *numbers(face.landmarks)]
                table.writerow([name, face.index, *row])
        text.detach()  # flushes, and leaves the file open
    return FILE


def older(out: Store) -> list[str]:
    """See `Exporter`."""
    return out.present(FILE)
