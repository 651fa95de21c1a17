"""A plain convolutional network without residuals: small, quick to train, and every layer can be pruned on its own."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from core.errors import UserError
from core.students.common import check_arguments, classify, initialise, scaled


class LightCNN(nn.Module):
    """Two conv3x3-BN-ReLU per entry of `blocks` (channels at width 1), a 2x2 max-pool between blocks, linear head.

    No pool follows the last block, so 8-pixel images still leave a 2x2 map at three blocks.
    """

    def __init__(self, *, classes: int, channels: int, image_size: int, width: float, blocks: Sequence[int]) -> None:
        super().__init__()
        if not blocks or min(blocks) < 1:
            raise UserError(f"light_cnn needs blocks of at least 1 channel each, but got {list(blocks)}")
        strides = [2] * (len(blocks) - 1)
        check_arguments("light_cnn", classes=classes, channels=channels, image_size=image_size, width=width, strides=strides)
        layers: list[nn.Module] = []
        inputs = channels
        for index, count in enumerate(blocks):
            outputs = scaled(count, width)
            layers += [nn.MaxPool2d(2)] if index else []
            layers += [*conv_bn_relu(inputs, outputs), *conv_bn_relu(outputs, outputs)]
            inputs = outputs
        self.body = nn.Sequential(*layers)
        self.classifier = nn.Linear(inputs, classes)
        initialise(self)

    def features(self, x: Tensor) -> Tensor:
        """(B, channels, H, W) -> (B, C, H / s, W / s) with s = 2 ** (blocks - 1), after the last ReLU."""
        out: Tensor = self.body(x)
        return out

    def forward(self, x: Tensor) -> Tensor:
        return classify(self.classifier, self.features(x))


def conv_bn_relu(inputs: int, outputs: int) -> tuple[nn.Module, nn.Module, nn.Module]:
    """The three modules of one layer; no bias, since BatchNorm has one."""
    return nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()
