import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from msrrn.landmarks import MIRROR
from msrrn.lean import one_sided, without_lean
from msrrn.sampling import frames_of, mirrored_points
from tests.msrrn.test_view import MEAN, turn

MIRRORED = torch.from_numpy(MIRROR)
BACK = torch.tensor([-1.0, 1.0])

leans = st.integers(0, 2**32 - 1).map(
    lambda seed: torch.from_numpy(np.random.default_rng(seed).normal(0, 0.01, (68, 2))).float()
)


def mirror_image(shapes: Tensor) -> Tensor:
    return mirrored_points(shapes)[..., MIRRORED, :]


@given(leans)
def test_what_is_one_sided_turns_its_sign_in_the_mirror_and_the_rest_does_not(lean: Tensor) -> None:
    side = one_sided(lean, MIRRORED)
    torch.testing.assert_close(side[MIRRORED] * BACK, -side)
    rest = lean - side
    torch.testing.assert_close(rest[MIRRORED] * BACK, rest)
    torch.testing.assert_close(one_sided(side, MIRRORED), side)


@given(leans, st.floats(-3, 3), st.floats(0.3, 2), st.integers(0, 2**32 - 1))
def test_a_face_and_its_mirror_image_lose_the_same_lean(lean: Tensor, angle: float, scale: float, seed: int) -> None:
    """Both annotated as the photo shows the face, one mirrored: without the lean, they are mirror images again."""
    side = one_sided(lean, MIRRORED)
    own = torch.from_numpy(np.random.default_rng(seed).normal(0, 0.02, (68, 2))).float()
    face = (MEAN - 0.5 + own) @ turn(angle, scale) + 0.5
    frame = frames_of(MEAN, face[None])[0]
    annotated = face + side @ frame
    upright, mirrored = without_lean(
        torch.stack([annotated, mirror_image(annotated)]), torch.tensor([False, True]), side, MEAN
    )
    torch.testing.assert_close(mirrored, mirror_image(upright), atol=1e-5, rtol=0)
    # The frame is found from what leans: to a few hundredths of the lean.
    assert (upright - face).norm() < 0.05 * (annotated - face).norm() + 1e-6
