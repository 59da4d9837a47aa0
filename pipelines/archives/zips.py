"""A `.zip`: members in the order of its directory, read in place.

The directory is read piece by piece (`zipfile` holds all of it), and no size in it is trusted. Stored and deflated
members are read: of the other methods one small block may unpack to any size.
"""

import re
import stat
import struct
import zlib
from collections.abc import Iterator
from dataclasses import replace
from typing import BinaryIO, Final

from pipelines.archives.inputs import MAX_NUMBER, TAIL, BrokenArchiveError, Input, damaged, read_pieces, unusable
from pipelines.archives.names import is_safe, normal, printable, shortened
from pipelines.decoding import Undecodable

# Records of the format, APPNOTE.TXT 4.3.7 to 4.3.16.
_LOCAL: Final = struct.Struct("<4s5H3L2H")
_ENTRY: Final = struct.Struct("<4s6H3L5H2L")
_END: Final = struct.Struct("<4s4H2LH")
_END_64: Final = struct.Struct("<4sQ2H2L4Q")
_LOCATOR_64: Final = struct.Struct("<4sLQL")
_LARGE: Final = 0xFFFFFFFF
"""Stands for a number that the extra field of zip64 has."""
_MAX_COMMENT: Final = 0xFFFF
_ZIP_64: Final = 1
_UNICODE_NAME: Final = 0x7075
_NO_LETTER: Final = r"(?<![^\0-\x7f])\\"
"""A backslash that cannot be the second byte of a letter, as it is in the Shift JIS of 予.jpg: no folder of a file
`.jpg`, which would be hidden.
"""
_ENCRYPTED: Final = 1
_UTF_8: Final = 1 << 11
_STORED: Final = 0
_DEFLATED: Final = 8
_UNIX: Final = 3
_BLOCK: Final = 1 << 18
"""Bytes of the directory read at once: more than the largest entry has."""


class Zip:
    """An open zip; owns `file`. One reader at a time.

    Raises:
        BrokenArchiveError: there is no directory at its end.
    """

    def __init__(self, file: BinaryIO, place: str) -> None:
        self._file = file
        self._directory, self._end, self._shift = _directory(file, place)

    def members(self) -> Iterator[Input]:
        """Files, with names for uris and no container, and `TAIL` where the rest of the directory is lost."""
        place, start, block = self._directory, -1, b""
        told = 0
        """bytes of members so far"""
        while place < self._end:
            at = place - start
            left = len(block) - at
            length = _length(block, at) if left >= _ENTRY.size else _ENTRY.size
            if length > left and start != place:
                start = place
                self._file.seek(start)
                block = self._file.read(min(_BLOCK, self._end - start))
                continue
            if not length or length > left:
                yield Input(TAIL, "", place, 0, 0, "", "corrupt")
                return
            member = _member(block[at : at + length], self._shift, self._directory)
            if member is not None:
                told += 0 if member.problem else member.packed
                if told > self._directory and not member.problem:
                    # Of members that share their bytes a small archive could hold so many that they take days.
                    member = replace(member, problem="corrupt")
                yield member
            place += length

    def read(self, item: Input, limit: int) -> bytes | Undecodable:
        """A member's bytes, or why there are none. Trouble that may pass is raised."""
        if problem := unusable(item, limit):
            return problem
        self._file.seek(item.offset)
        header = self._file.read(_LOCAL.size)
        if len(header) < _LOCAL.size or not header.startswith(b"PK\3\4"):
            return damaged()
        _, _, _, method, *_, name, extra = _LOCAL.unpack(header)
        self._file.seek(name + extra, 1)
        if method == _STORED:
            data = read_pieces(self._file, item.size)
        elif method == _DEFLATED and item.packed <= 2 * limit:
            state = zlib.decompressobj(-zlib.MAX_WBITS)
            try:
                data = state.decompress(read_pieces(self._file, item.packed), limit + 1)
            except zlib.error:
                return damaged()
            if len(data) > limit:
                return Undecodable("too_large", f"the limit is {limit} bytes")
        else:
            return damaged()
        return data if len(data) == item.size and f"{zlib.crc32(data):08x}" == item.version else damaged()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


def _directory(file: BinaryIO, place: str) -> tuple[int, int, int]:
    """Where the directory begins and ends, and how many bytes precede the archive (a program that unpacks it)."""
    length = file.seek(0, 2)
    start = max(0, length - _MAX_COMMENT - _END.size - _LOCATOR_64.size)
    file.seek(start)
    tail = file.read(length - start)
    at = tail.rfind(b"PK\5\6", 0, len(tail) - _END.size + 4)
    if at < 0:
        raise BrokenArchiveError(f"{place} is not a zip archive, or was cut short: fetch it again")
    *_, size, offset, _ = _END.unpack_from(tail, at)
    end = start + at
    locator = tail[at - _LOCATOR_64.size : at] if at >= _LOCATOR_64.size else b""
    if locator.startswith(b"PK\6\7"):
        _, _, end_64, _ = _LOCATOR_64.unpack(locator)
        # Its offset is of no use where a program precedes the archive; then it lies right before the locator.
        for candidate in (end_64, end - _LOCATOR_64.size - _END_64.size):
            file.seek(max(0, min(candidate, length)))
            record = file.read(_END_64.size)
            if len(record) == _END_64.size and record.startswith(b"PK\6\6"):
                *_, size, offset = _END_64.unpack(record)
                end = candidate
                break
    shift = end - size - offset
    if shift < 0:
        raise BrokenArchiveError(f"{place} is not a zip archive, or was cut short: fetch it again")
    return offset + shift, end, shift


def _length(block: bytes, at: int) -> int:
    """The bytes of the directory's entry that begins there; 0 where none does."""
    if not block.startswith(b"PK\1\2", at):
        return 0
    name, extra, comment = struct.unpack_from("<3H", block, at + 28)
    return int(_ENTRY.size + name + extra + comment)


def _member(entry: bytes, shift: int, end: int) -> Input | None:
    """The file of an entry; None for a folder. Members end at `end`."""
    _, made_by, _, flags, method, _, _, crc, *sizes, name_size, extra_size, _, _, _, attributes, offset = (
        _ENTRY.unpack_from(entry)
    )
    raw = entry[_ENTRY.size : _ENTRY.size + name_size]
    extra = dict(_extra(entry[_ENTRY.size + name_size : _ENTRY.size + name_size + extra_size]))
    packed, size, offset = _large(sizes[0], sizes[1], offset, extra.get(_ZIP_64, b""))
    name = _name(raw, flags, extra.get(_UNICODE_NAME, b""))
    if name.endswith("/"):
        return None
    kind = stat.S_IFMT(attributes >> 16) if made_by >> 8 == _UNIX else 0
    problem = ""
    if not is_safe(name) or kind not in {0, stat.S_IFREG}:
        problem = "unsafe_member"
    elif flags & _ENCRYPTED:
        problem = "encrypted"
    elif method not in {_STORED, _DEFLATED}:
        problem = "compression"
    place, size = min(offset + shift, MAX_NUMBER), min(size, MAX_NUMBER)
    packed = min(packed, MAX_NUMBER) if method == _DEFLATED else size
    if not problem and place + packed >= end:
        problem = "corrupt"
    uri = shortened(whole := normal(printable(name)))
    if uri != whole:
        problem = problem or "unreadable"
    return Input(uri, "", place, size, packed, f"{crc:08x}", problem)


def _extra(data: bytes) -> Iterator[tuple[int, bytes]]:
    while len(data) >= 4:
        kind, size = struct.unpack_from("<2H", data)
        yield kind, data[4 : 4 + size]
        data = data[4 + size :]


def _large(packed: int, size: int, offset: int, field: bytes) -> tuple[int, int, int]:
    """The numbers of an entry, with those that only zip64 can hold."""
    numbers = iter(struct.unpack(f"<{len(field) // 8}Q", field[: len(field) // 8 * 8]))
    size = next(numbers, size) if size == _LARGE else size
    packed = next(numbers, packed) if packed == _LARGE else packed
    offset = next(numbers, offset) if offset == _LARGE else offset
    return packed, size, offset


def _name(raw: bytes, flags: int, unicode_name: bytes) -> str:
    """A member's name. Many programs write UTF-8 without its flag, and other text is hardly ever valid UTF-8."""
    if len(unicode_name) > 5 and struct.unpack_from("<L", unicode_name, 1)[0] == zlib.crc32(raw):
        raw, flags = unicode_name[5:], flags | _UTF_8
    separator = "\\\\"
    try:
        name = raw.decode("utf-8", "surrogateescape" if flags & _UTF_8 else "strict")
    except UnicodeDecodeError:
        name = raw.decode("cp437")
        separator = _NO_LETTER
    name = name.partition("\0")[0]
    # Some programs for Windows write its own separator, which the format forbids.
    return name if "/" in name else re.sub(separator, "/", name)
