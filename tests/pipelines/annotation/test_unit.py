"""A unit that is done again: its tables fit each other for whoever reads them, and whoever goes on with it."""

import errno
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.annotation import unit as station
from pipelines.annotation.pictures import Rows
from pipelines.annotation.plan import Unit, fingerprint
from pipelines.annotation.tables import Annotations, part_key, unit_of
from pipelines.annotation.unit import Job, Pending, annotate_unit, write_unit
from pipelines.archives import Input
from pipelines.archives.inputs import MISSING
from pipelines.errors import UserError
from pipelines.storage import Store
from tests.pipelines.runs import face, looked_at, quarantined

KEY = "000000"
SHAPE = np.arange(136, dtype=np.float64).reshape(68, 2)


def rows(uri: str, faces: int, data: bytes) -> Rows:
    image = looked_at(uri, 640, 480, faces, data)
    return Rows(image, [face(image, index, SHAPE) for index in range(faces)])


BEFORE = [rows(uri, 1, b"first") for uri in "abc"]


def tables(of: list[Rows]) -> dict[str, list[dict[str, Any]]]:
    return {"images": [each.image for each in of], "faces": [row for each in of for row in each.faces]}


def written(store: Store) -> tuple[list[str], list[str]]:
    """SHA-256 of the picture of each face: as the pictures say, and as the faces do."""
    run = Annotations(store)
    images, faces = run.images(KEY).to_pylist(), run.faces(KEY).to_pylist()
    return [row["sha256"] for row in images for _ in range(row["faces"])], [row["sha256"] for row in faces]


def break_at(monkeypatch: pytest.MonkeyPatch, number: int) -> list[str]:
    """Lets the write of this number fail; gives the keys that are written, as they are."""
    publish, keys = Store.publish, []

    def failing(self: Store, key: str, data: bytes) -> None:
        keys.append(key)
        if len(keys) == number:
            raise OSError(errno.EIO, "Input/output error", key)
        publish(self, key, data)

    monkeypatch.setattr(Store, "publish", failing)
    return keys


@pytest.mark.parametrize("faces", [0, 1, 2])
def test_between_any_two_files_its_faces_are_those_of_its_pictures(
    faces: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    after = [rows("a", faces, b"second"), *BEFORE[1:]]
    states = []
    for number in range(1, 8):
        store = Store(str(tmp_path / str(number)))
        write_unit(store, KEY, ["1"] * 3, tables(BEFORE), again=False)
        with monkeypatch.context() as patch:
            keys = break_at(patch, number)
            try:
                write_unit(store, KEY, ["2", "1", "1"], tables(after), again=True)
            except OSError:
                assert len(keys) == number
        pictures, of_faces = written(store)
        assert pictures == of_faces
        states.append(of_faces)
    assert states[0] == [row["sha256"] for row in tables(BEFORE)["faces"]]
    assert states[-1] == [row["sha256"] for row in tables(after)["faces"]]
    assert len(keys) == 6, "the last one was not interrupted"


@pytest.mark.parametrize("number", range(1, 7))
def test_who_tries_it_again_keeps_the_faces_of_the_other_pictures(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, after = Store(str(tmp_path)), [rows("a", 0, b"second"), *BEFORE[1:]]
    write_unit(store, KEY, ["1"] * 3, tables(BEFORE), again=False)
    monkeypatch.setattr(station, "annotated", lambda *_: [after[0]])
    pending = Pending(Unit(KEY, tuple(Input(uri, "", 0, 1, 1, "", "") for uri in "abc")), (0,), again=True)
    job = Job(store, model=None, task=None)  # type: ignore[arg-type]
    with monkeypatch.context() as patch:
        break_at(patch, number)
        with pytest.raises(OSError, match="Input/output error"):
            annotate_unit(job, pending)
    annotate_unit(job, pending)
    assert Annotations(store).images(KEY).to_pylist() == tables(after)["images"]
    assert written(store)[1] == [row["sha256"] for row in tables(after)["faces"]]


def test_what_was_gone_when_it_was_to_be_read_is_done_where_it_is_found_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = tuple(Input(uri, "", 0, 1, 1, "1") for uri in "abc")
    gone = Rows(quarantined("b", MISSING.reason, MISSING.message), [])
    monkeypatch.setattr(station, "annotated", lambda *_: [BEFORE[0], gone, BEFORE[2]])
    job = Job(Store(str(tmp_path)), model=None, task=None)  # type: ignore[arg-type]
    _, record = annotate_unit(job, Pending(Unit(KEY, inputs), (0, 1, 2)))
    same = [fingerprint(item) == then for item, then in zip(inputs, record.inputs, strict=True)]
    assert same == [True, False, True]


@given(at=st.floats(0, 1, exclude_max=True), noise=st.binary(min_size=1, max_size=40))
def test_a_damaged_table_is_named_whatever_its_damage(at: float, noise: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        store = Store(folder)
        write_unit(store, KEY, ["1"] * 3, tables(BEFORE), again=False)
        path = Path(folder, part_key("images", KEY))
        data = bytearray(path.read_bytes())
        start = int(at * len(data))
        data[start : start + len(noise)] = noise
        path.write_bytes(data)
        with suppress(UserError):  # no other error; some damage cannot be seen
            Annotations(store).images(KEY)


def test_a_table_without_its_footer_is_named(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    write_unit(store, KEY, ["1"] * 3, tables(BEFORE), again=False)
    path = tmp_path / part_key("images", KEY)
    data = path.read_bytes()
    start = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    path.write_bytes(data[:start] + b"\xff" * 40 + data[start + 40 :])
    with pytest.raises(UserError, match=f"{part_key('images', KEY)} is damaged .*: delete it and run"):
        Annotations(store).images(KEY)


@pytest.mark.parametrize(
    ("key", "unit"),
    [
        ("records/000007.json", "000007"),
        ("records/1000000.json", "1000000"),  # after a million units
        ("images/part-000007.parquet", "000007"),
        ("faces/part-1000000.parquet", "1000000"),
        ("staged/faces-000007.parquet", "000007"),
        ("records/000007.json.bak", ""),
        ("images/part-7.parquet", ""),
        ("photos/part-000007.parquet", ""),
        ("images/000007.jpg", ""),
    ],
)
def test_what_is_of_no_unit_is_not_taken_for_a_part_of_one(key: str, unit: str) -> None:
    assert unit_of(key) == unit
