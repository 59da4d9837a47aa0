import csv
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from msrrn.geometry import Box
from pipelines.checks.shapes import overhang
from pipelines.decoding import decode
from pipelines.errors import UserError
from pipelines.sources import AnnotatedPhoto, Rejected, open_annotated
from pipelines.sources.csv_points import CsvPoints, read_csv
from pipelines.sources.files import open_files
from tests.factories import traced
from tests.pipelines.listings import Face, a_face, faces_of, reasons_of, rejected, rows_of, table, write

FACES = [("a.jpg", a_face(1)), ("b.jpg", a_face(2)), ("b.jpg", a_face(3))]
PICTURES = {"a.jpg": b"a", "b.jpg": b"b"}
INTERLEAVED = [(n, axis) for n in range(68) for axis in "xy"]
BLOCKS = [(n, axis) for axis in "xy" for n in range(68)]


def _values(shape: NDArray[np.floating], order: Sequence[tuple[int, str]]) -> list[str]:
    return [f"{shape[n, 'xy'.index(axis)]:.5f}" for n, axis in order]


def _text(rows: Sequence[Sequence[str]], separator: str = ",") -> bytes:
    buffer = io.StringIO()
    csv.writer(buffer, delimiter=separator).writerows(rows)
    return buffer.getvalue().encode()


def _source(folder: Path, data: bytes, name: str = "list.csv") -> CsvPoints:
    return CsvPoints(write(folder, {**PICTURES, name: data}))


def _check(source: CsvPoints, faces: Sequence[Face] = FACES) -> list[AnnotatedPhoto]:
    found = faces_of(source)
    assert [face.uri for face in found] == [name for name, _ in faces]
    for face, (_, shape) in zip(found, faces, strict=True):
        np.testing.assert_allclose(face.shape, shape, rtol=0, atol=1e-3)
    return found


@settings(max_examples=40)
@given(
    order=st.sampled_from([INTERLEAVED, BLOCKS]) | st.permutations(INTERLEAVED),
    style=st.sampled_from(
        ["x0", "x_0", "X 0", "x[0]", "0_x", "p0x", "landmark_0_y", "lm_x0", "point-0-x", "kp.x.00"]
    ),
    start=st.sampled_from([0, 1]),
    column=st.sampled_from(
        ["image", "image_name", "Image Path", "file", "filename", "file-path", "img", "name", "", "who"]
    ),
    place=st.integers(0, 136),
    separator=st.sampled_from([",", ";", "\t"]),
    other=st.booleans(),
)
def test_named_columns_of_any_order(
    tmp_path_factory: pytest.TempPathFactory,
    order: list[tuple[int, str]],
    style: str,
    start: int,
    column: str,
    place: int,
    separator: str,
    other: bool,
) -> None:
    def title(n: int, axis: str) -> str:
        axis = axis.upper() if "X" in style else axis
        number = f"{n + start:02d}" if "00" in style else str(n + start)
        base = style.replace("landmark_0_y", "landmark_0_x").replace("00", "0").replace("X", "x")
        return base.replace("0", number).replace("x", axis) if "ex" not in base else base

    rows = [[title(n, axis) for n, axis in order]] + [_values(shape, order) for _, shape in FACES]
    for row, name in zip(rows, [column, *(name for name, _ in FACES)], strict=True):
        row.insert(place, name)
        row += ["AU01", "0.5"][row is not rows[0] :][:1] if other else []
    _check(_source(tmp_path_factory.getbasetemp() / "layouts", _text(rows, separator)))


@settings(max_examples=40)
@given(
    order=st.sampled_from([INTERLEAVED, BLOCKS]),
    head=st.sampled_from([None, 0, 1]),
    separator=st.sampled_from([",", ";", "\t"]),
    roll=st.floats(-np.pi, np.pi),
    last=st.booleans(),
)
def test_columns_without_names_are_read_as_faces(
    tmp_path_factory: pytest.TempPathFactory,
    order: list[tuple[int, str]],
    head: int | None,
    separator: str,
    roll: float,
    last: bool,
) -> None:
    turn = np.array([[np.cos(roll), -np.sin(roll)], [np.sin(roll), np.cos(roll)]])
    faces = [(name, (shape - 100) @ turn.T + 200) for name, shape in FACES]
    rows = [_values(shape, order) for _, shape in faces]
    for row, (name, _) in zip(rows, faces, strict=True):
        row.insert(136 * last, name)
    if head is not None:
        rows.insert(0, [str(n + head) for n in range(136)])
        rows[0].insert(136 * last, "")
    _check(_source(tmp_path_factory.getbasetemp() / "unnamed", _text(rows, separator)), faces)


def test_decimal_commas_and_the_encodings_of_spreadsheets(tmp_path: Path) -> None:
    rows = [["file", *(f"{axis}{n}" for n, axis in BLOCKS)]]
    rows += [[name, *(value.replace(".", ",") for value in _values(shape, BLOCKS))] for name, shape in FACES]
    for number, codec in enumerate(("utf-8", "utf-8-sig", "utf-16")):
        for separator in ";\t":
            text = _text(rows, separator).decode()
            _check(_source(tmp_path / f"{number}{ord(separator)}", text.encode(codec)))
            _check(_source(tmp_path / f"{number}{ord(separator)}b", text.partition("\n")[2].encode(codec)))


@pytest.mark.parametrize("codec", ["utf-8", "utf-8-sig", "utf-16", "cp1252"])
def test_names_beyond_ascii_are_found(codec: str, tmp_path: Path) -> None:
    """The last is how Excel saves a table, unless it is told to take UTF-8."""
    write(tmp_path, {"Zoë Müller €.jpg": b""})
    data = table([("Zoë Müller €.jpg", a_face())]).decode().encode(codec)
    assert reasons_of(CsvPoints(write(tmp_path, {"list.csv": data}))) == {"Zoë Müller €.jpg": ""}


def test_points_among_thousands_of_columns(tmp_path: Path) -> None:
    others = [f"embedding_of_the_face_{n}" for n in range(8000)]
    rows = [[*others, "file", *(f"{axis}{n}" for n, axis in BLOCKS)]]
    rows += [[*["-0.123456"] * len(others), name, *_values(shape, BLOCKS)] for name, shape in FACES]
    assert isinstance(open_annotated(_source(tmp_path, _text(rows)).url), CsvPoints)
    _check(_source(tmp_path, _text(rows)))


def _openface(face: int = 0, success: str = "1") -> tuple[list[str], list[str]]:
    """A row as OpenFace 2 writes it: also points of the eyes and in space, and spaces after the commas."""
    shape = FACES[face][1]
    eyes = [f"eye_lmk_{axis}_{n}" for axis in "xyXYZ" for n in range(56)]
    space = [f"{axis}_{n}" for axis in "XYZ" for n in range(68)]
    header = ["frame", "face_id", "timestamp", "confidence", "success", "gaze_0_x", "gaze_0_y", "gaze_1_x", *eyes]
    header += [*(f"{axis}_{n}" for n, axis in BLOCKS), *space, "AU01_r"]
    values = ["1", str(face), "0.0", "0.98", success, *["0.5"] * (3 + len(eyes))]
    values += [*_values(shape, BLOCKS), *["-77.7"] * len(space), "1.2"]
    return header, values


def test_tables_of_openface(tmp_path: Path) -> None:
    (header, first), (_, second), (_, lost) = _openface(0), _openface(1), _openface(2, "0")
    data = "".join(", ".join(row) + "\n" for row in (header, first, second, lost)).encode()
    rows = rows_of(CsvPoints(write(tmp_path, {"img/x.png": b"x", "img/x.csv": data})))
    kinds = {row.annotation_uri if isinstance(row, AnnotatedPhoto) else row.uri: row for row in rows}
    assert list(kinds) == ["img/x.csv#2", "img/x.csv#3", "img/x.png#4"]
    for row, (_, shape) in zip(rows[:2], FACES, strict=False):
        assert isinstance(row, AnnotatedPhoto)
        assert row.uri == "img/x.png"
        np.testing.assert_allclose(row.shape, shape, rtol=0, atol=1e-3)
    assert isinstance(rows[2], Rejected)
    assert rows[2].reason == "not_labelled"
    alone = CsvPoints(write(tmp_path / "alone", {"y.csv": data}))
    assert set(reasons_of(alone)) == {f"y.jpg#{n}" for n in (2, 3, 4)}
    space = [column for column in range(len(header)) if header[column][:2] not in {"x_", "y_"}]
    data = _text([[row[column] for column in space] for row in (header, first)])
    with pytest.raises(UserError, match="names of 56 points instead of 68"):
        CsvPoints(write(tmp_path / "space", {"y.csv": data})).scan()


def test_pixels_count_from_zero_unless_it_is_said(tmp_path: Path) -> None:
    rows = [["file", *(f"{axis}_{n + 1}" for n, axis in INTERLEAVED), "box_x", "box_y", "box_w", "box_h"]]
    rows += [[name, *_values(shape, INTERLEAVED), "1", "1", "4", "6"] for name, shape in FACES]
    source = _source(tmp_path, _text(rows))
    assert _check(source)[0].box == Box(0.5, 0.5, 4.5, 6.5)
    moved = [(name, shape - 1) for name, shape in FACES]
    assert _check(CsvPoints(source.url, one_based=True), moved)[0].box == Box(-0.5, -0.5, 3.5, 5.5)


@pytest.mark.parametrize(
    ("titles", "values", "box"),
    [
        ("left top width height", "1 2 3 4", Box(0.5, 1.5, 3.5, 5.5)),
        ("bbox_x bbox_y bbox_w bbox_h", "1 2 3 4", Box(0.5, 1.5, 3.5, 5.5)),
        ("face_xmin face_ymin face_xmax face_ymax", "1 2 3 5.5", Box(0.5, 1.5, 3.5, 6)),
        ("Rect.Left Rect.Top Rect.Right Rect.Bottom", "1 2 3 5", Box(0.5, 1.5, 3.5, 5.5)),
        ("left top width height", "   ", None),
        ("left top", "1 2", None),
    ],
)
def test_boxes(titles: str, values: str, box: Box | None, tmp_path: Path) -> None:
    header = [*titles.split(" "), "file", *(f"{axis}{n}" for n, axis in INTERLEAVED)]
    row = [*values.split(" "), "a.jpg", *_values(a_face(), INTERLEAVED)]
    source = CsvPoints(write(tmp_path, {"a.jpg": b"", "list.csv": _text([header, row])}))
    assert faces_of(source)[0].box == box


def test_titles_and_names_in_quotes(tmp_path: Path) -> None:
    head, row, _ = table([("a.jpg", a_face())]).decode().split("\n")
    head = ",".join(f'"{title}"' for title in head.split(","))
    (face,) = faces_of(
        CsvPoints(
            write(tmp_path, {"a.jpg": b"a", "t.csv": f'{head}\n"{row.replace(",", chr(34) + ",", 1)}'.encode()})
        )
    )
    np.testing.assert_allclose(face.shape, a_face(), atol=1e-5)


def test_splits_and_subsets_of_rows(tmp_path: Path) -> None:
    header = ["Usage", "Subset", "file", *(f"{axis}{n}" for n, axis in INTERLEAVED)]
    said = [("Training", "web"), ("validation", "web"), ("testing", ""), ("", ""), ("elsewhere", "")]
    rows = [[*words, f"{n}.jpg", *_values(a_face(n), INTERLEAVED)] for n, words in enumerate(said)]
    files = {f"{n}.jpg": b"" for n in range(len(said))}
    *faces, bad = rows_of(CsvPoints(write(tmp_path / "own", {**files, "all.csv": _text([header, *rows])})))
    found = [(face.declared_split, face.subset) for face in faces if isinstance(face, AnnotatedPhoto)]
    assert found == [("train", "web"), ("val", "web"), ("test", "own"), (None, "own")]
    assert isinstance(bad, Rejected)
    assert (bad.reason, "'elsewhere' is no split" in bad.message) == ("syntax", True)


def test_the_pictures_of_a_known_course(tmp_path: Path) -> None:
    rows = [["", *map(str, range(136))], *([name, *_values(shape, INTERLEAVED)] for name, shape in FACES[:2])]
    files = {"training/a.jpg": b"", "training/b.jpg": b"", "training_frames_keypoints.csv": _text(rows)}
    found = faces_of(CsvPoints(write(tmp_path, files)))
    assert [(face.uri, face.declared_split) for face in found] == [(f"training/{n}.jpg", "train") for n in "ab"]


@pytest.mark.parametrize(
    ("line", "reason", "message"),
    [
        ("a.jpg,1,2,3", "syntax", "4 columns instead of 141"),
        ("GOOD,5", "syntax", "142 columns instead of 141"),
        ("GOOD,,", "", ""),
        ('"GOOD', "syntax", "not a row of a table"),
        ("SWAP:nan", "not_finite", "point 3"),
        ("SWAP:1e999", "not_finite", "point 3"),
        ("SWAP:", "syntax", "column x2: '' is not a number"),
        ("SWAP:1_0", "syntax", "column x2: '1_0' is not a number"),
        ("SWAP:<b>", "syntax", "column x2: '<b>' is not a number"),
        ("x" * 200_000, "syntax", "not a row of a table"),
        (",".join("x" * 2_000_000), "syntax", "instead of 141"),
        ("\0", "syntax", "1 columns"),
    ],
)
def test_a_bad_row_stops_no_other(line: str, reason: str, message: str, tmp_path: Path) -> None:
    lines = table(FACES).decode().splitlines()
    cells = lines[1].split(",")
    bad = line.replace("GOOD", lines[1])
    if line.startswith("SWAP:"):
        bad = ",".join([*cells[:9], line[5:], *cells[10:]])
    source = _source(tmp_path, "\n".join([*lines, bad, "", lines[1]]).encode())
    rows = rows_of(source)
    assert len(rows) == 5
    assert sum(isinstance(row, AnnotatedPhoto) for row in rows) == 4 + (not reason)
    assert {f"list.csv#{n}" for n in (2, 3, 4, 7)} <= {
        row.annotation_uri for row in rows if isinstance(row, AnnotatedPhoto)
    }
    for row in rows:
        if isinstance(row, Rejected):
            assert row.reason == reason
            assert row.message.startswith("list.csv#5: ")
            assert message in row.message


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([["file", "x", "y"]], "starts with 3 columns, file, x, y, …: 68 points need 136"),
        ([["file", *(f"{axis}{n}" for n in range(98) for axis in "xy")]], "names of 98 points instead of 68"),
        ([["file", *(f"{axis}{n}" for n in range(1, 70) if n != 9 for axis in "xy")]], "names of 68 points instead"),
        ([["file", *(f"{p}{axis}{n}" for p in "ab" for n, axis in BLOCKS)]], "2 sets of 68 points: keep one"),
        ([["a.jpg", *map(str, range(7, 143))]], "neither x, y, x, y, … nor all x, then all y makes faces"),
        ([["1", "a.jpg", *_values(a_face(), BLOCKS)]], "137 of them hold numbers, not 136, and have no names"),
        ([["", *map(str, range(136))]], "0 of them hold numbers|neither"),
    ],
)
def test_unclear_tables_are_refused_with_a_remedy(rows: list[list[str]], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"list\.csv.* ({message}).*(name the columns|rename)"):
        _source(tmp_path, _text(rows)).scan()


def test_noise_that_is_no_face_is_not_guessed_at(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).uniform(0, 100, (5, 136)).round(2).astype(str).tolist()
    with pytest.raises(UserError, match="makes faces of its numbers"):
        _source(tmp_path, _text([["a.jpg", *row] for row in noise])).scan()


@settings(max_examples=40)
@given(st.binary(max_size=300) | st.text("abx0123456789.-,;\t\"'\n", max_size=400).map(str.encode), st.integers(0, 3))
def test_nothing_but_a_user_error_is_raised(tmp_path_factory: pytest.TempPathFactory, junk: bytes, line: int) -> None:
    lines = table(FACES).splitlines()
    lines[line] = lines[line][:60] + junk + lines[line][60:]
    try:
        rows = list(_source(tmp_path_factory.getbasetemp() / "junk-csv", b"\n".join(lines)).scan())
    except UserError:
        return
    assert rows


def test_memory_is_bounded_by_a_row(tmp_path: Path) -> None:
    data = table(FACES).splitlines(keepends=True)
    (tmp_path / "list.csv").write_bytes(data[0] + 1000 * data[1])
    files = open_files(str(tmp_path / "list.csv"))
    count, peak = traced(lambda: sum(1 for _ in read_csv(files, "list.csv")))
    assert count == 1000
    assert peak < 1 << 19  # the shapes alone would take more


def test_the_real_table(data_root: Path) -> None:
    folder = data_root / "photos" / "video-frames"
    assert isinstance(open_annotated(str(folder)), CsvPoints)
    faces = faces_of(CsvPoints(str(folder)))
    assert len(faces) == len({face.uri for face in faces}) == 402
    assert {face.subset for face in faces} == {"video-frames"}
    first = next(face for face in faces if face.annotation_uri == "keypoints.csv#2")
    assert first.uri == "Valerie_Harper_30.jpg"
    assert first.shape[0].tolist() == [56, 69]
    for face in faces[::20]:
        height, width = decode(face.read()).rgb.shape[:2]
        assert overhang(face.shape, width, height) < 0.1


def test_a_row_without_a_picture_is_known_by_its_line(tmp_path: Path) -> None:
    row = rejected(CsvPoints(write(tmp_path, {"list.csv": table([("", a_face())])})))
    assert (row.uri, row.reason) == ("list.csv#2", "no_image")


def test_a_name_in_quotes_goes_on_in_the_next_line_and_may_end_with_a_blank(tmp_path: Path) -> None:
    faces = [("a\n\nb.jpg", a_face(1)), ("c.jpg ", a_face(2)), ("c.jpg", a_face(3))]
    rows = [["file", *(f"{axis}{n}" for n, axis in INTERLEAVED)]]
    rows += [[name, *_values(shape, INTERLEAVED)] for name, shape in faces]
    for name, _ in faces:
        write(tmp_path, {name: name.encode()})
    for data in (_text(rows), _text(rows).decode().encode("utf-16")):
        found = faces_of(CsvPoints(write(tmp_path, {"list.csv": data}) + "/list.csv"))
        assert {face.annotation_uri: face.read().decode() for face in found} == {
            "list.csv#2": "a\n\nb.jpg",
            "list.csv#5": "c.jpg ",
            "list.csv#6": "c.jpg",
        }


def test_quotes_that_never_end_cost_their_own_row(tmp_path: Path) -> None:
    lines = table([("a.jpg", a_face(1)), ("x", a_face(2)), ("b.jpg", a_face(3)), ("b.jpg", a_face(4))]).decode()
    for odd in ('"x', 'x"', '5" x'):
        reasons = reasons_of(_source(tmp_path, lines.replace("\nx,", f"\n{odd},").encode()))
        assert (reasons.pop("a.jpg"), reasons.pop("b.jpg")) == ("", "")
        assert list(reasons.values()) == ["syntax" if odd == '"x' else "no_image"]
