"""What is seen in a picture: the same faces however it was stored, turned, or reduced on the way."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from msrrn.geometry import Box, CropFrame
from pipelines.annotation.looking import TURNS, Look, View, look, turned_back
from pipelines.decoding import Undecodable, decode
from pipelines.detection import Detection, HogDetector
from pipelines.pyramid import crop, sharpness
from pipelines.settings import AnnotateSettings
from tests.factories import picture
from tests.squares import Squares

MARGIN = 1.5


FIND = Squares(upright=True)
"""Finds what `drawn` draws, upright, and scores it by its brightness."""


def drawn(width: int, height: int, masks: Sequence[tuple[int, int, int, int]]) -> NDArray[np.uint8]:
    """Masks (x, y, side, brightness) on black: bright above, dark below, a little darker to the right."""
    grey = np.zeros((height, width), np.uint8)
    for x, y, side, brightness in masks:
        grey[y : y + side, x : x + side] = brightness
        grey[y + side // 2 : y + side, x : x + side] = brightness * 0.6
        grey[y : y + side // 2, x + side * 3 // 4 : x + side] = brightness * 0.9
    return np.repeat(grey[..., None], 3, axis=2)


def view(seen: Look) -> View:
    """The only one."""
    (only,) = seen.views
    return only


def boxes(seen: Look) -> list[tuple[float, float, float, float]]:
    return [face.detection.box.edges for found in seen.views for face in found.faces]


def mask_box(x: int, y: int, side: int) -> tuple[float, float, float, float]:
    return x - 0.5, y - 0.5, x + side - 0.5, y + side - 0.5


MASKS = ((30, 40, 60, 250), (150, 20, 80, 200), (140, 130, 30, 220))


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({"min_face": 0.05}, [1, 0, 2]),
        ({"min_face": 0.11}, [1, 0]),
        ({"min_face": 60}, [1, 0]),
        ({"min_face": 61}, [1]),
        ({"min_face": 1}, [1, 0, 2]),
        ({"min_face": 0.05, "max_faces": 2}, [1, 0]),
        ({"min_face": 0.05, "min_score": 220}, [0, 2]),
        ({"min_face": 0.05, "min_score": 210, "max_faces": 1}, [0]),
        ({"min_face": 0.05, "min_score": 251}, []),
    ],
)
def test_faces_are_kept_by_size_number_and_score(options: dict[str, float], kept: list[int]) -> None:
    seen = look(picture(drawn(300, 200, MASKS)), FIND, AnnotateSettings.model_validate(options), MARGIN)
    assert (seen.width, seen.height, seen.orientation) == (300, 200, 1)
    assert [found.turned for found in seen.views] == [0][: len(kept)]
    assert boxes(seen) == [mask_box(*MASKS[index][:3]) for index in kept]


@pytest.mark.parametrize("turned", [0, 90, 180, 270])
def test_a_picture_that_lies_on_its_side_gives_the_same_faces(turned: int) -> None:
    upright = drawn(300, 200, MASKS)
    settings = AnnotateSettings(min_face=0.05)
    reference = view(look(picture(upright), FIND, settings, MARGIN, TURNS))
    lying = np.ascontiguousarray(np.rot90(upright, turned // 90))
    seen = look(picture(lying), FIND, settings, MARGIN, TURNS)
    assert (seen.height, seen.width) == lying.shape[:2]
    assert view(seen).turned == turned
    assert len(view(seen).faces) == 3
    for face, expected in zip(view(seen).faces, reference.faces, strict=True):
        back = turned_back(expected.detection.box, turned, seen.width, seen.height)
        assert back == face.detection.box
        assert np.abs(face.crop.astype(int) - expected.crop).max() <= 1
        corner = face.frame.shape_to_upright(np.array([0.0, 0.0]))
        assert corner == pytest.approx(_lying(expected.frame.shape_to_upright(np.array([0.0, 0.0])), turned))
    assert bool(look(picture(lying), FIND, settings, MARGIN).views) == (turned == 0)


def _lying(point: NDArray[np.floating], turned: int) -> tuple[float, float]:
    """A point of the picture (300, 200) after that was turned anticlockwise."""
    x, y = point
    return {0: (x, y), 90: (y, 299 - x), 180: (299 - x, 199 - y), 270: (199 - y, x)}[turned]


def test_other_turns_are_seen_beside_each_other_unless_there_are_faces_upright() -> None:
    upright, weaker, surer = (
        drawn(300, 200, [(20, 20, 80, 220)]),
        drawn(300, 200, [(20, 20, 80, 180)]),
        drawn(200, 300, [(10, 10, 50, 240)]),
    )
    both = np.maximum(np.rot90(weaker, 2), np.rot90(surer, 1))
    seen = look(picture(both), FIND, AnnotateSettings(), MARGIN, TURNS)
    assert [(found.turned, len(found.faces)) for found in seen.views] == [(90, 1), (180, 1)]
    everything = picture(np.maximum(both, upright))
    assert view(look(everything, FIND, AnnotateSettings(), MARGIN, TURNS)).turned == 0
    assert [found.turned for found in look(everything, FIND, AnnotateSettings(), MARGIN, TURNS[1:]).views] == [
        90,
        180,
    ]


@pytest.mark.parametrize("turned", [180, 270])
def test_faces_of_one_size_are_in_the_order_of_the_upright_image(turned: int) -> None:
    same = [(20, 20, 60, 250), (120, 30, 60, 200), (210, 100, 60, 220)]
    seen = look(picture(np.rot90(drawn(300, 200, same), turned // 90)), FIND, AnnotateSettings(), MARGIN, TURNS)
    assert view(seen).turned == turned
    assert len(boxes(seen)) == 3
    assert boxes(seen) == sorted(boxes(seen))


def test_a_picture_without_a_face_is_seen_in_no_view() -> None:
    seen = look(picture(drawn(40, 30, [])), FIND, AnnotateSettings(), MARGIN, TURNS)
    assert (seen.width, seen.height, seen.views) == (40, 30, ())


def textured(width: int, height: int, masks: Sequence[tuple[int, int, int, int]]) -> NDArray[np.uint8]:
    """`drawn`, with detail of a few pixels."""
    grain = np.random.default_rng(0).uniform(0.8, 1.0, (height // 2 + 1, width // 2 + 1)).astype(np.float32)
    fine = cv2.resize(grain, (width, height), interpolation=cv2.INTER_LINEAR)
    return (drawn(width, height, masks) * fine[..., None]).astype(np.uint8)


LARGE = ((300, 100, 420, 250), (800, 300, 120, 230), (100, 600, 200, 240))
"""Of a picture of (1203, 901), which is halved; the first's crop then has 315 px, that of the second 90."""


@pytest.mark.parametrize("orientation", range(1, 9))
def test_faces_of_a_reduced_picture_are_where_they_are_in_full(orientation: int) -> None:
    stored = _stored(textured(1203, 901, LARGE), orientation)
    exif = Image.Exif()
    exif[0x0112] = orientation
    jpeg = picture(stored, "JPEG", quality=97, subsampling=0, exif=exif)
    full = decode(jpeg).rgb
    seen = look(jpeg, FIND, AnnotateSettings(), MARGIN)
    assert (seen.width, seen.height, seen.orientation) == (1203, 901, orientation)
    assert len(view(seen).faces) == 3
    for face, mask in zip(view(seen).faces, (LARGE[0], LARGE[2], LARGE[1]), strict=True):
        assert face.detection.box.edges == pytest.approx(mask_box(*mask[:3]), abs=2)
        assert face.frame.side == pytest.approx(MARGIN * mask[2], abs=4)
        # Two grey values: a crop that had less than its resolution, or was a pixel beside, has five and more.
        assert np.abs(face.crop.astype(int) - crop(full, face.frame)).mean() < 2


class Told(Squares):
    """Finds faces of 280 px and more in pictures of 1200, wherever they are."""

    def __call__(self, rgb: NDArray[np.uint8], min_side: float | None = None) -> list[Detection]:
        sides = [280 + 7.3 * number for number in range(6)]
        boxes = [Box(80.2 + side, 90.7 + side, 80.2 + 2 * side, 90.7 + 2 * side) for side in sides]
        return [Detection(box.scaled(rgb.shape[1] / 1200), 1.0) for box in boxes]


def test_faces_of_a_reduced_picture_are_as_sharp_as_in_full() -> None:
    """Else runs would seem to see other faces than datasets of the same photos, which are cropped in full."""
    grain = np.random.default_rng(0).normal(0, 300, (900, 1200)).astype(np.float32)
    soft = np.clip(128 + cv2.GaussianBlur(grain, (0, 0), 2), 0, 255).astype(np.uint8)
    jpeg = picture(np.repeat(soft[..., None], 3, axis=2), "JPEG", quality=97)
    faces = view(look(jpeg, Told(), AnnotateSettings(), MARGIN)).faces
    full = decode(jpeg).rgb
    ratios = [sharpness(face.crop) / sharpness(crop(full, face.frame)) for face in faces]
    assert ratios == pytest.approx([1.0] * 6, abs=0.15)


def _stored(upright: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """As a camera would store it, that says how to look."""
    turns = {2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM}
    turns |= {5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE}
    turns |= {8: Image.Transpose.ROTATE_270}
    image = Image.fromarray(upright)
    return np.asarray(image.transpose(turns[orientation]) if orientation > 1 else image, np.uint8)


def test_a_large_face_of_a_picture_that_is_not_reduced_is_cropped_from_that() -> None:
    data = picture(textured(700, 600, [(50, 50, 480, 240)]))
    (face,) = view(look(data, FIND, AnnotateSettings(), MARGIN)).faces
    np.testing.assert_array_equal(face.crop, crop(decode(data).rgb, face.frame))


@dataclass(frozen=True)
class Spy(Squares):
    """Notes what it is shown, and how small a face may be in it."""

    shown: list[tuple[tuple[int, ...], float | None]] = field(default_factory=list)

    def __call__(self, rgb: NDArray[np.uint8], min_side: float | None = None) -> list[Detection]:
        self.shown.append((rgb.shape[:2], min_side))
        return super().__call__(rgb, min_side)


@pytest.mark.parametrize(
    ("min_face", "kind", "shape", "min_side"),
    [
        (0.1, "JPEG", (901, 1203), None),
        (0.005, "JPEG", (1802, 2406), None),
        (40, "JPEG", (901, 1203), 20),
        (19, "JPEG", (1802, 2406), 19),
        (0.1, "PNG", (1802, 2406), None),
    ],
)
def test_a_picture_is_reduced_as_far_as_its_smallest_face_allows(
    min_face: float, kind: str, shape: tuple[int, int], min_side: float | None
) -> None:
    spy = Spy()
    look(picture(drawn(2406, 1802, []), kind), spy, AnnotateSettings(min_face=min_face), MARGIN)
    ((shown, least),) = spy.shown
    assert shown == shape
    assert least == pytest.approx(min_side or min_face * shape[1])


def test_faces_of_a_turned_reduced_picture_are_where_they_are_in_full() -> None:
    upright = textured(1203, 901, LARGE)
    jpeg = picture(np.ascontiguousarray(np.rot90(upright)), "JPEG", quality=97, subsampling=0)
    seen = look(jpeg, FIND, AnnotateSettings(), MARGIN, TURNS)
    assert (seen.width, seen.height, view(seen).turned) == (901, 1203, 90)
    for face, mask in zip(view(seen).faces, (LARGE[0], LARGE[2], LARGE[1]), strict=True):
        expected = turned_back(Box(*mask_box(*mask[:3])), 90, 901, 1203)
        assert face.detection.box.edges == pytest.approx(expected.edges, abs=2)
        assert np.abs(face.crop.astype(int) - crop(decode(jpeg).rgb, face.frame)).mean() < 2
        x, y = mask[0] + mask[2] / 2, mask[1] + mask[2] / 2
        reference = crop(upright, CropFrame.square((x, y), MARGIN * mask[2]))
        assert np.abs(face.crop.astype(int) - reference).mean() < 12


def test_real_faces_of_a_large_photograph_are_those_of_the_small_one(data_root: Path) -> None:
    """Four times as large, it is decoded at a quarter: boxes are four times as large, crops the same."""
    data = (data_root / "300w" / "afw" / "3729198156_1.jpg").read_bytes()
    small = decode(data).rgb
    large = np.asarray(cv2.resize(small, None, fx=4, fy=4, interpolation=cv2.INTER_CUBIC), np.uint8)
    settings = AnnotateSettings(min_face=0.08)
    seen = look(picture(large, "JPEG", quality=95), HogDetector(), settings, MARGIN)
    expected = [item.box for item in HogDetector()(small, 0.08 * max(small.shape)) if item.box.side > 75]
    assert len(view(seen).faces) == len(expected) == 2
    for face, box in zip(view(seen).faces, expected, strict=True):
        assert face.detection.box.iou(box.scaled(4)) > 0.8
        assert np.abs(face.crop.astype(int) - crop(large, face.frame)).mean() < 3


def test_bytes_that_are_no_picture_say_why() -> None:
    with pytest.raises(Undecodable, match="not_an_image"):
        look(b"Dear aunt," * 9, FIND, AnnotateSettings(), MARGIN)


@given(
    st.integers(1, 200),
    st.integers(1, 200),
    st.sampled_from([0, 90, 180, 270]),
    st.integers(0, 2**32 - 1),
)
def test_boxes_of_a_turned_picture_are_brought_back(width: int, height: int, turned: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    x0, y0 = int(rng.integers(width)), int(rng.integers(height))
    x1, y1 = int(rng.integers(x0, width)), int(rng.integers(y0, height))
    rgb = np.zeros((height, width), np.uint8)
    rgb[y0 : y1 + 1, x0 : x1 + 1] = 1
    rows, columns = np.nonzero(np.rot90(rgb, -turned // 90))
    box = Box(columns.min() - 0.5, rows.min() - 0.5, columns.max() + 0.5, rows.max() + 0.5)
    assert turned_back(box, turned, width, height).edges == (x0 - 0.5, y0 - 0.5, x1 + 0.5, y1 + 0.5)
