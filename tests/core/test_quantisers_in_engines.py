"""Every quantiser through the stages of a candidate: structure and size are the draft's, and the engine computes what is simulated."""

from __future__ import annotations

import copy
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from core.candidate import Candidate, GroupPlan
from core.compress import draft, quantise, refit, resolve, rough_bytes
from core.config import BrecqConfig, QuantiseConfig
from core.errors import EngineMismatch, UserError
from core.layers import evaluating
from core.pack import QTensor, unpack
from core.quantise import MODEL_QUANTISERS, QUANTISERS
from core.quantise.setting import Setting
from core.runtimes import RUNTIMES, EngineOptions
from core.students import STUDENTS
from tests.core.test_networks_in_engines import agree
from tests.tiny_nets import CLASSES, SHAPE, images, settled

RUNTIME = RUNTIMES["onnxruntime"]()
SETTING = Setting(QuantiseConfig(brecq=BrecqConfig(iterations=10)), rate_weight=0.1)
NAMES = [*QUANTISERS, *MODEL_QUANTISERS]
COUNT = 200


def student() -> nn.Module:
    torch.manual_seed(0)
    return settled(STUDENTS["resnet8"](classes=CLASSES, image_size=8, width=0.5))


def candidate(name: str) -> Candidate:
    groups = (GroupPlan(weight_bits=8), GroupPlan(weight_bits=4), GroupPlan(weight_bits=16, execution="float"), GroupPlan(weight_bits=3))
    return Candidate(student="resnet8", width=0.5, groups=groups, quantiser=name)


def untrained(model: nn.Module, penalty: object = None) -> nn.Module:
    return model


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.slow
def test_the_engine_computes_what_is_simulated_and_the_draft_had_its_structure_and_size(name: str, tmp_path: Path) -> None:
    model = student()
    pruned, plan = resolve(model, candidate(name), SHAPE, RUNTIME)
    drafted = draft(pruned, plan, SHAPE, RUNTIME, name)
    compressed, simulation = quantise(model, drafted, name, untrained, images(64), RUNTIME, SETTING)
    assert compressed.structure == drafted.structure
    assert len(compressed.packed) == len(drafted.packed)
    x = images(COUNT, seed=9)
    engine = RUNTIME.load(str(compressed.save(tmp_path)), EngineOptions(batch=COUNT, threads=1, precision="f32"))
    with torch.no_grad():
        expected = simulation(x)
    actual = torch.from_numpy(engine.run(x.numpy()))
    agree(RUNTIME.name, actual, expected)


@pytest.mark.parametrize("name", ["ptq", "codebook"])
def test_a_draft_leaves_the_network_as_it_was(name: str) -> None:
    model = student()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    pruned, plan = resolve(model, candidate(name), SHAPE, RUNTIME)
    draft(pruned, plan, SHAPE, RUNTIME, name)
    assert all(torch.equal(value, before[key]) for key, value in pruned.state_dict().items())


def test_what_a_quantiser_cannot_do_is_in_the_plan() -> None:
    plans = {name: resolve(student(), candidate(name), SHAPE, RUNTIME)[1] for name in NAMES}
    assert {layer.weight_bits for layer in plans["float"].layers} == {32}
    assert {layer.execution for layer in plans["codebook"].layers} == {layer.execution for layer in plans["float"].layers} == {"float"}
    assert {layer.weight_bits for layer in plans["nncf"].layers if layer.execution == "int8"} == {8}
    assert plans["lsq"] == plans["ptq"] == plans["rate"] == plans["brecq"]


@pytest.mark.parametrize("name", ["lsq", "codebook"])
def test_packed_weights_go_to_another_grid_bit_for_bit(name: str) -> None:
    model = student()
    pruned, plan = resolve(model, candidate(name), SHAPE, RUNTIME)
    compressed, _ = quantise(model, draft(pruned, plan, SHAPE, RUNTIME, name), name, untrained, images(64), RUNTIME, SETTING)
    again, graph = refit(pruned, plan, unpack(compressed.packed), images(64), RUNTIME, name)
    assert again.packed == compressed.packed
    with torch.no_grad():
        assert torch.isfinite(graph(images(4))).all()


@pytest.mark.parametrize("name", ["lsq", "codebook"])
@pytest.mark.slow
def test_where_sums_of_eight_bits_saturate_a_layer_in_int8_has_seven_or_takes_its_eight_to_float(name: str) -> None:
    exact, saturating = replace(RUNTIME, int8_bits=8), replace(RUNTIME, int8_bits=7)
    model = student()
    pruned, plan = resolve(model, candidate(name), SHAPE, exact)
    _, capped = resolve(model, candidate(name), SHAPE, saturating)
    for wanted, got in zip(plan.layers, capped.layers, strict=True):
        assert got.weight_bits == (min(7, wanted.weight_bits) if wanted.execution == "int8" else wanted.weight_bits)
        assert got.execution == wanted.execution
    for layers, source, target in ((plan, exact, saturating), (capped, saturating, exact)):
        made, _ = quantise(model, draft(pruned, layers, SHAPE, source, name), name, untrained, images(64), source, SETTING)
        again, graph = refit(pruned, layers, unpack(made.packed), images(64), target, name)
        assert [layer.weight_bits for layer in again.plan.layers] == [layer.weight_bits for layer in layers.layers]
        assert all(layer.execution == "float" or layer.weight_bits <= target.int8_bits for layer in again.plan.layers)
        with torch.no_grad():
            assert torch.isfinite(graph(images(4))).all()


@pytest.mark.slow
def test_depthwise_layers_that_go_to_float_elsewhere_keep_the_bits_that_they_were_packed_with() -> None:
    shape = (3, 16, 16)
    here = replace(RUNTIME, int8_bits=7)
    elsewhere = replace(RUNTIME, int8_bits=8, depthwise_int8=False)
    torch.manual_seed(0)
    model = settled(STUDENTS["mobilenet_v2"](classes=CLASSES, image_size=16, width=0.25), shape)
    asked = Candidate(student="mobilenet_v2", width=0.25, groups=(GroupPlan(weight_bits=8),), quantiser="lsq")
    pruned, plan = resolve(model, asked, shape, here)
    made, _ = quantise(model, draft(pruned, plan, shape, here, "lsq"), "lsq", untrained, images(16, shape), here, SETTING)
    _, wanted = resolve(model, asked, shape, elsewhere)
    again, _ = refit(pruned, wanted, unpack(made.packed), images(16, shape), elsewhere, "lsq")
    assert {layer.weight_bits for layer in again.plan.layers} == {7}
    assert {layer.execution for layer in again.plan.layers} == {"int8", "float"}


@pytest.mark.parametrize("name", ["airbench", "wrn_16_2", "hybrid_serial", "mobilenet_v2"])
@pytest.mark.slow
def test_the_size_before_training_is_that_of_the_trained_file(name: str) -> None:
    """Also where a norm is not folded, whose trained numbers take more bytes than the 0 and 1 that it starts with."""
    shape = (3, 16, 16)
    torch.manual_seed(0)
    dense = STUDENTS[name](classes=CLASSES, image_size=16, width=0.25).eval()
    asked = Candidate(student=name, width=0.25, groups=(GroupPlan(weight_bits=4),), quantiser="lsq")
    pruned, plan = resolve(dense, asked, shape, RUNTIME)
    drafted = draft(pruned, plan, shape, RUNTIME, "lsq")
    assert rough_bytes(pruned, plan, shape, RUNTIME, "lsq") == len(drafted.packed)
    with torch.no_grad():
        for value in pruned.parameters():
            value.add_(0.1 * torch.rand_like(value))
    made, _ = quantise(settled(pruned, shape), drafted, "lsq", untrained, images(16, shape), RUNTIME, SETTING)
    assert len(made.packed) == len(drafted.packed)


@pytest.mark.slow
def test_two_bits_behind_weight_norm_survive_a_negative_gain() -> None:
    """Folded as it is, the gain would turn the lowest of -2, -1, 0, 1 into 2, which is none."""
    model = student()
    norm = next(module for module in model.modules() if isinstance(module, nn.BatchNorm2d))
    norm.weight.data[::2] *= -1.0
    bits = Candidate(student="resnet8", width=0.5, groups=(GroupPlan(weight_bits=2),), edge_bits=None, quantiser="lsq")
    made = {}
    for how in ("plain", "computed"):
        network = copy.deepcopy(model)
        if how == "computed":
            weight_norm(next(module for module in network.modules() if isinstance(module, nn.Conv2d)))
        pruned, plan = resolve(model, bits, SHAPE, RUNTIME)
        made[how], _ = quantise(network, draft(pruned, plan, SHAPE, RUNTIME, "lsq"), "lsq", untrained, images(16), RUNTIME, SETTING)
    first, second = (unpack(each.packed) for each in made.values())
    for name, tensor in first.items():
        if isinstance(tensor, QTensor):
            assert np.mean(tensor.values != second[name].values) < 0.01, name  # weight norm rounds a little


def test_nncf_sends_nothing_from_the_process_that_trains() -> None:
    code = "import sys; from core.quantise.nncf_int8 import _library; _library(); print(sys.modules['openvino_telemetry'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "None"


def test_nncf_takes_half_of_the_range_where_sums_saturate() -> None:
    model = student()
    pruned, plan = resolve(model, candidate("nncf"), SHAPE, RUNTIME)
    made = MODEL_QUANTISERS["nncf"](pruned, plan, images(8), replace(RUNTIME, int8_bits=7))
    weights = [tensor.values for tensor in made.tensors.values() if isinstance(tensor, QTensor)]
    assert weights
    assert max(np.abs(values.astype(int)).max() for values in weights) == 64


def test_where_a_runtime_adds_before_it_rounds_so_does_the_file_of_nncf() -> None:
    pruned, plan = resolve(
        student(), Candidate(student="resnet8", width=0.5, groups=(GroupPlan(weight_bits=8),), quantiser="nncf"), SHAPE, RUNTIME
    )
    points: dict[str, list[int]] = {}
    for addends in ("both", "skip"):
        made = MODEL_QUANTISERS["nncf"](pruned, plan, images(8), replace(RUNTIME, addends=addends)).model
        onnx.checker.check_model(made)
        rounded = {output for node in made.graph.node if node.op_type == "DequantizeLinear" for output in node.output}
        points[addends] = [len(rounded & set(node.input)) for node in made.graph.node if node.op_type == "Add"]
        assert {each.name for each in made.graph.initializer} <= {name for node in made.graph.node for name in node.input}
    assert points == {"both": [2, 2, 2], "skip": [1, 1, 1]}


def test_a_whole_file_goes_to_no_other_runtime() -> None:
    pruned, plan = resolve(student(), candidate("nncf"), SHAPE, RUNTIME)
    with pytest.raises(UserError, match="nncf made this file whole"):
        refit(pruned, plan, {}, images(8), RUNTIME, "nncf")


def test_nncf_keeps_the_signed_grid_where_a_runtime_wants_it() -> None:
    pruned, plan = resolve(student(), candidate("nncf"), SHAPE, RUNTIME)
    made = MODEL_QUANTISERS["nncf"](pruned, plan, images(8), replace(RUNTIME, activation_grid="int8"))
    zeros = [each.data_type for each in made.model.graph.initializer if each.name.endswith(".zero")]
    assert zeros
    assert set(zeros) == {onnx.TensorProto.INT8}


def test_a_network_whose_file_got_another_structure_than_its_draft_is_refused() -> None:
    model = student()
    pruned, plan = resolve(model, candidate("nncf"), SHAPE, RUNTIME)
    float_draft = draft(pruned, resolve(model, candidate("float"), SHAPE, RUNTIME)[1], SHAPE, RUNTIME, "float")
    with evaluating(model), pytest.raises(EngineMismatch, match="another one"):
        quantise(model, float_draft.__class__(plan, float_draft.model, b"", 0, 0), "nncf", untrained, images(8), RUNTIME)
