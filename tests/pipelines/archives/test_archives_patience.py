"""A disk that cannot read what lies there (`EIO`): for a moment, in one place, or at all."""

import errno
import io
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipelines.archives import list_inputs
from pipelines.storage import Store
from tests.pipelines.containers import packed, read


class BadSector(io.FileIO):
    """A file that gives what precedes a place of it, as a kernel does, and some times nothing from there on."""

    def __init__(self, path: str, at: int, times: list[None]) -> None:
        super().__init__(path)
        self._at, self._times = at, times

    def readinto(self, buffer: Any) -> int | None:
        """As that of a file."""
        place = self.tell()
        if self._times and place <= self._at < place + len(buffer):
            if place == self._at:
                self._times.pop()
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return super().readinto(memoryview(buffer)[: self._at - place])
        return super().readinto(buffer)


@pytest.fixture(autouse=True)
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long was waited, in no time."""
    waited: list[float] = []
    monkeypatch.setattr("time.sleep", waited.append)
    return waited


@pytest.fixture
def damaged(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, int, int], None]:
    """Makes a name's file unreadable at a place, so many times."""

    def damage(name: str, at: int, times: int) -> None:
        left = [None] * times
        plain = Store.open

        def opened(store: Store, key: str, *arguments: Any, **named: Any) -> Any:
            path = store._path(key)
            if path.name != name:
                return plain(store, key, *arguments, **named)
            return io.BufferedReader(BadSector(str(path), at, left))

        monkeypatch.setattr(Store, "open", opened)

    return damage


@pytest.mark.parametrize("kind", [".tar", ".tar.gz", ".zip"])
def test_a_moment_of_trouble_costs_one_picture_of_an_archive(
    kind: str, tmp_path: Path, damaged: Callable[[str, int, int], None]
) -> None:
    draw = random.Random(1)
    files = {f"{index:02}.jpg": draw.randbytes(50_000) for index in range(40)}
    place = tmp_path / f"in{kind}"
    place.write_bytes(packed(kind, files))
    items = list(list_inputs(str(place)))
    damaged(place.name, 700_001, 4)
    found = dict(read(str(place), items))
    assert [name for name, data in found.items() if data == "unreadable"] == ["13.jpg"]
    assert {**found, "13.jpg": files["13.jpg"]} == files
