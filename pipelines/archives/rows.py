"""Lines of a text, and rows of a table of it: most are a line, but a cell in quotes may hold line ends."""

import codecs
import io
from collections import deque
from collections.abc import Callable, Iterator
from itertools import accumulate, islice
from typing import BinaryIO, Final

MOST_LINES: Final = 16
"""Of one row; where quotes never end, so many lines are looked at again."""


def text_lines(file: BinaryIO, longest: int, otherwise: str, newline: str = "") -> Iterator[str]:
    """Lines with their ends, as `open` parts them by `newline`; of those that are longer, the beginning.

    The text is UTF-16 with its mark, as PowerShell writes it, or UTF-8; what is none is decoded as `otherwise` says.
    """
    wide = file.read(2) in {codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE}
    file.seek(0)
    encoding, errors = ("utf-16", "backslashreplace") if wide else ("utf-8-sig", otherwise)
    text = io.TextIOWrapper(file, encoding, errors, newline)
    while line := text.readline(longest):
        more = line
        while len(more) == longest and not more.endswith(newline or ("\n", "\r")):
            more = text.readline(longest)
        yield line


def in_rows(lines: Iterator[tuple[int, str]], is_whole: Callable[[str], bool]) -> Iterator[tuple[int, str]]:
    """Numbered lines with their ends, put together where a cell in quotes goes on; rows have their first numbers.

    Those that do not make a whole row stay alone; blank ones are left out.
    """
    ahead: deque[tuple[int, str]] = deque()
    while start := ahead.popleft() if ahead else next(lines, None):
        number, row = start
        if row.count('"') % 2 and not is_whole(row):
            ahead.extend(islice(lines, MOST_LINES - 1 - len(ahead)))
            longer = enumerate(accumulate((line for _, line in ahead), initial=row))
            more, row = next(((more, text) for more, text in longer if is_whole(text)), (0, row))
            for _ in range(more):
                ahead.popleft()
        if row.strip():
            yield number, row
