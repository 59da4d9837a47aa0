"""A flow that goes on until it is told to end, and a program that serves it as `msrrn serve` does its own."""

import sys
import time
from pathlib import Path
from typing import cast

from prefect import flow
from prefect.deployments.runner import RunnerDeployment
from prefect.types.entrypoint import EntrypointType


@flow
def lasting(mark: str) -> None:
    """Writes to `mark` that it began, and, where it is let, that it ended."""
    path = Path(mark)
    path.write_text("begun", "utf-8")
    try:
        while True:
            time.sleep(0.1)
    finally:
        time.sleep(1)  # as what reaches a checkpoint
        path.write_text("ended", "utf-8")


if __name__ == "__main__":
    from flows.serve import run  # seconds to import, which runs do without
    from tests.integration.lasting import lasting as known  # by this name runs find it

    parameters = {"mark": sys.argv[1]}
    made = known.to_deployment("lasting", parameters=parameters, entrypoint_type=EntrypointType.MODULE_PATH)
    run([cast(RunnerDeployment, made)], 1)
