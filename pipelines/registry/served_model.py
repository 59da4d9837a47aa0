"""The code of a registered model: MLflow copies this file into the model and runs it to serve the model.

Input: `image_200`, grey crops (B, 200, 200) uint8. Output: (B, 136) float32, the landmarks x0, y0, x1, y1, …
in [0, 1] of the crop. Nothing is unpickled: the weights come from the artifact directory beside it.
"""

from pathlib import Path
from typing import Any

import numpy as np
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel
from numpy.typing import NDArray

from msrrn.artifact import load
from msrrn.predictor import TorchPredictor


class ServedModel(PythonModel):  # type: ignore[misc]
    """MLflow's `pyfunc` around `Predictor`."""

    def load_context(self, context: Any) -> None:
        """Loads the artifact directory that was registered as `model`."""
        model, card = load(Path(context.artifacts["model"]))
        self.predictor = TorchPredictor(model, card.calibration)

    def predict(self, context: Any, model_input: Any, params: Any = None) -> NDArray[np.float32]:
        """`{"image_200": (B, 200, 200) uint8}` → (B, 136) float32."""
        shapes = self.predictor.predict(np.asarray(model_input["image_200"])).shapes
        return shapes.reshape(len(shapes), -1)


set_model(ServedModel())
