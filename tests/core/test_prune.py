"""Laws of channel pruning."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from core.errors import UserError
from core.layers import count_macs, layer_infos
from core.prune import kept, prune_channels
from core.students import STUDENTS, light_cnn

SHAPE = (3, 16, 16)


def channels(model: nn.Module, shape: tuple[int, int, int] = SHAPE) -> dict[str, tuple[int, int]]:
    return {info.name: (info.in_channels, info.out_channels) for info in layer_infos(model, shape)}


def all_at(model: nn.Module, ratio: float, shape: tuple[int, int, int] = SHAPE) -> dict[str, float]:
    return {info.name: ratio for info in layer_infos(model, shape)}


@pytest.fixture
def resnet() -> nn.Module:
    torch.manual_seed(0)
    return STUDENTS["resnet8"](classes=4)


def test_ratio_zero_gives_an_equal_copy_that_shares_nothing(resnet: nn.Module) -> None:
    pruned = prune_channels(resnet, all_at(resnet, 0.0), SHAPE)
    for key, value in resnet.state_dict().items():
        assert torch.equal(pruned.state_dict()[key], value)
        assert pruned.state_dict()[key].data_ptr() != value.data_ptr()


def test_the_dense_model_is_unchanged(resnet: nn.Module) -> None:
    before = {key: value.clone() for key, value in resnet.state_dict().items()}
    prune_channels(resnet, all_at(resnet, 0.5), SHAPE)
    assert all(torch.equal(value, before[key]) for key, value in resnet.state_dict().items())


def test_shapes_do_not_depend_on_the_weights(resnet: nn.Module) -> None:
    ratios = {name: 0.1 * (index % 7) for index, name in enumerate(channels(resnet))}
    expected = channels(prune_channels(resnet, ratios, SHAPE, round_to=4))
    for seed in range(3):
        torch.manual_seed(seed)
        for parameter in resnet.parameters():
            nn.init.normal_(parameter)
        assert channels(prune_channels(resnet, ratios, SHAPE, round_to=4)) == expected


@pytest.mark.parametrize("ratio", [0.1, 0.3, 0.6, 0.9])
@pytest.mark.parametrize("round_to", [1, 4, 8, 16])
def test_channel_counts_are_multiples_of_round_to_and_never_grow(resnet: nn.Module, ratio: float, round_to: int) -> None:
    before, after = channels(resnet), channels(prune_channels(resnet, all_at(resnet, ratio), SHAPE, round_to=round_to))
    for name, (_, out) in after.items():
        if name != "classifier":
            assert out % round_to == 0
            assert round_to <= out <= before[name][1]


@given(st.integers(1, 300), st.floats(0.0, 0.99), st.integers(1, 32))
def test_what_is_kept_is_the_nearest_allowed_count(count: int, ratio: float, step: int) -> None:
    left = kept(count, ratio, step)
    allowed = [count] if count < step else list(range(step, count + 1, step))
    assert left in allowed
    assert abs(left - count * (1 - ratio)) <= min(abs(one - count * (1 - ratio)) for one in allowed) + 1e-6


def test_fewer_channels_than_round_to_stay() -> None:
    model = light_cnn(classes=3, blocks=(8, 24))
    after = channels(prune_channels(model, all_at(model, 0.5), SHAPE, round_to=16))
    assert [out for _, out in after.values()] == [8, 8, 16, 16, 3]


def test_higher_ratios_never_leave_more_macs(resnet: nn.Module) -> None:
    macs = [count_macs(prune_channels(resnet, all_at(resnet, ratio), SHAPE, round_to=4), SHAPE) for ratio in (0.0, 0.2, 0.4, 0.6, 0.8)]
    assert macs == sorted(macs, reverse=True)
    assert macs[-1] < macs[0] / 8


def test_input_and_classes_are_never_pruned(resnet: nn.Module) -> None:
    after = channels(prune_channels(resnet, all_at(resnet, 0.9), SHAPE, round_to=1))
    assert after["conv1"][0] == 3
    assert after["classifier"][1] == 4


def test_a_layer_without_a_ratio_keeps_its_channels(resnet: nn.Module) -> None:
    before, after = channels(resnet), channels(prune_channels(resnet, {"layer2.0.conv1": 0.5}, SHAPE))
    assert after["layer2.0.conv1"] == (16, 16)
    assert after["layer2.0.conv2"] == (16, 32)
    assert {name: after[name] for name in before if not name.startswith("layer2.0.conv")} == {
        name: value for name, value in before.items() if not name.startswith("layer2.0.conv")
    }


def test_coupled_layers_use_the_ratio_of_the_first_to_run(resnet: nn.Module) -> None:
    after = channels(prune_channels(resnet, {"conv1": 0.5, "layer1.0.conv2": 0.0}, SHAPE))
    assert after["conv1"][1] == after["layer1.0.conv2"][1] == 8
    untouched = channels(prune_channels(resnet, {"conv1": 0.0, "layer1.0.conv2": 0.5}, SHAPE))
    assert untouched["conv1"][1] == untouched["layer1.0.conv2"][1] == 16


@pytest.mark.parametrize("importance", ["l1", "l2"])
def test_the_channels_with_the_smallest_trained_weights_go(importance: str) -> None:
    model = light_cnn(classes=3, blocks=(16,)).eval()
    small = [1, 4, 6, 7, 9, 12, 13, 15]
    with torch.no_grad():
        for tensor in (model.body[0].weight[small], model.body[1].weight[small]):
            assert tensor.shape[0] == 8
        model.body[0].weight[small] *= 1e-3
        model.body[3].weight[:, small] *= 1e-3
    pruned = prune_channels(model, {"body.0": 0.5}, SHAPE, importance=importance)
    large = [index for index in range(16) if index not in small]
    assert torch.equal(pruned.body[0].weight, model.body[0].weight[large])
    assert torch.equal(pruned.body[3].weight, model.body[3].weight[:, large])
    assert torch.equal(pruned.body[1].running_var, model.body[1].running_var[large])


@pytest.mark.parametrize("name", ["resnet8", "light_cnn", "airbench"])
def test_removing_channels_that_compute_nothing_changes_no_logit(name: str) -> None:
    torch.manual_seed(0)
    model = STUDENTS[name](classes=4, width=0.5).eval()
    dead = dead_half(model)
    pruned = prune_channels(model, {dead: 0.5}, (3, 32, 32), round_to=4)
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert channels(pruned, (3, 32, 32))[dead][1] < channels(model, (3, 32, 32))[dead][1]
        torch.testing.assert_close(pruned(images), model(images))


def dead_half(model: nn.Module) -> str:
    """Silence every other channel of the second-last convolution, which no residual couples; its name."""
    names = {"CifarResNet": ("layer3.0.conv1", "layer3.0.bn1"), "LightCNN": ("body.14", "body.15"), "Airbench": ("body.16", "body.18")}
    conv, norm = names[type(model).__name__]
    with torch.no_grad():
        for tensor in (model.get_submodule(conv).weight, model.get_submodule(norm).weight, model.get_submodule(norm).bias):
            tensor[::2] = 0.0
    return conv


@pytest.mark.parametrize("training", [True, False])
def test_the_mode_of_every_module_is_kept(resnet: nn.Module, training: bool) -> None:
    resnet.train(training)
    resnet.bn1.train(not training)
    pruned = prune_channels(resnet, all_at(resnet, 0.5), SHAPE)
    assert [module.training for module in pruned.modules()] == [module.training for module in resnet.modules()]


def test_frozen_parameters_can_be_pruned_and_stay_frozen(resnet: nn.Module) -> None:
    resnet.requires_grad_(False)
    resnet.classifier.requires_grad_(True)
    with torch.no_grad():
        pruned = prune_channels(resnet, all_at(resnet, 0.5), SHAPE)
    assert {name for name, parameter in pruned.named_parameters() if parameter.requires_grad} == {"classifier.weight", "classifier.bias"}


def test_pruning_prints_nothing(resnet: nn.Module, capfd: pytest.CaptureFixture[str]) -> None:
    prune_channels(resnet, all_at(resnet, 0.5), SHAPE)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("ratios", "arguments", "message"),
    [
        ({"layer1.0.conv3": 0.5}, {}, "did you mean 'layer1.0.conv"),
        ({"conv1": 1.0}, {}, r"\[0, 1\), but got 1.0 for conv1"),
        ({"conv1": -0.1}, {}, r"\[0, 1\)"),
        ({"conv1": float("nan")}, {}, r"\[0, 1\)"),
        ({"conv1": 0.5}, {"round_to": 0}, "round_to"),
        ({"conv1": 0.5}, {"importance": "l3"}, "unknown importance 'l3'"),
    ],
)
def test_what_cannot_be_meant_is_refused(resnet: nn.Module, ratios: dict[str, float], arguments: dict[str, int], message: str) -> None:
    with pytest.raises(UserError, match=message):
        prune_channels(resnet, ratios, SHAPE, **arguments)
