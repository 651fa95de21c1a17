"""What all students share: width scaling, the size check, the head and the initialisation."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from core.errors import UserError


def scaled(channels: int, width: float) -> int:
    """`channels * width`, rounded to the nearest multiple of 4, at least 4."""
    return max(4, int(channels * width / 4 + 0.5) * 4)


def check_arguments(student: str, *, classes: int, channels: int, image_size: int, width: float, strides: Sequence[int]) -> None:
    """UserError when no network can be built: the strides need at least one pixel of the image to be left."""
    total = 1
    for stride in strides:
        total *= stride
    if image_size < total:
        raise UserError(f"{student} needs images of at least {total} px, its total stride, but got {image_size}; raise data.image_size")
    if classes < 2 or channels < 1:
        raise UserError(f"{student} needs at least 2 classes and 1 channel, but got {classes} and {channels}")
    if width <= 0:
        raise UserError(f"width must be greater than 0, but got {width} ({student})")


def classify(classifier: nn.Linear, features: Tensor) -> Tensor:
    """Logits (B, classes) of features (B, C, h, w): a linear head on the global average, so logits of regions average to it."""
    logits: Tensor = classifier(F.adaptive_avg_pool2d(features, 1).flatten(1))
    return logits


def initialise(model: nn.Module) -> None:
    """Kaiming normal for convolutions (fan out), ones and zeros for normalisation; the classifier keeps torch's default.

    Every BatchNorm starts at weight 1, the last of a residual block too: at 0 all of that block's channels would tie when they are ranked.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
