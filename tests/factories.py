"""Small things that tests of the stations share: synthetic photos in the layout of 300-W, untrained models."""

import errno
import hashlib
import io
import multiprocessing
import os
import subprocess
import sys
import tracemalloc
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.context import ForkServerProcess
from multiprocessing.forkserver import ensure_running
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from msrrn.artifact import Card, save
from msrrn.augmentation import AugmentationSettings
from msrrn.config import ModelConfig
from msrrn.geometry import LEVELS
from msrrn.network import MSRRN
from msrrn.synthetic import SyntheticPhoto
from pipelines.dataset.manifest import MANIFEST, Manifest, UnitEntry
from pipelines.dataset.shards import Split, encode_shard
from pipelines.models import Model, read_model
from pipelines.settings import PrepareSettings
from pipelines.sources.pts import format_pts
from pipelines.storage import Store
from tests.pipelines.containers import packed

Dataset = tuple[Store, Manifest]
Result = TypeVar("Result")

PLANTED = "planted-Ve7ry5ecret"
"""A password that must be found nowhere."""

TINY = ModelConfig(patch=12, patch_channels=(2, 2), initial_channels=(4, 4, 4), initial_hidden=16, hidden=16)

ANY_SHAPE = np.random.default_rng(0).uniform(0.2, 0.8, (68, 2)).astype(np.float32)
"""A mean shape that is nobody's."""

SETTINGS = PrepareSettings(augmentation=AugmentationSettings(copies=3), photos_per_shard=2)
"""Several shards from a handful of photos."""


def write_face(folder: Path, stem: str, photo: bytes, shape: NDArray[np.floating], suffix: str = ".jpg") -> None:
    """One picture beside its `.pts`."""
    image = folder / f"{stem}{suffix}"
    image.parent.mkdir(parents=True, exist_ok=True)
    image.write_bytes(photo)
    (folder / f"{stem}.pts").write_bytes(format_pts(shape))


def write_300w(folder: Path, single: Sequence[SyntheticPhoto], double: Sequence[SyntheticPhoto]) -> None:
    """The official layout: 4 photos of LFPW and 2 of HELEN, 2 test photos, the rest as AFW is.

    Photos with two faces are there once for each face, with the same bytes. `val.txt` names one of LFPW and
    one of HELEN.
    """
    stems = [f"lfpw/trainset/{n}" for n in range(4)] + [f"helen/trainset/{n}" for n in range(2)]
    stems += ["lfpw/testset/0", "ibug/image_1 _01"]
    for stem, photo in zip(stems, single, strict=True):
        write_face(folder, stem, photo.jpeg, photo.shapes[0])
    for number, photo in enumerate(double):
        for index, shape in enumerate(photo.shapes, start=1):
            write_face(folder, f"afw/{number}_{index}", photo.jpeg, shape)
    (folder / "val.txt").write_text("lfpw/trainset/3\nhelen/trainset/1\n")


def tiny_model(folder: Path, mean_shape: NDArray[np.float32], seed: int = 0) -> Model:
    """An untrained model: shapes near `mean_shape` of the crop."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    card = Card(version=f"tiny{seed}", crop_margin=1.5, detector="hog", config=TINY)
    save(folder, MSRRN(TINY, torch.from_numpy(mean_shape)), card)
    return read_model(folder)


def write_model(folder: Path, model: Model) -> str:
    """Its artifact directory."""
    folder.mkdir(exist_ok=True)
    for name, data in model.files:
        (folder / name).write_bytes(data)
    return str(folder)


def write_shards(folder: Path, train: Sequence[Sequence[int]], val: Sequence[Sequence[int]] = ()) -> Dataset:
    """A dataset without photographs: for each shard, how many rows each of its row groups has.

    Samples are numbered by split, in order: number n is the x of the first landmark, and n % 251 every pixel; every
    third is mirrored.
    """
    units: list[UnitEntry] = []
    splits: dict[Split, Sequence[Sequence[int]]] = {"train": train, "val": val}
    for split, shards in splits.items():
        number = 0
        for index, sizes in enumerate(shards):
            copies = [copy for copy, size in enumerate(sizes) for _ in range(size)]
            rows = [numbered_row(number + offset, copy, split) for offset, copy in enumerate(copies)]
            number += len(rows)
            data = encode_shard(rows, "{}")
            digest = hashlib.sha256(data).hexdigest()
            unit = UnitEntry(
                key=f"{split}-{index}", split=split, photos=1, rows=len(rows), bytes=len(data), sha256=digest
            )
            units.append(unit)
            Store(str(folder)).publish(unit.shard, data)
    manifest = Manifest(
        name="numbered",
        code_version="0",
        settings={},
        counts={"rows": sum(unit.rows for unit in units)},
        faces_by_source={},
        missed=0,
        checks=[],
        units=units,
        left_out=[],
    )
    store = Store(str(folder / "numbered"))
    store.publish(MANIFEST, manifest.model_dump_json().encode())
    return store, manifest


def numbered_row(number: int, copy: int, split: str) -> dict[str, Any]:
    """A row of `write_shards`."""
    row: dict[str, Any] = {f"image_{size}": np.full((size, size), number % 251, np.uint8) for size in LEVELS}
    landmarks = np.random.default_rng(number).random((68, 2), np.float32)
    landmarks[0, 0] = number
    names = {"face_id": f"{number}:0", "photo_sha256": str(number), "photo_uri": "", "annotation_uri": ""}
    numbers = dict.fromkeys(("padding", "face_roll", "brightness", "sharpness", "roll", "noise_sigma"), 0.0)
    row |= names | numbers | {"face_index": 0, "source": "numbered", "split": split, "copy": copy}
    row |= {"landmarks": landmarks.ravel(), "to_crop": [0.0] * 6, "box": [0.0] * 4, "shift": [0.0] * 2}
    return row | {"detected": False, "detector_score": None, "mirrored": number % 3 == 0, "scale": 1.0}


def picture(pixels: NDArray[np.generic], kind: str = "PNG", **options: object) -> bytes:
    """An array as the bytes of a file."""
    return saved(Image.fromarray(pixels), kind, **options)


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    """An image as the bytes of a file."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def write_tar(path: Path, members: Mapping[str, bytes]) -> None:
    """A tar whose members may have any name."""
    path.write_bytes(packed(".tar", members))


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below a folder by its final name; a killed run may leave temporary ones."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.startswith(".tmp-")
    }


def times(folder: Path) -> dict[str, int]:
    """When each file was written."""
    return {str(path): path.stat().st_mtime_ns for path in sorted(folder.rglob("*")) if path.is_file()}


def killed_after(seconds: float, work: Callable[..., object], *arguments: object) -> int:
    """Runs `work` in a process of its own and kills it with SIGKILL; returns its exit code (-9 when killed)."""
    return _stopped(work, arguments, seconds)


def killed_at_write(write: int, work: Callable[..., object], *arguments: object) -> int:
    """The same, in the moment before it syncs its `write`-th file or directory to the disk."""
    return _stopped(_counting, (write, work, *arguments), None)


def refuse(monkeypatch: pytest.MonkeyPatch, **folders: int) -> None:
    """Folders of these names cannot be listed, for that reason of the system; root may open anything otherwise."""
    scan = os.scandir

    def refusing(folder: str | Path) -> Any:
        if number := folders.get(Path(folder).name):
            raise OSError(number, os.strerror(number), str(folder))
        return scan(folder)

    monkeypatch.setattr(os, "scandir", refusing)


def refuse_entry(monkeypatch: pytest.MonkeyPatch, folder: str) -> None:
    """A folder of this name may be listed and not entered."""
    plain = os.stat

    def refusing(path: Any, *arguments: Any, **named: Any) -> os.stat_result:
        if not isinstance(path, int) and Path(path).parent.name == folder:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return plain(path, *arguments, **named)

    monkeypatch.setattr(os, "stat", refusing)


def traced(work: Callable[[], Result]) -> tuple[Result, int]:
    """What `work` gives, and the bytes that Python's own objects took at most meanwhile.

    It works in a child: `tracemalloc.stop` may crash where other threads allocate (CPython's issue 128679, mended in
    3.12.9), and servers of the tests are such threads.
    """
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)

    def run() -> None:
        tracemalloc.start()
        result = work()
        theirs.send((result, tracemalloc.get_traced_memory()[1]))

    process = context.Process(target=run)
    process.start()
    theirs.close()
    found: tuple[Result, int] = ours.recv()  # EOFError, where it has told why on stderr
    process.join()
    return found


def calls_of(work: Callable[[], object]) -> int:
    """How many functions of Python are called by `work`, in this thread: what it costs, the same on every machine."""
    calls = 0

    def count(frame: object, event: str, argument: object) -> None:
        nonlocal calls
        calls += event == "call"

    sys.setprofile(count)
    try:
        work()
    finally:
        sys.setprofile(None)
    return calls


def forked(work: Callable[..., object], *arguments: object) -> ForkServerProcess:
    """A process, not yet begun, that does some work in the environment of now.

    It is a fork of one that has imported what tests do, and keeps the environment of the test that was first.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.preloaded"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))  # it does not know where this one finds modules
        ensure_running()
    return context.Process(target=_in_environment, args=(dict(os.environ), work, arguments))


def _in_environment(environment: Mapping[str, str], work: Callable[..., object], arguments: Sequence[object]) -> None:
    os.environ.clear()
    os.environ.update(environment)
    work(*arguments)


def _stopped(work: Callable[..., object], arguments: Sequence[Any], seconds: float | None) -> int:
    process = forked(work, *arguments)
    process.start()
    process.join(seconds)
    process.kill()
    process.join()
    assert process.exitcode is not None
    return process.exitcode


def _counting(write: int, work: Callable[..., object], *arguments: object) -> None:
    left = write
    sync = os.fsync

    def fsync(descriptor: int) -> None:
        nonlocal left
        left -= 1
        if not left:
            os.kill(os.getpid(), 9)
        sync(descriptor)

    vars(os)["fsync"] = fsync  # this process ends with the test
    work(*arguments)


def start_msrrn(*arguments: str, process_group: int | None = None) -> subprocess.Popen[str]:
    """The command line, in a process of its own, far from any server or registry of the tests."""
    command = [sys.executable, "-c", "from flows.cli import entry; entry()", *arguments]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, process_group=process_group)
