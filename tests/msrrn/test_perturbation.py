import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from msrrn.augmentation import mirror_shape
from msrrn.perturbation import LOG_SCALE, MOST_TURNED, ROTATION, SHIFT, Draws, draw, perturb
from msrrn.turning import turned
from tests.msrrn.test_landmarks import FACE

SIDE = 200


def draws(
    mirrored: bool = False,
    angle: float = 0.0,
    scale: float = 1.0,
    shift: tuple[float, float] = (0.0, 0.0),
    light: tuple[float, float] = (0.0, 0.0),
    blur: float = 0.0,
    hidden: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0),
    turn: tuple[float, float] = (0.0, 0.0),
) -> Draws:
    """Those of one sample; without arguments they change nothing."""
    columns = (turn, mirrored, angle, scale, shift, light, blur, hidden, 7.0)
    return Draws(*(np.array([value]) for value in columns))


def shape_of(*points: tuple[float, float]) -> NDArray[np.float32]:
    """(1, 68, 2): the given landmarks first, the others in the middle."""
    shape = np.full((1, 68, 2), 0.5, np.float32)
    for mark, point in enumerate(points):
        shape[0, mark] = point
    return shape


def spot(x: float, y: float) -> NDArray[np.uint8]:
    """(1, 200, 200): a bright Gaussian of 3 px around a point in [0, 1]."""
    centres = (np.arange(SIDE) + 0.5) / SIDE
    across, down = (np.exp(-(((centres - place) * SIDE / 3) ** 2) / 2) for place in (x, y))
    light: NDArray[np.uint8] = np.rint(200 * np.outer(down, across))[None].astype(np.uint8)
    return light


def centre_of_light(image: NDArray[np.uint8]) -> NDArray[np.float64]:
    centres = (np.arange(SIDE) + 0.5) / SIDE
    weights = image[0] / image.sum(dtype=np.float64)
    return np.array([weights.sum(0) @ centres, weights.sum(1) @ centres])


def test_draws_that_change_nothing_change_nothing() -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (1, SIDE, SIDE), dtype=np.uint8)
    shape = rng.random((1, 68, 2)).astype(np.float32)
    same, points = perturb(image, shape, draws())
    np.testing.assert_array_equal(same, image)
    np.testing.assert_allclose(points, shape, atol=1e-6)


@settings(max_examples=25)
@given(
    mirrored=st.booleans(),
    angle=st.floats(-0.5, 0.5),
    scale=st.floats(0.8, 1.25),
    x=st.floats(-0.08, 0.08),
    y=st.floats(-0.08, 0.08),
    blur=st.floats(0, 0.01),
)
def test_what_is_at_a_landmark_stays_at_it(
    mirrored: bool, angle: float, scale: float, x: float, y: float, blur: float
) -> None:
    # The tip of the nose, which mirrors into itself.
    shape = np.full((1, 68, 2), 0.5, np.float32)
    shape[0, 30] = (0.6, 0.42)
    image, points = perturb(spot(0.6, 0.42), shape, draws(mirrored, angle, scale, (x, y), blur=blur))
    np.testing.assert_allclose(centre_of_light(image), points[0, 30], atol=0.15 / SIDE)


def test_a_mirrored_face_has_its_landmarks_in_their_order() -> None:
    shape = np.random.default_rng(1).random((1, 68, 2)).astype(np.float32)
    image = spot(0.3, 0.7)
    mirrored, points = perturb(image, shape, draws(mirrored=True))
    np.testing.assert_array_equal(mirrored, image[:, :, ::-1])
    np.testing.assert_allclose(points, mirror_shape(shape * (-1, 1) + (1, 0)), atol=1e-6)


def test_a_turn_goes_from_x_towards_y() -> None:
    _, shape = perturb(np.zeros((1, SIDE, SIDE), np.uint8), shape_of((0.9, 0.5)), draws(angle=np.pi / 2))
    np.testing.assert_allclose(shape[0, 0], (0.5, 0.9), atol=1e-6)


def test_light_blur_and_a_rectangle() -> None:
    grey = np.full((1, SIDE, SIDE), 100, np.uint8)
    lit, _ = perturb(grey, shape_of(), draws(light=(0.5, 0.0)))
    assert lit[0, 0, 0] == pytest.approx(50, abs=1)
    assert lit[0, 0, -1] == pytest.approx(150, abs=1)
    hidden, _ = perturb(grey, shape_of(), draws(hidden=(0.25, 0.5, 0.75, 0.6)))
    expected = grey.copy()
    expected[0, 100:120, 50:150] = 7
    np.testing.assert_array_equal(hidden, expected)
    noise = np.random.default_rng(0).integers(0, 256, (1, SIDE, SIDE), dtype=np.uint8)
    blurred, _ = perturb(noise, shape_of(), draws(blur=0.01))
    assert blurred.std() < 0.4 * noise.std()


def test_a_head_is_turned_before_all_else() -> None:
    shape = (0.5 + 0.2 * FACE[None]).astype(np.float32)
    image = np.random.default_rng(0).integers(0, 256, (1, SIDE, SIDE), dtype=np.uint8)
    before = image.copy(), shape.copy()
    found = perturb(image, shape, draws(mirrored=True, angle=0.2, turn=(0.3, -0.1)))
    head, points = turned(image[0], shape[0], 0.3, -0.1)
    for one, other in zip(found, perturb(head[None], points[None], draws(mirrored=True, angle=0.2)), strict=True):
        np.testing.assert_array_equal(one, other)
    assert np.abs(points - shape[0]).max() > 0.02
    for one, other in zip((image, shape), before, strict=True):
        np.testing.assert_array_equal(one, other)


def test_draws_follow_from_the_generator_and_stay_in_bounds() -> None:
    first, second = (draw(512, np.random.default_rng(3)) for _ in range(2))
    for one, other, part in zip(first, second, first.rows(slice(8, 16)), strict=True):
        np.testing.assert_array_equal(one, other)
        np.testing.assert_array_equal(one[8:16], part)
    assert np.abs(first.angle).max() <= np.deg2rad(ROTATION)
    assert np.abs(first.turn).max() <= np.deg2rad(MOST_TURNED)
    assert np.abs(first.shift).max() == 2.5 * SHIFT
    assert np.abs(np.log(first.scale)).max() == pytest.approx(2.5 * LOG_SCALE)
    assert 0.5 < first.turn.any(axis=1).mean() < 0.7
    assert 0.4 < first.mirrored.mean() < 0.6
    assert 0.25 < (first.hidden[:, 2] > first.hidden[:, 0]).mean() < 0.55


def test_what_is_drawn_and_done_stays_what_it_is() -> None:
    """Other perturbations make other models: raise RECIPE in pipelines.training.train with them."""
    images = np.random.default_rng(0).integers(0, 256, (8, 50, 50), dtype=np.uint8)
    shapes = np.random.default_rng(1).random((8, 68, 2)).astype(np.float32)
    perturbed, moved = perturb(images, shapes, draw(8, np.random.default_rng(2)))
    assert [round(value) for value in perturbed.mean(axis=(1, 2))] == [124, 127, 126, 126, 127, 127, 124, 126]
    np.testing.assert_allclose(moved[:3, 0, 0], [0.3304, 0.5484, 0.5525], atol=1e-4)


def test_half_as_strong_draws_are_half_of_the_whole() -> None:
    whole, half = (draw(512, np.random.default_rng(3), strength) for strength in (1.0, 0.5))
    for column in ("angle", "shift", "light"):
        np.testing.assert_allclose(2 * getattr(half, column), getattr(whole, column))
    np.testing.assert_allclose(half.scale**2, whole.scale)
    hidden = [draws.hidden[:, 2] > draws.hidden[:, 0] for draws in (whole, half)]
    heads = [draws.turn.any(axis=1) for draws in (whole, half)]
    np.testing.assert_allclose(2 * half.turn[heads[1]], whole.turn[heads[1]])
    for of_whole, of_half in ((whole.blur > 0, half.blur > 0), hidden, heads):
        assert 0.3 < of_half.sum() / of_whole.sum() < 0.7
