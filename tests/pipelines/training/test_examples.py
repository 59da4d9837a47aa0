import io

import numpy as np
import torch
from PIL import Image

from msrrn.network import MSRRN
from pipelines.dataset.loader import Loader
from pipelines.training.examples import due, examples
from tests.factories import TINY, Dataset


def test_validation_faces_are_drawn_with_both_shapes(dataset: Dataset) -> None:
    val = Loader(*dataset, "val")
    torch.manual_seed(0)
    drawn = examples(MSRRN(TINY), val)
    assert drawn
    picture = Image.open(io.BytesIO(drawn))
    assert picture.size == (len(val) * 204 - 4, 200)
    colours = np.ptp(np.asarray(picture).astype(int), axis=2)
    assert (colours > 100).sum() > 200 * len(val)


def test_nothing_is_drawn_without_faces_or_without_numbers(dataset: Dataset) -> None:
    store, manifest = dataset
    none = Loader(store, manifest.model_copy(update={"units": manifest.shards("train")}), "val")
    assert examples(MSRRN(TINY), none) is None
    broken = MSRRN(TINY, torch.full((68, 2), torch.nan))
    assert examples(broken, Loader(*dataset, "val")) is None


def test_it_is_drawn_where_much_changes_and_at_the_end() -> None:
    assert [epoch for epoch in range(1, 21) if due(epoch, 20)] == [1, 2, 4, 8, 16, 20]
