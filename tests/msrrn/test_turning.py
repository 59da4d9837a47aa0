"""Turns of the head, as a smooth warp of the crop."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from msrrn.augmentation import mirror_shape
from msrrn.turning import turned
from tests.msrrn.test_landmarks import FACE

SIDE = 200
SHAPE = (0.5 + 0.2 * FACE).astype(np.float32)
NOSE, JAW_LEFT, JAW_RIGHT = 30, 0, 16
TURNS = st.floats(-0.4, 0.4)


def spot(place: NDArray[np.floating]) -> NDArray[np.uint8]:
    """(200, 200): a bright Gaussian of 2 px around a point in [0, 1]."""
    centres = (np.arange(SIDE) + 0.5) / SIDE
    across, down = (np.exp(-(((centres - at) * SIDE / 2) ** 2) / 2) for at in place)
    light: NDArray[np.uint8] = np.rint(250 * np.outer(down, across)).astype(np.uint8)
    return light


def centre_of_light(image: NDArray[np.uint8]) -> NDArray[np.float64]:
    centres = (np.arange(SIDE) + 0.5) / SIDE
    weights = image / image.sum(dtype=np.float64)
    return np.array([weights.sum(0) @ centres, weights.sum(1) @ centres])


@settings(max_examples=30)
@given(yaw=TURNS, pitch=TURNS, mark=st.sampled_from([0, 8, 16, 19, 30, 36, 45, 48, 57]))
def test_what_is_at_a_landmark_stays_at_it(yaw: float, pitch: float, mark: int) -> None:
    image, shape = turned(spot(SHAPE[mark]), SHAPE, yaw, pitch)
    np.testing.assert_allclose(centre_of_light(image), shape[mark], atol=1.0 / SIDE)


def test_no_turn_changes_nothing() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE), dtype=np.uint8)
    image, shape = turned(noise, SHAPE, 0.0, 0.0)
    np.testing.assert_array_equal(image, noise)
    np.testing.assert_allclose(shape, SHAPE, atol=1e-6)


def test_the_nose_leads_and_the_side_that_turns_away_becomes_narrow() -> None:
    right, up = (turned(spot(SHAPE[NOSE]), SHAPE, *turn)[1] for turn in ((0.3, 0.0), (0.0, 0.3)))
    centre = (SHAPE[JAW_LEFT] + SHAPE[JAW_RIGHT]) / 2
    assert right[NOSE, 0] > SHAPE[NOSE, 0] + 0.02
    assert abs(right[NOSE, 1] - SHAPE[NOSE, 1]) < 0.005
    assert up[NOSE, 1] < SHAPE[NOSE, 1] - 0.02
    assert right[JAW_RIGHT, 0] - right[NOSE, 0] < SHAPE[JAW_RIGHT, 0] - centre[0] - 0.01
    assert right[NOSE, 0] - right[JAW_LEFT, 0] > centre[0] - SHAPE[JAW_LEFT, 0] + 0.01


@settings(max_examples=10)
@given(yaw=TURNS, pitch=TURNS)
def test_a_mirrored_head_turns_the_other_way(yaw: float, pitch: float) -> None:
    mirrored = mirror_shape(np.stack([1 - SHAPE[:, 0], SHAPE[:, 1]], axis=-1))
    texture = spot(SHAPE[19]) // 2 + spot(SHAPE[54]) // 2
    image, shape = turned(texture, SHAPE, yaw, pitch)
    other, points = turned(np.ascontiguousarray(texture[:, ::-1]), mirrored, -yaw, pitch)
    expected = mirror_shape(np.stack([1 - shape[:, 0], shape[:, 1]], axis=-1))
    np.testing.assert_allclose(points, expected, atol=1e-5)
    np.testing.assert_allclose(other.astype(int), image[:, ::-1].astype(int), atol=2)


@pytest.mark.parametrize("side", [1, -1])
@pytest.mark.parametrize(("yaw", "share"), [(0.5, 0.7), (0.7, 0.45), (1.2, 0.25), (3.1, 0.0)])
def test_a_turn_that_would_fold_the_face_is_made_smaller(yaw: float, share: float, side: int) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE), dtype=np.uint8)
    image, shape = turned(noise, SHAPE, side * yaw, 0.0)
    smaller, points = turned(noise, SHAPE, share * side * yaw, 0.0)
    np.testing.assert_array_equal(image, smaller)
    np.testing.assert_allclose(shape, points, atol=1e-6)
