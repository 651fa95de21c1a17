"""The compression stages of one candidate: shapes without training, prune, quantise, export. Each returns a frozen value."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor, fx, nn

from core.candidate import Candidate, LayerPlan, ShapePlan
from core.config import CodebookConfig, QuantiseConfig, RangeConfig
from core.errors import EngineMismatch, UserError
from core.export import check_rebuilds, export_onnx, load_packed, packed_tensors, structure_key, with_weights
from core.files import write_atomically
from core.importance import Scores
from core.layers import LayerInfo, count_macs, count_parameters, layer_infos
from core.pack import Coding, QTensor, floor_bytes, pack, unpack
from core.pack import Tensor as PackedTensor
from core.pack.binary import fits_fp16
from core.plan import prune_ratios, shape_plan
from core.prune import prune_channels
from core.quantise import MODEL_QUANTISERS, QUANTISERS
from core.quantise.codebook import codebook
from core.quantise.fold import make_gains_positive
from core.quantise.graph import build_graph, round_as
from core.quantise.integer import IntegerWeight
from core.quantise.layers import LEAST_ERROR, activation_quantisers, integer_layers
from core.quantise.ptq import correct_biases, keep_float, ptq
from core.quantise.setting import Finetune, Setting, plain_layer, untrained
from core.quantise.simulate import SIMULATED, take_scales, through
from core.quantise.stored import FloatWeight, StoredWeight
from core.quantise.trace import trace
from core.runtimes.types import Runtime
from core.tables import lookup

Shape = tuple[int, int, int]
PLAIN = Setting()
UNITERATED = Setting(QuantiseConfig(codebook=CodebookConfig(iterations=0)))
"""For a draft, whose values nobody looks at."""
CORRECTION_IMAGES = 128
RUNNING = ("running_mean", "running_var")
"""What training changes besides parameters."""
DRAFTS: dict[str, Callable[..., Mapping[str, StoredWeight]]] = {"codebook": codebook, "float": keep_float}
"""What gives the draft the very names, shapes and types that the quantiser will give; the others have integers."""
STORED: dict[str, Callable[[LayerPlan], dict[str, Any]]] = {
    "codebook": lambda layer: {"execution": "float"},
    "float": lambda layer: {"weight_bits": 32, "execution": "float"},
    "nncf": lambda layer: {"weight_bits": 8 if layer.execution == "int8" else 32},
}
"""What becomes of a layer's plan under a quantiser that does not know all bits or executions."""


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


def prune(dense: nn.Module, candidate: Candidate, input_shape: Shape, scores: Scores | None = None) -> nn.Module:
    """A smaller copy of `dense`, its channels ranked by the weights that it has now, or by their `scores`."""
    ratios = prune_ratios(candidate, layer_infos(dense, input_shape))
    return prune_channels(dense, ratios, input_shape, round_to=candidate.round_to, importance=candidate.importance, scores=scores)


def resolve(dense: nn.Module, candidate: Candidate, input_shape: Shape, runtime: Runtime) -> tuple[nn.Module, ShapePlan]:
    """The pruned copy of `dense` and its exact plan. Shapes do not depend on the weights, so `dense` need not be trained."""
    pruned = prune(dense, candidate, input_shape)
    return pruned, plan_of(candidate, layer_infos(pruned, input_shape), runtime)


def check_compressible(model: nn.Module, input_shape: Shape) -> None:
    """Raises UserError for a network whose layers cannot be planned one by one: it cannot be traced, or hides them in other modules."""
    infos = layer_infos(model, input_shape)
    if not infos:
        raise UserError(f"a network must have nn.Conv2d or nn.Linear layers to compress, but {type(model).__name__} calls none")
    trace(model, [info.name for info in infos], input_shape)


def check_prunable(model: nn.Module, input_shape: Shape) -> None:
    """Raises UserError or TrialError for a network whose channels cannot be cut."""
    prune_channels(model, {info.name: 0.5 for info in layer_infos(model, input_shape)}, input_shape)


def plan_of(candidate: Candidate, infos: Sequence[LayerInfo], runtime: Runtime) -> ShapePlan:
    """The exact plan of a network of those layers: what the candidate asks for, as its quantiser stores it and the runtime executes it.

    A layer that executes in INT8 has no more bits than the runtime's kernels are exact with; who makes whole files sees to that alone.
    """
    plan = as_stored(shape_plan(candidate, infos, depthwise_int8=runtime.depthwise_int8), candidate.quantiser)
    most = 8 if candidate.quantiser in MODEL_QUANTISERS else runtime.int8_bits
    capped = [
        layer.model_copy(update={"weight_bits": most}) if layer.execution == "int8" and layer.weight_bits > most else layer
        for layer in plan.layers
    ]
    return plan.model_copy(update={"layers": tuple(capped)})


def as_stored(plan: ShapePlan, quantiser: str) -> ShapePlan:
    """The plan with the bits and the execution that the quantiser leaves it (STORED)."""
    change = STORED.get(quantiser, lambda layer: {})
    return plan.model_copy(update={"layers": tuple(layer.model_copy(update=change(layer)) for layer in plan.layers)})


def draft(pruned: nn.Module, plan: ShapePlan, input_shape: Shape, runtime: Runtime, quantiser: str = "ptq") -> CompressedModel:
    """The candidate with untrained weights: its shapes, bits and structure are final, so size and latency can be measured now."""
    if quantiser in MODEL_QUANTISERS:
        noise = torch.randn(4, *input_shape, generator=torch.Generator().manual_seed(0))
        model, packed, _ = _whole(copy.deepcopy(pruned), plan, quantiser, noise, runtime)
    else:
        graph = _rough_graph(pruned, plan, quantiser, input_shape, runtime)
        model, packed = export_onnx(graph, input_shape), pack(packed_tensors(graph))
    check_rebuilds(model, unpack(packed))  # what would be refused after the training is refused before it
    return CompressedModel(plan, model, packed, count_parameters(pruned), count_macs(pruned, input_shape))


def rough_bytes(pruned: nn.Module, plan: ShapePlan, input_shape: Shape, runtime: Runtime, quantiser: str) -> int:
    """Bytes of the draft's weight file, without its ONNX file; of a quantiser that makes whole files by way of that."""
    if quantiser in MODEL_QUANTISERS:
        return len(draft(pruned, plan, input_shape, runtime, quantiser).packed)
    return len(pack(packed_tensors(_rough_graph(pruned, plan, quantiser, input_shape, runtime))))


def quantise(
    model: nn.Module,
    drafted: CompressedModel,
    quantiser: str,
    finetune: Finetune,
    calibration: Tensor,
    runtime: Runtime,
    setting: Setting = PLAIN,
) -> tuple[CompressedModel, nn.Module]:
    """Quantise a trained network by the draft's plan: weights (trained by `finetune`), calibrated activations, files.

    `calibration`: normalised training images (N, C, H, W) on the CPU. Returns the files and a module that simulates them.
    """
    plan, model = drafted.plan, model.cpu().eval()
    for name in _bits(plan):
        plain_layer(model, name)  # the signs of a weight that is computed cannot be turned
    make_gains_positive(model, _bits(plan), _shape_of(calibration))
    if quantiser in MODEL_QUANTISERS:
        filled, packed, simulation = _whole(model, plan, quantiser, calibration, runtime)
        if structure_key(filled) != drafted.structure:
            law = f"latency is measured on the draft's structure, but {quantiser} gave the trained network another one"
            raise EngineMismatch(f"{law}; take another quantiser")
    else:
        setting, points = replace(setting, images=calibration), None
        if setting.config.simulate_activations and quantiser in SIMULATED:
            points = _points(model, plan, calibration, runtime, setting.config)
            finetune = through(points, finetune, _bits(plan), _shape_of(calibration))
        weights = lookup(QUANTISERS, "quantiser", quantiser)(model, _bits(plan), finetune, setting)
        simulation = _calibrated(model, weights, plan, calibration, runtime, quantiser, setting.config, points)
        packed = pack(packed_tensors(simulation))
        filled = with_weights(drafted.model, unpack(packed))
    check_rebuilds(filled, unpack(packed))
    return CompressedModel(plan, filled, packed, drafted.parameters, drafted.macs), simulation


def _rough_graph(pruned: nn.Module, plan: ShapePlan, quantiser: str, shape: Shape, runtime: Runtime) -> fx.GraphModule:
    """With untrained weights of the kinds, bits and shapes that the quantiser will give."""
    weights = DRAFTS.get(quantiser, ptq)(copy.deepcopy(pruned), _bits(plan), untrained, UNITERATED)
    graph = _graph_for(runtime, pruned, weights, plan, shape)
    _fill_what_trains(graph)
    return graph


@torch.no_grad()
def _fill_what_trains(graph: fx.GraphModule) -> None:
    """Give what a training changes and the file keeps in float values as long as trained ones.

    Untrained some are 0 and 1 (norms that are not folded, weights that start at zero or behind a gain that does), which fit into fp16 and
    would make the file smaller than the trained one is.
    """
    for layer in integer_layers(graph).values():
        layer.take(_as_long_as_trained(layer.stored))
    layers = tuple(f"{name}." for name in integer_layers(graph))
    trained = {name for name, value in graph.named_parameters() if value.requires_grad}
    for name, value in (*graph.named_parameters(), *graph.named_buffers()):
        if (name in trained or name.endswith(RUNNING)) and not name.startswith(layers):
            value.fill_(1 / 3)


def _as_long_as_trained(weight: StoredWeight) -> StoredWeight:
    if isinstance(weight, FloatWeight) and fits_fp16(weight.values.numpy()):
        return replace(weight, values=torch.full_like(weight.values, 1 / 3))
    if isinstance(weight, IntegerWeight) and weight.bits > 8:
        return replace(weight, scales=torch.full_like(weight.scales, 1 / 3))
    return weight


def _graph_for(runtime: Runtime, model: nn.Module, weights: Mapping[str, StoredWeight], plan: ShapePlan, shape: Shape) -> fx.GraphModule:
    """With Q/DQ where this runtime wants them, on its grid."""
    graph = build_graph(model, weights, plan, runtime.activation_grid, shape, runtime.addends, runtime.dequantises_once)
    round_as(graph, by_reciprocal=runtime.by_reciprocal, rounds_bias=runtime.rounds_bias)
    return graph


def _calibrated(
    model: nn.Module,
    weights: Mapping[str, StoredWeight],
    plan: ShapePlan,
    images: Tensor,
    runtime: Runtime,
    quantiser: str,
    config: QuantiseConfig,
    points: fx.GraphModule | None = None,
) -> fx.GraphModule:
    """The graph with chosen activation scales, or those of `points`, and with corrected biases where the weights were only rounded."""
    shape = _shape_of(images)
    graph = _graph_for(runtime, model, weights, plan, shape)
    if points is not None:
        take_scales(graph, points)
        return graph
    calibrate(graph, images, config.activations)
    if quantiser == "ptq" and config.ptq.bias_correction:
        in_float = as_stored(plan, "float")
        reference = _graph_for(runtime, model, keep_float(model, _bits(plan), untrained), in_float, shape)
        correct_biases(graph, reference, images[:CORRECTION_IMAGES])
    return graph


def _points(model: nn.Module, plan: ShapePlan, images: Tensor, runtime: Runtime, config: QuantiseConfig) -> fx.GraphModule:
    """The graph of the network in float, with its activations calibrated: where points stand does not depend on the weights."""
    graph = _graph_for(runtime, model, keep_float(model, _bits(plan), untrained), plan, _shape_of(images))
    calibrate(graph, images, config.activations)
    return graph


def _whole(model: nn.Module, plan: ShapePlan, quantiser: str, images: Tensor, runtime: Runtime) -> tuple[onnx.ModelProto, bytes, nn.Module]:
    """File, packed weights and simulation by a quantiser that makes them all."""
    made = MODEL_QUANTISERS[quantiser](model, plan, images, runtime)
    return made.model, pack(made.tensors), made.simulation


def _as_packed(plan: ShapePlan, tensors: Mapping[str, PackedTensor], runtime: Runtime) -> ShapePlan:
    """The plan with the bits of the packed weights, which another runtime may have chosen."""

    def kept(layer: LayerPlan) -> LayerPlan:
        packed = tensors.get(f"{layer.name}.weight")
        if not isinstance(packed, QTensor):
            return layer
        in_int8 = layer.execution == "int8" and packed.bits <= runtime.int8_bits
        return layer.model_copy(update={"weight_bits": packed.bits, "execution": "int8" if in_int8 else "float"})

    return plan.model_copy(update={"layers": tuple(map(kept, plan.layers))})


def refit(
    pruned: nn.Module,
    plan: ShapePlan,
    tensors: Mapping[str, PackedTensor],
    calibration: Tensor,
    runtime: Runtime,
    quantiser: str = "ptq",
    rule: RangeConfig = LEAST_ERROR,
) -> tuple[CompressedModel, fx.GraphModule]:
    """A finished candidate for another runtime: its packed weights on that one's grid and plan, activations calibrated anew.

    `pruned` is the untrained network of its shapes, `plan` what the candidate resolves to there, `calibration` as in `quantise`,
    `rule` how the scales of activations are chosen.
    Weights keep their bits; a layer of more than the runtime's INT8 kernels are exact with executes in float there. Raises UserError for
    a candidate of a quantiser that places Q/DQ itself.
    """
    if quantiser in MODEL_QUANTISERS:
        raise UserError(
            f"a model goes to another runtime by its packed weights, but {quantiser} made this file whole; search on that runtime"
        )
    shape, plan = _shape_of(calibration), _as_packed(plan, tensors, runtime)
    drafted = draft(pruned, plan, shape, runtime, quantiser)
    graph = _rough_graph(pruned, plan, quantiser, shape, runtime)
    load_packed(graph, tensors)
    calibrate(graph, calibration, rule)
    packed = pack(packed_tensors(graph))
    filled = with_weights(drafted.model, unpack(packed))
    check_rebuilds(filled, unpack(packed))
    return CompressedModel(plan, filled, packed, drafted.parameters, drafted.macs), graph


def least_size(drafted: CompressedModel, coding: Coding) -> int:
    """Bytes that the trained candidate's file will have at least: exact for `packed`; how far coding gets depends on the weights."""
    return len(drafted.packed) if coding == "packed" else floor_bytes(drafted.packed)


def recoded(compressed: CompressedModel, coding: Coding) -> CompressedModel:
    """The same weights in a file of this coding, read back bit for bit."""
    if coding == "packed":
        return compressed
    packed = pack(unpack(compressed.packed), coding)
    check_rebuilds(compressed.model, unpack(packed))
    return replace(compressed, packed=packed)


def calibration_indices(images: int, wanted: int) -> Tensor:
    """Which of a training split's images choose the scales of activations: evenly spread, at most `wanted`; int64 (N,).

    In an order that is drawn once: folders list their images class by class, and a batch is to be of all classes.
    """
    chosen = torch.linspace(0, images - 1, min(wanted, images)).long()
    return chosen[torch.randperm(len(chosen), generator=torch.Generator().manual_seed(0))]


@torch.inference_mode()
def calibrate(graph: fx.GraphModule, images: Tensor, rule: RangeConfig = LEAST_ERROR, batch: int = 128) -> None:
    """Choose the scale of every activation quantiser on training images (N, C, H, W)."""
    points = activation_quantisers(graph)
    for point in points:
        point.calibrating = True
    for part in images.split(batch):
        graph(part)
    for point in points:
        point.calibrating = False
        point.fit_scale(rule)


def _shape_of(images: Tensor) -> Shape:
    return (images.shape[1], images.shape[2], images.shape[3])


def _bits(plan: ShapePlan) -> dict[str, int]:
    return {layer.name: layer.weight_bits for layer in plan.layers}
