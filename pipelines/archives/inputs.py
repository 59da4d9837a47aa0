"""One picture of a source: where it is, or what is known to be wrong with it."""

from dataclasses import dataclass
from typing import BinaryIO, Final

from pipelines.decoding import Undecodable
from pipelines.errors import UserError
from pipelines.outages import MissingError

PROBLEMS: Final = {
    "unsafe_member": "not a regular file (a link that leads nowhere, a device), or a path that leaves the archive",
    "hard_link": "another name of a file that the archive has under its first one: unpack the archive to have both",
    "truncated": "the archive ends before this member does",
    "corrupt": "the archive is damaged here, or changed since it was listed: fetch or make it again",
    "unreadable": "it is gone since it was listed, or its name is too long or not valid UTF-8: rename it",
    "forbidden": "it may not be opened: check its rights, and those of the folders above it",
    "linked_folder": "a folder, or a link to one, that is read under another name",
    "encrypted": "encrypted: unpack the archive and make a new one without a password",
    "compression": "compressed by a method other than deflate: make the archive again",
    "broken_archive": "an archive that cannot be read: fetch or make it again",
    "nested_archive": "in an archive or a list, or beside annotated pictures: unpack it, or give it by itself",
    "unsupported_archive": "a kind of archive, or of table, that is not read: make a .tar, .tar.gz or .zip of it",
    "unsupported_url": "only files and s3:// are read: download it, and name the file",
    "too_large": "it unpacks to far more than pictures do",
}
"""Every reason code that a listing may give, with its text for people."""
MISSING: Final = Undecodable(
    "unreadable", "no file is there, or no longer; relative paths of a list are seen from its folder"
)
"""What is read where a file is not."""
_LOST: Final = {MISSING.message, PROBLEMS["unreadable"], PROBLEMS["broken_archive"]}
MAX_NUMBER: Final = (1 << 63) - 1
"""What a hostile header says beyond it is cut to it: tables hold no larger number."""
TAIL: Final = "(end of archive)"
"""Stands for the members of an archive that nothing can be known of."""
PIECE: Final = 4 << 20
"""Bytes that one request to S3 brings where a container is read through: a picture or more."""


class BrokenArchiveError(UserError):
    """A file is not what its suffix says."""


class UnsupportedArchiveError(UserError):
    """A file has pictures in a way that is not read."""


@dataclass(frozen=True, slots=True)
class Input:
    """One picture, whether it can be read or not.

    `uri` is what tables quote: the path below the source, of which archives are a part (`lfpw.zip/a.png`), or
    a list's entry as it is written; always valid UTF-8. `container` is the key, below the source's folder, of
    the archive or table that holds it, "" for a plain file. `offset` tells where in there: of a tar's member
    that of its data (in the unpacked stream of a `.tar.gz`), of a zip's that of its local header, of a table
    its row; 0 for a plain file. `size` is the picture's bytes, 0 where unknown; `packed` those it takes where
    it is deflated in a zip, else the same. `version` changes when its bytes are replaced: the time of a plain
    file or a tar's member (on S3 the ETag), the CRC of a zip's, the version of a table. `problem` is the
    reason code of what is known to be unusable without reading it (see `PROBLEMS`), else "".
    """

    uri: str
    container: str
    offset: int
    size: int
    packed: int
    version: str
    problem: str = ""


def unusable(item: Input, limit: int) -> Undecodable | None:
    """Why an input is not read at all, if so."""
    if item.problem:
        return Undecodable(item.problem, PROBLEMS[item.problem])
    if item.size > limit:
        return Undecodable("too_large", f"{item.size} bytes, the limit is {limit}")
    return None


def has_vanished(item: Input, message: str | None) -> bool:
    """Whether what was read of an input tells that it, or its archive, was there to be listed and then was not."""
    return item.version != "" and not item.problem and message in _LOST


def damaged() -> Undecodable:
    """What is read where an archive is not what its listing says."""
    return Undecodable("corrupt", PROBLEMS["corrupt"])


def read_pieces(file: BinaryIO, size: int) -> bytes:
    """So many bytes, fewer where the file ends, in pieces: of a file that is read through, two blocks are kept."""
    pieces: list[bytes] = []
    while size > 0 and (piece := file.read(min(size, PIECE))):
        pieces.append(piece)
        size -= len(piece)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def unopened(error: UserError) -> Undecodable:
    """Why a file gives nothing, in words that are the same on every machine."""
    reason = reason_of(error)
    return Undecodable(reason, PROBLEMS[reason])


def reason_of(error: UserError) -> str:
    """The reason code of a file that cannot be opened."""
    if isinstance(error, MissingError):
        return "unreadable"
    if isinstance(error, UnsupportedArchiveError):
        return "unsupported_archive"
    return "broken_archive" if isinstance(error, BrokenArchiveError) else "forbidden"
