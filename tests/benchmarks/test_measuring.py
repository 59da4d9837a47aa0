"""What benchmarks count, and what they leave alone: their figures are quoted, so they are tested as other code is."""

from pathlib import Path

import pytest

from msrrn.synthetic import SyntheticPhoto
from pipelines.detection import Detection, HogDetector, expected_box
from pipelines.settings import AnnotateSettings
from tests.benchmarks import annotation, end_to_end
from tests.benchmarks.pictures import of_file


def test_the_first_look_of_a_contender_is_not_counted(
    photos: tuple[list[SyntheticPhoto], list[SyntheticPhoto]],
) -> None:
    """Networks are compiled, and models loaded, at the first look; it was a third of the time of forty frames."""
    single, _ = photos
    pictures = [of_file(photo.jpeg, list(photo.shapes)) for photo in single[:2]]
    looks: list[bytes] = []

    def contender(data: bytes) -> list[Detection]:
        looks.append(data)
        return [Detection(expected_box(pictures[0].shapes[0]), 1.0)]

    tally = annotation.measure({"frames": pictures}, {"one": contender})["one"]

    assert looks == [pictures[0].data, *(picture.data for picture in pictures)]
    assert tally.recall(0.02)[1] == len(pictures)


def test_looking_alone_opens_its_detector_once(
    photos: tuple[list[SyntheticPhoto], list[SyntheticPhoto]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As workers do, which look-alone is the measure of."""
    file = tmp_path / "0.jpg"
    file.write_bytes(photos[0][0].jpeg)
    opened: list[str] = []

    def opening(name: str) -> HogDetector:
        opened.append(name)
        return HogDetector()

    monkeypatch.setattr(end_to_end, "open_detector", opening)
    for _ in range(3):
        end_to_end.faces_in((file, AnnotateSettings(detector="hog")))

    assert opened == ["hog"]
