"""Adapters: nothing changes at first, little trains, and merging leaves the network as it was built."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from core.candidate import DistilPlan
from core.config import Config, DataConfig, LoraConfig, TrainConfig, ViewsConfig
from core.data import load_search_data
from core.distil import distil
from core.errors import UserError
from core.layers import count_parameters
from core.lora import LowRank, adapter_size, adapters, add_adapters, check_rank, merge_adapters
from core.students import STUDENTS
from core.students.own import save_weights
from core.teacher import Teacher, obtain_teacher
from core.teacher_logits import LiveLogits
from core.train import Device, predict
from core.views import ViewedSet, normalisation_of, viewed
from tests.tiny_data import search_data, view_set
from tests.tiny_nets import settled

CPU = Device(torch.device("cpu"), None)
KINDS = [nn.Linear(12, 20), nn.Conv2d(12, 20, 3, padding=1), nn.Conv2d(12, 20, (1, 5), bias=False), nn.Conv2d(12, 20, 1)]


def network(name: str = "resnet8") -> nn.Module:
    torch.manual_seed(0)
    return settled(STUDENTS[name](classes=4, width=1.0, image_size=16), (3, 16, 16))


def images(count: int = 4) -> torch.Tensor:
    return torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def answers(model: nn.Module, data: ViewedSet) -> LiveLogits:
    """Of a teacher that nobody asks: the loss is that of the labels."""
    return LiveLogits(Teacher(model, data.normalise, "0" * 16, 0.0, "nobody"), data, CPU)


def stirred(model: nn.Module) -> nn.Module:
    """As after some training: B is no longer zero."""
    generator = torch.Generator().manual_seed(2)
    for module in model.modules():
        if isinstance(module, LowRank):
            module.b.data = 0.05 * torch.randn(module.b.shape, generator=generator)
    return model


@pytest.mark.parametrize("name", ["resnet8", "mobilenet_v2", "shufflenet_v1"])
def test_an_adapted_network_starts_as_its_base(name: str) -> None:
    base = network(name)
    model = copy.deepcopy(base)
    add_adapters(model, 2, 16.0)
    with torch.no_grad():
        assert torch.equal(model(images()), base(images()))


@pytest.mark.parametrize("name", ["resnet8", "mobilenet_v2", "shufflenet_v1"])
def test_merging_keeps_the_function_and_gives_the_names_and_shapes_of_before_in_their_order(name: str) -> None:
    base = network(name)
    model = copy.deepcopy(base)
    add_adapters(model, 2, 16.0)
    with torch.no_grad():
        adapted = stirred(model)(images())
        merge_adapters(model)
        torch.testing.assert_close(model(images()), adapted, rtol=1e-5, atol=1e-5)
        assert not torch.allclose(adapted, base(images()), atol=1e-3)
    assert [(key, value.shape) for key, value in model.state_dict().items()] == [(k, v.shape) for k, v in base.state_dict().items()]
    assert [type(module) for module in model.modules()] == [type(module) for module in base.modules()]


def test_merging_without_training_gives_the_weights_back_bit_for_bit() -> None:
    base = network()
    model = copy.deepcopy(base)
    with adapters(model, LoraConfig(rank=2), seed=0):
        pass
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), base.state_dict().values(), strict=True))


def test_adapters_begin_as_their_seed_says_whatever_was_drawn_before_and_draw_from_nobody() -> None:
    def drawn(seed: int) -> list[Tensor]:
        torch.rand(3)
        model, state = network(), torch.get_rng_state()
        with adapters(model, LoraConfig(rank=2), seed=seed):
            found = [module.a.detach().clone() for module in model.modules() if isinstance(module, LowRank)]
        assert torch.equal(torch.get_rng_state(), state)
        return found

    first, again, other = drawn(0), drawn(0), drawn(1)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(first, other, strict=True))


@pytest.mark.parametrize("layer", KINDS, ids=str)
def test_an_adapter_adds_a_matrix_of_its_rank(layer: nn.Linear | nn.Conv2d) -> None:
    model = nn.Sequential(copy.deepcopy(layer))
    add_adapters(model, 1, 3.0)
    merge_adapters(stirred(model))
    change = (model[0].weight - layer.weight).detach()
    rows = len(layer.weight) * (layer.weight.shape[2] if layer.weight.ndim == 4 else 1)
    ranks = torch.linalg.matrix_rank(change.reshape(rows, -1), rtol=1e-4)
    assert ranks == (layer.weight.shape[2] if layer.weight.ndim == 4 else 1)


def test_alpha_over_rank_is_the_factor() -> None:
    for alpha in (1.0, 8.0):
        model = nn.Sequential(nn.Linear(6, 5))
        before = model[0].weight.detach().clone()
        add_adapters(model, 2, alpha)
        stirred(model)
        low = next(module for module in model.modules() if isinstance(module, LowRank))
        torch.testing.assert_close(model[0].weight, before + alpha / 2 * low.b @ low.a)


def test_a_convolution_has_the_factors_of_the_reference() -> None:
    """A (r k, c_in k), B (c_out k, r k): loralib's ConvLoRA."""
    low = LowRank(torch.zeros(20, 12, 3, 3), 4, 1.0)
    assert (low.a.shape, low.b.shape) == ((12, 36), (60, 12))
    assert low.a.numel() + low.b.numel() == adapter_size(torch.Size((20, 12, 3, 3)), 4)


def test_only_adapters_batch_norms_and_small_layers_get_gradients_and_they_are_counted() -> None:
    model = network("mobilenet_v2").train()
    whole = count_parameters(model)
    trainable = add_adapters(model, 2, 16.0)
    F.cross_entropy(model(images()), torch.arange(4)).backward()
    moved = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert trainable == sum(parameter.numel() for name, parameter in model.named_parameters() if name in moved)
    assert trainable < 0.25 * whole
    frozen = {name for name in dict(model.named_parameters()) if name not in moved}
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d) and module.groups > 1:
            assert f"{name}.weight" in frozen
        if isinstance(module, nn.BatchNorm2d):
            assert {f"{name}.weight", f"{name}.bias"} <= moved
    assert any(name.endswith("original") for name in frozen)


def test_layers_named_in_full_train_themselves() -> None:
    model = network()
    add_adapters(model, 1, 1.0, full=("classifier",))
    assert model.classifier.weight.requires_grad
    assert "classifier.weight" in dict(model.named_parameters())


@pytest.mark.parametrize(
    ("rank", "alpha", "message"),
    [(0, 1.0, "rank of at least 1"), (4, 0.0, "alpha greater than 0")],
)
def test_ranks_and_factors_that_mean_nothing_are_refused(rank: int, alpha: float, message: str) -> None:
    with pytest.raises(UserError, match=message):
        add_adapters(network(), rank, alpha)


def test_a_rank_that_adapts_nothing_can_be_refused_and_then_all_layers_train_themselves() -> None:
    """A pruned candidate may be as small; it's no reason to end a study."""
    check_rank(network(), 2)
    with pytest.raises(UserError, match=r"smaller than their layers, but 400 .* none of 10"):
        check_rank(network(), 400)
    model = network()
    add_adapters(model, 400, 1.0)
    assert not any(parametrize.is_parametrized(module) for module in model.modules())
    assert model.classifier.weight.requires_grad


def test_distilling_with_adapters_moves_the_weights_by_a_low_rank_and_leaves_a_plain_network() -> None:
    data = view_set()
    torch.manual_seed(0)
    model = STUDENTS["light_cnn"](classes=4, channels=1, image_size=8, width=0.5)
    before = copy.deepcopy(model)
    model.classifier.bias.requires_grad_(False)  # a user may keep a layer frozen
    recipe = TrainConfig(epochs=2.0, batch_size=32, lr=0.05, ema=0.5, lora=LoraConfig(rank=1, alpha=2.0))
    distil(model, DistilPlan(loss="ce"), data, answers(before, data), recipe, CPU, seed=0)
    assert list(model.state_dict()) == list(before.state_dict())
    assert not model.classifier.bias.requires_grad
    assert model.classifier.weight.requires_grad
    change = (model.classifier.weight - before.classifier.weight).detach()
    assert torch.linalg.matrix_rank(change, rtol=1e-4) == 1


def test_a_network_adapted_to_digits_gains_accuracy_with_few_trainable_parameters(tmp_path: Path) -> None:
    """Trained on digits turned by 90 degrees, then adapted to upright ones, frozen but for rank 4."""
    data = load_search_data(DataConfig(name="digits"), tmp_path)
    info = data.info
    normalise = normalisation_of(info)
    torch.manual_seed(0)
    model = STUDENTS["resnet8"](classes=10, channels=1, image_size=8)
    views = ViewsConfig(number=2, flip=False, shift=1)
    turned = viewed(type(data.train)(data.train.images.rot90(1, (2, 3)), data.train.labels), normalise, views, 0, CPU.device)
    upright = viewed(data.train, normalise, views, 0, CPU.device)

    def accuracy() -> float:
        return float((predict(model, data.search.images, normalise, CPU, amp=False).argmax(1) == data.search.labels).float().mean())

    labels_alone, teacher = DistilPlan(loss="ce"), answers(model, turned)
    distil(model, labels_alone, turned, teacher, TrainConfig(epochs=3.0), CPU, seed=0)
    first = accuracy()
    trainable = add_adapters(copy.deepcopy(model), 4, 4.0)
    recipe = TrainConfig(epochs=3.0, lr=0.05, lora=LoraConfig(rank=4, alpha=4.0))
    distil(model, labels_alone, upright, teacher, recipe, CPU, seed=0)
    assert trainable < 0.6 * count_parameters(model)
    assert accuracy() > first + 0.3


def test_given_weights_are_adapted_once_and_kept(tmp_path: Path) -> None:
    data = search_data()
    torch.manual_seed(0)
    save_weights(STUDENTS["light_cnn"](classes=4, channels=1, image_size=8, width=0.25), tmp_path / "w.safetensors")
    recipe = {"epochs": 2.0, "batch_size": 16, "lr": 0.05, "lora": {"rank": 1, "alpha": 4.0}}
    teacher = {"name": "light_cnn", "width": 0.25, "weights": tmp_path / "w.safetensors", "train": recipe}
    settings = Config.model_validate({"teacher": teacher, "views": {"number": 2, "shift": 1}})
    epochs: list[float] = []
    digests = [obtain_teacher(settings, data, CPU, tmp_path, lambda done, *rest: epochs.append(done)).digest for _ in range(2)]
    assert epochs == [1.0, 2.0]
    assert digests[0] == digests[1]
