"""Bits that are learned while a network trains."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.allocate.problem import Free, Problem
from core.allocate.sdq import SPAN, DrawnBits, Levels, learned_bits
from core.config import TrainConfig
from core.quantise.setting import Penalty
from core.train import Batch, Device, fit
from tests.tiny_data import CLASSES as DIGITS
from tests.tiny_data import view_set
from tests.tiny_nets import CLASSES, conv, images

CHOICES = (2, 3, 4, 6, 8)
STEPS = 60


def network() -> nn.Sequential:
    torch.manual_seed(0)
    convs = [nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU()]
    return nn.Sequential(*convs, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, CLASSES))


def problem(model: nn.Sequential, bits: float) -> Problem:
    free = tuple(Free(name, index, model.get_submodule(name).weight.numel(), 8) for index, name in enumerate(("0", "2", "4")))  # type: ignore[arg-type]
    return Problem(free, CHOICES, 4, sum(layer.bytes(bits) for layer in free))


def trained(model: nn.Module, penalty: Penalty | None = None, steps: int = STEPS) -> nn.Module:
    """Plain steps on random images with labels of a rule."""
    optimiser = torch.optim.SGD([parameter for parameter in model.parameters() if parameter.requires_grad], lr=0.05)
    model.train()
    for step in range(steps):
        x = images(8, (3, 8, 8), step)
        loss = nn.functional.cross_entropy(model(x), (x.mean((1, 2, 3)) > 0).long()) + (penalty((step + 1) / steps) if penalty else 0.0)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return model.eval()


@pytest.mark.parametrize("bits", [2.0, 3.0, 4.5, 8.0])
def test_the_budget_is_kept_and_nearly_used(bits: float) -> None:
    model = network()
    asked = problem(model, bits)
    found = learned_bits(model, asked, trained)
    assert asked.keeps(found)
    assert set(found.values()) <= set(CHOICES)
    step = max(layer.bytes(8) - layer.bytes(6) for layer in asked.free)
    assert asked.bytes(found) > asked.budget - step  # type: ignore[operator]


def test_the_weights_stay_in_float_and_have_learned() -> None:
    model = network()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    learned_bits(model, problem(model, 3.0), trained)
    assert sorted(model.state_dict()) == sorted(before)
    assert not torch.equal(model[0].weight, before["0.weight"])
    assert len(model[2].weight.detach().unique()) > 200


def test_the_same_seed_finds_the_same_bits_and_weights() -> None:
    models = [network(), network()]
    found = [learned_bits(model, problem(model, 3.5), trained) for model in models]
    assert found[0] == found[1]
    assert torch.equal(models[0][2].weight, models[1][2].weight)


def test_a_layer_that_rounding_hurts_more_keeps_more_bits() -> None:
    model = network()
    levels = Levels(problem(model, 4.0), [model[at].weight for at in (0, 2, 4)])  # type: ignore[misc]
    levels.noise[2] *= 30.0
    for step in range(10):
        levels.advance((step + 1) / 10)
    found = levels.frozen()
    assert found[2] > found[1]


def test_the_schedule_lowers_the_expected_bytes_to_the_budget_before_the_end() -> None:
    model = network()
    asked = problem(model, 3.0)
    levels = Levels(asked, [model[at].weight for at in (0, 2, 4)])  # type: ignore[misc]
    found = []
    for step in range(20):
        levels.advance((step + 1) / 20)
        found.append(float(levels.expected()))
    assert all(later <= before + 1e-6 for before, later in itertools.pairwise(found))
    assert found[14] <= asked.budget + 1e-3  # type: ignore[operator]


def test_while_training_either_depth_is_drawn_and_otherwise_the_more_probable_one_is_taken() -> None:
    model = network()
    levels = Levels(problem(model, 8.0), [model[at].weight for at in (0, 2, 4)])  # type: ignore[misc]
    levels.log_odds[0] = 0.5
    drawn = DrawnBits(model[0].weight, CHOICES, levels, 0, seed=0)  # type: ignore[arg-type]
    upper, lower = drawn.rounded(model[0].weight, 4), drawn.rounded(model[0].weight, 3)  # type: ignore[arg-type]
    found = [drawn.train()(model[0].weight) for _ in range(40)]
    kinds = [torch.allclose(each, upper) for each in found]
    assert all(kind or torch.allclose(each, lower) for kind, each in zip(kinds, found, strict=True))
    assert 0 < sum(kinds) < len(kinds)
    assert torch.equal(drawn.eval()(model[0].weight), upper)
    levels.log_odds[0] = -0.5
    assert torch.equal(drawn.eval()(model[0].weight), lower)


def test_a_loss_that_wants_the_lower_depth_moves_the_layer_down() -> None:
    model = network()
    levels = Levels(problem(model, 8.0), [model[at].weight for at in (0, 2, 4)])  # type: ignore[misc]
    for step in range(400):
        levels.collect(1, torch.tensor(1.0))
        levels.advance((step + 1) / 10_000)
    assert int(levels.level[1]) < len(CHOICES) - 1
    assert int(levels.level[0]) == len(CHOICES) - 1
    assert float(levels.log_odds.max()) <= SPAN


def test_a_gradient_that_overflows_teaches_nothing_and_is_forgotten() -> None:
    model = network()
    found = []
    for broken in (torch.tensor(0.0), torch.tensor(torch.inf), torch.tensor(-torch.inf), torch.tensor(torch.nan)):
        levels = Levels(problem(model, 8.0), [model[at].weight for at in (0, 2, 4)])  # type: ignore[misc]
        levels.collect(0, broken)
        levels.advance(0.001)
        for step in range(5):
            levels.collect(1, torch.tensor(1.0))
            levels.advance(0.001 * (step + 2))
        found.append(levels.log_odds.clone())
    assert all(torch.equal(each, found[0]) for each in found[1:])
    assert float(found[0][1]) < SPAN


def test_a_finished_training_that_is_read_from_its_checkpoint_has_found_the_same_bits(tmp_path: Path) -> None:
    """Averaged weights bring averaged levels with them; a trial that is interrupted later begins with this."""
    recipe = TrainConfig(epochs=4.0, batch_size=16, lr=0.05, ema=0.98)

    def found() -> dict[str, int]:
        torch.manual_seed(0)
        head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, DIGITS))
        model = nn.Sequential(conv(1, 8), nn.ReLU(), conv(8, 8), nn.ReLU(), conv(8, 8), *head)

        def finetune(network: nn.Module, penalty: Penalty | None = None) -> None:
            def loss_of(logits: Tensor, batch: Batch) -> Tensor:
                return F.cross_entropy(logits, batch.labels) + (penalty(batch.progress) if penalty else 0.0)

            fit(network, view_set(), loss_of, recipe, Device(torch.device("cpu"), None), seed=3, checkpoint=tmp_path / "quantise.part")

        return learned_bits(model, problem(model, 3.5), finetune)

    first = found()
    assert (tmp_path / "quantise.part").exists()
    assert found() == first


def test_a_training_without_steps_keeps_the_budget_too() -> None:
    model = network()
    asked = problem(model, 2.5)
    assert asked.keeps(learned_bits(model, asked, lambda model, penalty=None: model))


def test_where_no_layer_is_free_the_network_trains_all_the_same() -> None:
    calls: list[nn.Module] = []
    model = network()
    assert learned_bits(model, Problem((), CHOICES, 2, 0.0), lambda model, penalty=None: calls.append(model)) == {}
    assert calls == [model]
