"""Rows of a table of text: most are a line, but a cell in quotes may hold line ends."""

from collections import deque
from collections.abc import Callable, Iterator
from itertools import accumulate, islice
from typing import Final

MOST_LINES: Final = 16
"""Of one row; where quotes never end, so many lines are looked at again."""


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
