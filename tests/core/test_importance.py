"""What ranks channels: each criterion removes what it says, and none of them changes how many go."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from core.errors import UserError
from core.importance import RANKS, taylor_scores
from core.layers import count_macs, count_parameters, layer_infos
from core.prune import prune_channels
from core.prune_global import MOST, global_ratios, shares_of_weakest
from core.students import STUDENTS
from tests.tiny_nets import CLASSES, Residual, images, settled

SHAPE = (3, 16, 16)
CRITERIA = pytest.mark.parametrize("importance", RANKS)


def batches(count: int = 2) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [(images(8, SHAPE, seed), torch.randint(CLASSES, (8,), generator=generator)) for seed in range(count)]


def chain(normed: bool = True) -> nn.Sequential:
    torch.manual_seed(0)
    norm: Callable[[int], nn.Module] = nn.BatchNorm2d if normed else lambda channels: nn.Identity()
    layers = [nn.Conv2d(3, 8, 3, padding=1), norm(8), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), norm(8), nn.ReLU()]
    return settled(nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, CLASSES)), SHAPE)  # type: ignore[return-value]


def half(model: nn.Module, importance: str, **more: object) -> nn.Module:
    return prune_channels(model, {info.name: 0.5 for info in layer_infos(model, SHAPE)}, SHAPE, round_to=2, importance=importance, **more)  # type: ignore[arg-type]


def kept_of(model: nn.Sequential, pruned: nn.Module) -> list[int]:
    """Which output channels of the first layer are left, by their biases."""
    left = pruned.get_submodule("0").bias.tolist()  # type: ignore[union-attr]
    return [index for index, bias in enumerate(model[0].bias.tolist()) if bias in left]


@CRITERIA
@pytest.mark.parametrize("student", ["resnet8", "mobilenet_v2", "shufflenet_v1", "hybrid_parallel"])
def test_the_criterion_does_not_decide_how_many_channels_go(importance: str, student: str) -> None:
    torch.manual_seed(0)
    model = STUDENTS[student](classes=CLASSES, image_size=16, width=0.25)
    expected = [info.out_channels for info in layer_infos(half(model, "l2"), SHAPE)]
    scores = taylor_scores(model, batches(1)) if importance == "taylor" else None
    pruned = half(model, importance, scores=scores)
    assert [info.out_channels for info in layer_infos(pruned, SHAPE)] == expected
    assert count_parameters(pruned) < count_parameters(model)
    assert count_macs(pruned, SHAPE) < count_macs(model, SHAPE)


def test_bn_scale_keeps_the_channels_with_the_largest_scales() -> None:
    model = chain()
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([0.1, 2.0, 0.2, -3.0, 0.3, 1.0, 0.4, 1.5]))
    assert kept_of(model, half(model, "bn_scale")) == [1, 3, 5, 7]


def test_without_a_batch_norm_bn_scale_is_l2() -> None:
    model = chain(normed=False)
    assert kept_of(model, half(model, "bn_scale")) == kept_of(model, half(model, "l2"))


def test_l1_and_l2_differ_where_one_channel_has_few_large_weights() -> None:
    model = chain(normed=False)
    with torch.no_grad():
        model[3].weight.zero_()
        for channel in range(8):
            model[0].weight[channel].fill_(0.2)
        model[0].weight[0].zero_()[0, 0, 0] = 3.0  # |w| sums to 3.0 against 5.4, w^2 to 9 against 1.08
    assert 0 not in kept_of(model, half(model, "l1"))
    assert 0 in kept_of(model, half(model, "l2"))


def test_taylor_removes_what_the_loss_does_not_feel_however_large_its_weights() -> None:
    model = chain(normed=False)
    with torch.no_grad():
        model[0].weight[2].mul_(50.0)
        model[3].weight[:, 2] = 0.0
    pruned = half(model, "taylor", scores=taylor_scores(model, batches()))
    assert 2 not in kept_of(model, pruned)
    assert 2 in kept_of(model, half(model, "l1"))


def test_taking_scores_leaves_weights_modes_and_gradients_as_they_were() -> None:
    model = chain().train()
    model[0].bias.requires_grad_(False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    scores = taylor_scores(model, batches())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert model.training
    assert not model[0].bias.requires_grad
    assert model[3].weight.requires_grad
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(bool((score >= 0).all()) for score in scores.values())


def test_pruning_by_scores_leaves_the_weights_that_remain() -> None:
    model = chain()
    pruned = half(model, "taylor", scores=taylor_scores(model, batches()))
    kept = kept_of(model, pruned)
    assert torch.equal(pruned.get_submodule("0").weight, model[0].weight[kept])  # type: ignore[arg-type]


def test_images_without_labels_are_scored_by_the_network_s_own_answers() -> None:
    model = chain()
    parts = [(images(8, SHAPE, 0), torch.full((8,), -1))]
    own = [(parts[0][0], model(parts[0][0]).argmax(1))]
    assert all(torch.equal(a, b) for a, b in zip(taylor_scores(model, parts).values(), taylor_scores(model, own).values(), strict=True))


@CRITERIA
def test_a_global_ratio_is_a_share_of_all_channels_that_may_go(importance: str) -> None:
    model = settled(Residual(), SHAPE)
    scores = taylor_scores(model, batches()) if importance == "taylor" else None
    found = global_ratios(model, 0.5, SHAPE, importance=importance, scores=scores)
    channels = {info.name: info.out_channels for info in layer_infos(model, SHAPE)}
    removed = sum(channels[name] * ratio for name, ratio in found.items())
    assert removed == pytest.approx(0.5 * sum(channels[name] for name in found), abs=1.0)
    assert "head" not in found  # the outputs stay
    assert all(0.0 <= ratio <= MOST for ratio in found.values())


def test_a_global_ranking_takes_more_of_the_layer_whose_channels_matter_less() -> None:
    model = chain(normed=False)
    with torch.no_grad():  # both layers alike, but half of the second's channels are close to nothing
        model[3].weight[:4].mul_(1e-3)
        model[8].weight[:, :4].mul_(1e-3)
    found = global_ratios(model, 0.25, SHAPE)
    assert found["3"] > found["0"]


def test_a_global_ratio_of_zero_removes_nothing() -> None:
    assert not any(global_ratios(chain(), 0.0, SHAPE).values())


@pytest.mark.parametrize("ratio", [0.1, 0.5])
@pytest.mark.parametrize("value", [0.0, 0.3, 1.0])
def test_channels_of_equal_score_go_evenly_from_all_layers(ratio: float, value: float) -> None:
    model = STUDENTS["resnet8"](classes=CLASSES)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.fill_(value)
    found = global_ratios(model, ratio, SHAPE, importance="bn_scale")
    channels = {info.name: info.out_channels for info in layer_infos(model, SHAPE)}
    assert len(found) > 4
    assert all(abs(share - ratio) <= 0.5 / channels[name] for name, share in found.items())
    assert sum(share * channels[name] for name, share in found.items()) == pytest.approx(ratio * sum(map(channels.get, found)), abs=0.5)


def test_ties_go_after_what_is_weaker_and_before_what_is_stronger() -> None:
    weaker, equal = torch.tensor([1.0, 0.0, 1.0, 0.0]).double(), torch.ones(8).double()
    assert shares_of_weakest([equal, weaker], 2 / 12) == [0.0, 0.5]
    assert shares_of_weakest([equal, weaker], 6 / 12) == [0.5, 0.5]
    assert shares_of_weakest([equal, weaker], 8 / 12) == [0.625, 0.75]
    assert shares_of_weakest([equal, 3 * weaker], 10 / 12) == [1.0, 0.5]


def test_taylor_without_scores_is_refused_unless_only_shapes_are_asked_for() -> None:
    model = chain()
    for scores in ({}, {"scores": {}}):
        with pytest.raises(UserError, match="ranks by scores, but got none"):
            half(model, "taylor", **scores)
        with pytest.raises(UserError, match="ranks by scores, but got none"):
            global_ratios(model, 0.5, SHAPE, importance="taylor", **scores)  # type: ignore[arg-type]
    assert global_ratios(model, 0.5, SHAPE, importance="taylor", scores=None)
    shapes = [layer_infos(half(model, name, scores=None), SHAPE) for name in RANKS]
    assert all(shape == shapes[0] for shape in shapes)
