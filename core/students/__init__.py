"""Student networks by name. Importing this module imports no torch: names can be checked before anything heavy loads.

`STUDENTS[name](*, classes, channels=3, image_size=32, width=1.0)` is an `nn.Module` with `.features(x) -> (B, C, h, w)`, taken after
the last activation, `.classifier: nn.Linear`, and `forward(x) == classifier(mean of features(x) over h, w)`, logits (B, classes).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch import nn


def resnet(
    *,
    classes: int,
    channels: int = 3,
    image_size: int = 32,
    width: float = 1.0,
    depth: int,
    filters: Sequence[int] = (16, 16, 32, 64),
) -> nn.Module:
    """CIFAR-style ResNet of `depth` = 6n + 2; see core/students/resnet.py."""
    from core.students.resnet import CifarResNet

    return CifarResNet(classes=classes, channels=channels, image_size=image_size, width=width, depth=depth, filters=filters)


def light_cnn(
    *,
    classes: int,
    channels: int = 3,
    image_size: int = 32,
    width: float = 1.0,
    blocks: Sequence[int] = (32, 64, 128),
) -> nn.Module:
    """Plain CNN with two 3x3 convolutions per entry of `blocks`; see core/students/light_cnn.py."""
    from core.students.light_cnn import LightCNN

    return LightCNN(classes=classes, channels=channels, image_size=image_size, width=width, blocks=blocks)


def airbench(*, classes: int, channels: int = 3, image_size: int = 32, width: float = 1.0) -> nn.Module:
    """Wide and shallow CNN that trains fast; see core/students/airbench.py."""
    from core.students.airbench import Airbench

    return Airbench(classes=classes, channels=channels, image_size=image_size, width=width)


def wide_resnet(*, classes: int, channels: int = 3, image_size: int = 32, width: float = 1.0, depth: int, factor: int) -> nn.Module:
    """Pre-activation ResNet of `depth` = 6n + 4 with `factor` times the channels; see core/students/wide_resnet.py."""
    from core.students.wide_resnet import WideResNet

    return WideResNet(classes=classes, channels=channels, image_size=image_size, width=width, depth=depth, factor=factor)


def vgg(*, classes: int, channels: int = 3, image_size: int = 32, width: float = 1.0, depth: int) -> nn.Module:
    """VGG of `depth` 8, 11, 13 or 16 with batch norm; see core/students/vgg.py."""
    from core.students.vgg import VGG

    return VGG(classes=classes, channels=channels, image_size=image_size, width=width, depth=depth)


def mobilenet_v2(*, classes: int, channels: int = 3, image_size: int = 32, width: float = 1.0) -> nn.Module:
    """The small CIFAR MobileNetV2; see core/students/mobilenet.py."""
    from core.students.mobilenet import MobileNetV2

    return MobileNetV2(classes=classes, channels=channels, image_size=image_size, width=width)


def shufflenet_v1(*, classes: int, channels: int = 3, image_size: int = 32, width: float = 1.0) -> nn.Module:
    """ShuffleNet V1 with three groups; see core/students/shufflenet.py."""
    from core.students.shufflenet import ShuffleNetV1

    return ShuffleNetV1(classes=classes, channels=channels, image_size=image_size, width=width)


def shufflenet_v2(*, classes: int, channels: int = 3, image_size: int = 32, width: float = 1.0) -> nn.Module:
    """ShuffleNet V2; see core/students/shufflenet.py."""
    from core.students.shufflenet import ShuffleNetV2

    return ShuffleNetV2(classes=classes, channels=channels, image_size=image_size, width=width)


def deep_resnet(*, classes: int, channels: int = 3, image_size: int = 32, width: float = 1.0, depth: int) -> nn.Module:
    """ResNet of `depth` 18, 34 or 50 with a CIFAR stem; see core/students/deep_resnet.py."""
    from core.students.deep_resnet import DeepResNet

    return DeepResNet(classes=classes, channels=channels, image_size=image_size, width=width, depth=depth)


def hybrid_serial(
    *,
    classes: int,
    channels: int = 3,
    image_size: int = 32,
    width: float = 1.0,
    stages: Sequence[int] = (32, 64, 128),
    depth: int = 3,
    positions: Literal["learned", "sincos"] = "learned",
) -> nn.Module:
    """A CNN whose map is the tokens of a transformer; see core/students/hybrid.py."""
    from core.students.hybrid import HybridSerial

    return HybridSerial(
        classes=classes, channels=channels, image_size=image_size, width=width, stages=stages, depth=depth, positions=positions
    )


def hybrid_parallel(
    *,
    classes: int,
    channels: int = 3,
    image_size: int = 32,
    width: float = 1.0,
    stages: Sequence[int] = (32, 64, 128),
    depth: int = 2,
) -> nn.Module:
    """Convolution and attention side by side on coarse maps; see core/students/hybrid.py."""
    from core.students.hybrid import HybridParallel

    return HybridParallel(classes=classes, channels=channels, image_size=image_size, width=width, stages=stages, depth=depth)


STUDENTS: dict[str, Callable[..., nn.Module]] = {
    "resnet8": partial(resnet, depth=8),
    "resnet14": partial(resnet, depth=14),
    "resnet20": partial(resnet, depth=20),
    "resnet32": partial(resnet, depth=32),
    "resnet44": partial(resnet, depth=44),
    "resnet56": partial(resnet, depth=56),
    "resnet110": partial(resnet, depth=110),
    "resnet8x4": partial(resnet, depth=8, filters=(32, 64, 128, 256)),
    "resnet32x4": partial(resnet, depth=32, filters=(32, 64, 128, 256)),
    "resnet18": partial(deep_resnet, depth=18),
    "resnet34": partial(deep_resnet, depth=34),
    "resnet50": partial(deep_resnet, depth=50),
    "wrn_16_1": partial(wide_resnet, depth=16, factor=1),
    "wrn_16_2": partial(wide_resnet, depth=16, factor=2),
    "wrn_40_1": partial(wide_resnet, depth=40, factor=1),
    "wrn_40_2": partial(wide_resnet, depth=40, factor=2),
    "vgg8": partial(vgg, depth=8),
    "vgg11": partial(vgg, depth=11),
    "vgg13": partial(vgg, depth=13),
    "vgg16": partial(vgg, depth=16),
    "mobilenet_v2": mobilenet_v2,
    "shufflenet_v1": shufflenet_v1,
    "shufflenet_v2": shufflenet_v2,
    "light_cnn": light_cnn,
    "airbench": airbench,
    "hybrid_serial": hybrid_serial,
    "hybrid_serial_sincos": partial(hybrid_serial, positions="sincos"),
    "hybrid_parallel": hybrid_parallel,
}
