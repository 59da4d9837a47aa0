"""Every file of a folder, nested ones with it, in order, held in memory one folder at a time."""

import errno
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from pipelines.archives.names import is_hidden, is_ignored, is_safe, printable
from pipelines.archives.patience import insist
from pipelines.errors import UserError
from pipelines.storage import Store


@dataclass(frozen=True, slots=True)
class Found:
    """A file of a folder; `problem` is the code of what keeps it from being read. `ignored` ones are no input."""

    key: str
    size: int = 0
    version: str = ""
    problem: str = ""
    ignored: bool = False


def walk(store: Store, apart: Store | None = None, passes: Callable[[str], bool] = is_ignored) -> Iterator[Found]:
    """The files below a folder, sorted by key, as S3 sorts; those below `apart`, another folder, are not among them.

    Links to files are followed, links to folders entered, each real folder once, but for hidden links.
    Those whose names `passes` over are `ignored`.
    """
    local = store.local_path()
    without = None if apart is None else apart.local_path()
    return _remote(store, apart, passes) if local is None else _local(local, without, passes)


def _remote(store: Store, apart: Store | None, passes: Callable[[str], bool]) -> Iterator[Found]:
    root = f"{store.url.rstrip('/')}/"
    below = f"{apart.url.rstrip('/')}/".removeprefix(root) if apart is not None else ""
    for key, size, version in store.objects():
        if below and key.startswith(below):
            continue
        if passes(key):
            yield Found(printable(key), ignored=True)
        else:
            yield Found(printable(key), size, version, "" if is_safe(key.lstrip("/")) else "unsafe_member")


def _local(root: Path, apart: Path | None, passes: Callable[[str], bool]) -> Iterator[Found]:
    links = _Links(root)
    without = None if apart is None else apart.resolve()
    try:
        folders = [("", insist(partial(_names, root)))]
    except PermissionError as error:
        raise UserError(f"{root} may not be opened: check its rights") from error
    while folders:
        prefix, names = folders[-1]
        if not names:
            folders.pop()
            continue
        key = prefix + names.pop()
        path = root / key
        if not key.endswith("/"):
            file = Found(printable(key), ignored=True) if passes(key) else _file(path, key)
            if file is not None:
                yield file
            continue
        try:
            if without is not None and _may_be(path, without) and path.resolve() == without:
                continue
            problem = "" if links.enter(path, key) else "linked_folder"
            if not problem:
                folders.append((key, insist(partial(_names, path))))
        except OSError as error:
            problem = problem_of(error)
        if problem:
            yield Found(printable(key[:-1]), problem=problem, ignored=is_hidden(key))


def _may_be(path: Path, real: Path) -> bool:
    """Whether it is worth asking where a folder really lies, which takes a while."""
    return path.name == real.name or path.is_symlink()


def _names(folder: Path) -> list[str]:
    """The names in a folder, last first; those of folders, and of links to them, end with a slash."""
    with os.scandir(folder) as entries:
        return sorted((f"{entry.name}/" if _is_folder(entry) else entry.name for entry in entries), reverse=True)


def _is_folder(entry: "os.DirEntry[str]") -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that may not be followed, or leads round in a circle
        return False


def _file(path: Path, key: str) -> Found | None:
    """None where it is gone since its folder was listed."""
    if printable(key) != key:
        return Found(printable(key), problem="unreadable")
    try:
        status = insist(path.stat)
    except OSError as error:
        problem = problem_of(error)
        return Found(key, problem=problem or "unsafe_member") if problem or os.path.lexists(path) else None
    if not stat.S_ISREG(status.st_mode):
        return Found(key, problem="unsafe_member")
    return Found(key, status.st_size, f"{status.st_mtime_ns}")


def problem_of(error: OSError) -> str:
    """The reason code of a file or folder that cannot be looked at; none where it is gone.

    The rest may pass, and a row would take the place of what is known of a sound picture.
    """
    if error.errno in {errno.EACCES, errno.EPERM}:
        return "forbidden"
    if error.errno == errno.ENAMETOOLONG:
        return "unreadable"
    if error.errno in {errno.ENOENT, errno.ENOTDIR, errno.ELOOP}:
        return ""
    raise error


class _Links:
    """Which real folders are entered: the root, and through links."""

    def __init__(self, root: Path) -> None:
        self._root = root.resolve()
        self._entered = {self._root}
        self._names: set[str] = set()

    def enter(self, folder: Path, key: str) -> bool:
        """Whether a folder is entered: not twice, not behind a hidden link, nor where the root lies in it."""
        if not insist(folder.is_symlink):  # one below a link's may have a link of its own
            return not (folder.name in self._names and folder.resolve() in self._entered)
        real = folder.resolve()
        if is_hidden(key) or real in self._root.parents or not self._entered.isdisjoint({real, *real.parents}):
            return False
        self._entered.add(real)
        self._names.add(real.name)
        return True
