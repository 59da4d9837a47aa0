from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pipelines.errors import UserError
from pipelines.sources import AnnotatedPhoto, Rejected, open_annotated
from pipelines.sources.cvat import Cvat, read_cvat
from pipelines.sources.files import Files, open_files
from tests.factories import traced
from tests.pipelines.listings import PLACES, a_face, faces_of, put, reasons_of, rejected, rows_of, write

FACE = a_face()


def points(shape: NDArray[np.floating] = FACE, inside: str = "") -> str:
    """One shape, with two decimals as CVAT writes them."""
    listed = ";".join(f"{x:.2f},{y:.2f}" for x, y in shape + 0.5)
    return f'<points label="face" source="manual" occluded="0" points="{listed}" z_order="0">{inside}</points>'


def skeleton(shape: NDArray[np.floating] = FACE, first: int = 1, order: Sequence[int] = tuple(range(68))) -> str:
    elements = "".join(
        f'<points label="{index + first}" source="manual" outside="0" occluded="0" '
        f'points="{shape[index, 0] + 0.5:.2f},{shape[index, 1] + 0.5:.2f}"></points>'
        for index in order
    )
    return f'<skeleton label="face" source="manual" z_order="0">{elements}</skeleton>'


def document(*images: tuple[str, str]) -> bytes:
    """What CVAT exports of a task: pictures, each with its shapes."""
    meta = (
        "<meta><task><id>4</id><name>t</name><mode>annotation</mode><labels><label><name>face</name></label></labels>"
    )
    body = "".join(
        f'<image id="{number}" name="{name}" width="640" height="480">\n{shapes}\n</image>'
        for number, (name, shapes) in enumerate(images)
    )
    xml = f"<?xml version='1.0' encoding='utf-8'?>\n<annotations>\n  <version>1.1</version>{meta}</task></meta>{body}"
    return f"{xml}</annotations>\n".encode()


def source(tmp_path: Path, *shapes: str) -> Cvat:
    return Cvat(write(tmp_path, {"a.jpg": b"a", "annotations.xml": document(("a.jpg", "".join(shapes)))}))


@pytest.mark.parametrize("place", PLACES)
def test_what_cvat_exports(place: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """Points count from the corner of the first pixel; pictures lie in `images`, as in CVAT's own zip."""
    xml = document(("a.jpg", points(FACE) + points(FACE + 9)), ("none.jpg", ""), ("gone.jpg", points()))
    files = {"annotations.xml": xml, "images/a.jpg": b"a", "images/none.jpg": b"n", "images/alone.jpg": b"x"}
    found = open_annotated(put(place, files, tmp_path, request))
    assert isinstance(found, Cvat)
    rows = rows_of(found)
    first, second = (row for row in rows if isinstance(row, AnnotatedPhoto))
    np.testing.assert_allclose(first.shape, FACE, rtol=0, atol=0.0051)
    np.testing.assert_allclose(second.shape, FACE + 9, rtol=0, atol=0.0051)
    assert [(row.uri, row.annotation_uri, row.box) for row in (first, second)] == [
        ("images/a.jpg", "annotations.xml#1", None),
        ("images/a.jpg", "annotations.xml#2", None),
    ]
    assert {row.uri: row.reason for row in rows if isinstance(row, Rejected)} == {
        "gone.jpg": "no_image",
        "images/alone.jpg": "no_annotation",
        "images/none.jpg": "no_annotation",
    }


@pytest.mark.parametrize("folder", ["images/", "", None])
def test_the_tasks_of_a_project_have_subsets(folder: str | None, tmp_path: Path) -> None:
    """CVAT puts pictures into folders of these; without them (None), whoever has the pictures put them anywhere."""
    subsets = ("Train", "Validation", "Test", "default")
    names = [f"{subset}.jpg" if folder is None else "same.jpg" for subset in subsets]
    xml = document(*((name, points(FACE + 9 * place)) for place, name in enumerate(names))).decode()
    for number, subset in enumerate(subsets):
        xml = xml.replace(f'<image id="{number}"', f'<image id="{number}" subset="{subset}" task_id="{number}"')
    places = [
        name if folder is None else f"{folder}{subset}/{name}" for subset, name in zip(subsets, names, strict=True)
    ]
    pictures = {place: place.encode() for place in places}
    rows = faces_of(Cvat(write(tmp_path, {"annotations.xml": xml.encode(), **pictures})))
    found = {row.uri: row.declared_split for row in rows}
    assert found == dict(zip(places, ("train", "val", "test", None), strict=True))
    for row in rows:
        np.testing.assert_allclose(row.shape, FACE + 9 * places.index(row.uri), rtol=0, atol=0.0051)


def test_a_long_name_of_a_subset_is_told_in_part(tmp_path: Path) -> None:
    """It is a folder in which the picture may lie, below each of ten."""
    xml = document(("gone.jpg", points())).replace(b"<image ", b'<image subset="' + b"s" * 10_000 + b'" ')
    (tmp_path / "a.xml").write_bytes(xml)
    (row,) = Cvat(str(tmp_path)).scan()
    assert isinstance(row, Rejected)
    assert row.reason == "no_image"
    assert len(row.message) < 1000


def test_frames_of_a_video_have_their_suffix_on_disk_alone(tmp_path: Path) -> None:
    """As CVAT exports a task that was made of a video ("CVAT for images 1.1", with its images)."""
    xml = document(("frame_000000", points()), ("frame_000010", points(FACE + 9)))
    files = {"annotations.xml": xml, "images/frame_000000.PNG": b"0", "images/frame_000010.PNG": b"1"}
    faces = faces_of(Cvat(write(tmp_path, files)))
    assert [(face.uri, face.read()) for face in faces] == [
        ("images/frame_000000.PNG", b"0"),
        ("images/frame_000010.PNG", b"1"),
    ]


@pytest.mark.parametrize("first", [0, 1])
def test_skeletons_are_in_the_order_of_their_labels(first: int, tmp_path: Path) -> None:
    order = np.random.default_rng(0).permutation(68).tolist()
    (face,) = faces_of(source(tmp_path, skeleton(first=first, order=order)))
    np.testing.assert_allclose(face.shape, FACE, rtol=0, atol=0.0051)


def test_other_shapes_and_attributes_are_left_alone(tmp_path: Path) -> None:
    others = (
        '<box label="car" occluded="0" xtl="1" ytl="2" xbr="3" ybr="4"><attribute name="a">b</attribute></box>'
        '<polygon label="car" points="1,2;3,4;5,6" occluded="0"></polygon><tag label="good" source="manual"></tag>'
    )
    inside = '<attribute name="confidence">0.5</attribute><attribute name="note">x &amp; y</attribute>'
    (face,) = faces_of(source(tmp_path, others, points(inside=inside), others))
    assert face.annotation_uri == "annotations.xml#1"
    assert reasons_of(source(tmp_path, others)) == {"a.jpg": "no_annotation"}


@pytest.mark.parametrize(
    ("shape", "old", "new", "reason", "message"),
    [
        (points(), ' points="', ' pts="', "syntax", "instead of x,y"),
        (points(), ' points="', ' points="1,2,3;', "syntax", "1,2,3"),
        (points(), ' points="', ' points="a,b;', "syntax", "a,b"),
        (points(), ' points="', ' points="1,2;', "count", "69 points"),
        (points(), ' points="', ' points="nan,2;', "count", "69 points"),
        (points(FACE[:67]), ' points="', ' points="nan,2;', "not_finite", "point 1"),
        (points(FACE[:67]), "", "", "count", "67 points"),
        (points(FACE * 0), "", "", "flat", "line"),
        (skeleton(), 'label="68"', 'label="chin"', "count", "the numbers 1 to 68"),
        (skeleton(), 'label="68"', 'label="67"', "count", "the numbers 1 to 68"),
        (skeleton(order=range(67)), "", "", "count", "67 elements"),
        (skeleton(order=[*range(68), 0]), "", "", "count", "69 elements"),
        (skeleton(), 'outside="0"', 'outside="1"', "not_labelled", "1 of 68"),
        (skeleton(), ' points="', ' points="1,2;', "syntax", "more than one point"),
    ],
)
def test_bad_shapes_have_reasons(shape: str, old: str, new: str, reason: str, message: str, tmp_path: Path) -> None:
    assert old in shape
    row = rejected(source(tmp_path, shape.replace(old, new, 1)))
    assert (row.uri, row.reason) == ("a.jpg", reason)
    assert row.message.startswith("annotations.xml#1: line 4: ")
    assert message in row.message


def test_what_is_no_xml_of_cvat_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"starts with <dataset> instead of CVAT's <annotations>"):
        Cvat(write(tmp_path / "a", {"a.xml": b"<dataset/>"})).scan()
    with pytest.raises(UserError, match="lists no face: give the XML of CVAT's format"):
        Cvat(write(tmp_path / "b", {"a.xml": b"<annotations><track/></annotations>"})).scan()
    with pytest.raises(UserError, match="is not whole XML"):
        Cvat(write(tmp_path / "c", {"a.xml": document(("a.jpg", points()))[:-20]})).scan()
    bomb = b"<?xml version='1.0'?><!DOCTYPE a [<!ENTITY b 'c'>]><annotations/>"
    with pytest.raises(UserError, match="a DOCTYPE, which CVAT never writes"):
        Cvat(write(tmp_path / "d", {"a.xml": bomb})).scan()


@settings(max_examples=60)
@given(junk=st.binary(max_size=40), at=st.integers(0, 10_000), length=st.integers(0, 300))
def test_nothing_but_a_user_error_is_raised(
    junk: bytes, at: int, length: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    xml = document(("a.jpg", points(inside='<attribute name="checked">true</attribute>') + skeleton()))
    at %= len(xml)
    folder = tmp_path_factory.mktemp("junk")
    write(folder, {"a.jpg": b"", "annotations.xml": xml[:at] + junk + xml[at + length :]})
    try:
        list(Cvat(str(folder)).scan())
    except UserError:
        return


def _count(files: Files) -> int:
    return sum(1 for _ in read_cvat(files, "annotations.xml"))


def test_memory_is_bounded_by_a_face(tmp_path: Path) -> None:
    peaks = []
    for count in (20, 400):
        xml = document(*((f"{number}.jpg", points() + skeleton()) for number in range(count)))
        write(tmp_path / str(count), {"annotations.xml": xml})
        files = open_files(str(tmp_path / str(count)))
        found, peak = traced(partial(_count, files))
        assert found == 2 * count
        peaks.append(peak)
    assert peaks[1] < 2 * peaks[0], peaks
