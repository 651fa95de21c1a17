"""Bits that are learned: each layer rounds at random to one of two adjacent depths, and drifts down until the budget is kept.

After Huang et al. 2022, SDQ: Stochastic Differentiable Quantization with Mixed Precision, arXiv 2206.04459, of which no code is published:
what follows is ours where the paper's text leaves it open. A layer has depth b with probability beta, else the next lower choice; beta
learns from the gradient of a relaxed draw; below a threshold the layer moves down one choice. Pressure downwards is weighted against
the rounding error of the lower depth. Ours: the pressure follows a schedule, so that the budget is reached however short the
training is; the paper's bin regularisation is left out. The candidate's quantiser trains afterwards with the bits as they are then.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from core.allocate.haq import clamped
from core.allocate.problem import Problem
from core.quantise.integer import best_scales, limits, per_channel
from core.quantise.lsq import RoundToStep
from core.quantise.setting import Finetune, plain_layer, weight_of

SPAN = 2.0
"""Log-odds of beta where a layer begins at a depth; at minus that it moves down."""
SETTLED = 0.7
"""Share of the steps after which the budget is kept."""
LEARNING = 0.02
"""Usual change of the log-odds in one step by the task's gradient."""
PRESS = 0.01
"""Of one push by the schedule, where it pushes most."""
TEMPERATURE = 1.0


def learned_bits(model: nn.Module, problem: Problem, finetune: Finetune, seed: int = 0) -> dict[str, int]:
    """Train `model` in place by one call of `finetune`, with drawn bits; the bits of every free layer, within the budget.

    Layers that are not free train in float. The weights stay latent: in float, as trained.
    """
    assert problem.budget is not None
    names = [layer.name for layer in problem.free]
    if not names:
        finetune(model)
        return {}
    levels = Levels(problem, [weight_of(model, name) for name in names])
    for index, name in enumerate(names):
        layer = plain_layer(model, name)
        parametrize.register_parametrization(layer, "weight", DrawnBits(weight_of(model, name), problem.choices, levels, index, seed))
    finetune(model, levels.advance)
    for name in names:
        parametrize.remove_parametrizations(model.get_submodule(name), "weight", leave_parametrized=False)
    return clamped(problem, dict(zip(names, levels.frozen(), strict=True)))  # a training without steps has not come down to the budget


class Levels(nn.Module):
    """Where each of L layers is: the index of its upper choice, and the log-odds of taking that rather than the one below."""

    sizes: Tensor
    noise: Tensor
    level: Tensor
    log_odds: Tensor
    slope: Tensor
    found: Tensor

    def __init__(self, problem: Problem, weights: Sequence[Tensor]) -> None:
        super().__init__()
        assert problem.budget is not None
        self.choices, self.budget = problem.choices, problem.budget
        sizes = torch.tensor([[layer.bytes(bits) for bits in problem.choices] for layer in problem.free], dtype=torch.float64)
        self.register_buffer("sizes", sizes, persistent=False)
        self.register_buffer("noise", torch.stack([_relative_noise(weight, problem.choices) for weight in weights]), persistent=False)
        self.latest: tuple[Tensor, Tensor] | None = None
        """Level and log-odds after the last step: averaged weights (`ema`) bring averaged buffers with them."""
        count = len(weights)
        self.register_buffer("level", torch.full((count,), len(self.choices) - 1))
        self.register_buffer("log_odds", torch.full((count,), SPAN, dtype=torch.float64))
        self.register_buffer("slope", torch.zeros(count, dtype=torch.float64))
        self.register_buffer("found", torch.zeros(count, dtype=torch.float64))
        self.press(0.0)

    def get_extra_state(self) -> tuple[Tensor, Tensor] | None:
        """`latest`, for a checkpoint."""
        return self.latest

    def set_extra_state(self, state: tuple[Tensor, Tensor] | None) -> None:
        """Take `latest` from a checkpoint. Averaged weights have none: their copy of this makes no steps."""
        self.latest = state or self.latest

    def collect(self, index: int, slope: Tensor) -> None:
        """Note the gradient of the loss with respect to one layer's log-odds."""
        self.found[index] += slope.detach().to(self.found)

    def advance(self, progress: float) -> Tensor:
        """Called once a step, as a penalty that is zero: learn from the gradients of the step before, then keep to the schedule.

        `progress` in (0, 1] is the share of the steps up to this one.
        """
        self.slope.mul_(0.9).add_(0.1 * self.found.nan_to_num(0.0, 0.0, 0.0))  # of a step that overflowed in float16 nothing is learned
        self.found.zero_()
        scale = self.slope.square().mean().sqrt()
        if scale > 0:
            self.log_odds.sub_(LEARNING * self.slope / scale).clamp_(max=SPAN)
            self.move()
        self.press(progress)
        self.latest = (self.level.cpu().clone(), self.log_odds.cpu().clone())
        return torch.zeros(())

    def press(self, progress: float) -> None:
        """Lower the log-odds, where rounding costs least the most, until the expected bytes keep to the schedule."""
        top = float(self.sizes[:, -1].sum())
        share = min(1.0, progress / SETTLED)
        target = top + (self.budget - top) * share if top > self.budget else top
        while float(self.expected()) > target + 1e-6:
            ease = 1.0 / self.noise.gather(1, self.below()[:, None]).squeeze(1).double().clamp_min(1e-12)
            ease = torch.where(self.level > 0, ease, 0.0)
            self.log_odds.sub_(PRESS * ease / ease.max())
            self.move()

    def move(self) -> None:
        """Layers whose upper choice has become improbable go down by one; there is nothing below the lowest."""
        down = (self.log_odds < -SPAN) & (self.level > 0)
        self.level.sub_(down.long())
        self.log_odds.copy_(torch.where(down, SPAN, self.log_odds))

    def below(self) -> Tensor:
        """Index of each layer's lower choice; its own where it is at the lowest."""
        return (self.level - 1).clamp_min(0)

    def expected(self) -> Tensor:
        """Mean bytes of all layers under the draw."""
        upper, lower = (self.sizes.gather(1, at[:, None]).squeeze(1) for at in (self.level, self.below()))
        return (lower + torch.sigmoid(self.log_odds) * (upper - lower)).sum()

    def frozen(self) -> list[int]:
        """Bits of every layer: from the lower choices up, the most probable first, what the budget allows."""
        level, log_odds = self.latest or (self.level.cpu(), self.log_odds.cpu())
        sizes, chosen = self.sizes.cpu(), (level - 1).clamp_min(0)
        for index in torch.argsort(log_odds, descending=True, stable=True).tolist():
            raised = chosen.clone()
            raised[index] = level[index]
            if float(sizes.gather(1, raised[:, None]).sum()) <= self.budget:
                chosen = raised
        return [self.choices[index] for index in chosen.tolist()]


class DrawnBits(nn.Module):
    """Parametrisation of a weight (out, ...): while training one of two roundings is drawn, else the more probable one is taken.

    Gradients pass straight through the rounding; the draw has the gradient of its relaxation (Gumbel-softmax of two).
    """

    scales: Tensor
    calls: Tensor

    def __init__(self, weight: Tensor, choices: Sequence[int], levels: Levels, index: int, seed: int) -> None:
        super().__init__()
        self.choices, self.levels, self.index, self.seed = tuple(choices), levels, index, seed
        self.register_buffer("scales", torch.stack([best_scales(weight, bits) for bits in choices]))
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def forward(self, weight: Tensor) -> Tensor:
        """float32 (out, ...) -> the same shape, on a grid."""
        upper, lower = int(self.levels.level[self.index]), int(self.levels.below()[self.index])
        log_odds = self.levels.log_odds[self.index].detach().to(weight)
        if not self.training or upper == lower:
            return self.rounded(weight, upper if float(log_odds) >= 0 or upper == lower else lower)
        log_odds = log_odds.requires_grad_()
        log_odds.register_hook(lambda slope: self.levels.collect(self.index, slope))
        soft = torch.sigmoid((log_odds + self.noise().to(weight)) / TEMPERATURE)
        drawn = (soft > 0.5).to(soft) + soft - soft.detach()
        return drawn * self.rounded(weight, upper) + (1.0 - drawn) * self.rounded(weight, lower)

    def rounded(self, weight: Tensor, choice: int) -> Tensor:
        """The weight on the grid of the `choice`-th depth."""
        low, high = limits(self.choices[choice])
        on_grid: Tensor = RoundToStep.apply(weight, self.scales[choice], low, high)
        return on_grid

    def noise(self) -> Tensor:
        """Logistic, a function of seed, layer and call: a training that goes on from a checkpoint draws the same."""
        source = torch.Generator().manual_seed((self.seed * 1009 + self.index) * 1_000_003 + int(self.calls))
        self.calls += 1
        share = torch.rand((), generator=source).clamp(1e-6, 1 - 1e-6)
        return torch.logit(share)


def _relative_noise(weight: Tensor, choices: Sequence[int]) -> Tensor:
    """(choices,): squared rounding error over squared weights, at each depth."""
    weight = weight.detach().float()
    errors = []
    for bits in choices:
        scales = per_channel(best_scales(weight, bits), weight)
        errors.append((torch.round(weight / scales).clamp(*limits(bits)) * scales - weight).square().sum())
    return torch.stack(errors).cpu() / weight.square().sum().clamp_min(1e-30).cpu()
