from typing import get_args

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from msrrn.config import PRESETS, ModelConfig, Preset
from msrrn.geometry import LEVELS
from msrrn.network import MSRRN, Stages, standardise
from msrrn.objective import misjudged, misplaced, nrmse_ip, squared
from msrrn.predictor import area_halve
from tests.msrrn.test_view import MEAN

SMALL = ModelConfig(
    preset="small", patch=12, patch_channels=(4, 4), initial_channels=(4, 4, 4), initial_hidden=16, hidden=16
)
STRAIGHT = ModelConfig(
    preset="straight",
    pooled=False,
    context=(4, 4, 8, 8),
    context_features=8,
    landmark_features=4,
    patch_channels=(4, 4),
    initial_channels=(4, 4, 4),
    initial_hidden=16,
    hidden=16,
)
"""Small as well; it straightens faces."""


def lively(config: ModelConfig = SMALL, seed: int = 0) -> MSRRN:
    """A network whose residuals depend visibly on the pixels, unlike those of a fresh one."""
    torch.manual_seed(seed)
    model = MSRRN(config, 0.25 + 0.5 * torch.rand(68, 2)).eval()
    outputs = (model.initial.head[-1], model.regressor.output)
    for linear in outputs:
        assert isinstance(linear, nn.Linear)
        nn.init.normal_(linear.weight, std=0.02)
    return model


def smooth_crops(batch: int, seed: int = 0) -> Tensor:
    """uint8 (B, 200, 200): blobs, values of 5 to 100."""
    noise = torch.rand(batch, 1, 12, 12, generator=torch.Generator().manual_seed(seed))
    crops = nn.functional.interpolate(noise, size=(200, 200), mode="bicubic").clamp(0, 1)[:, 0]
    return (5 + 95 * crops).to(torch.uint8)


def levels(crops: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    level_100 = area_halve(crops)
    return area_halve(level_100), level_100, crops


@torch.no_grad()
def run(model: MSRRN, crops: Tensor) -> Tensor:
    stages: Stages = model(*levels(crops))
    return stages.shapes


def test_every_preset_has_a_network_of_its_name() -> None:
    assert [(name, config.preset) for name, config in PRESETS.items()] == [(name, name) for name in get_args(Preset)]


@pytest.mark.parametrize("config", [SMALL, STRAIGHT, *PRESETS.values(), ModelConfig(patch=40, hidden=8)])
@pytest.mark.parametrize("batch", [1, 3])
def test_every_stage_gives_a_shape(config: ModelConfig, batch: int) -> None:
    model = MSRRN(config)
    stages = model(*levels(smooth_crops(batch)))
    assert stages.shapes.shape == (batch, 1 + len(LEVELS), 68, 2)
    assert stages.shapes.dtype == torch.float32
    torch.testing.assert_close(stages.final, stages.shapes[:, -1], atol=0, rtol=0)


def test_the_network_of_the_paper_has_this_many_parameters() -> None:
    model = MSRRN(PRESETS["paper"])
    count = {name: sum(weight.numel() for weight in part.parameters()) for name, part in model.named_children()}
    assert count == {"initial": 254_328, "regressor": 1_217_592, "doubt": 8_257}


def test_a_fresh_network_starts_near_the_mean_shape() -> None:
    torch.manual_seed(0)
    mean = torch.rand(68, 2)
    shapes = run(MSRRN(PRESETS["paper"], mean), smooth_crops(2))
    # In training faces, landmarks are about 0.1 of the crop away from the mean shape.
    assert (shapes - mean).square().mean(dim=(0, 2, 3)).sqrt().max() < 0.08


def test_the_network_keeps_its_own_mean_shape() -> None:
    mean = torch.full((68, 2), 0.25)
    model = MSRRN(SMALL, mean)
    mean.zero_()
    assert (model.mean_shape == 0.25).all()
    model.load_state_dict(MSRRN(SMALL).state_dict())
    assert (model.mean_shape == 0.5).all()
    assert (mean == 0).all()


def test_one_regressor_serves_every_stage() -> None:
    model = lively()
    with torch.no_grad():
        model.regressor.memory.weight.zero_()
        model.regressor.output.bias.normal_(std=0.01)
    # Every patch of a constant crop is the same, wherever it is: so is then the residual of every stage.
    residuals = run(model, torch.full((1, 200, 200), 90, dtype=torch.uint8)).diff(dim=1)[0]
    torch.testing.assert_close(residuals[1], residuals[0], atol=1e-6, rtol=0)
    torch.testing.assert_close(residuals[2], residuals[0], atol=1e-6, rtol=0)
    assert residuals.abs().max() > 0.01


def test_each_stage_reads_its_own_level() -> None:
    model = lively()
    crops = smooth_crops(1)
    coarse_to_fine = list(levels(crops))
    reference = model(*coarse_to_fine).shapes
    others = levels(smooth_crops(1, seed=1))
    for stage, other in enumerate(others):
        changed = [*coarse_to_fine]
        changed[stage] = other
        difference = (model(*changed).shapes - reference).abs().amax(dim=(0, 2, 3))
        # S⁰ comes from the 50 px level; level t first shows in stage t + 1.
        first = 0 if stage == 0 else stage + 1
        assert (difference[:first] == 0).all()
        assert (difference[first:] > 1e-4).all()


def test_the_memory_matters_from_the_second_stage_on() -> None:
    model = lively()
    crops = smooth_crops(2)
    with_memory = run(model, crops)
    with torch.no_grad():
        model.regressor.memory.weight.zero_()
    difference = (run(model, crops) - with_memory).abs().amax(dim=(0, 2, 3))
    assert (difference[:2] == 0).all()
    assert (difference[2:] > 1e-4).all()


def test_the_shapes_depend_on_the_pixels() -> None:
    shapes = run(lively(), smooth_crops(2))
    assert ((shapes[0] - shapes[1]).abs().amax(dim=(1, 2)) > 0.01).all()


@pytest.mark.parametrize("config", [SMALL, STRAIGHT])
@pytest.mark.parametrize(("contrast", "brightness"), [(2, 30), (1, 100), (2, 0)])
def test_brightness_and_contrast_do_not_matter(contrast: int, brightness: int, config: ModelConfig) -> None:
    model, crops = lively(config), smooth_crops(3)
    # A straightened face is divided by slightly more than its contrast, so that a constant one is, too.
    tolerance = 1e-3 if config.context else 1e-4
    coarse, middle, fine = levels(crops)
    changed = [contrast * level.float() + brightness for level in (coarse, middle, fine)]
    with torch.no_grad():
        torch.testing.assert_close(model(*changed).shapes, run(model, crops), atol=tolerance, rtol=0)
    # As uint8, a pyramid would round anew but for blocks of 4 × 4 equal pixels.
    blocks = crops[:, ::4, ::4].repeat_interleave(4, dim=1).repeat_interleave(4, dim=2)
    torch.testing.assert_close(run(model, contrast * blocks + brightness), run(model, blocks), atol=tolerance, rtol=0)


def test_standardised_crops_have_zero_mean_and_unit_variance() -> None:
    values = standardise(smooth_crops(3))
    torch.testing.assert_close(values.mean(dim=(1, 2)), torch.zeros(3), atol=1e-4, rtol=0)
    torch.testing.assert_close(values.var(dim=(1, 2), unbiased=False), torch.ones(3), atol=1e-4, rtol=0)


@pytest.mark.parametrize("config", [SMALL, STRAIGHT])
@pytest.mark.parametrize("grey", [0, 1, 128, 255])
def test_constant_crops_give_finite_shapes(grey: int, config: ModelConfig) -> None:
    assert run(lively(config), torch.full((2, 200, 200), grey, dtype=torch.uint8)).isfinite().all()


@pytest.mark.parametrize(("config", "reduced"), [(SMALL, False), (STRAIGHT, False), (STRAIGHT, True)])
def test_training_on_a_few_faces_reduces_the_loss(config: ModelConfig, reduced: bool) -> None:
    torch.manual_seed(0)
    crops = smooth_crops(4)
    truth = 0.5 + 0.2 * torch.rand(68, 2) + 0.05 * torch.randn(4, 1, 2)
    model = MSRRN(config, truth.mean(dim=0))
    model.reduced = reduced
    optimiser = torch.optim.SGD(model.parameters(), lr=0.002, momentum=0.9)
    pyramid = levels(crops)
    losses = []
    for _ in range(60):
        stages = model(*pyramid)
        loss = squared(stages, truth)
        optimiser.zero_grad()
        (loss + 0.01 * misplaced(stages, truth)).backward()  # type: ignore[no-untyped-call]
        assert all(weight.grad is not None for name, weight in model.named_parameters() if "doubt." not in name)
        assert all(weight.grad is None for weight in model.doubt.parameters())
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]


def test_the_state_round_trips() -> None:
    model, other = lively(seed=0), lively(seed=1)
    crops = smooth_crops(2)
    assert (run(model, crops) - run(other, crops)).abs().max() > 0.01
    other.load_state_dict(model.state_dict())
    torch.testing.assert_close(run(other, crops), run(model, crops), atol=0, rtol=0)
    assert "mean_shape" in model.state_dict()


def test_the_expected_error_learns_without_moving_the_network() -> None:
    torch.manual_seed(0)
    model, crops = lively(), smooth_crops(4)
    stages = model(*levels(crops))
    truth = stages.final.detach() + torch.tensor([0.001, 0.01, 0.03, 0.1])[:, None, None] * torch.randn(4, 68, 2)
    optimiser = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(150):
        optimiser.zero_grad()
        misjudged(model(*levels(crops)), truth).backward()  # type: ignore[no-untyped-call]
        assert all(weight.grad is None for name, weight in model.named_parameters() if "doubt." not in name)
        optimiser.step()
    error = nrmse_ip(stages.final[:, None].detach(), truth)[:, 0]
    torch.testing.assert_close(model(*levels(crops)).log_error, error.log(), atol=0.2, rtol=0)


def test_a_turned_and_scaled_shape_gets_its_residual_turned_and_scaled() -> None:
    """With weights that ignore the pixels, the steps are the same in the frame of the initial shape."""
    model = lively(STRAIGHT.model_copy(update={"landmark_features": 0}))
    with torch.no_grad():
        for part in (model.regressor.input, model.initial.head[-1]):
            assert isinstance(part, nn.Linear)
            part.weight.zero_()
        model.regressor.input.bias.fill_(0.1)
        model.regressor.output.bias.normal_(std=0.01)
        head = model.initial.head[-1]
        assert isinstance(head, nn.Linear)
        # A quarter turn from x towards y around the centre of the mean shape, at twice the size.
        centred = model.mean_shape - model.mean_shape.mean(dim=0)
        turned = 2 * centred @ torch.tensor([[0.0, 1.0], [-1.0, 0.0]])
        upright = run(model, smooth_crops(1)).diff(dim=1)[0]
        head.bias.copy_((turned - centred).flatten())
        moved = run(model, smooth_crops(1)).diff(dim=1)[0]
    torch.testing.assert_close(moved, 2 * upright @ torch.tensor([[0.0, 1.0], [-1.0, 0.0]]), atol=1e-5, rtol=0)
    assert (upright.abs().amax(dim=(1, 2)) > 0.01).all()


@pytest.mark.parametrize("config", [SMALL, STRAIGHT, PRESETS["best"]])
def test_half_the_precision_moves_shapes_by_less_than_a_pixel(config: ModelConfig) -> None:
    torch.manual_seed(0)
    model = MSRRN(config, MEAN).eval()
    whole = run(model, smooth_crops(2))
    model.reduce()
    halved = run(model, smooth_crops(2))
    assert halved.dtype == torch.float32
    assert 0 < (halved - whole).abs().max() < 1 / 200


@pytest.mark.parametrize("config", [SMALL, STRAIGHT])
def test_heat_maps_come_with_context(config: ModelConfig) -> None:
    stages = MSRRN(config, MEAN)(*levels(smooth_crops(2)))
    batch, landmarks, height, width = stages.heat.shape
    assert (batch, landmarks) == (2, 68)
    assert height == width
    assert (height > 0) == (config.context is not None)


def test_filters_side_by_side_need_whole_blocks() -> None:
    with pytest.raises(ValidationError, match="patch 12 must be a multiple of 8 where nothing is pooled"):
        ModelConfig(patch=12, pooled=False)


def test_what_is_pooled_needs_pixels_that_are_left_over() -> None:
    with pytest.raises(ValidationError, match="patch 8 must be at least 12 where filters are pooled"):
        ModelConfig(patch=8)


@pytest.mark.parametrize("config", [SMALL, STRAIGHT])
def test_more_stages_change_ever_less_and_nothing_before_them(config: ModelConfig) -> None:
    model = lively(config)
    crops = levels(smooth_crops(2))
    usual = model(*crops).shapes
    model.stages = 8
    more = model(*crops).shapes
    assert more.shape[1] == 9
    torch.testing.assert_close(more[:, :4], usual)
    steps = torch.linalg.vector_norm(more[:, 1:] - more[:, :-1], dim=-1).mean(dim=(0, 2))
    assert (steps[3:] > 0).all()
    assert (steps[4:] < 0.8 * steps[3:-1]).all()
