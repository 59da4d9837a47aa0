import os
import re
import signal
from collections.abc import Collection, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import ExifTags, Image

from msrrn.synthetic import SyntheticPhoto
from pipelines.annotation.faces import FAILURES, MEASURES, SHOWN, outcomes, survey
from pipelines.annotation.page import FAILURES_SHOWN, annotation_page
from pipelines.annotation.summary import Summary
from pipelines.annotation.tiles import drawn_tiles
from pipelines.checks import CHECKS
from pipelines.dataset.faces import MEASURES as OF_DATASETS
from pipelines.decoding import Undecodable, decode
from pipelines.errors import UserError
from tests.factories import picture, traced
from tests.pipelines.runs import Rows, Run, face, looked_at, quarantined, write_run
from tests.pipelines.test_page import HOSTILE, Document

Photos = tuple[list[SyntheticPhoto], list[SyntheticPhoto]]

SKY = picture(np.full((90, 120, 3), (90, 150, 250), np.uint8))


@pytest.fixture(scope="module")
def run(photos: Photos, tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Summary]:
    """Ten photographs with faces, one without, and some of which nothing could be made; units of three."""
    images: Rows = []
    faces: Rows = []
    files = {f"{kind}/{index}.jpg": photo.jpeg for kind in (0, 1) for index, photo in enumerate(photos[kind])}
    for kind in (0, 1):
        for index, photo in enumerate(photos[kind]):
            uri = f"{kind}/{index}.jpg"
            images.append(looked_at(uri, photo.width, photo.height, len(photo.shapes), photo.jpeg))
            faces += [
                face(images[-1], number, shape, confidence=0.9 - 0.05 * len(faces) - 0.01 * number, face_roll=3.0)
                for number, shape in enumerate(photo.shapes)
            ]
    images.append(looked_at("sky.png", 120, 90, 0, SKY))
    images += [quarantined(f"bad/{n}.jpg", "truncated", "the file ends too early") for n in range(60)]
    images += [quarantined("worse.jpg", "crashed", "it took its worker with it")]
    folder = tmp_path_factory.mktemp("run")
    return write_run(folder, images, faces, per_unit=3, files=files | {"sky.png": SKY})


def alts(html: str) -> list[str]:
    return [image["alt"] for image in Document(html).named("img")]


def test_the_page_tells_the_counts_and_shows_faces_and_failures(run: tuple[Run, Summary]) -> None:
    html = annotation_page(*run)
    document = Document(html)
    assert "72 pictures = 10 annotated + 1 without a face + 61 quarantined. 12 faces, by tiny 1." in document.text
    assert "Whole pictures" in document.words
    assert all(measure.label in document.text for measure in MEASURES.values())
    assert "min_face" in document.words
    assert f"{CHECKS['truncated'].title} (truncated)" in document.words
    assert CHECKS["truncated"].remedy in document.words
    assert "bad/0.jpg, bad/1.jpg, bad/2.jpg" in document.words
    shown = alts(html)
    assert {"Some faces with their landmarks", "Pictures with several faces", "sky.png"} <= set(shown)
    doubtful = [alt for alt in shown if re.match(r"0\.\d\d: ", alt)]
    assert len(doubtful) == 12
    assert doubtful == sorted(doubtful)
    assert doubtful[0].endswith(": 1/1.jpg")
    assert not document.named("script")
    assert "://" not in re.sub(r'xmlns(:xlink)?="[^"]*"', "", html)
    assert "could not be shown" not in html


def test_a_rare_failure_is_listed_beside_a_common_one(run: tuple[Run, Summary]) -> None:
    words = Document(annotation_page(*run)).words
    assert "it took its worker with it" in words
    assert words.count("the file ends too early") == FAILURES
    many = [quarantined(f"{n}.jpg", f"reason {n % 9}", "m") for n in range(300)]
    folder = run[0].store.child("many").local_path()
    assert folder is not None
    assert Document(annotation_page(*write_run(folder, many, []))).words.count("m") == FAILURES_SHOWN


def test_the_same_tables_give_the_same_bytes_anywhere(run: tuple[Run, Summary], tmp_path: Path) -> None:
    images = [row for unit in run[0].units() for row in run[0].images(unit).to_pylist()]
    faces = [row for unit in run[0].units() for row in run[0].faces(unit).to_pylist()]
    other, summary = write_run(tmp_path / "elsewhere", images, faces, per_unit=500, files=run[0].files)
    html = annotation_page(*run)
    assert annotation_page(other, summary) == html
    assert str(tmp_path) not in html


def test_the_survey_counts_every_face_and_picture(run: tuple[Run, Summary]) -> None:
    found = survey(run[0])
    assert {name: int(count.sum()) for name, count in found.counts.items()} == {
        **dict.fromkeys(MEASURES, 12),
        "faces_per_picture": 11,
    }
    assert found.counts["faces_per_picture"].tolist()[:3] == [1, 8, 2]
    assert list(MEASURES)[: len(OF_DATASETS)] == list(OF_DATASETS)
    (roll,) = np.flatnonzero(found.counts["roll"])
    assert MEASURES["roll"].edges[roll] <= 3.0 < MEASURES["roll"].edges[roll + 1]
    units = run[0].units()
    assert sum((outcomes(run[0].images(unit)) for unit in units[1:]), outcomes(run[0].images(units[0]))) == {
        "annotated": 10,
        "no_face": 1,
        "truncated": 60,
        "crashed": 1,
    }


@pytest.mark.parametrize("per_unit", [2, 64])
def test_copies_of_a_picture_are_shown_once(per_unit: int, tmp_path: Path) -> None:
    shape = np.random.default_rng(0).random((68, 2)) * 100
    images = [looked_at(f"{number}.jpg", 300, 200, 2, bytes([number % 3])) for number in range(9)]
    images += [looked_at(f"empty {number}.jpg", 300, 200, 0, b"empty") for number in range(5)]
    faces = [
        face(image, index, shape + index, confidence=0.5 - 0.1 * index - 1e-7 * number)
        for number, image in enumerate(images)
        for index in range(image["faces"])
    ]
    chosen = survey(write_run(tmp_path, images, faces, per_unit)[0]).chosen
    assert {kind: len(shown) for kind, shown in chosen.items()} == {
        "random": 6,
        "doubtful": 6,
        "several": 3,
        "none": 1,
    }
    assert {it.uri for it in chosen["doubtful"]} == {"0.jpg", "1.jpg", "2.jpg"}


def test_relative_size_is_that_over_the_longer_side(tmp_path: Path) -> None:
    image = looked_at("a.jpg", 400, 1000, 1)
    unit_square = np.linspace(0, 1, 136).reshape(68, 2)
    box = {"box": [100.0, 100.0, 300.0, 300.0]}
    run, _ = write_run(tmp_path, [looked_at("0.jpg", 9, 9, 0), image], [face(image, 0, unit_square, **box)])
    (found,) = np.flatnonzero(survey(run).counts["relative_size"])
    edges = MEASURES["relative_size"].edges
    assert edges[found] <= 0.2 < edges[found + 1]


@pytest.mark.parametrize("bytes_", [None, b"", b"junk", SKY])
def test_pictures_that_cannot_be_read_again_are_left_out_with_a_word(
    run: tuple[Run, Summary], bytes_: bytes | None
) -> None:
    files = {} if bytes_ is None else dict.fromkeys(run[0].files, bytes_)
    html = annotation_page(replace(run[0], files=files), run[1])
    count = 26 if bytes_ == SKY else 27
    assert f"{count} could not be shown: their pictures are gone, or changed." in html
    assert alts(html) == (["sky.png"] if bytes_ == SKY else [])


def test_an_archive_that_is_gone_costs_the_pictures_only(run: tuple[Run, Summary]) -> None:
    class Gone(Run):
        def pictures(
            self, uris: Collection[str], unit: str | None = None
        ) -> Iterator[tuple[str, bytes | Undecodable]]:
            raise UserError("it does not exist")

    html = annotation_page(Gone(run[0].store), run[1])
    assert "27 could not be shown" in html
    assert "truncated" in html


def test_this_process_decodes_no_picture(run: tuple[Run, Summary], monkeypatch: pytest.MonkeyPatch) -> None:
    """One may have been replaced, since the run, by another that kills whoever decodes it."""
    expected = annotation_page(*run)
    monkeypatch.setattr("pipelines.annotation.tiles.decode", lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL))
    assert annotation_page(*run) == expected


@pytest.mark.parametrize("orientation", [1, 3, 6, 7])
def test_a_large_jpeg_is_decoded_reduced_and_shown_as_if_it_were_not(orientation: int, tmp_path: Path) -> None:
    grain = np.random.default_rng(0).integers(0, 256, (38, 51, 3), np.uint8)
    stored = cv2.resize(grain, (1203, 905), interpolation=cv2.INTER_CUBIC)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    jpeg = picture(stored, "JPEG", quality=95, exif=exif)
    large = decode(jpeg)
    files = {"large.jpg": jpeg, "large.png": picture(large.rgb)}
    images = [looked_at(name, *large.size, 1, data) for name, data in files.items()]
    box = [150.0, 220.0, 750.0, 820.0]
    shape = np.random.default_rng(1).uniform(200, 700, (68, 2))
    run, _ = write_run(tmp_path, images, [face(image, 0, shape, box=box) for image in images], files=files)
    shown = {item.uri: item for item in survey(run).chosen["random"]}
    for kind in ("random", "several"):
        tiles = drawn_tiles(run, {kind: [shown[name] for name in files]})
        reduced, whole = (tiles[kind, place].astype(int) for place in range(2))
        assert not np.array_equal(reduced, whole)
        assert np.abs(reduced - whole).mean() < 3


def test_names_are_escaped(tmp_path: Path) -> None:
    image = looked_at(HOSTILE, 120, 90, 0, SKY)
    images = [image, quarantined(HOSTILE, HOSTILE, HOSTILE)]
    run, summary = write_run(tmp_path, images, [], files={HOSTILE: SKY})
    document = Document(
        annotation_page(run, summary.model_copy(update={"model": HOSTILE, "settings": {HOSTILE: HOSTILE}}))
    )
    assert not document.named("script")
    assert document.text.count(HOSTILE) >= 8
    assert [picture["alt"] for picture in document.named("img")] == [HOSTILE]


def test_a_run_without_a_picture_has_a_page(tmp_path: Path) -> None:
    document = Document(annotation_page(*write_run(tmp_path, [], [])))
    assert "Every picture could be looked at." in document.words
    assert "Whole pictures" not in document.words, "a heading over nothing"


def test_memory_is_bounded_by_a_unit(tmp_path: Path) -> None:
    peaks = {}
    shape = np.random.default_rng(0).random((68, 2)) * 100
    survey(write_run(tmp_path / "warms up", [], [])[0])
    for run_of, units in (("small", 4), ("large", 24)):
        images = [looked_at(f"{number}.jpg", 300, 200, 1) for number in range(64 * units)]
        run, _ = write_run(tmp_path / run_of, images, [face(image, 0, shape) for image in images])
        found, peaks[run_of] = traced(partial(survey, run))
        assert all(len(some) <= SHOWN[kind] for kind, some in found.chosen.items())
    assert peaks["large"] < 1.5 * peaks["small"]
