"""Student networks by name. Importing this module imports no torch: names can be checked before anything heavy loads.

`STUDENTS[name](*, classes, channels=3, image_size=32, width=1.0)` is an `nn.Module` with `.features(x) -> (B, C, h, w)`, taken after
the last activation, `.classifier: nn.Linear`, and `forward(x) == classifier(mean of features(x) over h, w)`, logits (B, classes).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

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
    "light_cnn": light_cnn,
    "airbench": airbench,
}
