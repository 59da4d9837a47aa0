import numpy as np

from msrrn.landmarks import face_roll
from pipelines.evaluation.slices import slices
from tests.pipelines.judged import judged_face


def test_every_face_is_in_one_slice_of_each_kind() -> None:
    rng = np.random.default_rng(0)
    faces = [
        judged_face(
            0.05,
            number,
            subset=str(rng.choice(["afw", "my faces"])),
            side=float(rng.uniform(15, 300)),
            roll=float(rng.uniform(-60, 60)),
            sharpness=float(rng.uniform(0, 600)),
        )
        for number in range(200)
    ]
    found = slices(faces)
    for kind, count in {"size": 4, "roll": 3, "sharpness": 4, "subset": 2}.items():
        members = [indices for name, indices in found.items() if name.startswith(kind)]
        assert len(members) == count
        assert sorted(np.concatenate(members).tolist()) == list(range(200))
    assert all(abs(face_roll(faces[index].truth)) >= 30 for index in found["roll from 30°"])
    assert all(30 <= faces[index].sharpness < 100 for index in found["sharpness 30 to 100"])
    assert {faces[index].subset for index in found["subset my faces"]} == {"my faces"}


def test_size_does_not_ask_a_models_box() -> None:
    small, large = slices([judged_face(0.05, side=20.0), judged_face(0.05, side=200.0)]).values()
    assert (small.tolist(), large.tolist()) == ([0], [1])


def test_a_kind_that_all_faces_share_is_no_slice() -> None:
    assert list(slices([judged_face(0.05, roll=0.0), judged_face(0.05, roll=-45.0)])) == [
        "roll under 10°",
        "roll from 30°",
    ]
    assert slices([judged_face(0.05)]) == {}
