"""The loop that makes the model better: doubtful faces out, corrected ones back in, and nothing else changes."""

import io
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import jsonschema
import numpy as np
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray

from msrrn.augmentation import AugmentationSettings
from msrrn.geometry import Similarity
from msrrn.synthetic import SyntheticPhoto
from pipelines.annotation.exports import MARK, cvat, export
from pipelines.annotation.review import review
from pipelines.annotation.tables import SUMMARY, Annotations
from pipelines.dataset.photos import PhotoGroup, Seen, read_photos
from pipelines.dataset.prepare import prepare
from pipelines.dataset.screening import screened
from pipelines.errors import UserError
from pipelines.settings import ExportFormat, PrepareSettings, ReviewFormat
from pipelines.sources import AnnotatedPhoto, Rejected, open_annotated
from pipelines.storage import Store
from tests.factories import tree
from tests.pipelines.annotation.test_exports import COCO_SCHEMA, check_cvat
from tests.pipelines.listings import a_face, faces_of, rows_of
from tests.pipelines.runs import Run, face, looked_at, run_of, write_run

Shape = NDArray[np.float64]
Change = Callable[[Shape], Shape]
FORMATS: list[ReviewFormat] = ["cvat", "coco"]
FILES = {"cvat": "annotations.xml", "coco": "coco.json"}
ROUNDING = {"cvat": 0.0051, "coco": 1e-3}

SHAPES = {
    "a.jpg": [a_face(1), a_face(2)],
    "b/c d.jpg": [a_face(3)],
    "../b/=ü 顔.jpg": [a_face(4), a_face(5), a_face(6)],
    "b/none.jpg": [],
    "z": [a_face(7)],
}
"""Confidence falls from the first face to the last: see `run_of`."""


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return run_of(tmp_path / "run", SHAPES)


def edit(
    folder: Path, made: ReviewFormat, picture: str, number: int, change: Change | None, checked: bool = False
) -> None:
    """What a person does in a tool to one face of a picture: changes its points, marks it, or (None) deletes it."""
    file = folder / FILES[made]
    if made == "cvat":
        tree_ = ElementTree.parse(file)
        image = next(image for image in tree_.iter("image") if image.get("name", "").startswith(picture))
        points = image.findall("points")[number]
        if change is None:
            image.remove(points)
        else:
            shape = np.array([pair.split(",") for pair in points.get("points", "").split(";")], np.float64)
            points.set("points", ";".join(f"{x:.2f},{y:.2f}" for x, y in change(shape)))
        for attribute in points.findall("attribute"):
            if attribute.get("name") == "checked":
                attribute.text = str(checked).lower()
        tree_.write(file, "utf-8", xml_declaration=True)
        return
    document = json.loads(file.read_text())
    image_id = next(image["id"] for image in document["images"] if image["file_name"].startswith(picture))
    annotation = [it for it in document["annotations"] if it["image_id"] == image_id][number]
    if change is None:
        document["annotations"].remove(annotation)
    else:
        shape = np.array(annotation["keypoints"]).reshape(68, 3)
        shape[:, :2] = change(shape[:, :2])
        annotation["keypoints"] = shape.ravel().tolist()
        annotation["attributes"]["checked"] = checked
    file.write_text(json.dumps(document))


def move_three(shape: Shape) -> Shape:
    moved = shape.copy()
    moved[[5, 30, 67]] += [(3, -2), (0.5, 0), (-7, 4)]
    return moved


def subsets(folder: Path) -> dict[str, list[str]]:
    """Of each picture's faces."""
    found: dict[str, list[str]] = {}
    for row in rows_of(open_annotated(str(folder))):
        if isinstance(row, AnnotatedPhoto):
            found.setdefault(Path(row.uri).name[:4], []).append(row.subset)
    return found


@pytest.mark.parametrize("made", FORMATS)
def test_the_least_certain_faces_with_all_of_their_pictures(made: ReviewFormat, run: Run, tmp_path: Path) -> None:
    result = review(run, 3, made, str(tmp_path / "in" / "out"))
    out = tmp_path / "in" / "out"
    assert (result.pictures, result.faces, result.doubtful, result.unreadable) == (2, 4, 3, {})
    assert result.annotations == f"{out}/{FILES[made]}"
    assert {path.name for path in (tmp_path / "in").iterdir()} == {"out"}
    files = tree(out)
    pictures = {key: data.decode() for key, data in files.items() if key.startswith("images/")}
    assert pictures == {"images/0001-z.jpg": "z", "images/0002-_.jpg": "../b/=ü 顔.jpg"}
    others = {"README.txt", "review.json", MARK, FILES[made], *(["cvat-labels.json"] if made == "cvat" else [])}
    assert set(files) - set(pictures) == others
    if made == "cvat":
        root = check_cvat(files[FILES[made]])
        assert [image.get("name") for image in root.iter("image")] == ["0001-z.jpg", "0002-_.jpg"]
        assert {a.get("name") for a in root.iterfind("image/points/attribute")} == {
            *cvat.ATTRIBUTES,
            "doubtful",
            "checked",
        }
        marks = {
            name: [a.text for a in root.iter("attribute") if a.get("name") == name]
            for name in ("doubtful", "checked")
        }
    else:
        document = json.loads(files[FILES[made]])
        jsonschema.Draft202012Validator(COCO_SCHEMA).validate(document)
        attributes = [annotation["attributes"] for annotation in document["annotations"]]
        marks = {name: [str(each[name]).lower() for each in attributes] for name in ("doubtful", "checked")}
    assert marks == {"doubtful": ["true", "false", "true", "true"], "checked": ["false"] * 4}
    remembered = json.loads(files["review.json"])
    assert remembered["source"] == "archive"
    origins = [(it["uri"], it["sha256"]) for it in remembered["pictures"].values()]
    assert [uri for uri, _ in origins] == ["z", "../b/=ü 顔.jpg"]
    assert [digest for _, digest in origins] == [
        looked_at(uri, 1, 1, 1, uri.encode())["sha256"] for uri, _ in origins
    ]


def test_copies_of_a_picture_are_reviewed_once(tmp_path: Path) -> None:
    long = f"{'b' * 300}.png"
    names = ["a.jpg", "sure.jpg", "copy of a.jpg", long, "a again.jpg"]
    data = dict.fromkeys(names, b"a") | {"sure.jpg": b"sure", long: b"b"}
    confidence = {b"a": 0.2, b"b": 0.4, b"sure": 0.9}
    images = [looked_at(name, 640, 480, 1, data[name]) for name in names]
    # A network that is asked about others beside it may round in another way.
    faces = [
        face(image, 0, a_face(1), confidence=confidence[data[image["uri"]]] - 1e-8 * number)
        for number, image in enumerate(images)
    ]
    run, _ = write_run(tmp_path / "run", images, faces, per_unit=2, files=data)
    result = review(run, 2, "cvat", str(tmp_path / "out"))
    assert (result.pictures, result.faces, result.doubtful) == (2, 2, 2)
    assert sorted(key for key in tree(tmp_path / "out") if key.startswith("images/")) == [
        "images/0001-a.jpg",
        f"images/0002-{'b' * 60}.png",
    ]


@pytest.mark.parametrize("made", FORMATS)
def test_an_export_beside_it_does_not_let_a_review_replace_what_is_a_persons(
    made: ReviewFormat, run: Run, tmp_path: Path
) -> None:
    export(run, made, str(tmp_path / "out"))
    (tmp_path / "out" / "README.txt").write_text("my own")
    before = tree(tmp_path / "out")
    with pytest.raises(UserError, match="is there, and no call like this one is known to have written it"):
        review(run, 3, made, str(tmp_path / "out"))
    assert tree(tmp_path / "out") == before


@pytest.mark.parametrize("made", FORMATS)
def test_only_what_was_changed_comes_back_changed(made: ReviewFormat, run: Run, tmp_path: Path) -> None:
    review(run, 99, made, str(tmp_path / "out"))
    before = faces_of(open_annotated(str(tmp_path / "out")))
    assert {row.subset for row in before} == {"predictions"}
    assert sorted(row.read().decode() for row in before) == sorted(uri for uri, some in SHAPES.items() for _ in some)
    drawn = {shape.astype(np.float32).tobytes(): shape for some in SHAPES.values() for shape in some}
    for row in before:
        distance = min(np.abs(row.shape - shape).max() for shape in drawn.values())
        assert distance <= ROUNDING[made]
    edit(tmp_path / "out", made, "0002", 1, move_three)
    after = faces_of(open_annotated(str(tmp_path / "out")))
    changed = [row for row in after if row.subset == "corrections"]
    assert [(row.uri, row.annotation_uri) for row in after] == [(row.uri, row.annotation_uri) for row in before]
    (one,) = changed
    for old, new in zip(before, after, strict=True):
        wanted = move_three(old.shape) if new is one else old.shape
        np.testing.assert_allclose(new.shape, wanted, rtol=0, atol=1e-9 if new is not one else 2 * ROUNDING[made])
        assert (new.subset, new.sha256) == ("corrections" if new is one else "predictions", old.sha256)
    np.testing.assert_array_equal(
        np.abs(one.shape - before[after.index(one)].shape).max(axis=1) > 0.1, np.isin(range(68), [5, 30, 67])
    )


@pytest.mark.parametrize("made", FORMATS)
def test_what_else_a_person_may_do(made: ReviewFormat, run: Run, tmp_path: Path) -> None:
    """Mark a face as right, delete one, and delete all of a picture."""
    out = tmp_path / "out"
    review(run, 99, made, str(out))
    assert subsets(out) == {
        "0001": ["predictions"], "0002": ["predictions"] * 3, "0003": ["predictions"], "0004": ["predictions"] * 2
    }  # fmt: skip
    edit(out, made, "0002", 0, lambda shape: shape, checked=True)
    edit(out, made, "0004", 1, None)
    edit(out, made, "0001", 0, None)
    edit(out, made, "0003", 0, lambda shape: shape + 0.004)  # no more than rounding
    assert subsets(out) == {
        "0002": ["corrections", *["predictions"] * 2],
        "0003": ["predictions"],
        "0004": ["predictions"],
    }
    alone = [row for row in rows_of(open_annotated(str(out))) if isinstance(row, Rejected)]
    assert [(row.uri, row.reason) for row in alone] == [("images/0001-z.jpg", "no_annotation")]


@pytest.mark.parametrize("whole", [np.trunc, np.rint])
def test_a_tool_that_writes_whole_pixels_changes_no_face(whole: Change, run: Run, tmp_path: Path) -> None:
    """As FiftyOne 1.22.1 cuts keypoints off and label-studio-sdk 2.1.2 rounds them."""
    review(run, 99, "coco", str(tmp_path / "out"))
    edit(tmp_path / "out", "coco", "0002", 1, move_three)
    for picture, faces in (("0001", 1), ("0002", 3), ("0003", 1), ("0004", 2)):
        for number in range(faces):
            edit(tmp_path / "out", "coco", picture, number, whole)
    found = subsets(tmp_path / "out")
    assert sorted(found.pop("0002")) == ["corrections", "predictions", "predictions"]
    assert found == {"0001": ["predictions"], "0003": ["predictions"], "0004": ["predictions"] * 2}


@pytest.mark.parametrize("made", FORMATS)
def test_the_dataset_has_exactly_the_changes(
    made: ReviewFormat, photos: tuple[list[SyntheticPhoto], list[SyntheticPhoto]], tmp_path: Path
) -> None:
    """The whole loop, with photographs: a run, its review, a person, a dataset."""
    pictures = {f"in/{number}.jpg": photo for number, photo in enumerate([*photos[0][:3], photos[1][0]])}
    images = [looked_at(uri, 640, 480, len(photo.shapes), photo.jpeg) for uri, photo in pictures.items()]
    faces = [
        face(image, index, shape, confidence=0.1 * number)
        for number, (image, photo) in enumerate(zip(images, pictures.values(), strict=True))
        for index, shape in enumerate(photo.shapes)
    ]
    run, _ = write_run(tmp_path / "run", images, faces, files={uri: photo.jpeg for uri, photo in pictures.items()})
    review(run, 99, made, str(tmp_path / "review"))
    settings = PrepareSettings(augmentation=AugmentationSettings(copies=0), val_share=0)
    before = rows_of_dataset(str(tmp_path / "review"), tmp_path / "before", settings)
    edit(tmp_path / "review", made, "0001", 0, move_three)
    after = rows_of_dataset(str(tmp_path / "review"), tmp_path / "after", settings)
    assert before.keys() == after.keys()
    assert {key[0] for key in before} == {image["sha256"] for image in images}
    assert len(before) == len(faces)
    changed = [
        key for key in before if before[key][1] != after[key][1] or not np.array_equal(before[key][0], after[key][0])
    ]
    (key,) = changed
    assert key[0] == images[0]["sha256"]
    assert {source for _, source in before.values()} == {"predictions"}
    assert (before[key][1], after[key][1]) == ("predictions", "corrections")
    np.testing.assert_allclose(after[key][0], move_three(before[key][0]), rtol=0, atol=2 * ROUNDING[made])
    still = np.setdiff1d(np.arange(68), [5, 30, 67])
    np.testing.assert_allclose(after[key][0][still], before[key][0][still], rtol=0, atol=1e-3)


def rows_of_dataset(
    source: str, out: Path, settings: PrepareSettings
) -> dict[tuple[str, int], tuple[NDArray[np.float64], str]]:
    """Photo and face → landmarks in pixels of the photo, and the face's source."""
    dataset, manifest = prepare([source], str(out), settings, workers=1)
    found = {}
    for unit in manifest.shards("train"):
        columns = ["photo_sha256", "face_index", "landmarks", "to_crop", "source", "copy"]
        for row in pq.read_table(io.BytesIO(dataset.parent.read_bytes(unit.shard)), columns=columns).to_pylist():
            matrix = np.array(row["to_crop"]).reshape(2, 3)
            shape = Similarity(matrix[:, :2], matrix[:, 2]).inverse()(np.array(row["landmarks"]).reshape(68, 2))
            assert row["copy"] == 0
            found[row["photo_sha256"], row["face_index"]] = (np.asarray(shape, np.float64), row["source"])
    return found


def test_a_corrected_file_of_another_format_is_understood(run: Run, tmp_path: Path) -> None:
    """What a face was is remembered apart from the file that was drawn."""
    review(run, 99, "cvat", str(tmp_path / "out"))
    review(run, 99, "coco", str(tmp_path / "coco"))
    edit(tmp_path / "coco", "coco", "0003", 0, move_three)
    (tmp_path / "out/annotations.xml").unlink()
    Store(str(tmp_path / "out")).publish("annotations/default.json", (tmp_path / "coco/coco.json").read_bytes())
    assert subsets(tmp_path / "out")["0003"] == ["corrections"]
    assert subsets(tmp_path / "out")["0002"] == ["predictions"] * 3


def test_a_second_file_beside_the_first_is_refused(run: Run, tmp_path: Path) -> None:
    """Else each face would be there twice, as it was and as it became."""
    review(run, 99, "cvat", str(tmp_path / "out"))
    (tmp_path / "out/corrected.xml").write_bytes((tmp_path / "out/annotations.xml").read_bytes())
    with pytest.raises(UserError, match=r"annotations\.xml and corrected\.xml are of one review: keep the corrected"):
        open_annotated(str(tmp_path / "out")).scan()
    rows = list(open_annotated(str(tmp_path / "out/corrected.xml")).scan())  # it is clear which, when one is named
    assert {row.subset for row in rows if isinstance(row, AnnotatedPhoto)} == {"predictions"}


def test_work_in_a_review_is_never_overwritten(run: Run, tmp_path: Path) -> None:
    Store(str(tmp_path / "out")).publish(MARK, b'["csv"]')  # of an export that was deleted
    review(run, 1, "cvat", str(tmp_path / "out"))
    edit(tmp_path / "out", "cvat", "0001", 0, move_three)
    before = tree(tmp_path / "out")
    with pytest.raises(UserError, match="holds a review, perhaps with work in it: give another --out"):
        review(run, 2, "coco", str(tmp_path / "out"))
    assert tree(tmp_path / "out") == before


@pytest.mark.parametrize("made", ["cvat", "coco"])
def test_nor_is_it_by_an_export(made: ExportFormat, run: Run, tmp_path: Path) -> None:
    review(run, 3, "cvat", str(tmp_path / "review"))
    before = tree(tmp_path / "review")
    with pytest.raises(UserError, match="is a review, in which a person corrects annotations: give another --out"):
        export(run, made, str(tmp_path / "review"))
    assert tree(tmp_path / "review") == before


@pytest.mark.parametrize("key", ["README.txt", "images/0001-z.jpg", "annotations.xml", "photo.jpg"])
def test_a_review_lies_beside_nothing_of_anybodys_own(key: str, run: Run, tmp_path: Path) -> None:
    (tmp_path / "out" / key).parent.mkdir(parents=True)
    (tmp_path / "out" / key).write_text("mine")
    with pytest.raises(UserError, match=f"{key} is there, and no call like this one"):
        review(run, 5, "cvat", str(tmp_path / "out"))
    assert tree(tmp_path / "out") == {key: b"mine"}


def test_pictures_behind_a_link_are_not_replaced(run: Run, tmp_path: Path) -> None:
    for folder in ("photos", "out"):
        (tmp_path / folder).mkdir()
    (tmp_path / "photos" / "mine.jpg").write_text("mine")
    (tmp_path / "out" / "images").symlink_to(tmp_path / "photos")
    with pytest.raises(UserError, match="images is there, and no call like this one"):
        review(run, 5, "cvat", str(tmp_path / "out"))
    (tmp_path / "out" / MARK).write_text('["review-cvat"]')
    with pytest.raises(UserError, match="images is a link to another folder: remove it"):
        review(run, 5, "cvat", str(tmp_path / "out"))
    assert tree(tmp_path / "photos") == {"mine.jpg": b"mine"}


def test_a_review_that_was_interrupted_is_made_again(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    review(run, 1, "cvat", str(tmp_path / "whole"))
    monkeypatch.setattr("pipelines.annotation.review._readme", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        review(run, 5, "cvat", str(tmp_path / "out"))
    monkeypatch.undo()
    with pytest.raises(UserError, match="no call like this one is known"):  # two files would be of one review
        review(run, 1, "coco", str(tmp_path / "out"))
    review(run, 1, "cvat", str(tmp_path / "out"))
    assert tree(tmp_path / "out").keys() == tree(tmp_path / "whole").keys()


def test_a_picture_that_was_replaced_is_not_trained_on(run: Run, tmp_path: Path) -> None:
    review(run, 1, "coco", str(tmp_path / "out"))
    (tmp_path / "out/images/0001-z.jpg").write_bytes(b"another")
    groups, left_out = read_photos([str(tmp_path / "out")], 1)
    assert not groups
    assert [item.reason for item in left_out] == ["changed_picture"]


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b'{"version": "1"}', b'{"version": "2"}'])
def test_a_damaged_memory_is_named(damage: bytes, run: Run, tmp_path: Path) -> None:
    review(run, 1, "coco", str(tmp_path / "out"))
    (tmp_path / "out/review.json").write_bytes(damage)
    with pytest.raises(
        UserError, match=r"review\.json is damaged, or of another version .* use that .* fetch it again"
    ):
        open_annotated(str(tmp_path / "out")).scan()


def test_pictures_that_are_gone_are_counted(run: Run, tmp_path: Path) -> None:
    files = {uri: data for uri, data in run.files.items() if uri != "z"}
    result = review(Run(run.store, files), 3, "cvat", str(tmp_path / "out"))
    assert (result.pictures, result.doubtful, result.unreadable) == (1, 2, {"unreadable": 1})
    with pytest.raises(UserError, match=r"none of the 2 pictures to review can be read \(unreadable × 2\)"):
        review(Run(run.store), 3, "cvat", str(tmp_path / "none"))
    assert not (tmp_path / "none/review.json").exists()


def test_a_run_without_faces_is_named(tmp_path: Path) -> None:
    run = run_of(tmp_path / "run", {"a.jpg": []})
    with pytest.raises(UserError, match="has no face to review"):
        review(run, 3, "cvat", str(tmp_path / "out"))
    with pytest.raises(UserError, match=r"has no run\.json"):
        review(Annotations(Store(str(tmp_path / "nowhere"))), 3, "cvat", str(tmp_path / "out"))


def test_a_run_that_goes_on_is_reviewed_as_far_as_it_is(run: Run, tmp_path: Path) -> None:
    assert not review(run, 3, "cvat", str(tmp_path / "out")).finished
    run.store.publish(SUMMARY, b"{}")
    assert review(run, 3, "cvat", str(tmp_path / "finished")).finished
    for unit in run.units():
        run.store.delete(f"records/{unit}.json")
    with pytest.raises(UserError, match="no unit is finished yet"):
        review(run, 3, "cvat", str(tmp_path / "none"))


def test_a_review_on_s3(run: Run, tmp_path: Path, s3: str) -> None:
    review(run, 5, "cvat", str(tmp_path / "out"))
    review(run, 5, "cvat", f"{s3}/out")
    remote = Store(f"{s3}/out")
    written = tree(tmp_path / "out")
    del written["README.txt"]  # it says where it is
    assert {key: remote.read_bytes(key) for key in remote.keys() if key != "README.txt"} == written  # noqa: SIM118
    assert len(faces_of(open_annotated(remote.url))) == 5


def test_the_readme_tells_a_person_what_to_do(run: Run, tmp_path: Path) -> None:
    for made in FORMATS:
        review(run, 1, made, str(tmp_path / made))
        text = (tmp_path / made / "README.txt").read_text().replace(str(tmp_path), "/faces")
        assert len(text.splitlines()) <= 15
        assert max(map(len, text.splitlines())) <= 130
        for name in re.findall(r"\b[\w-]+\.(?:xml|json)\b", text):
            assert (tmp_path / made / name).is_file()
        assert f"msrrn prepare --data 300w /faces/{made} --out datasets" in text
        assert ("one task" in text) == (made == "cvat")  # CVAT finds a picture that the task lacks by its place there
        assert "unpack" in text  # CVAT gives nothing but zips, and one beside the old file changes nothing


@pytest.mark.parametrize("made", FORMATS)
def test_a_review_of_a_place_whose_name_is_no_utf_8(made: ReviewFormat, run: Run, tmp_path: Path) -> None:
    place = tmp_path / os.fsdecode(b"caf\xe9")
    (tmp_path / "run").rename(place)
    told = json.loads((place / "run.json").read_bytes())
    (place / "run.json").write_text(json.dumps(told | {"archive": f"{place}/archive", "model": "tiny 1"}))
    review(Run(Store(str(place)), run.files), 1, made, str(place / "out"))
    assert rf"--data 300w {tmp_path}/caf\xe9/out" in (place / "out" / "README.txt").read_text()
    remembered = json.loads((place / "out" / "review.json").read_bytes())
    assert (remembered["source"], remembered["model"]) == (rf"{tmp_path}/caf\xe9/archive", "tiny 1")
    assert subsets(place / "out") == {"0001": ["predictions"]}


def test_a_correction_counts_before_an_annotation_and_that_before_a_prediction(tmp_path: Path) -> None:
    def seen(subset: str, name: str) -> AnnotatedPhoto:
        return AnnotatedPhoto(str(tmp_path), name, f"{name}.pts", subset, None, a_face())

    alike = [seen("predictions", "a"), seen("lfpw", "b"), seen("corrections", "c"), seen("corrections", "d")]
    for several, first in ((alike, "c"), (alike[:2], "b"), (alike[:1], "a"), (alike[::2], "c")):
        kept, left_out = screened([PhotoGroup(Seen("0" * 64, "a", None, ""), tuple(several))])
        assert [face.uri for group in kept for face in group.faces] == [first]
        assert [item.reason for item in left_out] == ["face_twice"] * (len(several) - 1)
