from collections.abc import Callable

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from msrrn.geometry import Box, CropFrame
from msrrn.predictor import area_halve
from pipelines.pyramid import crop, frame_around, halve, padding, pyramid, sharpness

FRAMES = [(0.0, False), (0.0, True), (0.4, False), (-1.0, True), (3.0, False)]


def picture(height: int, width: int, grey: Callable[..., NDArray[np.float64]]) -> NDArray[np.uint8]:
    y, x = np.mgrid[0:height, 0:width].astype(np.float64)
    return np.repeat(np.rint(grey(x, y)).astype(np.uint8)[..., None], 3, axis=2)


def crop_pixels(frame: CropFrame) -> NDArray[np.float64]:
    """Where the centre of each pixel of the crop lies in the picture, (200, 200, 2)."""
    axis = (np.arange(200) + 0.5) / 200
    return np.asarray(frame.shape_to_upright(np.stack(np.meshgrid(axis, axis), axis=-1)), np.float64)


def displacement(pixels: NDArray[np.uint8], position: NDArray[np.float64], wavelength: float) -> float:
    """By how many pixels a crop of a sine picture is out of place, from the phase of its wave."""
    phase = 2 * np.pi * position.ravel() / wavelength
    basis = np.stack([np.sin(phase), np.cos(phase), np.ones_like(phase)], axis=1)
    (sine, cosine, _), *_ = np.linalg.lstsq(basis, pixels.ravel().astype(np.float64), rcond=None)
    assert np.hypot(sine, cosine) > 80, "the wave itself must be seen"
    return float(np.arctan2(cosine, sine) / (2 * np.pi) * wavelength)


@pytest.mark.parametrize(("roll", "mirrored"), FRAMES)
@pytest.mark.parametrize("side", [20, 63, 200, 333, 900])
def test_pixels_come_from_where_the_frame_says(side: int, roll: float, mirrored: bool) -> None:
    """Within 0.05 px, of the picture or of the crop, whichever is coarser, in every quarter of the crop."""
    size = int(side * 1.5) + 8
    frame = CropFrame.square((size / 2 + 0.37, size / 2 - 0.61), side, roll, mirrored)
    wavelength = max(side / 4, 12.0)
    tolerance = 0.05 * max(1.0, side / 200)
    position = crop_pixels(frame)
    for axis in (0, 1):
        wave = picture(size, size, lambda x, y, k=axis: 128 + 120 * np.sin(2 * np.pi * (x, y)[k] / wavelength))
        pixels = crop(wave, frame)
        for rows in (slice(0, 100), slice(100, 200)):
            for columns in (slice(0, 100), slice(100, 200)):
                assert abs(displacement(pixels[rows, columns], position[rows, columns, axis], wavelength)) < tolerance


@pytest.mark.parametrize("side", [25, 200, 470])
def test_a_linear_picture_stays_linear(side: int) -> None:
    size = side * 2
    slope_x, slope_y = 150 / size, 90 / size
    frame = CropFrame.square((size / 2 + 0.2, size / 2 - 0.3), side, 0.7, mirrored=True)
    position = crop_pixels(frame)
    expected = slope_x * position[..., 0] + slope_y * position[..., 1] + 5
    pixels = crop(picture(size, size, lambda x, y: slope_x * x + slope_y * y + 5), frame)
    assert np.abs(pixels - expected).max() <= 1.1  # both the picture and the crop are rounded to grey values


def test_a_crop_of_the_same_size_is_the_picture_itself() -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (260, 230, 3), dtype=np.uint8)
    rgb[..., 1] = rgb[..., 2] = rgb[..., 0]
    centre = (20 + 99.5, 30 + 99.5)
    expected = rgb[30:230, 20:220, 0]
    np.testing.assert_array_equal(crop(rgb, CropFrame.square(centre, 200)), expected)
    np.testing.assert_array_equal(crop(rgb, CropFrame.square(centre, 200, mirrored=True)), expected[:, ::-1])
    quarter = crop(rgb, CropFrame.square(centre, 200, roll=np.pi / 2))
    np.testing.assert_array_equal(quarter, np.rot90(expected, k=-1))


@pytest.mark.parametrize("factor", [2, 4])
def test_a_coarser_crop_is_the_area_average(factor: int) -> None:
    side = 200 * factor
    rgb = np.repeat(np.random.default_rng(1).integers(0, 256, (side, side, 1), dtype=np.uint8), 3, axis=2)
    pixels = crop(rgb, CropFrame.square((side / 2 - 0.5, side / 2 - 0.5), side))
    mean = rgb[..., 0].reshape(200, factor, 200, factor).mean(axis=(1, 3))
    assert np.abs(pixels - mean).max() <= 1  # rounded once for each step


@pytest.mark.parametrize(("side", "roll"), [(2000, 0.0), (1990, 0.0), (2000, 0.3), (1500, 0.0)])
def test_detail_finer_than_the_crop_becomes_grey(side: int, roll: float) -> None:
    checkerboard = picture(2000, 2000, lambda x, y: 255 * ((x + y) % 2))
    pixels = crop(checkerboard, CropFrame.square((999.5, 999.5), side, roll))[40:-40, 40:-40]
    assert np.abs(pixels - 127.5).max() <= 6


def test_grey_is_the_luma_of_the_colours() -> None:
    frame = CropFrame.square((10, 10), 12)
    for channel, luma in enumerate((0.299, 0.587, 0.114)):
        rgb = np.zeros((20, 20, 3), np.uint8)
        rgb[..., channel] = 200
        assert np.abs(crop(rgb, frame) - 200 * luma).max() <= 0.5


@pytest.mark.parametrize("side", [60, 600])
def test_outside_the_picture_its_edge_repeats(side: int) -> None:
    inner = 3 * side
    rgb = picture(inner, inner, lambda x, y: 20 + 200 * x / inner + 30 * y / inner)
    pad = 2 * side
    padded = np.pad(rgb, ((pad, pad), (pad, pad), (0, 0)), mode="edge")
    centres = [(0, side), (inner, inner), (-side, side), (inner + side, -side), (side, inner + 1.2 * side)]
    for x, y in centres:
        for roll in (0.0, 0.5):
            expected = crop(padded, CropFrame.square((x + pad, y + pad), side, roll))
            difference = crop(rgb, CropFrame.square((x, y), side, roll)).astype(int) - expected
            assert np.abs(difference).max() <= 1


@pytest.mark.parametrize("shape", [(1, 1), (1, 50), (50, 1), (3, 2)])
@pytest.mark.parametrize("centre", [(0.0, 0.0), (-1e6, 3.0), (1e6, 1e6), (4.0, -70.0)])
def test_tiny_pictures_and_far_frames_give_a_crop(shape: tuple[int, int], centre: tuple[float, float]) -> None:
    rgb = np.full((*shape, 3), 77, np.uint8)
    pixels = crop(rgb, CropFrame.square(centre, 31.0, 0.2))
    assert pixels.shape == (200, 200)
    assert pixels.dtype == np.uint8
    assert (pixels == 77).all()


@pytest.mark.parametrize("shape", [(1, 3000), (3000, 1)])
def test_a_picture_that_is_reduced_to_less_than_a_pixel_keeps_one(shape: tuple[int, int]) -> None:
    rgb = np.full((*shape, 3), 77, np.uint8)
    assert (crop(rgb, CropFrame.square((shape[1] / 2, shape[0] / 2), 3000)) == 77).all()


def test_a_crop_does_not_depend_on_memory_layout() -> None:
    rgb = np.random.default_rng(2).integers(0, 256, (90, 70, 3), dtype=np.uint8)
    frame = CropFrame.square((30, 40), 50, 0.3)
    flipped = np.ascontiguousarray(rgb[::-1, :, ::-1])[::-1, :, ::-1]
    np.testing.assert_array_equal(crop(rgb, frame), crop(flipped, frame))
    np.testing.assert_array_equal(crop(rgb, frame), crop(np.asfortranarray(rgb), frame))


@pytest.mark.parametrize("dtype", [np.float32, np.uint16])
def test_pictures_of_other_dtypes_are_refused(dtype: type[np.generic]) -> None:
    with pytest.raises(ValueError, match=f"a picture must be uint8, 0 to 255, not {np.dtype(dtype)}"):
        crop(np.ones((60, 80, 3), dtype), frame_around(Box(10, 10, 40, 40), 1.5))


def test_pictures_without_pixels_are_refused() -> None:
    with pytest.raises(ValueError, match="a picture must have pixels"):
        crop(np.ones((60, 0, 3), np.uint8), frame_around(Box(10, 10, 40, 40), 1.5))


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=30)
def test_levels_equal_those_that_the_predictor_makes(seed: int) -> None:
    rng = np.random.default_rng(seed)
    level = rng.integers(0, rng.integers(1, 257), (200, 200), dtype=np.uint8)
    levels = pyramid(level)
    torch_100 = area_halve(torch.from_numpy(level[None]))
    torch_50 = area_halve(torch_100)
    assert [array.shape for array in levels] == [(200, 200), (100, 100), (50, 50)]
    assert {array.dtype for array in levels} == {np.dtype(np.uint8)}
    np.testing.assert_array_equal(levels.level_200, level)
    np.testing.assert_array_equal(levels.level_100, torch_100[0].numpy())
    np.testing.assert_array_equal(levels.level_50, torch_50[0].numpy())


def test_halving_rounds_half_up() -> None:
    blocks = np.array([[0, 0, 1, 1], [0, 1, 0, 0], [1, 1, 255, 255], [1, 0, 255, 254]], np.uint8)
    np.testing.assert_array_equal(halve(blocks), [[0, 1], [1, 255]])


def test_the_frame_of_a_box() -> None:
    box = Box(10, 20, 110, 120)
    frame = frame_around(box, 1.5)
    assert frame.side == pytest.approx(150)
    np.testing.assert_allclose(frame.shape_to_upright(np.array([0.5, 0.5])), [60, 70])
    moved = frame_around(box, 1.5, shift=(0.1, -0.2), scale=1.2, roll=0.5, mirrored=True)
    assert moved.side == pytest.approx(180)
    np.testing.assert_allclose(moved.shape_to_upright(np.array([0.5, 0.5])), [70, 50])
    assert np.linalg.det(moved.to_crop.matrix) < 0 < np.linalg.det(frame.to_crop.matrix)
    oblong = frame_around(Box(0, 0, 50, 200), 1.0)
    assert oblong.side == pytest.approx(100)
    np.testing.assert_allclose(oblong.shape_to_upright(np.array([0.5, 0.5])), [25, 100])


def test_padding_is_the_share_outside() -> None:
    assert padding(CropFrame.square((49.5, 49.5), 100), 100, 100) == 0
    assert padding(CropFrame.square((-0.5, 49.5), 100), 100, 100) == pytest.approx(0.5)
    assert padding(CropFrame.square((-0.5, 99.5), 100), 100, 100) == pytest.approx(0.75)
    assert padding(CropFrame.square((500, 50), 100), 100, 100) == 1
    assert padding(CropFrame.square((49.5, 49.5), 200), 100, 100) == pytest.approx(0.75)
    # A square turned by 45° that touches the picture's edges with its corners' midpoints.
    assert padding(CropFrame.square((49.5, 49.5), 100, np.pi / 4), 100, 100) == pytest.approx(
        3 - 2 * np.sqrt(2), abs=0.005
    )


def test_a_blurred_crop_is_less_sharp() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (200, 200), np.uint8)
    blurred = np.asarray(cv2.GaussianBlur(noise, (0, 0), 2), np.uint8)
    assert sharpness(np.full((200, 200), 7, np.uint8)) == 0
    assert 0 < sharpness(blurred) < 0.01 * sharpness(noise)
    chequered = (10 * (np.indices((200, 200)).sum(axis=0) % 2)).astype(np.uint8)
    assert sharpness(chequered) == pytest.approx(40**2)  # each pixel is 10 off all four neighbours
