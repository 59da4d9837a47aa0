"""S3 as s3fs sees it, set by variables of the environment.

The standard `AWS_*` (endpoint, credentials, region, `AWS_MAX_ATTEMPTS`, `AWS_RETRY_MODE`) and fsspec's `FSSPEC_S3_*`
(timeouts: `FSSPEC_S3_CONFIG_KWARGS='{"read_timeout": 60}'`). Requests that fail are repeated.
"""

import json
import os
from functools import cache
from typing import Any, Final

import fsspec

from pipelines.errors import UserError
from pipelines.secrecy import without_secrets

_ATTEMPTS: Final = "5"
"""Of one request: at most 15 seconds of pauses."""
_CLIENT: Final = "FSSPEC_S3_CONFIG_KWARGS"
_MODES: Final = ("legacy", "standard", "adaptive")


def s3_files() -> Any:
    """The file system.

    Raises:
        UserError: a variable cannot be used.
    """
    os.environ.setdefault("AWS_RETRY_MODE", "standard")  # the old mode does not repeat all that may pass
    os.environ.setdefault("AWS_MAX_ATTEMPTS", _ATTEMPTS)
    told = tuple(sorted((name, value) for name, value in os.environ.items() if name.startswith("FSSPEC_S3_")))
    _require_usable(os.environ["AWS_MAX_ATTEMPTS"], os.environ["AWS_RETRY_MODE"], told)
    # fsspec keeps one instance per thread and drops it after a fork; listings must not be stale.
    files = fsspec.filesystem("s3", use_listings_cache=False)
    files.retries = 3  # of answers that break off; what has no answer is repeated by botocore
    return files


@cache
def _require_usable(attempts: str, mode: str, told: tuple[tuple[str, str], ...]) -> None:
    """Neither botocore nor s3fs would say which variable it was."""
    from botocore.config import Config  # type: ignore[import-untyped]  # as slow to import as all of S3
    from botocore.exceptions import BotoCoreError  # type: ignore[import-untyped]

    if not (attempts.isdecimal() and int(attempts)):
        raise UserError(f"AWS_MAX_ATTEMPTS={attempts} is no number of attempts: give 1 or more, or unset it")
    if mode not in _MODES:
        raise UserError(f"AWS_RETRY_MODE={mode} is none of {', '.join(_MODES)}: correct or unset it")
    for name, value in told:
        try:
            if name.endswith("_KWARGS"):
                settings = dict(**json.loads(value))
                if name == _CLIENT:
                    Config(**settings)
        except (ValueError, TypeError, BotoCoreError) as error:
            such = ' of settings of botocore, such as {"read_timeout": 60}' if name == _CLIENT else ""
            raise UserError(
                f"{name} cannot be used ({without_secrets(str(error))}): give a JSON object{such}, or unset it"
            ) from None
    try:
        files = fsspec.filesystem("s3", use_listings_cache=False)
    except (TypeError, AttributeError, ValueError) as error:
        raise _unusable(told, error) from None
    try:
        files.connect()
    except (TypeError, AttributeError) as error:
        raise _unusable(told, error) from None


def _unusable(told: tuple[tuple[str, str], ...], error: Exception) -> Exception:
    if not told:
        return error
    names = ", or ".join(name for name, _ in told)
    return UserError(f"{names} cannot be used ({without_secrets(str(error))}): give what s3fs takes, or unset it")
