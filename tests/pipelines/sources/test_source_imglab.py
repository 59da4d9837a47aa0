from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.errors import UserError
from pipelines.sources import AnnotatedPhoto, Rejected
from pipelines.sources.files import open_files
from pipelines.sources.imglab import Imglab, read_imglab
from tests.factories import traced
from tests.pipelines.listings import a_face, faces_of, imglab, reasons_of, rejected, rows_of, write

ONE = imglab([("a.jpg", a_face())])


def _source(tmp_path: Path, xml: bytes) -> Imglab:
    return Imglab(write(tmp_path, {"a.jpg": b"a", "list.xml": xml}))


@pytest.mark.parametrize("style", ["{}", "{:02d}", "{:05d}"])
@pytest.mark.parametrize("turned", [False, True])
def test_parts_are_sorted_by_name(style: str, turned: bool, tmp_path: Path) -> None:
    order = range(67, -1, -1) if turned else np.random.default_rng(0).permutation(68).tolist()
    parts = "".join(f"<part name='{style.format(n)}' x='{100 + n}' y='{200 - 2 * n + n % 3}'/>" for n in order)
    box = f"<box top='-4' left='-2' width='1' height='2' label='face'>{parts}</box>"
    (face,) = faces_of(
        _source(tmp_path, f"<dataset><images><image file='a.jpg'>{box}</image></images></dataset>".encode())
    )
    np.testing.assert_array_equal(face.shape, [(100 + n, 200 - 2 * n + n % 3) for n in range(68)])
    assert face.box is not None
    assert face.box.edges == (-2.5, -4.5, -1.5, -2.5)


@pytest.mark.parametrize(
    ("old", "new", "reason", "message"),
    [
        ("<box ", "<box ignore='1' ", "ignored", "line 4"),
        ("name='13'", "name='67'", "count", "67 is there twice"),
        ("name='67'", "name='68'", "count", "'68' instead of 0 to 67"),
        ("name='67'", "name='chin'", "count", "'chin'"),
        ("<part name='05'", "<part nom='05'", "count", "''"),
        ("<part name='05'", "<point name='05'", "count", "67 parts"),
        ("</box>", "<part name='68' x='1' y='1'/></box>", "count", "69 parts"),
        ("name='05' x='", "name='05' x='1_0", "syntax", "part 05"),
        ("name='05' x='", "name='05' z='", "syntax", "part 05"),
        ("name='05' x='", "name='05' x='nan' z='", "not_finite", "point 6"),
        ("width='10'", "width='0'", "syntax", "width"),
        ("width='10'", "width='wide'", "syntax", "width"),
        ("left='3'", "left='inf'", "syntax", "left"),
        ("left='3' ", "", "syntax", "left"),
        ("<box ", "<basket ", "", ""),
    ],
)
def test_bad_boxes_have_reasons(old: str, new: str, reason: str, message: str, tmp_path: Path) -> None:
    text = ONE.decode()
    assert old in text
    text = text.replace(old, new, 1)
    if "basket" in new:
        text, reason, message = text.replace("</box>", "</basket>"), "no_annotation", "without a box"
    row = rejected(_source(tmp_path, text.encode()))
    assert (row.uri, row.reason) == ("a.jpg", reason)
    assert row.message.startswith("list.xml#1: ")
    assert message in row.message


def test_faces_of_one_picture_and_ignored_boxes(tmp_path: Path) -> None:
    body = ONE.decode().partition("<images>")[2].partition("</images>")[0]
    box = body[body.index("<box") : body.index("</image>")]
    ignored = box.replace("<box", "<box ignore='1'")
    xml = f"<dataset><images><image file='a.jpg'>{box}{ignored}{box}</image><image file='b.jpg'/></images></dataset>"
    rows = rows_of(_source(tmp_path, xml.encode()))
    kinds = [row.annotation_uri if isinstance(row, AnnotatedPhoto) else row.reason for row in rows]
    assert kinds == ["list.xml#1", "list.xml#3", "ignored", "no_annotation"]
    assert rows[2].uri == "a.jpg#2"


@pytest.mark.parametrize("encoding", ["latin-1", "utf-8"])
def test_dlibs_own_encoding(encoding: str, tmp_path: Path) -> None:
    """It declares the first, and writes names with the bytes that they have on the disk."""
    xml = ONE.decode().replace("UTF-8", "ISO-8859-1").replace("a.jpg", "ä.jpg").encode(encoding)
    source = Imglab(write(tmp_path, {"ä.jpg": b"", "list.xml": xml}))
    assert reasons_of(source) == {"ä.jpg": ""}


def test_dlib_writes_an_ampersand_as_it_is(tmp_path: Path) -> None:
    """As `save_image_dataset_metadata` of dlib 20.0.1 does, whose trainer reads it so; wherever pieces end."""
    names = ["a & b.jpg", "a&lt.jpg", "&#.jpg", "&amp;&#65;.jpg"]  # the last as someone mends it
    for pad in (0, *range(65_200, 65_450)):
        images = "".join(f"<image file='{name}' width='9' height='9'>\n  </image>\n" for name in names)
        head = "<?xml version='1.0' encoding='ISO-8859-1'?>\n<dataset>\n<name>R&D</name>\n"
        xml = f"{head}<comment>{'x' * pad}</comment>\n<images>\n{images}</images>\n</dataset>"
        (tmp_path / "training.xml").write_text(xml)
        entries = list(read_imglab(open_files(str(tmp_path)), "training.xml"))
        assert [entry.image for entry in entries] == [*names[:3], "&A.jpg"], pad


def test_what_is_declared_as_utf_8_is_that(tmp_path: Path) -> None:
    source = Imglab(write(tmp_path, {"Ã¤.jpg": b"", "list.xml": ONE.decode().replace("a.jpg", "Ã¤.jpg").encode()}))
    assert reasons_of(source) == {"Ã¤.jpg": ""}


LAUGHS = "<!DOCTYPE l [<!ENTITY a 'ha'>" + "".join(
    f"<!ENTITY {b} '{f'&{a};' * 10}'>" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    "head",
    [
        "<!DOCTYPE dataset>",
        LAUGHS + "]>",
        "<!DOCTYPE d [<!ENTITY x SYSTEM 'file:///etc/passwd'>]>",
        "<!DOCTYPE d SYSTEM 'http://127.0.0.1:1/x.dtd'>",
    ],
)
def test_declarations_are_refused(head: str, tmp_path: Path) -> None:
    xml = imglab([("a.jpg", a_face())], head).replace(b"<name>n", b"<name>&i;&x;")
    with pytest.raises(UserError, match=r"list\.xml, line 3: a DOCTYPE, .*remove it"):
        _source(tmp_path, xml).scan()


@pytest.mark.parametrize(
    ("odd", "message"),
    [
        (b"<image file='" + b"a" * (9 << 20) + b"'/>", "a tag of more than 8388608 bytes"),
        (b"<!--" + b" " * (9 << 20) + b"-->", "a tag of more than 8388608 bytes"),
        (b"<images>" * 64 + b"</images>" * 64, "elements in each other, 64 deep"),
    ],
    ids=["tag", "comment", "depth"],
)
def test_what_expat_would_remember_is_bounded(odd: bytes, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"list\.xml, line \d+: {message}, .*remove it"):
        _source(tmp_path, ONE.replace(b"<images>", b"<images>" + odd)).scan()


def test_a_file_of_any_size_is_read(tmp_path: Path) -> None:
    short = (b"<images>" * 10 + b"</images>" * 10 + b" " * 1000) * 10_000
    (face,) = faces_of(_source(tmp_path, ONE.replace(b"<images>", b"<images>" + short)))
    assert face.uri == "a.jpg"


def test_a_cut_file_is_refused_as_a_whole(tmp_path: Path) -> None:
    for cut in (len(ONE) // 2, len(ONE) - 3):
        with pytest.raises(UserError, match=r"list\.xml is not whole XML .*line \d+"):
            _source(tmp_path, ONE[:cut]).scan()
    for encoding in ("shift_jis", "no-such"):
        with pytest.raises(UserError, match=r"list\.xml is not whole XML"):
            _source(tmp_path, ONE.replace(b"UTF-8", encoding.encode())).scan()


def test_another_xml_is_not_taken_for_one(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"list\.xml starts with <annotation> instead"):
        _source(tmp_path, b"<annotation><dataset/></annotation>").scan()
    assert not Imglab.recognises(open_files(write(tmp_path / "voc", {"a.xml": b"<annotation/>"})))


@settings(max_examples=50)
@given(st.binary(max_size=200) | st.text("<>/='\"&;! abdegimnoprstx\n", max_size=300).map(str.encode), st.booleans())
def test_nothing_but_a_user_error_is_raised(
    tmp_path_factory: pytest.TempPathFactory, junk: bytes, inside: bool
) -> None:
    folder = tmp_path_factory.getbasetemp() / "junk"
    data = ONE.replace(b"<part name='30'", junk + b"<part name='30'") if inside else junk
    try:
        rows = list(_source(folder, data).scan())
    except UserError:
        return
    assert rows


def test_memory_is_bounded_by_a_box(tmp_path: Path) -> None:
    body = ONE.partition(b"<images>")[2].partition(b"</images>")[0]
    (tmp_path / "list.xml").write_bytes(b"<dataset><images>" + 600 * body + b"</images></dataset>")
    files = open_files(str(tmp_path / "list.xml"))
    count, peak = traced(lambda: sum(1 for _ in read_imglab(files, "list.xml")))
    assert count == 600
    assert peak < 1 << 19  # the shapes alone would take more


def test_a_box_with_very_many_parts_is_counted_only(tmp_path: Path) -> None:
    row = rejected(_source(tmp_path, ONE.replace(b"</box>", 10_000 * b"<part name='1' x='1' y='1'/>" + b"</box>")))
    assert isinstance(row, Rejected)
    assert "10068 parts" in row.message
