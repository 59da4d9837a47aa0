"""Bare photographs for bulk annotation, from whatever a person has, local or on S3.

A folder (nested; the archives and tables in it are entered like folders), a `.tar`, `.tar.gz` or `.zip`, a table
(`.parquet`) with a column of pictures, a list of paths and URIs (`.txt`, `.lst`, `.csv`), or one picture. Every input
is one row to come: it gives bytes, or the reason why there are none. Nothing is ever extracted: members are read in
place. Memory is that of the largest folder's names and of a few pictures, whatever the number of inputs.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from itertools import chain, groupby

from pipelines.archives.containers import SUFFIXES, borrowed, list_container
from pipelines.archives.files import read_files
from pipelines.archives.folders import Found, walk
from pipelines.archives.inputs import PROBLEMS, Input, has_vanished, reason_of, unopened, unusable
from pipelines.archives.lists import list_entries, place_of
from pipelines.archives.names import LIST_SUFFIXES, UNSUPPORTED_SUFFIXES, has_suffix, is_picture, printable, split_url
from pipelines.archives.patience import Patience, insist, insisted, patience_with, told
from pipelines.archives.tables import NoPicturesError
from pipelines.decoding import Limits, Undecodable
from pipelines.errors import UserError
from pipelines.outages import OutageError
from pipelines.storage import Store

__all__ = ["PROBLEMS", "Input", "Listing", "has_vanished", "list_inputs", "read_inputs"]

_KINDS = "give a picture, a folder of them, a .tar, .tar.gz or .zip, a .parquet with pictures, or a list (.txt, .csv)"


class Listing:
    """Inputs in input order, one after the other; `ignored` counts the sidecars and hidden files passed so far."""

    def __init__(self, entries: Iterator[Input | None]) -> None:
        self.ignored = 0
        self._entries = entries

    def __iter__(self) -> "Listing":
        return self

    def __next__(self) -> Input:
        for entry in self._entries:
            if entry is not None:
                return entry
            self.ignored += 1
        raise StopIteration

    def begun(self) -> bool:
        """Whether there is an input; the first is looked for."""
        first = next(self, None)
        if first is not None:
            self._entries = chain([first], self._entries)
        return first is not None


def list_inputs(url: str, apart: Store | None = None) -> Listing:
    """Every input of a source. The same source gives the same inputs in the same order.

    What lies in `apart`, a folder below the source, is no part of it: a run may write into its own archive.

    Raises:
        UserError: nothing is there, it is of no known kind or broken at its beginning, or it has no input.
        OutageError: S3 fails, or the disk cannot read what it has to say.
    """
    listing = Listing(_entries(url, apart))
    if not listing.begun():
        raise UserError(f"{url} has no pictures ({listing.ignored} other files): {_KINDS}, with some in it")
    return listing


def read_inputs(
    url: str, inputs: Sequence[Input], max_bytes: int | None = None
) -> Iterator[tuple[Input, bytes | Undecodable]]:
    """Each input with its bytes, or with why there are none.

    Of plain files some are read ahead (`pipelines.archives.files`), of anything else one is held at a time.
    A container is opened once for consecutive inputs, and stays open for the next call: a compressed tar is not
    unpacked again from its beginning by a process that reads on.

    Args:
        url: the source that was listed.
        inputs: some of what `list_inputs` gave, in any order; their own is the fastest.
        max_bytes: the most that is read or unpacked of one input; by default that of `decoding.Limits`.

    Raises:
        OSError, OutageError: trouble that may pass: read again.
        UserError: the source is gone.
    """
    limit = Limits().max_bytes if max_bytes is None else max_bytes
    store, name = _place(url)
    patience = patience_with(url)
    is_list = has_suffix(name, LIST_SUFFIXES)
    for container, group in groupby(inputs, key=lambda item: item.container):
        if container:
            yield from _read_container(store, container, group, limit, patience)
        else:
            places = (
                (item, *(place_of(store, item.uri) if is_list and not item.problem else (store, item.uri)))
                for item in group
            )
            yield from read_files(places, limit, patience)


def _entries(url: str, apart: Store | None) -> Iterator[Input | None]:
    with told(url):
        store, name = insist(partial(_place, url))
        if not name:
            yield from _folder(store, apart, patience_with(url))
        elif has_suffix(name, SUFFIXES):
            yield from insisted(partial(list_container, store, name))
        elif has_suffix(name, LIST_SUFFIXES):
            yield from insisted(partial(list_entries, store, name))
        elif has_suffix(name, UNSUPPORTED_SUFFIXES):
            raise UserError(f"{url} is a kind of archive that is not read: unpack it, or make a .tar or .zip of it")
        elif is_picture(name):
            yield _alone(store, name)
        else:
            raise UserError(f"{url} is of no known kind: {_KINDS}")


def _place(url: str) -> tuple[Store, str]:
    """The folder of a source, and its name there; none where it is a folder itself."""
    store = Store(url)
    if store.version() is not None:
        return split_url(store.url)
    if not store.exists():
        raise UserError(f"{url} does not exist: {_KINDS}")
    local = store.local_path()
    if local is not None and not local.is_dir():
        raise UserError(f"{url} is neither a folder nor a file: {_KINDS}")
    return store, ""


def _folder(store: Store, apart: Store | None, patience: Patience) -> Iterator[Input | None]:
    for found in walk(store, apart):
        if found.problem or found.ignored:
            yield None if found.ignored else _plain(found)
        elif has_suffix(found.key, SUFFIXES):
            yield from _entered(store, found, patience)
        elif has_suffix(found.key, UNSUPPORTED_SUFFIXES):
            yield _plain(found, "unsupported_archive")
        else:
            yield _plain(found)


def _plain(found: Found, problem: str = "") -> Input:
    return Input(found.key, "", 0, found.size, found.size, found.version, problem or found.problem)


def _alone(store: Store, name: str) -> Input:
    """A picture that is a whole source; how large it is, who reads it finds out."""
    uri = printable(name)
    version = insist(partial(store.version, name)) or ""
    return Input(uri, "", 0, 0, 0, version, "" if uri == name else "unreadable")


def _entered(store: Store, found: Found, patience: Patience) -> Iterator[Input | None]:
    """What a container in a folder holds, and one row if it cannot be opened, or not all of it be listed."""
    try:
        for entry in patience.listed(partial(list_container, store, found.key, f"{found.key}/")):
            yield _plain(found, "broken_archive") if isinstance(entry, Undecodable) else entry
    except NoPicturesError:
        yield None
    except OutageError:
        raise
    except UserError as error:
        yield _plain(found, reason_of(error))


def _read_container(
    store: Store, key: str, items: Iterator[Input], limit: int, patience: Patience
) -> Iterator[tuple[Input, bytes | Undecodable]]:
    with ExitStack() as stack:
        try:
            container = patience.open(lambda: stack.enter_context(borrowed(store, key)))
        except OutageError:
            raise
        except UserError as error:
            container = unopened(error)
        if isinstance(container, Undecodable):
            yield from ((item, unusable(item, limit) or container) for item in items)
            return
        for item in items:
            yield item, patience.read(partial(container.read, item, limit))
