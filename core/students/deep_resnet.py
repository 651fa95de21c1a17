"""ResNet-18, -34 and -50 with a CIFAR stem: a 3x3 convolution without stride and no max-pool, so that 32 px leave a 4x4 map.

References: He et al. 2016 (arXiv:1512.03385), table 1; the stride of a bottleneck is in its 3x3 convolution, as in torchvision;
parameter counts equal those of mdistiller's `mdistiller/models/cifar/resnetv2.py`.
"""

from __future__ import annotations

from torch import Tensor, nn

from core.errors import UserError
from core.students.common import check_arguments, classify, initialise, scaled
from core.students.resnet import BasicBlock

STEM = 64
STAGES = (64, 128, 256, 512)
STRIDES = (1, 2, 2, 2)
EXPANSION = 4
"""Channels that leave a bottleneck, per channel inside."""
DEPTHS: dict[int, tuple[bool, tuple[int, ...]]] = {18: (False, (2, 2, 2, 2)), 34: (False, (3, 4, 6, 3)), 50: (True, (3, 4, 6, 3))}
"""Whether the blocks are bottlenecks, and how many each stage has."""


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions and a shortcut: (B, inputs, h, w) -> (B, 4 inner, h / stride, w / stride)."""

    def __init__(self, inputs: int, inner: int, stride: int) -> None:
        super().__init__()
        outputs = inner * EXPANSION
        self.conv1 = nn.Conv2d(inputs, inner, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(inner, inner, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.relu2 = nn.ReLU()
        self.conv3 = nn.Conv2d(inner, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False), nn.BatchNorm2d(outputs))
        self.relu3 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu1(self.bn1(self.conv1(x)))
        out = self.relu2(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        out = self.relu3(out + self.shortcut(x))
        return out


class DeepResNet(nn.Module):
    """Stem, four stages of residual blocks, linear head."""

    def __init__(self, *, classes: int, channels: int, image_size: int, width: float, depth: int) -> None:
        super().__init__()
        if depth not in DEPTHS:
            raise UserError(f"the depth of this ResNet must be one of {', '.join(map(str, DEPTHS))}, but got {depth}")
        check_arguments(f"resnet{depth}", classes=classes, channels=channels, image_size=image_size, width=width, strides=STRIDES)
        bottleneck, counts = DEPTHS[depth]
        inputs = scaled(STEM, width)
        self.conv1 = nn.Conv2d(channels, inputs, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(inputs)
        self.relu = nn.ReLU()
        stages = [scaled(count, width) for count in STAGES]
        outputs = [count * EXPANSION if bottleneck else count for count in stages]
        sources = [inputs, *outputs]
        block = Bottleneck if bottleneck else BasicBlock
        self.layer1 = stage(block, sources[0], stages[0], outputs[0], counts[0], STRIDES[0])
        self.layer2 = stage(block, sources[1], stages[1], outputs[1], counts[1], STRIDES[1])
        self.layer3 = stage(block, sources[2], stages[2], outputs[2], counts[2], STRIDES[2])
        self.layer4 = stage(block, sources[3], stages[3], outputs[3], counts[3], STRIDES[3])
        self.classifier = nn.Linear(outputs[3], classes)
        initialise(self)

    def features(self, x: Tensor) -> Tensor:
        """(B, channels, H, W) -> (B, C, ceil(H / 8), ceil(W / 8)), after the last ReLU."""
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return x

    def forward(self, x: Tensor) -> Tensor:
        return classify(self.classifier, self.features(x))


def stage(block: type[Bottleneck] | type[BasicBlock], inputs: int, inner: int, outputs: int, count: int, stride: int) -> nn.Sequential:
    """`count` residual blocks, the first of which changes stride and channels."""
    return nn.Sequential(block(inputs, inner, stride), *(block(outputs, inner, 1) for _ in range(count - 1)))
