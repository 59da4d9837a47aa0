"""What a dashboard shows of the pipeline: metrics for Prometheus, in a file for node_exporter's textfile collector.

The file is `msrrn.prom` in the folder that `MSRRN_METRICS_DIR` names; without the variable nothing is written. It is
replaced in one step and is its own memory: counters go on from what it says, so it belongs on a disk that stays. Jobs
of one machine may write at once. Metrics that cannot be written are logged and end no job.

Beside it, `msrrn.counted.json` has what was counted of each annotation run, by its place: whoever was killed, or only
waited, counts no picture twice. It is this machine's: where several go on with one run by turns, each counts what
came since its own turn. Where the file is damaged, what the summary of a run says when it is next gone on with passes
for counted; a run that has no summary then, since pictures came in and it was killed, is counted again.
"""

import json
import logging
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, NamedTuple

from filelock import FileLock
from prometheus_client import CollectorRegistry, write_to_textfile
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from pipelines.annotation.tables import REASONS, STATUSES, SUMMARY
from pipelines.disk import sync_directory, temporary
from pipelines.errors import UserError
from pipelines.outages import MissingError
from pipelines.storage import Store

DIRECTORY: Final = "MSRRN_METRICS_DIR"
FILE: Final = "msrrn.prom"
COUNTED: Final = "msrrn.counted.json"
"""Not `.prom`: a collector reads all of those."""
LOCK_SECONDS: Final = 10.0
LIVE_SECONDS: Final = 15.0
"""Between two looks at a run that goes on: as often as Prometheus asks."""


class Metric(NamedTuple):
    """What a metric is, for people, and the names of its labels."""

    help: str
    labels: tuple[str, ...] = ()


METRICS: Final = {
    "msrrn_pictures_total": Metric("Pictures that annotation accounted for.", ("status",)),
    "msrrn_faces_total": Metric("Faces that got landmarks."),
    "msrrn_quarantined_total": Metric("Pictures that could not be annotated.", ("reason",)),
    "msrrn_queue_units": Metric("Units of the latest annotation run that are not finished."),
    "msrrn_annotate_pictures_per_second": Metric("Speed of the latest annotation run since it was started."),
    "msrrn_annotate_heard_timestamp_seconds": Metric("When an annotation run last told how far it was."),
    "msrrn_last_promotion_timestamp_seconds": Metric("When a challenger last became champion.", ("model",)),
    "msrrn_champion_version": Metric("Version of the champion in the registry.", ("model",)),
    "msrrn_champion_nrmse_ip": Metric(
        "NRMSE of the champion over the distance of the pupils, a fraction.", ("model",)
    ),
}
"""Every metric there is. Those that end in `_total` are counters, the others gauges."""

Key = tuple[str, tuple[str, ...]]
"""A metric's name and the values of its labels."""


def export_metrics(
    *,
    pictures: Mapping[str, int] | None = None,
    faces: int = 0,
    quarantined: Mapping[str, int] | None = None,
    queue_units: int | None = None,
    pictures_per_second: float | None = None,
    heard: float | None = None,
) -> None:
    """Adds to the counters (`pictures` by status, `faces`, `quarantined` by reason) and sets the gauges given."""
    added: dict[Key, float] = {("msrrn_pictures_total", (status,)): n for status, n in (pictures or {}).items()}
    added |= {("msrrn_quarantined_total", (reason,)): n for reason, n in (quarantined or {}).items()}
    if pictures is not None:
        added["msrrn_faces_total", ()] = faces
    gauges = {
        "msrrn_queue_units": queue_units,
        "msrrn_annotate_pictures_per_second": pictures_per_second,
        "msrrn_annotate_heard_timestamp_seconds": heard,
    }

    def change(values: dict[Key, float]) -> None:
        for key, value in added.items():
            values[key] = values.get(key, 0.0) + value
        values |= {(name, ()): float(value) for name, value in gauges.items() if value is not None}

    _rewrite(change)


def export_champion(name: str, version: int | None, tags: Mapping[str, str], promoted: float | None) -> None:
    """The champion of a model as the registry has it, None where there is none.

    `promoted` is the time at which one was last promoted, in seconds since 1970, None where none was.
    """

    def change(values: dict[Key, float]) -> None:
        if promoted is not None:
            values["msrrn_last_promotion_timestamp_seconds", (name,)] = promoted
        for gauge in ("msrrn_champion_version", "msrrn_champion_nrmse_ip"):
            values.pop((gauge, (name,)), None)
        if version is not None:
            values["msrrn_champion_version", (name,)] = version
            with suppress(KeyError, ValueError):  # a tag that a person deleted or edited
                values["msrrn_champion_nrmse_ip", (name,)] = float(tags["msrrn.nrmse_ip"])

    _rewrite(change)


def _rewrite(change: Callable[[dict[Key, float]], None]) -> None:
    """Replaces the file by one of changed values, where one is asked for."""

    def write(folder: Path) -> None:
        path = folder / FILE
        values = _read(path)
        change(values)
        registry = CollectorRegistry()
        registry.register(_Values(values))
        write_to_textfile(str(path), registry)

    _alone(write)


def _alone(write: Callable[[Path], None]) -> None:
    """Calls it with the folder of the metrics, where there shall be one, while no other job writes there."""
    folder = os.environ.get(DIRECTORY)
    if not folder:
        return
    try:
        path = Path(folder).expanduser()
        path.mkdir(parents=True, exist_ok=True)
        with FileLock(path / f"{FILE}.lock", timeout=LOCK_SECONDS):
            write(path)
    except OSError as error:  # also a lock that somebody holds too long
        logging.getLogger(__name__).warning("metrics were not written to %s: %s", folder, error)


@contextmanager
def metered(out: str, images_per_unit: int, update: Callable[..., None]) -> Iterator[Callable[..., None]]:
    """Exports an annotation run into `out` while it goes on, and when it ends well what it counted.

    Gives what to call instead of `update(done, total, ...)`. Counted is what `summary.json` says beyond what was
    counted of this place before, so that a finished run that is started again adds nothing, and one with new pictures
    adds those. Where a place is no more, it counts from 0 again. A run that is finished when it is first met was
    counted by an older version, or elsewhere: it adds what comes from then on.
    """
    # Prometheus sees no increase in what it has not seen before.
    export_metrics(pictures=dict.fromkeys(STATUSES, 0), quarantined=dict.fromkeys(REASONS, 0))
    place = Store(out).absolute()
    before = _counts(place)
    _meet(place, before)
    meter = _Meter(images_per_unit, update)
    yield meter
    meter.export()
    after = _counts(place)
    if not after:  # another call took new pictures up since, and counts these with them; or it cannot be told
        return
    new = _claim(place, after, after if before is None else before)
    export_metrics(
        pictures={status: new[status] for status in STATUSES},
        faces=new["faces"],
        quarantined={name.removeprefix(_REASON): new[name] for name in after if name.startswith(_REASON)},
    )


_REASON: Final = "reason:"


def _counts(place: Store) -> Counter[str] | None:
    """Counts of `summary.json` by status, `faces`, and `reason:` with a reason; empty where there is none, None where
    it cannot be told."""
    if not os.environ.get(DIRECTORY):
        return None
    try:
        summary = json.loads(place.read_bytes(SUMMARY))
        counts = {name: int(summary[name]) for name in (*STATUSES, "faces")}
        return Counter(counts | {f"{_REASON}{reason}": int(n) for reason, n in summary["reasons"].items()})
    except MissingError:
        return Counter()
    except (UserError, OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _meet(place: Store, counts: Counter[str] | None) -> None:
    """Remembers counts of a place of which nothing is remembered, and forgets those of one that was deleted."""
    if counts is None:
        return
    with suppress(UserError, OSError):
        deleted = not place.exists()

        def write(folder: Path) -> None:
            counted = _read_counted(folder)
            if deleted or place.url not in counted:
                _write_counted(folder, counted | {place.url: counts})

        _alone(write)


def _claim(place: Store, counts: Counter[str], met: Counter[str]) -> Counter[str]:
    """What of these counts nobody counted yet, which then is counted; `met` was, if nothing is remembered."""
    new: Counter[str] = Counter()

    def write(folder: Path) -> None:
        counted = _read_counted(folder)
        # Before the metrics: whoever is killed between them counts too little once, not twice.
        _write_counted(folder, counted | {place.url: counts})
        # A quarantined picture that a later run could read makes its old count smaller: counters never go down.
        new.update(counts - counted.get(place.url, met))

    _alone(write)
    return new


def _read_counted(folder: Path) -> dict[str, Counter[str]]:
    """What was counted, by the URLs of the places; that of a damaged file is lost."""
    try:
        said = json.loads((folder / COUNTED).read_bytes())
        return {url: Counter({name: int(n) for name, n in counts.items()}) for url, counts in said.items()}
    except (FileNotFoundError, ValueError, TypeError, AttributeError):
        return {}


def _write_counted(folder: Path, counted: Mapping[str, Counter[str]]) -> None:
    path = folder / COUNTED
    with temporary(path, json.dumps(counted, indent=1).encode()) as beside:
        beside.replace(path)
        sync_directory(folder)


class _Meter:
    def __init__(self, images_per_unit: int, update: Callable[..., None]) -> None:
        self._per_unit = images_per_unit
        self._update = update
        self._began = self._last = time.monotonic()
        self._first: int | None = None
        self._done = self._total = 0

    def __call__(self, done: int, total: int, *more: object, **named: object) -> None:
        self._update(done, total, *more, **named)
        if not total:  # it waits, or lists its pictures
            return
        if self._first is None:
            self._first, self._began = done, time.monotonic()
        self._done, self._total = done, total
        if time.monotonic() - self._last >= LIVE_SECONDS:
            self.export()

    def export(self) -> None:
        self._last = time.monotonic()
        seconds = self._last - self._began
        worked = self._done - (self._first or 0)
        export_metrics(
            queue_units=-(-(self._total - self._done) // self._per_unit),
            pictures_per_second=worked / seconds if worked and seconds else None,
            heard=time.time(),
        )


class _Values(Collector):
    """What a file holds, in the order of `METRICS`."""

    def __init__(self, values: Mapping[Key, float]) -> None:
        self._values = values

    def collect(self) -> Iterable[CounterMetricFamily | GaugeMetricFamily]:
        for name, (text, labels) in METRICS.items():
            kind = CounterMetricFamily if name.endswith("_total") else GaugeMetricFamily
            family = kind(name, text, labels=labels)
            for (_, given), value in sorted((key, value) for key, value in self._values.items() if key[0] == name):
                family.add_metric(given, value)
            if family.samples:
                yield family


def _read(path: Path) -> dict[Key, float]:
    """The values in a file that is there; those of an unreadable one are lost, as those of a file that is not.

    An older one has metrics under other labels, which would stay in it for ever: they are left out.
    """
    try:
        families = list(text_string_to_metric_families(path.read_text("utf-8")))
    except (FileNotFoundError, ValueError):
        return {}
    return {
        (sample.name, tuple(sample.labels[label] for label in METRICS[sample.name].labels)): sample.value
        for family in families
        for sample in family.samples
        if sample.name in METRICS and sample.labels.keys() == set(METRICS[sample.name].labels)
    }
