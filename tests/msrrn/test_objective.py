import pytest
import torch

from msrrn.metrics import nrmse_ip
from msrrn.network import Stages
from msrrn.objective import squared, summed_nrmse_ip


def staged(shapes: torch.Tensor) -> Stages:
    return Stages(shapes, torch.zeros(len(shapes)))


def test_equals_equation_5_from_residuals() -> None:
    random = torch.Generator().manual_seed(0)
    initial = torch.rand(3, 68, 2, generator=random, dtype=torch.float64)
    residuals = 0.1 * torch.randn(3, 3, 68, 2, generator=random, dtype=torch.float64)
    truth = torch.rand(3, 68, 2, generator=random, dtype=torch.float64)

    shape, shapes = initial, [initial]
    faces = ((initial - truth) ** 2).sum(dim=(1, 2))
    for stage in range(3):
        faces = faces + ((residuals[:, stage] - (truth - shape)) ** 2).sum(dim=(1, 2))
        shape = shape + residuals[:, stage]
        shapes.append(shape)
    expected = faces.mean()

    torch.testing.assert_close(squared(staged(torch.stack(shapes, dim=1)), truth), expected)


def test_a_value_by_hand() -> None:
    truth = torch.zeros(2, 68, 2)
    shapes = torch.zeros(2, 4, 68, 2)
    shapes[0, 0, 5, 0] = 3.0
    shapes[1, 3, 67, 1] = 1.0
    assert squared(staged(shapes), truth).item() == pytest.approx((9 + 1) / 2)


def test_every_stage_of_every_face_gets_its_own_gradient() -> None:
    truth = torch.rand(2, 68, 2)
    shapes = torch.rand(2, 4, 68, 2).requires_grad_()
    (gradient,) = torch.autograd.grad(squared(staged(shapes), truth), shapes)
    torch.testing.assert_close(gradient, (shapes.detach() - truth[:, None]) * 2 / 2)


def test_summed_nrmse_is_the_metric_of_every_stage() -> None:
    truth, shapes = torch.rand(3, 68, 2), torch.rand(3, 4, 68, 2)
    expected = nrmse_ip(shapes.numpy(), truth.numpy()[:, None]).sum(axis=1).mean()
    assert summed_nrmse_ip(staged(shapes), truth).item() == pytest.approx(float(expected), rel=1e-5)


def test_summed_nrmse_has_a_gradient_where_a_shape_is_exact() -> None:
    truth = torch.rand(2, 68, 2)
    shapes = truth[:, None].repeat(1, 4, 1, 1).requires_grad_()
    (gradient,) = torch.autograd.grad(summed_nrmse_ip(staged(shapes), truth), shapes)
    assert gradient.isfinite().all()
