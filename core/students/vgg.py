"""VGG for CIFAR-size images: batch norm after each convolution, one linear layer as the head.

References: Simonyan and Zisserman 2015 (arXiv:1409.1556), table 1, columns A, B and D, and an eight-layer one; parameter counts equal
those of mdistiller's `mdistiller/models/cifar/vgg.py`. Three max-pools only, so that 32 px leave a 4x4 map.
"""

from __future__ import annotations

from torch import Tensor, nn

from core.errors import UserError
from core.students.common import check_arguments, classify, initialise, scaled

STAGES = (64, 128, 256, 512, 512)
CONVOLUTIONS = {8: (1, 1, 1, 1, 1), 11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3)}
"""How many convolutions each stage has, by depth."""
POOLED = (0, 1, 2)
"""Stages that a 2x2 max-pool follows."""


class VGG(nn.Module):
    """Five stages of conv3x3-BN-ReLU, linear head."""

    def __init__(self, *, classes: int, channels: int, image_size: int, width: float, depth: int) -> None:
        super().__init__()
        if depth not in CONVOLUTIONS:
            raise UserError(f"the depth of a VGG must be one of {', '.join(map(str, CONVOLUTIONS))}, but got {depth}")
        strides = [2] * len(POOLED)
        check_arguments(f"vgg{depth}", classes=classes, channels=channels, image_size=image_size, width=width, strides=strides)
        inputs = channels
        for index, (count, convolutions) in enumerate(zip(STAGES, CONVOLUTIONS[depth], strict=True)):
            outputs = scaled(count, width)
            self.add_module(f"block{index}", stage(inputs, outputs, convolutions))
            inputs = outputs
        self.pool = nn.MaxPool2d(2)
        self.classifier = nn.Linear(inputs, classes)
        initialise(self)

    def features(self, x: Tensor) -> Tensor:
        """(B, channels, H, W) -> (B, C, H / 8, W / 8), after the last ReLU."""
        for index in range(len(STAGES)):
            x = self.get_submodule(f"block{index}")(x)
            x = self.pool(x) if index in POOLED else x
        return x

    def forward(self, x: Tensor) -> Tensor:
        return classify(self.classifier, self.features(x))


def stage(inputs: int, outputs: int, convolutions: int) -> nn.Sequential:
    """(B, inputs, h, w) -> (B, outputs, h, w). The convolutions keep the biases of the published network."""
    layers: list[nn.Module] = []
    for _ in range(convolutions):
        layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU()]
        inputs = outputs
    return nn.Sequential(*layers)
