"""A tar, packed by gzip or not: members in archive order, read in place, or in the unpacked stream."""

import tarfile
from collections.abc import Iterator
from typing import BinaryIO, Final, Self, cast

from pipelines.archives.gzips import MAGIC, GzipStream
from pipelines.archives.inputs import (
    MAX_NUMBER,
    PIECE,
    TAIL,
    BrokenArchiveError,
    Input,
    damaged,
    read_pieces,
    unusable,
)
from pipelines.archives.names import has_suffix, is_safe, normal, printable, shortened
from pipelines.decoding import Undecodable
from pipelines.errors import UserError

MAX_HEADER: Final = 1 << 20
"""Bytes of one member's headers, long names and attributes with them; tarfile reads whatever size they state."""
_PAX: Final = frozenset({b"x", b"g", b"X"})
"""Types of headers that are attributes of the next member, or of all that follow."""
_RUNS: Final = bytes(ord("0") if chr(byte) in "0123456789" else ord(" ") for byte in range(256))
_LONGEST_RUN: Final = b"0" * 256
"""Of digits: more than a number has, or a file's own name."""
_NOTES: Final = frozenset({b"D", b"V"})
"""Types of members by which GNU tar tells of a folder, in a backup of what changed, and of the archive itself."""


class Tar:
    """An open tar; owns `file`. One reader at a time."""

    def __init__(self, file: BinaryIO, place: str) -> None:
        self._place = place
        # Its name may say otherwise: some clients unpack what they fetch, and some tools pack what they call .tar.
        # Zeros, as of a download that never began, would be a tar without members, and no row: there the name counts.
        start = file.read(len(MAGIC))
        packed = start == MAGIC or not (any(start) or has_suffix(place, (".tar",)))
        self._stream = GzipStream(file) if packed else None
        self._file = file if self._stream is None else cast(BinaryIO, self._stream)

    def members(self) -> Iterator[Input]:
        """Files, with names for uris and no container, and `TAIL` where the rest is lost.

        Raises:
            BrokenArchiveError: the first header is none.
        """
        end = None if self._stream else self._file.seek(0, 2)
        self._file.seek(0)
        headers = _Headers(self._file)
        try:
            tar = tarfile.open(fileobj=cast(BinaryIO, headers), mode="r:", tarinfo=_Header)  # noqa: SIM115 - closed below
        except (OSError, UserError):
            raise
        except Exception as error:
            raise BrokenArchiveError(f"{self._place} is not a tar archive: {error}") from error
        place = 0
        with tar:
            while True:
                headers.left = MAX_HEADER
                try:
                    member = tar.next()
                except (OSError, UserError):
                    raise
                except Exception as error:  # of a hostile header anything may come: recursion, overflow, bad digits
                    yield self._lost(tar.offset, "truncated" if isinstance(error, tarfile.ReadError) else "corrupt")
                    return
                if member is None:
                    break
                # Tarfile keeps what any header says of all members, and a negative size leads back.
                said = sum(len(key) + len(value) for key, value in tar.pax_headers.items())
                if said > MAX_HEADER or not place < member.offset_data <= tar.offset:
                    yield self._lost(place, "corrupt")
                    return
                place = member.offset_data
                tar.members.clear()  # type: ignore[attr-defined]  # or it holds every member of a large archive
                if member.isdir() or member.type in _NOTES or _is_told_again(member):
                    continue
                problem = ""
                if member.islnk() and is_safe(member.name) and is_safe(member.linkname):
                    problem = "hard_link"
                elif not member.isreg() or member.issparse() or not is_safe(member.name):
                    problem = "unsafe_member"
                elif not self._reaches(member.offset_data + member.size, end):
                    problem = self._broken("truncated")
                name, version = shortened(whole := normal(printable(member.name))), f"{member.mtime}"
                if name != whole:
                    problem = problem or "unreadable"
                size = min(member.size, MAX_NUMBER)
                yield Input(name, "", member.offset_data, size, size, version, problem)
                if problem not in {"", "unsafe_member", "hard_link", "unreadable"}:
                    return
            tail = tar.offset
        self._file.seek(tail)
        block = self._file.read(tarfile.BLOCKSIZE)
        if len(block) < tarfile.BLOCKSIZE:
            yield self._lost(tail, "truncated")
        elif any(block) or self._goes_on():
            yield self._lost(tail, "corrupt")

    def read(self, item: Input, limit: int) -> bytes | Undecodable:
        """A member's bytes, or why there are none. Trouble that may pass is raised."""
        if problem := unusable(item, limit):
            return problem
        self._file.seek(item.offset - tarfile.BLOCKSIZE)
        if not _is_header(self._file.read(tarfile.BLOCKSIZE), item.size):
            return damaged()
        data = read_pieces(self._file, item.size)
        return data if len(data) == item.size else damaged()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def _reaches(self, place: int, end: int | None) -> bool:
        """Whether the archive has so many bytes; a stream must be read to know."""
        if end is not None or not place:
            return end is None or place <= end
        self._file.seek(place - 1)
        return bool(self._file.read(1))

    def _goes_on(self) -> bool:
        """Whether something follows that is no padding, such as another archive: `cat a.tar b.tar` makes it so."""
        while piece := self._file.read(PIECE):
            if piece.strip(b"\0"):
                return True
        return False

    def _broken(self, problem: str) -> str:
        return (self._stream.problem if self._stream else "") or problem

    def _lost(self, offset: int, problem: str) -> Input:
        return Input(TAIL, "", offset, 0, 0, "", self._broken(problem))


def _is_told_again(member: tarfile.TarInfo) -> bool:
    """Whether it stands for a file that `tar` was told to pack once more: a link to its own name."""
    return member.islnk() and normal(member.linkname) == normal(member.name)


class _Header(tarfile.TarInfo):
    """GNU tar writes times into a backup where other kinds have how a name begins, for which tarfile takes them."""

    @classmethod
    def fromtarfile(cls, tarfile: tarfile.TarFile) -> Self:
        cast(_Headers, tarfile.fileobj).at_header = True  # which only tarfile knows
        return super().fromtarfile(tarfile)

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        member = super().frombuf(buf, encoding, errors)
        if buf[257:265] == b"ustar  \0":
            times = bytes(buf[345:500]).partition(b"\0")[0].decode(encoding, errors)
            member.name = member.name.removeprefix(f"{times}/")
        return member


class _Refused(Exception):  # noqa: N818 - becomes the row of a broken tail
    pass


class _Headers:
    """What tarfile sees of a file: `left` more bytes of headers."""

    def __init__(self, file: BinaryIO) -> None:
        self.left = MAX_HEADER
        self.seek = file.seek
        self.tell = file.tell
        self._read = file.read
        self.at_header = False
        """whether one is what is read next"""
        self._attributes = False
        """whether such are"""

    def read(self, size: int) -> bytes:
        """As that of a file."""
        self.left -= size
        if self.left < 0:
            raise _Refused(f"a header of more than {MAX_HEADER} bytes")
        block = self._read(size)
        if self._attributes and not _are_attributes(block):
            raise _Refused("its attributes are damaged")
        # What is no header may look like one: a long name has any letter at the place of the type.
        self._attributes = self.at_header and block[156:157] in _PAX
        self.at_header = False
        return block


def _are_attributes(block: bytes) -> bool:
    """Whether a block is made of records, each of the length that it begins with: `11 key=abc` and a line's end.

    Pythons of before 2024's last look for the end of others in all that follows, again for each, and for that of a
    number from each of its digits: a megabyte took them an hour, or 100 GB.
    """
    place = 0
    while place < len(block) and block[place]:
        length, blank, _ = block[place : place + 21].partition(b" ")
        end = place + (int(length) if blank and length.isdigit() else 0)
        if not (place < end <= len(block) and b"=" in block[place : end - 1] and block[end - 1] == ord("\n")):
            return False
        place = end
    return _LONGEST_RUN not in block.translate(_RUNS)


def _is_header(block: bytes, size: int) -> bool:
    """Whether a member of that size begins behind this block; attributes before it may have told the size."""
    try:
        return tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape").size in {0, size}
    except tarfile.HeaderError:
        return False
