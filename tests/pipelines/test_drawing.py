from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from msrrn.geometry import Box
from pipelines.drawing import (
    BACKGROUND,
    BOX,
    PREDICTION,
    TRUTH,
    Colour,
    contact_sheet,
    draw_shape,
    face_side,
    face_tile,
    photo_tile,
    to_jpeg,
)

DICHROMACY = {
    "protanopia": [[0.152, 1.053, -0.205], [0.115, 0.786, 0.099], [-0.004, -0.048, 1.052]],
    "deuteranopia": [[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]],
}
"""Machado, Oliveira and Fernandes, TVCG 2009, severity 1: on linear RGB."""


def plain(height: int, width: int, colour: Colour = (40, 60, 80)) -> NDArray[np.uint8]:
    return np.full((height, width, 3), colour, dtype=np.uint8)


def spread(box: Box, seed: int = 0) -> NDArray[np.float64]:
    low, high = np.array(box.edges[:2]), np.array(box.edges[2:])
    shape: NDArray[np.float64] = low + (high - low) * np.random.default_rng(seed).random((68, 2))
    return shape


def dot(point: tuple[float, float]) -> NDArray[np.float64]:
    return np.tile(np.asarray(point, dtype=np.float64), (68, 1))


def centroid(weights: NDArray[Any]) -> NDArray[np.float64]:
    rows, columns = np.indices(weights.shape)
    total = weights.sum()
    assert total > 0
    return np.array([(columns * weights).sum() / total, (rows * weights).sum() / total])


def ink(picture: NDArray[np.uint8], before: NDArray[np.uint8]) -> NDArray[np.float64]:
    change: NDArray[np.float64] = np.abs(picture.astype(np.float64) - before).sum(axis=-1)
    return change


@given(seed=st.integers(0, 1000), scale=st.floats(0.3, 15))
@settings(max_examples=15)
def test_every_landmark_gets_ink_and_the_input_none(seed: int, scale: float) -> None:
    size = round(60 * scale)
    picture = plain(size, size)
    shape = spread(Box(5 * scale, 5 * scale, 50 * scale, 50 * scale), seed)
    drawn = draw_shape(picture, shape, TRUTH)
    columns, rows = np.rint(shape).astype(int).T
    assert (ink(drawn, picture)[rows, columns] > 0).all()
    assert np.array_equal(picture, plain(size, size))


def test_dots_move_by_less_than_a_pixel() -> None:
    picture = plain(40, 40, (0, 0, 0))
    seen = set()
    for step in range(8):
        point = (20 + step / 8, 15 + step / 16)
        drawn = draw_shape(picture, dot(point), (255, 255, 255))
        seen.add(drawn.tobytes())
        # 68 dots on one spot fill its half-covered rim, so the centre is known to a part of a pixel.
        assert centroid(ink(drawn, picture)) == pytest.approx(point, abs=0.4)
    assert len(seen) == 8


def test_lines_follow_the_contours() -> None:
    picture = plain(200, 200)
    shape = dot((-500.0, -500.0))
    shape[27:31] = [[100, 40], [100, 80], [100, 120], [100, 160]]
    drawn = ink(draw_shape(picture, shape), picture)
    assert (drawn[40:161, 100] > 0).all()
    assert drawn[:, :90].sum() == 0
    assert drawn[:, 110:].sum() == 0


def test_a_shape_far_outside_is_cut_off() -> None:
    picture = plain(50, 50)
    assert np.array_equal(draw_shape(picture, dot((1e12, -1e12))), picture)


@pytest.mark.parametrize("bad", [np.full((68, 2), np.nan), np.zeros((5, 2))])
def test_a_shape_that_is_none_is_refused(bad: NDArray[np.float64]) -> None:
    with pytest.raises(ValueError, match=r"\(68, 2\) and finite"):
        draw_shape(plain(9, 9), bad)


def test_a_picture_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="uint8"):
        draw_shape(np.zeros((9, 9), dtype=np.uint8), dot((1, 1)))


@given(
    centre=st.tuples(st.floats(-20, 420), st.floats(-20, 320)),
    side=st.floats(40, 900),
    offset=st.tuples(st.floats(-0.4, 0.4), st.floats(-0.4, 0.4)),
    size=st.integers(60, 220),
)
@settings(max_examples=25)
def test_a_tile_shows_the_picture_and_the_shape_at_the_same_place(
    centre: tuple[float, float], side: float, offset: tuple[float, float], size: int
) -> None:
    """Enlarged or shrunk, inside or over the edge: a square in the picture and a dot on it agree."""
    x = int(np.clip(centre[0] + offset[0] * side, 30, 369))
    y = int(np.clip(centre[1] + offset[1] * side, 30, 269))
    left, top = x - (offset[0] + 0.5) * side, y - (offset[1] + 0.5) * side
    box = Box(left, top, left + side, top + side)
    expected = np.array(offset) / face_side(box) * box.width * size + 0.5 * size - 0.5
    blank = plain(300, 400, BACKGROUND)
    marked = blank.copy()
    marked[y - 12 : y + 13, x - 12 : x + 13] = 255
    empty = face_tile(blank, box, [], size)
    seen = centroid(ink(face_tile(marked, box, [], size), empty))
    drawn = centroid(ink(face_tile(blank, box, [(dot((x, y)), PREDICTION)], size), empty))
    assert seen == pytest.approx(expected, abs=0.12)
    assert drawn == pytest.approx(expected, abs=0.42)


def test_a_face_over_the_edge_is_padded() -> None:
    tile = face_tile(plain(100, 100), Box(-30, 20, 30, 80), [(spread(Box(0, 30, 25, 70)), TRUTH)], 90)
    assert tuple(tile[0, 0]) == BACKGROUND
    assert tuple(tile[0, 89]) == (40, 60, 80)
    assert (tile == TRUTH).all(axis=-1).any()


def test_a_huge_box_costs_no_memory() -> None:
    assert face_tile(plain(20, 30), Box(-1e7, -1e7, 1e7, 1e7), [], 50).shape == (50, 50, 3)


def test_later_shapes_lie_on_top() -> None:
    shape = spread(Box(20, 20, 80, 80))
    tile = face_tile(plain(100, 100), Box(20, 20, 80, 80), [(shape, TRUTH), (shape, PREDICTION)])
    assert (tile == PREDICTION).all(axis=-1).sum() > 100
    assert not (tile == TRUTH).all(axis=-1).any()


@pytest.mark.parametrize(("height", "width"), [(300, 600), (600, 300), (30, 20), (1, 900)])
def test_a_photo_is_letterboxed_whole(height: int, width: int) -> None:
    tile = photo_tile(plain(height, width), [], 120)
    assert tile.shape == (120, 120, 3)
    shown = (tile == (40, 60, 80)).all(axis=-1)
    rows, columns = np.flatnonzero(shown.any(axis=1)), np.flatnonzero(shown.any(axis=0))
    longest = max(height, width)
    assert len(rows) == max(1, round(120 * height / longest))
    assert len(columns) == max(1, round(120 * width / longest))
    assert abs(rows[0] - (119 - rows[-1])) <= 1
    assert abs(columns[0] - (119 - columns[-1])) <= 1


def test_a_photo_carries_boxes_and_shapes() -> None:
    picture = plain(200, 400)
    untouched = picture.copy()
    box = Box(99.5, 49.5, 299.5, 149.5)
    tile = photo_tile(picture, [(box, dot((199.5, 99.5)))], 200)
    assert np.array_equal(picture, untouched)
    marks = ink(tile, photo_tile(picture, [], 200))
    rows, columns = np.nonzero(marks > 0.5 * marks.max())
    # The picture is halved, below 50 rows of letterbox: edges at 74.5, 124.5 and 49.5, 149.5.
    assert (rows.min(), rows.max()) == pytest.approx((74.5, 124.5), abs=1)
    assert (columns.min(), columns.max()) == pytest.approx((49.5, 149.5), abs=1)
    assert centroid(marks[90:110, 90:110]) == pytest.approx((9.5, 9.5), abs=0.3)
    assert marks[80:90, 60:140].sum() == 0
    assert np.ptp(tile[90, 49:51].astype(int) - BOX, axis=0).max() < 60


def test_no_tiles_still_make_a_picture() -> None:
    sheet = contact_sheet([], 4)
    assert sheet.size > 0
    assert to_jpeg(sheet)


def test_one_tile_is_itself() -> None:
    tile = np.random.default_rng(0).integers(0, 255, (20, 30, 3), dtype=np.uint8)
    assert np.array_equal(contact_sheet([tile], 4), tile)


def test_many_tiles_are_laid_out_in_order() -> None:
    tiles = [plain(10, 10, (index, 0, 0)) for index in range(7)]
    sheet = contact_sheet(tiles, 3)
    assert sheet.shape == (38, 38, 3)
    assert [int(sheet[14 * (i // 3) + 5, 14 * (i % 3) + 5, 0]) for i in range(7)] == list(range(7))
    assert (sheet[28:, 14:] == BACKGROUND).all()
    assert (sheet[10:14] == BACKGROUND).all()


def test_encodings_are_repeatable_and_readable() -> None:
    picture = face_tile(plain(80, 80), Box(10, 10, 70, 70), [(spread(Box(20, 20, 60, 60)), TRUTH)], 64)
    assert to_jpeg(picture) == to_jpeg(picture.copy())
    back = cv2.imdecode(np.frombuffer(to_jpeg(picture), dtype=np.uint8), cv2.IMREAD_COLOR_RGB)
    assert back is not None
    assert np.abs(back.astype(int) - picture).mean() < 3


@pytest.mark.parametrize("vision", [None, *DICHROMACY])
def test_truth_and_prediction_differ_for_every_eye(vision: str | None) -> None:
    matrix = np.eye(3) if vision is None else np.array(DICHROMACY[vision])
    linear = (np.array([TRUTH, PREDICTION]) / 255) ** 2.2 @ matrix.T
    seen = (np.clip(linear, 0, 1) ** (1 / 2.2)).astype(np.float32)
    lab = cv2.cvtColor(seen[None], cv2.COLOR_RGB2LAB)[0]
    assert np.linalg.norm(lab[0] - lab[1]) > 35
