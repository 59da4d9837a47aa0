"""What must not be told: passwords in addresses, and the keys that the environment holds."""

import os
import re
from typing import Final

_SECRETS: Final = (
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_ACCESS_KEY_ID",
    "FSSPEC_S3_KEY",
    "FSSPEC_S3_SECRET",
    "FSSPEC_S3_TOKEN",
    "MLFLOW_TRACKING_PASSWORD",
    "MLFLOW_TRACKING_TOKEN",
    "PREFECT_API_AUTH_STRING",
    "PREFECT_API_KEY",
    "RAY_AUTH_TOKEN",
    "PGPASSWORD",
)
_ADDRESSES: Final = ("MLFLOW_TRACKING_URI", "PREFECT_API_URL")
"""Variables with one that may have lost its scheme."""
_LOGIN: Final = re.compile(r"[^/\s:@]+:(?!/)\S*@")
"""The user and the password that one without a scheme begins with."""
_SCHEME: Final = r"[A-Za-z][A-Za-z0-9+.-]{0,30}"
_NAME: Final = r'[^/\s:@\["\x27]*'
USERINFO: Final = (
    rf"(?:{_SCHEME}://(?:{_NAME}:(?!\d{{1,5}}/)\S*@|[^/\s]*@)|\b(?!https?:){_SCHEME}://{_NAME}:\d{{1,5}}/\S*@)"
)
"""An address up to the end of user and password; the last @ counts, since a password may hold others.

It may also hold a /: what follows a user and a colon is a password up to the last @ of all, unless it is a port.
After that, only addresses of the web have an @ (`models:/NAME@champion`): elsewhere a few digits are a password, too.
No scheme is longer than 31 letters: without that bound, long texts without one would take the square of their length.
"""
_USERINFO: Final = re.compile(USERINFO)
_ADDRESS: Final = re.compile(rf"\b(?!s3:|file:){_SCHEME}://[^\s\"'<>]+")
"""One that may have a query: in the name of a file, or of an object on S3, what looks like one is part of it."""
_SIGNATURE: Final = re.compile(
    r"(?i)([?&](?:x-(?:amz|goog)-(?:signature|credential|security-token)|signature|sig|awsaccesskeyid|password|"
    r"sslpassword|(?:access_|auth_)?token|(?:api_?)?key|secret)=)[^&#]*"
)
"""What lets whoever has an address in: of presigned ones, of those with a token, of databases."""


def has_password(url: str) -> bool:
    """Whether an address begins with a user, or a user and a password."""
    return _USERINFO.match(url) is not None


def masked(url: str) -> str:
    """An address with `***` for the user, or the user and the password, that it begins with, and for signatures."""
    found = _USERINFO.match(url)
    return _unsigned(f"{url.partition('//')[0]}//***@{url[found.end() :]}" if found else url)


def without_secrets(text: str) -> str:
    """A message without what a server, or an address in it, may bring in.

    The error that it was made from would bring them back in a traceback: raise from None.
    """
    text = _unsigned(_USERINFO.sub(lambda match: match[0].partition("//")[0] + "//", text))
    for secret in map(os.environ.get, _SECRETS):
        # One from a file ends with a line end, which a message spells out; a test server's "any" is part of any word.
        if secret and len(secret := secret.strip()) > 7:
            text = text.replace(secret, "***")
    for address in map(os.environ.get, _ADDRESSES):
        if address and (login := _LOGIN.match(address)):
            text = text.replace(login[0], "")
    return text


def _unsigned(text: str) -> str:
    return _ADDRESS.sub(lambda address: _SIGNATURE.sub(r"\1***", address[0]), text)
