"""How a long step tells how far it is; who does not listen gives nothing."""

from collections.abc import Callable

Counted = Callable[[int, int], None]
"""(done, total)"""

Progress = Callable[[int, int, str], None]
"""(done, total or 0 while that is not known, what is being done)"""
