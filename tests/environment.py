"""Where tests run, the environment may name a person's servers, credentials and folders: no test may reach them."""

import os
from collections.abc import MutableMapping
from typing import Final

_A_PERSONS: Final = (
    "AWS_",
    "COLUMNS",
    "FORCE_COLOR",
    "FSSPEC_",
    "MLFLOW_ARTIFACT",
    "MLFLOW_EXPERIMENT",
    "MLFLOW_REGISTRY",
    "MLFLOW_RUN",
    "MLFLOW_S3",
    "MLFLOW_TRACKING",
    "MSRRN_METRICS_DIR",
    "PREFECT_",
    "RAY_",
)
"""And how their terminal looks. What is MLflow's besides is what `pipelines` tells it."""
_FILES: Final = ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE", "PREFECT_PROFILES_PATH")
"""By default, they lie in the home of whoever runs the tests."""


def be_nobodys(environment: MutableMapping[str, str]) -> None:
    """Leaves in it what a machine has on which nobody ever set anything up."""
    for name in [name for name in environment if name.startswith(_A_PERSONS)]:
        del environment[name]
    environment.update(dict.fromkeys(_FILES, os.devnull))
