"""The pictures that a place must never hold again: `forgotten.json`, beside its datasets or annotation runs."""

from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from typing import Final

from pydantic import BaseModel, ConfigDict, ValidationError

from pipelines.errors import UserError
from pipelines.outages import DeniedError
from pipelines.storage import Store

FORGOTTEN: Final = "forgotten.json"
REASON: Final = "forgotten"
MESSAGE: Final = "the picture was forgotten: see `msrrn forget`"


class _Strict(BaseModel):
    """What an older version would not write back, or would not heed, it must not read either."""

    model_config = ConfigDict(extra="forbid")


class ForgottenPicture(_Strict):
    """A picture by the digest of its bytes, and what was removed of it: `rows` of `files`, tables or shards."""

    sha256: str
    files: int
    rows: int


class Forgotten(_Strict):
    """`forgotten.json`. It only grows, in the order in which pictures were forgotten; it has no clock."""

    pictures: list[ForgottenPicture] = []
    renamed: dict[str, str | None] = {}
    """datasets that held one of them → what they are without; None where nothing was left to train on"""

    @property
    def digests(self) -> frozenset[str]:
        """SHA-256 of each."""
        return frozenset(picture.sha256 for picture in self.pictures)

    def now(self, dataset: str) -> str | None:
        """The name of a dataset today: without what was forgotten since."""
        name: str | None = dataset
        while name in self.renamed:
            name = self.renamed[name]
        return name


class Forgot(BaseModel):
    """What is known of one place after a call.

    `pictures`: those of the call, with what was removed of each, now or earlier. `earlier`: SHA-256 of those of which
    all of it was gone before. `datasets`: those that held one → what they are now; None where nothing was left to
    train on. `alike`: SHA-256 of other photos there that show nearly the same.
    """

    place: str
    pictures: list[ForgottenPicture]
    earlier: list[str] = []
    datasets: dict[str, str | None] = {}
    alike: list[str] = []


def read_forgotten(place: Store) -> Forgotten:
    """What was forgotten at a place of datasets, or by a run.

    Raises:
        UserError: the list is damaged, or of another version. It is never taken for an empty one.
    """
    if not place.exists(FORGOTTEN):
        return Forgotten()
    try:
        return Forgotten.model_validate_json(place.read_bytes(FORGOTTEN))
    except ValidationError as error:
        if unknown := [each["loc"] for each in error.errors() if each["type"] == "extra_forbidden"]:
            raise UserError(
                f"{place.url}/{FORGOTTEN} has the field `{'.'.join(map(str, unknown[0]))}`, so another version of "
                "msrrn wrote it: use that version; this one would lose what was asked for there"
            ) from error
        raise UserError(
            f"{place.url}/{FORGOTTEN} is damaged ({error.errors()[0]['msg']}): restore it from a backup; without it "
            "pictures that were forgotten would come back"
        ) from error


def forgotten_of_run(run: Store) -> frozenset[str]:
    """SHA-256 of what a run leaves out: what was forgotten there, and in the folder of runs that it lies in.

    Of that folder only if it may be read: S3 credentials may be good for the run's place alone.

    Raises:
        UserError: a list is damaged.
    """
    digests = read_forgotten(run).digests
    with suppress(DeniedError):
        digests |= read_forgotten(run.parent).digests
    return digests


def write_forgotten(place: Store, forgotten: Forgotten) -> None:
    """Replaces the list in one step."""
    place.publish(FORGOTTEN, forgotten.model_dump_json(indent=1).encode())


def remember(place: Store, digests: Collection[str]) -> None:
    """Adds pictures to the list of a place: before it is looked through.

    Who writes there looks at the list afterwards: so either finds what the other one did.
    """
    forgotten = read_forgotten(place)
    new = sorted(set(digests) - forgotten.digests)
    forgotten.pictures += (ForgottenPicture(sha256=digest, files=0, rows=0) for digest in new)
    write_forgotten(place, forgotten)


def remember_found(place: Store, found: Mapping[str, Sequence[int]]) -> None:
    """Writes down, before it is removed, what there is of pictures: SHA-256 → its rows in each file.

    A call that was killed may have removed some of it: what it had found stays.
    """
    forgotten = read_forgotten(place)
    for picture in forgotten.pictures:
        rows = found.get(picture.sha256, [])
        picture.files, picture.rows = max(picture.files, len(rows)), max(picture.rows, sum(rows))
    write_forgotten(place, forgotten)


def forgot_at(place: Store, digests: Collection[str], found: Collection[str]) -> Forgot:
    """What the list of a place says of these pictures, after a call that `found` something of some."""
    pictures = [picture for picture in read_forgotten(place).pictures if picture.sha256 in digests]
    earlier = [picture.sha256 for picture in pictures if picture.rows and picture.sha256 not in found]
    return Forgot(place=place.url, pictures=pictures, earlier=earlier)
