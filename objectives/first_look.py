"""A look at a candidate before it trains: its parent's channels, weights rounded to its bits, statistics of batch norm made anew.

It costs two forward passes of a few hundred images, and tells much of what a training would: cut networks rank by it about as they
rank after their training, and so do bits.

Reference: Li et al. 2020, EagleEye: Fast Sub-net Evaluation for Efficient Neural Network Pruning, arXiv 2007.02491 (adaptive batch
normalisation, section 3.3). Departure: weights of 8 bits and fewer are rounded too, on the grid of `ptq` whatever the quantiser, and the
accuracy is no ranking of its own but one more thing that the limit of the final accuracy is learned from (objectives/outlook.py).
"""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor, nn

from core.candidate import START, Rung, ShapePlan
from core.compress import calibration_indices
from core.config import PtqConfig
from core.layers import evaluating
from core.quantise.ptq import rounded
from core.quantise.setting import own_layer, weight_of
from core.train import Device
from objectives.allocation import images_of
from objectives.bench import Workbench
from objectives.rungs import accuracy_now

IMAGES = 512
"""Of the calibration images, for the statistics of batch norm."""
BATCH = 128
RULE = PtqConfig()


def first_look(student: nn.Module, plan: ShapePlan, bench: Workbench) -> Rung:
    """The rung before the first epoch of `student`, whose weights are its parent's; it stays as it is."""
    looked, images = rounded_copy(student, plan), images_of(bench)
    adapt(looked, images[calibration_indices(len(images), IMAGES)], bench.device)
    return Rung(stage=START, epoch=0.0, accuracy=accuracy_now(looked, bench))


@torch.no_grad()
def rounded_copy(student: nn.Module, plan: ShapePlan) -> nn.Module:
    """A copy of `student` on the CPU whose weights of 8 bits and fewer lie on their grids."""
    copied = copy.deepcopy(student).cpu()
    for layer in plan.layers:
        if layer.weight_bits <= 8:
            own_layer(copied, layer.name)
            weight = weight_of(copied, layer.name)
            weight.copy_(rounded(weight, layer.weight_bits, RULE).dequantised())
    return copied


@torch.no_grad()
def adapt(model: nn.Module, images: Tensor, device: Device) -> None:
    """Replace the running statistics of every batch norm by the mean of those of the batches of `images` (N, C, H, W), normalised."""
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.track_running_stats]
    if not norms or len(images) < 2:
        return
    model.to(device.device).to(memory_format=torch.channels_last)
    momenta = [norm.momentum for norm in norms]
    with evaluating(model):
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # the mean of all batches
            norm.train()
        for part in images.chunk(math.ceil(len(images) / BATCH)):  # of nearly equal size: one image has no statistics
            with device.autocast():
                model(part.to(device.device).contiguous(memory_format=torch.channels_last))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
