"""Makers of archives with anything in them, and what a source gives when it is listed and read."""

import ctypes
import gzip
import io
import os
import stat
import tarfile
import warnings
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from itertools import islice
from multiprocessing import get_context
from pathlib import Path

import psutil
import pyarrow as pa

from pipelines.archives import Input, list_inputs, read_inputs
from pipelines.decoding import Undecodable
from pipelines.storage import Store

Outcome = bytes | str
"""A picture's bytes, or the reason why there are none."""


def member(name: str, data: bytes = b"", kind: bytes = tarfile.REGTYPE) -> tuple[tarfile.TarInfo, bytes]:
    """A member of a tar; a link leads to a file that everybody has."""
    info = tarfile.TarInfo(name)
    info.size, info.type = len(data), kind
    if kind in {tarfile.SYMTYPE, tarfile.LNKTYPE}:
        info.linkname = "/etc/passwd"
    return info, data


def tar(*members: tuple[tarfile.TarInfo, bytes], style: int = tarfile.PAX_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=style) as archive:
        for info, data in members:
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def zipped(*members: tuple[str | zipfile.ZipInfo, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of two members of one name
        for name, data in members:
            archive.writestr(name, data)
    return buffer.getvalue()


def packed(kind: str, files: Mapping[str, bytes]) -> bytes:
    """The files as the bytes of an archive of that suffix."""
    if kind.lower().endswith(".zip"):
        return zipped(*files.items())
    data = tar(*(member(name, content) for name, content in files.items()))
    return data if kind.lower().endswith(".tar") else gzip.compress(data, mtime=0)


def put(url: str, files: Mapping[str, bytes]) -> str:
    """The files as the archive, or else as the folder, that a URL is by its name; the URL."""
    folder, _, name = url.rpartition("/")
    if not name.lower().endswith((".zip", ".tar", ".tar.gz", ".tgz")):
        return publish(url, files)
    Store(folder).publish(name, packed(name, files))
    return url


def link(name: str) -> zipfile.ZipInfo:
    """A member of a zip that is a symbolic link."""
    info = zipfile.ZipInfo(name)
    info.create_system, info.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
    return info


def tangle(folder: Path) -> Path:
    """A folder of links: to pictures, to other folders, to itself, and to nothing."""
    real, root = folder / "real", folder / "root"
    (real / "deep").mkdir(parents=True)
    root.mkdir()
    (real / "deep" / "a.jpg").write_bytes(b"a")
    (real / "loop").symlink_to(root)
    (root / "again").symlink_to(real)
    (root / "folder").symlink_to(real)
    (root / "a.jpg").symlink_to(real / "deep" / "a.jpg")
    (root / "self").symlink_to(root)
    (root / "gone.jpg").symlink_to("nowhere")
    (root / "round.jpg").symlink_to("round.jpg")
    os.mkfifo(root / "pipe.jpg")
    return root


def place(name: str, tmp_path: Path, s3: str) -> str:
    """A URL, of a folder to come, where a test says `local` or `s3`."""
    return f"{tmp_path}/in" if name == "local" else f"{s3}/in"


def publish(url: str, files: Mapping[str, bytes]) -> str:
    """The files below a URL, which is given back."""
    for name, data in files.items():
        Store(url).publish(name, data)
    return url


def read(url: str, items: Iterable[Input] | None = None, max_bytes: int | None = None) -> list[tuple[str, Outcome]]:
    """What each input gives, in order."""
    listed = list(list_inputs(url) if items is None else items)
    found = list(read_inputs(url, listed, max_bytes))
    assert [item for item, _ in found] == listed
    return [(item.uri, data.reason if isinstance(data, Undecodable) else data) for item, data in found]


def growth(url: str) -> tuple[int, int]:
    """How many inputs a source lists, and by how many bytes its process grew from the 2,000th to the last.

    It is a process of its own: in that of the tests, servers and free memory of tests before have their part in it.
    """
    with ProcessPoolExecutor(1, get_context("spawn")) as alone:
        return alone.submit(_growth, url).result()


def _growth(url: str) -> tuple[int, int]:
    process = psutil.Process()
    listing = list_inputs(url)
    count = sum(1 for _ in islice(listing, 2000))
    before = process.memory_info().rss
    most = before
    while some := sum(1 for _ in islice(listing, 2000)):
        count += some
        most = max(most, process.memory_info().rss)
    return count, most - before


@contextmanager
def counted_memory() -> Iterator[pa.MemoryPool]:
    """What Arrow takes meanwhile, as a pool that counts it.

    It stays for good: a buffer of an open table that outlives its pool ends the process, at some later test.
    """
    usual = pa.default_memory_pool()
    counting = pa.proxy_memory_pool(usual)
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(counting))
    pa.set_memory_pool(counting)
    try:
        yield counting
    finally:
        pa.set_memory_pool(usual)
