"""Beside MediaPipe's FaceMesh: python -m tests.benchmarks.mediapipe PYTHON [--photos 150] [--frames 100]

PYTHON is that of an environment which has mediapipe (0.10.14). Photographs and frames of video, from the bytes of
a file to landmarks, by turns: FaceMesh in one process, with the threads that it starts, then in one for each core;
ours, with blazeface and the model in the box, in one for each core. The first turn of each is not counted.
"""

import json
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from functools import cache
from multiprocessing import get_context
from pathlib import Path

import cv2
import numpy as np
import torch

from pipelines.annotation.looking import look
from pipelines.detection import Detector, open_detector
from pipelines.engine import default_workers
from pipelines.models import Model
from pipelines.opening import open_model
from pipelines.settings import AnnotateSettings
from tests.benchmarks.calls import parser_with_data
from tests.benchmarks.detection import photographs
from tests.benchmarks.pictures import frames

TURNS = 3

FACE_MESH = """
import json, sys, time, cv2, mediapipe, numpy
mesh = mediapipe.solutions.face_mesh.FaceMesh(static_image_mode=True, max_num_faces=1)
for line in sys.stdin:
    began = time.process_time()
    found = []
    for file in json.loads(line):
        bgr = cv2.imdecode(numpy.fromfile(file, numpy.uint8), cv2.IMREAD_COLOR)
        found.append(bool(mesh.process(cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB)).multi_face_landmarks))
    print(json.dumps([time.process_time() - began, found]), flush=True)
"""

Result = tuple[float, list[bool]]
"""Seconds of CPU, and for each picture whether a face was found."""


@cache
def _tools() -> tuple[Detector, Model]:
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    model = open_model("box").in_precision("auto").in_engine("openvino")
    return open_detector("blazeface", model.precision), model


def ours(files: Sequence[str]) -> Result:
    detector, model = _tools()
    began = time.process_time()
    seen = [look(Path(file).read_bytes(), detector, AnnotateSettings(), model.card.crop_margin) for file in files]
    model.predictor.predict(np.stack([face.crop for item in seen for view in item.views for face in view.faces]))
    return time.process_time() - began, [bool(item.views) for item in seen]


class FaceMesh:
    """Processes of the other environment."""

    def __init__(self, python: str, number: int) -> None:
        pipe, null = subprocess.PIPE, subprocess.DEVNULL
        command = [python, "-c", FACE_MESH]
        self.processes = [
            subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=null, text=True) for _ in range(number)
        ]

    def __call__(self, parts: Sequence[Sequence[str]]) -> list[Result]:
        for process, part in zip(self.processes, parts, strict=True):
            print(json.dumps(part), file=process.stdin, flush=True)
        return [tuple(json.loads(process.stdout.readline())) for process in self.processes if process.stdout]

    def close(self) -> None:
        for process in self.processes:
            process.communicate()


def main() -> None:
    parser = parser_with_data(__doc__)
    parser.add_argument("python", metavar="PYTHON")
    parser.add_argument("--photos", type=int, default=150)
    parser.add_argument("--frames", type=int, default=100)
    arguments = parser.parse_args()
    cores = default_workers()
    data = [item.data for item in frames(arguments.data, arguments.frames)]
    data += [item for item, _ in photographs(arguments.data / "300w", arguments.photos)]
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        files = [str(Path(folder, f"{index}.jpg")) for index in range(len(data))]
        for file, content in zip(files, data, strict=True):
            Path(file).write_bytes(content)
        single, several = FaceMesh(arguments.python, 1), FaceMesh(arguments.python, cores)
        stack.callback(single.close)
        stack.callback(several.close)
        pool = stack.enter_context(ProcessPoolExecutor(cores, get_context("spawn")))
        dealt = [files[start::cores] for start in range(cores)]
        contenders: dict[str, Callable[[], list[Result]]] = {
            "FaceMesh, 1 process": lambda: single([files]),
            f"FaceMesh, {cores} processes": lambda: several(dealt),
            f"blazeface, model in the box, {cores} processes": lambda: list(pool.map(ours, dealt)),
        }
        spent = {name: np.zeros(2) for name in contenders}
        found: dict[str, list[bool]] = {}
        for turn in range(TURNS + 1):
            for name, work in contenders.items():
                began = time.perf_counter()
                results = work()
                wall, cpu = time.perf_counter() - began, sum(used for used, _ in results)
                found[name] = [face for _, faces in results for face in faces]
                if turn:
                    spent[name] += wall, cpu
    print(f"{len(files)} pictures, {cores} cores\n{'':<44}{'a second':>10}{'a second of CPU':>17}{'with a face':>13}")
    for name, (wall, cpu) in spent.items():
        print(f"{name:<44}{TURNS * len(files) / wall:>10.1f}{TURNS * len(files) / cpu:>17.1f}{sum(found[name]):>13}")
    _, theirs, mine = found.values()  # the latter two in the same order
    missed = sum(their and not my for their, my in zip(theirs, mine, strict=True))
    print(f"pictures in which FaceMesh finds a face and we none: {missed}")


if __name__ == "__main__":
    main()
