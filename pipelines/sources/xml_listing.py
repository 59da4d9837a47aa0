"""What readers of XML lists share: entries out of pieces of a document of any size."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import ClassVar, Final
from xml.parsers import expat

from pipelines.errors import UserError
from pipelines.sources.files import Files
from pipelines.sources.listed import Entry, OtherKind

_CHUNK: Final = 1 << 16
MOST_BYTES: Final = 8 << 20
"""Of one tag or comment: expat holds it until it ends, and an older one reads it from its start with each piece."""
DEEPEST: Final = 64
"""Elements within each other, of which expat remembers all: these formats have no more than six."""


class XmlListing(ABC):
    """Entries out of pieces of XML. Nothing of a document is kept, and no entity is ever declared or expanded.

    A format says what its document starts with, and what becomes of elements: it appends to `done`.
    """

    root: ClassVar[str]
    tool: ClassVar[str]
    """whose format it is"""
    remedy: ClassVar[str]

    def __init__(self, where: str) -> None:
        self.done: list[Entry] = []
        self._where = where
        self._begun = False
        self._fed = self._depth = 0
        self._parser = expat.ParserCreate()
        self._parser.buffer_text = True
        self._parser.StartElementHandler = self._start
        self._parser.EndElementHandler = self._end
        self._parser.CharacterDataHandler = self.text
        self._parser.StartDoctypeDeclHandler = self._doctype

    @property
    def line(self) -> int:
        """Where the document is read."""
        return self._parser.CurrentLineNumber

    @abstractmethod
    def start(self, tag: str, attributes: dict[str, str]) -> None:
        """An element begins."""

    @abstractmethod
    def end(self, tag: str) -> None:
        """An element ends."""

    def text(self, data: str) -> None:  # noqa: B027 - a format may have none
        """A piece of text between tags."""

    def feed(self, data: bytes, final: bool = False) -> list[Entry]:
        """The entries that end in this piece; `UserError` when the document is broken."""
        try:
            self._parser.Parse(data, final)
        except (expat.ExpatError, LookupError, ValueError) as error:  # the latter two: an encoding it does not know
            kind = UserError if self._begun else OtherKind
            raise kind(f"{self._where} is not whole XML ({error}): mend it there, or fetch it again") from error
        self._fed += len(data)
        if self._fed - self._parser.CurrentByteIndex > MOST_BYTES:
            raise self._odd(f"a tag of more than {MOST_BYTES} bytes")
        done, self.done = self.done, []
        return done

    def _odd(self, what: str) -> UserError:
        return UserError(f"{self._where}, line {self.line}: {what}, which {self.tool} never writes: remove it")

    def _doctype(self, *_: object) -> None:
        raise self._odd("a DOCTYPE")

    def _start(self, tag: str, attributes: dict[str, str]) -> None:
        if not self._begun and tag != self.root:
            raise OtherKind(
                f"{self._where} starts with <{tag[:40]}> instead of {self.tool}'s <{self.root}>: {self.remedy}"
            )
        self._begun = True
        self._depth += 1
        if self._depth > DEEPEST:
            raise self._odd(f"elements in each other, {DEEPEST} deep")
        self.start(tag, attributes)

    def _end(self, tag: str) -> None:
        self._depth -= 1
        self.end(tag)


def read_xml(files: Files, name: str, kind: type[XmlListing]) -> Iterator[Entry]:
    """The entries of an XML file in its order; what is held in memory is one entry at a time."""
    listing = kind(f"{files.url}/{name}")
    with files.open(name) as file:
        while chunk := file.read(_CHUNK):
            yield from listing.feed(chunk)
    yield from listing.feed(b"", final=True)
