"""What one model has on a set of annotated faces: errors per face, per subset and per stage."""

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from msrrn.geometry import Box
from msrrn.metrics import auc, failure_rate, nrmse_io, nrmse_ip, share_under
from msrrn.prediction import STAGES
from pipelines.dataset.manifest import LeftOut
from pipelines.decoding import Photo, decode
from pipelines.detection.annotated import AnnotatedBoxes
from pipelines.errors import UserError
from pipelines.outages import OutageError
from pipelines.pyramid import crop, frame_around
from pipelines.settings import Precision
from pipelines.showable import counted
from pipelines.sources.files import Files

LIKE_THE_TOTAL: Final = re.compile(r"all( \(subset\))*")
"""Subsets that need another name, so that neither the total nor one another takes their place."""


@dataclass(frozen=True, eq=False)
class FaceResult:
    """One evaluated face. Shapes are 0-based pixels of the upright image."""

    root: str
    """URL of the folder or archive that holds the photo"""
    uri: str
    annotation_uri: str
    photo_sha256: str
    subset: str
    missed: bool
    """the detector did not find it, or it came without a box: that is predicted from its annotation"""
    box: Box
    truth: NDArray[np.float64]
    """(68, 2)"""
    stages: NDArray[np.float64]
    """(5, 68, 2), in the order of `STAGES`"""
    confidence: float
    sharpness: float
    """variance of the Laplacian of the crop around the box predicted from the annotation: the same for every model"""
    ert: NDArray[np.float64] | None = None
    """(68, 2), what dlib's ERT says of the same box, where it was asked"""

    @cached_property  # a comparison asks for it several times
    def nrmse_ip(self) -> NDArray[np.floating]:
        """(5,), a fraction for each stage."""
        return nrmse_ip(self.stages, self.truth)

    @property
    def nrmse_io(self) -> NDArray[np.floating]:
        return nrmse_io(self.stages, self.truth)


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Results of one model on one set of faces."""

    model: str
    detector: str
    trained_on: dict[str, Any]
    selection: str
    faces: tuple[FaceResult, ...]
    left_out: tuple[LeftOut, ...]
    seen: int | None = None
    """faces on photos that the model was trained on; None where its card does not name those"""
    source_format: str = "auto"
    """of the sources, as it was said"""
    precision: Precision = "float32"

    @property
    def training_set(self) -> str:
        """What the model was trained on, for a reader."""
        dataset, faces = (self.trained_on.get(key) for key in ("dataset", "faces"))
        told = "" if faces is None else f" ({counted(faces, 'face')})"
        return f"dataset {dataset}{told}" if dataset else "data that its card does not name"

    @property
    def faces_digest(self) -> str:
        """Names the faces and their annotations: two evaluations compare only where it is the same."""
        digest = hashlib.sha256()
        for face in self.faces:
            digest.update(f"{face.photo_sha256} {face.annotation_uri}\n".encode())
            digest.update(np.ascontiguousarray(face.truth, "<f8").tobytes())
        return digest.hexdigest()[:16]

    def table(self) -> dict[str, dict[str, Any]]:
        """One object for each subset and `all`, fractions; `all` also says the protocol.

        A subset that is called `all` is `all (subset)` there.
        """
        subsets = sorted({face.subset for face in self.faces})
        missed = "a missed face"
        if self.detector == AnnotatedBoxes.name:
            missed = "a face that comes without one counts as missed, and"
        rows = {_row_name(name): _row([face for face in self.faces if face.subset == name]) for name in subsets}
        return rows | {
            "all": _row(self.faces)
            | {
                "protocol": {
                    "normalisation": "ip: distance of the pupils (mean of each eye's six points); "
                    "io: distance of the outer eye corners",
                    "boxes": f"{self.detector}; {missed} gets a box predicted from its annotation",
                    "model": self.model,
                    "precision": self.precision,
                    "trained_on": self.trained_on,
                    "selection": self.selection,
                    "faces_digest": self.faces_digest,
                    "left_out": len(self.left_out),
                    "seen_in_training": self.seen,
                }
            }
        }


def shown(figures: Mapping[str, Any]) -> dict[str, str]:
    """A row of `Evaluation.table`, or a stage of one, for people: title → figure."""
    return {
        "faces": str(figures["faces"]),
        "missed": str(figures["missed"]),
        "IP %": f"{100 * figures['nrmse_ip']:.2f}",
        "IO %": f"{100 * figures['nrmse_io']:.2f}",
        "AUC IP 0.10": f"{figures['auc_ip_010']:.3f}",
        "AUC IO 0.08": f"{figures['auc_io_008']:.3f}",
        "over 0.10 %": f"{100 * figures['failure_ip_010']:.1f}",
        "under 0.05 %": f"{100 * figures['under_ip_005']:.1f}",
    }


def seen_note(evaluation: Evaluation) -> str:
    """What a reader of the figures must know where some are of photos that the model has learned; else empty."""
    if evaluation.seen is None:
        return "Which photos the model was trained on its card does not say: if these are among them, it knew them."
    if evaluation.seen:
        count = len(evaluation.faces)
        photos = f"photos of {evaluation.seen} of these {count} faces" if count > 1 else "photo of this face"
        return (
            f"The model was trained on the {photos}: the figures do not tell what it does on photos that it never "
            "saw."
        )
    return ""


def photo_of(face: FaceResult) -> Photo | None:
    """The photo of an evaluated face; None where it is gone, or another one has its name.

    Raises:
        OutageError: its storage does not answer.
    """
    try:
        data = Files(face.root).read(face.uri)
    except OutageError:
        raise
    except (UserError, OSError):
        return None
    return decode(data) if hashlib.sha256(data).hexdigest() == face.photo_sha256 else None


def crops_of(faces: Sequence[FaceResult], margin: float) -> list[NDArray[np.uint8]]:
    """Grey crops around the detector's boxes; of faces whose photos are gone there are none."""
    found = ((face, photo_of(face)) for face in faces)
    return [crop(photo.rgb, frame_around(face.box, margin)) for face, photo in found if photo]


def _row_name(subset: str) -> str:
    return f"{subset} (subset)" if LIKE_THE_TOTAL.fullmatch(subset) else subset


def _row(faces: Sequence[FaceResult]) -> dict[str, Any]:
    ip = np.stack([face.nrmse_ip for face in faces])
    io = np.stack([face.nrmse_io for face in faces])
    detected = np.array([not face.missed for face in faces])
    stages = {name: _figures(ip[:, index], io[:, index], detected) for index, name in enumerate(STAGES)}
    counts = {"faces": len(faces), "missed": int((~detected).sum())}
    return counts | stages[STAGES[-1]] | {"stages": {name: counts | row for name, row in stages.items()}}


def _figures(
    ip: NDArray[np.floating], io: NDArray[np.floating], detected: NDArray[np.bool_]
) -> dict[str, float | None]:
    return {
        "nrmse_ip": float(ip.mean()),
        "nrmse_io": float(io.mean()),
        "nrmse_ip_detected": float(ip[detected].mean()) if detected.any() else None,
        "auc_ip_010": auc(ip, 0.10),
        "auc_io_008": auc(io, 0.08),
        "failure_ip_010": failure_rate(ip),
        "under_ip_005": share_under(ip, 0.05),
        "under_ip_010": share_under(ip, 0.10),
    }
