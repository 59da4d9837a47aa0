"""What terminals, pages and spreadsheets show: names as these may be shown, and counts of things."""

import re
from typing import Final

_UNSHOWABLE: Final = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]"
)
"""Controls, what ends a line or changes its direction, and the lone surrogates of undecodable file names."""
_MARKS: Final = re.compile(r"([\\`*_{}\[\]()#+!|<>&~])")
"""What means something to Markdown."""


def showable(text: str) -> str:
    """Text that any viewer can show: what is not a visible character is spelt out, as in `\\x00`."""
    return _UNSHOWABLE.sub(lambda found: ascii(found.group())[1:-1], text)


def one_line(text: str) -> str:
    """Text that any viewer can show, on one line."""
    return " ".join(showable(text).split())


def no_markup(text: object) -> str:
    """Text that Markdown shows as it is, on one line."""
    return _MARKS.sub(r"\\\1", one_line(str(text)))


def counted(count: int, what: str) -> str:
    """`1 face`, `2 faces`."""
    return f"{count} {what}{'s' * (count != 1)}"


def no_formula(name: str) -> str:
    """A name that no spreadsheet takes for a formula; of a path, it is the same path."""
    return name if name[:1].isalnum() or name[:1] in {"_", ".", "/"} else f"./{name}"
