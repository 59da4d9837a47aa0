"""Detector and model, made ready for the pictures that they shall be asked about."""

from collections.abc import Iterator
from itertools import chain, islice
from typing import Final

import pyarrow as pa

from msrrn.openvino import has_openvino
from pipelines.archives import Input
from pipelines.detection import Detector, open_detector
from pipelines.errors import UsageError
from pipelines.models import Model
from pipelines.progress import Progress
from pipelines.settings import MANY_PICTURES, AnnotateSettings

pa.array([])  # with its first array pyarrow loads pandas, where a Ctrl-C may be lost: so while a command is loaded

TOLD: Final = 10_000


def prepared(
    model: Model, settings: AnnotateSettings, inputs: Iterator[Input], progress: Progress
) -> tuple[Detector, Model, Iterator[Input]]:
    """The detector, the model in the precision and the engine of the settings, and all inputs.

    Where the engine is left to choose, it is OpenVINO's, if that is installed and the inputs are many: so many are
    listed to know.

    Raises:
        UsageError: the detector gives no score as large as the least that is asked for.
        UserError: the detector, the model or this machine cannot do what the settings ask for, or the archive cannot
            be listed.
    """
    model = model.in_precision(settings.precision)
    detector = open_detector(settings.detector, model.precision)
    least, most = detector.scores
    if settings.min_score is not None and settings.min_score > most:
        raise UsageError(
            f"--min-score {settings.min_score:g}: the scores of detector {detector.name} are from {least:g} to "
            f"{most:g}, so no face would be found; give less, or leave it out"
        )
    engine = settings.engine
    if engine == "auto":
        first: list[Input] = []
        for item in islice(inputs, MANY_PICTURES):
            first.append(item)
            if len(first) % TOLD == 0:
                progress(len(first), 0, "listing pictures")
        engine = "openvino" if len(first) >= MANY_PICTURES and has_openvino() else "native"
        inputs = chain(first, inputs)
    progress(0, 0, "preparing the network")
    return detector, model.in_engine(engine), inputs
