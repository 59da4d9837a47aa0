import io

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageOps

from msrrn.geometry import Box, CropFrame, Similarity, fit_similarity, within
from tests.exif import upright_to_stored

CORNERS = np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])

coordinates = st.floats(-5000, 5000)
angles = st.floats(-np.pi, np.pi)


def similarity(scale: float, angle: float, x: float, y: float, mirrored: bool = False) -> Similarity:
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return Similarity(scale * turn @ np.diag([-1.0 if mirrored else 1.0, 1.0]), np.array([x, y]))


rigid = st.builds(similarity, st.floats(0.01, 100), angles, coordinates, coordinates)
similarities = st.builds(similarity, st.floats(0.01, 100), angles, coordinates, coordinates, st.booleans())
clouds = st.integers(0, 2**32 - 1).map(lambda seed: np.random.default_rng(seed).uniform(-100, 100, (9, 2)))
boxes = st.builds(
    lambda x, y, width, height: Box(x, y, x + width, y + height),
    coordinates,
    coordinates,
    st.floats(0.5, 5000),
    st.floats(0.5, 5000),
)
frames = st.builds(CropFrame.square, st.tuples(coordinates, coordinates), st.floats(5, 5000), angles, st.booleans())


@given(similarities, clouds)
def test_inverse_undoes_a_similarity_from_both_sides(move: Similarity, points: NDArray[np.float64]) -> None:
    slack = 1e-9 * (1 + 1 / move.scale) * 1e4
    np.testing.assert_allclose(move.inverse()(move(points)), points, atol=slack)
    np.testing.assert_allclose(move(move.inverse()(points)), points, atol=1e-9 * (1 + move.scale) * 1e4)
    assert move.inverse().scale == pytest.approx(1 / move.scale)


@given(similarities, similarities, clouds)
def test_after_applies_the_first_map_first(
    second: Similarity, first: Similarity, points: NDArray[np.float64]
) -> None:
    np.testing.assert_allclose(second.after(first)(points), second(first(points)), rtol=1e-9, atol=1e-6)
    assert second.after(first).scale == pytest.approx(second.scale * first.scale)


@given(similarities, similarities, similarities, clouds)
def test_composition_is_associative_with_an_identity(
    a: Similarity, b: Similarity, c: Similarity, points: NDArray[np.float64]
) -> None:
    left, right = a.after(b).after(c)(points), a.after(b.after(c))(points)
    np.testing.assert_allclose(left, right, rtol=1e-9, atol=1e-3)
    for same in (a.after(Similarity.identity()), Similarity.identity().after(a)):
        np.testing.assert_array_equal(same(points), a(points))


@given(similarities, clouds)
def test_a_similarity_scales_all_distances_alike(move: Similarity, points: NDArray[np.float64]) -> None:
    before = np.linalg.norm(points[:, None] - points, axis=-1)
    after = np.linalg.norm(move(points)[:, None] - move(points), axis=-1)
    np.testing.assert_allclose(after, move.scale * before, rtol=1e-7, atol=1e-7)


def test_a_similarity_keeps_dtype_and_leading_axes() -> None:
    points = np.arange(12, dtype=np.float32).reshape(2, 3, 2)
    mapped = similarity(2.0, 0.0, 1.0, -1.0)(points)
    assert mapped.dtype == np.float32
    np.testing.assert_array_equal(mapped, points * 2 + np.array([1, -1]))


@given(rigid, clouds)
def test_fit_recovers_a_similarity(move: Similarity, points: NDArray[np.float64]) -> None:
    fitted = fit_similarity(points, move(points))
    np.testing.assert_allclose(fitted.matrix, move.matrix, atol=1e-9 * move.scale + 1e-10)
    np.testing.assert_allclose(fitted.offset, move.offset, atol=1e-6)


@given(similarities, clouds, st.integers(0, 2**32 - 1))
def test_no_other_similarity_fits_better(move: Similarity, points: NDArray[np.float64], seed: int) -> None:
    rng = np.random.default_rng(seed)
    target = move(points) + rng.normal(0, 5 * move.scale, points.shape)
    fitted = fit_similarity(points, target)
    assert np.linalg.det(fitted.matrix) > 0

    def cost(candidate: Similarity) -> float:
        return float(((candidate(points) - target) ** 2).sum())

    best = cost(fitted)
    for _ in range(20):
        a, b, x, y = rng.normal(0, [0.01, 0.01, 1.0, 1.0]) * move.scale
        matrix = fitted.matrix + np.array([[a, -b], [b, a]])
        assert cost(Similarity(matrix, fitted.offset + [x, y])) > best


def test_coinciding_points_have_no_fit() -> None:
    with pytest.raises(ValueError, match="coincide"):
        fit_similarity(np.ones((68, 2)), np.random.default_rng(0).random((68, 2)))


@given(frames, clouds)
def test_crop_and_upright_round_trip(frame: CropFrame, inside: NDArray[np.float64]) -> None:
    in_crop = inside / 100
    np.testing.assert_allclose(frame.shape_to_crop(frame.shape_to_upright(in_crop)), in_crop, atol=1e-6)
    upright = frame.shape_to_upright(in_crop)
    np.testing.assert_allclose(frame.shape_to_upright(frame.shape_to_crop(upright)), upright, atol=1e-6)


@given(frames, clouds)
def test_levels_agree_on_pixel_centres(frame: CropFrame, points: NDArray[np.float64]) -> None:
    upright = frame.shape_to_upright(points / 100)

    def pixels(size: int) -> NDArray[np.float64]:
        return np.asarray(frame.to_pixels(size)(upright))

    for size in (200, 100, 50):
        np.testing.assert_allclose(pixels(size), points / 100 * size - 0.5, atol=1e-6)
        np.testing.assert_allclose(pixels(size), (pixels(200) + 0.5) * (size / 200) - 0.5, atol=1e-6)


def test_a_crop_of_the_same_size_keeps_the_pixels_where_they_are() -> None:
    frame = CropFrame.square((99.5, 99.5), 200)
    ends = np.array([[0.0, 0.0], [199.0, 199.0]])
    np.testing.assert_allclose(frame.to_pixels(200)(ends), ends, atol=1e-12)
    # The first pixel of the half-size level covers the first two: its centre lies between them.
    np.testing.assert_allclose(frame.to_pixels(100)(ends), [[-0.25, -0.25], [99.25, 99.25]], atol=1e-12)


@given(st.tuples(coordinates, coordinates), st.floats(5, 5000))
def test_the_four_corners_and_the_side(centre: tuple[float, float], side: float) -> None:
    frame = CropFrame.square(centre, side)
    np.testing.assert_allclose(frame.shape_to_upright(CORNERS), centre + (CORNERS - 0.5) * side, atol=1e-6)
    mirrored = CropFrame.square(centre, side, mirrored=True)
    flipped = centre + (CORNERS - 0.5) * [-side, side]
    np.testing.assert_allclose(mirrored.shape_to_upright(CORNERS), flipped, atol=1e-6)
    assert frame.side == pytest.approx(side)


@given(frames)
def test_any_frame_is_a_square_of_its_side_around_its_centre(frame: CropFrame) -> None:
    upright = frame.shape_to_upright(CORNERS)
    edges = np.linalg.norm(upright[[1, 3, 2, 0]] - upright[[0, 1, 3, 2]], axis=-1)
    np.testing.assert_allclose(edges, frame.side, rtol=1e-6)
    np.testing.assert_allclose(upright.mean(axis=0), frame.shape_to_upright(np.array([0.5, 0.5])), atol=1e-6)


def test_a_positive_roll_turns_the_content_clockwise_and_the_mirror_comes_after() -> None:
    right_of_centre, below_centre = np.array([110.0, 50.0]), np.array([100.0, 60.0])
    quarter = CropFrame.square((100, 50), 40, roll=np.pi / 2)
    np.testing.assert_allclose(quarter.shape_to_crop(right_of_centre), [0.5, 0.75])
    np.testing.assert_allclose(quarter.shape_to_crop(below_centre), [0.25, 0.5])
    mirrored = CropFrame.square((100, 50), 40, roll=np.pi / 2, mirrored=True)
    np.testing.assert_allclose(mirrored.shape_to_crop(right_of_centre), [0.5, 0.75])
    np.testing.assert_allclose(mirrored.shape_to_crop(below_centre), [0.75, 0.5])


@given(frames, clouds)
def test_a_mirrored_frame_shows_the_crop_flipped(frame: CropFrame, points: NDArray[np.float64]) -> None:
    centre = frame.shape_to_upright(np.array([0.5, 0.5]))
    turn = frame.to_crop.matrix / frame.to_crop.scale
    assume(np.linalg.det(turn) > 0)
    roll = float(np.arctan2(turn[1, 0], turn[0, 0]))
    mirrored = CropFrame.square((float(centre[0]), float(centre[1])), frame.side, roll, mirrored=True)
    upright = frame.shape_to_upright(points / 100)
    np.testing.assert_allclose(mirrored.shape_to_crop(upright), points / 100 * [-1, 1] + [1, 0], atol=1e-6)


@given(boxes, st.floats(0.01, 20))
def test_a_box_scales_with_its_picture(box: Box, factor: float) -> None:
    scaled = box.scaled(factor)
    assert scaled.width == pytest.approx(box.width * factor, rel=1e-6, abs=1e-9)
    assert scaled.height == pytest.approx(box.height * factor, rel=1e-6, abs=1e-9)
    assert scaled.side == pytest.approx(box.side * factor, rel=1e-6)
    assert scaled.scaled(1 / factor).edges == pytest.approx(box.edges, abs=1e-6)


def test_a_box_around_the_whole_picture_stays_around_it() -> None:
    assert Box(-0.5, -0.5, 639.5, 479.5).scaled(0.25).edges == (-0.5, -0.5, 159.5, 119.5)


@given(boxes, boxes, st.floats(0.1, 10))
def test_iou(a: Box, b: Box, factor: float) -> None:
    assert 0 <= a.iou(b) <= 1
    assert a.iou(b) == b.iou(a)
    assert a.iou(a) == pytest.approx(1)
    assert a.scaled(factor).iou(b.scaled(factor)) == pytest.approx(a.iou(b), abs=1e-6)


def test_iou_by_hand() -> None:
    box = Box(0, 0, 2, 2)
    assert box.iou(Box(1, 0, 3, 2)) == pytest.approx(1 / 3)
    assert box.iou(Box(0, 0, 1, 1)) == pytest.approx(1 / 4)
    assert box.iou(Box(2, 0, 4, 2)) == 0
    assert box.iou(Box(5, 5, 6, 6)) == 0


@given(boxes)
def test_area_centre_and_side(box: Box) -> None:
    assert box.area == pytest.approx(box.width * box.height)
    assert box.side**2 == pytest.approx(box.area)
    np.testing.assert_allclose(box.centre, np.reshape(box.edges, (2, 2)).mean(axis=0))


@given(clouds)
def test_the_tight_box_touches_the_shape_on_all_sides(points: NDArray[np.float64]) -> None:
    box = Box.around(points)
    assert (box.x0, box.y0) == tuple(points.min(axis=0))
    assert (box.x1, box.y1) == tuple(points.max(axis=0))


@pytest.mark.parametrize("edges", [(0, 0, 0, 1), (0, 0, 1, 0), (1, 0, 0, 1)])
def test_empty_boxes_are_refused(edges: tuple[float, float, float, float]) -> None:
    with pytest.raises(ValueError, match="empty"):
        Box(*edges)


@pytest.mark.parametrize("edge", [float("nan"), float("inf"), 1e200])
def test_boxes_that_no_picture_has_are_refused(edge: float) -> None:
    with pytest.raises(ValueError, match="edges must be finite"):
        Box(0, 0, edge, 1)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_upright_points_find_their_stored_pixels_as_pillow_turns_them(orientation: int) -> None:
    stored = np.arange(5 * 7, dtype=np.uint8).reshape(5, 7)
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = io.BytesIO()
    Image.fromarray(stored).save(file, "PNG", exif=exif)
    upright = np.asarray(ImageOps.exif_transpose(Image.open(file)))
    y, x = np.indices(upright.shape)
    mapped = upright_to_stored(np.stack([x, y], axis=-1).astype(np.float64), orientation, (7, 5))
    column, row = np.moveaxis(mapped.astype(int), -1, 0)
    np.testing.assert_array_equal(stored[row, column], upright)


@given(st.lists(st.tuples(coordinates, coordinates), min_size=1), st.integers(1, 900), st.integers(1, 900))
def test_what_lies_beyond_the_picture_comes_to_its_nearest_pixel(
    points: list[tuple[float, float]], width: int, height: int
) -> None:
    moved = within(np.array(points), (width, height))
    for (x, y), place in zip(points, moved.tolist(), strict=True):
        assert place == [min(max(x, 0), width - 1), min(max(y, 0), height - 1)]
