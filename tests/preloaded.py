# ruff: noqa: F401
"""What the server that `tests.factories.forked` asks has before it forks: it takes each process seconds."""

import cv2
import mlflow.store.model_registry.sqlalchemy_store
import mlflow.store.tracking.sqlalchemy_store
import numpy as np

import pipelines.annotation.run
import pipelines.annotation.sandbox
import pipelines.dataset.prepare
import pipelines.promotion.gate
from pipelines.detection import HogDetector
from tests.quick import FORKING

cv2.setNumThreads(1)  # threads are not forked
HogDetector()(np.zeros((80, 80, 3), np.uint8))  # dlib unpacks its detector

vars(pipelines.annotation.sandbox)["subprocess"] = FORKING  # of runs that a test kills
