"""The compression stages of one candidate: shapes without training, prune, quantise, export. Each returns a frozen value."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import onnx
import torch
from torch import Tensor, fx, nn

from core.candidate import Candidate, ShapePlan
from core.export import check_rebuilds, export_onnx, packed_tensors, structure_key, with_weights
from core.files import write_atomically
from core.layers import count_macs, count_parameters, layer_infos
from core.pack import pack, unpack
from core.plan import prune_ratios, shape_plan
from core.prune import prune_channels
from core.quantise import QUANTISERS
from core.quantise.fold import make_gains_positive
from core.quantise.graph import build_graph
from core.quantise.layers import activation_quantisers
from core.quantise.trace import trace
from core.runtimes.types import Runtime
from core.tables import lookup

Shape = tuple[int, int, int]


@dataclass(frozen=True)
class CompressedModel:
    """A candidate as files: the ONNX graph with explicit Q/DQ, and the packed weights that rebuild its initialisers bit for bit."""

    plan: ShapePlan
    model: onnx.ModelProto
    packed: bytes
    parameters: int
    macs: int

    @property
    def structure(self) -> str:
        """Equal keys, equal latency."""
        return structure_key(self.model)

    def save(self, folder: Path) -> Path:
        """Write `model.onnx` and `weights.pack` into `folder`; the path of the ONNX file."""
        write_atomically(folder / "weights.pack", self.packed)
        return write_atomically(folder / "model.onnx", self.model.SerializeToString())


def prune(dense: nn.Module, candidate: Candidate, input_shape: Shape) -> nn.Module:
    """A smaller copy of `dense`, its channels ranked by the weights that it has now."""
    ratios = prune_ratios(candidate, layer_infos(dense, input_shape))
    return prune_channels(dense, ratios, input_shape, round_to=candidate.round_to)


def resolve(dense: nn.Module, candidate: Candidate, input_shape: Shape, runtime: Runtime) -> tuple[nn.Module, ShapePlan]:
    """The pruned copy of `dense` and its exact plan. Shapes do not depend on the weights, so `dense` need not be trained."""
    pruned = prune(dense, candidate, input_shape)
    return pruned, shape_plan(candidate, layer_infos(pruned, input_shape), depthwise_int8=runtime.depthwise_int8)


def check_compressible(model: nn.Module, input_shape: Shape) -> None:
    """Raises UserError for a network whose layers cannot be planned one by one: it cannot be traced, or hides them in other modules."""
    trace(model, [info.name for info in layer_infos(model, input_shape)], input_shape)


def draft(pruned: nn.Module, plan: ShapePlan, input_shape: Shape, runtime: Runtime) -> CompressedModel:
    """The candidate with untrained weights: its shapes, bits and structure are final, so size and latency can be measured now."""
    weights = QUANTISERS["ptq"](pruned, _bits(plan), lambda model: model)
    graph = build_graph(pruned, weights, plan, runtime.activation_grid, input_shape)
    model, packed = export_onnx(graph, input_shape), pack(packed_tensors(graph))
    return CompressedModel(plan, model, packed, count_parameters(pruned), count_macs(pruned, input_shape))


def quantise(
    model: nn.Module,
    drafted: CompressedModel,
    quantiser: str,
    finetune: Callable[[nn.Module], nn.Module],
    calibration: Tensor,
    runtime: Runtime,
) -> tuple[CompressedModel, fx.GraphModule]:
    """Quantise a trained network by the draft's plan: integer weights (trained by `finetune`), calibrated activations, files.

    `calibration`: normalised training images (N, C, H, W) on the CPU. Returns the files and the graph that simulates them.
    """
    plan, model = drafted.plan, model.cpu().eval()
    channels, height, width = calibration.shape[1:]
    make_gains_positive(model, _bits(plan), (channels, height, width))
    weights = lookup(QUANTISERS, "quantiser", quantiser)(model, _bits(plan), finetune)
    graph = build_graph(model, weights, plan, runtime.activation_grid, (channels, height, width))
    calibrate(graph, calibration)
    packed = pack(packed_tensors(graph))
    filled = with_weights(drafted.model, unpack(packed))
    check_rebuilds(filled, unpack(packed))
    return CompressedModel(plan, filled, packed, drafted.parameters, drafted.macs), graph


@torch.inference_mode()
def calibrate(graph: fx.GraphModule, images: Tensor, batch: int = 128) -> None:
    """Choose the scale of every activation quantiser on training images (N, C, H, W)."""
    points = activation_quantisers(graph)
    for point in points:
        point.calibrating = True
    for part in images.split(batch):
        graph(part)
    for point in points:
        point.calibrating = False
        point.fit_scale()


def _bits(plan: ShapePlan) -> dict[str, int]:
    return {layer.name: layer.weight_bits for layer in plan.layers}
