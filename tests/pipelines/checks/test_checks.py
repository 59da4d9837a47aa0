import ast
import csv
import re
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

import pipelines.checks
from msrrn.augmentation import mirror_shape
from msrrn.landmarks import inter_pupil
from msrrn.synthetic.anatomy import draw_anchors, draw_expression
from msrrn.synthetic.camera import Camera
from msrrn.synthetic.pose import draw_pose, landmarks_seen
from pipelines.annotation.tables import REASONS
from pipelines.checks import CHECKS, Severity
from pipelines.checks.shapes import (
    check_detection,
    check_in_picture,
    check_shape,
    near_before,
    overhang,
    same_face,
)
from pipelines.checks.shift import shifted_source, sideways_offset
from pipelines.detection import Detection, HogDetector, expected_box
from pipelines.sources.pts import parse_pts

Shape = NDArray[np.float64]


def _code(problem: object) -> str:
    return getattr(problem, "code", "")


@pytest.fixture(scope="module")
def real_shapes(data_root: Path) -> list[Shape]:
    shapes = [parse_pts(path.read_bytes()) for path in sorted((data_root / "300w").rglob("*.pts"))]
    with (data_root / "photos/video-frames/keypoints.csv").open() as file:
        shapes += [np.array(row[1:], float).reshape(68, 2) for row in list(csv.reader(file))[1:]]
    assert len(shapes) == 2012 + 402
    return shapes


def _synthetic(number: int) -> Shape:
    rng = np.random.default_rng((5, number))
    anchors = draw_anchors(rng, draw_expression(rng))
    camera = Camera(*draw_pose(rng), distance=float(rng.uniform(8, 28)), scale=float(rng.uniform(20, 120)),
                    centre=(300.0, 250.0))  # fmt: skip
    return landmarks_seen(anchors, camera).astype(np.float64)


FACES = [_synthetic(number) for number in range(60)]
faces = st.sampled_from(FACES)


def _in_order(order: list[int]) -> Callable[[Shape], Shape]:
    return lambda shape: shape[order]


def _exchanged(one: range, other: range) -> Callable[[Shape], Shape]:
    order = list(range(68))
    order[one.start : one.stop], order[other.start : other.stop] = list(other), list(one)
    return _in_order(order)


UNLIKE: dict[str, Callable[[Shape], Shape]] = {
    "off by one": _in_order([*range(1, 68), 0]),
    "off by one, the other way": _in_order([67, *range(67)]),
    "a point twice": _in_order([*range(36), *range(35, 67)]),
    "mouth for brows": _exchanged(range(17, 27), range(48, 58)),
    "eyes for each other": _exchanged(range(36, 42), range(42, 48)),
    "jaw reversed": _in_order([*range(16, -1, -1), *range(17, 68)]),
    "any order": _in_order(np.random.default_rng(0).permutation(68).tolist()),
}


def codes_said() -> set[str]:
    """The codes that readers, checks and the decoder give, as their sources have them."""
    place = {"BadAnnotation": 0, "Problem": 0, "Undecodable": 0, "Rejected": 1}
    package = Path(pipelines.checks.__file__).parents[1]
    files = [*package.glob("sources/*.py"), *package.glob("checks/*.py"), package / "decoding.py"]
    calls = [call for file in files for call in ast.walk(ast.parse(file.read_text("utf-8")))]
    said = [
        call.args[place[call.func.id]]
        for call in calls
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id in place
    ]
    return {str(code.value) for code in said if isinstance(code, ast.Constant)}


def test_every_reason_has_a_line_for_people() -> None:
    for code, check in CHECKS.items():
        assert check.code == code
        assert check.severity in get_args(Severity)
        assert check.title
        assert check.remedy
    assert {*REASONS, *codes_said()} < set(CHECKS)
    for code in ("test_split", "second_image", "ignored"):
        assert CHECKS[code].severity == "info"


@given(faces, st.floats(-np.pi, np.pi), st.floats(0.05, 50), st.floats(-1e4, 1e4), st.floats(-1e4, 1e4))
def test_a_face_passes_wherever_it_lies_and_however_it_is_turned(
    shape: Shape, roll: float, scale: float, x: float, y: float
) -> None:
    turn = scale * np.array([[np.cos(roll), -np.sin(roll)], [np.sin(roll), np.cos(roll)]])
    assert check_shape(shape @ turn.T + [x, y]) is None
    assert _code(check_shape((shape * [-1, 1]) @ turn.T + [x, y])) == "eyes_swapped"
    assert check_shape(mirror_shape(shape * [-1, 1]) @ turn.T + [x, y]) is None


@given(faces, st.sampled_from(sorted(UNLIKE)))
def test_points_in_another_order_are_no_face(shape: Shape, mistake: str) -> None:
    assert _code(check_shape(UNLIKE[mistake](shape))) == "unlike_a_face"


@given(faces, st.integers(0, 67), st.floats(1.5, 100), st.floats(-np.pi, np.pi))
def test_a_point_dragged_away_is_named(shape: Shape, point: int, far: float, angle: float) -> None:
    dragged = shape.copy()
    dragged[point] += far * inter_pupil(shape) * np.array([np.cos(angle), np.sin(angle)])
    problem = check_shape(dragged)
    assert problem is not None
    assert problem.code == "unlike_a_face"
    assert f"point {point + 1} " in problem.message


def test_x_and_y_exchanged() -> None:
    assert {_code(check_shape(shape[:, ::-1])) for shape in FACES} == {"eyes_swapped"}


def test_no_real_annotation_is_suspected(real_shapes: list[Shape]) -> None:
    assert [check_shape(shape) for shape in real_shapes if check_shape(shape)] == []


def test_mistakes_in_real_annotations_are_found(real_shapes: list[Shape]) -> None:
    some = real_shapes[::7]
    for mistake in UNLIKE.values():
        assert {_code(check_shape(mistake(shape))) for shape in some} <= {"unlike_a_face", "eyes_swapped"}
    assert {_code(check_shape(shape * [-1, 1] + [500, 0])) for shape in some} == {"eyes_swapped"}


def test_points_may_lie_a_little_outside_the_picture() -> None:
    shape = np.random.default_rng(0).uniform(0, 100, (68, 2))
    shape[0], shape[1] = (0, 0), (100, 100)
    assert overhang(shape, 101, 101) == 0
    assert overhang(shape, 100, 101) == pytest.approx(0.005)
    for moved in ([-49, 0], [0, -49], [49, 0], [0, 49]):
        assert check_in_picture(shape + moved, 101, 101) is None
    for moved in ([-52, 0], [0, -52], [52, 0], [0, 52]):
        assert _code(check_in_picture(shape + moved, 101, 101)) == "outside"


@given(faces, st.floats(0, 0.2), st.floats(0.3, 0.58), st.floats(-np.pi, np.pi))
def test_an_annotation_beside_its_face(shape: Shape, usual: float, far: float, angle: float) -> None:
    box = expected_box(shape)
    direction = box.side * np.array([np.cos(angle), np.sin(angle)])
    found = [Detection(box, 1.0)]
    assert check_detection(shape + usual * direction, found) is None
    problem = check_detection(shape + far * direction, found)
    assert problem is not None
    assert problem.code == "displaced"
    told = re.findall(r"[+-]\d+", problem.message)
    assert [float(number) for number in told] == pytest.approx(far * direction, abs=0.6)


@given(faces, st.floats(-np.pi, np.pi))
def test_other_faces_are_not_taken_for_it(shape: Shape, angle: float) -> None:
    box = expected_box(shape)
    direction = box.side * np.array([np.cos(angle), np.sin(angle)])
    near, far = (Detection(expected_box(shape + k * direction), 1.0) for k in (0.4, 0.7))
    small = Detection(expected_box((shape - shape.mean(axis=0)) / 2 + shape.mean(axis=0) + 0.4 * direction), 1.0)
    assert check_detection(shape, []) is None
    assert check_detection(shape, [far, small]) is None
    assert check_detection(shape, [near, Detection(box, 0.1)]) is None
    assert _code(check_detection(shape, [far, small, near])) == "displaced"


def test_real_faces_lie_where_they_are_found(data_root: Path) -> None:
    paths = sorted((data_root / "300w/lfpw").rglob("*.pts"))[::80]
    displaced = 0
    for path in paths:
        rgb = cv2.imread(str(path.with_suffix(".jpg")), cv2.IMREAD_COLOR_RGB)
        assert rgb is not None
        detections = HogDetector()(np.asarray(rgb, np.uint8))
        shape = parse_pts(path.read_bytes())
        assert check_detection(shape, detections) is None
        displaced += check_detection(shape + [0.4 * expected_box(shape).side, 0], detections) is not None
    assert displaced >= 0.8 * len(paths)


@given(faces, faces, st.floats(-2, 2))
def test_a_face_annotated_twice(shape: Shape, other: Shape, roll: float) -> None:
    rng = np.random.default_rng(0)
    noisy = shape + rng.normal(0, 0.05 * inter_pupil(shape), shape.shape)
    assert _code(same_face(shape, shape)) == "face_twice"
    assert _code(same_face(shape, noisy)) == "face_twice"
    assert same_face(shape, other + [3 * inter_pupil(shape), roll]) is None


def test_of_a_crowd_only_faces_that_lie_elsewhere_are_passed_over() -> None:
    rng = np.random.default_rng(0)
    crowd = np.array([FACES[number % 9] * rng.uniform(0.2, 2) + rng.uniform(0, 300, 2) for number in range(200)])
    crowd[100:120] = crowd[:20] + rng.normal(0, 1, (20, 68, 2))
    near = list(near_before(crowd))
    same = {(index, other) for index in range(200) for other in range(index) if same_face(crowd[index], crowd[other])}
    assert len(same) >= 20
    assert same <= {(index, other) for index, others in enumerate(near) for other in others}
    assert sum(map(len, near)) < 1000  # of 19,900 pairs


def test_a_constant_difference_is_told() -> None:
    shape = FACES[0]
    problem = same_face(shape + 1, shape.round(3))
    assert problem is not None
    assert "(+1.00, +1.00) px" in problem.message
    assert "counts pixels from 1" in problem.message
    problem = same_face(shape, shape + [0, 0.5])
    assert problem is not None
    assert "(+0.00, -0.50) px" in problem.message
    assert "from 1" not in problem.message


def test_an_offset_is_seen_with_its_sign() -> None:
    picture = np.full((120, 160), 200, np.uint8)
    shape = FACES[0] * 0  # only the marks below have a place in this picture
    for right, left, y in (([36, 37, 38, 39, 40, 41], [42, 43, 44, 45, 46, 47], 40), ([48], [54], 90)):
        shape[right], shape[left] = (50, y), (110, y)
    shape[[31, 32]], shape[33], shape[[34, 35]] = (72, 66), (80, 66), (88, 66)
    for x, y in ((50, 40), (110, 40), (50, 90), (110, 90), (74, 66), (86, 66)):
        cv2.circle(picture, (x, y), 4, 20, -1)
    picture = np.asarray(cv2.GaussianBlur(picture, (0, 0), 1.5), np.uint8)
    for shift in (-5.0, -1.0, 0.0, 0.5, 3.0):
        for lift in (-1.0, 0.0, 1.0):
            offset, distance = sideways_offset(picture, shape + [shift, lift])
            assert offset == pytest.approx(shift, abs=0.15)
            assert distance == pytest.approx(60)


@pytest.mark.parametrize("taste", [-0.01, 0.0, 0.01])
@pytest.mark.parametrize("shift", [-2.0, 0.0, 2.0])
def test_taste_grows_with_the_face_and_a_shift_does_not(taste: float, shift: float) -> None:
    rng = np.random.default_rng(3)
    sizes = np.exp(rng.uniform(np.log(20), np.log(170), 400))
    offsets = taste * sizes + shift + 0.02 * sizes * rng.standard_normal(400)
    offsets[:40] = rng.uniform(-20, 20, 40)
    problem = shifted_source(np.column_stack([offsets, sizes]))
    if shift == 0:
        assert problem is None
    else:
        assert problem is not None
        assert problem.code == "shifted"
        assert ("right" if shift > 0 else "left") in problem.message


def test_nothing_is_said_of_few_or_equal_faces() -> None:
    rng = np.random.default_rng(0)
    sizes = rng.uniform(20, 170, 40)
    assert shifted_source(np.column_stack([np.full(40, 3.0), sizes])) is None
    equal = np.full(400, 120.0)
    assert shifted_source(np.column_stack([2 + 2 * rng.standard_normal(400), equal])) is None
    assert shifted_source(np.empty((0, 2))) is None
    assert shifted_source(np.full((100, 2), np.nan)) is None


def test_a_source_of_real_faces_moved_by_two_pixels(data_root: Path) -> None:
    offsets: dict[int, list[Shape]] = {-2: [], 0: [], 2: []}
    for path in sorted((data_root / "300w/afw").glob("*.pts")):
        grey = cv2.imread(str(path.with_suffix(".jpg")), cv2.IMREAD_GRAYSCALE)
        assert grey is not None
        for shift, rows in offsets.items():
            rows.append(sideways_offset(np.asarray(grey, np.uint8), parse_pts(path.read_bytes()) + [shift, 0]))
    assert shifted_source(np.array(offsets[0])) is None
    for shift, side in ((-2, "left"), (2, "right")):
        problem = shifted_source(np.array(offsets[shift]))
        assert problem is not None
        assert side in problem.message
