"""The network's outputs → boxes: no model file is needed. With one, real faces."""

import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from msrrn.geometry import Box
from pipelines.detection import Detection
from pipelines.detection.blazeface import (
    CLOSE,
    IN_A_GROUP,
    MIN_SCORE,
    REACH,
    SIZE,
    UNSURE,
    BlazeFaceDetector,
    Window,
    anchors,
    around,
    decode,
    weighted_nms,
    windows,
)
from pipelines.detection.letterbox import letterbox
from pipelines.detection.yunet import to_detections


def test_anchors_are_the_centres_of_cells_row_by_row() -> None:
    centres = anchors()
    assert centres.shape == (2304, 2)
    assert centres[:2].tolist() == [[2 / 192, 2 / 192], [6 / 192, 2 / 192]]
    assert centres[48].tolist() == [2 / 192, 6 / 192]
    assert centres[-1].tolist() == [190 / 192, 190 / 192]


def test_offsets_are_decoded_from_the_anchor_in_pixels_of_the_square() -> None:
    raw = np.zeros((2, 16), np.float32)
    raw[0, :4] = 19.2, -9.6, 38.4, 96.0
    raw[1, :4] = 0, 0, 1e-3, 1e-3
    boxes, scores = decode(raw, np.array([0.0, -1e9], np.float32), np.array([[0.5, 0.5], [0.1, 0.9]]))
    assert boxes[0] == pytest.approx([0.5, 0.2, 0.7, 0.7])
    assert boxes[1] == pytest.approx([0.1, 0.9, 0.1, 0.9], abs=1e-5)
    assert scores == pytest.approx([0.5, 0.0])


def test_overlapping_boxes_become_their_weighted_mean() -> None:
    boxes = np.array([[0.1, 0.1, 0.3, 0.3], [0.6, 0.6, 0.8, 0.8], [0.12, 0.1, 0.32, 0.3]])
    merged, scores = weighted_nms(boxes, np.array([0.6, 0.7, 0.9]))
    assert scores.tolist() == [0.9, 0.7]
    assert merged[0] == pytest.approx([0.112, 0.1, 0.312, 0.3])
    assert merged[1] == pytest.approx(boxes[1])


def test_no_box_gives_none() -> None:
    merged, scores = weighted_nms(np.zeros((0, 4)), np.zeros(0))
    assert merged.shape == (0, 4)
    assert scores.shape == (0,)


@given(st.integers(0, 1000), st.integers(1, 30))
def test_merged_boxes_do_not_depend_on_the_order_and_cover_every_box(seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    corner = rng.uniform(0, 0.8, (count, 2))
    boxes = np.hstack([corner, corner + rng.uniform(0.05, 0.2, (count, 2))])
    scores = rng.permutation(np.linspace(0.6, 1.0, count))
    merged, best = weighted_nms(boxes, scores)
    order = rng.permutation(count)
    again, _ = weighted_nms(boxes[order], scores[order])
    assert merged == pytest.approx(again)
    assert (np.diff(best) < 0).all()
    assert best[0] == scores.max()
    assert (merged.min(axis=0) >= boxes.min(axis=0) - 1e-9).all()
    assert (merged.max(axis=0) <= boxes.max(axis=0) + 1e-9).all()


@given(st.integers(1, 128), st.integers(1, 128))
def test_the_letterbox_maps_the_picture_onto_its_own_part(width: int, height: int) -> None:
    square, scale, corner = letterbox(np.full((height, width, 3), 255, np.uint8), 64)
    x0, y0, x1, y1 = np.array([0, 0, width, height]) * scale + corner
    assert max(x1 - x0, y1 - y0) == pytest.approx(64)
    shown = np.zeros((64, 64), bool)
    shown[round(y0) : round(y1), round(x0) : round(x1)] = True
    assert ((square == 255).all(axis=2) == shown).all()
    assert abs((x0 + x1) / 2 - 32) < 0.51
    assert abs((y0 + y1) / 2 - 32) < 0.51


@given(st.integers(1, 500), st.integers(1, 500), st.floats(0.05, 1))
def test_the_letterbox_shows_the_picture_as_large_as_it_is_told(width: int, height: int, share: float) -> None:
    square, scale, corner = letterbox(np.full((height, width, 3), 255, np.uint8), 192, share)
    x0, y0, x1, y1 = np.array([0, 0, width, height]) * scale + corner
    assert max(x1 - x0, y1 - y0) == pytest.approx(max(1.0, 192 * share), abs=1.51)
    white = (square == 255).all(axis=2)
    assert white.any(axis=0).sum() == pytest.approx(x1 - x0, abs=1.01)
    assert white.any(axis=1).sum() == pytest.approx(y1 - y0, abs=1.01)
    assert white.sum() == white.any(axis=0).sum() * white.any(axis=1).sum()


@given(st.integers(150, 2000), st.integers(150, 2000), st.floats(0.2, 0.8), st.floats(0.2, 0.8))
def test_what_lies_in_the_letterbox_is_where_its_map_says(width: int, height: int, x: float, y: float) -> None:
    """However often the picture was halved, which leaves out less than eight columns and rows at its end."""
    side = max(width, height) / 8
    left, top = int(x * (width - side / 2)), int(y * (height - side / 2))
    right, bottom = min(width - 7, left + round(side)), min(height - 7, top + round(side))
    picture = np.zeros((height, width, 3), np.uint8)
    picture[top:bottom, left:right] = 255
    square, scale, corner = letterbox(picture, 192)
    light = square[..., 0] / 255
    middle = np.array([(left + right) / 2, (top + bottom) / 2]) * scale[:2] + corner[:2] - 0.5
    found = np.array([(light.sum(axis=0) * np.arange(192)).sum(), (light.sum(axis=1) * np.arange(192)).sum()])
    assert found / light.sum() == pytest.approx(middle, abs=0.1)


@given(st.integers(1, 6000), st.integers(1, 6000), st.floats(10, 3000))
def test_without_need_the_whole_is_viewed_alone(width: int, height: int, spare: float) -> None:
    least = max(REACH * max(width, height), REACH * SIZE)
    assert list(windows(width, height, least / REACH)) == [(0, 0, width, height)]
    assert list(windows(width, height, least / REACH + spare)) == [(0, 0, width, height)]


@given(
    st.integers(200, 6000),
    st.integers(200, 6000),
    st.floats(0.015, 0.2),
    st.floats(1, 3),
    st.floats(0, 1),
    st.floats(0, 1),
)
def test_every_face_as_large_as_asked_is_whole_in_a_view_that_reaches_it(
    width: int, height: int, min_share: float, larger: float, x: float, y: float
) -> None:
    least = max(min_share * max(width, height), REACH * SIZE)
    side = min(least * larger, width, height)
    x0, y0 = x * (width - side), y * (height - side)
    views = list(windows(width, height, least / REACH))
    assert len(set(views)) == len(views)
    assert all(0 <= a < c <= width and 0 <= b < d <= height for a, b, c, d in views)
    whole = [
        max(c - a, d - b)
        for a, b, c, d in views
        if a <= x0 + 1 and b <= y0 + 1 and x0 + side - 1 <= c and y0 + side - 1 <= d
    ]
    assert max(side / longer for longer in whole) >= min(REACH * 0.98, side / max(width, height))
    if side == least:  # a picture may be narrower than that
        assert side / min(whole) >= REACH * 0.98


@given(st.floats(-50, 450), st.floats(-50, 350), st.floats(1, 500), st.sampled_from(CLOSE))
def test_a_second_view_is_around_the_box_inside_the_picture(x: float, y: float, side: float, factor: float) -> None:
    box = Box(x, y, x + side, y + side)
    x0, y0, x1, y1 = around(box, factor, 400, 300)
    assert 0 <= x0 < x1 <= 400
    assert 0 <= y0 < y1 <= 300
    assert x1 - x0 <= factor * side + 2
    if x >= 0 and x + side <= 400:
        assert x0 <= x + 1
        assert x + side - 1 <= x1


HARDLY = (IN_A_GROUP + UNSURE) / 2
MAYBE = (UNSURE + MIN_SCORE) / 2
SIDE = 50.0


def _seen(monkeypatch: pytest.MonkeyPatch, scores: list[float], sure_from: float) -> tuple[list[float], list[int]]:
    """What is found in a row of boxes that score 0.8 in views of `sure_from` of their sides, and as said in all
    others: the scores; and the sides of all views.
    """
    boxes = [Box(x, 450.0, x + SIDE, 450.0 + SIDE) for x in 150.0 + 4 * SIDE * np.arange(len(scores))]
    sides = []

    def view(
        _: BlazeFaceDetector, rgb: np.ndarray, window: Window, threshold: float, share: float = 1.0
    ) -> list[Detection]:
        side = window[2] - window[0]
        sides.append(side)
        inside = [
            Detection(box, 0.8 if abs(side - sure_from * SIDE) <= 2 else score)
            for box, score in zip(boxes, scores, strict=True)
            if window[0] <= box.x0 and box.x1 <= window[2]
        ]
        return [item for item in inside if item.score >= threshold]

    monkeypatch.setattr(BlazeFaceDetector, "_view", view)
    faces = BlazeFaceDetector(b"")(np.zeros((950, 950, 3), np.uint8), 60.0)
    return sorted((item.score for item in faces), reverse=True), sides


@pytest.mark.parametrize(
    ("scores", "found"),
    [
        ([0.9, HARDLY], [0.9]),
        ([0.9, MAYBE], [0.9, 0.8]),
        ([0.9, 0.9, HARDLY], [0.9, 0.9, 0.8]),
        ([0.9, 0.9, IN_A_GROUP / 2], [0.9, 0.9]),
        ([HARDLY, HARDLY, HARDLY], []),
    ],
)
def test_what_is_hardly_a_face_is_looked_at_again_beside_two_that_are(
    monkeypatch: pytest.MonkeyPatch, scores: list[float], found: list[float]
) -> None:
    assert _seen(monkeypatch, scores, CLOSE[0])[0] == found


def test_what_is_unsure_from_near_is_looked_at_from_further_away(monkeypatch: pytest.MonkeyPatch) -> None:
    whole, near, further = 950, pytest.approx(CLOSE[0] * SIDE, abs=2), pytest.approx(CLOSE[1] * SIDE, abs=2)
    assert _seen(monkeypatch, [0.9, MAYBE], CLOSE[0]) == ([0.9, 0.8], [whole, near])
    assert _seen(monkeypatch, [0.9, MAYBE], CLOSE[1]) == ([0.9, 0.8], [whole, near, further])
    assert _seen(monkeypatch, [0.9, MAYBE], 0) == ([0.9], [whole, near, further])


def test_rows_of_yunet_become_boxes_of_the_picture() -> None:
    row = np.zeros((3, 15), np.float32)
    row[0, [0, 1, 2, 3, 14]] = 320, 180, 64, 64, 0.9
    row[1, [0, 1, 2, 3, 14]] = 320, 180, 0, 64, 0.9
    _, scale, corner = letterbox(np.zeros((600, 1280, 3), np.uint8), 640)
    (found,) = to_detections(row[:2], scale, corner)
    assert found.box.centre == pytest.approx((703.5, 83.5), abs=1)
    assert found.score == pytest.approx(0.9)


def test_a_detector_is_equal_to_its_pickled_copy_and_does_not_print_its_model() -> None:
    detector = BlazeFaceDetector(b"bytes of a model")
    assert pickle.loads(pickle.dumps(detector)) == detector  # noqa: S301
    assert "bytes" not in repr(detector)
