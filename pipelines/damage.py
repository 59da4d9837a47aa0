"""What is wrong with bytes that no decoder took for a picture."""

from typing import Final

from PIL import UnidentifiedImageError

JPEG_START: Final = b"\xff\xd8\xff"
_TIFF_STARTS: Final = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_SIGNATURES: Final = (JPEG_START, b"\x89PNG\r\n", b"RIFF", *_TIFF_STARTS, b"GIF8")
_HEIC_BRANDS: Final = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"}
_AVIF_BRANDS: Final = {b"avif", b"avis"}
_UNKNOWN_TIFF: Final = "the header is damaged, or its samples are of a kind that is not read: convert to 8 or 16 bits"
_CUT: Final = "the picture ends before its last pixel"


def what_is_wrong(error: Exception, data: bytes, heic: bool) -> tuple[str, str]:
    """Reason and message for what a decoder raised; `heic` says whether there is one for HEIC."""
    text = str(error) or type(error).__name__
    if isinstance(error, UnidentifiedImageError) and not data.startswith(_SIGNATURES):
        brand = data[8:12] if data[4:8] == b"ftyp" else b""
        if brand in _HEIC_BRANDS and not heic:
            return "not_an_image", "HEIC needs an extra: pip install 'msrrn[heic]', or convert it to JPEG"
        if brand in _HEIC_BRANDS | _AVIF_BRANDS:
            cut = _ends_within_a_box(data)
            return ("truncated", _CUT) if cut else ("corrupt", "the header is damaged")
        return "not_an_image", "no known picture format"
    webp_end = 8 + int.from_bytes(data[4:8], "little") if data.startswith(b"RIFF") else 0
    ends = isinstance(error, EOFError) or "truncated" in text.lower() or "end of file" in text.lower()
    if ends or len(data) < webp_end:
        return "truncated", _CUT
    if isinstance(error, UnidentifiedImageError):
        return "corrupt", _UNKNOWN_TIFF if data.startswith(_TIFF_STARTS) else "the header is damaged"
    return "corrupt", text


def _ends_within_a_box(data: bytes) -> bool:
    """Whether a HEIC or AVIF is shorter than the boxes that it is made of."""
    place = 0
    while place + 8 <= len(data):
        size = int.from_bytes(data[place : place + 4], "big")
        if size == 1:
            size = int.from_bytes(data[place + 8 : place + 16], "big")
        if size < 8:  # 0: up to the end
            return False
        place += size
    return place != len(data)
