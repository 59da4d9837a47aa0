"""Is a dataset what its manifest says? Every hash, every row, the split and the counts are looked at.

Each shard is read once, by a worker, and held alone: memory is bounded by a shard a worker.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import ValidationError

from msrrn.landmarks import SCHEME
from pipelines.dataset.manifest import MANIFEST, Manifest, UnitEntry, read_manifest
from pipelines.dataset.rows import row_problems
from pipelines.dataset.shards import SCHEMA, TRAINED_SPLITS
from pipelines.engine import run_units
from pipelines.forgotten import read_forgotten
from pipelines.outages import MissingError
from pipelines.progress import Progress
from pipelines.settings import PrepareSettings
from pipelines.storage import Store

PROBLEMS_PER_SHARD: Final = 20
"""Of one kind: a shard that is wrong throughout is wrong once."""

AGAIN: Final = "delete it and the manifest, and run the same `msrrn prepare` again"
MANIFEST_AGAIN: Final = "delete the manifest and run the same `msrrn prepare` again: it keeps the shards"


@dataclass(frozen=True)
class Problem:
    """`place` is a file, perhaps with a row in it; `code` is stable; `message` names what is wrong and the remedy."""

    place: str
    code: str
    message: str


@dataclass(frozen=True)
class Verification:
    """What was found. `figures` counts what was looked at: shards, rows, faces, photos, bytes."""

    dataset: str
    problems: list[Problem]
    figures: dict[str, int]


@dataclass(frozen=True)
class _Checked:
    """One shard as it is: its photos by their SHA-256, its faces by their source."""

    unit: UnitEntry
    problems: list[Problem]
    readable: bool = False
    size: int = 0
    rows: int = 0
    photos: frozenset[str] = frozenset()
    faces: dict[str, int] = field(default_factory=dict)
    missed: int = 0


def verify(url: str, workers: int = 1, progress: Progress = lambda done, total, text: None) -> Verification:
    """Looks at everything in the dataset at `url`; what is wrong becomes a `Problem`, sorted by its place.

    Raises:
        UserError: there is no manifest, or one that cannot be read, or the storage fails.
    """
    dataset = Store(url).absolute()
    manifest = read_manifest(dataset)
    problems = list(_manifest_problems(dataset, manifest))
    try:
        settings = PrepareSettings.model_validate(manifest.settings)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in ("settings", *first["loc"]))
        said = f"field `{place}`: {first['msg']}; shards were not looked at"
        mend = f"verify it with msrrn {manifest.code_version}, which made it, or prepare all sources together"
        problems.append(Problem(MANIFEST, "settings", f"{said}: {mend}"))
        return Verification(manifest.name, problems, {})
    units = [unit for unit in manifest.shards() if _key_is_sound(unit)]
    checked: list[_Checked] = []
    for result in run_units(_check_shard, (dataset.parent, settings), units, workers):
        checked.append(result)
        progress(len(checked), len(units), "verifying shards")
    checked.sort(key=lambda result: result.unit.key)
    problems += [problem for result in checked for problem in result.problems]
    problems += _photo_problems(checked)
    problems += _forgotten_problems(checked, read_forgotten(dataset.parent).digests)
    # What a damaged shard holds cannot be counted: it has its own problem already.
    if len(units) == len(manifest.shards()) and all(result.readable for result in checked):
        problems += _count_problems(manifest, checked)
    figures = {
        "shards": len(checked),
        "rows": sum(result.rows for result in checked),
        "faces": sum(sum(result.faces.values()) for result in checked),
        "photos": len({photo for result in checked for photo in result.photos}),
        "bytes": sum(result.size for result in checked),
    }
    return Verification(manifest.name, sorted(problems, key=lambda p: (p.place, p.code, p.message)), figures)


def _of_manifest(code: str, message: str) -> Problem:
    return Problem(MANIFEST, code, f"{message}; {MANIFEST_AGAIN}")


def _key_is_sound(unit: UnitEntry) -> bool:
    return "/" not in unit.key and "\\" not in unit.key


def _manifest_problems(dataset: Store, manifest: Manifest) -> Iterator[Problem]:
    """What the manifest says against itself."""
    local = dataset.local_path()
    directory = local.resolve().name if local else dataset.url.rpartition("/")[2]
    if directory != manifest.name:
        yield Problem(
            MANIFEST,
            "name",
            f"it is of dataset {manifest.name}, but lies in {directory}; give the directory its name back",
        )
    if manifest.scheme != SCHEME:
        yield _of_manifest("scheme", f"field `scheme` is {manifest.scheme}, not {SCHEME}")
    counts = manifest.counts
    promised = {name: counts.get(name) for name in ("faces_in", "train", "val", "left_out", "photos", "rows")}
    missing = [name for name, count in promised.items() if count is None]
    if missing:
        yield _of_manifest("counts", f"field `counts` has no {', '.join(missing)}")
        return
    sums = {
        "faces_in": counts["train"] + counts["val"] + counts["left_out"],
        "left_out": len(manifest.left_out),
        "photos": sum(unit.photos for unit in manifest.units),
        "rows": sum(unit.rows for unit in manifest.units),
    }
    for split in TRAINED_SPLITS:
        sums[split] = sum(faces.get(split, 0) for faces in manifest.faces_by_source.values())
    for name, count in sums.items():
        if counts[name] != count:
            yield _of_manifest("counts", f"field `counts.{name}` is {counts[name]}, its parts give {count}")
    for key, times in Counter(unit.key for unit in manifest.units).items():
        if times > 1:
            yield _of_manifest("unit", f"unit {key} is listed {times} times")
    for unit in manifest.units:
        if not _key_is_sound(unit):
            yield _of_manifest("unit", f"unit {unit.key!r} is no name of a shard")


def _check_shard(shared: tuple[Store, PrepareSettings], unit: UnitEntry) -> _Checked:
    pool, settings = shared
    shard = unit.shard

    def damaged(code: str, message: str, size: int) -> _Checked:
        return _Checked(unit, [Problem(shard, code, f"{message}; {AGAIN}")], size=size)

    try:
        data = pool.read_bytes(shard)
    except MissingError:
        said = "the shard is not there; run the same `msrrn prepare` again, which makes it"
        return _Checked(unit, [Problem(shard, "missing", said)])
    if len(data) != unit.bytes:
        return damaged("size", f"it has {len(data)} bytes, the manifest says {unit.bytes}", len(data))
    digest = hashlib.sha256(data).hexdigest()
    if digest != unit.sha256:
        message = f"its bytes changed: SHA-256 {digest[:12]}…, the manifest says {unit.sha256[:12]}…"
        return damaged("sha256", message, len(data))
    try:
        return _check_rows(unit, data, settings)
    except (pa.ArrowException, OSError) as error:
        return damaged("unreadable", f"no Parquet file that can be read ({error})", len(data))


def _check_rows(unit: UnitEntry, data: bytes, settings: PrepareSettings) -> _Checked:
    file = pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True)
    wrong = schema_problem(file.schema_arrow, settings)
    if wrong:
        return _Checked(unit, [Problem(unit.shard, "schema", f"{wrong}; {AGAIN}")], size=len(data))
    problems: list[Problem] = []
    seen: Counter[str] = Counter()
    for row, code, message in row_problems(file, unit, settings):
        seen[code] += 1
        if seen[code] <= PROBLEMS_PER_SHARD:
            place = unit.shard if row is None else f"{unit.shard}, row {row}"
            problems.append(Problem(place, code, f"{message}; {AGAIN}"))
    for code, count in seen.items():
        if count > PROBLEMS_PER_SHARD:
            problems.append(Problem(unit.shard, code, f"{count - PROBLEMS_PER_SHARD} more of these"))
    columns = ["photo_sha256", "source", "detected", "copy"]
    original = file.read(columns=columns).filter(pc.field("copy") == 0)
    return _Checked(
        unit,
        problems,
        readable=True,
        size=len(data),
        rows=file.metadata.num_rows,
        photos=frozenset(original["photo_sha256"].to_pylist()),
        faces=dict(Counter(original["source"].to_pylist())),
        missed=original["detected"].to_pylist().count(False),
    )


def schema_problem(schema: pa.Schema, settings: PrepareSettings) -> str:
    """How the schema of a shard differs from the one that it must have; nothing where it does not."""
    missing = [name for name in SCHEMA.names if name not in schema.names]
    if missing:
        return f"column {', '.join(missing)} is missing"
    for own in SCHEMA:
        found = schema.field(own.name)
        # Parquet has its own name for the elements of a list, so metadata is compared apart.
        if not found.equals(own) or (found.metadata or {}) != (own.metadata or {}):
            return f"column {own.name} is {found}, not {own}"
    if schema.names != SCHEMA.names:
        return f"its columns are {', '.join(schema.names)}, not those of the schema in their order"
    metadata = schema.metadata or {}
    for key, value in SCHEMA.metadata.items():
        if metadata.get(key) != value:
            return f"{key.decode()} is {metadata.get(key, b'').decode(errors='replace')!r}, not {value.decode()!r}"
    try:
        same = PrepareSettings.model_validate_json(metadata.get(b"msrrn.settings", b"")) == settings
    except ValidationError:
        same = False
    return "" if same else "the settings in it are not those of the manifest"


def _photo_problems(checked: Iterable[_Checked]) -> Iterator[Problem]:
    """A photo belongs to one unit, so to one split."""
    first: dict[str, UnitEntry] = {}
    for result in checked:
        for photo in sorted(result.photos):
            other = first.setdefault(photo, result.unit)
            if other is result.unit:
                continue
            if other.split != result.unit.split:
                yield Problem(
                    result.unit.shard,
                    "split",
                    f"photo {photo} is in split {result.unit.split}, and in {other.shard} in split {other.split}; "
                    "what is trained on must not be validated on: do not use this dataset, prepare it again",
                )
            else:
                yield Problem(result.unit.shard, "photo_twice", f"photo {photo} is in {other.shard} too; {AGAIN}")


def _forgotten_problems(checked: Iterable[_Checked], forgotten: frozenset[str]) -> Iterator[Problem]:
    """What was forgotten at this place is not here."""
    for result in checked:
        for photo in sorted(result.photos & forgotten):
            message = f"photo {photo} was forgotten and is here again; run the same `msrrn forget` again"
            yield Problem(result.unit.shard, "forgotten", message)


def _count_problems(manifest: Manifest, checked: list[_Checked]) -> Iterator[Problem]:
    """What the manifest says against what the shards hold."""
    faces: dict[str, Counter[str]] = {}
    for result in checked:
        for source, count in result.faces.items():
            faces.setdefault(source, Counter())[result.unit.split] += count
    for source in sorted({*faces, *manifest.faces_by_source}):
        said, found = manifest.faces_by_source.get(source, {}), faces.get(source, Counter())
        for split in sorted({*said, *found}):
            if said.get(split, 0) != found[split]:
                message = f"{said.get(split, 0)} faces of {source!r} in {split}, the shards hold {found[split]}"
                yield _of_manifest("counts", f"field `faces_by_source` says {message}")
    missed = sum(result.missed for result in checked)
    if missed != manifest.missed:
        yield _of_manifest("counts", f"field `missed` is {manifest.missed}, the shards hold {missed}")
    for result in checked:
        unit = result.unit
        if result.rows != unit.rows:
            yield _of_manifest("counts", f"unit {unit.key} has {unit.rows} rows, its shard holds {result.rows}")
        if len(result.photos) > unit.photos:
            yield _of_manifest(
                "counts", f"unit {unit.key} has {unit.photos} photos, its shard holds {len(result.photos)}"
            )
