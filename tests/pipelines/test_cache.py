import os
from pathlib import Path

import pytest

from pipelines.cache import KEPT, cache_directory, compiled_once, remembered
from pipelines.errors import UserError


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MSRRN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_what_was_made_is_not_made_again(cache: Path) -> None:
    made: list[int] = []

    def make() -> bytes:
        made.append(1)
        return b"graph"

    assert remembered("graphs", "one", make, bytes) == remembered("graphs", "one", make, bytes) == b"graph"
    assert len(made) == 1
    assert remembered("graphs", "two", lambda: b"other", bytes) == b"other"
    assert sorted(path.name for path in (cache / "graphs").iterdir()) == ["one", "two"]


def test_what_was_compiled_elsewhere_is_compiled_again(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[bytes] = []

    def compile_(data: bytes) -> bytes:
        compiled.append(data)
        return data.upper()

    for kind, data in (("here", b"one"), ("here", b"one"), ("here", b"two"), ("elsewhere", b"one")):
        monkeypatch.setattr("pipelines.cache.compiled_for", lambda precision, kind=kind: kind + precision)
        assert compiled_once(data, compile_, bytes) == data.upper()
    assert compiled == [b"one", b"two", b"one"]
    assert compiled_once(b"one", compile_, bytes, "bfloat16") == b"ONE"
    assert compiled == [b"one", b"two", b"one", b"one"]


def test_only_the_newest_are_kept(cache: Path) -> None:
    for index in range(KEPT + 3):
        remembered("graphs", str(index), lambda: b"graph", bytes)
        os.utime(cache / "graphs" / str(index), (index, index))
    assert sorted(int(path.name) for path in (cache / "graphs").iterdir()) == list(range(3, KEPT + 3))


def test_it_does_without_where_nothing_can_be_kept(cache: Path) -> None:
    cache.write_bytes(b"a file, not a directory")
    assert remembered("graphs", "one", lambda: b"graph", bytes) == b"graph"


def test_what_was_damaged_is_made_again(cache: Path) -> None:
    for damage in (lambda data: b"", lambda data: data[:-1], lambda data: data[:-1] + b"x"):
        remembered("graphs", "one", lambda: b"graph", bytes)
        path = cache / "graphs" / "one"
        path.write_bytes(damage(path.read_bytes()))
        assert remembered("graphs", "one", lambda: b"anew", bytes) == b"anew"
        path.unlink()


def test_what_cannot_be_taken_up_is_made_again(cache: Path) -> None:
    def take_up(data: bytes) -> str:
        if data == b"of another day":
            raise RuntimeError("not a graph")
        return data.decode()

    remembered("graphs", "one", lambda: b"of another day", bytes)
    assert remembered("graphs", "one", lambda: b"anew", take_up) == "anew"
    assert remembered("graphs", "one", lambda: b"never asked", take_up) == "anew"
    with pytest.raises(RuntimeError, match="not a graph"):
        remembered("graphs", "two", lambda: b"of another day", take_up)


def test_who_has_no_home_is_told_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("MSRRN_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    with pytest.raises(UserError, match="set MSRRN_CACHE to a directory"):
        cache_directory()
    assert remembered("graphs", "one", lambda: b"graph", bytes) == b"graph"
