"""The completion records of an annotation run's units, and where parts wait that are to replace others."""

from typing import Final

from pydantic import BaseModel, ValidationError

from pipelines.outages import MissingError
from pipelines.storage import Store

RECORDS: Final = "records"
STAGED: Final = "staged"


class UnitRecord(BaseModel):
    """The completion record of a unit."""

    inputs: list[str]
    """fingerprints of what its rows are made from, in order"""
    parts: dict[str, str]
    """SHA-256 of each table's part"""
    sizes: dict[str, int] = {}
    """and its bytes; older records do not tell"""
    statuses: dict[str, int]
    reasons: dict[str, int]
    faces: int
    staged: bool = False
    """whether the parts may still lie in `staged/`"""


def found_record(out: Store, unit: str) -> UnitRecord | None:
    """The record of a unit, its parts perhaps staged still; None where there is none, or a damaged one."""
    try:
        return UnitRecord.model_validate_json(out.read_bytes(f"{RECORDS}/{unit}.json"))
    except (MissingError, ValidationError):
        return None  # a damaged record stands for nothing: the unit is done again


def staged_key(table: str, unit: str) -> str:
    """Where a part waits for its place until the record of its unit is written."""
    return f"{STAGED}/{table}-{unit}.parquet"
