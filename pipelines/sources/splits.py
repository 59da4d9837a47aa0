"""Words of people for a split, in fields and in the names of files and folders."""

import re
from typing import Final, cast

from pipelines.sources import DeclaredSplit
from pipelines.sources.annotation import BadAnnotation

SPLIT_WORD: Final = re.compile(
    r"(?<![a-z])(train(?:ing|set)?|val(?:id(?:ation)?|set)?|test(?:ing|set)?)(\d*)(?![a-z])", re.IGNORECASE
)
_SPLITS: Final = {"tr": "train", "va": "val", "te": "test"}


def said_split(value: object) -> DeclaredSplit | None:
    """The split that a field says, in whatever common word; None for an empty one. Raises `BadAnnotation`: syntax."""
    text = "" if value is None else str(value).strip().lower()
    match = SPLIT_WORD.fullmatch(text)
    if text and not match:
        raise BadAnnotation("syntax", f"{text[:40]!r} is no split: write train, val or test")
    return _split_of(match[1]) if match else None


def split_in(text: str) -> DeclaredSplit | None:
    """The one split that a name has a word for."""
    said = {_split_of(match[1]) for match in SPLIT_WORD.finditer(text.lower())}
    return said.pop() if len(said) == 1 else None


def _split_of(word: str) -> DeclaredSplit:
    return cast(DeclaredSplit, _SPLITS[word[:2]])
