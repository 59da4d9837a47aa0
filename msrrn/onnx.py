"""The whole prediction as one ONNX graph: pyramid, sampling of patches, all stages, both looks, calibration.

Inputs: `crops` (faces, 200, 200) uint8. Outputs, float32: `landmarks` (faces, 68, 2) in [0, 1] of the crop,
`expected_nrmse` (faces,), `stages` (faces, 5, 68, 2), and the fields of `Signs`.
The model card travels in the metadata, as JSON, under `CARD_KEY`.
"""

import logging
import os
import warnings
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from msrrn.artifact import ArtifactError, Card, card_of
from msrrn.calibration import FLOOR, LOG_ERRORS, Calibration, Signs
from msrrn.geometry import LEVELS
from msrrn.landmarks import NUM_LANDMARKS
from msrrn.network import MSRRN
from msrrn.prediction import CPU_BATCH, OUTPUTS, STAGES, Predictor
from msrrn.predictor import Looks

CARD_KEY: Final = "msrrn.card"
SHAPES: Final = {
    "crops": (LEVELS[-1], LEVELS[-1]),
    **dict.fromkeys(OUTPUTS, ()),
    "landmarks": (NUM_LANDMARKS, 2),
    "stages": (len(STAGES), NUM_LANDMARKS, 2),
}
"""What a graph takes and gives, for each face."""


class _Whole(nn.Module):
    """What the graph computes."""

    def __init__(self, model: MSRRN, calibration: Calibration) -> None:
        super().__init__()
        self.looks = Looks(model)
        self.calibration = calibration

    def forward(self, crops: Tensor) -> tuple[Tensor, ...]:
        stages, *signs = self.looks(crops)
        logs = self.calibration.log_error(Signs(*signs).logs(lambda values: values.clamp_min(FLOOR).log()))
        return stages[:, -1], logs.clamp(*LOG_ERRORS).exp(), stages, *signs


def to_onnx(model: MSRRN, card: Card, faces: int | None = None) -> bytes:
    """The model and its card as an ONNX file, for any number of faces.

    Or for just so many: made in a third of the time, for one who makes it simpler himself before it is run.
    """
    side = LEVELS[-1]
    # Two faces: torch takes a size of 1 for one that never changes.
    example = torch.zeros(faces or 2, side, side, dtype=torch.uint8, device="cpu")
    # It warns of the operators of torchvision, which are not used here.
    logging.getLogger("torch.onnx._internal.exporter._registration").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        # The exporter's own use of what torch is about to drop; nothing that a user could act on.
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            _Whole(model, card.calibration).eval(),
            (example,),
            dynamo=True,
            verbose=False,
            optimize=faces is None,
            input_names=["crops"],
            output_names=list(OUTPUTS),
            dynamic_shapes=({0: torch.export.Dim.STATIC if faces else torch.export.Dim("faces", min=1)},),
            custom_translation_table={torch.ops.aten.flip.default: _flipped},
        )
    assert program is not None
    program.model.metadata_props[CARD_KEY] = card.model_dump_json()
    data: bytes = program.model_proto.SerializeToString()
    return data


def _flipped(image: Any, axes: Sequence[int]) -> Any:
    """`aten::flip` as a choice of columns: a slice that runs backwards is many times slower."""
    import onnxscript

    operators: Any = onnxscript.opset20
    for axis in axes:
        columns = list(range(image.shape[axis]))[::-1]
        image = operators.Gather(image, operators.Constant(value_ints=columns), axis=axis)
    return image


def read_onnx_card(data: bytes, name: str) -> Card:
    """The card in an ONNX file.

    Raises:
        ArtifactError: it is no ONNX file, or not one that `to_onnx` wrote, or takes weights from other files, or its
            card is damaged.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    # Weights that lie in files beside it would be whatever files the reader's folder has: there are none below this.
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", os.devnull)
    try:
        session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise ArtifactError(f"{name}: not an ONNX model that can be run ({str(error).splitlines()[0]})") from None
    text = session.get_modelmeta().custom_metadata_map.get(CARD_KEY)
    if text is None:
        raise ArtifactError(f"{name}: holds no model card, so it is not from `msrrn export-model`")
    card = card_of(text.encode(), f"{name}, its model card")
    if wrong := _not_ours(session):
        raise ArtifactError(f"{name}: {wrong}: export the model anew with `msrrn export-model`")
    return card


def _not_ours(session: Any) -> str:
    """What is not as `to_onnx` writes it, of what a graph takes and gives; empty where all is."""
    takes, gives = ({it.name: it.shape for it in ends} for ends in (session.get_inputs(), session.get_outputs()))
    if missing := [name for name in SHAPES if name not in takes | gives]:
        return f"the graph has no `{missing[0]}`"
    if list(takes) != ["crops"]:
        return f"the graph asks for {', '.join(takes)}, and should for `crops` alone"
    for name, shape in SHAPES.items():
        faces, *each = (takes | gives)[name] or [0]
        if isinstance(faces, int) or tuple(each) != shape:
            return f"`{name}` is {(takes | gives)[name]}, and should be {['faces', *shape]}"
    return ""


class OnnxPredictor(Predictor):
    """Runs an ONNX file by ONNX Runtime on the CPU, in so many threads."""

    def __init__(self, data: bytes, calibration: Calibration, threads: int, batch: int = CPU_BATCH) -> None:
        import onnxruntime

        super().__init__(calibration, batch)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self.session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])

    def _run(self, crops: NDArray[np.uint8]) -> Sequence[NDArray[np.float32]]:
        columns: list[NDArray[np.float32]] = self.session.run(OUTPUTS[2:], {"crops": np.ascontiguousarray(crops)})
        return columns
