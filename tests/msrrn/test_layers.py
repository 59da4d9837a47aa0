import torch
from torch import nn

from msrrn.layers import BlockFeatures, ContextMap, LandmarkLinear
from msrrn.sampling import square_offsets


def test_each_landmark_has_weights_of_its_own() -> None:
    linear = LandmarkLinear(6, 3)
    features = torch.rand(2, 68, 6)
    expected = torch.stack([features[:, mark] @ linear.weight[mark] for mark in range(68)], dim=1)
    torch.testing.assert_close(linear(features), expected)


def test_filters_on_blocks_are_convolutions_without_overlap() -> None:
    features = BlockFeatures(16, (3, 5))
    patches = torch.rand(2, 68, 16, 16)
    columns, rows = (features.offsets - square_offsets(16)[0]).long().unbind(dim=1)
    first, second = nn.Conv2d(1, 3, 4, stride=4), nn.Conv2d(3, 5, 2, stride=2)
    with torch.no_grad():
        first.weight.copy_(features.first.weight.view(3, 1, 4, 4))
        second.weight.copy_(features.second.weight.view(5, 2, 2, 3).permute(0, 3, 1, 2))
        first.bias, second.bias = features.first.bias, features.second.bias
    expected = torch.relu(second(torch.relu(first(patches.view(-1, 1, 16, 16))))).permute(0, 2, 3, 1)
    torch.testing.assert_close(features(patches[:, :, rows, columns]), expected.reshape(2, 68, features.size))


def test_context_maps_have_a_cell_for_every_fourth_and_every_eighth_pixel() -> None:
    fine, coarse = ContextMap((3, 4, 6, 8), 5)(torch.rand(2, 96, 96))
    assert (fine.shape, coarse.shape) == ((2, 5, 24, 24), (2, 6, 12, 12))


def test_a_picture_that_moves_by_whole_strides_moves_its_context_maps() -> None:
    torch.manual_seed(0)
    context = ContextMap((4, 4, 8, 8), 3)
    picture = torch.randn(1, 320, 320)
    with torch.no_grad():
        here, there = context(picture), context(picture.roll((16, 32), dims=(1, 2)))
    for before, after, stride in zip(here, there, (4, 8), strict=True):
        expected = before.roll((16 // stride, 32 // stride), dims=(2, 3))
        # A cell sees some 100 pixels around it, and near the borders none.
        inner = slice(132 // stride, -132 // stride)
        torch.testing.assert_close(after[..., inner, inner], expected[..., inner, inner], atol=1e-5, rtol=0)
        assert before.std() > 0.01
