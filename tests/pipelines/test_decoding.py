import base64
import io
import struct
import zlib
from pathlib import Path
from typing import Final

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps, PngImagePlugin

from pipelines import bombs, decoding
from pipelines.dataset.prints import photo_print
from pipelines.decoding import Limits, Photo, Undecodable, decode, decode_grey
from tests.exif import upright_to_stored
from tests.factories import picture, saved

WIDTH, HEIGHT = 96, 64


def _scene() -> NDArray[np.uint8]:
    """Smooth, different in every corner and in every channel."""
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
    return np.dstack([x * 255 / (WIDTH - 1), y * 255 / (HEIGHT - 1), (x + 2 * y) % 255]).astype(np.uint8)


SCENE = _scene()
SMOOTH = np.dstack([SCENE[..., 0], SCENE[..., 1], 255 - SCENE[..., 0]])


def _exif(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def _reduced(data: bytes, reduction: int, limits: Limits | None = None) -> Photo:
    return decode(data, limits, lambda longer: longer / reduction)


def _reason(data: bytes, limits: Limits | None = None, reduction: int = 1) -> str:
    with pytest.raises(Undecodable) as caught:
        _reduced(data, reduction, limits)
    assert caught.value.message
    return caught.value.reason


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
def test_every_orientation_is_turned_upright(kind: str, orientation: int) -> None:
    options: dict[str, dict[str, object]] = {
        "JPEG": {"quality": 98, "subsampling": 0},
        "WEBP": {"lossless": True},
        "AVIF": {"quality": 98, "subsampling": "4:4:4"},
    }
    data = picture(SMOOTH, kind, exif=_exif(orientation), **options.get(kind, {}))
    photo = decode(data)
    plain = Image.fromarray(SMOOTH)
    plain.getexif()[0x0112] = orientation
    expected = np.asarray(ImageOps.exif_transpose(plain))
    assert photo.orientation == orientation
    assert photo.stored_size == (WIDTH, HEIGHT)
    assert photo.rgb.shape == expected.shape
    assert photo.rgb.flags.c_contiguous
    np.testing.assert_allclose(photo.rgb.astype(int), expected, atol=6 if kind in {"JPEG", "AVIF"} else 0)


def test_scans_that_go_over_a_large_picture_again_and_again_are_counted() -> None:
    """Of a few kB, which kept a core for as long as there are scans."""
    small = picture(np.zeros((16, 16, 3), np.uint8), "JPEG", progressive=True)
    size, last = small.find(b"\xff\xc2") + 5, small.rfind(b"\xff\xda")
    many = small[:-2] + small[last:-2] * 400 + small[-2:]
    assert decode(many).rgb.shape == (16, 16, 3)
    large = many[:size] + struct.pack(">HH", 4000, 4000) + many[size + 4 :]
    assert _reason(large) == "too_large"
    with pytest.raises(Undecodable, match="far more scans"):
        photo_print(large)


def test_a_film_behind_a_photo_and_a_preview_in_it_have_no_scans(monkeypatch: pytest.MonkeyPatch) -> None:
    """Phones write films there, of which every 65,536th pair of bytes looks like a scan's beginning."""
    monkeypatch.setattr(bombs, "_MOST_SCANNED", 300 * 16 * 16)
    plain = picture(np.zeros((16, 16, 3), np.uint8), "JPEG")
    preview = b"\xff\xe1" + struct.pack(">H", 802) + b"\xff\xda" * 400
    with_preview = plain[:2] + preview + plain[2:]
    for data in (plain + b"\xff\xda" * 400, with_preview, with_preview + b"\xff\xda" * 400):
        assert decode(data).rgb.shape == (16, 16, 3)
        photo_print(data)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _png_with(chunks: bytes, behind: bytes = b"") -> bytes:
    data = picture(SCENE)
    return data[:33] + chunks + data[33:-12] + behind + data[-12:]


def _profile(size: int) -> bytes:
    return _chunk(b"iCCP", b"name\0\0" + zlib.compress(bytes(size)))


_ORIENTATIONS: Final = b"II*\0\x08\0\0\0" + struct.pack("<3H3L", 1, 274, 3, 600_000, 26, 0) + b"\6\0" * 600_000
"""EXIF that says it so often: Pillow makes a number of Python's of each."""


@pytest.mark.parametrize(
    "data",
    [
        b"P6\n#" + b"c" * 10_000 + b"\n1 1\n255\n" + bytes(3),
        b"P3\n1 1\n255\n" + b"#\n" * 10_001 + b"1 1 1 ",
        _png_with(_chunk(b"msRN", b"") * 5_000),
        _png_with(_chunk(b"tEXt", b"a\0eXIf"), _chunk(b"msRN", b"") * 5_000),
        _png_with(_profile(8) * 9),
        _png_with(_chunk(b"eXIf", _ORIENTATIONS)),
        picture(SCENE, "WEBP", exif=_ORIENTATIONS),
        b"\xff\xd8" + b"\xff\xe1\0\x08Exif\0\0" * 201 + picture(SCENE, "JPEG")[2:],
        b"II*\0\x08\0\0\0" + struct.pack("<3H3L", 1, 273, 4, 600_000, 0, 0) + bytes(2_400_000),
        b"MM\0*\0\0\0\x08" + struct.pack(">3H3L", 1, 273, 4, 600_000, 0, 0) + bytes(2_400_000),
        b"II+\0\x08\0\0\0" + struct.pack("<2Q2H3Q", 16, 1, 324, 1, 600_000, 0, 0) + bytes(600_000),
    ],
    ids=[
        "header",
        "comments",
        "chunks",
        "behind",
        "profiles",
        "exif",
        "webp",
        "jpeg",
        "strips",
        "big-endian",
        "bigtiff",
    ],
)
def test_what_few_bytes_make_pillow_do_for_long_is_refused(data: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Up to half a minute for a megabyte, or gigabytes of memory for a file within the limit."""
    monkeypatch.setattr(bombs.Pieces, "_left", 10_000)
    assert _reason(data) == "too_large"
    with pytest.raises(Undecodable, match="far more"):
        photo_print(data)


def test_damage_that_states_a_long_list_is_no_bomb() -> None:
    """Pillow leaves out what would lead out of the file."""
    data = picture(SCENE, "TIFF", tiffinfo={ExifTags.Base.XResolution: 72.0})
    tag = data.index(struct.pack("<HHL", ExifTags.Base.XResolution, 5, 1))
    np.testing.assert_array_equal(decode(data[: tag + 4] + b"\xff" * 4 + data[tag + 8 :]).rgb, SCENE)


def test_a_chunk_of_more_than_its_file_is_not_made_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenCV took 4 GB for a file of 200 bytes."""
    data = picture(SCENE)
    assert data[37:41] == b"IDAT"
    monkeypatch.setattr(cv2, "imdecode", lambda *_: pytest.fail("it would be"))
    np.testing.assert_array_equal(decode(data[:33] + b"\xff" * 4 + data[37:]).rgb, SCENE)


@pytest.mark.parametrize("kind", [b"iCCP", b"zTXt", b"iTXt"])
def test_a_png_with_a_profile_or_text_of_some_megabytes_is_read(kind: bytes) -> None:
    packed = zlib.compress(bytes(3_000_000))
    data = _png_with(_chunk(kind, b"a\0" + (b"\1\0\0\0" if kind == b"iTXt" else b"\0") + packed))
    np.testing.assert_array_equal(decode(data).rgb, SCENE)


def test_a_png_whose_profile_is_a_bomb_is_none() -> None:
    assert _reason(_png_with(_profile(65 << 20))) == "corrupt"


@pytest.mark.parametrize("kind", ["TIFF", "AVIF"])
def test_an_upright_picture_is_not_copied_on_its_way(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a picture as large as may be, of which the file may have 3 kB, each copy is 480 MB."""
    data = picture(SCENE, kind)
    monkeypatch.setattr(Image.Image, "copy", lambda image: 1 / 0)
    assert decode(data).rgb.shape == SCENE.shape


@pytest.mark.parametrize("orientation", range(1, 9))
def test_upright_points_map_to_the_stored_pixels(orientation: int) -> None:
    photo = decode(picture(SCENE, exif=_exif(orientation)))
    for x, y in ((0, 0), (5, 3), (40, 60)):
        stored = upright_to_stored(np.array([float(x), float(y)]), photo.orientation, photo.stored_size)
        column, row = stored.round().astype(int)
        np.testing.assert_array_equal(photo.rgb[y, x], SCENE[row, column])


@pytest.mark.parametrize("value", [0, 9, 65535])
def test_a_senseless_orientation_is_upright(value: int) -> None:
    photo = decode(picture(SCENE, exif=_exif(value)))
    assert photo.orientation == 1
    np.testing.assert_array_equal(photo.rgb, SCENE)


def test_a_png_with_exif_behind_its_pixels_is_turned() -> None:
    plain, turned = picture(SCENE), picture(SCENE, exif=_exif(6))
    at = turned.index(b"eXIf") - 4
    size = struct.unpack(">I", turned[at : at + 4])[0] + 12
    end = plain.index(b"IEND") - 4
    assert decode(plain[:end] + turned[at : at + size] + plain[end:]).orientation == 6


def test_a_png_is_turned_as_its_xmp_says() -> None:
    told = PngImagePlugin.PngInfo()
    told.add_itxt("XML:com.adobe.xmp", "<rdf:Description><tiff:Orientation>6</tiff:Orientation></rdf:Description>")
    assert decode(picture(SCENE, pnginfo=told)).orientation == 6


def test_a_png_is_turned_as_exif_in_its_text_says() -> None:
    """As ImageMagick writes it."""
    data = _exif(6).tobytes()
    told = PngImagePlugin.PngInfo()
    told.add_text("Raw profile type exif", f"\nexif\n{len(data):8}\n{data.hex()}\n", zip=True)
    assert decode(picture(SCENE, pnginfo=told)).orientation == 6


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_pixels_beside_a_broken_exif_are_sound(kind: str) -> None:
    photo = decode(picture(SCENE, kind, exif=b"Exif\0\0no table of tags"))
    assert (photo.orientation, photo.size) == (1, (WIDTH, HEIGHT))


def test_grey() -> None:
    grey = SCENE[..., 0]
    for kind in ("PNG", "TIFF", "BMP"):
        np.testing.assert_array_equal(decode(picture(grey, kind)).rgb, np.dstack([grey] * 3))
    assert np.abs(decode(picture(grey, "JPEG", quality=98)).rgb[..., 1].astype(int) - grey).max() <= 4


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_grey_of_16_bits_spans_the_whole_range(kind: str) -> None:
    grey = np.linspace(0, 65535, WIDTH * HEIGHT).reshape(HEIGHT, WIDTH).astype(np.uint16)
    rgb = decode(picture(grey, kind)).rgb
    assert (rgb.min(), rgb.max()) == (0, 255)
    assert (rgb == rgb[..., :1]).all()
    np.testing.assert_allclose(rgb[..., 0], grey / 257, atol=1)


def test_a_pgm_of_more_than_8_bits() -> None:
    grey = np.linspace(0, 4095, WIDTH * HEIGHT).astype(np.uint16)
    raw = b"P5 %d %d 4095\n" % (WIDTH, HEIGHT) + grey.astype(">u2").tobytes()
    np.testing.assert_allclose(decode(raw).rgb[..., 0].ravel(), grey / 4095 * 255, atol=1)


@pytest.mark.parametrize("white", [1, 3, 254, 256, 1000, 65534])
@pytest.mark.parametrize("bands", [1, 3])
def test_a_ppm_of_another_white_is_read_at_once(bands: int, white: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow reads and scales it pixel by pixel, to the same."""
    monkeypatch.setattr(bombs.Pieces, "_left", 100)
    kind = ">u2" if white > 255 else "u1"
    most = min(white + 100, np.iinfo(kind).max)  # what is lighter than white is white
    samples = np.random.default_rng(white).integers(0, most, (HEIGHT, WIDTH, bands), endpoint=True)
    data = b"P%d %d %d %d\n" % (5 if bands == 1 else 6, WIDTH, HEIGHT, white) + samples.astype(kind).tobytes()
    deep = bands == 1 and white > 255
    full = 65535 if deep else 255
    scaled = [min(full, round(value / white * full)) >> 8 * deep for value in samples.ravel().tolist()]
    expected = np.array(scaled, np.uint8).reshape(samples.shape)
    np.testing.assert_array_equal(decode(data).rgb, np.broadcast_to(expected, (HEIGHT, WIDTH, 3)))
    assert _reason(data[:-1]) == "corrupt"


def test_a_negative_tiff_of_16_bits_is_none() -> None:
    grey = np.linspace(0, 65535, WIDTH * HEIGHT).reshape(HEIGHT, WIDTH).astype(np.uint16)
    data = picture(65535 - grey, "TIFF", tiffinfo={ExifTags.Base.PhotometricInterpretation: 0})
    assert Image.open(io.BytesIO(data)).tag_v2[ExifTags.Base.PhotometricInterpretation] == 0  # type: ignore[attr-defined]
    np.testing.assert_allclose(decode(data).rgb[..., 0], grey / 257, atol=1)


def test_a_negative_tiff_of_16_bits_in_big_endian_order_is_none() -> None:
    grey = np.linspace(0, 65535, WIDTH * HEIGHT).astype(np.uint16)
    tiff = tiff_of((65535 - grey).astype(">u2").tobytes(), ">", {258: [16], 262: [0], 277: [1]})
    np.testing.assert_allclose(decode(tiff).rgb[..., 0].ravel(), grey / 257, atol=1)


@pytest.mark.parametrize("white_is_zero", [False, True])
@pytest.mark.parametrize("order", ["<", ">"])
def test_a_tiff_of_12_bits_is_not_dark(order: str, white_is_zero: bool) -> None:
    """Three bytes hold two samples."""
    grey = np.linspace(0, 4095, WIDTH * HEIGHT).astype(np.uint32)
    kept = 4095 - grey if white_is_zero else grey
    pairs = (kept[::2] << 12 | kept[1::2]).astype(">u4").view(np.uint8).reshape(-1, 4)[:, 1:]
    tiff = tiff_of(pairs.tobytes(), order, {258: [12], 262: [0 if white_is_zero else 1], 277: [1]})
    np.testing.assert_allclose(decode(tiff).rgb[..., 0].ravel(), grey / 4095 * 255, atol=1)


@pytest.mark.parametrize("tags", [{ExifTags.Base.NewSubfileType: 1}, {ExifTags.Base.DNGVersion: b"\1\4\0\0"}])
def test_the_preview_of_a_raw_file_is_no_picture(tags: dict[int, object]) -> None:
    with pytest.raises(Undecodable, match="raw file"):
        decode(picture(SCENE, "TIFF", tiffinfo=tags))


def test_samples_of_an_unknown_kind_are_no_damage_for_sure() -> None:
    _, encoded = cv2.imencode(".tiff", SCENE.astype(np.float32))
    with pytest.raises(Undecodable, match="kind that is not read: convert to 8 or 16 bits"):
        decode(encoded.tobytes())
    jpeg = picture(SCENE, "JPEG")
    depth = jpeg.find(b"\xff\xc0") + 4
    with pytest.raises(Undecodable, match="kind that is not read: convert to 8 bits"):
        decode(jpeg[:depth] + b"\x0c" + jpeg[depth + 1 :])


@pytest.mark.parametrize("kind", [".png", ".tiff", ".jp2"])
def test_colour_of_16_bits(kind: str) -> None:
    """White, too: Pillow makes black of it in a JPEG 2000."""
    deep = SCENE.astype(np.uint16) * 257
    _, encoded = cv2.imencode(kind, deep[..., ::-1])
    np.testing.assert_allclose(decode(encoded.tobytes()).rgb.astype(int), SCENE, atol=1)


WHITE: Final = base64.b64decode(
    "AAAADGpQICANCocKAAAAFGZ0eXBqcDIgAAAAAGpwMiAAAAAtanAyaAAAABZpaGRyAAAABAAAAAQAAg8HAAAAAAAPY29scgEAAAAA"
    "ABEAAACTanAyY/9P/1EALAAAAAAABAAAAAQAAAAAAAAAAAAAAAQAAAAEAAAAAAAAAAAAAg8BAQ8BAf9SAAwAAAABAAAEBAAB/1wA"
    "BECA/2QAJQABQ3JlYXRlZCBieSBPcGVuSlBFRyB2ZXJzaW9uIDIuNS40/5AACgAAAAAAHgAB/5PP/DAQFABcr8/8MBAUAFyv/9k="
)
"""A JPEG 2000 of 4 by 4 pixels, grey with alpha of 16 bits, which nothing here can write."""


def test_white_grey_with_alpha_of_16_bits_in_a_jpeg_2000() -> None:
    np.testing.assert_array_equal(decode(WHITE).rgb, np.full((4, 4, 3), 255))


def tiff_of(samples: bytes, order: str, tags: dict[int, list[int]]) -> bytes:
    """A TIFF of one strip, or as many of the same size as `tags` has in 279, that nothing here can write."""
    strips = len(tags.get(279, [0]))
    values = {256: [WIDTH], 257: [HEIGHT], 259: [1], 262: [2], 278: [HEIGHT], 279: [len(samples)]} | tags
    values[273] = [8 + strip * len(samples) // strips for strip in range(strips)]
    entries, lists, place = b"", b"", 8 + len(samples)
    for tag, numbers in sorted(values.items()):
        packed = struct.pack(f"{order}{len(numbers)}L", *numbers)
        if len(numbers) > 1:
            lists, packed = lists + packed, struct.pack(f"{order}L", place + len(lists))
        entries += struct.pack(f"{order}2HL", tag, 4, len(numbers)) + packed
    header = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}L", place + len(lists))
    count, end = struct.pack(f"{order}H", len(values)), struct.pack(f"{order}L", 0)
    return header + samples + lists + count + entries + end


@pytest.mark.parametrize("alpha", [1, 2])
@pytest.mark.parametrize("kept", ["by pixel", "packed", "by plane", "by packed plane"])
@pytest.mark.parametrize("colours", [1, 3])
def test_a_tiff_with_alpha(colours: int, kept: str, alpha: int) -> None:
    """Of kind 1, by which colours are multiplied, and of kind 2."""
    planes = [*SCENE.transpose(2, 0, 1)[:colours], np.full((HEIGHT, WIDTH), 255, np.uint8)]
    samples = [plane.tobytes() for plane in (planes if "plane" in kept else [np.dstack(planes)])]
    tags = {258: [8] * len(planes), 262: [2 if colours == 3 else 1], 277: [len(planes)], 338: [alpha]}
    tags |= {284: [2]} if "plane" in kept else {}
    if "packed" in kept:
        packed = [zlib.compress(each, 0) for each in samples]  # so that all are of one size
        samples, tags[259] = packed, [8]
    tiff = tiff_of(b"".join(samples), "<", tags | {279: [len(each) for each in samples]})
    np.testing.assert_array_equal(decode(tiff).rgb, SCENE if colours == 3 else np.dstack([SCENE[..., 0]] * 3))


def test_in_a_tiff_of_lab_a_is_a_colour() -> None:
    tags = {258: [8] * 3, 262: [8], 277: [3], 279: [WIDTH * HEIGHT] * 3, 284: [2]}
    planes = (np.repeat([[150], [a], [128]], WIDTH * HEIGHT, axis=1).astype(np.uint8).tobytes() for a in (100, 156))
    seen = [decode(tiff_of(each, "<", tags)).rgb for each in planes]
    assert not np.array_equal(seen[0], seen[1])


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("bands", [3, 4])
def test_a_tiff_of_16_bits_with_a_plane_for_each_colour(bands: int, order: str) -> None:
    deep = np.dstack([SCENE.astype(np.uint16) * 257, np.full((HEIGHT, WIDTH, bands - 3), 65535, np.uint16)])
    planes = deep.transpose(2, 0, 1).astype(f"{order}u2").tobytes()
    tags = {258: [16] * bands, 277: [bands], 279: [len(planes) // bands] * bands, 284: [2]}
    tiff = tiff_of(planes, order, tags | ({338: [2]} if bands == 4 else {}))
    np.testing.assert_allclose(decode(tiff).rgb.astype(int), SCENE, atol=1)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("kept", ["by pixel", "packed", "by plane"])
@pytest.mark.parametrize(("white", "alpha"), [(0, 2), (1, 2), (1, 1)])
def test_a_tiff_of_16_bits_that_is_grey_with_alpha(white: int, alpha: int, kept: str, order: str) -> None:
    grey = np.linspace(0, 65535, WIDTH * HEIGHT).astype(np.uint16)
    both = np.stack([grey, np.full_like(grey, 300)], axis=0 if kept == "by plane" else 1)
    samples = both.astype(f"{order}u2").tobytes()
    tags = {258: [16, 16], 262: [white], 277: [2], 338: [alpha]}
    if kept == "packed":
        samples, tags[259] = zlib.compress(samples), [8]
    if kept == "by plane":
        tags |= {279: [len(samples) // 2] * 2, 284: [2]}
    rgb = decode(tiff_of(samples, order, tags)).rgb
    shown = (grey >> 8 if white else 255 - (grey >> 8)).reshape(HEIGHT, WIDTH)
    np.testing.assert_array_equal(rgb, np.dstack([shown] * 3))


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
def test_alpha_is_dropped_and_the_colours_stay(kind: str) -> None:
    alpha = np.full((HEIGHT, WIDTH), 40, np.uint8)
    options = {"lossless": True} if kind == "WEBP" else {}
    data = picture(np.dstack([SCENE, alpha]), kind, **options)
    np.testing.assert_array_equal(decode(data).rgb, SCENE)


def test_grey_with_alpha_and_black_and_white() -> None:
    grey = Image.fromarray(SCENE[..., 0])
    both = grey.convert("LA")
    both.putalpha(7)
    np.testing.assert_array_equal(decode(saved(both, "PNG")).rgb[..., 2], SCENE[..., 0])
    bits = grey.point(lambda value: 255 * (value > 128)).convert("1")
    for kind in ("PNG", "TIFF"):
        np.testing.assert_array_equal(decode(saved(bits, kind)).rgb[..., 0], 255 * (SCENE[..., 0] > 128))


@pytest.mark.parametrize("kind", ["PNG", "GIF", "TIFF", "BMP"])
def test_palette(kind: str) -> None:
    indexed = Image.fromarray(SCENE).quantize(32)
    np.testing.assert_array_equal(decode(saved(indexed, kind)).rgb, np.asarray(indexed.convert("RGB")))


def test_cmyk() -> None:
    cmyk = Image.fromarray(SMOOTH).convert("CMYK")
    jpeg = saved(cmyk, "JPEG", quality=98, subsampling=0)
    np.testing.assert_allclose(decode(jpeg).rgb.astype(int), SMOOTH, atol=12)
    np.testing.assert_allclose(decode(saved(cmyk, "TIFF")).rgb.astype(int), SMOOTH, atol=2)


def test_the_first_of_several_frames() -> None:
    frames = [Image.fromarray(SCENE), Image.fromarray(255 - SCENE)]
    data = saved(frames[0], "TIFF", save_all=True, append_images=frames[1:])
    np.testing.assert_array_equal(decode(data).rgb, SCENE)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "AVIF"])
def test_the_first_frame_of_an_animation(kind: str) -> None:
    frames = [Image.new("RGB", (WIDTH, HEIGHT), colour) for colour in ("#c03040", "#2080d0", "#102030")]
    data = saved(frames[0], kind, save_all=True, append_images=frames[1:], duration=100)
    np.testing.assert_allclose(decode(data).rgb.astype(int), np.asarray(frames[0]), atol=6)


def test_a_gif_with_a_transparent_colour() -> None:
    indexed = Image.fromarray(SCENE).quantize(32)
    data = saved(indexed, "GIF", transparency=3)
    np.testing.assert_array_equal(decode(data).rgb, np.asarray(indexed.convert("RGB")))


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA", "CMYK"])
def test_avif(mode: str) -> None:
    image = Image.fromarray(SMOOTH).convert(mode)
    if mode in {"LA", "RGBA"}:
        image.putalpha(40)
    data = saved(image, "AVIF", quality=98, subsampling="4:4:4")
    expected = np.asarray(image.convert("RGB")).astype(int)
    np.testing.assert_allclose(decode(data).rgb.astype(int), expected, atol=8)


def test_broken_avif() -> None:
    data = picture(SMOOTH, "AVIF")
    for cut in (0.2, 0.5, 0.999):
        assert _reason(data[: int(len(data) * cut)]) == "truncated"
    assert _reason(data[:40] + b"\xff" * 60 + data[100:]) == "corrupt"
    assert _reason(data, Limits(max_side=WIDTH - 1)) == "too_large"


@pytest.mark.skipif(not decoding._HEIC, reason="pip install 'msrrn[heic]'")
def test_heic() -> None:
    data = picture(SMOOTH, "HEIF", quality=98, chroma=444)
    photo = decode(data)
    assert (photo.orientation, photo.stored_size, photo.size) == (1, (WIDTH, HEIGHT), (WIDTH, HEIGHT))
    np.testing.assert_allclose(photo.rgb.astype(int), SMOOTH, atol=8)
    grey = picture(SMOOTH[..., 0], "HEIF", quality=98)
    np.testing.assert_allclose(decode(grey).rgb.astype(int), np.dstack([SMOOTH[..., 0]] * 3), atol=4)
    clear = np.dstack([SMOOTH, np.full((HEIGHT, WIDTH), 40, np.uint8)])
    np.testing.assert_allclose(decode(picture(clear, "HEIF", quality=98, chroma=444)).rgb.astype(int), SMOOTH, atol=8)
    assert _reason(data, Limits(max_pixels=WIDTH * HEIGHT - 1)) == "too_large"
    for cut in (0.05, 0.5, 0.999):
        assert _reason(data[: int(len(data) * cut)]) == "truncated"
    assert _reason(data[:40] + b"\xff" * 60 + data[100:]) == "corrupt"


@pytest.mark.skipif(not decoding._HEIC, reason="pip install 'msrrn[heic]'")
@pytest.mark.parametrize("orientation", range(2, 9))
def test_heic_comes_upright(orientation: int) -> None:
    """It is turned by a property of its own, which says what its EXIF says."""
    photo = decode(picture(SMOOTH, "HEIF", quality=98, chroma=444, exif=_exif(orientation).tobytes()))
    plain = Image.fromarray(SMOOTH)
    plain.getexif()[0x0112] = orientation
    expected = np.asarray(ImageOps.exif_transpose(plain))
    assert (photo.orientation, photo.size) == (1, expected.shape[1::-1])
    np.testing.assert_allclose(photo.rgb.astype(int), expected, atol=8)


@pytest.mark.skipif(not decoding._HEIC, reason="pip install 'msrrn[heic]'")
def test_heic_of_tiles_is_whole_or_truncated() -> None:
    """As phones make it. Tiles that it lacks are left black by its decoder, which says nothing."""
    scene = np.tile(SMOOTH, (2, 2, 1))
    data = picture(scene, "HEIF", quality=98, chroma=444, tile_size=64)
    assert b"grid" in data
    for behind in (b"", bytes(9), b"a trailer that is no box"):
        np.testing.assert_allclose(decode(data + behind).rgb.astype(int), scene, atol=8)
    for lacking in (1, 10, len(data) // 4, len(data) // 2):
        assert _reason(data[:-lacking]) == "truncated"


@pytest.mark.skipif(not decoding._HEIC, reason="pip install 'msrrn[heic]'")
@pytest.mark.parametrize("mode", ["I;16", "I;12"])
def test_heic_of_more_bits(mode: str) -> None:
    import pillow_heif

    bits = int(mode[2:])
    grey = np.linspace(0, 2**bits - 1, WIDTH * HEIGHT).astype(np.uint16)
    buffer = io.BytesIO()
    pillow_heif.from_bytes(mode, (WIDTH, HEIGHT), grey.tobytes()).save(buffer, quality=-1)
    rgb = decode(buffer.getvalue()).rgb[..., 0].ravel()
    np.testing.assert_allclose(rgb, grey / (2**bits - 1) * 255, atol=2)


@pytest.mark.skipif(not decoding._HEIC, reason="pip install 'msrrn[heic]'")
def test_a_heif_of_another_compression_is_not_called_corrupt() -> None:
    with pytest.raises(Undecodable, match="a HEIF that is compressed in a way that is not read: convert") as caught:
        decode(picture(SMOOTH, "AVIF").replace(b"ftypavif", b"ftypheic"))
    assert caught.value.reason == "not_an_image"


def test_heic_without_its_extra_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "_HEIC", ())
    with pytest.raises(Undecodable, match=r"pip install 'msrrn\[heic\]'") as caught:
        decode(b"\0\0\0\x18ftypheic" + b"\0" * 100)
    assert caught.value.reason == "not_an_image"


def test_samples_without_a_defined_white_are_refused() -> None:
    for kind in (np.float32, np.int32):
        assert _reason(picture(np.ones((8, 8), kind), "TIFF")) == "not_an_image"


@pytest.mark.parametrize("start", [b"II+\0\x08\0\0\0", b"MM\0+\0\x08\0\0"])
def test_a_large_tiff_that_is_not_read_is_one(start: bytes) -> None:
    """Of more than 4 GB, or made by a program that writes such alone; where `MM` begins it, Pillow reads none."""
    with pytest.raises(Undecodable, match="kind that is not read: convert"):
        decode(start + bytes(40))


@pytest.mark.parametrize(
    ("box", "reason"),
    [
        (b"\0\0\0\x10mdat" + bytes(8), "corrupt"),
        (b"\0\0\0\x11mdat" + bytes(8), "truncated"),
        (b"\0\0\0\1mdat" + (16).to_bytes(8, "big"), "corrupt"),
        (b"\0\0\0\1mdat" + (17).to_bytes(8, "big"), "truncated"),
        (b"\0\0\0\0mdat" + bytes(8), "corrupt"),
        (b"\0\0\0\x10mdat" + bytes(12), "truncated"),
    ],
)
def test_an_avif_is_truncated_where_its_last_box_is_not_whole(box: bytes, reason: str) -> None:
    assert _reason(b"\0\0\0\x10ftypavif" + bytes(4) + box) == reason


def test_a_lack_of_memory_is_not_put_down_to_the_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    def lacking(_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(decoding, "_by_pillow", lacking)
    with pytest.raises(MemoryError):
        decode(picture(SCENE, "GIF"))


def test_bytes_that_are_no_picture() -> None:
    assert _reason(b"") == "empty"
    for junk in (b"x", b"x" * 5000, b"%PDF-1.7 ...", b"<svg xmlns='http://www.w3.org/2000/svg'/>"):
        assert _reason(junk) == "not_an_image"


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP", "BMP", "GIF"])
def test_half_a_picture_is_truncated(kind: str) -> None:
    noise = np.random.default_rng(3).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
    data = picture(noise, kind)
    assert _reason(data[: len(data) // 2]) == "truncated"


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("JPEG2000", {}),
        ("JPEG2000", {"no_jp2": True}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("TIFF", {"compression": "jpeg"}),
        ("TIFF", {"compression": "tiff_lzw", "big_tiff": True}),
    ],
)
def test_half_a_picture_of_several_parts_is_truncated(kind: str, options: dict[str, object]) -> None:
    """The directory of a TIFF may lie behind its pixels."""
    data = picture(SCENE, kind, **options)
    for kept in (60, len(data) // 4, len(data) // 2):
        assert _reason(data[:kept]) == "truncated"


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("order", ["<", ">"])
def test_a_tiff_whose_last_strips_are_missing_is_truncated(order: str) -> None:
    """Its directory lies before them."""
    strips = zlib.compress(SCENE[:32].tobytes(), 0) + zlib.compress(SCENE[32:].tobytes(), 0)
    tags = {258: [8] * 3, 259: [8], 277: [3], 278: [32], 279: [len(strips) // 2] * 2}
    whole = tiff_of(strips, order, tags)
    np.testing.assert_array_equal(decode(whole).rgb, SCENE)
    longer = {**tags, 279: [len(strips) // 2, 99_999]}
    assert _reason(tiff_of(b"\1" * len(strips), order, tags)) == "corrupt"
    assert _reason(tiff_of(b"\1" * len(strips), order, longer)) == "truncated"


@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_that_lacks_its_end_marker_alone_is_whole(progressive: bool) -> None:
    data = picture(SCENE, "JPEG", progressive=progressive)
    whole = decode(data).rgb
    for missing in (1, 2):
        np.testing.assert_array_equal(decode(data[:-missing]).rgb, whole)
    assert _reason(data[:-20]) == "truncated"


@pytest.mark.parametrize("subsampling", [0, 2])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_a_jpeg_that_ends_between_two_scans_is_truncated(mode: str, subsampling: int) -> None:
    """Those that it has are whole, and show the picture coarsely."""
    data = saved(Image.fromarray(SCENE).convert(mode), "JPEG", progressive=True, subsampling=subsampling)
    scans = [place for place in range(len(data)) if data.startswith(b"\xff\xda", place)]
    for ends in scans[1:]:
        begins = data.rfind(b"\xff\xc4", 0, ends)  # its Huffman table
        for cut in (begins, begins + 1, begins + 2, ends - 1, ends, ends + 1, ends + 2, ends + 4):
            assert _reason(data[:cut]) == "truncated"


def test_a_damaged_png_is_corrupt() -> None:
    data = bytearray(picture(SCENE))
    data[data.index(b"IDAT") + 40] ^= 0x10
    assert _reason(bytes(data)) == "corrupt"


def test_large_pictures_are_refused_by_their_header() -> None:
    wide = saved(Image.new("L", (40_000, 2)), "PNG")
    assert _reason(wide) == "too_large"
    header_only = wide[:64]
    assert _reason(header_only) == "too_large"


@pytest.mark.parametrize("side", [14_000, 31_999, 60_000])
def test_a_bomb_costs_nothing(side: int) -> None:
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    png = bytearray(picture(SCENE))
    png[16:29] = header
    png[29:33] = struct.pack(">I", zlib.crc32(b"IHDR" + header))
    with pytest.raises(Undecodable, match=r"pixels, at most 32000 a side and 120000000 in all") as caught:
        decode(bytes(png))
    assert caught.value.reason == "too_large"


def test_limits_are_settings() -> None:
    data = picture(SCENE)
    assert _reason(data, Limits(max_pixels=WIDTH * HEIGHT - 1)) == "too_large"
    assert _reason(data, Limits(max_side=WIDTH - 1)) == "too_large"
    assert _reason(data, Limits(max_bytes=len(data) - 1)) == "too_large"
    exact = Limits(max_pixels=WIDTH * HEIGHT, max_side=WIDTH, max_bytes=len(data))
    assert decode(data, exact).stored_size == (WIDTH, HEIGHT)


def _linear(width: int, height: int) -> NDArray[np.uint8]:
    """Grey values that say where they are: reduced by area averages, they stay linear."""
    y, x = np.mgrid[0:height, 0:width]
    return np.dstack([np.rint(x * 240 / width), np.rint(y * 240 / height), np.full_like(x, 90)]).astype(np.uint8)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("reduction", [2, 4, 8])
@pytest.mark.parametrize("size", [(256, 192), (251, 187), (253, 190)])
def test_a_reduced_jpeg_knows_where_its_pixels_lie(size: tuple[int, int], reduction: int, orientation: int) -> None:
    """The values of a picture are those at the same place of the picture in full: within half a pixel of it."""
    scene = _linear(*size)
    data = picture(scene, "JPEG", quality=98, subsampling=0, exif=_exif(orientation))
    full, photo = decode(data), _reduced(data, reduction)
    assert (full.reduction, photo.reduction) == (1, reduction)
    assert photo.orientation == orientation
    assert photo.stored_size == full.stored_size == size
    assert photo.size == full.size == full.rgb.shape[1::-1]
    assert photo.rgb.shape[1::-1] == tuple(-(-side // reduction) for side in photo.size)
    assert photo.rgb.flags.c_contiguous
    grey = decode_grey(data, photo, reduction)
    assert grey.shape == photo.rgb.shape[:2]
    # Pixels at the far edge may have less than their share of the picture.
    height, width = photo.rgb.shape[:2]
    at = np.stack(np.meshgrid(np.arange(2.0, width - 2), np.arange(2.0, height - 2)), axis=-1)
    where = upright_to_stored(photo.to_reduced(reduction).inverse()(at), orientation, size)
    pixels = photo.rgb[2:-2, 2:-2].astype(float)
    for axis in (0, 1):
        off = pixels[..., axis] * size[axis] / 240 - where[..., axis]
        assert abs(off.mean()) < 0.25
        assert np.abs(off).max() < 2.5  # grey values are whole numbers
    luma = pixels @ [0.299, 0.587, 0.114]
    assert np.abs(grey[2:-2, 2:-2] - luma).max() < 3


@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_grey_is_decoded_finer_than_what_was_reduced(orientation: int) -> None:
    data = picture(SMOOTH, "JPEG", quality=98, subsampling=0, exif=_exif(orientation))
    photo = _reduced(data, 8)
    for reduction in (1, 2, 4):
        grey = decode_grey(data, photo, reduction)
        colours = decode(data).rgb if reduction == 1 else _reduced(data, reduction).rgb
        assert np.abs(grey - colours @ [0.299, 0.587, 0.114]).max() < 3


@pytest.mark.parametrize(
    ("longer", "reduction"), [(96, 1), (95, 1), (49, 1), (48, 2), (25, 2), (24, 4), (12, 8), (1, 8)]
)
def test_a_jpeg_is_reduced_while_it_is_large_enough(longer: int, reduction: int) -> None:
    photo = decode(picture(SCENE, "JPEG"), enough=lambda found: longer if found == WIDTH else 0)
    assert photo.reduction == reduction
    assert max(photo.rgb.shape) == WIDTH // reduction


@pytest.mark.parametrize("width", [WIDTH, 1])
def test_what_opencv_does_not_reduce_is_told_by_its_size(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The flags by which it is asked to are of one of its versions."""
    data = picture(SMOOTH[:, :width], "JPEG")
    reduced, full = _reduced(data, 4), decode(data)
    monkeypatch.setattr(decoding, "_COLOUR", dict.fromkeys(decoding._COLOUR, cv2.IMREAD_COLOR_RGB))
    monkeypatch.setattr(decoding, "_GREY", dict.fromkeys(decoding._GREY, cv2.IMREAD_GRAYSCALE))
    photo = _reduced(data, 4)
    assert (reduced.reduction, photo.reduction, photo.size) == (4, 1, (width, HEIGHT))
    np.testing.assert_array_equal(photo.rgb, full.rgb)
    with pytest.raises(Undecodable, match="can be decoded reduced alone"):
        decode_grey(data, reduced, 2)


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "BMP", "TIFF", "GIF"])
def test_other_formats_are_decoded_in_full(kind: str) -> None:
    data = picture(SCENE, kind)
    photo = _reduced(data, 4)
    assert (photo.reduction, photo.size) == (1, (WIDTH, HEIGHT))
    np.testing.assert_array_equal(photo.rgb, decode(data).rgb)


@pytest.mark.parametrize("reduction", [2, 4, 8])
def test_what_decoding_promises_holds_at_every_reduction(reduction: int) -> None:
    noise = np.random.default_rng(3).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
    for progressive in (False, True):
        data = picture(noise, "JPEG", progressive=progressive)
        assert _reason(data[: len(data) // 2], None, reduction) == "truncated"
        assert _reason(data[:-20], None, reduction) == "truncated"
        whole = _reduced(data, reduction)
        assert whole.reduction == reduction
        for missing in (1, 2):
            lacking = _reduced(data[:-missing], reduction)
            np.testing.assert_array_equal(lacking.rgb, whole.rgb)
            np.testing.assert_array_equal(decode_grey(data[:-missing], lacking, 1), decode_grey(data, whole, 1))
    data = picture(noise, "JPEG")
    assert _reason(data, Limits(max_pixels=WIDTH * HEIGHT - 1), reduction) == "too_large"
    assert _reason(data, Limits(max_side=WIDTH - 1), reduction) == "too_large"
    assert _reason(data, Limits(max_bytes=len(data) - 1), reduction) == "too_large"
    assert _reason(b"", None, reduction) == "empty"


@pytest.mark.parametrize("reduction", [2, 4])
def test_grey_and_cmyk_jpegs_are_reduced(reduction: int) -> None:
    cmyk = saved(Image.fromarray(SMOOTH).convert("CMYK"), "JPEG", quality=98, subsampling=0)
    for data in (cmyk, picture(SMOOTH[..., 0], "JPEG", quality=98)):
        full, photo = decode(data).rgb, _reduced(data, reduction)
        assert photo.reduction == reduction
        mean = cv2.resize(full, photo.rgb.shape[1::-1], interpolation=cv2.INTER_AREA)
        assert np.abs(photo.rgb.astype(int) - mean).max() <= 8
        luma = cv2.cvtColor(full, cv2.COLOR_RGB2GRAY)
        assert np.abs(decode_grey(data, photo, 1).astype(int) - luma).max() <= 8


_SEEDS = [picture(SCENE, kind) for kind in ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "AVIF", *decoding._HEIC)]


@settings(max_examples=150)
@given(
    st.sampled_from(_SEEDS),
    st.lists(st.tuples(st.integers(0, 1 << 16), st.integers(0, 255)), max_size=6),
    st.integers(0, 400),
)
def test_whatever_the_bytes_nothing_else_is_raised(data: bytes, changes: list[tuple[int, int]], cut: int) -> None:
    damaged = bytearray(data)
    for place, value in changes:
        damaged[place % len(damaged)] = value
    try:
        photo = decode(bytes(damaged[: len(damaged) - cut]), Limits(max_pixels=1_000_000))
    except Undecodable as error:
        reason = error.reason
    else:
        reason = ""
        assert photo.rgb.ndim == 3
        assert photo.rgb.dtype == np.uint8
    assert reason in {"", "empty", "not_an_image", "truncated", "corrupt", "too_large"}


@settings(max_examples=100)
@given(
    st.booleans(),
    st.lists(st.tuples(st.integers(0, 1 << 16), st.integers(0, 255)), max_size=4),
    st.integers(0, 400),
    st.sampled_from([2, 4, 8]),
)
def test_a_damaged_jpeg_gives_the_same_reason_at_every_reduction(
    progressive: bool, changes: list[tuple[int, int]], cut: int, reduction: int
) -> None:
    damaged = bytearray(picture(SCENE, "JPEG", progressive=progressive))
    for place, value in changes:
        damaged[place % len(damaged)] = value
    data = bytes(damaged[: len(damaged) - cut])
    outcomes = []
    for factor in (1, reduction):
        try:
            photo = _reduced(data, factor, Limits(max_pixels=1_000_000))
            outcomes.append(f"{photo.size} {photo.orientation}")
        except Undecodable as error:
            outcomes.append(error.reason)
    assert outcomes[0] == outcomes[1]


def test_png_bytes_under_a_jpg_name(data_root: Path) -> None:
    frames = sorted((data_root / "photos" / "video-frames").rglob("*.jpg"))
    disguised = [data for data in (frame.read_bytes() for frame in frames) if data.startswith(b"\x89PNG")]
    assert len(disguised) == 12
    for data in disguised:
        pixels = np.asarray(Image.open(io.BytesIO(data)))
        assert pixels.shape[2] == 4
        np.testing.assert_array_equal(decode(data).rgb, pixels[..., :3])
