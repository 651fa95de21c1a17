"""MobileNetV2 for CIFAR-size images, at half of the published channels.

References: Sandler et al. 2018 (arXiv:1801.04381), table 2; parameter counts equal those of mdistiller's
`mdistiller/models/cifar/mobilenetv2.py` (width 0.5, T = 6). Differences to the paper, as there: ReLU in place of ReLU6, stride 1 in the
second stage, an expanding convolution in the first block too, 1280 channels in the last layer at any published width.
"""

from __future__ import annotations

from torch import Tensor, nn

from core.students.common import check_arguments, classify, initialise, scaled

STEM, LAST = 16, 1280
STAGES = ((1, 8, 1, 1), (6, 12, 2, 1), (6, 16, 3, 2), (6, 32, 4, 2), (6, 48, 3, 1), (6, 80, 3, 2), (6, 160, 1, 1))
"""(expansion, channels, blocks, stride) of each stage; stem and channels are half of the paper's."""


class InvertedResidual(nn.Module):
    """Expand, filter depthwise, project without activation: (B, inputs, h, w) -> (B, outputs, h / stride, w / stride)."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int) -> None:
        super().__init__()
        inner = inputs * expansion
        expand = conv_bn_relu(inputs, inner, 1)
        depthwise = conv_bn_relu(inner, inner, 3, stride=stride, groups=inner)
        project = (nn.Conv2d(inner, outputs, 1, bias=False), nn.BatchNorm2d(outputs))
        self.conv = nn.Sequential(*expand, *depthwise, *project)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(x)
        return x + out if self.residual else out


class MobileNetV2(nn.Module):
    """Stem, seven stages of inverted residuals, a 1x1 convolution to the last channels, linear head."""

    def __init__(self, *, classes: int, channels: int, image_size: int, width: float) -> None:
        super().__init__()
        strides = [2, *(stride for *_, stride in STAGES)]
        check_arguments("mobilenet_v2", classes=classes, channels=channels, image_size=image_size, width=width, strides=strides)
        inputs, last = scaled(STEM, width), scaled(LAST, width)
        self.conv1 = nn.Sequential(*conv_bn_relu(channels, inputs, 3, stride=2))
        stages = []
        for expansion, count, blocks, stride in STAGES:
            outputs = scaled(count, width)
            stages.append(stage(inputs, outputs, blocks, stride, expansion))
            inputs = outputs
        self.blocks = nn.Sequential(*stages)
        self.conv2 = nn.Sequential(*conv_bn_relu(inputs, last, 1))
        self.classifier = nn.Linear(last, classes)
        initialise(self)

    def features(self, x: Tensor) -> Tensor:
        """(B, channels, H, W) -> (B, C, ceil(H / 16), ceil(W / 16)), after the last ReLU."""
        out: Tensor = self.conv2(self.blocks(self.conv1(x)))
        return out

    def forward(self, x: Tensor) -> Tensor:
        return classify(self.classifier, self.features(x))


def stage(inputs: int, outputs: int, blocks: int, stride: int, expansion: int) -> nn.Sequential:
    """`blocks` inverted residuals, the first of which changes stride and channels."""
    first = InvertedResidual(inputs, outputs, stride, expansion)
    return nn.Sequential(first, *(InvertedResidual(outputs, outputs, 1, expansion) for _ in range(blocks - 1)))


def conv_bn_relu(inputs: int, outputs: int, kernel: int, *, stride: int = 1, groups: int = 1) -> tuple[nn.Module, nn.Module, nn.Module]:
    """The three modules of one layer, padded to keep the map's size at stride 1."""
    convolution = nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=kernel // 2, groups=groups, bias=False)
    return convolution, nn.BatchNorm2d(outputs), nn.ReLU()
