"""Whatever moves channels between two layers: a cut takes the channels that arrive, or none."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.layers import layer_infos
from core.prune import prune_channels

SHAPE = (3, 8, 8)
CHANNELS = 16


class Between(nn.Module):
    """Two convolutions with `move` between them."""

    def __init__(self, move: Callable[[Tensor], Tensor], arrive: int = CHANNELS, *, flat: bool = False) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, CHANNELS, 3, padding=1, bias=False), nn.BatchNorm2d(CHANNELS), nn.ReLU())
        self.move = move
        self.second = nn.Linear(arrive, 8) if flat else nn.Conv2d(arrive, 8, 1)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.second(self.move(self.first(x))))
        return self.head(out.mean((2, 3)) if out.ndim == 4 else out)


class Gated(nn.Module):
    """Squeeze and excitation by maps of one pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.squeeze, self.excite = nn.Conv2d(CHANNELS, 8, 1), nn.Conv2d(8, CHANNELS, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.excite(F.relu(self.squeeze(x.mean((2, 3), keepdim=True)))))


class Neighbours(nn.Module):
    """Efficient channel attention: a convolution over channels."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Conv1d(1, 1, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.mix(x.mean((2, 3)).unsqueeze(1)).squeeze(1))[:, :, None, None]


class Exchange(nn.Module):
    """Its own half, of as many channels, comes first."""

    def __init__(self) -> None:
        super().__init__()
        self.other, self.join = nn.Conv2d(CHANNELS, CHANNELS, 1), nn.Conv2d(2 * CHANNELS, CHANNELS, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.join(torch.roll(torch.cat([x, self.other(x)], 1), CHANNELS, 1))


class Tokens(nn.Module):
    """A linear layer on pixels: all of them in the batch, or the batch behind them."""

    def __init__(self, *, folded: bool) -> None:
        super().__init__()
        self.folded, self.linear = folded, nn.Linear(CHANNELS, CHANNELS)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(2).transpose(1, 2)
        batch, count, channels = tokens.shape
        if self.folded:
            out = self.linear(tokens.reshape(batch * count, channels)).unflatten(0, (batch, count))
        else:
            out = self.linear(tokens.transpose(0, 1)).transpose(0, 1)
        return out.transpose(1, 2).unflatten(2, x.shape[2:])


class NormOfMaps(nn.LayerNorm):
    """As ConvNeXt has it."""

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x.permute(0, 2, 3, 1), self.normalized_shape, self.weight, self.bias, self.eps).permute(0, 3, 1, 2)


def dealt(x: Tensor) -> Tensor:
    batch, channels, height, width = x.shape
    return x.view(batch, 2, channels // 2, height * width).transpose(1, 2).reshape(batch, channels, height, width)


def padded(x: Tensor) -> Tensor:
    return F.pad(x, (0, 0, 0, 0, 8, 8))


MOVED: dict[str, Callable[[], nn.Module]] = {
    "flip": lambda: Between(lambda x: x.flip(1)),
    "roll": lambda: Between(lambda x: torch.roll(x, 1, 1)),
    "index": lambda: Between(lambda x: x[:, torch.arange(CHANNELS - 1, -1, -1)]),
    "shuffle of flat maps": lambda: Between(dealt),
    "padding": lambda: Between(padded, 2 * CHANNELS),
    "channels-last map, flattened": lambda: Between(lambda x: x.permute(0, 2, 3, 1).flatten(1), 64 * CHANNELS, flat=True),
    "pixel shuffle": lambda: Between(lambda x: F.pixel_shuffle(x, 2), CHANNELS // 4),
    "halves that change places": lambda: Between(Exchange()),
    "repeat": lambda: Between(lambda x: x.repeat(1, 2, 1, 1), 2 * CHANNELS),
    "maximum of halves": lambda: Between(lambda x: x.unflatten(1, (2, -1)).amax(1), CHANNELS // 2),
    "attention of neighbours": lambda: Between(Neighbours()),
}
KEPT: dict[str, Callable[[], nn.Module]] = {
    "nothing": lambda: Between(lambda x: x),
    "map, flattened": lambda: Between(lambda x: x.flatten(1), 64 * CHANNELS, flat=True),
    "twice": lambda: Between(lambda x: torch.cat([x, -x], 1), 2 * CHANNELS),
    "gate": lambda: Between(Gated()),
    "norm over channels": lambda: Between(lambda x: F.normalize(x, dim=1)),
    "batch norm": lambda: Between(nn.BatchNorm2d(CHANNELS)),
    "one slope for all": lambda: Between(nn.PReLU()),
    "tokens in the batch": lambda: Between(Tokens(folded=True)),
    "tokens before the batch": lambda: Between(Tokens(folded=False)),
    "double precision": lambda: Between(lambda x: x).double(),
}


def pruned(model: nn.Module) -> tuple[nn.Module, int, float]:
    """Of a network half of whose first channels are dead: half cut, channels that its first layer then has, how far logits moved."""
    with torch.no_grad():
        for dead in range(0, CHANNELS, 2):
            model.get_submodule("first.0").weight[dead] = 0.0  # type: ignore[index, operator]
            model.get_submodule("first.1").weight[dead] = 0.0  # type: ignore[index, operator]
    cut = prune_channels(model.eval(), {"first.0": 0.5}, SHAPE, round_to=1)
    x = torch.randn(4, *SHAPE).to(next(model.parameters()))
    with torch.no_grad():
        return cut, layer_infos(cut, SHAPE)[0].out_channels, float((cut(x) - model(x)).abs().max())


@pytest.mark.parametrize("name", MOVED)
def test_channels_that_arrive_elsewhere_stay(name: str) -> None:
    torch.manual_seed(0)
    _, channels, moved = pruned(MOVED[name]())
    assert channels == CHANNELS
    assert moved == 0.0


@pytest.mark.parametrize("name", KEPT)
def test_channels_that_arrive_where_they_left_are_cut_and_dead_ones_are_not_missed(name: str) -> None:
    torch.manual_seed(0)
    _, channels, moved = pruned(KEPT[name]())
    assert channels == CHANNELS // 2
    assert moved < 1e-5


@pytest.mark.parametrize("norm", [lambda: NormOfMaps(CHANNELS), lambda: nn.GroupNorm(1, CHANNELS)], ids=["layer norm", "group norm"])
def test_norms_over_channels_are_cut_with_them(norm: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    _, channels, _ = pruned(Between(norm()))
    assert channels == CHANNELS // 2


class Halves(nn.Module):
    """What the second convolution makes is worked on in place, and split: that stays whole. It takes its input by name."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.join = nn.Conv2d(CHANNELS, CHANNELS, 1), nn.Conv2d(CHANNELS // 2, CHANNELS, 1)

    def forward(self, x: Tensor) -> Tensor:
        first, second = F.relu_(self.inner(input=x)).chunk(2, 1)
        return self.join(first * second)


def test_layers_that_are_watched_may_be_worked_on_in_place_and_called_by_name() -> None:
    torch.manual_seed(0)
    _, channels, moved = pruned(Between(Halves()))
    assert channels == CHANNELS // 2
    assert moved < 1e-5


def test_what_stays_whole_depends_on_the_architecture_alone() -> None:
    """A scale per channel that begins with zeros hides what it scales, but not from this."""

    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.zeros(1, CHANNELS, 1, 1))

        def forward(self, x: Tensor) -> Tensor:
            return self.scale * x.flip(1)

    torch.manual_seed(0)
    _, channels, _ = pruned(Between(Scaled()))
    assert channels == CHANNELS
