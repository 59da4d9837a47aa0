"""What benchmarks count, and what they leave alone: their figures are quoted, so they are tested as other code is."""

from msrrn.synthetic import SyntheticPhoto
from pipelines.detection import Detection, expected_box
from tests.benchmarks import annotation
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
