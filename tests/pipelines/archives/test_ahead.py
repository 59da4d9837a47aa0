import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from msrrn.synthetic import SyntheticPhoto
from pipelines.archives.ahead import AHEAD, begun
from pipelines.dataset.photos import read_photos
from tests.factories import tree, write_face
from tests.faulty import FaultyEndpoint
from tests.pipelines.containers import publish

Photos = tuple[list[SyntheticPhoto], list[SyntheticPhoto]]


def test_reads_begin_before_they_are_waited_for_and_no_more_than_a_few() -> None:
    started: list[int] = []
    together = threading.Barrier(AHEAD)

    def read(number: int) -> Callable[[], int]:
        def run() -> int:
            started.append(number)
            if number < AHEAD:
                together.wait(10)  # one after another they would never come so far
            return number

        return run

    results = begun(("s3://bucket/in", read(number)) for number in range(20))
    assert next(results)() == 0
    assert len(started) <= AHEAD + 1
    assert [result() for result in results] == list(range(1, 20))


def test_what_one_raises_is_raised_where_it_is_waited_for() -> None:
    def fail() -> int:
        raise OSError("gone")

    first, second, third = begun(("s3://bucket/in", read) for read in (lambda: 1, fail, lambda: 3))
    assert (first(), third()) == (1, 3)
    with pytest.raises(OSError, match="gone"):
        second()


def test_who_leaves_half_way_waits_for_nothing_that_has_not_begun() -> None:
    done: list[int] = []
    held = threading.Event()

    def read(number: int) -> Callable[[], None]:
        def run() -> None:
            held.wait(0 if number == 0 else 0.2)
            done.append(number)

        return run

    results = begun(("s3://bucket/in", read(number)) for number in range(100))
    next(results)()
    results.close()
    assert len(done) <= AHEAD + 1


@pytest.mark.parametrize("url", ["photos", "file:///photos", "s3://bucket/photos.tar.gz"])
def test_what_would_not_gain_is_read_when_it_is_asked_for(url: str) -> None:
    done: list[int] = []
    results = begun((url, partial(done.append, number)) for number in range(10))
    for number, result in enumerate(results):
        assert done == list(range(number))
        result()


def test_annotated_photos_of_a_bucket_come_together(
    s3: str, faulty: FaultyEndpoint, photos: Photos, tmp_path: Path
) -> None:
    for number, photo in enumerate(photos[0]):
        write_face(tmp_path, f"{number}", photo.jpeg, photo.shapes[0])
    publish(f"{s3}/in", tree(tmp_path))
    faulty.seconds = 0.05
    (here, none), (there, left_out) = read_photos([str(tmp_path)], 1), read_photos([f"{s3}/in"], 1)
    assert none == left_out == []
    assert [group.seen for group in there] == [group.seen for group in here]
    assert faulty.most_at_once > AHEAD / 2
