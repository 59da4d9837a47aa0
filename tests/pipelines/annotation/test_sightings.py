"""What becomes of one input, whatever is wrong with it; in this process, where a run has another one for it."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from pipelines.annotation.looking import TURNS
from pipelines.annotation.sandbox import BEGUN, Died
from pipelines.annotation.sightings import Sighting, Task, Wanted, died, sightings
from pipelines.annotation.tables import forgotten_row
from pipelines.archives import Input, list_inputs
from pipelines.detection import Detection
from pipelines.errors import UserError
from pipelines.settings import AnnotateSettings
from tests.factories import picture

EXIF = Image.Exif()
EXIF[0x0112] = 6
DATA = picture(np.zeros((40, 60, 3), np.uint8), exif=EXIF)


@pytest.fixture(autouse=True)
def _process_of_tests(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Stays as it is."""
    monkeypatch.setattr("pipelines.annotation.sightings.keep_memory", lambda: None)
    before = cv2.getNumThreads()
    yield
    cv2.setNumThreads(before)


@dataclass(frozen=True)
class Blind:
    """Finds nothing, or is upset in this way."""

    upset: Exception | None = None
    name: ClassVar[str] = "blind"
    resolution: ClassVar[float] = 60.0
    scores: ClassVar[tuple[float, float]] = (0.0, 1.0)

    def __call__(self, rgb: NDArray[np.uint8], min_side: float | None = None) -> list[Detection]:
        if self.upset is not None:
            raise self.upset
        return []


def row_of(folder: Path, upset: Exception | None = None, **told: Any) -> dict[str, Any]:
    """The row of the only input there."""
    task = Task(str(folder), Blind(upset), AnnotateSettings(), 1.0, **told)
    begun, seen = sightings(task, [Wanted(item, TURNS[:1]) for item in list_inputs(str(folder))])
    assert begun == BEGUN
    assert isinstance(seen, Sighting)
    assert seen.views == ()
    return {name: value for name, value in seen.row.items() if value is not None}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "a.png").write_bytes(DATA)
    return tmp_path


KNOWN = {"uri": "a.png", "sha256": hashlib.sha256(DATA).hexdigest(), "bytes": len(DATA), "faces": 0}


def test_a_picture_without_a_face_has_its_size(folder: Path) -> None:
    seen = {"status": "no_face", "width": 40, "height": 60, "orientation": 6, "turned": 0}
    assert row_of(folder) == KNOWN | seen
    assert cv2.getNumThreads() == 1  # other workers have the other cores


@pytest.mark.parametrize(
    ("upset", "reason", "message"),
    [
        (MemoryError(), "too_large", "there was not enough memory for it"),
        (ValueError("x" * 5000), "failed", f"ValueError: {'x' * 200}"),
    ],
)
def test_what_upsets_a_library_stays_in_its_row(upset: Exception, reason: str, message: str, folder: Path) -> None:
    assert row_of(folder, upset) == KNOWN | {"status": "quarantined", "reason": reason, "message": message}


def test_what_is_wrong_with_the_machine_is_no_fact_about_a_picture(folder: Path) -> None:
    with pytest.raises(UserError, match="the detector cannot be started"):
        row_of(folder, UserError("the detector cannot be started"))


def test_of_a_picture_that_is_forgotten_nothing_is_told_but_its_name(folder: Path) -> None:
    row = {name: value for name, value in forgotten_row("a.png").items() if value is not None}
    assert row_of(folder, AssertionError("it is looked at"), forgotten=frozenset({KNOWN["sha256"]})) == row


def test_what_cannot_be_read_or_decoded_says_why(folder: Path) -> None:
    (folder / "a.png").write_bytes(DATA[:50])
    row = row_of(folder)
    assert (row["status"], row["reason"], row["bytes"]) == ("quarantined", "truncated", 50)
    assert row["sha256"] == hashlib.sha256(DATA[:50]).hexdigest()
    (folder / "a.png").unlink()
    (folder / "a.png").symlink_to(folder / "nowhere")
    row = row_of(folder)
    assert (row["status"], row["reason"]) == ("quarantined", "unsafe_member")
    assert "sha256" not in row


def test_what_its_process_died_of_says_so() -> None:
    row = died(Input("a.png", "", 0, 7, 7, "", ""), Died("timeout", "not done after 6 seconds")).row
    assert (row["uri"], row["status"], row["reason"], row["bytes"]) == ("a.png", "quarantined", "timeout", 7)
    assert row["message"] == "the decoder or the detector died of it: not done after 6 seconds"
