import numpy as np
import pytest
from numpy.typing import NDArray

from msrrn.augmentation import IDENTITY, AugmentationSettings, Draw, add_noise, draw, generator, mirror_shape
from msrrn.geometry import Box
from msrrn.landmarks import MIRROR
from pipelines.pyramid import crop, frame_around
from tests.msrrn.test_landmarks import FACE

SETTINGS = AugmentationSettings()


def drawn(seed: int, face: str, copy: int, settings: AugmentationSettings = SETTINGS) -> Draw:
    return draw(settings, generator(seed, face, copy), copy)


def many(settings: AugmentationSettings = SETTINGS) -> list[Draw]:
    return [drawn(0, "face", copy, settings) for copy in range(1, 1501)]


def test_draws_depend_on_seed_face_and_copy_alone() -> None:
    keys = [(seed, face, copy) for seed in (0, 1) for face in ("a", "b", "a1") for copy in (1, 2, 11)]
    forwards = {key: drawn(*key) for key in keys}
    backwards = {key: drawn(*key) for key in reversed(keys)}
    assert forwards == backwards
    assert len({value.roll for value in forwards.values()}) == len(keys)


def test_the_first_draw_is_the_same_on_every_machine() -> None:
    """Datasets are named by settings and seed: a change here must come with a new schema version."""
    first = drawn(0, "face", 1)
    assert (first.roll, first.mirrored, *first.shift, first.scale, first.noise_sigma) == pytest.approx(
        (6.928778687446, False, 0.093045792577, 0.026714279864, 1.118880679002, 0.331989574699), abs=1e-9
    )


def test_copy_0_is_the_face_itself() -> None:
    assert drawn(7, "face", 0) == IDENTITY
    box = Box(10, 20, 60, 90)
    frame = frame_around(box, 1.5, IDENTITY.shift, IDENTITY.scale, IDENTITY.roll, IDENTITY.mirrored)
    np.testing.assert_array_equal(frame.to_crop.matrix, frame_around(box, 1.5).to_crop.matrix)
    pixels = np.random.default_rng(0).integers(0, 256, (200, 200), dtype=np.uint8)
    np.testing.assert_array_equal(add_noise(pixels, IDENTITY.noise_sigma, generator(7, "face", 0)), pixels)


def test_rotation_fills_its_range_evenly() -> None:
    rolls = np.array([item.roll for item in many()])
    assert np.abs(rolls).max() <= 15
    histogram, _ = np.histogram(rolls, bins=6, range=(-15, 15))
    assert histogram.min() > 0.75 * len(rolls) / 6


def test_half_of_the_copies_are_mirrored() -> None:
    assert np.mean([item.mirrored for item in many()]) == pytest.approx(0.5, abs=0.05)
    assert all(item.mirrored for item in many(AugmentationSettings(mirror_probability=1)))
    assert not any(item.mirrored for item in many(AugmentationSettings(mirror_probability=0)))


def test_jitter_has_its_spread_and_is_cut() -> None:
    draws = many()
    jitter = np.array([[*np.array(item.shift) / 0.06, np.log(item.scale) / 0.1] for item in draws])
    np.testing.assert_allclose(np.abs(jitter).max(axis=0), 2.5)
    np.testing.assert_allclose(jitter.mean(axis=0), 0, atol=0.1)
    np.testing.assert_allclose(jitter.std(axis=0), 1, atol=0.08)
    assert np.abs(np.corrcoef(jitter.T) - np.eye(3)).max() < 0.1


def test_without_ranges_nothing_is_drawn() -> None:
    still = AugmentationSettings(noise_sigma=0, max_rotation=0, mirror_probability=0, box_shift=0, box_scale=0)
    assert drawn(0, "face", 3, still) == Draw(3, 0.0, False, (0.0, 0.0), 1.0, 0.0)


@pytest.mark.parametrize("spread", [5, 30])
def test_noise_is_in_standard_deviations_of_the_crop(spread: int) -> None:
    pixels = np.clip(np.random.default_rng(0).normal(128, spread, (200, 200)), 0, 255).astype(np.uint8)
    noisy = add_noise(pixels, 0.5, generator(0, "face", 1))
    difference = noisy.astype(float) - pixels
    assert noisy.dtype == np.uint8
    assert difference.mean() == pytest.approx(0, abs=0.3)
    # Rounding to grey values adds a variance of 1/12.
    assert difference.std() == pytest.approx(np.hypot(0.5 * pixels.std(), np.sqrt(1 / 12)), rel=0.03)
    assert abs(np.corrcoef(difference[:, 1:].ravel(), difference[:, :-1].ravel())[0, 1]) < 0.03
    np.testing.assert_array_equal(noisy, add_noise(pixels, 0.5, generator(0, "face", 1)))
    assert (noisy != add_noise(pixels, 0.5, generator(0, "face", 2))).any()


def test_noise_is_clipped_not_wrapped() -> None:
    pixels = np.zeros((200, 200), np.uint8)
    pixels[:, 100:] = 255
    noisy = add_noise(pixels, 0.5, generator(0, "face", 1))
    assert noisy[:, :100].mean() < 60
    assert noisy[:, 100:].mean() > 195
    flat = np.full((50, 50), 9, np.uint8)
    np.testing.assert_array_equal(add_noise(flat, 2.0, generator(0, "face", 1)), flat)


def test_mirroring_twice_changes_nothing() -> None:
    shapes = np.random.default_rng(0).random((3, 68, 2))
    np.testing.assert_array_equal(mirror_shape(mirror_shape(shapes)), shapes)
    assert (mirror_shape(shapes) != shapes).any()


def dot(point: NDArray[np.float64]) -> NDArray[np.uint8]:
    y, x = np.mgrid[0:320, 0:320]
    blob = 250 * np.exp(-((x - point[0]) ** 2 + (y - point[1]) ** 2) / (2 * 2.5**2))
    return np.repeat(np.rint(blob).astype(np.uint8)[..., None], 3, axis=2)


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("copy", [1, 2, 3])
def test_landmarks_follow_their_pixels(copy: int, mirrored: bool) -> None:
    shape = FACE * 60 + [158.3, 140.8]
    settings = AugmentationSettings(mirror_probability=float(mirrored), max_rotation=60)
    parameters = drawn(3, "face", copy, settings)
    frame = frame_around(
        Box.around(shape), 1.6, parameters.shift, parameters.scale, np.deg2rad(parameters.roll), parameters.mirrored
    )
    in_crop = frame.shape_to_crop(shape)
    if parameters.mirrored:
        in_crop = mirror_shape(in_crop)
    for landmark in (0, 8, 21, 30, 36, 45, 54, 65):
        pixels = crop(dot(shape[landmark]), frame).astype(float)
        rows, columns = np.indices(pixels.shape)
        found = np.array([(columns * pixels).sum(), (rows * pixels).sum()]) / pixels.sum()
        name = MIRROR[landmark] if mirrored else landmark
        np.testing.assert_allclose(found, in_crop[name] * 200 - 0.5, atol=0.1)
    # A mirrored face is a face again: its right eye lies to the left of its left eye.
    angle = np.deg2rad(-parameters.roll if mirrored else parameters.roll)
    turned_back = in_crop @ np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    assert turned_back[36:42, 0].max() < turned_back[42:48, 0].min()
