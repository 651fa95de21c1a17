"""CIFAR-style residual networks.

References: He et al. 2016 (arXiv:1512.03385), section 4.2, with a projection (1x1 convolution and BatchNorm) where stride or channels
change; parameter counts equal those of mdistiller's `mdistiller/models/cifar/resnet.py`.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from core.errors import UserError
from core.students.common import check_arguments, classify, initialise, scaled

STRIDES = (1, 2, 2)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut: (B, inputs, h, w) -> (B, outputs, h / stride, w / stride)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False), nn.BatchNorm2d(outputs))
        self.relu2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(x)))))
        out = self.relu2(out + self.shortcut(x))
        return out


class CifarResNet(nn.Module):
    """ResNet of `depth` = 6n + 2: stem, three stages of n blocks, linear head. `filters` are those of stem and stages at width 1."""

    def __init__(self, *, classes: int, channels: int, image_size: int, width: float, depth: int, filters: Sequence[int]) -> None:
        super().__init__()
        if depth < 8 or (depth - 2) % 6:
            raise UserError(f"the depth of a CIFAR ResNet must be 6n + 2 with n >= 1, but got {depth}")
        check_arguments(f"resnet{depth}", classes=classes, channels=channels, image_size=image_size, width=width, strides=STRIDES)
        blocks = (depth - 2) // 6
        stem, *stages = (scaled(count, width) for count in filters)
        self.conv1 = nn.Conv2d(channels, stem, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(stem)
        self.relu = nn.ReLU()
        self.layer1 = stage(stem, stages[0], blocks, STRIDES[0])
        self.layer2 = stage(stages[0], stages[1], blocks, STRIDES[1])
        self.layer3 = stage(stages[1], stages[2], blocks, STRIDES[2])
        self.classifier = nn.Linear(stages[2], classes)
        initialise(self)

    def features(self, x: Tensor) -> Tensor:
        """(B, channels, H, W) -> (B, C, ceil(H / 4), ceil(W / 4)), after the last ReLU."""
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return x

    def forward(self, x: Tensor) -> Tensor:
        return classify(self.classifier, self.features(x))


def stage(inputs: int, outputs: int, blocks: int, stride: int) -> nn.Sequential:
    """`blocks` residual blocks, the first of which changes stride and channels."""
    first = BasicBlock(inputs, outputs, stride)
    return nn.Sequential(first, *(BasicBlock(outputs, outputs, 1) for _ in range(blocks - 1)))
