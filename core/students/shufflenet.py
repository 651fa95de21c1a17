"""ShuffleNet V1 (three groups) and V2 for CIFAR-size images: a 1x1 stem without stride, so that 32 px leave a 4x4 map.

References: Zhang et al. 2018 (arXiv:1707.01083), table 1; Ma et al. 2018 (arXiv:1807.11164), table 5; parameter counts equal those of
mdistiller's `mdistiller/models/cifar/ShuffleNetv1.py` and `ShuffleNetv2.py`. Difference to the paper, as there: in V1 a ReLU follows the
depthwise convolution.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from core.students.common import check_arguments, classify, initialise, scaled

STEM, STRIDES = 24, (2, 2, 2)
GROUPS = 3
V1_STAGES, V1_BLOCKS = (240, 480, 960), (4, 8, 4)
V2_STAGES, V2_BLOCKS = (58, 116, 232), (4, 8, 4)
"""V2's stages by the channels of one of the two branches."""
V2_LAST = 1024


class GroupedBlock(nn.Module):
    """V1: grouped 1x1, shuffle, depthwise 3x3, grouped 1x1, beside a shortcut that is added, or appended at stride 2.

    (B, inputs, h, w) -> (B, outputs, h / stride, w / stride).
    """

    def __init__(self, inputs: int, outputs: int, stride: int, groups: int) -> None:
        super().__init__()
        made = outputs - inputs if stride == 2 else outputs
        inner = made // 4
        self.conv1 = nn.Conv2d(inputs, inner, 1, groups=groups, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.shuffle = nn.ChannelShuffle(groups) if groups > 1 else nn.Identity()
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(inner, inner, 3, stride=stride, padding=1, groups=inner, bias=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.relu2 = nn.ReLU()
        self.conv3 = nn.Conv2d(inner, made, 1, groups=GROUPS, bias=False)
        self.bn3 = nn.BatchNorm2d(made)
        self.pool = nn.AvgPool2d(3, stride=2, padding=1) if stride == 2 else None
        self.relu3 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        # shuffled before the ReLU, which changes nothing, so that what the next layer quantises is known not to be negative
        out = self.relu1(self.shuffle(self.bn1(self.conv1(x))))
        out = self.relu2(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        out = self.relu3(out + x if self.pool is None else torch.cat([out, self.pool(x)], 1))
        return out


class ShuffleNetV1(nn.Module):
    """Stem, three stages of grouped blocks, linear head."""

    def __init__(self, *, classes: int, channels: int, image_size: int, width: float) -> None:
        super().__init__()
        check_arguments("shufflenet_v1", classes=classes, channels=channels, image_size=image_size, width=width, strides=STRIDES)
        stem = dealt(STEM, width)
        stages = [dealt(count, width) for count in V1_STAGES]
        self.conv1 = nn.Conv2d(channels, stem, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(stem)
        self.relu = nn.ReLU()
        self.layer1 = grouped_stage(stem, stages[0], V1_BLOCKS[0], first_groups=1)
        self.layer2 = grouped_stage(stages[0], stages[1], V1_BLOCKS[1], first_groups=GROUPS)
        self.layer3 = grouped_stage(stages[1], stages[2], V1_BLOCKS[2], first_groups=GROUPS)
        self.classifier = nn.Linear(stages[2], classes)
        initialise(self)

    def features(self, x: Tensor) -> Tensor:
        """(B, channels, H, W) -> (B, C, ceil(H / 8), ceil(W / 8)), after the last ReLU."""
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return x

    def forward(self, x: Tensor) -> Tensor:
        return classify(self.classifier, self.features(x))


def dealt(channels: int, width: float) -> int:
    """`channels * width`, rounded to a multiple of what a quarter of it in three groups needs; grows with `channels`."""
    unit = 4 * GROUPS
    rank = (STEM, *V1_STAGES).index(channels) + 1
    return max(rank, int(channels * width / unit + 0.5)) * unit


def grouped_stage(inputs: int, outputs: int, blocks: int, first_groups: int) -> nn.Sequential:
    """`blocks` of V1, the first of which halves the map. The network's first 1x1 convolution has too few channels for groups."""
    first = GroupedBlock(inputs, outputs, 2, first_groups)
    return nn.Sequential(first, *(GroupedBlock(outputs, outputs, 1, GROUPS) for _ in range(blocks - 1)))


class SplitBlock(nn.Module):
    """V2, stride 1: one half of the channels passes, the other is filtered; (B, 2 branch, h, w) -> the same."""

    def __init__(self, branch: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(branch, branch, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(branch)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(branch, branch, 3, padding=1, groups=branch, bias=False)
        self.bn2 = nn.BatchNorm2d(branch)
        self.conv3 = nn.Conv2d(branch, branch, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(branch)
        self.relu3 = nn.ReLU()
        self.shuffle = nn.ChannelShuffle(2)

    def forward(self, x: Tensor) -> Tensor:
        # sizes in place of chunk(2): Torch-Pruning 1.6 reads them from the graph, and fails on a chunk
        passed, out = x.split([x.shape[1] // 2] * 2, 1)
        out = self.relu1(self.bn1(self.conv1(out)))
        out = self.bn2(self.conv2(out))
        out = self.relu3(self.bn3(self.conv3(out)))
        out = self.shuffle(torch.cat([passed, out], 1))
        return out


class DownBlock(nn.Module):
    """V2, stride 2: both branches are filtered; (B, inputs, h, w) -> (B, 2 branch, h / 2, w / 2)."""

    def __init__(self, inputs: int, branch: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, inputs, 3, stride=2, padding=1, groups=inputs, bias=False)
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv2 = nn.Conv2d(inputs, branch, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(branch)
        self.relu2 = nn.ReLU()
        self.conv3 = nn.Conv2d(inputs, branch, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(branch)
        self.relu3 = nn.ReLU()
        self.conv4 = nn.Conv2d(branch, branch, 3, stride=2, padding=1, groups=branch, bias=False)
        self.bn4 = nn.BatchNorm2d(branch)
        self.conv5 = nn.Conv2d(branch, branch, 1, bias=False)
        self.bn5 = nn.BatchNorm2d(branch)
        self.relu5 = nn.ReLU()
        self.shuffle = nn.ChannelShuffle(2)

    def forward(self, x: Tensor) -> Tensor:
        left = self.bn1(self.conv1(x))
        left = self.relu2(self.bn2(self.conv2(left)))
        right = self.relu3(self.bn3(self.conv3(x)))
        right = self.bn4(self.conv4(right))
        right = self.relu5(self.bn5(self.conv5(right)))
        out = self.shuffle(torch.cat([left, right], 1))
        return out


class ShuffleNetV2(nn.Module):
    """Stem, three stages, a 1x1 convolution to the last channels, linear head."""

    def __init__(self, *, classes: int, channels: int, image_size: int, width: float) -> None:
        super().__init__()
        check_arguments("shufflenet_v2", classes=classes, channels=channels, image_size=image_size, width=width, strides=STRIDES)
        # 58 is no multiple of four: the published network at width 1, multiples of four at any other
        stem, last, *branches = (count if width == 1.0 else scaled(count, width) for count in (STEM, V2_LAST, *V2_STAGES))
        self.conv1 = nn.Conv2d(channels, stem, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(stem)
        self.relu1 = nn.ReLU()
        self.layer1 = split_stage(stem, branches[0], V2_BLOCKS[0])
        self.layer2 = split_stage(2 * branches[0], branches[1], V2_BLOCKS[1])
        self.layer3 = split_stage(2 * branches[1], branches[2], V2_BLOCKS[2])
        self.conv2 = nn.Conv2d(2 * branches[2], last, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(last)
        self.relu2 = nn.ReLU()
        self.classifier = nn.Linear(last, classes)
        initialise(self)

    def features(self, x: Tensor) -> Tensor:
        """(B, channels, H, W) -> (B, C, ceil(H / 8), ceil(W / 8)), after the last ReLU."""
        x = self.relu1(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        x = self.relu2(self.bn2(self.conv2(x)))
        return x

    def forward(self, x: Tensor) -> Tensor:
        return classify(self.classifier, self.features(x))


def split_stage(inputs: int, branch: int, blocks: int) -> nn.Sequential:
    """`blocks` of V2, the first of which halves the map."""
    return nn.Sequential(DownBlock(inputs, branch), *(SplitBlock(branch) for _ in range(blocks - 1)))
