"""The stages of one candidate: shapes before training, then the very same structure with trained weights."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from core.candidate import Candidate, GroupPlan
from core.compress import CompressedModel, as_stored, calibrate, calibration_indices, check_compressible, draft, prune, quantise, resolve
from core.errors import EngineMismatch, UserError
from core.export import check_rebuilds
from core.layers import count_macs, count_parameters, layer_infos
from core.pack import unpack
from core.quantise.layers import activation_quantisers
from core.runtimes import RUNTIMES
from core.students import STUDENTS
from tests.tiny_nets import CLASSES, SHAPE, Residual, images, plan_of, quantised, settled

RUNTIME = RUNTIMES["onnxruntime"]()
CANDIDATE = Candidate(
    student="resnet8",
    width=0.5,
    groups=(
        GroupPlan(weight_bits=4),
        GroupPlan(weight_bits=16, prune_ratio=0.5),
        GroupPlan(weight_bits=3, execution="float", prune_ratio=0.5),
    ),
    round_to=4,
)


def dense(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return STUDENTS["resnet8"](classes=CLASSES, image_size=8, width=0.5).eval()


def kept(model: nn.Module) -> nn.Module:
    return model


@pytest.fixture(scope="module")
def drafted() -> CompressedModel:
    pruned, plan = resolve(dense(), CANDIDATE, SHAPE, RUNTIME)
    return draft(pruned, plan, SHAPE, RUNTIME)


@pytest.fixture(scope="module")
def finished(drafted: CompressedModel) -> tuple[CompressedModel, nn.Module, nn.Module]:
    """Other weights than those of the draft: (files, graph, the float network)."""
    student = settled(prune(dense(seed=5), CANDIDATE, SHAPE))
    compressed, graph = quantise(student, drafted, "ptq", kept, images(48), RUNTIME)
    return compressed, graph, student


def test_shapes_are_exact_before_any_training_and_do_not_depend_on_the_weights() -> None:
    first, plan = resolve(dense(), CANDIDATE, SHAPE, RUNTIME)
    second, again = resolve(settled(dense(seed=9)), CANDIDATE, SHAPE, RUNTIME)
    assert plan == again
    assert [info.out_channels for info in layer_infos(first, SHAPE)] == [layer.out_channels for layer in plan.layers]
    assert count_parameters(first) == count_parameters(second) < count_parameters(dense())


def test_a_ratio_of_zero_changes_nothing() -> None:
    model = dense()
    copy = prune(model, Candidate(student="resnet8"), SHAPE)
    assert copy is not model
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), copy.state_dict().values(), strict=True))


def test_the_draft_counts_what_is_left_by_pruning(drafted: CompressedModel) -> None:
    pruned, _ = resolve(dense(), CANDIDATE, SHAPE, RUNTIME)
    assert drafted.parameters == count_parameters(pruned)
    assert drafted.macs == count_macs(pruned, SHAPE) < count_macs(dense(), SHAPE)
    check_rebuilds(drafted.model, unpack(drafted.packed))


def test_training_changes_neither_structure_nor_size(
    drafted: CompressedModel, finished: tuple[CompressedModel, nn.Module, nn.Module]
) -> None:
    compressed = finished[0]
    assert compressed.structure == drafted.structure
    assert len(compressed.packed) == len(drafted.packed)
    assert compressed.packed != drafted.packed
    assert compressed.plan == drafted.plan
    assert (compressed.parameters, compressed.macs) == (drafted.parameters, drafted.macs)


def test_the_files_hold_the_trained_weights(finished: tuple[CompressedModel, nn.Module, nn.Module], tmp_path: Path) -> None:
    compressed, graph, _ = finished
    path = compressed.save(tmp_path / "candidate")
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    check_rebuilds(model, unpack((path.parent / "weights.pack").read_bytes()))
    arrays = {initialiser.name: numpy_helper.to_array(initialiser) for initialiser in model.graph.initializer}
    for name, value in graph.state_dict().items():
        if name in arrays:
            assert torch.equal(torch.from_numpy(arrays[name].copy()), value)


def test_the_graph_computes_nearly_what_the_float_network_did(drafted: CompressedModel) -> None:
    candidate = Candidate(student="resnet8", width=0.5, round_to=4)
    student = settled(dense(seed=5))
    with torch.no_grad():
        expected = student(images(16))
    pruned, plan = resolve(dense(), candidate, SHAPE, RUNTIME)
    _, graph = quantise(student, draft(pruned, plan, SHAPE, RUNTIME), "ptq", kept, images(48), RUNTIME)
    with torch.no_grad():
        assert (graph(images(16)) - expected).norm() < 0.1 * expected.norm()


@pytest.mark.parametrize("quantiser", ["ptq", "lsq"])
def test_negative_gains_lose_nothing(drafted: CompressedModel, quantiser: str) -> None:
    """Turned before rounding: the same integers as those of the network whose gains are positive."""
    student, mirrored = (settled(prune(dense(seed=5), CANDIDATE, SHAPE)) for _ in range(2))
    with torch.no_grad():
        for layer, norm in ((mirrored.conv1, mirrored.bn1), (mirrored.layer2[0].conv2, mirrored.layer2[0].bn2)):
            layer.weight.mul_(-1.0)
            norm.weight.mul_(-1.0)
            norm.running_mean.mul_(-1.0)
    first, second = (quantise(model, drafted, quantiser, kept, images(48), RUNTIME)[0] for model in (student, mirrored))
    assert first.packed == second.packed


def test_the_fine_tuning_sees_weights_on_their_grid(drafted: CompressedModel) -> None:
    seen: list[int] = []

    def finetune(model: nn.Module) -> nn.Module:
        weight = model.get_submodule("layer1.0.conv1").weight
        seen.append(max(len(channel.unique()) for channel in weight.detach()))
        return model

    quantise(settled(prune(dense(seed=5), CANDIDATE, SHAPE)), drafted, "lsq", finetune, images(48), RUNTIME)
    assert seen[0] <= 2**4


@pytest.mark.parametrize(("quantiser", "bits"), [("float", 8), ("ptq", 16), ("ptq", 8)])
def test_weights_that_start_at_zero_count_as_trained_ones(quantiser: str, bits: int) -> None:
    """A gain of zero makes them zero too, and zeros fit into half floats."""

    def network(*, trained: bool) -> nn.Module:
        torch.manual_seed(0)
        model = settled(Residual()) if trained else Residual().eval()
        for part in () if trained else (model.norm2, model.project, model.head):
            nn.init.zeros_(part.weight)
        return model

    plan = plan_of(network(trained=False), bits=bits, execution="float")  # type: ignore[arg-type]
    drafted = draft(network(trained=False), as_stored(plan, quantiser), SHAPE, RUNTIME, quantiser)
    compressed, _ = quantise(network(trained=True), drafted, quantiser, kept, images(16), RUNTIME)
    assert len(compressed.packed) == len(drafted.packed)


class Masked(nn.Module):
    """Buffers that are no weights: which places of a map count, and the order of its channels."""

    def __init__(self, mask: torch.Tensor) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, CLASSES)
        self.register_buffer("mask", mask)
        self.register_buffer("order", torch.arange(7, -1, -1, dtype=torch.int32))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.relu(self.stem(x)).index_select(1, self.order)
        y = y * self.mask if self.mask.is_floating_point() or self.mask.dtype == torch.int8 else torch.where(self.mask, y, 0.0)
        return self.head(y.mean((2, 3)))


def test_a_networks_own_masks_and_indices_belong_to_its_graph() -> None:
    model = Masked(torch.tril(torch.ones(8, 8)).bool()).eval()
    plan = plan_of(model)
    compressed, _ = quantise(model, draft(model, plan, SHAPE, RUNTIME), "ptq", kept, images(16), RUNTIME)
    arrays = {one.name: numpy_helper.to_array(one) for one in compressed.model.graph.initializer}
    assert {arrays[name].dtype.name for name in ("mask", "order")} == {"bool", "int32"}
    with pytest.raises(EngineMismatch, match="'mask' differs"):  # before anything trains
        draft(Masked(torch.tril(torch.ones(8, 8, dtype=torch.int8))).eval(), plan, SHAPE, RUNTIME)


def test_an_unknown_quantiser_lists_the_known_ones(drafted: CompressedModel) -> None:
    with pytest.raises(UserError, match="unknown quantiser 'lsqq', did you mean 'lsq'"):
        quantise(settled(prune(dense(), CANDIDATE, SHAPE)), drafted, "lsqq", kept, images(8), RUNTIME)


def test_calibration_does_not_depend_on_the_batch_it_is_done_in() -> None:
    torch.manual_seed(0)
    model = settled(Residual())
    graph = quantised(model, plan_of(model))
    scales = []
    for batch in (16, 48):
        calibrate(graph, images(48), batch=batch)
        scales.append([float(point.scale) for point in activation_quantisers(graph)])
    assert scales[0] == pytest.approx(scales[1], rel=0.03)  # a step of the grid of scales is 2 %


def test_more_images_than_a_sample_holds_are_calibrated_within_bounds() -> None:
    torch.manual_seed(0)
    model = settled(Residual())
    graph = quantised(model, plan_of(model))
    points = activation_quantisers(graph)
    points[0].calibrating = True
    points[0](torch.randn(300_000))
    assert sum(len(sample) for sample in points[0].samples) <= 2 * points[0].SAMPLE


def test_calibration_images_of_a_set_that_is_listed_class_by_class_are_mixed() -> None:
    labels = torch.arange(10).repeat_interleave(450)
    chosen = calibration_indices(len(labels), 512)
    assert sorted(chosen.tolist()) == torch.linspace(0, len(labels) - 1, 512).long().tolist()
    for batch in labels[chosen].split(128):
        assert batch.bincount(minlength=10).min() >= 3


class Norm(nn.BatchNorm2d):
    """What people write to have an eps of their own."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, eps=1e-3)


def test_a_norm_that_keeps_torchs_forward_is_one_and_what_hides_its_weight_is_refused() -> None:
    check_compressible(nn.Sequential(nn.Conv2d(3, 4, 3), Norm(4), nn.Flatten(), nn.Linear(4 * 36, 2)).eval(), (3, 8, 8))
    hooked = nn.Sequential(nn.utils.spectral_norm(nn.Conv2d(3, 4, 3)), nn.Flatten(), nn.Linear(4 * 36, 2)).eval()
    with pytest.raises(UserError, match=r"layers must hold their weight themselves, but that of '0' is made by a hook"):
        check_compressible(hooked, (3, 8, 8))
    kept = nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Conv2d(3, 4, 3)), nn.Flatten(), nn.Linear(4 * 36, 2)).eval()
    check_compressible(kept, (3, 8, 8))
    with pytest.raises(UserError, match=r"must have nn\.Conv2d or nn\.Linear layers to compress, but Sequential calls none"):
        check_compressible(nn.Sequential(nn.Flatten(), nn.ReLU()), (3, 8, 8))
