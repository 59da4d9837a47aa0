"""What Pillow does not know of TIFFs."""

import sys

from PIL import ExifTags
from PIL.TiffImagePlugin import OPEN_INFO, TiffImageFile

# Pillow has no mode for grey with alpha of 16 bits: it is opened as four bands, which are the bytes of a pixel.
OPEN_INFO.update(
    {
        (order, white, (1,), 1, (16, 16), (alpha,)): ("RGBA", "RGBA")
        for order in (b"II", b"MM")
        for white in (0, 1)
        for alpha in (0, 1, 2)
    }
)
# Nor one whose white is 0 in big-endian order, or of 12 bits, which are packed alike in either.
OPEN_INFO[b"MM", 0, (1,), 1, (16,), ()] = OPEN_INFO[b"MM", 1, (1,), 1, (16,), ()]
_12_BITS = OPEN_INFO[b"II", 1, (1,), 1, (12,), ()]
OPEN_INFO.update({(order, white, (1,), 1, (12,), ()): _12_BITS for order in (b"II", b"MM") for white in (0, 1)})


def mend_planes(tiff: TiffImageFile) -> None:
    """Of uncompressed planes, Pillow takes those of 16 bits a sample for such of 8, and shows other pixels.

    It has no place for a plane of alpha beside grey, nor for one by which colours are multiplied.
    """
    tags = tiff.tag_v2
    if tags.get(ExifTags.Base.PlanarConfiguration) != 2 or tiff.tile[0].codec_name != "raw":
        return
    deep = 16 in tags.get(ExifTags.Base.BitsPerSample, ())
    depth = f";16{'L' if tags.prefix == b'II' else 'B'}" if deep else ""
    planes = [(tile, *tile.args) for tile in tiff.tile if isinstance(tile.args, tuple)]
    alpha = set() if tiff.mode == "LAB" else {"A", "a"}
    tiff.tile = [tile._replace(args=(f"{band}{depth}", *rest)) for tile, band, *rest in planes if band not in alpha]
    tiff._mode = "L" if tiff.mode in {"LA", "La"} else tiff.mode


def high_byte(tiff: TiffImageFile) -> int | None:
    """The band that is the grey of a picture of grey with alpha of 16 bits; None for any other."""
    tags = tiff.tag_v2
    if tiff.mode != "RGBA" or tags.get(ExifTags.Base.BitsPerSample) != (16, 16):
        return None
    # libtiff, which unpacks what is compressed, turns samples into the order of this machine.
    big = tags.prefix == b"MM" if tiff.tile[0].codec_name == "raw" else sys.byteorder == "big"
    return 0 if big or tags.get(ExifTags.Base.PlanarConfiguration) == 2 else 1


def has_12_bits(tiff: TiffImageFile) -> bool:
    """Whether it is grey of 12 bits, which Pillow opens as one of 16 and leaves as dark as they then are."""
    return tiff.tag_v2.get(ExifTags.Base.BitsPerSample) == (12,)


def is_preview(tiff: TiffImageFile, data: bytes) -> bool:
    """Whether a TIFF begins with a small picture of another one in it, as the raw files of most cameras do."""
    kind = tiff.tag_v2.get(ExifTags.Base.NewSubfileType, 0)
    reduced = isinstance(kind, int) and bool(kind & 1)
    return reduced or ExifTags.Base.DNGVersion in tiff.tag_v2 or data[8:10] == b"CR"


def white_is_zero(tiff: TiffImageFile) -> bool:
    """Which Pillow minds in 8 bits alone."""
    return tiff.tag_v2.get(ExifTags.Base.PhotometricInterpretation) == 0
