import pickle
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from msrrn.geometry import Box
from pipelines.decoding import decode
from pipelines.detection import Detection, HogDetector, expected_box, match
from pipelines.sources.pts import parse_pts

Photograph = Callable[[str], NDArray[np.uint8]]


@pytest.fixture(scope="module")
def photograph(data_root: Path) -> Photograph:
    return lambda uri: decode((data_root / uri).read_bytes()).rgb


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
def test_pictures_without_a_face(size: tuple[int, int]) -> None:
    assert HogDetector()(np.full((*size, 3), 127, np.uint8)) == []


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
    several = [annotations for annotations in photos.values() if len(annotations) >= 3][:10]
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
