"""Do recent annotation runs see faces like those that the model was trained on? Histograms are compared, no pictures.

What a dataset tells of its faces is compared with the dataset; what only a run can tell (confidence, faces in a
picture, size in the picture, what became of the pictures) with a reference run. A run that was gone on with when
pictures had been added to its archive counts as one run for each time (`pipelines.monitoring.sittings`).
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from pydantic import BaseModel

from pipelines.annotation.faces import MEASURES, features, outcomes
from pipelines.archives.names import printable
from pipelines.dataset.faces import features_of
from pipelines.dataset.manifest import MANIFEST, read_manifest
from pipelines.errors import NothingYetError, UserError
from pipelines.forgotten import read_forgotten
from pipelines.monitoring.sittings import Sitting, chosen, sittings
from pipelines.monitoring.stability import WORST_LAST, Counts, Difference, Verdict, difference
from pipelines.settings import DriftSettings
from pipelines.storage import Store

OUTCOMES: Final = "outcomes"
"""The one feature whose bins are names: the reason of a quarantined picture, the status of any other."""

NO_REFERENCE: Final = (
    "there is no older run of this model and these settings to compare with (--reference), and no dataset that tells "
    "of this (--dataset)"
)


class FeatureDrift(Difference):
    """One feature: what was counted, and how far the two are apart; `note` says why nothing is said of it."""

    name: str
    label: str
    of: str
    base: str | None
    """with what it was compared"""
    bins: list[str] | list[float]
    """names of the bins, or their edges"""
    base_counts: list[int]
    counts: list[int]
    note: str = ""


class RunSeen(BaseModel):
    """One of the runs that were looked at, by itself: feature → PSI, where there was enough to say."""

    url: str
    pictures: int
    faces: int
    psi: dict[str, float]


class DriftReport(BaseModel):
    """`drift.json`: each feature, and the worst verdict of all."""

    verdict: Verdict
    features: list[FeatureDrift]
    runs: list[RunSeen]
    dataset: str | None
    reference: str | None
    notes: list[str]
    settings: DriftSettings

    def named(self, verdict: Verdict) -> list[str]:
        """The features of this verdict."""
        return [feature.name for feature in self.features if feature.verdict == verdict]


@dataclass(frozen=True)
class Sample:
    """Faces and pictures of a dataset or of runs. `outcomes` is empty where there are no pictures."""

    name: str
    counts: dict[str, Counts]
    outcomes: Counter[str]

    def has(self, feature: str) -> bool:
        """Whether the sample tells of a feature."""
        return bool(self.outcomes) if feature == OUTCOMES else feature in self.counts

    def of(self, feature: str, names: Sequence[str]) -> list[int]:
        """The counts of a feature, in the order of its bins; of the outcomes, in that of `names`."""
        return [self.outcomes[name] for name in names] if feature == OUTCOMES else self.counts[feature].tolist()


def compare(
    runs: Sequence[str], settings: DriftSettings, dataset: str | None = None, reference: str | None = None
) -> DriftReport:
    """Compares the newest of `runs` with the dataset and with the reference run.

    Args:
        runs: places of runs, or folders of such places; their order is that in which they began.
        dataset: what the model was trained on, or a place of datasets: there, what the champion was trained on.
            Without one, all is compared with the reference.
        reference: a run, as it was when it was first made. Without one, the oldest of `runs` that has the model and
            the settings of the newest.

    Raises:
        UserError: no run, or no dataset, is where one should be.
    """
    found = sittings(runs)
    recent, first, notes = chosen(found, settings.recent, reference)
    notes += [
        f"{each.name} is not finished: {len(each.units)} of its {each.planned} units are compared."
        for each in (*recent, *([first] if first else []))
        if len(each.units) < each.planned
    ]
    bases: list[Sample] = []
    if dataset is not None:
        store = training_dataset(dataset)
        dataset = printable(store.url)
        bases.append(_of_dataset(store, recent[-1], notes))
    if first is not None:
        bases.append(_look("the reference run", first))
    each = [_look(sitting.name, sitting) for sitting in recent]
    now = _together("recent runs", each)
    judged = [_judged(name, bases, now, settings) for name in (*MEASURES, OUTCOMES)]
    return DriftReport(
        verdict=max((feature.verdict for feature in judged), key=WORST_LAST.index),
        features=judged,
        runs=[_run_seen(run, bases, settings) for run in each],
        dataset=dataset,
        reference=first.name if first else None,
        notes=notes,
        settings=settings,
    )


def training_dataset(url: str) -> Store:
    """The dataset at `url`; in a place of datasets, the one that the champion was trained on, or without a champion
    the model in the box.

    Raises:
        UserError: it is neither, or that model was trained on a dataset that is not there (NothingYetError: none is).
    """
    store = Store(url)
    if store.exists(MANIFEST):
        return store
    if not store.folders():
        raise NothingYetError(f"{url}: no dataset was made there yet; give the URL that `msrrn prepare` printed")
    from pipelines.opening import IN_THE_BOX, champion_uri, open_model  # as slow to import as torch

    uri = champion_uri()
    model = open_model(uri or IN_THE_BOX)
    trained_on = str(model.card.training.dataset)
    name = read_forgotten(store).now(trained_on)
    if name is None or not store.child(name).exists(MANIFEST):
        whose = f"champion ({model.label})" if uri else f"model in the box ({model.label}; there is no champion)"
        raise UserError(
            f"{url} is no dataset, and has none named {trained_on}, on which the {whose} was trained: "
            "give the URL that `msrrn prepare` printed"
        )
    return store.child(name)


def _of_dataset(dataset: Store, newest: Sitting, notes: list[str]) -> Sample:
    manifest = read_manifest(dataset)
    boxes, detector = manifest.settings.get("detector"), newest.record.get("detector")
    if boxes != detector:
        notes.append(
            f"Boxes of the dataset are by {boxes}, those of the runs by {detector}: some of the difference in size "
            "may be theirs."
        )
    said = features_of(dataset, manifest).counts
    counts = {name: np.asarray(by["train"], np.int64) for name, by in said.items() if "train" in by}
    return Sample(f"dataset {manifest.name}", counts, Counter())


def _look(name: str, sitting: Sitting) -> Sample:
    """Counts what a run saw, a unit at a time."""
    zeros = {feature: np.zeros(len(measure.edges) - 1, np.int64) for feature, measure in MEASURES.items()}
    seen = Sample(name, zeros, Counter())
    for unit in sitting.units:
        images, faces = sitting.run.images(unit), sitting.run.faces(unit)
        for feature, counts in features(images, faces).items():
            seen.counts[feature] += counts
        seen.outcomes.update(outcomes(images))
    return seen


def _together(name: str, samples: Sequence[Sample]) -> Sample:
    counts = {feature: np.sum([sample.counts[feature] for sample in samples], axis=0) for feature in MEASURES}
    return Sample(name, counts, sum((sample.outcomes for sample in samples), Counter()))


def _judged(feature: str, bases: Sequence[Sample], now: Sample, settings: DriftSettings) -> FeatureDrift:
    """Compares one feature with the first of `bases` that tells of it."""
    base = next((sample for sample in bases if sample.has(feature)), None)
    measure = MEASURES.get(feature)
    names = [] if measure else sorted({*now.outcomes, *(base.outcomes if base else ())})
    before, after = (sample.of(feature, names) if sample else [] for sample in (base, now))
    found = Difference()
    note = NO_REFERENCE
    if base is not None:
        found = difference(np.asarray(before, np.int64), np.asarray(after, np.int64), settings, measure is not None)
        note = "" if found.verdict != "unknown" else f"too few to say: {settings.least} are needed on either side"
    return FeatureDrift(
        name=feature,
        label=measure.label if measure else "what became of the pictures",
        of=measure.of if measure else "pictures",
        base=base.name if base else None,
        bins=measure.edges.tolist() if measure else names,
        base_counts=before,
        counts=after,
        note=note,
        **found.model_dump(),
    )


def _run_seen(run: Sample, bases: Sequence[Sample], settings: DriftSettings) -> RunSeen:
    judged = [_judged(feature, bases, run, settings) for feature in (*MEASURES, OUTCOMES)]
    return RunSeen(
        url=run.name,
        pictures=run.outcomes.total(),
        faces=int(run.counts["confidence"].sum()),
        psi={feature.name: feature.psi for feature in judged if feature.psi is not None},
    )
