"""Photographs and archives, damaged at random: what annotation must account for, one by one."""

import io
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from PIL import Image

from tests.factories import saved
from tests.pipelines.containers import packed

FORMATS: Final = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "AVIF")


def damaged(data: bytes, chance: random.Random) -> bytes:
    """A copy that one to four things happened to."""
    for _ in range(chance.randint(1, 4)):
        data = chance.choice(_DAMAGES)(data, chance) or b"\0"
    return data


def encodings(jpeg: bytes, side: int = 160) -> list[bytes]:
    """A small version of a photograph in every format; as JPEG also progressive, grey, CMYK and turned by EXIF."""
    with Image.open(io.BytesIO(jpeg)) as opened:
        opened.thumbnail((side, side))
        image = opened.convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = 6
    made = [saved(image, kind) for kind in FORMATS]
    made += [saved(image, "JPEG", progressive=True), saved(image, "JPEG", exif=exif)]
    made += [saved(image.convert(mode), kind) for mode, kind in (("L", "JPEG"), ("CMYK", "JPEG"), ("P", "PNG"))]
    return [*made, saved(image.convert("RGBA"), "PNG"), saved(image.convert("I;16"), "PNG")]


def write_pictures(folder: Path, seeds: Sequence[bytes], cases: int, seed: int) -> list[str]:
    """So many damaged pictures; returns their names."""
    folder.mkdir(parents=True, exist_ok=True)
    names = []
    for case in range(cases):
        chance = random.Random(f"{seed}:{case}")
        suffix = chance.choice(("jpg", "png", "webp", "tif", "bmp", "gif", "avif", "heic"))
        names.append(f"{case:05d}.{suffix}")
        (folder / names[-1]).write_bytes(damaged(chance.choice(seeds), chance))
    return names


def write_containers(folder: Path, seeds: Sequence[bytes], cases: int, seed: int) -> list[str]:
    """So many damaged archives of sound pictures; returns their names."""
    folder.mkdir(parents=True, exist_ok=True)
    names = []
    for case in range(cases):
        chance = random.Random(f"{seed}:archive:{case}")
        suffix = chance.choice((".tar", ".tar.gz", ".zip"))
        names.append(f"{case:05d}{suffix}")
        members = {f"{index}.jpg": chance.choice(seeds) for index in range(chance.randint(1, 5))}
        (folder / names[-1]).write_bytes(damaged(packed(suffix, members), chance))
    return names


def _flipped(data: bytes, chance: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(chance.choice((1, 3, 30))):
        changed[chance.randrange(len(changed))] ^= 1 << chance.randrange(8)
    return bytes(changed)


def _in_header(data: bytes, chance: random.Random) -> bytes:
    """Sizes, offsets and types lie there."""
    changed = bytearray(data)
    for _ in range(chance.randint(1, 6)):
        changed[chance.randrange(min(len(changed), 600))] = chance.choice(
            (0, 1, 127, 128, 255, chance.randrange(256))
        )
    return bytes(changed)


def _cut(data: bytes, chance: random.Random) -> bytes:
    return data[: chance.randrange(len(data))]


def _blanked(data: bytes, chance: random.Random) -> bytes:
    start, length = chance.randrange(len(data)), chance.randint(1, 2000)
    filler = chance.choice((b"\0", b"\xff", b"\x80"))
    return data[:start] + filler * len(data[start : start + length]) + data[start + length :]


def _repeated(data: bytes, chance: random.Random) -> bytes:
    start, length = chance.randrange(len(data)), chance.randint(1, 3000)
    return data[: start + length] + data[start:]


def _removed(data: bytes, chance: random.Random) -> bytes:
    start = chance.randrange(len(data))
    return data[:start] + data[start + chance.randint(1, 500) :]


def _after_noise(data: bytes, chance: random.Random) -> bytes:
    return chance.randbytes(chance.randint(1, 40)) + data


_DAMAGES: Final[tuple[Callable[[bytes, random.Random], bytes], ...]] = (
    _flipped,
    _in_header,
    _in_header,
    _cut,
    _blanked,
    _repeated,
    _removed,
    _after_noise,
)
