"""Errors that a person can act on. Anything else that escapes a command is a defect of ours."""


class UserError(Exception):
    """The job cannot be done as things are: one or two lines that name the file, the field and the remedy.

    The command line prints it without a traceback and exits with 1.
    """


class UsageError(UserError):
    """The call itself is wrong: the command line exits with 2."""


class NothingYetError(UserError):
    """What is to be looked at is not there yet: for a person who asked a mistake, on a schedule an ordinary day."""
