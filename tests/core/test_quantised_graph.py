"""Folding keeps the function; Q/DQ points stand where the runtimes fuse them and nowhere else."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from core.errors import UserError
from core.quantise.fold import make_gains_positive
from core.quantise.graph import Grid
from core.quantise.layers import ActivationQuantiser, IntegerConv2d, activation_quantisers, integer_layers
from core.students import STUDENTS
from tests.tiny_nets import CLASSES, PATTERNS, SHAPE, Forward, Pattern, Residual, conv, head, images, plan_of, pooled, quantised, settled

NORMS = {"stem": "norm", "conv1": "norm1", "conv2": "norm2", "project": "norm3"}
LAYERS = ("stem", "conv1", "conv2", "project", "head")


def network() -> nn.Module:
    torch.manual_seed(0)
    return settled(Residual())


def rounded(model: nn.Module, graph: fx.GraphModule, norms: dict[str, str]) -> nn.Module:
    """The float network with the graph's weights, before folding: layer -> its batch norm."""
    model = copy.deepcopy(model)
    for name, layer in integer_layers(graph).items():
        weight = layer.float_weight()
        plain = model.get_submodule(name)
        if name in norms:
            norm = model.get_submodule(norms[name])
            weight = weight * (torch.sqrt(norm.running_var + norm.eps) / norm.weight).view(-1, 1, 1, 1)
        plain.weight.data = weight.view_as(plain.weight)
    return model


def quantiser_of(graph: fx.GraphModule, node: fx.Node) -> ActivationQuantiser | None:
    if node.op != "call_module":
        return None
    module = graph.get_submodule(str(node.target))
    return module if isinstance(module, ActivationQuantiser) else None


def call(graph: fx.GraphModule, target: object) -> fx.Node:
    (node,) = (node for node in graph.graph.nodes if node.target == target)
    return node


def quantised_inputs(graph: fx.GraphModule, node: fx.Node) -> list[bool]:
    return [quantiser_of(graph, source) is not None for source in node.all_input_nodes]


# --- sums ------------------------------------------------------------------------------------------------------------


def test_an_int8_layer_adds_up_integers_exactly_and_rounds_twice() -> None:
    torch.manual_seed(0)
    model = network()
    graph, seen = quantised(model, plan_of(model, bits=4)), dict[str, tuple[Tensor, Tensor]]()
    layers = integer_layers(graph)
    for name, layer in layers.items():
        layer.register_forward_hook(lambda _, given, made, name=name: seen.update({name: (given[0], made)}))
    with torch.no_grad():
        graph(images(8))
    assert set(seen) == set(layers)
    for name, (given, made) in seen.items():
        layer, (node,) = layers[name], [node for node in graph.graph.nodes if node.target == name]
        point = quantiser_of(graph, node.all_input_nodes[0])
        assert point is not None
        levels, weight = (given.double() / point.scale).round(), layer.integer_values().double()
        conv = layer if isinstance(layer, IntegerConv2d) else nn.Conv2d(1, 1, 1)
        sums = F.conv2d(levels, weight, None, conv.stride, conv.padding, conv.dilation, conv.groups)  # type: ignore[arg-type]
        factors = (layer.scale.double() * point.scale).float().view(-1, 1, 1)
        assert torch.equal(made, sums.float() * factors + layer.bias.view(-1, 1, 1)), name


def test_a_layer_that_reads_two_points_adds_up_floats() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.conv, self.head = conv(3, 8), conv(8, 8), head(8)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(pooled(self.conv(torch.relu(self.conv(torch.relu(self.stem(x)))))))

    torch.manual_seed(0)
    model = settled(Twice())
    layers = integer_layers(quantised(model, plan_of(model)))
    assert {name: len(layer._points) for name, layer in layers.items()} == {"stem": 1, "conv": 0, "head": 1}


# --- folding ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("negative", [False, True])
def test_folding_leaves_the_function_unchanged(negative: bool) -> None:
    model = network()
    if negative:
        for norm in (model.norm, model.norm2):
            norm.weight.data[::2] *= -1.0
    graph = quantised(model, plan_of(model, bits=8, execution="float"))
    assert not any(isinstance(module, nn.BatchNorm2d) for module in graph.modules())
    x = images(16)
    with torch.no_grad():
        torch.testing.assert_close(graph(x), rounded(model, graph, NORMS)(x), rtol=0, atol=3e-3)
        torch.testing.assert_close(graph(x), model(x), rtol=0, atol=0.05)


def test_two_bit_weights_survive_folding_when_gains_were_turned() -> None:
    """The grid of 2 bits is -2 .. 1: a sign turned by the fold would clip the outermost level."""
    model = network()
    model.norm1.weight.data *= -1.0
    plan = plan_of(model, bits={"conv1": 2}, execution="float")
    make_gains_positive(model, LAYERS, SHAPE)
    graph = quantised(model, plan)
    assert int(integer_layers(graph)["conv1"].integer_values().min()) == -2
    x = images(16)
    with torch.no_grad():
        torch.testing.assert_close(graph(x), rounded(model, graph, NORMS)(x), rtol=0, atol=3e-3)


def test_a_gain_of_zero_leaves_the_shift() -> None:
    model = network()
    model.norm1.weight.data.zero_()
    graph = quantised(model, plan_of(model, execution="float"))
    assert (integer_layers(graph)["conv1"].integer_values() == 0).all()
    with torch.no_grad():
        torch.testing.assert_close(graph(images(8)), model(images(8)), rtol=0, atol=0.05)


def test_a_norm_whose_layer_is_called_twice_stays() -> None:
    (twice,) = (pattern for pattern in PATTERNS if pattern.name == "one block called twice")
    torch.manual_seed(0)
    model = settled(twice.build())
    graph = quantised(model, plan_of(model, execution="float"))
    assert sum(isinstance(module, nn.BatchNorm2d) for module in graph.modules()) == 1
    with torch.no_grad():
        torch.testing.assert_close(graph(images(8)), model(images(8)), rtol=0, atol=0.05)


def test_a_norm_over_tokens_is_not_folded_into_the_linear_layer_before_it() -> None:
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mix, self.norm, self.head = nn.Linear(8, 8, bias=False), nn.BatchNorm1d(8), nn.Linear(8, CLASSES)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.norm(self.mix(x[:, 0])).mean(2))

    torch.manual_seed(0)
    model = settled(Tokens())
    with torch.no_grad():
        torch.testing.assert_close(quantised(model, plan_of(model, execution="float"))(images(8)), model(images(8)), rtol=0, atol=0.02)


def test_the_network_that_was_given_is_left_alone() -> None:
    model = network()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    quantised(model, plan_of(model))
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert set(before) == set(model.state_dict())


# --- placement -------------------------------------------------------------------------------------------------------


def test_a_residual_block_has_both_add_inputs_and_the_pooling_input_quantised() -> None:
    graph = quantised(network(), plan_of(network()))
    add = next(node for node in graph.graph.nodes if str(node.target) == "<built-in function add>")
    assert quantised_inputs(graph, add) == [True, True]
    assert quantised_inputs(graph, call(graph, F.adaptive_avg_pool2d)) == [True]
    for name in LAYERS:
        assert quantised_inputs(graph, call(graph, name)) == [True]


def test_where_kernels_add_before_they_round_the_last_result_before_an_add_has_no_quantiser() -> None:
    graph = quantised(network(), plan_of(network()), addends="skip")
    add = next(node for node in graph.graph.nodes if str(node.target) == "<built-in function add>")
    whole = [node.target for node in add.all_input_nodes if quantiser_of(graph, node) is None]
    last = [node.target for node in graph.graph.nodes if node.target in ("conv2", "project")][-1]
    assert whole == [last]
    for name in LAYERS:
        assert quantised_inputs(graph, call(graph, name)) == [True]


def test_a_result_that_another_layer_takes_too_has_its_quantiser_before_an_add() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.head = conv(3, 8), conv(8, 8), head(8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            once = self.first(x)
            return self.head(pooled(once + self.second(once)))

    torch.manual_seed(0)
    model = settled(Shared())
    for addends, expected in (("both", [True, True]), ("skip", [True, False])):
        graph = quantised(model, plan_of(model), addends=addends)  # type: ignore[arg-type]
        add = next(node for node in graph.graph.nodes if str(node.target) == "<built-in function add>")
        assert quantised_inputs(graph, add) == expected


def test_a_shared_tensor_has_one_quantiser() -> None:
    graph = quantised(network(), plan_of(network()))
    assert call(graph, "conv1").args[0] is call(graph, "project").args[0]
    points = [str(node.target) for node in graph.graph.nodes if quantiser_of(graph, node)]
    assert len(points) == len(set(points))


def test_an_identity_shortcut_shares_the_quantiser_of_the_convolution_s_input() -> None:
    torch.manual_seed(0)
    model = settled(STUDENTS["resnet8"](classes=CLASSES, image_size=8, width=0.25))
    graph = quantised(model, plan_of(model))
    conv1, add = call(graph, "layer1.0.conv1"), next(node for node in graph.graph.nodes if node.name == "add")
    assert conv1.args[0] in add.all_input_nodes


def test_float_networks_carry_no_quantiser() -> None:
    assert activation_quantisers(quantised(network(), plan_of(network(), execution="float"))) == []


def test_a_float_stretch_carries_none() -> None:
    graph = quantised(network(), plan_of(network(), execution={"conv1": "float", "conv2": "float", "head": "float"}))
    add = next(node for node in graph.graph.nodes if str(node.target) == "<built-in function add>")
    assert quantised_inputs(graph, add) == [False, False]
    assert quantised_inputs(graph, call(graph, "conv1")) == [False]
    assert quantised_inputs(graph, call(graph, "conv2")) == [False]
    assert quantised_inputs(graph, call(graph, F.adaptive_avg_pool2d)) == [False]
    assert quantised_inputs(graph, call(graph, "project")) == [True]


def test_sixteen_bit_layers_execute_in_float_with_the_weights_that_are_kept() -> None:
    graph = quantised(network(), plan_of(network(), bits={"conv1": 16}))
    layer = integer_layers(graph)["conv1"]
    assert layer.integer_values().dtype == torch.int16
    assert torch.equal(layer.float_weight(), layer.integer_values().float() * layer.scale.view(-1, 1, 1, 1))
    assert quantised_inputs(graph, call(graph, "conv1")) == [False]


@pytest.mark.parametrize(("grid", "unsigned"), [("uint8_relu", True), ("int8", False)])
def test_only_the_uint8_grid_has_unsigned_points_and_only_after_what_cannot_be_negative(grid: Grid, unsigned: bool) -> None:
    graph = quantised(network(), plan_of(network()), grid=grid)
    points = {node.args[0].name: quantiser_of(graph, node) for node in graph.graph.nodes if quantiser_of(graph, node)}
    assert points["x"] is not None
    assert points["x"].signed
    assert any(not point.signed for point in points.values() if point) is unsigned
    assert all((point.zero.dtype == torch.uint8) is not point.signed for point in points.values() if point)


@pytest.mark.parametrize(
    ("run", "signed"),
    [
        (F.relu, False),
        (lambda x: F.relu(x) + F.relu(-x), False),
        (lambda x: F.relu(x) - 0.5, True),
        (lambda x: F.relu(x) + (-0.5), True),
        (lambda x: torch.add(F.relu(x), F.relu(-x), alpha=-1), True),
        (lambda x: torch.cat([F.relu(x), F.relu(-x)], 1)[:, :4], False),
        (lambda x: torch.cat([F.relu(x), -F.relu(x)], 1)[:, :4], True),
        (lambda x: torch.cat(F.relu(x).split([1, 3], 1), 1), False),
        (lambda x: torch.cat(x.chunk(2, 1), 1), True),
        (lambda x: F.channel_shuffle(F.relu(x), 2), False),
        (lambda x: F.channel_shuffle(x, 2), True),
        (lambda x: F.relu(x).view(x.size(0), 2, 2, 8, 8).transpose(1, 2).reshape(x.size(0), 4, 8, 8), False),
        (lambda x: torch.cat([F.relu(x[:, :2]), F.relu6(x[:, 2:])], 1), False),
        (lambda x: torch.cat([F.relu(x[:, :2]), x[:, 2:]], 1), True),
        (lambda x: F.max_pool2d(F.relu(x), 2), False),
        (F.gelu, True),
        (lambda x: F.relu(x).view(x.size(0), 4, 8, 8), False),
    ],
)
def test_a_tensor_is_unsigned_only_where_it_cannot_be_negative(run, signed: bool) -> None:  # type: ignore[no-untyped-def]
    torch.manual_seed(0)
    model = settled(Forward(lambda m, x: m.head(pooled(m.b(run(m.a(x))))), a=conv(3, 4), b=conv(4, 8), head=head()))
    graph = quantised(model, plan_of(model, execution={"a": "float", "head": "float"}))
    point = quantiser_of(graph, call(graph, "b").all_input_nodes[0])
    assert point is not None
    assert point.signed is signed


def test_the_classifier_is_a_convolution_on_the_pooled_map_without_a_flattening() -> None:
    graph = quantised(network(), plan_of(network()))
    assert integer_layers(graph)["head"].weight.shape == (CLASSES, 12, 1, 1)
    assert not any(node.target in (torch.flatten, "flatten", "view") for node in graph.graph.nodes)


# --- simulation ------------------------------------------------------------------------------------------------------


def test_calibrated_activations_are_on_the_grid_and_stay_there() -> None:
    graph = quantised(network(), plan_of(network()))
    for point in activation_quantisers(graph):
        assert float(point.scale) == float(point.scale.half())
        once = point(torch.randn(100))
        levels = once / point.scale
        assert torch.equal(levels, levels.round())
        assert point.low <= levels.min() <= levels.max() <= point.high
        assert torch.equal(point(once), once)
        assert point.samples == []


@pytest.mark.parametrize(("channels", "side"), [(512, 4), (200, 8), (128, 8), (400, 4)])
def test_the_scale_is_chosen_by_values_from_everywhere_on_the_map(channels: int, side: int) -> None:
    point = ActivationQuantiser(signed=False)
    point.calibrating = True
    columns = torch.arange(side, dtype=torch.float32).expand(128, channels, side, side)
    point(columns)
    sampled = torch.bincount(point.samples[0].long(), minlength=side) / len(point.samples[0])
    assert sampled.min() > 0.8 / side


def test_an_activation_that_is_always_zero_gets_a_finite_scale() -> None:
    point = ActivationQuantiser(signed=False)
    point.calibrating = True
    point(torch.zeros(10))
    point.calibrating = False
    point.fit_scale()
    assert float(point.scale) > 0
    assert torch.equal(point(torch.zeros(3)), torch.zeros(3))


@pytest.mark.parametrize("pattern", PATTERNS, ids=lambda pattern: pattern.name)
def test_eight_bits_stay_close_to_the_float_network(pattern: Pattern) -> None:
    torch.manual_seed(0)
    model = settled(pattern.build())
    x = images(64, seed=9)
    with torch.no_grad():
        expected = model(x)
        actual = quantised(model, plan_of(model))(x)
    assert (actual - expected).norm() < 0.1 * expected.norm()


# --- what is refused -------------------------------------------------------------------------------------------------


class StandardisedConv(nn.Conv2d):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.conv2d(x, self.weight - self.weight.mean(), self.bias, padding=1)


class NamedConv(nn.Conv2d):
    """Adds nothing but a name."""


class TiedHead(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.head = conv(3, 8), head()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = pooled(F.relu(self.a(x)))
        return self.head(x) + F.linear(x, self.head.weight)


REFUSED = {
    "control flow": (lambda m, x: m.head(pooled(m.a(x))) if x.sum() > 0 else m.head(pooled(-m.a(x))), "traceable by torch.fx"),
    "a fixed batch": (lambda m, x: m.head(pooled(m.a(x.view(1, 3, 8, 8)))), "for any batch"),
    "a size as a number": (lambda m, x: m.head(pooled(m.a(x))) * float(x.shape[0]), "traceable by torch.fx"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_forward_that_cannot_be_traced_is_refused_in_words(name: str) -> None:
    run, message = REFUSED[name]
    model = Forward(run, a=conv(3, 8), head=head()).eval()
    with pytest.raises(UserError, match=message):
        quantised(model, plan_of(model))


def test_a_layer_inside_a_module_of_torch_is_refused_by_name() -> None:
    block = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    model = Forward(lambda m, x: m.head(m.block(m.patch(x).flatten(2).transpose(1, 2)).mean(1)), patch=conv(3, 8), block=block, head=head())
    plan = plan_of(settled(model))
    inside = plan.layers[0].model_copy(update={"name": "block.linear1", "out_channels": 16})
    with pytest.raises(UserError, match=r"'block\.linear1' is used inside another one"):
        quantised(model, plan.model_copy(update={"layers": (*plan.layers, inside)}))


def test_a_layer_with_a_forward_of_its_own_is_refused_by_name() -> None:
    model = Forward(lambda m, x: m.head(pooled(m.a(x))), a=StandardisedConv(3, 8, 3), head=head()).eval()
    with pytest.raises(UserError, match="'a' is a StandardisedConv"):
        quantised(model, plan_of(model))


def test_a_layer_whose_weight_is_used_elsewhere_is_refused_by_name() -> None:
    with pytest.raises(UserError, match="'head' is used"):
        quantised(TiedHead().eval(), plan_of(TiedHead()))


def test_a_subclass_that_only_adds_a_name_is_quantised() -> None:
    torch.manual_seed(0)
    model = Forward(lambda m, x: m.head(pooled(F.relu(m.a(x)))), a=NamedConv(3, 8, 3), head=head()).eval()
    assert set(integer_layers(quantised(model, plan_of(model)))) == {"a", "head"}
