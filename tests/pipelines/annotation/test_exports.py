import csv
import io
import json
import re
import shutil
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, get_args
from xml.etree import ElementTree

import dlib
import jsonschema
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from msrrn.geometry import Box
from pipelines.annotation.exports import MARK, Exported, export
from pipelines.annotation.exports.coco import NAMES
from pipelines.annotation.exports.pictures import AnnotatedPictures
from pipelines.annotation.exports.pts import pts_key
from pipelines.annotation.review import review
from pipelines.annotation.tables import RUN, SUMMARY, Annotations
from pipelines.errors import UserError
from pipelines.settings import ExportFormat
from pipelines.sources import FORMATS as SOURCES
from pipelines.sources import AnnotatedPhoto, Rejected, open_annotated
from pipelines.sources.pts import parse_pts
from pipelines.storage import Store
from tests.factories import picture, traced, tree
from tests.pipelines.listings import a_face, faces_of, write
from tests.pipelines.runs import Run, face, looked_at, quarantined, run_of, write_run

Shapes = Mapping[str, Sequence[NDArray[np.floating]]]

COMES_BACK: dict[ExportFormat, tuple[str, float]] = {
    "pts": ("300w", 1e-6),
    "coco": ("coco", 0),
    "csv": ("csv", 0),
    "cvat": ("cvat", 0.00501),
    "imglab": ("imglab", 0.5),
    "webdataset": ("webdataset", 0),
}
"""The source that a format is, and by how many pixels it rounds; by none, where a float32 is the same."""

SHAPES: Shapes = {
    "a.jpg": [a_face(1), a_face(2)],
    "b/c d.jpg": [a_face(3)],
    "b/ü 顔.png": [a_face(4), a_face(5), a_face(6)],
    "b/none.jpg": [],
    "z.jpg": [a_face(7)],
}


def beside_pictures(run: Run, made: ExportFormat, out: Path) -> str:
    """The folder of an export to which its pictures were added where it looks for them."""
    folder = out / "pts" if made == "pts" else out
    if made != "webdataset":
        for uri, data in run.files.items():
            Store(str(folder)).publish(uri, data)
    return str(folder)


def come_back(run: Run, made: ExportFormat, out: Path) -> dict[str, list[AnnotatedPhoto]]:
    """Exports, and reads again: each picture's faces by its uri, which its bytes say."""
    export(run, made, str(out))
    source = open_annotated(beside_pictures(run, made, out))
    assert f"{type(source).__module__}:{type(source).__name__}" == SOURCES[COMES_BACK[made][0]]  # type: ignore[index]
    found: dict[str, list[AnnotatedPhoto]] = {}
    for row in source.scan():
        if isinstance(row, Rejected):
            assert row.reason == "no_annotation", row
        else:
            found.setdefault(row.read().decode(), []).append(row)
    return found


def assert_same_faces(found: dict[str, list[AnnotatedPhoto]], shapes: Shapes, rounding: float) -> None:
    assert set(found) == {uri for uri, some in shapes.items() if some}
    for uri, faces in found.items():
        assert len(faces) == len(shapes[uri])
        for row, shape in zip(faces, shapes[uri], strict=True):
            wanted = shape.astype(np.float32)
            if rounding:
                np.testing.assert_allclose(row.shape, wanted, rtol=0, atol=rounding)
            else:
                np.testing.assert_array_equal(row.shape.astype(np.float32), wanted)


@pytest.mark.parametrize("made", get_args(ExportFormat))
def test_every_format_comes_back(made: ExportFormat, tmp_path: Path) -> None:
    run = run_of(tmp_path / "run", SHAPES)
    found = come_back(run, made, tmp_path / "out")
    assert_same_faces(found, SHAPES, COMES_BACK[made][1])
    if made not in {"webdataset", "pts"}:
        assert all(row.uri == uri for uri, rows in found.items() for row in rows)


_LETTERS = st.characters(categories=["L", "N", "P", "S", "Zs", "Cf", "M"], exclude_characters="/\0")
_NAMES = st.lists(
    st.text(_LETTERS | st.just(" "), min_size=1, max_size=12).filter(lambda text: not text.strip().startswith(".")),
    min_size=1,
    max_size=3,
).map(lambda parts: "/".join([part.strip() + "_" for part in parts[:-1]] + [f"{parts[-1]}.jpg"]))
_FACES = st.builds(
    lambda seed, scale, x, y: (a_face(seed) - 100) * scale + (x, y),
    *(st.integers(0, 1000), st.floats(0.3, 40), st.floats(-900, 9000), st.floats(-900, 9000)),
)


@settings(max_examples=12)
@given(names=st.sets(_NAMES, min_size=1, max_size=4), data=st.data())
def test_any_name_and_any_face_come_back(
    names: set[str], data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    shapes = {name: data.draw(st.lists(_FACES, min_size=1, max_size=2)) for name in sorted(names)}
    folder = tmp_path_factory.mktemp("any")
    run = run_of(folder / "run", shapes)
    for made, (_, rounding) in COMES_BACK.items():
        assert_same_faces(come_back(run, made, folder / made), shapes, rounding)


def test_names_that_few_print_come_back(tmp_path: Path) -> None:
    names = ["Screenshot at 5.00.00\u202fPM.jpg", "a\xa0b.jpg", "\U0001f469\u200d\U0001f4bb.jpg", "\u202egpj.a.jpg"]
    names += ["scan", "a.mpo", "blank.jpg ", "dot.jpg."]
    names += ["new\nline.jpg", "two\n\nlines.jpg", "\r.jpg", "a\r\n.jpg", 'tab\t"quoted\n".jpg', "a\u2028b\x85.jpg"]
    shapes = {name: [a_face(number)] for number, name in enumerate(sorted(names))}
    run = run_of(tmp_path / "run", shapes)
    for made, (_, rounding) in COMES_BACK.items():
        assert_same_faces(come_back(run, made, tmp_path / made), shapes, rounding)


@pytest.mark.parametrize("made", ["coco", "csv", "imglab", "webdataset"])
def test_boxes_come_back(made: ExportFormat, tmp_path: Path) -> None:
    box = [10.0, 20.5, 110.25, 140.0]
    run = run_of(tmp_path / "run", {"a.jpg": [a_face()]}, box=box)
    ((row,),) = come_back(run, made, tmp_path / "out").values()
    assert row.box is not None
    np.testing.assert_allclose(row.box.edges, box, rtol=0, atol=0.5 if made == "imglab" else 1e-4)


def test_where_the_first_pixel_is(tmp_path: Path) -> None:
    shape = a_face()
    shape[0] = 10, 20
    run = run_of(tmp_path / "run", {"a.jpg": [shape]}, box=[0.0, 1.0, 100.0, 101.0])
    for made in get_args(ExportFormat):
        export(run, made, str(tmp_path))
    assert "11.000000 21.000000" in (tmp_path / "pts/a.jpg.0.pts").read_text()
    coco = json.loads((tmp_path / "coco.json").read_text())["annotations"][0]
    assert (coco["keypoints"][:3], coco["bbox"]) == ([10, 20, 2], [0.5, 1.5, 100, 100])
    (row,) = csv.DictReader(io.StringIO((tmp_path / "faces.csv").read_text()))
    assert (row["x0"], row["y0"], row["left"], row["width"]) == ("10.0", "20.0", "0.5", "100.0")
    assert 'points="10.50,20.50;' in (tmp_path / "annotations.xml").read_text()
    imglab = (tmp_path / "imglab.xml").read_text()
    assert "<part name='00' x='10' y='20'/>" in imglab
    with tarfile.open(tmp_path / "part-000000.tar") as tar:
        member = tar.extractfile("0000000001.json")
        assert member is not None
        assert json.load(member)["faces"][0]["landmarks"][:2] == [10, 20]


def test_faces_below_a_confidence_are_left_out_and_ids_stay(tmp_path: Path) -> None:
    run = run_of(tmp_path / "run", SHAPES)  # confidences 1, 6/7, …, 1/7 in order
    documents = []
    for place, least in (("all", 0.0), ("some", 0.6)):
        made = export(run, "coco", str(tmp_path / place), least)
        documents.append(json.loads((tmp_path / place / "coco.json").read_text()))
        assert made.faces == len(documents[-1]["annotations"]) == (7 if not least else 3)
        assert made.pictures == len(documents[-1]["images"]) == (4 if not least else 2)
        assert made.below_confidence == (0 if not least else 4)
    everything, some = documents
    assert [image["id"] for image in everything["images"]] == [1, 2, 3, 5]
    assert [annotation["id"] for annotation in everything["annotations"]] == [1, 2, 3, 4, 5, 6, 7]
    assert some["images"] == everything["images"][:2]
    assert some["annotations"] == everything["annotations"][:3]


@pytest.mark.parametrize("made", get_args(ExportFormat))
def test_pictures_without_faces_are_in_none(made: ExportFormat, tmp_path: Path) -> None:
    images = [quarantined("bad.jpg", "corrupt", "no"), looked_at("sky.jpg", 5, 5, 0), looked_at("a.jpg", 99, 99, 1)]
    run, _ = write_run(tmp_path / "run", images, [face(images[2], 0, a_face())], files={"a.jpg": b"a.jpg"})
    made_here = export(run, made, str(tmp_path / "out"))
    assert (made_here.pictures, made_here.faces) == (1, 1)
    text = b"".join(tree(tmp_path / "out").values())
    assert b"sky.jpg" not in text
    assert b"bad.jpg" not in text


@pytest.mark.parametrize("made", get_args(ExportFormat))
def test_the_same_bytes_anywhere(made: ExportFormat, tmp_path: Path, s3: str) -> None:
    run = run_of(tmp_path / "run", SHAPES)
    first = export(run, made, str(tmp_path / "out"))
    remote = Store(f"{s3}/out")
    again = export(run, made, remote.url)
    written = tree(tmp_path / "out")
    assert remote.keys() == sorted(written)
    assert {key: remote.read_bytes(key) for key in written} == written
    assert written
    assert again == first.model_copy(update={"place": first.place.replace(str(tmp_path), s3)})


def test_what_an_export_says_of_itself(tmp_path: Path) -> None:
    run = run_of(tmp_path / "run", SHAPES)
    out = str(tmp_path / "out")
    here = Exported(
        format="csv", place=f"{out}/faces.csv", finished=False, pictures=4, faces=7, below_confidence=0, unreadable={}
    )
    assert export(run, "csv", out) == here
    run.store.publish(SUMMARY, b"{}")
    run.store.delete("records/000001.json")  # of pictures that came in since, and are not done
    assert not export(run, "csv", out).finished
    run.store.publish("records/000001.json", b"{}")
    seen: list[tuple[int, int]] = []
    finished = export(run, "csv", out, progress=lambda done, total: seen.append((done, total)))
    assert finished == here.model_copy(update={"finished": True})
    assert seen == [(0, 3), (1, 3), (2, 3), (3, 3)]


def test_a_place_without_a_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no run\.json: give the --out of `msrrn annotate`"):
        export(Annotations(Store(str(tmp_path))), "csv", str(tmp_path / "out"))
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(UserError, match="no unit is finished yet"):
        export(Annotations(Store(str(tmp_path))), "csv", str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_an_export_that_breaks_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = run_of(tmp_path / "run", SHAPES)
    export(run, "coco", str(tmp_path / "out"))
    before = tree(tmp_path / "out")

    def faces(self: Annotations, unit: str) -> Any:
        if unit == "000002":
            raise UserError("gone")
        return Annotations._part(self, "faces", unit)

    monkeypatch.setattr(Run, "faces", faces)
    with pytest.raises(UserError, match="gone"):
        export(run, "coco", str(tmp_path / "out"), 0.5)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"coco.json", MARK}
    assert tree(tmp_path / "out") == before


@pytest.mark.parametrize("made", ["coco", "cvat", "csv", "imglab", "webdataset"])
def test_memory_is_bounded_by_a_unit(made: ExportFormat, tmp_path: Path) -> None:
    peaks = []
    for units in (2, 12):
        shapes = {f"{number:04}.jpg": [a_face(number)] for number in range(40 * units)}
        run = run_of(tmp_path / f"run{units}", shapes, per_unit=40)
        if units == 2:
            export(run, made, str(tmp_path / "warm"))
        peaks.append(traced(partial(export, run, made, str(tmp_path / f"out{units}")))[1])
    assert peaks[1] < 2 * peaks[0], peaks  # of six times the faces


# What other tools demand.

COCO_SCHEMA = {
    "type": "object",
    "required": ["info", "licenses", "images", "annotations", "categories"],
    "properties": {
        "info": {"type": "object"},
        "licenses": {"type": "array"},
        "images": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["id", "width", "height", "file_name"],
                "properties": {
                    "id": {"type": "integer", "minimum": 1},
                    "width": {"type": "integer", "minimum": 1},
                    "height": {"type": "integer", "minimum": 1},
                    "file_name": {"type": "string", "minLength": 1},
                },
            },
        },
        "annotations": {
            "type": "array",
            "items": {
                "type": "object",
                "required": [
                    *("id", "image_id", "category_id", "bbox", "area", "iscrowd"),
                    *("segmentation", "keypoints", "num_keypoints"),
                ],
                "properties": {
                    "id": {"type": "integer", "minimum": 1},
                    "image_id": {"type": "integer"},
                    "category_id": {"const": 1},
                    "iscrowd": {"enum": [0, 1]},
                    "area": {"type": "number", "exclusiveMinimum": 0},
                    "bbox": {"type": "array", "items": {"type": "number"}, "minItems": 4, "maxItems": 4},
                    "segmentation": {"type": ["array", "object"]},
                    "keypoints": {"type": "array", "items": {"type": "number"}, "minItems": 204, "maxItems": 204},
                    "num_keypoints": {"const": 68},
                    "score": {"type": "number", "minimum": 0, "maximum": 1},
                },
            },
        },
        "categories": {
            "type": "array",
            "minItems": 1,
            "items": {
                "type": "object",
                "required": ["id", "name", "supercategory", "keypoints", "skeleton"],
                "properties": {
                    "id": {"type": "integer", "minimum": 1},
                    "name": {"type": "string"},
                    "supercategory": {"type": "string"},
                    "keypoints": {
                        "type": "array",
                        "items": {"type": "string"},
                        "minItems": 68,
                        "maxItems": 68,
                        "uniqueItems": True,
                    },
                    "skeleton": {
                        "type": "array",
                        "items": {
                            "type": "array",
                            "items": {"type": "integer", "minimum": 1, "maximum": 68},
                            "minItems": 2,
                            "maxItems": 2,
                        },
                    },
                },
            },
        },
    },
}
"""https://cocodataset.org/#format-data, basic structure and keypoint detection."""


def test_coco_is_as_its_format_says(tmp_path: Path) -> None:
    export(run_of(tmp_path / "run", SHAPES), "coco", str(tmp_path))
    document = json.loads((tmp_path / "coco.json").read_bytes())
    jsonschema.Draft202012Validator(COCO_SCHEMA).validate(document)
    assert [image["file_name"] for image in document["images"]] == [uri for uri, some in SHAPES.items() if some]
    ids = {image["id"] for image in document["images"]}
    assert len(ids) == len(document["images"])
    assert {annotation["image_id"] for annotation in document["annotations"]} == ids
    assert all(set(annotation["keypoints"][2::3]) == {2} for annotation in document["annotations"])
    (category,) = document["categories"]
    assert len(category["keypoints"]) == len(set(NAMES)) == 68
    assert (NAMES[0], NAMES[36], NAMES[45], NAMES[67]) == ("jaw_1", "right_eye_1", "left_eye_4", "inner_lips_8")
    edges = category["skeleton"]
    assert [1, 2] in edges  # counted from 1, along the jaw
    assert [42, 37] in edges  # an eye is closed
    assert [17, 18] not in edges  # jaw and brow are apart


class Element(NamedTuple):
    """Patterns of the attributes that it has and may have, how many of which children, its text."""

    needed: Mapping[str, str] = {}
    allowed: Mapping[str, str] = {}
    children: Mapping[str, tuple[int, float]] = {}
    text: str = ""


_PAIR = r"-?\d+\.\d\d,-?\d+\.\d\d"
_LABEL = "annotations/meta/task/labels/label"
_ATTRIBUTE = f"{_LABEL}/attributes/attribute"
_MANY = (0, float("inf"))
CVAT = {
    "annotations": Element(children={"version": (1, 1), "meta": (1, 1), "image": _MANY}),
    "annotations/version": Element(text=r"1\.1"),
    "annotations/meta": Element(children={"task": (1, 1), "dumped": (0, 1)}),
    "annotations/meta/task": Element(children={"name": (1, 1), "mode": (1, 1), "labels": (1, 1)}),
    "annotations/meta/task/name": Element(text=".+"),
    "annotations/meta/task/mode": Element(text="annotation|interpolation"),
    "annotations/meta/task/labels": Element(children={"label": (1, float("inf"))}),
    _LABEL: Element(children={"name": (1, 1), "type": (1, 1), "attributes": (1, 1)}),
    f"{_LABEL}/name": Element(text=".+"),
    f"{_LABEL}/type": Element(text="any|bbox|cuboid|ellipse|mask|polygon|polyline|points|skeleton|tag"),
    f"{_LABEL}/attributes": Element(children={"attribute": _MANY}),
    _ATTRIBUTE: Element(
        children=dict.fromkeys(("name", "mutable", "input_type", "default_value", "values"), (1, 1)),
    ),
    f"{_ATTRIBUTE}/name": Element(text=".+"),
    f"{_ATTRIBUTE}/mutable": Element(text="True|False"),
    f"{_ATTRIBUTE}/input_type": Element(text="select|checkbox|radio|number|text"),
    f"{_ATTRIBUTE}/default_value": Element(text=".*"),
    f"{_ATTRIBUTE}/values": Element(text=".*"),
    "annotations/image": Element(
        {"id": r"\d+", "name": "(?s:.+)", "width": "[1-9][0-9]*", "height": "[1-9][0-9]*"}, children={"points": _MANY}
    ),
    "annotations/image/points": Element(
        {"label": "face", "points": f"{_PAIR}(;{_PAIR}){{67}}", "occluded": "[01]"},
        {"source": "manual|auto", "z_order": r"-?\d+", "group_id": r"\d+"},
        {"attribute": _MANY},
    ),
    "annotations/image/points/attribute": Element({"name": ".+"}, text=".+"),
}
"""Each element of https://docs.cvat.ai/docs/other/xml_format that is written; no schema of it is published."""


def check_cvat(data: bytes) -> ElementTree.Element:
    """The document, if it is as `CVAT` says."""
    root = ElementTree.fromstring(data)

    def check(element: ElementTree.Element, path: str) -> None:
        needed, allowed, children, text = CVAT[path]
        assert set(needed) <= set(element.attrib) <= {*needed, *allowed}, (path, element.attrib)
        for name, value in element.attrib.items():
            assert re.fullmatch({**needed, **allowed}[name], value), (path, name, value)
        assert {child.tag for child in element} <= set(children), (path, list(element))
        for tag, (least, most) in children.items():
            assert least <= len(element.findall(tag)) <= most, (path, tag)
        assert re.fullmatch(text, element.text or "") if text else not (element.text or "").strip(), path
        for child in element:
            check(child, f"{path}/{child.tag}")

    check(root, root.tag)
    return root


def test_cvat_is_as_its_format_says(tmp_path: Path) -> None:
    export(run_of(tmp_path / "run", SHAPES), "cvat", str(tmp_path))
    root = check_cvat((tmp_path / "annotations.xml").read_bytes())
    images = root.findall("image")
    assert [image.get("id") for image in images] == ["0", "1", "2", "4"]  # places in the archive
    assert [image.get("name") for image in images] == [uri for uri, some in SHAPES.items() if some]
    (label,) = json.loads((tmp_path / "cvat-labels.json").read_text())
    declared = root.find("meta/task/labels/label")
    assert declared is not None
    assert (
        (label["name"], label["type"]) == (declared.findtext("name"), declared.findtext("type")) == ("face", "points")
    )
    names = [attribute["name"] for attribute in label["attributes"]]
    assert names == [attribute.findtext("name") for attribute in declared.iter("attribute")]
    for points in root.iter("points"):
        assert [attribute.get("name") for attribute in points] == names


def test_dlib_trains_on_what_imglab_holds(tmp_path: Path) -> None:
    """Its own reader opens the file and the pictures; names that it cannot decode are known."""
    shapes = {"a.png": [a_face(1), a_face(2)], "sub/ü 'b'.png": [a_face(3)]}
    run = run_of(tmp_path / "run", shapes)
    export(run, "imglab", str(tmp_path))
    for uri in shapes:
        Store(str(tmp_path)).publish(uri, picture(np.random.default_rng(0).integers(0, 255, (400, 400, 3), np.uint8)))
    options = dlib.shape_predictor_training_options()
    options.cascade_depth = options.tree_depth = options.num_trees_per_cascade_level = options.num_test_splits = 1
    dlib.train_shape_predictor(str(tmp_path / "imglab.xml"), str(tmp_path / "out.dat"), options)
    assert dlib.shape_predictor(str(tmp_path / "out.dat"))
    error = dlib.test_shape_predictor(str(tmp_path / "imglab.xml"), str(tmp_path / "out.dat"))
    assert 0 < error < 200


def test_every_spreadsheet_cell_is_harmless(tmp_path: Path) -> None:
    names = [
        '=HYPERLINK("http:evil";"x").jpg',
        *("+1.jpg", "-1.jpg", "@SUM(A1).jpg", " =1+1.jpg", "a;=1+1.jpg", "＝1.jpg", "sub/=1.jpg", '"quoted".jpg'),
        *("\t=1.jpg", "\r=1.jpg", "a\n=1.jpg"),
    ]
    run = run_of(tmp_path / "run", {name: [a_face(number)] for number, name in enumerate(names)})
    export(run, "csv", str(tmp_path))
    text = (tmp_path / "faces.csv").read_bytes().decode()
    for delimiter in ",;\t":
        for row in csv.reader(io.StringIO(text, newline=""), delimiter=delimiter):
            for cell in row:
                harmless = cell[:1] not in set("=+-@＝\t\r\n") or re.fullmatch(r"-?[\d.e+-]+(,-?[\d.e+-]+)*", cell)
                assert harmless, (delimiter, cell)
    rows = list(csv.DictReader(io.StringIO(text, newline="")))
    assert [row["uri"].removeprefix("./") for row in rows] == names
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    read = [row for row in open_annotated(str(tmp_path / "faces.csv")).scan() if isinstance(row, AnnotatedPhoto)]
    assert {row.uri for row in read} == set(names)
    assert all(row.read().decode() == row.uri for row in read)


@pytest.mark.parametrize(
    ("made", "reading"),
    [
        ("coco", lambda folder: [i["file_name"] for i in json.loads((folder / "coco.json").read_text())["images"]]),
        ("cvat", lambda folder: [i.get("name") for i in ElementTree.parse(folder / "annotations.xml").iter("image")]),
        ("imglab", lambda folder: [i.get("file") for i in ElementTree.parse(folder / "imglab.xml").iter("image")]),
    ],
)
def test_names_with_any_characters_are_escaped(made: ExportFormat, reading: Any, tmp_path: Path) -> None:
    names = [
        "<script>alert('1')</script>&amp;.jpg",
        "a\nb\tc.jpg",
        "both \"and'.jpg",
        "back\\slash.jpg",
        "\U0001f600.jpg",
    ]
    shapes = {name: [a_face()] for name in [*names, "bell\x07.jpg"]}
    export(run_of(tmp_path / "run", shapes), made, str(tmp_path))
    bell = "bell\x07.jpg" if made == "coco" else r"bell\x07.jpg"
    assert reading(tmp_path) == [*names, bell]


def test_pts_of_hostile_names_stay_below_their_folder(tmp_path: Path) -> None:
    long, deep = "n" * 251 + ".jpg", "d/" * 1200
    names = ["../up.jpg", "/root.jpg", "a/../../up.jpg", "s3://bucket/x/../y.jpg", long, f"{'f' * 300}/x.jpg"]
    names += [f"{deep}x.jpg", "x.jpg", "x.jpg.0.pts/y.jpg", "nul\0.jpg", "new\nline.jpg"]
    run = run_of(tmp_path / "run", {name: [a_face()] for name in names})
    export(run, "pts", str(tmp_path / "in" / "out"))
    assert {path.name for path in (tmp_path / "in").iterdir()} == {"out"}
    assert {path.name for path in (tmp_path / "in" / "out").iterdir()} == {"pts", MARK}
    assert len(tree(tmp_path / "in" / "out" / "pts")) == len(names)  # each face has a file of its own
    assert (tmp_path / "in/out/pts/x.jpg.0.pts").is_file()
    assert pts_key("a/b.jpg", 3) == "pts/a/b.jpg.3.pts"


def test_pictures_of_one_path_keep_pts_of_their_own(tmp_path: Path) -> None:
    """Members of one name, the first with more faces; ways to write a path in a list, and a picture twice in it."""
    named = [("m.jpg", 2), ("/a/b.jpg", 1), ("m.jpg", 1), ("a/b.jpg", 1), ("a//b.jpg", 1), ("/c.jpg", 1)]
    images = [looked_at(uri, 640, 480, count, f"{number}".encode()) for number, (uri, count) in enumerate(named)]
    places = [(image, index) for image in images for index in range(image["faces"])]
    shapes = [a_face(number) for number in range(len(places))]
    faces = [face(image, index, shape) for (image, index), shape in zip(places, shapes, strict=True)]
    again = images[-1] | {"uri": "./c.jpg"}
    run, _ = write_run(tmp_path / "run", [*images, again], [*faces, faces[-1]], per_unit=2)
    assert export(run, "pts", str(tmp_path)).faces == len(shapes) + 1
    found = {key: parse_pts(data) for key, data in tree(tmp_path / "pts").items()}
    assert len(found) == len(shapes)
    for shape in shapes:
        assert min(np.abs(shape - other).max() for other in found.values()) < 1e-4
    own = {key: shape for key, shape in found.items() if "-" not in key}
    assert own.keys() == {"m.jpg.0.pts", "a/b.jpg.0.pts", "c.jpg.0.pts"}
    for key, number in (("m.jpg.0.pts", 3), ("a/b.jpg.0.pts", 4), ("c.jpg.0.pts", 6)):
        np.testing.assert_allclose(own[key], shapes[number], rtol=0, atol=1e-4)


@pytest.mark.parametrize("last", ["a face", "no face", "broken"])
@pytest.mark.parametrize("made", ["coco", "csv", "cvat", "imglab", "pts"])
def test_no_member_gets_the_faces_of_another_of_its_name(made: ExportFormat, last: str, tmp_path: Path) -> None:
    """Who takes the archive apart has the last of them."""
    first, own = looked_at("in/a.b.jpg", 640, 480, 1, b"first"), looked_at("z.jpg", 640, 480, 1, b"z.jpg")
    second = looked_at("in/a.b.jpg", 640, 480, 1 if last == "a face" else 0, b"second")
    if last == "broken":
        second = quarantined("in/a.b.jpg", "corrupt", "no")
    images = [first, own, second]
    shapes = [a_face(number) for number in range(3)][: 2 + second["faces"]]
    faces = [face(image, 0, shape) for image, shape in zip(images, shapes, strict=False)]
    run, _ = write_run(tmp_path / "run", images, faces, 1, {"in/a.b.jpg": b"second", "z.jpg": b"z.jpg"})
    assert export(run, made, str(tmp_path / "out")).faces == len(faces)
    rows = open_annotated(beside_pictures(run, made, tmp_path / "out")).scan()
    found = {row.read().decode(): [row] for row in rows if isinstance(row, AnnotatedPhoto)}
    expected = {"z.jpg": shapes[1:2]} | ({"second": shapes[2:]} if last == "a face" else {})
    assert_same_faces(found, expected, COMES_BACK[made][1])


def _members(path: Path) -> Iterator[tarfile.TarInfo]:
    with tarfile.open(path) as tar:
        yield from tar


def test_a_webdataset_tells_nothing_of_who_made_it(tmp_path: Path) -> None:
    run = run_of(tmp_path / "run", SHAPES)
    export(run, "webdataset", str(tmp_path / "out"))
    tars = sorted((tmp_path / "out").glob("*.tar"))
    assert [path.name for path in tars] == [f"part-00000{n}.tar" for n in range(3)]
    members = [member for path in tars for member in _members(path)]
    names = [
        f"{number:010}{suffix}" for number in (1, 2, 3, 5) for suffix in (".png" if number == 3 else ".jpg", ".json")
    ]
    assert [member.name for member in members] == names
    assert {(member.mtime, member.uid, member.gid, member.uname, member.gname) for member in members} == {
        (0, 0, 0, "", "")
    }


def test_pictures_that_are_gone_or_changed_are_counted(tmp_path: Path) -> None:
    run = run_of(tmp_path / "run", SHAPES)
    files = {**run.files, "a.jpg": b"another"}
    del files["z.jpg"]
    made = export(Run(run.store, files), "webdataset", str(tmp_path / "out"))
    assert made.unreadable == {"changed_picture": 1, "unreadable": 1}
    found = faces_of(open_annotated(str(tmp_path / "out")))
    assert (made.pictures, made.faces) == (2, len(found))
    assert {row.read().decode() for row in found} == {"b/c d.jpg", "b/ü 顔.png"}


def test_pictures_of_a_unit_are_looked_for_among_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a run of ten times the pictures takes a hundred times as long."""
    run = run_of(tmp_path / "run", SHAPES)
    run.store.publish(RUN, json.dumps({"source": str(tmp_path)}).encode())
    looked_through = []
    is_in = pc.is_in

    def counted(values: pa.ChunkedArray, *others: Any) -> pa.ChunkedArray:
        looked_through.append(len(values))
        return is_in(values, *others)

    monkeypatch.setattr(pc, "is_in", counted)
    export(Annotations(run.store), "webdataset", str(tmp_path / "out"))
    assert 0 < sum(looked_through) <= len(SHAPES)


@pytest.mark.parametrize(
    ("kind", "suffix"),
    [
        *[("PNG", "png"), ("JPEG", "jpg"), ("PPM", "ppm"), ("WEBP", "webp"), ("GIF", "gif"), ("BMP", "bmp")],
        *[("TIFF", "tif"), ("JPEG2000", "jp2"), ("AVIF", "avif")],
    ],
)
def test_a_picture_of_no_known_suffix_is_known_by_its_bytes(kind: str, suffix: str, tmp_path: Path) -> None:
    data = io.BytesIO()
    Image.new("RGB", (16, 16)).save(data, kind)
    names = ["scan", "b.doc", "c.pnm"]
    images = [looked_at(name, 16, 16, 1, data.getvalue()) for name in names]
    faces = [face(image, 0, a_face(number)) for number, image in enumerate(images)]
    run, _ = write_run(tmp_path / "run", images, faces, files=dict.fromkeys(names, data.getvalue()))
    export(run, "webdataset", str(tmp_path / "out"))
    assert len(faces_of(open_annotated(str(tmp_path / "out")))) == len(names)
    found = {member.name.rpartition(".")[2] for member in _members(tmp_path / "out/part-000000.tar")}
    assert found == {suffix, "json"}


def test_boxes_of_less_than_a_pixel_are_boxes_for_dlib(tmp_path: Path) -> None:
    run = run_of(tmp_path / "run", {"a.jpg": [a_face()]}, box=[4.0, 4.0, 4.2, 4.2])
    ((row,),) = come_back(run, "imglab", tmp_path / "out").values()
    assert row.box == Box(3.5, 3.5, 4.5, 4.5)


@pytest.mark.parametrize("made", ["pts", "webdataset"])
def test_an_export_replaces_an_older_one(made: ExportFormat, tmp_path: Path) -> None:
    run = run_of(tmp_path / "run", SHAPES)
    out = tmp_path / "out"
    for name in ("pts/mine.pts", "mine.tar"):
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_bytes(b"mine")
    export(run, made, str(out))
    few = export(run, made, str(out), min_confidence=0.8)
    export(run, made, str(tmp_path / "anew"), min_confidence=0.8)
    assert 0 < few.faces < 7
    assert tree(out) == tree(tmp_path / "anew") | {"pts/mine.pts": b"mine", "mine.tar": b"mine"}


@pytest.mark.parametrize("link", ["pts", "pts/b"])
@pytest.mark.parametrize("later", [False, True], ids=["first", "later"])
def test_no_pts_is_written_or_removed_behind_a_link(link: str, later: bool, tmp_path: Path) -> None:
    run = run_of(tmp_path / "run", SHAPES)
    out, others = tmp_path / "out", {"b/mine.jpg.0.pts": b"mine", "c d.jpg.0.pts": b"mine"}
    write(tmp_path / "others", others)
    if later:
        export(run, "pts", str(out))
        shutil.rmtree(out / link)
    (out / link).parent.mkdir(parents=True, exist_ok=True)
    (out / link).symlink_to(tmp_path / "others")
    with pytest.raises(UserError, match=rf"out/{link} is a link to another folder: remove it, or give another --out"):
        export(run, "pts", str(out))
    assert tree(tmp_path / "others") == others


@pytest.mark.parametrize(
    ("made", "key"),
    [
        *[("pts", "pts/a.jpg.0.pts"), ("coco", "coco.json"), ("csv", "faces.csv"), ("cvat", "annotations.xml")],
        *[("imglab", "imglab.xml"), ("webdataset", "part-000123.tar")],
    ],
)
def test_what_no_export_wrote_stays(made: ExportFormat, key: str, tmp_path: Path) -> None:
    run = run_of(tmp_path / "run", SHAPES)
    out = tmp_path / "out"
    (out / key).parent.mkdir(parents=True)
    (out / key).write_bytes(b"mine")
    with pytest.raises(UserError, match=rf"{key} is there, and no call like this one is known to have written it"):
        export(run, made, str(out))
    if made == "coco" or made == "cvat":
        with pytest.raises(UserError, match=rf"{key} is there, and no call like this one"):
            review(run, 3, made, str(out))
    assert tree(out) == {key: b"mine"}


def test_a_run_of_another_version_is_not_taken_for_one_without_units(tmp_path: Path) -> None:
    run = run_of(tmp_path / "run", SHAPES)
    place = tmp_path / "run" / RUN
    place.write_text(json.dumps(json.loads(place.read_bytes()) | {"schema": "1"}))
    with pytest.raises(UserError, match="another version of msrrn, with tables of schema 1, not 2: use that version"):
        export(run, "csv", str(tmp_path / "out"))


@pytest.mark.parametrize("archive", ["in", "in/part-000000.tar", "in/more/photos"])
def test_a_webdataset_does_not_replace_the_archive_of_its_run(archive: str, tmp_path: Path) -> None:
    run = run_of(tmp_path / "run", SHAPES)
    place = tmp_path / "run" / RUN
    place.write_text(json.dumps(json.loads(place.read_bytes()) | {"source": str(tmp_path / archive)}))
    (tmp_path / "link").symlink_to(tmp_path / "in")
    for out in ("in", "link"):
        with pytest.raises(UserError, match="holds the pictures of this run"):
            export(run, "webdataset", str(tmp_path / out))


@pytest.mark.parametrize(
    ("source", "place", "within"),
    [
        ("s3://faces/in", "s3://faces/in", True),
        ("s3://faces/in/more/photos.tar", "s3://faces/in", True),
        ("s3://faces/in", "s3://faces/in/out", False),
        ("s3://faces/in of May", "s3://faces/in", False),
        ("s3://faces/in", "/faces/in", False),
    ],
)
def test_an_archive_in_a_bucket_lies_where_its_url_says(
    source: str, place: str, within: bool, tmp_path: Path
) -> None:
    (tmp_path / RUN).write_text(json.dumps({"source": source}))
    assert Annotations(Store(str(tmp_path))).lies_in(Store(place)) == within


def test_an_archive_that_was_moved_is_looked_for_where_one_works_and_then_beside_its_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, here, place = folders = [tmp_path / name for name in ("first", "here", "run")]
    for folder in folders:
        (folder / "photos").mkdir(parents=True)
    monkeypatch.chdir(here)
    (place / RUN).write_text(json.dumps({"source": "photos", "archive": str(first / "photos")}))
    run = Annotations(Store(str(place)))
    for folder in folders:
        assert [other for other in folders if run.lies_in(Store(str(other)))] == [folder]
        shutil.rmtree(folder / "photos")
    assert run.lies_in(Store(str(here)))  # it is nowhere, and said to be where it would be


def test_a_run_whose_plan_was_deleted_knows_no_picture(tmp_path: Path) -> None:
    run = Annotations(run_of(tmp_path, SHAPES).store)
    shutil.rmtree(tmp_path / "plan")
    assert (list(run.names()), list(run.pictures(SHAPES)), run.finished) == ([], [], False)


def test_a_run_that_goes_on_does_not_change_an_export(tmp_path: Path) -> None:
    run = run_of(tmp_path / "run", SHAPES)
    late = {name: run.store.read_bytes(name) for name in ("records/000000.json",)}
    run.store.delete("records/000000.json")
    pictures = AnnotatedPictures(run)
    first = [(picture.id, picture.uri) for picture in pictures]
    for name, data in late.items():
        run.store.publish(name, data)
    assert [(picture.id, picture.uri) for picture in pictures] == first
