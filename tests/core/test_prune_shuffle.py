"""Pruning across a channel shuffle removes channels, and nothing else."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from core.layers import layer_infos
from core.prune import prune_channels
from core.students import STUDENTS
from tests.tiny_nets import images, settled

SHAPE = (3, 8, 8)


class Shuffled(nn.Module):
    """Grouped 1x1, norm, shuffle, depthwise 3x3, norm, grouped 1x1."""

    def __init__(self, channels: int, groups: tuple[int, int, int]) -> None:
        super().__init__()
        first, dealt, second = groups
        self.stem = nn.Conv2d(3, 12, 1)
        self.first, self.norm1 = nn.Conv2d(12, channels, 1, groups=first, bias=False), nn.BatchNorm2d(channels)
        self.shuffle = nn.ChannelShuffle(dealt)
        self.depthwise, self.norm2 = nn.Conv2d(channels, channels, 3, padding=1, groups=channels), nn.BatchNorm2d(channels)
        self.second = nn.Conv2d(channels, 24, 1, groups=second)
        self.classifier = nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm1(self.first(self.stem(x))))
        x = torch.relu(self.norm2(self.depthwise(self.shuffle(x))))
        return self.classifier(self.second(x).mean((2, 3)))


def network(channels: int, groups: tuple[int, int, int]) -> nn.Module:
    torch.manual_seed(0)
    return settled(Shuffled(channels, groups), SHAPE)


def silence(model: nn.Module, pruned: nn.Module) -> list[int]:
    """Make the channels of `first` that `pruned` lacks, and what the depthwise layer makes of them, zero; their numbers."""
    left = [tuple(row.flatten().tolist()) for row in pruned.first.weight]
    gone = [index for index, row in enumerate(model.first.weight) if tuple(row.flatten().tolist()) not in left]
    behind = model.shuffle(torch.arange(model.first.out_channels).view(1, -1, 1, 1).float()).flatten().tolist()
    with torch.no_grad():
        for index in gone:
            model.norm1.weight[index] = model.norm1.bias[index] = 0.0
            place = behind.index(index)
            model.norm2.weight[place] = model.norm2.bias[place] = 0.0
    return gone


@pytest.mark.parametrize("groups", [(3, 3, 3), (1, 3, 3), (3, 3, 1), (2, 2, 4), (4, 2, 2), (2, 4, 3)])
@pytest.mark.parametrize("ratio", [0.3, 0.5, 0.8])
def test_without_channels_that_are_zero_the_network_computes_the_same(groups: tuple[int, int, int], ratio: float) -> None:
    model = network(48, groups)
    ratios = {"first": ratio}
    gone = silence(model, prune_channels(model, ratios, SHAPE, round_to=4))
    pruned = prune_channels(model, ratios, SHAPE, round_to=4)
    assert pruned.first.out_channels == 48 - len(gone) < 48
    assert pruned.depthwise.groups == pruned.norm1.num_features == pruned.norm2.num_features == pruned.second.in_channels == 48 - len(gone)
    x = images(4, SHAPE)
    with torch.no_grad():
        torch.testing.assert_close(pruned(x), model(x), rtol=1e-4, atol=1e-5)


def test_shapes_do_not_depend_on_the_weights() -> None:
    shapes = []
    for seed in range(3):
        torch.manual_seed(seed)
        model = STUDENTS["shufflenet_v1"](classes=5, width=0.5)
        infos = layer_infos(model, (3, 16, 16))
        shapes.append(layer_infos(prune_channels(model, {info.name: 0.4 for info in infos}, (3, 16, 16)), (3, 16, 16)))
    assert shapes[0] == shapes[1] == shapes[2]


def test_the_weakest_channel_of_each_cell_goes() -> None:
    model = network(12, (2, 2, 2))
    with torch.no_grad():
        for module in (model.first, model.depthwise, model.second):
            module.weight.fill_(1.0)
        model.norm1.weight.fill_(1.0)
        model.norm2.weight.fill_(1.0)
        # cells: (first group, second group) -> channels (0, 1, 2), (3, 4, 5), (6, 7, 8), (9, 10, 11)
        for weak in (1, 5, 6, 9):
            model.first.weight[weak] = 0.125
    pruned = prune_channels(model, {"first": 1 / 3}, SHAPE, round_to=4)
    assert pruned.first.out_channels == 8
    assert bool((pruned.first.weight == 1.0).all())


def test_a_shuffle_beside_a_sum_stays_whole() -> None:
    class Summed(Shuffled):
        def forward(self, x: Tensor) -> Tensor:
            x = torch.relu(self.norm1(self.first(self.stem(x))))
            return self.classifier(self.second(self.norm2(self.depthwise(self.shuffle(x) + x))).mean((2, 3)))

    torch.manual_seed(0)
    pruned = prune_channels(Summed(24, (2, 2, 2)), {"first": 0.5}, SHAPE, round_to=4)
    assert pruned.first.out_channels == 24


def test_groups_that_a_concatenation_moves_apart_stay_whole() -> None:
    class Joined(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 24, 1), nn.Conv2d(24, 24, 1, groups=3)
            self.c, self.classifier = nn.Conv2d(48, 24, 1, groups=3), nn.Linear(24, 5)

        def forward(self, x: Tensor) -> Tensor:
            x = torch.relu(self.a(x))
            return self.classifier(self.c(torch.cat([self.b(x), x], 1)).mean((2, 3)))

    torch.manual_seed(0)
    pruned = prune_channels(Joined(), {"a": 0.5, "b": 0.5, "c": 0.5}, SHAPE, round_to=4)
    assert (pruned.a.out_channels, pruned.b.out_channels, pruned.c.out_channels) == (24, 24, 12)
