"""What is known of units that were made: the completion records of a dataset's shards."""

import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import BaseModel, ValidationError

from pipelines.dataset.manifest import LeftOut, UnitEntry
from pipelines.dataset.photos import Seen
from pipelines.dataset.shards import Split, open_shard
from pipelines.forgotten import MESSAGE, REASON
from pipelines.storage import Store


class PhotoRecord(BaseModel):
    """What became of one photo."""

    key: str
    """the digest of everything, beside the settings, that its rows hold"""
    uri: str
    sha256: str
    declared: str | None
    print: str
    faces: dict[str, int]
    """source → faces with rows"""
    missed: int
    left_out: list[LeftOut]
    offsets: dict[str, list[tuple[float, float]]]
    """source → for each face how far its annotation lies to the right, and the pupils' distance, in pixels"""

    def seen(self, split: Split) -> Seen:
        """The photo as one whose split is settled."""
        return Seen(self.sha256, self.uri, self.declared, self.print, settled=split)


class UnitRecord(BaseModel):
    """The completion record of a unit."""

    entry: UnitEntry
    photos: list[PhotoRecord]


def made_before(out: Store, records: str) -> tuple[frozenset[str], dict[str, str]]:
    """The units of these settings that are finished, and for each photo's key the unit that holds its rows."""
    shards = out.files("shards")
    finished = set()
    made_in: dict[str, str] = {}
    for key in out.keys(records):
        try:
            record = UnitRecord.model_validate_json(out.read_bytes(key))
        except ValidationError:
            continue  # a damaged record stands for nothing: the unit is done again
        # A damaged shard is mended by deleting it: its record then stands for nothing.
        if not record.entry.rows or shards.get(record.entry.shard) == record.entry.bytes:
            finished.add(record.entry.key)
            made_in |= {photo.key: record.entry.key for photo in record.photos}
    return frozenset(finished), made_in


def read_record(out: Store, records: str, unit: str) -> UnitRecord:
    """The completion record of a unit."""
    return UnitRecord.model_validate_json(out.read_bytes(f"{records}/{unit}.json"))


def forgotten_faces(out: Store, unit: UnitEntry, photo: PhotoRecord) -> list[LeftOut]:
    """All faces of a photo that a unit holds, as `prepare` names them that finds the photo again."""
    names = [item.uri for item in photo.left_out]
    if photo.faces:
        with open_shard(out, unit.shard) as file:
            rows = pq.ParquetFile(file).read_row_group(0, ["photo_sha256", "annotation_uri"])
        names += rows.filter(pc.equal(rows["photo_sha256"], photo.sha256))["annotation_uri"].to_pylist()
    return [LeftOut(uri=name, reason=REASON, message=MESSAGE) for name in names]
