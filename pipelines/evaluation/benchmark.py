"""The paper's experiments on any annotated photos: what is measured, as tables.

Table 1: published figures beside measured ones, the mean shape, dlib's ERT and the model, on the same faces and
boxes. Table 2: every stage. Then robustness, the honesty of the model's own estimate of its error, and speed.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from msrrn.metrics import failed, failure_rate, nrmse_ip, share_under
from msrrn.prediction import STAGES
from pipelines.errors import UserError
from pipelines.evaluation.ert import Ert
from pipelines.evaluation.evaluate import evaluate
from pipelines.evaluation.honesty import MIN_RANKED, expected_and_true, rank_correlation
from pipelines.evaluation.results import Evaluation, crops_of
from pipelines.evaluation.robustness import RobustnessRow, robustness
from pipelines.models import ON_GPU, Model
from pipelines.pace import one_core, race
from pipelines.progress import Counted
from pipelines.settings import Precision, Selection
from pipelines.showable import counted

TRAIN_3148: Final = "3,148 faces of LFPW, HELEN, AFW"
OFFICIAL: Final = {"lfpw": 224, "helen": 330, "common": 554, "challenging": 135, "full": 689}
ERT: Final = "dlib's ERT"
SEEN: Final = "faces seen in training"
TIMED_BATCH: Final = 64
TIMED_ON_GPU: Final = 16_384


class Published(NamedTuple):
    """A row of the literature: NRMSE (IP) in % on the 300-W test sets, trained on `TRAIN_3148`."""

    method: str
    common: float
    challenging: float | None
    full: float | None


PUBLISHED: Final = (
    Published("RCPR (Burgos-Artizzu 2013)", 6.18, 17.3, 8.35),
    Published("CFAN (Zhang 2014)", 5.50, None, None),
    Published("SDM (Xiong & De la Torre 2013)", 5.57, 15.4, 7.50),
    Published("LBF (Ren 2014)", 4.95, 11.98, None),
    Published("CFSS (Zhu 2015)", 4.73, 9.98, None),
    Published("DAN, first stage (Kowalski 2017)", 4.94, 8.96, 5.73),
    Published("DAN, second stage", 4.41, 7.55, 5.03),
)


@dataclass(frozen=True)
class Speed:
    """Faces a second from uint8 crops to shapes."""

    what: str
    where: str
    precision: Precision
    faces_per_second: float


@dataclass(frozen=True)
class Benchmark:
    """Everything that `benchmark` measured."""

    evaluation: Evaluation
    ert: Ert | None
    robustness: Sequence[RobustnessRow]
    speeds: Sequence[Speed]

    @property
    def shapes(self) -> dict[str, NDArray[np.float64]]:
        """Method → (faces, 68, 2), 0-based pixels of the upright image."""
        faces = self.evaluation.faces
        rows = {"mean shape": np.stack([face.stages[0] for face in faces])}
        if self.ert:
            rows[ERT] = np.stack([face.ert for face in faces if face.ert is not None])
        return rows | {self.evaluation.model: np.stack([face.stages[-1] for face in faces])}

    @property
    def errors(self) -> dict[str, NDArray[np.floating]]:
        """Method → (faces,): NRMSE (IP), fractions."""
        truth = np.stack([face.truth for face in self.evaluation.faces])
        return {name: nrmse_ip(shapes, truth) for name, shapes in self.shapes.items()}

    def columns(self) -> dict[str, NDArray[np.bool_]]:
        """The columns of Table 1 that the data have → which faces belong to them."""
        subsets = np.array([face.subset for face in self.evaluation.faces])
        of = {name: subsets == name for name in ("lfpw", "helen")}
        of["common"] = _together(of["lfpw"], of["helen"])
        of["challenging"] = subsets == "ibug"
        of["full"] = _together(of["common"], of["challenging"])
        return {**{name: rows for name, rows in of.items() if rows.any()}, "all": np.ones(len(subsets), np.bool_)}

    def official(self) -> bool:
        """Whether these are as many faces as the official test sets have, where there are any."""
        columns = self.columns()
        counts = {name: int(rows.sum()) for name, rows in columns.items() if name in OFFICIAL}
        return bool(counts) and all(OFFICIAL[name] == count for name, count in counts.items())

    def table1(self) -> list[dict[str, Any]]:
        """Rows of NRMSE (IP) in %; None where a figure is not known. What was published on none of the columns is not
        among them."""
        columns = self.columns()
        named = _training_sets(self.evaluation.trained_on)
        official = [name for name in ("common", "challenging", "full") if name in columns]
        rows: list[dict[str, Any]] = [
            {"method": row.method, "figures": "published", "trained on": TRAIN_3148, SEEN: None}
            | dict.fromkeys(columns)
            | {name: getattr(row, name) for name in official}
            for row in PUBLISHED
            if any(getattr(row, name) for name in official)
        ]
        for name, errors in self.errors.items():
            own, seen = named, self.evaluation.seen
            if self.ert and name == ERT:
                own = self.ert.trained_on
                seen = sum(face.photo_sha256 in self.ert.photos for face in self.evaluation.faces)
            figures = {column: round(100 * float(errors[members].mean()), 2) for column, members in columns.items()}
            rows.append({"method": name, "figures": "measured", "trained on": own, SEEN: seen} | figures)
        return rows

    def table2(self) -> list[dict[str, Any]]:
        """Every stage: NRMSE (IP), and the shares of faces under 0.05 and 0.1, in %."""
        errors = np.stack([face.nrmse_ip for face in self.evaluation.faces])
        return [
            {
                "stage": stage,
                "NRMSE IP %": round(100 * float(errors[:, index].mean()), 2),
                "under 0.05 %": round(100 * share_under(errors[:, index], 0.05), 1),
                "under 0.10 %": round(100 * share_under(errors[:, index], 0.10), 1),
            }
            for index, stage in enumerate(STAGES)
        ]

    def honesty(self) -> dict[str, float | None]:
        """How well the expected error tells the true one: rank correlation, failures among the least certain 5 %.

        Fewer than 3 faces have no rank correlation.
        """
        expected, true = expected_and_true(self.evaluation.faces)
        least = np.argsort(-expected, kind="stable")[: max(1, round(0.05 * len(true)))]
        failures = failed(true)
        return {
            "rank correlation": round(rank_correlation(expected, true), 3) if len(true) >= MIN_RANKED else None,
            "failures": int(failures.sum()),
            "failures among the least certain 5 %": int(failures[least].sum()),
            "share of failures": round(failure_rate(true), 4),
        }

    def reliability(self) -> list[tuple[float, float]]:
        """(expected, true) mean NRMSE (IP) in % of each tenth of the faces, by what was expected."""
        expected, true = expected_and_true(self.evaluation.faces)
        parts = np.array_split(np.argsort(expected, kind="stable"), min(10, len(true)))
        return [(100 * float(expected[part].mean()), 100 * float(true[part].mean())) for part in parts]


def benchmark(
    model: Model,
    sources: Sequence[str],
    selection: Selection,
    workers: int,
    ert: Ert | None,
    progress: Counted = lambda done, total: None,
    source_format: str = "auto",
) -> Benchmark:
    """Measures a model, and ERT beside it, on the annotated photos of the sources.

    Raises:
        UserError: a source is unusable, or not one face could be evaluated.
    """
    evaluation = evaluate(model, sources, selection, workers, progress, model.val_share, source_format, ert=ert)
    crops = crops_of(evaluation.faces[:TIMED_BATCH], model.card.crop_margin)
    if not crops:
        raise UserError(f"{', '.join(sources)}: the photos are gone since they were evaluated; run again")
    rows = robustness(model, ert, evaluation.faces, workers)
    return Benchmark(evaluation, ert, rows, speeds(model, ert, np.stack(crops)))


def _training_sets(trained: Mapping[str, Any]) -> str:
    """What a model was trained on, and before it the weights that it started from, and those that these did."""
    faces = trained.get("faces")
    named = _sources(trained) if faces is None else f"{counted(faces, 'face')} ({_sources(trained)})"
    while trained := trained.get("init") or {}:
        named += f", from weights trained on others ({_sources(trained)})"
    return named


def _sources(trained: Mapping[str, Any]) -> str:
    by_source = trained.get("faces_by_source") or {}
    return ", ".join(f"{name} {splits.get('train', 0)}" for name, splits in by_source.items()) or "not known"


def speeds(model: Model, ert: Ert | None, crops: NDArray[np.uint8]) -> list[Speed]:
    """Model and ERT by turns on the same crops, on one core; the model on the GPU too, where there is one.

    The median of several rounds counts; a batch is `TIMED_BATCH` faces, on a GPU `TIMED_ON_GPU`.
    """
    batch = np.resize(crops, (TIMED_BATCH, *crops.shape[1:]))
    contestants: dict[str, Callable[[], object]] = {"model": lambda: model.predictor.predict(batch)}
    if ert:
        contestants[ERT] = lambda: ert.predict(batch)
    with one_core():
        found = _raced(contestants, "one CPU core", model.precision, len(batch))
    if on_gpu := model.on_gpu():
        many = np.resize(crops, (TIMED_ON_GPU, *crops.shape[1:]))
        where = torch.cuda.get_device_name()
        found += _raced({"model": lambda: on_gpu.predict(many)}, where, ON_GPU, len(many))
    return found


def _raced(contestants: dict[str, Callable[[], object]], where: str, precision: Precision, faces: int) -> list[Speed]:
    return [
        Speed(name, where, "float32" if name == ERT else precision, faces / float(np.median(taken)))
        for name, taken in race(contestants).items()
    ]


def _together(*parts: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The faces of all parts; none, where one of the parts has none."""
    return np.asarray(np.any(parts, axis=0) & all(part.any() for part in parts))
