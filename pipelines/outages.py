"""What goes wrong with storage, told so that a person can mend it."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from botocore.exceptions import (  # type: ignore[import-untyped]
    BotoCoreError,
    ClientError,
    NoCredentialsError,
    PartialCredentialsError,
)

from pipelines.errors import UserError
from pipelines.secrecy import without_secrets

FULL: Final = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_REFUSED: Final = {
    errno.EACCES,
    errno.EEXIST,
    errno.EPERM,
    errno.EROFS,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.ENAMETOOLONG,
    errno.EOPNOTSUPP,
}


class OutageError(UserError):
    """Storage, MLflow or Ray failed again and again, or could not be asked: nothing is known of what lies there."""


class MissingError(UserError):
    """Nothing lies there."""


class DeniedError(UserError):
    """Whoever asks has no right to know what lies there."""


@contextmanager
def explained(url: str, key: str) -> Iterator[None]:
    """Errors of what is done with a key of a place, as `Store` tells them."""
    remote = url.startswith("s3://")
    name = f"{url}/{key}" if key else url
    try:
        yield
    except FileNotFoundError as error:
        where = "the path, or the bucket and its region" if remote else "the path"
        raise MissingError(f"{name} does not exist: check {where}") from error
    except (NoCredentialsError, PartialCredentialsError) as error:
        raise OutageError(f"{name}: no S3 credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY") from error
    except OSError as error:
        if error.errno in FULL:
            why, remedy = "disk full", "Free some space"
            if error.errno == errno.EFBIG:
                why, remedy = "file too large", "Raise the limit (ulimit -f) or take a disk that holds larger files"
            text = f"{why}: {name} was not written; nothing half-written was left. {remedy}, and run again"
            raise UserError(text) from error
        if isinstance(error, PermissionError) or error.errno in _REFUSED:
            what = "the S3 credentials" if remote else "the path"
            kind = DeniedError if isinstance(error, PermissionError) else UserError
            raise kind(f"{name}: {_said(error)}; check {what} and the rights there") from None
        if not remote:
            error.filename = error.filename or name  # reading names no file
            raise
        raise _s3_failed(name, error) from None
    except Exception as error:
        if remote and "Invalid endpoint" in str(error):  # what it is may hold a password, and is not told
            raise UserError(
                f"{name}: the S3 endpoint is no address: give AWS_ENDPOINT_URL as https://HOST or http://HOST:PORT"
            ) from None
        if not (remote and _is_of_s3(error)):
            raise
        raise _s3_failed(name, error) from None


def _is_of_s3(error: Exception) -> bool:
    from s3fs.core import S3_RETRYABLE_ERRORS  # as slow to import as all of S3

    return isinstance(error, (BotoCoreError, ClientError, *S3_RETRYABLE_ERRORS))


def _s3_failed(name: str, error: Exception) -> OutageError:
    return OutageError(
        f"{name}: S3 failed after {os.environ['AWS_MAX_ATTEMPTS']} attempts: {_said(error)}\n"
        "what is finished is kept: check AWS_ENDPOINT_URL and the network, and run again"
    )


def _said(error: Exception) -> str:
    return without_secrets(str(getattr(error, "strerror", None) or error) or type(error).__name__)
