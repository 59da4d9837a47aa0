import base64
import hashlib
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from msrrn.synthetic import draw_photo
from pipelines.dataset import prints as station
from pipelines.dataset.prints import MAX_DISTANCE, MIN_CORRELATION, near_duplicates, photo_print
from pipelines.decoding import Undecodable
from tests.factories import picture

Picture = NDArray[np.uint8]


def _jpeg(pixels: NDArray[np.generic], quality: int = 90) -> bytes:
    encoded = cv2.imencode(".jpg", np.asarray(pixels, np.uint8), [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
    return bytes(encoded.tobytes())


def _scaled(pixels: Picture, factor: float) -> NDArray[np.generic]:
    return np.asarray(cv2.resize(pixels, None, fx=factor, fy=factor, interpolation=cv2.INTER_AREA))


def _copies(pixels: Picture) -> dict[str, bytes]:
    return {
        "quality": _jpeg(pixels, 40),
        "half": _jpeg(_scaled(pixels, 0.5)),
        "grey": _jpeg(cv2.cvtColor(pixels, cv2.COLOR_BGR2GRAY)),
        "png": picture(pixels[..., ::-1]),
        "brighter": _jpeg(255 * (pixels / 255.0) ** 0.8),
        "turned": picture(np.rot90(pixels[..., ::-1]), "JPEG", exif=_turned_by_exif()),
    }


def _turned_by_exif() -> bytes:
    from PIL import Image

    exif = Image.Exif()
    exif[0x0112] = 6
    return exif.tobytes()


@pytest.fixture(scope="module")
def pictures() -> list[bytes]:
    return [draw_photo(4, index).jpeg for index in range(11)]


def _decoded(data: bytes) -> Picture:
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    assert pixels is not None
    return np.asarray(pixels, np.uint8)


def test_copies_of_a_photo_come_together_and_different_photos_do_not(pictures: list[bytes]) -> None:
    prints: list[str] = []
    expected: list[set[int]] = []
    for data in pictures[:6]:
        copies = [data, *_copies(_decoded(data)).values()]
        expected.append(set(range(len(prints), len(prints) + len(copies))))
        prints += [photo_print(copy) for copy in copies]
    prints += [photo_print(data) for data in pictures[6:]]
    assert near_duplicates(prints) == expected


def test_a_print_is_small_text_and_the_same_every_time(pictures: list[bytes]) -> None:
    first = photo_print(pictures[0])
    assert first == photo_print(pictures[0])
    assert first.isascii()
    assert len(first) <= 300


def test_a_mirrored_copy_is_another_picture(pictures: list[bytes]) -> None:
    data = pictures[0]
    assert near_duplicates([photo_print(data), photo_print(_jpeg(_decoded(data)[:, ::-1]))]) == []


def test_what_shows_nothing_has_no_print() -> None:
    assert photo_print(picture(np.full((90, 90, 3), 77, np.uint8))) == ""
    dull = np.rint(np.linspace(70, 85, 90 * 90)).reshape(90, 90)  # as in fog
    assert photo_print(picture(dull.astype(np.uint8))) != ""
    noise = np.random.default_rng(0).integers(77, 80, (90, 90), np.uint8)  # as under a lid
    assert photo_print(picture(noise)) == ""


@pytest.mark.parametrize("data", [b"", b"Dear grandmother", b"\xff\xd8\xff"])
def test_what_is_no_picture_is_said(data: bytes, pictures: list[bytes]) -> None:
    for broken in (data, pictures[0][:2000]):
        with pytest.raises(Undecodable):
            photo_print(broken)


def test_a_picture_too_large_is_not_decoded() -> None:
    # The header alone says 60,000 × 60,000 pixels.
    header = picture(np.zeros((8, 8, 3), np.uint8), "JPEG")
    at = header.index(b"\xff\xc0")
    huge = header[: at + 5] + (60_000).to_bytes(2, "big") * 2 + header[at + 9 :]
    with pytest.raises(Undecodable, match="too_large"):
        photo_print(huge)


def _print(hash_bits: int, thumbnail: NDArray[np.uint8]) -> str:
    return base64.b64encode(hash_bits.to_bytes(8, "big") + thumbnail.tobytes()).decode()


@settings(max_examples=30)
@given(st.integers(0, 2**32), st.integers(2, 60))
def test_the_search_misses_no_pair(seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    thumbnail = rng.integers(0, 256, 144, dtype=np.uint8)
    base = int(rng.integers(0, 2**63))
    hashes = [
        base ^ sum(1 << int(bit) for bit in rng.choice(64, rng.integers(0, 9), replace=False)) for _ in range(count)
    ]
    label = list(range(count))
    for i in range(count):
        for j in range(i):
            if (hashes[i] ^ hashes[j]).bit_count() <= MAX_DISTANCE:
                label = [label[j] if known == label[i] else known for known in label]
    groups = {known: {i for i in range(count) if label[i] == known} for known in label}
    expected = sorted((group for group in groups.values() if len(group) > 1), key=min)
    assert sorted(near_duplicates([_print(value, thumbnail) for value in hashes]), key=min) == expected


def test_like_hashes_of_unlike_pictures_are_kept_apart() -> None:
    rng = np.random.default_rng(0)
    thumbnail = rng.integers(60, 200, 144, dtype=np.uint8)
    similar = np.clip(thumbnail + rng.integers(-3, 4, 144), 0, 255).astype(np.uint8)
    other = np.clip(thumbnail + rng.integers(-50, 51, 144), 0, 255).astype(np.uint8)
    assert np.corrcoef(thumbnail, similar)[0, 1] > MIN_CORRELATION > np.corrcoef(thumbnail, other)[0, 1]
    assert near_duplicates([_print(5, thumbnail), _print(5, other), _print(5, similar)]) == [{0, 2}]
    assert near_duplicates([]) == []
    assert near_duplicates([_print(5, thumbnail)] * 3) == [{0, 1, 2}]


def test_many_photos_are_searched_without_comparing_all_with_all(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    prints = [base64.b64encode(row.tobytes()).decode() for row in rng.integers(0, 256, (20_000, 152), dtype=np.uint8)]
    prints[7_000] = prints[3]
    compared = 0
    candidates = station._candidates

    def counted(hashes: NDArray[np.uint64]) -> Iterator[tuple[NDArray[np.intp], NDArray[np.intp]]]:
        nonlocal compared
        for one, other in candidates(hashes):
            compared += len(one)
            yield one, other

    monkeypatch.setattr(station, "_candidates", counted)
    assert near_duplicates(prints) == [{3, 7_000}]
    assert 0 < compared < 2_000_000  # all with all are 200 million pairs


def test_real_photos(data_root: Path) -> None:
    paths = sorted((data_root / "300w/lfpw").rglob("*.jpg"))
    distinct = {hashlib.sha256(path.read_bytes()).hexdigest(): path for path in reversed(paths)}
    stems = {path.stem: path for path in distinct.values()}
    known = ["image_0035", "image_0053", "image_0043", "image_0317", "image_0856", "image_0858"]
    others = [stem for stem in sorted(stems) if stem not in known][:80:4]
    names = [*known, *others]
    prints = [photo_print(stems[name].read_bytes()) for name in names]
    assert [group for group in near_duplicates(prints) if min(group) < 6] == [{0, 1}, {2, 3}, {4, 5}]
