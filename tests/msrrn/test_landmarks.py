from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from msrrn.geometry import Similarity
from msrrn.landmarks import (
    CONTOURS,
    INNER_LIPS,
    JAW,
    LEFT_BROW,
    LEFT_EYE,
    LEFT_OUTER_CORNER,
    MIRROR,
    NOSE_BRIDGE,
    NOSTRILS,
    NUM_LANDMARKS,
    OUTER_LIPS,
    RIGHT_BROW,
    RIGHT_EYE,
    RIGHT_OUTER_CORNER,
    face_roll,
    inter_ocular,
    inter_pupil,
    pupils,
)
from msrrn.metrics import nrmse_io, nrmse_ip
from pipelines.sources.pts import parse_pts


def drawn_face() -> NDArray[np.float64]:
    """A frontal face (68, 2), symmetric about x = 0, drawn in the order of the scheme's figure."""
    angle = np.linspace(0, np.pi, len(JAW))
    jaw = list(zip(-np.cos(angle), 1.2 * np.sin(angle), strict=True))
    brow = [(-0.8, -0.4), (-0.65, -0.5), (-0.5, -0.52), (-0.35, -0.5), (-0.2, -0.4)]
    other_brow = [(-x, y) for x, y in reversed(brow)]
    bridge = [(0, -0.2), (0, -0.05), (0, 0.1), (0, 0.25)]
    nostrils = [(-0.2, 0.33), (-0.1, 0.37), (0, 0.4), (0.1, 0.37), (0.2, 0.33)]
    # The right eye from its outer corner over the upper lid; the left eye from its inner corner.
    right_eye = [(-0.7, -0.2), (-0.6, -0.27), (-0.4, -0.27), (-0.3, -0.2), (-0.4, -0.15), (-0.6, -0.15)]
    left_eye = [(0.3, -0.2), (0.4, -0.27), (0.6, -0.27), (0.7, -0.2), (0.6, -0.15), (0.4, -0.15)]
    upper = [(-0.4, 0.7), (-0.25, 0.62), (-0.1, 0.6), (0, 0.61), (0.1, 0.6), (0.25, 0.62), (0.4, 0.7)]
    lower = [(0.25, 0.8), (0.1, 0.84), (0, 0.85), (-0.1, 0.84), (-0.25, 0.8)]
    inner = [(-0.35, 0.7), (-0.1, 0.67), (0, 0.675), (0.1, 0.67), (0.35, 0.7)]
    inner_lower = [(0.1, 0.74), (0, 0.75), (-0.1, 0.74)]
    groups = (jaw, brow, other_brow, bridge, nostrils, right_eye, left_eye, upper, lower, inner, inner_lower)
    return np.array([point for group in groups for point in group], dtype=np.float64)


FACE = drawn_face()

similarities = st.builds(
    lambda size, angle, x, y: Similarity(
        size * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]), np.array([x, y])
    ),
    st.floats(0.05, 500),
    st.floats(-4, 4),
    st.floats(-1e3, 1e3),
    st.floats(-1e3, 1e3),
)


def test_groups_cover_each_landmark_once() -> None:
    assert sorted(index for group, _ in CONTOURS for index in group) == list(range(NUM_LANDMARKS))


def test_mirror_is_an_involution_of_all_landmarks() -> None:
    assert sorted(MIRROR) == list(range(NUM_LANDMARKS))
    assert (MIRROR[MIRROR] == np.arange(NUM_LANDMARKS)).all()


@pytest.mark.parametrize(
    ("group", "partner"),
    [
        (JAW, JAW),
        (RIGHT_BROW, LEFT_BROW),
        (NOSE_BRIDGE, NOSE_BRIDGE),
        (NOSTRILS, NOSTRILS),
        (RIGHT_EYE, LEFT_EYE),
        (OUTER_LIPS, OUTER_LIPS),
        (INNER_LIPS, INNER_LIPS),
    ],
)
def test_mirrored_groups_map_to_each_other(group: range, partner: range) -> None:
    assert sorted(MIRROR[list(group)]) == list(partner)
    assert sorted(MIRROR[list(partner)]) == list(group)


def test_a_symmetric_face_is_its_own_mirror_image() -> None:
    width = 5
    face = FACE + (width - 1) / 2
    mirrored = face * [-1, 1] + [width - 1, 0]
    np.testing.assert_allclose(mirrored[MIRROR], face, atol=1e-12)
    assert np.abs(mirrored - face).max() > 1


def test_real_faces_are_symmetric_on_average(data_root: Path) -> None:
    paths = sorted((data_root / "300w").rglob("*.pts"))[::20]
    shapes = np.stack([parse_pts(path.read_bytes()) for path in paths])
    shapes = (shapes - shapes.mean(axis=1, keepdims=True)) / inter_pupil(shapes)[:, None, None]
    mean = shapes.mean(axis=0)
    asymmetry = np.linalg.norm((mean * [-1, 1])[MIRROR] - mean, axis=-1)
    # Neighbouring landmarks are 0.1 to 0.3 pupil distances apart: a wrong pair would show.
    assert asymmetry.max() < 0.08


def test_pupils_and_distances_of_the_drawn_face() -> None:
    right, left = pupils(FACE)
    np.testing.assert_allclose(right, [-0.5, (-0.2 * 2 - 0.27 * 2 - 0.15 * 2) / 6])
    np.testing.assert_allclose(left, right * [-1, 1])
    assert inter_pupil(FACE) == pytest.approx(1.0)
    assert inter_ocular(FACE) == pytest.approx(1.4)
    assert FACE[RIGHT_OUTER_CORNER, 0] < FACE[RIGHT_EYE.stop - 3, 0] < 0 < FACE[LEFT_EYE.start, 0]
    assert FACE[LEFT_OUTER_CORNER, 0] == FACE[list(LEFT_EYE), 0].max()


def test_distances_keep_leading_axes() -> None:
    shapes = np.stack([FACE * scale for scale in (1.0, 2.0, 3.0, 4.0)]).reshape(2, 2, NUM_LANDMARKS, 2)
    np.testing.assert_allclose(inter_pupil(shapes), [[1, 2], [3, 4]])
    np.testing.assert_allclose(inter_ocular(shapes), 1.4 * np.array([[1, 2], [3, 4]]))


@given(similarities, st.integers(0, 2**32 - 1))
def test_normalised_errors_do_not_see_similarities(move: Similarity, seed: int) -> None:
    predicted = FACE + np.random.default_rng(seed).normal(0, 0.05, FACE.shape)
    assert inter_pupil(move(FACE)) == pytest.approx(move.scale * inter_pupil(FACE), rel=1e-6)
    assert inter_ocular(move(FACE)) == pytest.approx(move.scale * inter_ocular(FACE), rel=1e-6)
    assert nrmse_ip(move(predicted), move(FACE)) == pytest.approx(nrmse_ip(predicted, FACE), rel=1e-6)
    assert nrmse_io(move(predicted), move(FACE)) == pytest.approx(nrmse_io(predicted, FACE), rel=1e-6)


@pytest.mark.parametrize("degrees", [-170, -90, -1, 0, 35, 90, 179])
def test_roll_is_the_turn_of_the_pupils_clockwise(degrees: float) -> None:
    cos, sin = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    turned = drawn_face() @ np.array([[cos, sin], [-sin, cos]])
    assert face_roll(turned) == pytest.approx(degrees)
    assert face_roll(np.stack([turned, drawn_face()])) == pytest.approx([degrees, 0], abs=1e-9)
