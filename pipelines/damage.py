"""What is wrong with bytes that no decoder took for a picture."""

from typing import Final

from PIL import UnidentifiedImageError

from pipelines.cut import is_cut
from pipelines.jpeg import START

CUT: Final = "the picture ends before its last pixel"
_TIFF_STARTS: Final = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_JPEG_2000_STARTS: Final = (b"\0\0\0\x0cjP  ", b"\xff\x4f\xff\x51")
_SIGNATURES: Final = (START, b"\x89PNG\r\n", b"RIFF", *_TIFF_STARTS, b"GIF8", *_JPEG_2000_STARTS)
_HEIC_BRANDS: Final = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"}
_AVIF_BRANDS: Final = {b"avif", b"avis"}
_NOT_BUILT_IN: Final = "compression format has not been built in"
"""What libheif says of JPEG, or AV1, in a container that says HEIC."""
_DAMAGED: Final = "the header is damaged"
_UNKNOWN: Final = f"{_DAMAGED}, or its samples are of a kind that is not read: convert to 8"


def what_is_wrong(error: Exception, data: bytes, heic: bool) -> tuple[str, str]:
    """Reason and message for what a decoder raised; `heic` says whether there is one for HEIC."""
    text = str(error) or type(error).__name__
    if isinstance(error, UnidentifiedImageError) and not data.startswith(_SIGNATURES):
        brand = data[8:12] if data[4:8] == b"ftyp" else b""
        if brand in _HEIC_BRANDS and not heic:
            return "not_an_image", "HEIC needs an extra: pip install 'msrrn[heic]', or convert it to JPEG"
        if brand in _HEIC_BRANDS | _AVIF_BRANDS:
            return ("truncated", CUT) if is_cut(data) else ("corrupt", _DAMAGED)
        return "not_an_image", "no known picture format"
    if _NOT_BUILT_IN in text:
        return "not_an_image", "a HEIF that is compressed in a way that is not read: convert it to JPEG"
    ends = isinstance(error, EOFError) or "truncated" in text.lower() or "end of file" in text.lower()
    if ends or is_cut(data):
        return "truncated", CUT
    if isinstance(error, UnidentifiedImageError):
        if data.startswith(_TIFF_STARTS):
            return "corrupt", f"{_UNKNOWN} or 16 bits"
        return "corrupt", f"{_UNKNOWN} bits" if data.startswith(START) else _DAMAGED
    return "corrupt", text
