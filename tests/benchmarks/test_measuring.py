"""What benchmarks count, and what they leave alone: their figures are quoted, so they are tested as other code is."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest

from msrrn.geometry import Points
from msrrn.landmarks import inter_pupil
from msrrn.synthetic import SyntheticPhoto
from pipelines.decoding import decode
from pipelines.detection import Detection, HogDetector, expected_box
from pipelines.settings import AnnotateSettings
from tests.benchmarks import annotation, end_to_end, steadiness
from tests.benchmarks.kills import sandboxes
from tests.benchmarks.pictures import of_file
from tests.cluster import kill_tree
from tests.servers import wait_for

SANDBOX = [sys.executable, "-c", "import time; time.sleep(60)", "pipelines.annotation.sandbox"]


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

    def opening(name: str, precision: str) -> HogDetector:
        opened.append(f"{name} {precision}")
        return HogDetector()

    monkeypatch.setattr(end_to_end, "open_detector", opening)
    for _ in range(3):
        end_to_end.faces_in((file, AnnotateSettings(detector="hog", precision="bfloat16")))

    assert opened == ["hog bfloat16"]


def test_kills_leave_alone_what_others_annotate() -> None:
    """Who looks at pictures is known by its call, and a machine may have several who do."""
    ours = subprocess.Popen([sys.executable, "-c", f"import subprocess; subprocess.run({SANDBOX!r})"])
    others = subprocess.Popen(SANDBOX)
    try:
        mine = psutil.Process(ours.pid)
        # Before it is itself, a new process has its parent's call.
        (found,) = wait_for(lambda: [each for each in sandboxes([mine]) if each.cmdline() == SANDBOX])
        assert found.ppid() == ours.pid
    finally:
        for process in (ours, others):
            kill_tree(process)


def test_what_follows_a_moved_picture_is_steady_and_another_face_is_no_movement(
    photos: tuple[list[SyntheticPhoto], list[SyntheticPhoto]],
) -> None:
    shape = photos[0][0].shapes[0]
    rgb = np.zeros((80, 80, 3), np.uint8)
    rgb[40, 30] = 255

    def follows(data: bytes) -> list[Points]:
        """A mark, and after a change a larger face that was not there."""
        y, x = (int(axis[0]) for axis in np.nonzero(decode(data).rgb.max(axis=2) > 200))
        return [shape + 500, shape + (x, y)] if (x, y) != (26, 36) else [shape + (x, y)]

    assert steadiness.moved(lambda data: follows(data)[-1:], rgb)["moved by 3 px"] == pytest.approx(0, abs=1e-9)
    assert steadiness.moved(follows, rgb)["moved by 1 px"] == pytest.approx(0, abs=1e-9)
    assert steadiness.moved(lambda data: [shape], rgb)["moved by 3 px"] == pytest.approx(3 / inter_pupil(shape))
