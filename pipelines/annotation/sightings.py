"""One input of an archive → its row of `IMAGES` and its faces: what is done in the sandbox.

Nothing here knows the network, so that the sandbox's process is small and starts fast.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import cv2

from pipelines.annotation.looking import View, look
from pipelines.annotation.sandbox import BEGUN, Died
from pipelines.annotation.tables import IMAGES, forgotten_row
from pipelines.archives import Input, read_inputs
from pipelines.decoding import Undecodable
from pipelines.detection import Detector
from pipelines.errors import UserError
from pipelines.memory import keep_memory
from pipelines.settings import AnnotateSettings


@dataclass(frozen=True)
class Task:
    """What is the same for every input of a run."""

    source: str
    detector: Detector
    settings: AnnotateSettings
    crop_margin: float
    forgotten: frozenset[str] = frozenset()
    """SHA-256 of pictures that must not be annotated"""


@dataclass(frozen=True)
class Wanted:
    """An input, and how its picture is to be turned (`pipelines.annotation.looking.look`)."""

    input: Input
    turns: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Sighting:
    """An input's row of `IMAGES`, but for its faces, which are in the views."""

    row: dict[str, Any]
    views: tuple[View, ...] = ()


def sightings(task: Task, items: Sequence[Wanted]) -> Iterator[Sighting | str]:
    """The work of a `Sandbox`: `BEGUN` once the bytes of an input are there, then what was seen in it."""
    cv2.setNumThreads(1)
    keep_memory()
    read = read_inputs(task.source, [wanted.input for wanted in items])
    for wanted, (item, data) in zip(items, read, strict=True):
        yield BEGUN
        yield _sighting(item, data, task, wanted.turns)


def died(item: Input, death: Died) -> Sighting:
    """Of an input that its process died of."""
    return _quarantined(item, death.reason, f"the decoder or the detector died of it: {death.message}")


def _sighting(item: Input, data: bytes | Undecodable, task: Task, turns: Sequence[int]) -> Sighting:
    """Whatever goes wrong with an input stays in its row."""
    if isinstance(data, Undecodable):
        return _quarantined(item, data.reason, data.message)
    known = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    if known["sha256"] in task.forgotten:
        return Sighting(forgotten_row(item.uri))
    try:
        seen = look(data, task.detector, task.settings, task.crop_margin, turns)
    except Undecodable as error:
        reason, message = error.reason, error.message
    except UserError:
        raise  # of the machine, not of the picture
    except MemoryError:
        reason, message = "too_large", "there was not enough memory for it"
    except Exception as error:
        # A picture that upsets a library is a fact about the picture; the run goes on without it.
        reason, message = "failed", f"{type(error).__name__}: {str(error)[:200]}"
    else:
        known |= {"width": seen.width, "height": seen.height, "orientation": seen.orientation}
        return Sighting(_blank(item) | known | {"status": "no_face", "turned": 0}, seen.views)
    return _quarantined(item, reason, message, **known)


def _quarantined(item: Input, reason: str, message: str, **known: Any) -> Sighting:
    return Sighting(_blank(item) | known | {"status": "quarantined", "reason": reason, "message": message})


def _blank(item: Input) -> dict[str, Any]:
    return dict.fromkeys(IMAGES.names) | {"uri": item.uri, "bytes": item.size, "faces": 0}
