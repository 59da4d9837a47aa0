import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from msrrn.geometry import Box
from pipelines.errors import UserError
from pipelines.sources import Rejected, open_annotated
from pipelines.sources.coco import Coco, read_coco
from pipelines.sources.files import open_files
from tests.pipelines.listings import (
    a_face,
    coco,
    coco_document,
    faces_of,
    put,
    reasons_of,
    rejected,
    rows_of,
    write,
)

POINTS = np.column_stack([a_face(), np.full(68, 2)]).ravel().tolist()


def _source(tmp_path: Path, document: object) -> Coco:
    data = document if isinstance(document, bytes) else json.dumps(document).encode()
    return Coco(write(tmp_path, {"a.jpg": b"a", "list.json": data}))


def _document(**fields: object) -> dict[str, Any]:
    """One face, its annotation changed; a field that is None is taken away."""
    document: dict[str, Any] = coco_document([("a.jpg", a_face())])
    for name, value in fields.items():
        document["annotations"][0][name] = value
        if value is None:
            del document["annotations"][0][name]
    return document


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"iscrowd": 1}, "crowd"),
        ({"image_id": 5}, "no_image"),
        ({"image_id": None}, "no_image"),
        ({"image_id": [1]}, "no_image"),
        ({"image_id": {"id": 0}}, "no_image"),
        ({"keypoints": POINTS[:51]}, "count"),
        ({"keypoints": [*POINTS, 1, 1, 2]}, "count"),
        ({"keypoints": []}, "count"),
        ({"keypoints": "1 2 3"}, "syntax"),
        ({"keypoints": ["x", *POINTS[1:]]}, "syntax"),
        ({"keypoints": [10**400, *POINTS[1:]]}, "syntax"),
        ({"keypoints": [float("nan"), *POINTS[1:]]}, "not_finite"),
        ({"keypoints": [1e999, *POINTS[1:]]}, "not_finite"),
        ({"keypoints": [*POINTS[:-1], 0]}, "not_labelled"),
        ({"keypoints": [0] * 204}, "not_labelled"),
        ({"keypoints": [1] * 204}, "flat"),
        ({"bbox": [1, 2, 3]}, "syntax"),
        ({"bbox": [1, 2, -3, 4]}, "syntax"),
        ({"bbox": "here"}, "syntax"),
        ({"bbox": {"x": 1}}, "syntax"),
        ({"split": "somewhere"}, "syntax"),
    ],
)
def test_bad_annotations_have_reasons(fields: dict[str, object], reason: str, tmp_path: Path) -> None:
    document = _document(**fields)
    document["annotations"] += coco_document([("a.jpg", a_face(1))])["annotations"]  # one bad face stops no other
    good, bad = sorted(rows_of(_source(tmp_path, document)), key=lambda row: isinstance(row, Rejected))
    assert good.uri == "a.jpg"
    assert isinstance(bad, Rejected)
    assert bad.reason == reason
    assert bad.message.startswith("list.json#1: ")
    assert bad.uri == ("list.json#1" if reason == "no_image" else "a.jpg#1")


@pytest.mark.parametrize(
    ("bbox", "box"),
    [([0, 0, 640, 480.5], Box(-0.5, -0.5, 639.5, 480.0)), (None, None), ([0, 0, 0, 0], None), ([], None)],
)
def test_boxes_move_by_half_a_pixel_and_points_do_not(bbox: object, box: Box | None, tmp_path: Path) -> None:
    (face,) = faces_of(_source(tmp_path, _document(bbox=bbox)))
    assert face.box == box
    np.testing.assert_array_equal(face.shape, np.array(POINTS).reshape(68, 3)[:, :2])


def test_the_faces_of_whole_bodies(tmp_path: Path) -> None:
    body = {"keypoints": [1, 1, 2] * 17, "bbox": [0, 0, 300, 300]}
    reliable = np.array(POINTS).reshape(68, 3) - [0, 0, 1.7]  # v of a face may be any number above 0
    face = {"face_kpts": reliable.ravel().tolist(), "face_box": [1.5, 2, 3, 4], "face_valid": True}
    (found,) = faces_of(_source(tmp_path, _document(**body, **face)))
    assert found.box == Box(1, 1.5, 4, 5.5)
    np.testing.assert_array_equal(found.shape, reliable[:, :2])
    row = rejected(_source(tmp_path, _document(**body, **{**face, "face_valid": False})))
    assert (row.reason, "face_valid" in row.message) == ("not_labelled", True)
    assert rejected(_source(tmp_path, _document(**body))).reason == "count"


@pytest.mark.parametrize(
    ("points", "message"),
    [(POINTS[:51], "17 keypoints instead of 68"), (POINTS[:136], "136 numbers are not x, y, v of 68 keypoints each")],
)
def test_how_many_keypoints_there_are_is_told(points: list[float], message: str, tmp_path: Path) -> None:
    assert rejected(_source(tmp_path, _document(keypoints=points))).message.endswith(message)


def test_pictures_without_annotation_and_odd_images(tmp_path: Path) -> None:
    document = _document()
    document["images"] += [{"id": 1, "file_name": "a2.jpg"}, {"id": "x"}, {"id": 2, "file_name": 5}]
    document["images"] += [{"id": [1], "file_name": "odd.jpg"}, 5]
    document["images"] += [{"id": 3, "file_name": "\ud800.jpg"}]
    reasons = reasons_of(_source(tmp_path, document))
    assert reasons.pop("a.jpg") == ""
    assert reasons == {f"list.json#{n}": "no_annotation" for n in (5, 6)} | {
        "list.json#3": "syntax",
        "odd.jpg": "syntax",
        "a2.jpg": "no_annotation",
        "\\ud800.jpg": "no_annotation",
    }


@pytest.mark.parametrize(("image", "face"), [(7, 7), (7.0, 7), (7, 7.0), ("7", "7")])
def test_a_face_finds_its_picture(image: object, face: object, tmp_path: Path) -> None:
    document = _document(image_id=face)
    document["images"][0]["id"] = image
    assert reasons_of(_source(tmp_path, document)) == {"a.jpg": ""}


@pytest.mark.parametrize(
    ("said", "split"), [("train", "train"), ("Val", "val"), ("validation", "val"), ("TESTING", "test"), ("", None)]
)
def test_a_split_may_be_a_field(said: str, split: str | None, tmp_path: Path) -> None:
    document = _document()
    document["images"][0] |= {"split": said, "subset": "web"}
    (face,) = faces_of(_source(tmp_path, document))
    assert (face.declared_split, face.subset) == (split, "web")


@pytest.mark.parametrize(("said", "subset"), [("\ud800web", "\\ud800web"), ("s" * 100_000, "s" * 255)])
def test_a_subset_is_what_a_table_can_hold(said: str, subset: str, tmp_path: Path) -> None:
    document = _document()
    document["images"][0]["subset"] = said
    (face,) = faces_of(_source(tmp_path, document))
    assert face.subset == subset


@pytest.mark.parametrize("pictures", ["val2017", "images/val2017", "images", "annotations", "annotations/images"])
@pytest.mark.parametrize("place", ["coco", "coco.zip"])
def test_the_layout_of_coco(pictures: str, place: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    name = "annotations/person_keypoints_val2017.json"
    url = put(place, {f"{pictures}/01.jpg": b"1", name: coco([("01.jpg", a_face())])}, tmp_path, request)
    for given_url in [url, *([f"{url}/{name}"] if place == "coco" else [])]:
        (face,) = faces_of(Coco(given_url))
        assert (face.root, face.uri, face.annotation_uri) == (url, f"{pictures}/01.jpg", f"{name}#1")
        assert (face.declared_split, face.subset, face.read()) == ("val", "coco", b"1")


@pytest.mark.parametrize(
    ("name", "picture", "split"),
    [
        ("coco_wholebody_train_v1.0", "train2017/01.jpg", "train"),
        ("coco_wholebody_val_v1.0", "val2017/01.jpg", "val"),
        ("person_keypoints_default", "images/default/01.jpg", None),
        ("person_keypoints_Validation", "images/Validation/01.jpg", "val"),
        ("person_keypoints_Batch 2", "images/Batch 2/01.jpg", None),
    ],
)
def test_the_layouts_of_coco_wholebody_and_of_cvat(
    name: str, picture: str, split: str | None, tmp_path: Path
) -> None:
    files = {picture: b"1", f"annotations/{name}.json": coco([("01.jpg", a_face())])}
    (face,) = faces_of(Coco(write(tmp_path, files)))
    assert (face.uri, face.declared_split) == (picture, split)


def test_the_layout_of_fiftyone(tmp_path: Path) -> None:
    """As FiftyOne 1.22.1 writes `COCODetectionDataset`: whole numbers, and a category that names no keypoints."""
    face = {"id": 1, "image_id": 1, "category_id": 1, "iscrowd": 0}
    document = {
        "info": {"year": "", "version": "", "contributor": "", "url": "https://voxel51.com/fiftyone"},
        "licenses": [],
        "categories": [{"id": 1, "name": "face", "supercategory": None}],
        "images": [{"id": 1, "file_name": "a.jpg", "height": 9, "width": 9, "license": None, "coco_url": None}],
        "annotations": [face | {"keypoints": [int(value) for value in POINTS], "num_keypoints": 68}],
    }
    files = {"labels.json": json.dumps(document, indent=4).encode(), "data/a.jpg": b"a"}
    found = open_annotated(write(tmp_path, files))
    assert isinstance(found, Coco)
    assert [(row.uri, row.read()) for row in faces_of(found)] == [("data/a.jpg", b"a")]


def test_boxes_beside_keypoints_are_left_alone(tmp_path: Path) -> None:
    """As label-studio-sdk 2.1.2 converts to COCO, which it does only where a face has a box of its own."""
    box = {"segmentation": [], "bbox": [3, 5, 10, 20], "ignore": 0, "iscrowd": 0, "area": 200}
    points = {"id": 1, "image_id": 0, "category_id": 1, "keypoints": POINTS, "num_keypoints": 68, "iscrowd": 0}
    document = {
        "images": [{"width": 9, "height": 9, "id": n, "file_name": f"images/{n}-a.jpg"} for n in range(2)],
        "categories": [{"id": 0, "name": "face"}, {"id": 1, "name": "default", "keypoints": [], "skeleton": []}],
        "annotations": [
            {"id": 0, "image_id": 0, "category_id": 0} | box,
            points | {"bbox": [1, 1, 5, 5]},
            {"id": 2, "image_id": 1, "category_id": 0} | box,
        ],
        "info": {"year": 2026, "version": "1.0", "description": "", "contributor": "Label Studio", "url": ""},
    }
    files = {"result.json": json.dumps(document, indent=2).encode(), "images/0-a.jpg": b"0", "images/1-a.jpg": b"1"}
    found = open_annotated(write(tmp_path, files))
    assert isinstance(found, Coco)
    assert reasons_of(found) == {"images/0-a.jpg": "", "images/1-a.jpg": "no_annotation"}
    assert [row.annotation_uri for row in rows_of(found) if not isinstance(row, Rejected)] == ["result.json#2"]


def test_the_layout_of_coco_from_within(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, {"images/a.jpg": b"1", "annotations/x.json": coco([("a.jpg", a_face())])})
    monkeypatch.chdir(tmp_path / "annotations")
    (face,) = faces_of(Coco("x.json"))
    assert face.read() == b"1"


def test_a_missing_picture_says_where_it_was_looked_for(tmp_path: Path) -> None:
    row = rejected(
        Coco(f"{write(tmp_path, {'annotations/val.json': coco([('a.jpg', a_face())])})}/annotations/val.json")
    )
    assert row.reason == "no_image"
    inside = "annotations, annotations/images, annotations/data, annotations/val, annotations/images/val"
    assert f"{inside}, ., images, data, val" in row.message


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (coco([("a.jpg", a_face())])[:-20], "is not whole JSON .*line 1"),
        (b"[" * 100_000, "is not whole JSON"),
        (b'{"images": ' + b"[" * 100_000, "is not whole JSON"),
        (b'{"images": [], "annotations": ' + b"9" * 5000 + b"}", "is not whole JSON"),
        (b'{"images": [' + b"\xff" + b"]}", "is not whole JSON"),
        (b'{"images": {}, "annotations": []}', "no lists images and annotations"),
        (b'{"images": [], "annotations": [1, 2, 3, 4, 5, 6]}', "no lists images and annotations"),
        (b'{"images": [], "annotations": [{"caption": "x"}]}', "without keypoints"),
        (b'{"images": [], "annotations": []}', "lists no face"),
        (b'{"images": [{"id": 1}, {"id": 1}], "annotations": []}', "two images have the id 1"),
    ],
)
def test_broken_files_are_refused_as_a_whole(data: bytes, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"list\.json.* {message}"):
        _source(tmp_path, data).scan()


@pytest.mark.parametrize(
    "images",
    [b"[" + b"[]," * 140_000 + b"[]]", b"[" + b"{}," * 140_000 + b"{}]", b"[" + b'"",' * 140_000 + b'""]'],
    ids=["lists", "objects", "texts"],
)
def test_a_file_of_nothing_but_empty_entries_is_refused(images: bytes, tmp_path: Path) -> None:
    """A zip of 60 kB holds twenty million of them, which took gigabytes and hours."""
    with pytest.raises(UserError, match=r"list\.json has more entries than text for them.*: make it again"):
        _source(tmp_path, b'{"images": ' + images + b', "annotations": []}').scan()


def test_so_much_of_a_whole_body_as_is_empty_is_no_reason_to_refuse_it(tmp_path: Path) -> None:
    """Bodies without a face or hands, and pictures without bodies, as they are written without blanks."""
    nothing = {"face_kpts": [0] * 204, "face_box": [0] * 4, "face_valid": False, "segmentation": [], "keypoints": []}
    document = _document()
    document["images"] += [{"id": n, "file_name": f"{n}.jpg"} for n in range(100_000, 230_000)]
    document["annotations"] += [nothing | {"image_id": n} for n in range(100_000, 101_000)]
    data = json.dumps(document, separators=(",", ":")).encode()
    assert data.count(b"{") + data.count(b"[") > 1 << 17
    assert len(list(read_coco(open_files(_source(tmp_path, data).url), "list.json"))) == 1 + 130_000


def test_other_documents_beside_it_are_passed_over(tmp_path: Path) -> None:
    captions = b'{"images": [{"id": 1, "file_name": "a.jpg"}], "annotations": [{"image_id": 1, "caption": "x"}]}'
    write(tmp_path, {"captions.json": captions, "package.json": b'{"name": "x"}'})
    assert reasons_of(_source(tmp_path, _document())) == {"a.jpg": ""}
    assert Coco.recognises(open_files(str(tmp_path)))
    assert not Coco.recognises(open_files(str(tmp_path / "package.json")))


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=6) | st.dictionaries(st.sampled_from(sorted(_document())), inner),
    max_leaves=8,
)


def _changed(key: str) -> Callable[[Any], dict[str, Any]]:
    return lambda value: (
        _document(**{key: value}) if key in _document()["annotations"][0] else {**_document(), key: value}
    )


@settings(max_examples=50)
@given(
    st.sampled_from(["image_id", "bbox", "keypoints", "images", "annotations"]).flatmap(
        lambda k: _json.map(_changed(k))
    )
)
def test_nothing_but_a_user_error_is_raised(
    tmp_path_factory: pytest.TempPathFactory, document: dict[str, Any]
) -> None:
    try:
        rows = list(_source(tmp_path_factory.getbasetemp() / "junk-json", document).scan())
    except UserError:
        return
    assert rows


@pytest.mark.parametrize("text", ['{\n "images": 14,\n "faces": 12}', '{"info": "of a run"}', '{"categories": {}}'])
def test_other_json_that_counts_images_is_none(text: str, tmp_path: Path) -> None:
    (tmp_path / "summary.json").write_text(text)
    assert not Coco.recognises(open_files(str(tmp_path)))


@pytest.mark.parametrize("text", ['\ufeff { "images" : [ {"id": 1}', '{"info": {"year": 2026}, "images": []}'])
def test_coco_is_recognised_by_its_first_table(text: str, tmp_path: Path) -> None:
    (tmp_path / "summary.json").write_text(text)
    assert Coco.recognises(open_files(str(tmp_path)))
