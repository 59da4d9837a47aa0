"""A disk that cannot read what lies there (`EIO`): for a moment, in one place, or at all."""

import errno
import io
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.archives import Input, list_inputs
from pipelines.archives.containers import _idle
from pipelines.archives.zips import Zip
from pipelines.decoding import Undecodable
from pipelines.outages import OutageError
from pipelines.sources.files import open_files
from pipelines.storage import Store
from tests.pipelines.containers import packed, publish, read


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


@pytest.fixture
def unlisted(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, int], None]:
    """Nothing can be asked of a file or folder of this name, so many times."""

    def refuse(name: str, times: int) -> None:
        left = [None] * times

        def patched(ask: Callable[..., Any]) -> Callable[..., Any]:
            def asking(path: Any, **named: Any) -> Any:
                if Path(path).name == name and left:
                    left.pop()
                    raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
                return ask(path, **named)

            return asking

        monkeypatch.setattr(Path, "stat", patched(Path.stat))
        monkeypatch.setattr(os, "scandir", patched(os.scandir))

    return refuse


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


@pytest.mark.parametrize("name", ["b.jpg", "deep", "in", "in.txt"])
def test_a_disk_that_cannot_be_listed_makes_no_rows(
    name: str, tmp_path: Path, pauses: list[float], unlisted: Callable[[str, int], None]
) -> None:
    """They would take the place of what earlier runs made of sound pictures."""
    publish(str(tmp_path / "in"), {"a.jpg": b"a", "b.jpg": b"b", "deep/c.jpg": b"c"})
    source = str(tmp_path / "in")
    if name == "in.txt":
        (tmp_path / name).write_text("in/a.jpg\nin/b.jpg\n")
        source, name = str(tmp_path / name), "b.jpg"
    sound = list(list_inputs(source))
    unlisted(name, 2)
    assert list(list_inputs(source)) == sound
    assert pauses == [0.2, 0.8]
    unlisted(name, 100)
    with pytest.raises(OutageError, match=rf"^/.*{name}: the disk cannot read it .*run again$"):
        list(list_inputs(source))


def test_a_disk_that_is_gone_ends_the_work_however_small_its_archives_and_pieces_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {f"{index}.jpg": b"%d" % index for index in range(4)}
    place = publish(str(tmp_path), {f"{index:02}.zip": packed(".zip", files) for index in range(20)})
    items = list(list_inputs(place))
    zipped = Zip.read
    gone = True

    def reading(archive: Zip, item: Input, limit: int) -> bytes | Undecodable:
        if gone:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return zipped(archive, item, limit)

    monkeypatch.setattr(Zip, "read", reading)
    pieces = [items[start : start + 5] for start in range(0, len(items), 5)]
    for piece in pieces[:6]:
        assert [data for _, data in read(place, piece)] == ["unreadable"] * 5
    for _ in range(2):  # and when the piece is tried again
        with pytest.raises(OSError, match=f"Input/output error: '{place}'"):
            read(place, pieces[6])
    gone = False
    assert read(place, pieces[0]) == [(item.uri, files[item.uri[-5:]]) for item in pieces[0]]
    gone = True
    assert [data for _, data in read(place, pieces[0])] == ["unreadable"] * 5


@pytest.mark.parametrize("kind", [".tar", ".tar.gz", ".zip", ".parquet"])
def test_an_archive_of_a_folder_that_the_disk_cannot_read_is_a_row(
    kind: str, tmp_path: Path, pauses: list[float], damaged: Callable[[str, int, int], None]
) -> None:
    pictures = {f"{index}.jpg": b"\xff\xd8\xff%d" % index for index in range(3)}
    publish(str(tmp_path), {"a.jpg": b"a", "z.jpg": b"z"})
    if kind == ".parquet":
        pq.write_table(pa.table({"image": list(pictures.values()), "name": list(pictures)}), tmp_path / "in.parquet")
    else:
        publish(str(tmp_path), {f"in{kind}": packed(kind, pictures)})
    whole = list(list_inputs(str(tmp_path)))
    damaged(f"in{kind}", 8, 2)
    assert list(list_inputs(str(tmp_path))) == whole
    assert pauses == [0.2, 0.8]
    damaged(f"in{kind}", 8, 10_000)
    rows = [("a.jpg", b"a"), (f"in{kind}", "broken_archive"), ("z.jpg", b"z")]
    assert read(str(tmp_path)) == rows
    _idle.clear()
    lost = 1 if kind == ".tar" else 3  # of a plain tar, each member can be read without the others
    outcomes = ["unreadable"] * lost + list(pictures.values())[lost:]
    assert [data for _, data in read(str(tmp_path), whole)] == [b"a", *outcomes, b"z"]
    with pytest.raises(OutageError, match=rf"^/.*/in{kind}: the disk cannot read it"):
        list_inputs(str(tmp_path / f"in{kind}"))


def test_an_archive_that_cannot_be_listed_to_its_end_loses_the_rest(
    tmp_path: Path, damaged: Callable[[str, int, int], None]
) -> None:
    publish(str(tmp_path), {"in.tar": packed(".tar", {f"{index}.jpg": bytes(50_000) for index in range(8)})})
    place = str(tmp_path)
    whole = [item.uri for item in list_inputs(place)]
    damaged("in.tar", 5 * 50_688 + 100, 3)
    assert [item.uri for item in list_inputs(place)] == whole
    damaged("in.tar", 5 * 50_688 + 100, 10_000)
    assert [item.uri for item in list_inputs(place)] == [*whole[:5], "in.tar"]


def test_a_disk_that_is_gone_makes_no_rows_of_its_archives(
    tmp_path: Path, damaged: Callable[[str, int, int], None]
) -> None:
    archive = packed(".zip", {"a.jpg": b"a"})
    place = publish(str(tmp_path), {f"{index:02}/in.zip": archive for index in range(40)})
    items = list(list_inputs(place))
    damaged("in.zip", 8, 10_000)
    with pytest.raises(OutageError, match=f"^{place}: the disk cannot read it"):
        list(list_inputs(place))
    _idle.clear()
    with pytest.raises(OSError, match=f"Input/output error: '{place}'"):
        read(place, items)


@pytest.mark.parametrize("kind", [".tar", ".tar.gz", ".zip"])
def test_an_archive_of_annotated_photos_that_the_disk_cannot_list_is_told(
    kind: str, tmp_path: Path, pauses: list[float], damaged: Callable[[str, int, int], None]
) -> None:
    place = tmp_path / f"in{kind}"
    place.write_bytes(packed(kind, {f"{index}.jpg": b"%d" % index for index in range(3)}))
    at = place.stat().st_size - 1 if kind == ".zip" else 0
    damaged(place.name, at, 2)
    assert open_files(str(place)).sizes() == {"0.jpg": 1, "1.jpg": 1, "2.jpg": 1}
    assert pauses == [0.2, 0.8]
    os.utime(place, ns=(1, 1))  # so that it is listed again
    damaged(place.name, at, 100)
    with pytest.raises(OutageError, match=rf"in\{kind}: the disk cannot read it .*run again$"):
        open_files(str(place))
