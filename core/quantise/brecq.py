"""BRECQ: rounding up or down is learned, block by block, so that each block's output stays what it was. No labels, no fine-tuning.

References:
    Li et al. 2021, BRECQ, arXiv 2102.05426: blocks in order, input from the quantised blocks before, target from the float network;
    the released code (yhhhli/BRECQ) with `opt_mode='mse'`, its default: squared error summed over channels, mean over the rest.
    Nagel et al. 2020, Up or Down? Adaptive Rounding (AdaRound), arXiv 2004.10568: equations 22-24.
Departures: symmetric grids of least squared error; a higher rate for fewer steps; the first layer is reconstructed too; activations are
calibrated afterwards, as for every quantiser here.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.utils import parametrize

from core.config import BrecqConfig
from core.errors import UserError
from core.quantise.blocks import Block, blocks
from core.quantise.integer import IntegerWeight, limits, per_channel, storable
from core.quantise.ptq import range_scales, rounded
from core.quantise.setting import Finetune, Setting, own_layer, weight_of
from core.quantise.trace import trace

DEFAULT = Setting()
LOW, HIGH = -0.1, 1.1
"""Gamma and zeta of the stretched sigmoid."""
WARM_UP = 0.2
"""Share of the steps without regulariser."""
BETA = (20.0, 2.0)
"""Its exponent, from the end of the warm-up to the last step, linearly."""
CHUNK = 128


def brecq(model: nn.Module, bits: Mapping[str, int], finetune: Finetune, setting: Setting = DEFAULT) -> dict[str, IntegerWeight]:
    """Learn the rounding of every layer of at most 8 bits on `setting.images`; `model` keeps its weights.

    Raises UserError without images, or when torch.fx cannot trace the network.
    """
    images = setting.images
    if images is None or len(images) == 0:
        raise UserError("brecq learns rounding on training images, but has none; raise quantise.calibration_images")
    channels, height, width = images.shape[1:]
    learned = copy.deepcopy(model).cpu().eval().requires_grad_(False)
    found = {name: rounded(weight_of(learned, name), depth, setting.config.ptq) for name, depth in bits.items() if depth > 8}
    for name in bits:
        own_layer(learned, name)
    graph = trace(learned, bits, (channels, height, width))
    generator = torch.Generator().manual_seed(0)
    inputs, target = images, images
    for block in blocks(graph, bits):
        target = _outputs(graph, block, target)  # before its layers are rounded
        layers = {name: bits[name] for name in block.layers if bits[name] <= 8}
        found |= _reconstructed(graph, block, layers, inputs, target, setting, generator)
        inputs = _outputs(graph, block, inputs)
    return {name: found[name] for name in bits}


def _reconstructed(
    graph: fx.GraphModule,
    block: Block,
    layers: Mapping[str, int],
    inputs: Tensor,
    target: Tensor,
    setting: Setting,
    generator: torch.Generator,
) -> dict[str, IntegerWeight]:
    """The integers of `layers`, whose weights in the graph become what these stand for."""
    chains = {name: _attach(graph, name, depth, setting) for name, depth in layers.items()}
    if chains:
        _learn(graph, block, [*chains.values()], inputs, target, setting.config.brecq, generator)
    found = {}
    for name, chain in chains.items():
        layer: Any = graph.get_submodule(name)
        found[name] = chain.taken(layer.parametrizations.weight.original, layers[name])
        parametrize.remove_parametrizations(layer, "weight", leave_parametrized=False)
        weight_of(graph, name).data.copy_(found[name].dequantised())
    return found


def _attach(graph: fx.GraphModule, name: str, bits: int, setting: Setting) -> AdaptiveRounding:
    weight = weight_of(graph, name)
    chain = AdaptiveRounding(weight, storable(range_scales(weight, bits, setting.config.ptq), bits), bits)
    parametrize.register_parametrization(graph.get_submodule(name), "weight", chain)
    return chain


def _learn(
    graph: fx.GraphModule,
    block: Block,
    chains: list[AdaptiveRounding],
    inputs: Tensor,
    target: Tensor,
    config: BrecqConfig,
    generator: torch.Generator,
) -> None:
    optimiser = torch.optim.Adam([chain.alpha for chain in chains], lr=config.lr)
    maps = isinstance(graph.get_submodule(block.layers[-1]), nn.Conv2d) and target.ndim == 4
    channels = 1 if maps else -1  # tokens (B, T, C), and maps of linear layers (B, H, W, C), have them last
    for step in range(config.iterations):
        picked = torch.randperm(len(inputs), generator=generator)[: config.batch_size]
        difference = run_block(graph, block, inputs[picked]) - target[picked]
        loss = difference.square().sum(channels).mean()
        progress = step / config.iterations
        if progress >= WARM_UP:
            beta = BETA[0] + (BETA[1] - BETA[0]) * (progress - WARM_UP) / (1 - WARM_UP)
            loss = loss + config.regulariser * torch.stack([chain.undecided(beta) for chain in chains]).sum()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()


class AdaptiveRounding(nn.Module):
    """Parametrisation of a weight (out, ...): s * clip(floor(w / s) + h), h in [0, 1] learned for every weight."""

    scales: Tensor

    def __init__(self, weight: Tensor, scales: Tensor, bits: int) -> None:
        super().__init__()
        self.low, self.high = limits(bits)
        self.register_buffer("scales", scales)
        ratio = weight.detach() / per_channel(scales, weight)
        # so that h is the fractional part: it starts at the weight itself
        self.alpha = nn.Parameter(torch.logit((ratio - ratio.floor() - LOW) / (HIGH - LOW)))

    def share(self) -> Tensor:
        """h: how much each weight is rounded up, in [0, 1]."""
        return (self.alpha.sigmoid() * (HIGH - LOW) + LOW).clamp(0.0, 1.0)

    def undecided(self, beta: float) -> Tensor:
        """Scalar that is 0 when every h is 0 or 1."""
        return (1 - (2 * self.share() - 1).abs().pow(beta)).sum()

    def forward(self, weight: Tensor) -> Tensor:
        """float32, the shape of `weight`."""
        scales = per_channel(self.scales, weight)
        return ((weight / scales).floor() + self.share()).clamp(self.low, self.high) * scales

    def taken(self, weight: Tensor, bits: int) -> IntegerWeight:
        """The integers of the latent `weight`, each rounded to the nearer side of its h."""
        up = (self.share() >= 0.5).detach()
        values = ((weight.detach() / per_channel(self.scales, weight)).floor() + up).clamp(self.low, self.high)
        return IntegerWeight(values.to(torch.int16), self.scales.clone(), bits)


def run_block(graph: fx.GraphModule, block: Block, inputs: Any) -> Any:
    """The block's output for its input, a batch."""
    interpreter = fx.Interpreter(graph, garbage_collect_values=False)
    interpreter.env = {block.source: inputs}
    for node in block.nodes:
        interpreter.env[node] = interpreter.run_node(node)
    return interpreter.env[block.nodes[-1]]


@torch.no_grad()
def _outputs(graph: fx.GraphModule, block: Block, inputs: Tensor) -> Tensor:
    return torch.cat([run_block(graph, block, part) for part in inputs.split(CHUNK)])
