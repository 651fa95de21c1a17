"""The ONNX file and the packed file are one thing in two forms."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import fx, nn

from core.errors import EngineMismatch, UserError
from core.export import check_rebuilds, export_onnx, float_tensors, initialisers_of, packed_tensors, structure_key, with_weights
from core.pack import QTensor, pack, unpack
from core.quantise.graph import Grid
from tests.tiny_nets import CLASSES, SHAPE, Forward, Residual, Tied, conv, head, plan_of, pooled, quantised, settled

BITS = {"stem": 8, "conv1": 2, "conv2": 4, "project": 16, "head": 8}


def graph_of(
    seed: int = 0, bits: dict[str, int] = BITS, execution: object = "int8", grid: Grid = "uint8_relu", width: int = 12
) -> fx.GraphModule:
    torch.manual_seed(seed)
    model = Residual()
    if width != 12:
        model.conv2, model.norm2 = nn.Conv2d(12, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        model.project, model.norm3, model.head = nn.Conv2d(8, width, 1, bias=False), nn.BatchNorm2d(width), nn.Linear(width, CLASSES)
    model = settled(model)
    return quantised(model, plan_of(model, bits=bits, execution=execution), grid=grid)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def graph() -> fx.GraphModule:
    return graph_of()


@pytest.fixture(scope="module")
def model(graph: fx.GraphModule) -> onnx.ModelProto:
    return export_onnx(graph, SHAPE)


def arrays_of(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {initialiser.name: numpy_helper.to_array(initialiser) for initialiser in model.graph.initializer}


def test_input_and_output_have_their_names_and_an_open_batch(model: onnx.ModelProto) -> None:
    (image,), (logits,) = model.graph.input, model.graph.output
    assert (image.name, logits.name) == ("images", "logits")
    assert [d.dim_value or d.dim_param for d in image.type.tensor_type.shape.dim] == ["batch", *SHAPE]
    assert [d.dim_value or d.dim_param for d in logits.type.tensor_type.shape.dim] == ["batch", CLASSES]


def test_the_file_is_valid_and_says_nothing_of_this_machine(model: onnx.ModelProto) -> None:
    onnx.checker.check_model(model, full_check=True)
    content = model.SerializeToString()
    assert b".py" not in content
    assert b"torchversion" not in content


def test_weights_are_int8_initialisers_followed_by_dequantisation_alone(model: onnx.ModelProto) -> None:
    arrays = arrays_of(model)
    makers = {name: node.op_type for node in model.graph.node for name in node.output}
    for node in model.graph.node:
        if node.op_type == "QuantizeLinear":
            assert node.input[0] not in arrays
            assert makers.get(node.input[0]) != "DequantizeLinear"
    for name, bits in BITS.items():
        assert arrays[f"{name}.weight"].dtype == (np.int8 if bits <= 8 else np.float32)
        users = {node.op_type for node in model.graph.node if f"{name}.weight" in node.input}
        assert users == ({"DequantizeLinear"} if bits <= 8 else {"Conv"})


def test_a_float_layer_s_integers_are_cast_and_multiplied_for_a_runtime_that_would_dequantise_them_in_each_call() -> None:
    torch.manual_seed(0)
    network = settled(Residual())
    plan = plan_of(network, bits=BITS, execution={"conv1": "float", "head": "float"})
    in_turn = [quantised(network, plan, dequantises_once=once) for once in (True, False)]
    dequantised, multiplied = (export_onnx(graph, SHAPE) for graph in in_turn)
    onnx.checker.check_model(multiplied, full_check=True)
    for name in ("conv1", "conv2", "head"):
        users = {node.op_type for node in multiplied.graph.node if f"{name}.weight" in node.input}
        assert users == ({"DequantizeLinear"} if name == "conv2" else {"Cast"})
    for graph, model in zip(in_turn, (dequantised, multiplied), strict=True):
        check_rebuilds(model, unpack(pack(packed_tensors(graph))))
    assert packed_tensors(in_turn[0]).keys() == packed_tensors(in_turn[1]).keys()


def test_biases_are_plain_floats(model: onnx.ModelProto) -> None:
    assert not any(array.dtype == np.int32 for array in arrays_of(model).values())
    assert all(arrays_of(model)[f"{name}.bias"].dtype == np.float32 for name in BITS)


def test_every_activation_point_has_zero_point_zero(model: onnx.ModelProto) -> None:
    arrays = arrays_of(model)
    points = [node for node in model.graph.node if node.op_type == "QuantizeLinear"]
    assert points
    assert all(not arrays[node.input[2]].any() for node in points)
    assert {arrays[node.input[2]].dtype for node in points} == {np.dtype(np.int8), np.dtype(np.uint8)}


def test_packed_names_are_the_initialisers_one_to_one(graph: fx.GraphModule, model: onnx.ModelProto) -> None:
    weights = {name for name, array in arrays_of(model).items() if not name.endswith(".zero") and array.dtype != np.int64}
    assert set(initialisers_of(packed_tensors(graph))) == weights


def test_a_packed_file_rebuilds_the_onnx_bit_for_bit(graph: fx.GraphModule, model: onnx.ModelProto) -> None:
    tensors = unpack(pack(packed_tensors(graph)))
    check_rebuilds(model, tensors)
    emptied = onnx.ModelProto()
    emptied.CopyFrom(model)
    rebuilt = initialisers_of(tensors)
    for initialiser in emptied.graph.initializer:
        if initialiser.name in rebuilt:
            initialiser.CopyFrom(numpy_helper.from_array(np.zeros_like(rebuilt[initialiser.name]), initialiser.name))
    assert with_weights(emptied, tensors).SerializeToString(deterministic=True) == with_weights(model, tensors).SerializeToString(
        deterministic=True
    )
    assert all(np.array_equal(array, arrays_of(model)[name]) for name, array in arrays_of(with_weights(emptied, tensors)).items())


def test_a_tied_parameter_is_packed_once_under_the_name_that_the_onnx_has() -> None:
    network = settled(Tied())
    graph = quantised(network, plan_of(network))
    packed, arrays = packed_tensors(graph), arrays_of(export_onnx(graph, SHAPE))
    assert np.array_equal(arrays["first.weight"], packed["first.weight"])
    assert not {"second.weight", "second.bias"} & {*arrays, *packed}


def test_one_changed_weight_is_noticed(graph: fx.GraphModule, model: onnx.ModelProto) -> None:
    tensors = packed_tensors(graph)
    weight = tensors["conv2.weight"]
    assert isinstance(weight, QTensor)
    values = weight.values.copy()
    values.flat[0] = values.flat[0] ^ 1
    with pytest.raises(EngineMismatch, match=r"'conv2.weight' differs"):
        check_rebuilds(model, {**tensors, "conv2.weight": QTensor(values, weight.scales, weight.bits)})
    with pytest.raises(EngineMismatch, match=r"'head.bias' differs"):
        check_rebuilds(model, {name: tensor for name, tensor in tensors.items() if name != "head.bias"})


def test_a_tensor_of_one_value_belongs_to_the_graph_and_any_other_to_the_packed_file(graph: fx.GraphModule, model: onnx.ModelProto) -> None:
    tensors, with_mask = packed_tensors(graph), onnx.ModelProto()
    with_mask.CopyFrom(model)
    with_mask.graph.initializer.append(numpy_helper.from_array(np.zeros((4, 4), np.float32), "mask"))
    check_rebuilds(with_mask, tensors)
    with_mask.graph.initializer[-1].CopyFrom(numpy_helper.from_array(np.eye(4, dtype=np.float32), "mask"))
    with pytest.raises(EngineMismatch, match=r"'mask' differs"):
        check_rebuilds(with_mask, tensors)


def test_another_network_of_the_same_shape_is_filled_in_not_exported_again(model: onnx.ModelProto) -> None:
    other = graph_of(seed=7)
    tensors = packed_tensors(other)
    filled = with_weights(model, tensors)
    check_rebuilds(filled, tensors)
    assert structure_key(filled) == structure_key(model)
    assert filled.SerializeToString(deterministic=True) == export_onnx(other, SHAPE).SerializeToString(deterministic=True)


def test_weights_of_another_shape_are_a_defect(model: onnx.ModelProto) -> None:
    with pytest.raises(AssertionError, match="conv2"):
        with_weights(model, packed_tensors(graph_of(width=16)))


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("16 instead of 8 bits", {"bits": {**BITS, "conv1": 16}}),
        ("execution", {"execution": {"conv1": "float"}}),
        ("shape", {"width": 16}),
        ("grid", {"grid": "int8"}),
    ],
)
def test_another_structure_has_another_key(model: onnx.ModelProto, name: str, arguments: dict[str, object]) -> None:
    assert structure_key(export_onnx(graph_of(**arguments), SHAPE)) != structure_key(model)  # type: ignore[arg-type]


def test_two_to_eight_bits_are_one_structure_and_differ_in_size(graph: fx.GraphModule, model: onnx.ModelProto) -> None:
    """All of them execute as INT8: fewer bits save bytes, not time."""
    fewer = graph_of(bits={**BITS, "conv2": 2})
    assert structure_key(export_onnx(fewer, SHAPE)) == structure_key(model)
    saved = len(pack(packed_tensors(graph))) - len(pack(packed_tensors(fewer)))
    assert saved == pytest.approx(12 * 12 * 9 * 2 / 8, abs=1)


def test_a_packed_file_costs_its_bits_and_little_more(graph: fx.GraphModule) -> None:
    tensors = packed_tensors(graph)
    integers = sum(tensor.values.size * tensor.bits for tensor in tensors.values() if isinstance(tensor, QTensor)) / 8
    assert integers < len(pack(tensors)) < integers + 900


def test_a_float_network_exports_with_all_of_its_tensors() -> None:
    torch.manual_seed(0)
    network = settled(Residual())
    exported = export_onnx(network, SHAPE)
    onnx.checker.check_model(exported, full_check=True)
    assert not any(node.op_type in ("QuantizeLinear", "DequantizeLinear") for node in exported.graph.node)
    tensors = float_tensors(network)
    assert set(tensors) == {name for name, value in network.state_dict().items() if value.is_floating_point()}
    assert unpack(pack(tensors)).keys() == tensors.keys()


class Constants(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.head = conv(3, 8), head()
        self.register_buffer("mean", torch.rand(1, 3, 1, 1), persistent=False)
        self.gain = nn.Parameter(torch.rand(8, 1, 1))
        self.unused = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(pooled(torch.relu(self.a((x - self.mean) * torch.tensor([0.5, 0.25, 2.0])[:, None, None])) * self.gain / 3))


def test_buffers_and_constants_of_a_forward_are_packed_and_unused_layers_are_not() -> None:
    torch.manual_seed(0)
    network = Constants().eval()
    graph = quantised(network, plan_of(network))
    tensors = packed_tensors(graph)
    check_rebuilds(export_onnx(graph, SHAPE), tensors)
    assert {"mean", "gain"} <= set(tensors)
    assert not any("unused" in name for name in tensors)


def test_what_onnx_cannot_express_is_refused_in_words(capsys: pytest.CaptureFixture[str]) -> None:
    network = Forward(lambda m, x: m.head(torch.special.bessel_j0(pooled(m.a(x)))), a=conv(3, 8), head=head())
    with pytest.raises(UserError, match="must export to ONNX"):
        export_onnx(network.eval(), SHAPE)
    assert capsys.readouterr().out == ""
