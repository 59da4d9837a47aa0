"""What the writers of XML share."""

import re
from typing import Final
from xml.sax.saxutils import quoteattr

_NO_XML: Final = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def attribute(text: str) -> str:
    r"""A text as the value of an attribute, with its quotes.

    XML 1.0 has no way to hold most control characters: they become `\x07` and the like.
    """
    kept = _NO_XML.sub(lambda match: match[0].encode("unicode_escape").decode(), text)
    return quoteattr(kept)
