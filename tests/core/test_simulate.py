"""Activations in training are those of the export: at the same places, on the same grids, with the same scales."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from core.compress import Shape, calibrate, draft, quantise
from core.config import QuantiseConfig, RuntimeConfig, TrainConfig
from core.engines import EngineHost
from core.losses import region_logits
from core.quantise.graph import Grid, build_graph
from core.quantise.layers import ActivationQuantiser
from core.quantise.ptq import keep_float
from core.quantise.setting import Finetune, Penalty, Setting, untrained
from core.quantise.simulate import SIMULATED, FixedPoint, Simulated
from core.runtimes import RUNTIMES
from core.students import STUDENTS
from core.train import Batch, Device, fit
from tests.tiny_data import view_set
from tests.tiny_nets import CLASSES, PATTERNS, SHAPE, Pattern, Residual, images, plan_of, settled

NETWORKS = [*PATTERNS, Pattern("residual block with a projection", Residual)]
STUDENTS_TRIED = ("resnet8", "mobilenet_v2", "shufflenet_v2")
LARGER = (3, 16, 16)
CPU = Device(torch.device("cpu"), None)
RUNTIME = RUNTIMES["openvino"]()
SIMULATING = Setting(QuantiseConfig(simulate_activations=True))


def pair(model: nn.Module, grid: Grid = "uint8_relu", shape: Shape = SHAPE) -> tuple[Simulated, nn.Module]:
    """The network as it trains, and the graph of its export with weights in float."""
    plan = plan_of(model, shape)
    bits = {layer.name: layer.weight_bits for layer in plan.layers}
    points = build_graph(model, keep_float(model, bits, untrained), plan, grid, shape)
    calibrate(points, images(64, shape))
    return Simulated(model, points, bits, shape).eval(), points


def network(name: str) -> nn.Module:
    torch.manual_seed(0)
    return settled(STUDENTS[name](classes=CLASSES, image_size=LARGER[1], width=0.25), LARGER)


def passed(model: nn.Module, inputs: Tensor) -> tuple[Tensor, dict[str, list[Tensor]]]:
    """What the model answers, and what every point gives on the way, call by call, flat."""
    found: dict[str, list[Tensor]] = {}

    def note(name: str) -> Callable[..., None]:
        return lambda module, inputs, output: found.setdefault(name, []).append(output.flatten())

    points = [(name, module) for name, module in model.named_modules() if isinstance(module, FixedPoint | ActivationQuantiser)]
    handles = [module.register_forward_hook(note(name.removeprefix("graph."))) for name, module in points]
    with torch.no_grad():
        answer = model(inputs)
    for handle in handles:
        handle.remove()
    return answer, found


def assert_same_answers(model: nn.Module, grid: Grid, shape: Shape = SHAPE) -> None:
    """At every point less than half a step apart, on average: biases of the export are in half precision, and move values at an edge."""
    learner, points = pair(model, grid, shape)
    inputs = images(32, shape, seed=9)
    (trained, in_training), (exported, in_export) = passed(learner, inputs), passed(points, inputs)
    steps = {name: float(module.scale) for name, module in points.named_modules() if isinstance(module, ActivationQuantiser)}
    assert set(in_training) == set(in_export) == set(steps)
    for name, step in steps.items():
        assert len({call.shape for call in (*in_training[name], *in_export[name])}) == 1, name
        assert float((in_training[name][0] - in_export[name][0]).abs().mean()) < 0.5 * step, name
    torch.testing.assert_close(trained, exported, atol=0.02, rtol=0.02)
    with torch.no_grad():
        assert not torch.equal(trained, model(inputs))


@pytest.mark.parametrize("grid", ["uint8_relu", "int8"])
@pytest.mark.parametrize("pattern", NETWORKS, ids=lambda pattern: pattern.name)
def test_a_network_in_training_answers_as_its_export(pattern: Pattern, grid: Grid) -> None:
    torch.manual_seed(0)
    assert_same_answers(settled(pattern.build()), grid)


@pytest.mark.parametrize("name", STUDENTS_TRIED)
def test_a_student_in_training_answers_as_its_export(name: str) -> None:
    assert_same_answers(network(name), "uint8_relu", LARGER)


@pytest.mark.parametrize("by_reciprocal", [False, True])
@pytest.mark.parametrize("signed", [False, True])
def test_a_point_rounds_bit_for_bit_as_the_export_and_passes_gradients_within_its_range(signed: bool, by_reciprocal: bool) -> None:
    point = ActivationQuantiser(signed=signed)
    point.by_reciprocal = by_reciprocal
    point.scale.fill_(0.013)
    values = (torch.randn(4096, generator=torch.Generator().manual_seed(0)) * 3).requires_grad_()
    rounded: Tensor = FixedPoint(point)(values)
    assert torch.equal(rounded, point(values))
    assert torch.equal(FixedPoint(point)(rounded.detach()), rounded)
    rounded.backward(torch.full_like(values, 2.0))
    inside = (values >= point.low * 0.013) & (values <= point.high * 0.013)
    assert values.grad is not None
    assert torch.equal(values.grad, 2.0 * inside)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("scale", [0.0123, 0.01, 1.7e-3, 3.0])
@pytest.mark.parametrize("signed", [False, True])
def test_the_ends_of_a_range_are_in_it_and_the_next_numbers_are_not(dtype: torch.dtype, scale: float, signed: bool) -> None:
    point = ActivationQuantiser(signed=signed)
    point.scale.copy_(torch.tensor(scale).half())
    low, high = (torch.tensor(end * float(point.scale)).to(dtype) for end in (point.low, point.high))
    below, above = torch.nextafter(low, low.new_tensor(-torch.inf)), torch.nextafter(high, high.new_tensor(torch.inf))
    values = torch.stack([below, low, (low + high) / 2, high, above]).requires_grad_()
    FixedPoint(point)(values).sum().backward()
    assert values.grad is not None
    if not signed:  # 0 has no next number that a training meets
        below_is_out = values.grad[0]
        values.grad[0] = 0.0
        assert below_is_out in (0.0, 1.0)
    assert values.grad.tolist() == [0.0, 1.0, 1.0, 1.0, 0.0]


def test_the_layers_are_the_network_s_own_and_all_of_them_learn() -> None:
    model = network("resnet8")
    learner = pair(model, shape=LARGER)[0].train()
    learner(images(8, LARGER)).square().sum().backward()
    assert {id(value) for value in learner.parameters()} == {id(value) for value in model.parameters()}
    assert all(value.grad is not None and value.grad.abs().sum() > 0 for value in model.parameters())
    assert "features" not in vars(model)


@pytest.mark.parametrize("name", STUDENTS_TRIED)
def test_losses_on_regions_find_map_and_classifier(name: str) -> None:
    model = network(name)
    learner, _ = pair(model, shape=LARGER)
    inputs = images(4, LARGER)
    with torch.no_grad():
        whole = region_logits(learner.features(inputs), learner.classifier, (1,))[..., 0]
        assert learner.features(inputs).shape == model.features(inputs).shape  # type: ignore[operator]
        torch.testing.assert_close(whole, learner(inputs), atol=0.05, rtol=0.05)


def training(seen: list[nn.Module]) -> Finetune:
    """Three epochs on tiny images."""

    def finetune(model: nn.Module, penalty: Penalty | None = None) -> nn.Module:
        seen.append(model)
        recipe = TrainConfig(epochs=3.0, batch_size=16, lr=0.02)

        def loss(logits: Tensor, batch: Batch) -> Tensor:
            found = nn.functional.cross_entropy(logits.float(), batch.labels)
            return found if penalty is None else found + penalty(batch.progress)

        return fit(model, view_set(), loss, recipe, CPU, seed=0)

    return finetune


@pytest.mark.parametrize("quantiser", SIMULATED)
def test_an_engine_answers_as_the_simulation_and_has_the_scales_of_the_training(quantiser: str, tmp_path: Path) -> None:
    data = view_set()
    torch.manual_seed(0)
    shape = (1, 8, 8)
    model = STUDENTS["light_cnn"](classes=4, channels=1, image_size=8, width=0.25)
    seen: list[nn.Module] = []
    training([])(model)
    calibration = data.plain(torch.arange(len(data)))
    plan = plan_of(model, shape, bits=4)
    drafted = draft(model, plan, shape, RUNTIME, quantiser)
    compressed, simulation = quantise(model, drafted, quantiser, training(seen), calibration, RUNTIME, SIMULATING)
    assert [type(each) for each in seen] == [Simulated]
    trained = {name: each.scale for name, each in seen[0].named_modules() if isinstance(each, FixedPoint)}
    exported = {f"graph.{name}": float(each.scale) for name, each in simulation.named_modules() if isinstance(each, ActivationQuantiser)}
    assert trained == exported
    with EngineHost(RuntimeConfig(name="openvino"), tmp_path) as host:
        logits, _ = host.predict(compressed.save(tmp_path / "model"), calibration.numpy())
    answers = torch.from_numpy(logits).argmax(1)
    with torch.no_grad():
        agreement = float((answers == simulation(calibration).argmax(1)).float().mean())
    assert agreement >= 0.99
    assert float((answers == data.labels).float().mean()) > 0.8


@pytest.mark.slow
def test_without_int8_layers_or_training_nothing_is_simulated() -> None:
    seen: list[nn.Module] = []

    def finetune(model: nn.Module, penalty: Penalty | None = None) -> nn.Module:
        seen.append(model)
        return model

    model = settled(Residual())
    for quantiser, execution in (("codebook", "float"), ("lsq", "int8")):
        plan = plan_of(model, execution=execution)  # type: ignore[arg-type]
        setting = SIMULATING if quantiser == "codebook" else Setting()
        quantise(model, draft(model, plan, SHAPE, RUNTIME, quantiser), quantiser, finetune, images(8), RUNTIME, setting)
    assert seen == [model, model]
