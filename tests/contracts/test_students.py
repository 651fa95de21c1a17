"""What every entry of STUDENTS promises."""

import subprocess
import sys
from collections.abc import Callable

import numpy as np
import onnxruntime
import pytest
import torch
from torch import fx, nn
from torch.nn import functional as F

from core.errors import UserError
from core.export import check_rebuilds, export_onnx, packed_tensors
from core.layers import count_macs, count_parameters, layer_infos
from core.pack import pack, unpack
from core.prune import prune_channels
from core.students import STUDENTS, deep_resnet, light_cnn, resnet, vgg, wide_resnet
from tests.tiny_nets import images, plan_of, quantised, settled

# mdistiller's own counts (mdistiller/models/cifar at a08d46f): classes -> (parameters, MACs at 3x32x32).
MDISTILLER = {
    "resnet20": {10: (272474, 40813184), 100: (278324, 40818944)},
    "resnet32": {10: (466906, 69124736), 100: (472756, 69130496)},
    "resnet56": {10: (855770, 125747840), 100: (861620, 125753600)},
    "resnet110": {10: (1730714, 253149824), 100: (1736564, 253155584)},
    "resnet8x4": {10: (1210410, 177048064), 100: (1233540, 177071104)},
    "resnet32x4": {10: (7410730, 1083017728), 100: (7433860, 1083040768)},
    "wrn_16_1": {10: (175066, 26657408), 100: (180916, 26663168)},
    "wrn_16_2": {10: (691674, 101106944), 100: (703284, 101118464)},
    "wrn_40_1": {10: (563930, 83280512), 100: (569780, 83286272)},
    "wrn_40_2": {10: (2243546, 327599360), 100: (2255156, 327610880)},
    "vgg8": {10: (3918858, 96146432), 100: (3965028, 96192512)},
    "vgg13": {10: (9416010, 284890112), 100: (9462180, 284936192)},
    "mobilenet_v2": {10: (697546, 6408448), 100: (812836, 6523648)},
    "shufflenet_v1": {10: (862768, 38605056), 100: (949258, 38691456)},
    "shufflenet_v2": {10: (1263278, 44412288), 100: (1355528, 44504448)},
    "resnet18": {10: (11173962, 555422720), 100: (11220132, 555468800)},
    "resnet50": {10: (23520842, 1297829888), 100: (23705252, 1298014208)},
}
# Not among those; the counts that pytorch-cifar (kuangliu) and the like print for 10 classes.
PUBLISHED = {"vgg11": 9231114, "vgg16": 14728266, "resnet34": 21282122}

SHUFFLED = ("shufflenet_v1", "shufflenet_v2")
"""The channels that their blocks exchange stay whole, and their published counts are no multiples of four."""

EXPORTED = {
    "resnet8": (1, 8, 8),
    "resnet18": (3, 16, 16),
    "resnet50": (3, 16, 16),
    "wrn_16_1": (1, 28, 28),
    "vgg8": (3, 8, 8),
    "mobilenet_v2": (1, 16, 16),
    "shufflenet_v1": (3, 16, 16),
    "shufflenet_v2": (1, 8, 8),
    "light_cnn": (3, 32, 32),
    "airbench": (1, 28, 28),
    "hybrid_serial": (1, 28, 28),
    "hybrid_serial_sincos": (3, 16, 16),
    "hybrid_parallel": (3, 32, 32),
}
"""One of each architecture and kind of block, since exporting takes seconds, and the images it is exported for; all are built by
benchmarks/matrix.py."""

SMALLEST = {"mobilenet_v2": 16}
"""Pixels, where 8 are too few."""

every_student = pytest.mark.parametrize("name", STUDENTS)


def narrow(name: str, **arguments: float) -> nn.Module:
    torch.manual_seed(0)
    return STUDENTS[name](**{"classes": 5, "width": 0.5, **arguments})


def weightless(name: str, **arguments: float) -> nn.Module:
    """The same without values: drawing millions of weights takes longer than counting them."""
    with torch.device("meta"):
        return STUDENTS[name](**{"classes": 5, **arguments})


def test_naming_the_students_imports_no_torch() -> None:
    code = "import sys, core.students; raise SystemExit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@every_student
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("image_size", [8, 28, 32])
def test_logits_are_the_classifier_on_the_averaged_features_for_every_image_shape(name: str, channels: int, image_size: int) -> None:
    if image_size < SMALLEST.get(name, 0):
        with pytest.raises(UserError, match=f"{name} needs images of at least {SMALLEST[name]} px, its total stride, but got {image_size}"):
            narrow(name, channels=channels, image_size=image_size)
        return
    model = narrow(name, channels=channels, image_size=image_size, width=0.25).eval()
    assert isinstance(model.classifier, nn.Linear)
    x = images(2, (channels, image_size, image_size))
    with torch.no_grad():
        features, logits = model.features(x), model(x)
        assert features.dim() == 4
        assert logits.shape == (2, 5)
        torch.testing.assert_close(model.classifier(features.mean((2, 3))), logits)


@every_student
def test_images_smaller_than_the_strides_are_refused(name: str) -> None:
    with pytest.raises(UserError, match=r"at least \d+ px"):
        narrow(name, image_size=2)


@every_student
def test_the_smallest_images_that_are_not_refused_work(name: str) -> None:
    for size in range(1, 17):
        try:
            model = narrow(name, image_size=size, width=0.25).eval()
        except UserError:
            continue
        with torch.no_grad():
            assert model(torch.randn(1, 3, size, size)).shape == (1, 5)
        return
    pytest.fail("every size was refused")


@every_student
def test_logits_are_the_mean_of_the_logits_of_equal_regions(name: str) -> None:
    model = narrow(name).eval()
    x = images(2, (3, 32, 32))
    with torch.no_grad():
        regions = F.adaptive_avg_pool2d(model.features(x), 4).flatten(2).transpose(1, 2)
        torch.testing.assert_close(model.classifier(regions).mean(1), model(x))


@every_student
def test_a_symbolic_trace_computes_the_same(name: str) -> None:
    model = narrow(name).eval()
    x = images(1, (3, 32, 32))
    with torch.no_grad():
        torch.testing.assert_close(fx.symbolic_trace(model)(x), model(x))


@every_student
def test_every_convolution_and_linear_layer_runs_as_a_module(name: str) -> None:
    model = weightless(name, width=0.25)
    layers = {layer for layer, module in model.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)}
    assert layers == {info.name for info in layer_infos(model, (3, 32, 32))}


@every_student
def test_width_scales_channels_in_multiples_of_four(name: str) -> None:
    counts = []
    for width in (0.05, 0.25, 0.5, 1.0, 1.5):
        model = weightless(name, width=width)
        assert name in SHUFFLED or all(conv.out_channels % 4 == 0 for conv in model.modules() if isinstance(conv, nn.Conv2d))
        counts.append(count_parameters(model))
    assert counts == sorted(set(counts))


@every_student
def test_initial_weights_depend_on_the_seed_alone(name: str) -> None:
    first, second = narrow(name, width=0.25), narrow(name, width=0.25)
    assert all(torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True))


@every_student
def test_every_batch_norm_starts_at_weight_one(name: str) -> None:
    norms = [module for module in narrow(name, width=0.25).modules() if isinstance(module, nn.BatchNorm2d)]
    assert norms
    assert all(torch.equal(norm.weight, torch.ones_like(norm.weight)) for norm in norms)


@every_student
@pytest.mark.parametrize("bad", [{"width": 0.0}, {"classes": 1}, {"channels": 0}])
def test_sizes_that_make_no_network_are_refused(name: str, bad: dict[str, int]) -> None:
    with pytest.raises(UserError, match="but got"):
        narrow(name, **bad)


@every_student
def test_half_of_the_channels_can_be_pruned(name: str) -> None:
    model = narrow(name).train()
    shape = (3, 32, 32)
    before = layer_infos(model, shape)
    pruned = prune_channels(model, {info.name: 0.5 for info in before}, shape, round_to=4)
    after = {info.name: info for info in layer_infos(pruned, shape)}
    assert [info.name for info in before] == list(after)
    for info in before[:-1]:
        left, halved = after[info.name].out_channels, max(4, int(info.out_channels / 8 + 0.5) * 4)
        assert left <= info.out_channels if name in SHUFFLED else left == halved
    assert after["classifier"].out_channels == 5
    # half of the channels inside of every block is half of a block
    most = 0.6 if name in SHUFFLED else 0.5
    assert count_macs(pruned, shape) < most * count_macs(model, shape)
    assert count_parameters(pruned) < most * count_parameters(model)
    assert type(pruned) is type(model)

    loss = F.cross_entropy(pruned(images(2, shape)), torch.tensor([0, 1]))
    loss.backward()
    assert [p.grad is not None for p in pruned.parameters()] == [p.requires_grad for p in model.parameters()]


@every_student
def test_a_pruned_student_of_small_grey_images_trains_in_bfloat16(name: str) -> None:
    size = SMALLEST.get(name, 8)
    shape = (1, size, size)
    dense = narrow(name, channels=1, image_size=size).train()
    model = prune_channels(dense, {info.name: 0.5 for info in layer_infos(dense, shape)}, shape, round_to=4)
    assert count_parameters(model) < 0.6 * count_parameters(dense)
    one_step(model, shape)


def one_step(model: nn.Module, shape: tuple[int, int, int], dtype: torch.dtype = torch.bfloat16) -> None:
    """Forward in `dtype`, backward and a step: the head has moved and everything is finite."""
    before = model.classifier.weight.detach().clone()
    optimiser = torch.optim.SGD(model.parameters(), lr=0.01)
    with torch.autocast("cpu", dtype=dtype):
        loss = F.cross_entropy(model(images(4, shape)), torch.tensor([0, 1, 2, 3]))
    loss.backward()
    optimiser.step()
    assert torch.isfinite(loss)
    assert all(torch.isfinite(value).all() for value in model.state_dict().values())
    assert not torch.equal(before, model.classifier.weight)


def test_every_architecture_is_exported() -> None:
    architectures = {name: type(weightless(name, width=0.05)) for name in STUDENTS}
    assert {architectures[name] for name in EXPORTED} == set(architectures.values())


@pytest.mark.parametrize("name", EXPORTED)
@pytest.mark.slow
def test_a_pruned_student_quantises_and_its_export_computes_what_the_simulation_does(name: str) -> None:
    shape = EXPORTED[name]
    dense = narrow(name, width=0.25, channels=shape[0], image_size=shape[1])
    ratios = {info.name: 0.3 for info in layer_infos(dense, shape)}
    model = settled(prune_channels(dense, ratios, shape, round_to=4), shape)
    graph = quantised(model, plan_of(model, shape), shape)
    exported = export_onnx(graph, shape)
    check_rebuilds(exported, unpack(pack(packed_tensors(graph))))
    # as the file says, operator by operator: fused kernels round ties their own way
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(exported.SerializeToString(), options)
    x = images(32, shape, seed=9)
    with torch.inference_mode():
        simulated, exact = graph(x).numpy(), model(x).numpy()
    errors = np.abs(session.run(None, {"images": x.numpy()})[0] - simulated)
    assert np.median(errors) < 1e-5 * simulated.std()
    assert np.linalg.norm(errors) < 0.02 * np.linalg.norm(simulated)  # a rounding at a tie here and there, but no wrong class or image
    assert np.linalg.norm(simulated - exact) < 0.3 * np.linalg.norm(exact)


@every_student
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_one_step_in_mixed_precision_changes_the_weights_and_stays_finite(name: str, dtype: torch.dtype) -> None:
    one_step(narrow(name, width=0.25, image_size=16).train(), (3, 16, 16), dtype)


@pytest.mark.parametrize("name", MDISTILLER)
@pytest.mark.parametrize("classes", [10, 100])
def test_published_students_have_the_counts_of_mdistiller(name: str, classes: int) -> None:
    model = weightless(name, classes=classes)
    assert (count_parameters(model), count_macs(model, (3, 32, 32))) == MDISTILLER[name][classes]


@pytest.mark.parametrize("name", PUBLISHED)
def test_students_that_mdistiller_does_not_count_have_their_published_parameters(name: str) -> None:
    assert count_parameters(weightless(name, classes=10)) == PUBLISHED[name]
    assert count_parameters(weightless(name, classes=100)) == PUBLISHED[name] + 90 * (512 + 1)


@pytest.mark.parametrize(
    ("build", "depth"), [(resnet, 9), (wide_resnet, 12), (vgg, 19), (deep_resnet, 101)], ids=["resnet", "wrn", "vgg", "deep"]
)
def test_depths_that_make_no_network_are_refused(build: Callable[..., nn.Module], depth: int) -> None:
    with pytest.raises(UserError, match=f"depth .* must be .* but got {depth}"):
        build(classes=5, depth=depth, **({"factor": 1} if build is wide_resnet else {}))


@pytest.mark.parametrize(("name", "convolutions"), [("resnet8", 9), ("resnet14", 15), ("resnet20", 21), ("resnet44", 45)])
def test_a_resnet_has_its_depth_in_convolutions_and_two_projections(name: str, convolutions: int) -> None:
    kinds = [info.kind for info in layer_infos(STUDENTS[name](classes=10), (3, 32, 32))]
    assert kinds == ["conv"] * convolutions + ["linear"]


def test_light_cnn_has_two_convolutions_per_block_as_configured() -> None:
    infos = layer_infos(light_cnn(classes=3, channels=1, image_size=8, blocks=(8, 12)), (1, 8, 8))
    assert [info.out_channels for info in infos] == [8, 8, 12, 12, 3]
    assert [info.out_hw for info in infos] == [(8, 8), (8, 8), (4, 4), (4, 4), (1, 1)]


def test_light_cnn_without_blocks_is_refused() -> None:
    with pytest.raises(UserError, match="blocks"):
        light_cnn(classes=3, blocks=())
