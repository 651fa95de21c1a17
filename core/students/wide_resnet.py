"""Wide residual networks for CIFAR-size images: batch norm and ReLU before each convolution.

References: Zagoruyko and Komodakis 2016 (arXiv:1605.07146), section 2, without dropout; parameter counts equal those of mdistiller's
`mdistiller/models/cifar/wrn.py`.
"""

from __future__ import annotations

from torch import Tensor, nn

from core.errors import UserError
from core.students.common import check_arguments, classify, initialise, scaled

STEM = 16
STAGES = (16, 32, 64)
STRIDES = (1, 2, 2)


class PreActivationBlock(nn.Module):
    """Two BN-ReLU-conv3x3 and a shortcut: (B, inputs, h, w) -> (B, outputs, h / stride, w / stride).

    A projection takes the activated input, an identity the raw one.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.relu1 = nn.ReLU()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.relu2 = nn.ReLU()
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.projects = stride != 1 or inputs != outputs
        if self.projects:
            self.shortcut = nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        active = self.relu1(self.bn1(x))
        out = self.conv2(self.relu2(self.bn2(self.conv1(active))))
        out = out + (self.shortcut(active) if self.projects else x)
        return out


class Stage(nn.Module):
    """`blocks` residual blocks, the first of which changes stride and channels."""

    def __init__(self, inputs: int, outputs: int, blocks: int, stride: int) -> None:
        super().__init__()
        first = PreActivationBlock(inputs, outputs, stride)
        self.layer = nn.Sequential(first, *(PreActivationBlock(outputs, outputs, 1) for _ in range(blocks - 1)))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layer(x)
        return out


class WideResNet(nn.Module):
    """WRN-`depth`-`factor`, depth = 6n + 4: stem, three stages of n blocks whose channels are `factor` times (16, 32, 64), linear head."""

    def __init__(self, *, classes: int, channels: int, image_size: int, width: float, depth: int, factor: int) -> None:
        super().__init__()
        if depth < 10 or (depth - 4) % 6:
            raise UserError(f"the depth of a wide ResNet must be 6n + 4 with n >= 1, but got {depth}")
        name = f"wrn_{depth}_{factor}"
        check_arguments(name, classes=classes, channels=channels, image_size=image_size, width=width, strides=STRIDES)
        blocks = (depth - 4) // 6
        stem, first, second, third = (scaled(count, width) for count in (STEM, *(count * factor for count in STAGES)))
        self.conv1 = nn.Conv2d(channels, stem, 3, padding=1, bias=False)
        self.block1 = Stage(stem, first, blocks, STRIDES[0])
        self.block2 = Stage(first, second, blocks, STRIDES[1])
        self.block3 = Stage(second, third, blocks, STRIDES[2])
        self.bn1 = nn.BatchNorm2d(third)
        self.relu = nn.ReLU()
        self.classifier = nn.Linear(third, classes)
        initialise(self)

    def features(self, x: Tensor) -> Tensor:
        """(B, channels, H, W) -> (B, C, ceil(H / 4), ceil(W / 4)), after the last ReLU."""
        x = self.block3(self.block2(self.block1(self.conv1(x))))
        x = self.relu(self.bn1(x))
        return x

    def forward(self, x: Tensor) -> Tensor:
        return classify(self.classifier, self.features(x))
