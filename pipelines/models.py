"""A model: the artifact's bytes, which travel, and the predictor, made once a process."""

import hashlib
import tempfile
from dataclasses import dataclass, replace
from functools import cache, cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Final

import torch

import msrrn
from msrrn.artifact import CARD, WEIGHTS, ArtifactError, Card, load, read_card
from msrrn.calibration import Calibration
from msrrn.cuda import CudaPredictor
from msrrn.network import MSRRN
from msrrn.onnx import OnnxPredictor, read_onnx_card, to_onnx
from msrrn.openvino import OPENVINO_BATCH, has_openvino
from msrrn.prediction import Prediction, Predictor
from msrrn.predictor import TorchPredictor
from msrrn.provenance import InitialWeights
from pipelines.asked import Asked, Crops, Graph
from pipelines.cache import remembered
from pipelines.errors import UserError
from pipelines.pace import one_core
from pipelines.settings import VAL_SHARE, Engine, Precision, PrecisionChoice

ONNX_SUFFIX: Final = ".onnx"
ONNX_FILE: Final = "model.onnx"
ON_GPU: Final[Precision] = "bfloat16"
"""The precision of every model there."""


def has_bfloat16() -> bool:
    """Whether this CPU computes in bfloat16; others only imitate it, which is slower."""
    can = torch.cpu.get_capabilities()
    return bool(can.get("avx512_bf16") or can.get("amx_bf16"))


ONE_LOOK: Final = "-one-look"
"""Ends the version of a model that looks at a face only once, where it was made to look twice."""
GENERATIONS: Final = 8
"""How many of the models before it, each of which started from the next, a card tells."""

PHOTO_DIGITS: Final = 12
"""Of a photo's SHA-256, by which a model's card knows what it was trained on."""


@dataclass(frozen=True)
class Model:
    """An artifact's two files, or an ONNX file. Picklable and hashable; a few megabytes."""

    files: tuple[tuple[str, bytes], ...]
    card: Card
    precision: Precision = "float32"
    """of convolutions and matrix products, when it is asked on a CPU"""
    graph: bytes | None = None
    """what OpenVINO runs, where it shall"""

    def __hash__(self) -> int:
        return hash(self.digest)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the artifact's files."""
        digest = hashlib.sha256()
        for name, data in self.files:
            digest.update(f"{name} {len(data)}\n".encode() + data)
        return digest.hexdigest()

    @property
    def onnx(self) -> bytes | None:
        """The ONNX file, where it is one."""
        return dict(self.files).get(ONNX_FILE)

    @property
    def name(self) -> str:
        return self.card.name

    @property
    def version(self) -> str:
        return self.card.version

    @property
    def label(self) -> str:
        """How annotations and tables quote the model."""
        return f"{self.name} {self.version}"

    @property
    def val_share(self) -> float:
        """The share of photos that its dataset held out where they were not declared; the usual one, if none."""
        return self.card.training.dataset_settings.val_share or VAL_SHARE

    @cached_property
    def photos(self) -> frozenset[str]:
        """The first `PHOTO_DIGITS` of the SHA-256 of each photo that it, and the weights that it started from, were
        trained on; none where its card is of before these were told."""
        return frozenset(self.card.training.photos.split())

    def saw(self, sha256: str) -> bool:
        """Whether it was trained on the photo of this digest, as far as `photos` goes."""
        return sha256[:PHOTO_DIGITS] in self.photos

    def looking_once(self) -> "Model":
        """The same weights, asked about a face only once, where this model looks at it again, in the mirror.

        To who keeps what is found it is another model: its version ends with `ONE_LOOK`, and its card has no metrics.

        Raises:
            UserError: it is an ONNX file, whose looks are fixed, or tells nothing of its error after one look.
        """
        if not self.card.config.mirrored:
            return self
        if self.onnx:
            raise UserError(f"{self.label} is an ONNX file of two looks: --one-look needs the artifact")
        if self.card.one_look_calibration is None:
            raise UserError(
                f"{self.label} was not made for --one-look: its card does not say what error to expect after one; "
                "train it anew, or leave --one-look out"
            )
        card = self.card.model_copy(
            update={
                "version": self.version + ONE_LOOK,
                "config": self.card.config.model_copy(update={"mirrored": False}),
                "calibration": self.card.one_look_calibration,
                "one_look_calibration": None,
                "metrics": {},
            }
        )
        weights = dict(self.files)[WEIGHTS]
        return replace(self, files=((WEIGHTS, weights), (CARD, card.model_dump_json(indent=2).encode())), card=card)

    def in_precision(self, precision: PrecisionChoice) -> "Model":
        """The same model, asked in this precision; `auto`: in bfloat16 where this CPU computes in it.

        Raises:
            UserError: it is an ONNX file, whose precision is fixed.
        """
        if precision == "auto":
            precision = "bfloat16" if has_bfloat16() and not self.onnx else self.precision
        if precision != self.precision and self.onnx:
            raise UserError(
                f"{self.label} is an ONNX file in {self.precision}: --precision {precision} needs the artifact"
            )
        return replace(self, precision=precision)

    def in_engine(self, engine: Engine) -> "Model":
        """The same model in the same precision, asked through this engine.

        Raises:
            UserError: OpenVINO is asked for and not installed.
        """
        if engine == "native":
            return replace(self, graph=None)
        if not has_openvino():
            raise UserError(
                "OpenVINO is not installed, which --engine openvino needs, and a run that was begun with it: "
                "pip install 'msrrn[fast]'"
            )
        return replace(self, graph=self.onnx or _graph(self))

    @property
    def engine(self) -> Engine:
        """What runs it on a CPU."""
        return "native" if self.graph is None else "openvino"

    @property
    def predictor(self) -> Predictor:
        asked = self.for_workers()
        if isinstance(asked, Graph):
            return asked.predictor
        if self.onnx:
            return _session(self.onnx, self.card.calibration, torch.get_num_threads())
        return _looks(self)

    def on_one_core(self, crops: Crops) -> Prediction:
        """What the model says of crops; see `Asked`."""
        with one_core():
            return self.predictor.predict(crops)

    def for_workers(self) -> Asked:
        """What is sent to those who shall ask it on a CPU."""
        if self.graph is None:
            return self
        return Graph(self.graph, self.card.calibration, self.name, self.version)

    def on_gpu(self) -> Predictor | None:
        """A new predictor on this machine's GPU, in `ON_GPU`; None where there is no GPU, and for ONNX files."""
        if self.onnx or not torch.cuda.is_available():
            return None
        network, card = _reduced(replace(self, precision=ON_GPU))
        return CudaPredictor(network, card.calibration)


def initial_weights(model: Model) -> tuple[MSRRN, InitialWeights]:
    """The network that a training shall start from, and what its card says of it.

    Of the models that this one came of, the latest `GENERATIONS` are told, itself among them; the photos are those of
    all.

    Raises:
        UserError: it is an ONNX file, which has no weights to go on with.
    """
    if model.onnx:
        raise UserError(f"{model.label} is an ONNX file: give --init the artifact that it was made of")
    network, card = _network(model)
    training = card.training
    return network, InitialWeights(
        version=card.version,
        dataset=training.dataset or "",
        faces_by_source=training.faces_by_source,
        licence=card.licence,
        init=_latest(training.settings.init, GENERATIONS - 1),
        photos=tuple(sorted(model.photos)),
    )


def _latest(weights: InitialWeights | None, count: int) -> InitialWeights | None:
    if weights is None or not count:
        return None
    return weights.model_copy(update={"init": _latest(weights.init, count - 1)})


def read_model(directory: Path) -> Model:
    """Reads an artifact directory, or a file that `export_model` wrote, and checks that it loads.

    Raises:
        UserError: it is not a model artifact, or a damaged one, or it cannot be read.
    """
    try:
        if directory.suffix == ONNX_SUFFIX:
            data = directory.read_bytes()
            return Model(((ONNX_FILE, data),), read_onnx_card(data, str(directory)))
        card = read_card(directory)
        load(directory)
        return Model(tuple((name, (directory / name).read_bytes()) for name in (WEIGHTS, CARD)), card)
    except ArtifactError as error:
        raise UserError(str(error)) from error
    except OSError as error:
        raise UserError(
            f"{directory} cannot be read as a model artifact ({error.strerror or error}): give the directory "
            "that `msrrn train` printed"
        ) from error


def export_model(model: Model) -> bytes:
    """The model as an ONNX file; one that is ONNX already is given as it is."""
    return model.onnx or to_onnx(*_network(model))


@cache
def _session(data: bytes, calibration: Calibration, threads: int) -> Predictor:
    return OnnxPredictor(data, calibration, threads)


@cache
def _looks(model: Model) -> Predictor:
    network, card = _reduced(model)
    return TorchPredictor(network, card.calibration)


def _graph(model: Model) -> bytes:
    """What OpenVINO runs, from the cache where this code made it of this model before: it takes some seconds."""
    writers = [version(name) for name in ("torch", "onnx", "onnx-ir", "onnxscript")]
    code = [path.read_bytes() for path in sorted(Path(msrrn.__file__).parent.glob("*.py"))]
    made_of = " ".join([model.digest, model.precision, *writers]).encode()
    name = hashlib.sha256(b"".join([made_of, *code])).hexdigest()
    return remembered("graphs", name[:32], lambda: to_onnx(*_reduced(model), OPENVINO_BATCH), bytes)


def _reduced(model: Model) -> tuple[MSRRN, Card]:
    """The network in the model's precision."""
    network, card = _network(model)
    if model.precision == "bfloat16":
        network.reduce()
    return network, card


def _network(model: Model) -> tuple[MSRRN, Card]:
    with tempfile.TemporaryDirectory() as directory:
        for name, data in model.files:
            (Path(directory) / name).write_bytes(data)
        return load(Path(directory))
