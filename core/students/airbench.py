"""The airbench94 shape: wide, shallow, much accuracy for its training time; meant as a teacher.

References: Jordan 2024 (arXiv:2404.00498). Differences: a 3x3 whitening stem in place of the 2x2 one, so that 32 px leave a 4x4 map
that splits into equal regions; a global average in place of the max-pool before the head, so that logits of regions average to
the logits; batch norm with a learnt scale; 192 channels in place of 256 in the second group, which holds most of the arithmetic.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from core.students.common import check_arguments, classify, initialise, scaled

STEM = 24
GROUPS = (64, 192, 256)
PATCHES = 1 << 18
"""How many are looked at together: 28 MB of colour ones in float32, and twice as much in float64."""


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
        for layer in self.body[1:]:
            if isinstance(layer, nn.Conv2d):
                # the first channels begin as the identity: deep signals from the first step
                nn.init.dirac_(layer.weight.data[: layer.in_channels])

    def features(self, x: Tensor) -> Tensor:
        """(B, channels, H, W) -> (B, C, H / 8, W / 8), after the last GELU."""
        out: Tensor = self.body(x)
        return out

    @torch.no_grad()
    def prepare(self, images: Tensor) -> None:
        """Make the stem whiten the 3x3 patches of normalised training images (N, channels, H, W), and freeze its weights.

        Filters are the patches' leading principal directions, scaled to unit variance, each with both signs.
        """
        stem = self.body[0]
        assert isinstance(stem, nn.Conv2d)
        variances, directions = torch.linalg.eigh(patch_covariance(images))
        count = min(stem.out_channels // 2, len(variances))
        leading = (directions / torch.sqrt(variances + 5e-4)).T.flip(0)[:count].view(count, *stem.weight.shape[1:])
        stem.weight[: 2 * count] = torch.cat([leading, -leading]).to(stem.weight)
        stem.weight.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return classify(self.classifier, self.features(x))


def patch_covariance(images: Tensor) -> Tensor:
    """Covariance (9 C, 9 C) of the 3x3 patches of images (N, C, H, W), of which a part is unfolded at a time."""
    count, total, products = 0, torch.zeros(()), torch.zeros(())
    for part in images.split(max(1, PATCHES // images[0, 0].numel())):
        patches = F.unfold(part.float(), 3).transpose(1, 2).flatten(0, 1).double()
        count, total, products = count + len(patches), total + patches.sum(0), products + patches.T @ patches
    return ((products - total.outer(total) / count) / (count - 1)).float()


def group(inputs: int, outputs: int) -> list[nn.Module]:
    """The modules of one group: (B, inputs, h, w) -> (B, outputs, h / 2, w / 2)."""
    first = [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.MaxPool2d(2), nn.BatchNorm2d(outputs), nn.GELU()]
    return [*first, nn.Conv2d(outputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.GELU()]
