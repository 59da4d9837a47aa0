"""Face boxes: detectors behind one protocol, one file each, and the boxes expected from annotations."""

from typing import Final, get_args

from msrrn.openvino import has_openvino
from pipelines.detection.boxes import BoxMapping, Detection, Detector, expected_box, match
from pipelines.detection.hog import HogDetector
from pipelines.detection.models import has_model_file, read_model_file
from pipelines.errors import UserError
from pipelines.settings import DetectorName, Precision

__all__ = [
    "FASTER",
    "BoxMapping",
    "Detection",
    "Detector",
    "DetectorName",
    "HogDetector",
    "default_detector",
    "expected_box",
    "match",
    "open_detector",
]

FASTER: Final = (
    "detector blazeface does three times as many pictures a second as hog, which is used without it: "
    "pip install 'msrrn[fast]', then msrrn fetch-detector blazeface"
)


def default_detector() -> DetectorName:
    """What `auto` is here: BlazeFace where it is installed and its file was fetched."""
    return "blazeface" if has_openvino() and has_model_file("blazeface") else "hog"


def open_detector(name: str, precision: Precision = "float32") -> Detector:
    """The detector of a name, with its model file read and checked; its own `name` says which `auto` is here.

    `precision` is what a detector computes in that can choose.

    Raises:
        UserError: there is no such detector, or its model file or library is missing; says the remedy.
    """
    if name == "auto":
        return open_detector(default_detector(), precision)
    if name == "hog":
        return HogDetector()
    if name == "blazeface":
        from pipelines.detection.blazeface import BlazeFaceDetector, require_openvino

        require_openvino()
        return BlazeFaceDetector(read_model_file(name), precision)
    if name == "cnn":
        from pipelines.detection.cnn import CnnDetector

        return CnnDetector(read_model_file(name))
    if name == "yunet":
        from pipelines.detection.yunet import YuNetDetector

        return YuNetDetector(read_model_file(name))
    raise UserError(f"there is no detector {name!r}: choose one of {', '.join(get_args(DetectorName))}")
