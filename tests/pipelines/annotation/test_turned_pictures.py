"""Pictures that may lie in any way: the turn of which the network is surest is kept."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from msrrn.landmarks import NUM_LANDMARKS
from msrrn.metrics import nrmse_ip
from msrrn.prediction import STAGES, Prediction
from pipelines.annotation.pictures import UPRIGHT, Rows, annotated, end_sandbox
from pipelines.annotation.sightings import Task
from pipelines.archives import list_inputs
from pipelines.detection import Detector, HogDetector
from pipelines.opening import open_model
from pipelines.settings import AnnotateSettings
from pipelines.sources.pts import parse_pts
from tests.factories import picture
from tests.squares import Squares

SIZE = (200, 300)
"""Of the pictures: height, width."""
SURE, UNSURE = UPRIGHT + 0.05, UPRIGHT - 0.05


@dataclass
class Network:
    """Is as sure of a face as `sureness` says of its crop; puts all landmarks into the middle of the upper half."""

    sureness: Callable[[NDArray[np.uint8]], float]
    asked: list[int] = field(default_factory=list)
    """faces of each call"""
    name: ClassVar[str] = "network"
    version: ClassVar[str] = "1"
    label: ClassVar[str] = "network 1"

    def on_one_core(self, crops: NDArray[np.uint8]) -> Prediction:
        self.asked.append(len(crops))
        stages = np.tile(np.array([0.5, 0.25], np.float32), (len(crops), len(STAGES), NUM_LANDMARKS, 1))
        confidence = np.array([self.sureness(crop) for crop in crops], np.float32)
        return Prediction(stages, (0.05 * (1 / confidence - 1)).astype(np.float32))


def bright_above(crop: NDArray[np.uint8]) -> float:
    """Sure of a square that is bright above."""
    return SURE if crop[40:100].mean() > 1.1 * crop[100:160].mean() else 0.1


def square(brightness: int = 250, x: int = 60, y: int = 50, side: int = 80) -> NDArray[np.uint8]:
    """Bright above, darker below."""
    grey = np.zeros(SIZE, np.uint8)
    grey[y : y + side, x : x + side] = brightness
    grey[y + side // 2 : y + side, x : x + side] = brightness * 0.5
    return grey


def put(folder: Path, **pictures: NDArray[np.uint8]) -> Path:
    for name, grey in pictures.items():
        (folder / f"{name}.png").write_bytes(picture(np.repeat(grey[..., None], 3, axis=2)))
    return folder


def rows_of(folder: Path, network: Any, detector: Detector, any_rotation: bool = True) -> list[Rows]:
    task = Task(str(folder), detector, AnnotateSettings(any_rotation=any_rotation), 1.0)
    try:
        return list(annotated(task, network, list(list_inputs(str(folder)))))
    finally:
        end_sandbox()


def turns(rows: list[Rows]) -> list[int]:
    return [item.image["turned"] for item in rows]


@pytest.mark.parametrize("upright", [False, True])
def test_a_lying_face_is_seen_upright_whether_or_not_it_is_found_as_it_lies(tmp_path: Path, upright: bool) -> None:
    names = {f"p{turned}": np.rot90(square(), turned // 90) for turned in (0, 90, 180, 270)}
    network = Network(bright_above)
    rows = rows_of(put(tmp_path, **names), network, Squares(upright))
    assert turns(rows) == [0, 180, 270, 90]  # by name
    assert [item.image["faces"] for item in rows] == [1] * 4
    places = [np.reshape(item.faces[0]["landmarks"], (-1, 2))[0].tolist() for item in rows]
    x, y = 60 + 40 - 0.5, 50 + 20 - 0.5
    height, width = SIZE
    expected = [(x, y), (width - 1 - x, height - 1 - y), (height - 1 - y, x), (y, width - 1 - x)]
    assert places == [pytest.approx(place, abs=0.5) for place in expected]


def test_a_picture_is_looked_at_as_it_is_unless_it_is_asked_for(tmp_path: Path) -> None:
    put(tmp_path, over=np.rot90(square(), 2))
    (row,) = rows_of(tmp_path, Network(bright_above), Squares(), any_rotation=False)
    assert (row.image["turned"], row.image["faces"]) == (0, 1)
    (row,) = rows_of(tmp_path, Network(bright_above), Squares(upright=True), any_rotation=False)
    assert (row.image["turned"], row.image["status"]) == (0, "no_face")


def test_one_sure_face_is_enough_and_the_other_turns_cost_nothing_then(tmp_path: Path) -> None:
    both = np.maximum(square(x=10), np.rot90(square(x=10), 2))
    network = Network(bright_above)
    (row,) = rows_of(put(tmp_path, both=both), network, Squares())
    assert (row.image["turned"], row.image["faces"]) == (0, 2)
    assert network.asked == [2]


@pytest.mark.parametrize(("elsewhere", "stays"), [(UNSURE, True), (UNSURE + 0.04, True), (UNSURE + 0.06, False)])
def test_a_doubtful_face_stays_unless_another_turn_is_surer(tmp_path: Path, elsewhere: float, stays: bool) -> None:
    network = Network(lambda crop: UNSURE if bright_above(crop) == SURE else elsewhere)
    rows = rows_of(put(tmp_path, a=square(), b=np.zeros(SIZE, np.uint8)), network, Squares())
    assert (rows[0].image["turned"] == 0) == stays
    assert [item.image["status"] for item in rows] == ["annotated", "no_face"]
    assert turns(rows)[1] == 0


@pytest.mark.parametrize("becomes", ["other", "broken", "gone"])
def test_a_picture_that_changes_meanwhile_keeps_what_was_seen_first(tmp_path: Path, becomes: str) -> None:
    put(tmp_path, a=np.rot90(square(), 2))

    def sureness(crop: NDArray[np.uint8]) -> float:
        if becomes == "other":
            put(tmp_path, a=np.rot90(square(200), 2))
        elif becomes == "broken":
            (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n")
        else:
            (tmp_path / "a.png").unlink(missing_ok=True)
        return bright_above(crop)

    (row,) = rows_of(tmp_path, Network(sureness), Squares())
    assert (row.image["turned"], row.image["status"], len(row.faces)) == (0, "annotated", 1)


def test_real_faces_that_stand_on_their_head(data_root: Path, tmp_path: Path) -> None:
    """The detector takes all of them for upright ones."""
    truth = {}
    for photo in ("lfpw/trainset/image_0038", "lfpw/trainset/image_0257", "helen/trainset/2229778733_2"):
        path = data_root / "300w" / photo
        upright = cv2.imread(f"{path}.jpg")
        assert upright is not None
        over = np.ascontiguousarray(np.rot90(upright, 2), np.uint8)
        assert HogDetector()(over, 0.07 * max(over.shape))
        cv2.imwrite(str(tmp_path / f"{path.name}.png"), over)
        shape = parse_pts(path.with_suffix(".pts").read_bytes())
        truth[f"{path.name}.png"] = np.array(over.shape[1::-1]) - 1 - shape
    rows = rows_of(tmp_path, open_model("box"), HogDetector())
    assert turns(rows) == [180] * 3
    for row in rows:
        errors = [nrmse_ip(np.reshape(face["landmarks"], (-1, 2)), truth[row.image["uri"]]) for face in row.faces]
        assert min(errors) < 0.1
