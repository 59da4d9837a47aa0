from dataclasses import replace

import numpy as np

from msrrn.synthetic.anatomy import MEAN
from pipelines.dataset.photos import PhotoGroup, Seen
from pipelines.dataset.screening import screened
from pipelines.sources import AnnotatedPhoto
from pipelines.sources.corrections import PREDICTIONS
from tests.factories import calls_of


def _crowd(people: int) -> PhotoGroup:
    face = MEAN[:68, :2] / np.ptp(MEAN[:68, 0]) * 60
    places = [(100 * (person % 40), 100 * (person // 40)) for person in range(people)]
    faces = [
        AnnotatedPhoto("root", "a.jpg", f"a.jpg.{number:04}.pts", "crowd", None, face + place)
        for number, place in enumerate(places)
    ]
    return PhotoGroup(Seen("0" * 64, "a.jpg", None, ""), tuple(faces))


def test_a_face_costs_no_more_in_a_larger_crowd() -> None:
    assert calls_of(lambda: screened([_crowd(400)])) < 3 * calls_of(lambda: screened([_crowd(200)]))


def test_in_a_crowd_the_face_that_is_there_twice_is_found() -> None:
    """Not beside one that is refused, and the others stay in their order, whoever drew them."""
    crowd = _crowd(80)
    first, *others = crowd.faces
    faces = (replace(first, subset=PREDICTIONS), *others)
    broken, again = (
        replace(faces[41], annotation_uri=f"{name}.pts", shape=shape)
        for name, shape in (("broken", faces[41].shape[::-1]), ("again", faces[41].shape + 2))
    )
    (kept,), left_out = screened([PhotoGroup(crowd.seen, (broken, *faces, again))])
    assert kept.faces == faces
    assert [item.uri for item in left_out] == ["broken.pts", "again.pts"]
    assert left_out[1].reason == "face_twice"
    assert left_out[1].message.startswith("the face of a.jpg.0041.pts: ")
