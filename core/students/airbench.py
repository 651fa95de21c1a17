"""The airbench94 shape: wide, shallow, much accuracy for its training time; meant as a teacher.

References: Jordan 2024 (arXiv:2404.00498). Differences: a learnt 3x3 stem in place of the frozen 2x2 whitening, so that 32 px leave
a 4x4 map that splits into equal regions; a global average in place of the max-pool before the head, so that logits of regions
average to the logits.
"""

from __future__ import annotations

from torch import Tensor, nn

from core.students.common import check_arguments, classify, initialise, scaled

STEM = 24
GROUPS = (64, 256, 256)


class Airbench(nn.Module):
    """Stem convolution, three groups of [conv, max-pool, BN, GELU, conv, BN, GELU], linear head."""

    def __init__(self, *, classes: int, channels: int, image_size: int, width: float) -> None:
        super().__init__()
        strides = [2] * len(GROUPS)
        check_arguments("airbench", classes=classes, channels=channels, image_size=image_size, width=width, strides=strides)
        inputs = scaled(STEM, width)
        layers: list[nn.Module] = [nn.Conv2d(channels, inputs, 3, padding=1), nn.GELU()]
        for count in GROUPS:
            outputs = scaled(count, width)
            layers += group(inputs, outputs)
            inputs = outputs
        self.body = nn.Sequential(*layers)
        self.classifier = nn.Linear(inputs, classes)
        initialise(self)

    def features(self, x: Tensor) -> Tensor:
        """(B, channels, H, W) -> (B, C, H / 8, W / 8), after the last GELU."""
        out: Tensor = self.body(x)
        return out

    def forward(self, x: Tensor) -> Tensor:
        return classify(self.classifier, self.features(x))


def group(inputs: int, outputs: int) -> list[nn.Module]:
    """The modules of one group: (B, inputs, h, w) -> (B, outputs, h / 2, w / 2)."""
    first = [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.MaxPool2d(2), nn.BatchNorm2d(outputs), nn.GELU()]
    return [*first, nn.Conv2d(outputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.GELU()]
