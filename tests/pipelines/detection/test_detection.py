import pickle
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import get_args

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from msrrn.geometry import Box
from pipelines.decoding import decode
from pipelines.detection import (
    BoxMapping,
    Detection,
    Detector,
    HogDetector,
    expected_box,
    hog,
    match,
    open_detector,
)
from pipelines.detection.annotated import AnnotatedBoxes
from pipelines.errors import UserError
from pipelines.settings import Precision
from pipelines.sources import AnnotatedPhoto
from pipelines.sources.pts import parse_pts

Photograph = Callable[[str], NDArray[np.uint8]]
SEARCH = hog._search


@pytest.fixture(autouse=True)
def _anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """Here nothing that was found before is remembered (see `tests.quick`)."""
    monkeypatch.setattr(hog, "_search", SEARCH)


@pytest.fixture(scope="module")
def photograph(data_root: Path) -> Photograph:
    return lambda uri: decode((data_root / uri).read_bytes()).rgb


@pytest.fixture(params=["hog", "blazeface", "blazeface bfloat16", "cnn", "yunet"])
def detector(request: pytest.FixtureRequest) -> Detector:
    try:
        return open_detector(*request.param.split())
    except UserError as error:
        pytest.skip(str(error))


def _shape(seed: int) -> NDArray[np.float64]:
    """Any cloud of 68 points: what is tested here holds for all."""
    return np.random.default_rng(seed).normal(200, 40, (68, 2))


def _moved(box: Box, dx: float, dy: float, factor: float = 1.0) -> Box:
    (x, y), half = box.centre, box.side * factor / 2
    x, y = x + dx * box.side, y + dy * box.side
    return Box(x - half, y - half, x + half, y + half)


def test_faces_come_largest_first_and_always_the_same(photograph: Photograph) -> None:
    rgb = photograph("photos/groups/2007_007763.jpg")
    found = HogDetector()(rgb)
    assert len(found) >= 2
    assert [item.box.area for item in found] == sorted((item.box.area for item in found), reverse=True)
    assert all(item.score > 0 for item in found)
    another = pickle.loads(pickle.dumps(HogDetector()))  # noqa: S301
    assert another(rgb) == found


def test_threads_that_look_at_once_see_their_own_faces(detector: Detector, photograph: Photograph) -> None:
    if detector.name == "cnn":
        pytest.skip("it takes seconds a picture")
    names = ("2007_007763", "2008_001009", "2008_001322", "2008_002470")
    pictures = [photograph(f"photos/groups/{name}.jpg") for name in names]
    alone = [detector(rgb, 40) for rgb in pictures]
    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(lambda rgb: detector(rgb, 40), pictures * 6)) == alone * 6


def test_what_blazeface_finds_hardly_depends_on_its_precision(photograph: Photograph) -> None:
    try:
        whole, half = (open_detector("blazeface", precision) for precision in get_args(Precision))
    except UserError as error:
        pytest.skip(str(error))
    rgb = photograph("photos/groups/2007_007763.jpg")
    pairs = list(zip(whole(rgb, 40), half(rgb, 40), strict=True))
    assert len(pairs) >= 2
    assert all(one.box.iou(other.box) > 0.9 for one, other in pairs)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.uint16])
def test_pictures_of_other_dtypes_are_refused(detector: Detector, dtype: type[np.generic]) -> None:
    with pytest.raises(ValueError, match=f"a picture must be uint8, 0 to 255, not {np.dtype(dtype)}"):
        detector(np.zeros((60, 80, 3), dtype), 40)


@pytest.mark.parametrize("size", [(10, 0), (0, 10)])
@pytest.mark.parametrize("min_side", [None, 40])
def test_pictures_without_pixels_are_refused(
    detector: Detector, size: tuple[int, int], min_side: float | None
) -> None:
    with pytest.raises(ValueError, match="a picture must have pixels"):
        detector(np.zeros((*size, 3), np.uint8), min_side)


@pytest.mark.parametrize("min_side", [0, -40, float("nan")])
def test_faces_of_no_size_are_no_question(detector: Detector, min_side: float) -> None:
    with pytest.raises(ValueError, match=f"min_side must be pixels, above 0, or None, not {min_side}"):
        detector(np.zeros((60, 80, 3), np.uint8), min_side)


def test_faces_are_found_in_copies_of_any_size_in_their_own_pixels(data_root: Path, photograph: Photograph) -> None:
    matched = {"as it is": 0, "large": 0, "small": 0}
    annotations = sorted((data_root / "300w" / "helen" / "trainset").glob("*.pts"))[:5]
    for annotation in annotations:
        rgb = photograph(f"300w/helen/trainset/{annotation.stem}.jpg")
        shape = parse_pts(annotation.read_bytes())
        factors = {"as it is": 1.0, "large": 4.1, "small": 60 / expected_box(shape).side}
        for name, factor in factors.items():
            area = cv2.INTER_AREA if factor < 1 else cv2.INTER_LINEAR
            copy = cv2.resize(rgb, None, fx=factor, fy=factor, interpolation=area)
            found = HogDetector()(np.asarray(copy, np.uint8))
            matched[name] += match(found, (shape + 0.5) * factor - 0.5) is not None
    assert matched["as it is"] == matched["large"] == len(annotations)
    assert matched["small"] >= len(annotations) - 1


@pytest.mark.parametrize("size", [(1, 1), (1, 4000), (5000, 3), (480, 640)])
def test_pictures_without_a_face(detector: Detector, size: tuple[int, int]) -> None:
    assert detector(np.full((*size, 3), 127, np.uint8)) == []


def test_every_detector_agrees_on_the_convention_of_boxes(
    detector: Detector, data_root: Path, photograph: Photograph
) -> None:
    shapes, plain, again, grey = [], [], [], []
    annotations = sorted((data_root / "300w" / "helen" / "trainset").glob("*.pts"))[40:46]
    for annotation in annotations[:1] if detector.name == "cnn" else annotations:  # seconds each
        rgb = photograph(f"300w/helen/trainset/{annotation.stem}.jpg")
        shapes.append(parse_pts(annotation.read_bytes()))
        plain.append(detector(rgb))
        again.append(pickle.loads(pickle.dumps(detector))(rgb))  # noqa: S301
        grey.append(detector(np.repeat(rgb.mean(axis=2, keepdims=True).astype(np.uint8), 3, axis=2)))
    assert plain == again
    for found in (plain, grey):
        own = [match(items, shape) for items, shape in zip(found, shapes, strict=True)]
        assert sum(item is None for item in own) <= len(own) // 6
        overlaps = [item.box.iou(expected_box(shape)) for item, shape in zip(own, shapes, strict=True) if item]
        assert np.median(overlaps) > 0.65


@pytest.mark.parametrize("photo", ["79378097", "3729198156", "5082623456"])
def test_small_faces_beside_a_large_one_are_found(data_root: Path, photograph: Photograph, photo: str) -> None:
    """The large one is found in the coarse copy; the small ones, unsure there, send for the fine copy."""
    shapes = [parse_pts(path.read_bytes()) for path in (data_root / "300w" / "afw").glob(f"{photo}_*.pts")]
    detections = HogDetector()(photograph(f"300w/afw/{photo}_1.jpg"))
    assert sum(match(detections, shape) is not None for shape in shapes) >= max(3, len(shapes) - 1)


def test_smaller_faces_are_searched_for_where_they_are_asked_for(
    detector: Detector, photograph: Photograph, data_root: Path
) -> None:
    """A photograph in a corner of a large picture: a face of about a twentieth of its side."""
    if detector.name in {"cnn", "yunet"}:
        pytest.skip("slow, or with one copy whatever is asked for")
    annotations = sorted((data_root / "300w" / "helen" / "trainset").glob("*.pts"))[60:66]
    found: dict[float, int] = {}
    for annotation in annotations:
        rgb, shape = photograph(f"300w/helen/trainset/{annotation.stem}.jpg"), parse_pts(annotation.read_bytes())
        factor = 70 / expected_box(shape).side
        small = cv2.resize(rgb, None, fx=factor, fy=factor, interpolation=cv2.INTER_AREA)
        large = np.full((1200, 1500, 3), 127, np.uint8)
        large[900 : 900 + small.shape[0], 200 : 200 + small.shape[1]] = small
        for least in (300.0, 70.0, 40.0):
            own = match(detector(large, least), (shape + 0.5) * factor - 0.5 + [200, 900])
            found[least] = found.get(least, 0) + (own is not None)
    assert found[300.0] == 0 or detector.name == "blazeface"  # its one view may show them nevertheless
    assert found[70.0] >= 4
    assert found[40.0] >= 5


def test_auto_is_what_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    for runtime in (False, True):
        for file in (False, True):
            monkeypatch.setattr("pipelines.detection.has_openvino", lambda has=runtime: has)
            monkeypatch.setattr("pipelines.detection.has_model_file", lambda name, has=file: has)
            monkeypatch.setattr("pipelines.detection.read_model_file", lambda name: b"model")
            assert open_detector("auto").name == ("blazeface" if runtime and file else "hog")


@given(
    st.floats(-0.4, 0.4), st.floats(-0.4, 0.4), st.floats(0.4, 2.5), st.permutations(list(range(9))), st.booleans()
)
def test_the_convention_of_annotated_boxes_is_learnt_from_most_of_them(
    dx: float, dy: float, scale: float, order: list[int], tall: bool
) -> None:
    """Three of nine boxes are of another face; the figures are rounded to a hundredth of a side."""
    faces = []
    for index in order:
        shape = _shape(index) + 1000 * index
        box = _moved(expected_box(_shape(index) + 1000 * (index + (index >= 6))), dx, dy, scale)
        if tall:
            (x, y), side = box.centre, box.side
            box = Box(x - side * 0.4, y - side * 0.625, x + side * 0.4, y + side * 0.625)
        faces.append(AnnotatedPhoto("/data", f"{index}.jpg", f"{index}.pts", "", None, shape, box))
    find = AnnotatedBoxes.fit(faces)
    assert find == AnnotatedBoxes.fit(sorted(faces, key=lambda face: face.uri))
    for face in faces:
        detection = find(face)
        assert detection is not None
        assert detection.score == 1.0
        if face.uri < "6":
            assert detection.box.iou(expected_box(face.shape)) > 0.9 ** (2 / min(scale, 1.0))


def test_a_face_without_a_box_and_a_source_without_boxes_have_no_detection() -> None:
    shape = _shape(0)
    bare = AnnotatedPhoto("/a", "0.jpg", "0.pts", "", None, shape)
    boxed = AnnotatedPhoto("/b", "0.jpg", "0.pts", "", None, shape, expected_box(shape))
    find = AnnotatedBoxes.fit([bare, boxed])
    assert find(bare) is None
    assert find.mappings == ((("/b", "pts"), BoxMapping(0.0, 0.0, 1.0)),)
    assert AnnotatedBoxes.fit([bare])(bare) is None


def test_sources_in_one_folder_keep_their_own_conventions() -> None:
    """Yet files of one kind, which may hold a face each, are measured together."""
    faces = []
    for index, scale in enumerate((1.0, 1.0, 1.5, 0.4, 0.4, 0.6)):
        shape = _shape(index)
        name = f"tight.xml#{index}" if index < 3 else f"{index}.json#0"
        box = _moved(expected_box(shape), 0.0, 0.0, scale)
        faces.append(AnnotatedPhoto("/a", f"{index}.jpg", name, "", None, shape, box))
    found = map(AnnotatedBoxes.fit(faces), faces)
    sides = [item.box.side / expected_box(face.shape).side for item, face in zip(found, faces, strict=True) if item]
    assert sides == pytest.approx([1.0, 1.0, 1.5, 1.0, 1.0, 1.5])


def test_absurd_annotations_and_boxes_change_nothing_for_the_others() -> None:
    """What a reader lets through: all within `FARTHEST`, but not what is made of it."""
    shape = _shape(0)
    theirs = _moved(expected_box(shape), 0.0, 0.0, 0.5)
    huge = 1.6e7 * np.sign(shape - shape.mean(axis=0))
    boxes = [(shape, theirs), (shape, theirs), (shape, Box(-1.6e7, -1.6e7, 1.6e7, 1.6e7))]
    boxes += [(shape, Box(0.0, 0.0, 1e-200, 1e-200)), (huge, theirs)]
    faces = [AnnotatedPhoto("/a", f"{n}.jpg", f"{n}.pts", "", None, *face) for n, face in enumerate(boxes)]
    find = AnnotatedBoxes.fit(faces)
    assert find == AnnotatedBoxes.fit(faces[:2])
    assert [find(face) is not None for face in faces] == [True, True, False, False, True]
    assert AnnotatedBoxes.fit(faces[4:])(faces[4]) is None


@given(st.integers(0, 50), st.floats(0.1, 20), st.floats(-500, 500), st.floats(-500, 500))
def test_the_expected_box_moves_and_grows_with_the_face(seed: int, scale: float, dx: float, dy: float) -> None:
    shape = _shape(seed)
    moved = expected_box(shape * scale + [dx, dy])
    plain = expected_box(shape)
    assert moved.side == pytest.approx(plain.side * scale)
    assert moved.centre == pytest.approx((plain.centre[0] * scale + dx, plain.centre[1] * scale + dy), abs=1e-6)


@given(
    st.integers(0, 50),
    st.floats(-0.12, 0.12),
    st.floats(-0.17, 0.17),
    st.floats(0.75, 1.4),
    st.permutations([0, 1, 2]),
)
def test_the_own_box_is_matched_in_any_order(
    seed: int, dx: float, dy: float, factor: float, order: list[int]
) -> None:
    shape = _shape(seed)
    expected = expected_box(shape)
    own = Detection(_moved(expected, dx, dy, factor), 0.1)
    neighbours = [Detection(_moved(expected, 1.0, 0.1), 3.0), Detection(_moved(expected, 0, 0, 0.3), 3.0)]
    detections = [[own, *neighbours][index] for index in order]
    assert match(detections, shape) is own


def test_a_missed_face_takes_no_other_face() -> None:
    shape = _shape(1)
    expected = expected_box(shape)
    assert match([], shape) is None
    for wrong in (_moved(expected, 0.8, 0), _moved(expected, 0, 0, 0.35), _moved(expected, 0, 0, 3)):
        assert match([Detection(wrong, 5.0)], shape) is None


def test_each_annotated_face_of_a_photograph_gets_its_own(data_root: Path, photograph: Photograph) -> None:
    photos: dict[str, list[Path]] = defaultdict(list)
    for annotation in sorted((data_root / "300w" / "afw").glob("*.pts")):
        photos[annotation.stem.rpartition("_")[0]].append(annotation)
    several = [annotations for annotations in photos.values() if len(annotations) >= 3][:6]
    faces = matched = 0
    for annotations in several:
        detections = HogDetector()(photograph(f"300w/afw/{annotations[0].stem}.jpg"))
        own = [match(detections, parse_pts(path.read_bytes())) for path in annotations]
        boxes = [item.box for item in own if item is not None]
        assert len(set(boxes)) == len(boxes)
        faces, matched = faces + len(own), matched + len(boxes)
    assert matched / faces > 0.5


def test_the_expected_box_agrees_with_the_detector(data_root: Path, photograph: Photograph) -> None:
    overlaps = []
    for annotation in sorted((data_root / "300w" / "lfpw" / "trainset").glob("*.pts"))[100:125]:
        shape = parse_pts(annotation.read_bytes())
        own = match(HogDetector()(photograph(f"300w/lfpw/trainset/{annotation.stem}.jpg")), shape)
        if own is not None:
            overlaps.append(own.box.iou(expected_box(shape)))
    assert len(overlaps) >= 20
    assert np.median(overlaps) > 0.78
