"""Errors that a person can act on, and what is wrong with an input. All else that escapes is a defect of ours."""

import errno


class UserError(Exception):
    """The job cannot be done as things are: one or two lines that name the file, the field and the remedy.

    The command line prints it without a traceback and exits with 1.
    """


class UnusableInput(Exception):  # noqa: N818 - a state of an input, which becomes a row
    """An input that cannot be used; `reason` is a stable code, `message` is for people."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(reason, message)
        self.reason = reason
        self.message = message

    def __str__(self) -> str:
        return f"{self.reason}: {self.message}"


class UsageError(UserError):
    """The call itself is wrong: the command line exits with 2."""


class NothingYetError(UserError):
    """What is to be looked at is not there yet: for a person who asked a mistake, on a schedule an ordinary day."""


def disk_is_full(error: Exception) -> bool:
    """Whether a disk, or the share of it that its user has, is full: the command line names TMPDIR then."""
    return isinstance(error, OSError) and error.errno in {errno.ENOSPC, errno.EDQUOT}
