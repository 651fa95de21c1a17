"""Channel pruning of networks as users write them: every kind of coupling, and what has to stay whole."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from core.errors import TrialError
from core.layers import count_macs, layer_infos
from core.prune import prune_channels
from core.prune_global import global_ratios

SHAPE = (3, 16, 16)


def channels(model: nn.Module) -> dict[str, tuple[int, int]]:
    return {info.name: (info.in_channels, info.out_channels) for info in layer_infos(model, SHAPE)}


def all_at(model: nn.Module, ratio: float) -> dict[str, float]:
    return {info.name: ratio for info in layer_infos(model, SHAPE)}


def trainable(model: nn.Module) -> None:
    """One step forward and back; a wrong shape anywhere would raise."""
    F.cross_entropy(model.train()(torch.randn(2, *SHAPE)), torch.tensor([0, 1])).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def conv(inputs: int, outputs: int, groups: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1, groups=groups), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))


class Own(nn.Module):
    """A network as users write them: `body(x)` then a mean and a linear head."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.head = nn.Linear(features, 4)

    def body(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.body(x).mean((2, 3)))
        return out


class Depthwise(Own):
    """An inverted residual."""

    def __init__(self) -> None:
        super().__init__(16)
        self.stem, self.expand, self.spatial, self.project = conv(3, 16), conv(16, 32), conv(32, 32, groups=32), conv(32, 16)

    def body(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return x + self.project(self.spatial(self.expand(x)))


class Grouped(Own):
    """Grouped convolution and GroupNorm."""

    def __init__(self) -> None:
        super().__init__(32)
        self.stem, self.grouped, self.norm = conv(3, 32), conv(32, 32, groups=4), nn.GroupNorm(8, 32)

    def body(self, x: Tensor) -> Tensor:
        out: Tensor = self.norm(self.grouped(self.stem(x)))
        return out


class Dense(Own):
    """Concatenation, with the image itself too, then a depthwise layer over everything."""

    def __init__(self) -> None:
        super().__init__(35)
        self.left, self.right, self.spatial = conv(3, 16), conv(19, 16), conv(35, 35, groups=35)

    def body(self, x: Tensor) -> Tensor:
        x = torch.cat([x, self.left(x)], 1)
        x = torch.cat([x, self.right(x)], 1)
        out: Tensor = self.spatial(x)
        return out


class Inception(Own):
    """Two branches are concatenated and added to what they came from, so its halves belong to different layers."""

    def __init__(self) -> None:
        super().__init__(32)
        self.stem, self.left, self.right = conv(3, 32), conv(32, 16), conv(32, 16)

    def body(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return x + torch.cat([self.left(x), self.right(x)], 1)


class Shuffle(Own):
    """ShuffleNet's unit: halves, of which one is transformed, and a channel shuffle over both."""

    def __init__(self) -> None:
        super().__init__(32)
        self.stem, self.inner, self.right = conv(3, 32), conv(16, 32), conv(32, 16)

    def body(self, x: Tensor) -> Tensor:
        left, right = self.stem(x).chunk(2, 1)
        x = torch.cat([left, self.right(self.inner(right))], 1)
        batch, count, height, width = x.shape
        return x.view(batch, 2, count // 2, height, width).transpose(1, 2).reshape(batch, count, height, width)


class AddedInput(Own):
    """The image is added to a convolution, which therefore cannot shrink."""

    def __init__(self) -> None:
        super().__init__(16)
        self.first, self.second = conv(3, 3), conv(3, 16)

    def body(self, x: Tensor) -> Tensor:
        out: Tensor = self.second(x + self.first(x))
        return out


class Flat(nn.Module):
    """Flattened feature maps, a hidden linear layer, and a softmax at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(conv(3, 16), nn.MaxPool2d(4))
        self.hidden, self.head = nn.Linear(16 * 16, 32), nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.flatten(self.features(x), 1)
        return F.log_softmax(self.head(F.relu(self.hidden(x))), 1)


class Squeeze(Own):
    """Squeeze-and-excitation, and a 1x1 convolution as classifier."""

    def __init__(self) -> None:
        super().__init__(16)
        self.stem, self.down, self.up = conv(3, 16), nn.Conv2d(16, 8, 1), nn.Conv2d(8, 16, 1)
        self.head = nn.Conv2d(16, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x * torch.sigmoid(self.up(F.relu(self.down(x.mean((2, 3), keepdim=True)))))
        return torch.flatten(self.head(F.adaptive_avg_pool2d(x, 1)), 1)


@pytest.mark.parametrize("build", [Depthwise, Grouped, Dense, Inception, Shuffle, AddedInput, Flat, Squeeze])
def test_networks_of_the_users_own_shrink_and_still_train(build: type[nn.Module]) -> None:
    shapes = []
    for seed in range(2):
        torch.manual_seed(seed)
        model = build()
        pruned = prune_channels(model, all_at(model, 0.5), SHAPE, round_to=4)
        assert count_macs(pruned, SHAPE) < 0.8 * count_macs(model, SHAPE)
        assert channels(pruned)["head"][1] == 4
        trainable(pruned)
        shapes.append(channels(pruned))
    assert shapes[0] == shapes[1]


def test_a_depthwise_layer_shrinks_with_the_layer_before_it() -> None:
    model = Depthwise()
    pruned = prune_channels(model, {"expand.0": 0.5}, SHAPE)
    assert channels(pruned)["expand.0"] == (16, 16)
    assert (pruned.spatial[0].in_channels, pruned.spatial[0].out_channels, pruned.spatial[0].groups) == (16, 16, 16)


def test_what_the_image_is_added_to_keeps_its_channels() -> None:
    model = AddedInput()
    assert channels(prune_channels(model, all_at(model, 0.9), SHAPE, round_to=1))["first.0"] == (3, 3)


def test_layers_behind_a_split_or_a_channel_shuffle_stay_whole() -> None:
    model = Shuffle()
    after = channels(prune_channels(model, all_at(model, 0.5), SHAPE))
    assert {name: out for name, (_, out) in after.items()} == {"stem.0": 32, "inner.0": 16, "right.0": 16, "head": 4}


def test_halves_that_belong_to_different_layers_shrink_alike() -> None:
    model = Inception()
    after = channels(prune_channels(model, {"stem.0": 0.5}, SHAPE, round_to=4))
    assert (after["stem.0"][1], after["left.0"][1], after["right.0"][1]) == (16, 8, 8)


def silence(model: nn.Module, name: str, dead: list[int]) -> None:
    """Make channels of `name` (conv, norm) compute exactly 0, and rank last."""
    with torch.no_grad():
        for parameter in model.get_submodule(name).parameters():
            parameter[dead] = 0.0


@pytest.mark.parametrize(
    ("build", "layer", "dead"),
    [
        (Dense, "left", [0, 3, 5, 6, 8, 9, 12, 15]),
        (Dense, "right", [1, 2, 4, 7, 8, 11, 13, 14]),
        (Flat, "features.0", [0, 1, 5, 6, 8, 10, 12, 15]),
        (Inception, "stem", [16, 17, 20, 21, 25, 26, 30, 31, 0, 1, 4, 5, 9, 10, 14, 15]),
        (Shuffle, "inner", list(range(1, 32, 2))),
        (Depthwise, "expand", list(range(0, 32, 2))),
        (Grouped, "stem", [block * 8 + slot for block in range(4) for slot in (1, 2, 4, 7)]),
    ],
)
def test_the_layers_after_keep_the_weights_of_the_channels_that_stayed(build: type[nn.Module], layer: str, dead: list[int]) -> None:
    torch.manual_seed(0)
    model = build().eval()
    silence(model, layer, dead)
    if build is Depthwise:
        silence(model, "spatial", dead)
    if build is Dense:
        offset = 3 if layer == "left" else 19
        silence(model, "spatial", [offset + index for index in dead])
    if build is Inception:
        silence(model, "left", [index for index in dead if index < 16])
        silence(model, "right", [index - 16 for index in dead if index >= 16])
    pruned = prune_channels(model, {f"{layer}.0": 0.5}, SHAPE, round_to=4)
    images = torch.randn(2, *SHAPE)
    with torch.no_grad():
        assert channels(pruned)[f"{layer}.0"][1] == channels(model)[f"{layer}.0"][1] // 2
        torch.testing.assert_close(pruned(images), model(images))


class Multiplied(Own):
    """A grouped convolution with one channel per group at one end: several outputs of each input, or one output of several inputs."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(16)
        self.stem, self.spatial, self.last = conv(3, inputs), conv(inputs, outputs, groups=min(inputs, outputs)), conv(outputs, 16)

    def body(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(self.spatial(self.stem(x)))
        return out


@pytest.mark.parametrize("importance", ["l2", "bn_scale"])
@pytest.mark.parametrize(("inputs", "outputs"), [(8, 16), (16, 8)])
def test_what_a_channel_multiplier_reads_and_makes_stays_whole(inputs: int, outputs: int, importance: str) -> None:
    torch.manual_seed(0)
    model = Multiplied(inputs, outputs)
    pruned = prune_channels(model, all_at(model, 0.5), SHAPE, round_to=4, importance=importance)
    assert channels(pruned) == {"stem.0": (3, inputs), "spatial.0": (inputs, outputs), "last.0": (outputs, 8), "head": (8, 4)}
    assert set(global_ratios(model, 0.5, SHAPE, importance=importance)) == {"last.0"}
    trainable(pruned)


class Apart(Own):
    """A concatenation whose parts a grouped convolution reads unevenly."""

    def __init__(self) -> None:
        super().__init__(16)
        self.stem, self.left, self.right = conv(3, 16), conv(16, 4), conv(16, 12)
        self.grouped, self.last = conv(16, 16, groups=2), conv(16, 16)

    def body(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        out: Tensor = self.last(self.grouped(torch.cat([self.left(x), self.right(x)], 1)))
        return out


def test_a_global_ratio_counts_no_channels_that_can_never_go() -> None:
    torch.manual_seed(0)
    model = Apart()
    before, found = channels(model), global_ratios(model, 0.5, SHAPE)
    assert set(found) == {"stem.0", "grouped.0", "last.0"}
    assert sum(share * before[name][1] for name, share in found.items()) == pytest.approx(0.5 * sum(before[name][1] for name in found))
    after = channels(prune_channels(model, all_at(model, 0.9), SHAPE, round_to=1))
    assert [after[name][1] < before[name][1] for name in before] == [name in found for name in before]
    assert global_ratios(model, 0.5, SHAPE, round_to=16) == {}


class Tied(Own):
    """Two convolutions of the same weights."""

    def __init__(self) -> None:
        super().__init__(16)
        self.stem, self.first, self.second = conv(3, 16), conv(16, 16), conv(16, 16)
        self.second[0].weight = self.first[0].weight

    def body(self, x: Tensor) -> Tensor:
        out: Tensor = self.second(self.first(self.stem(x)))
        return out


@pytest.mark.parametrize("frozen", [False, True])
def test_of_layers_that_share_their_weights_each_keeps_its_own_part(frozen: bool) -> None:
    torch.manual_seed(0)
    model, dead = Tied().eval(), [1, 2, 4, 7, 8, 11, 13, 14]
    silence(model, "first", dead)
    model.first[0].weight.requires_grad_(not frozen)
    pruned, images = prune_channels(model, {"first.0": 0.5}, SHAPE, round_to=4), torch.randn(2, *SHAPE)
    assert channels(pruned) == {"stem.0": (3, 16), "first.0": (16, 8), "second.0": (8, 16), "head": (16, 4)}
    assert [pruned.get_submodule(name)[0].weight.requires_grad for name in ("first", "second")] == [not frozen] * 2  # type: ignore[index]
    with torch.no_grad():
        torch.testing.assert_close(pruned(images), model(images))
    assert model.second[0].weight is model.first[0].weight


class Fixed(Own):
    """A network that insists on its own channel count."""

    def __init__(self) -> None:
        super().__init__(16)
        self.stem, self.last = conv(3, 16), conv(16, 16)

    def body(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        out: Tensor = self.last(x * torch.ones(1, 16, 1, 1))
        return out


def test_a_network_that_no_longer_runs_is_one_failed_trial_with_its_reason() -> None:
    with pytest.raises(TrialError, match=r"does not run; .*size of tensor"):
        prune_channels(Fixed(), {"stem.0": 0.5}, SHAPE)


class Untraceable(Own):
    """Nothing of autograd's graph leaves the first half."""

    def __init__(self) -> None:
        super().__init__(16)
        self.stem = conv(3, 16)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.stem(x).mean((2, 3))).detach()


def test_a_network_that_cannot_be_traced_is_refused_with_the_way_out() -> None:
    with pytest.raises(TrialError, match=r"set prune.ratio to 0"):
        prune_channels(Untraceable(), {"stem.0": 0.5}, SHAPE)
