"""Pruning of transformers removes whole heads and hidden channels, and nothing else."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from core.layers import layer_infos
from core.prune import prune_channels
from core.students import STUDENTS
from core.students.attention import HEAD_DIM, Attention, MapNorm
from tests.tiny_nets import images

SHAPE = (3, 16, 16)
HYBRIDS = ("hybrid_serial", "hybrid_serial_sincos", "hybrid_parallel")
PROJECTIONS = ("query", "key", "value")


def hybrid(name: str = "hybrid_serial", seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return STUDENTS[name](classes=4, image_size=16, width=0.5).eval()


def last_attention(model: nn.Module) -> tuple[str, Attention]:
    return [(name, module) for name, module in model.named_modules() if isinstance(module, Attention)][-1]


def widths(model: nn.Module, shape: tuple[int, int, int] = SHAPE) -> dict[str, int]:
    return {info.name: info.out_channels for info in layer_infos(model, shape)}


@pytest.mark.parametrize("name", HYBRIDS)
def test_heads_that_compute_nothing_go_and_no_logit_changes(name: str) -> None:
    model = hybrid(name)
    where, attention = last_attention(model)
    dead = [channel for head in (0, 2) for channel in range(head * HEAD_DIM, (head + 1) * HEAD_DIM)]
    left = [channel for channel in range(attention.query.out_channels) if channel not in dead]
    assert len(left) == 2 * HEAD_DIM
    with torch.no_grad():
        for layer in (attention.query, attention.key, attention.value):
            layer.weight[dead] = layer.bias[dead] = 0.0
        attention.out.weight[:, dead] = 0.0
    pruned = prune_channels(model, {f"{where}.query": 0.5}, SHAPE)
    smaller = pruned.get_submodule(where)
    for layer in PROJECTIONS:
        assert torch.equal(smaller.get_submodule(layer).weight, attention.get_submodule(layer).weight[left])
    x = images(4, SHAPE)
    with torch.no_grad():
        torch.testing.assert_close(pruned(x), model(x), rtol=1e-4, atol=1e-5)


def test_hidden_channels_that_compute_nothing_go_and_no_logit_changes() -> None:
    model = hybrid()
    block = model.blocks[1]
    dead = list(range(0, block.up.out_channels, 2))
    with torch.no_grad():
        block.up.weight[dead] = block.up.bias[dead] = 0.0
        block.down.weight[:, dead] = 0.0
    pruned = prune_channels(model, {"blocks.1.up": 0.5}, SHAPE)
    assert pruned.blocks[1].up.out_channels == pruned.blocks[1].down.in_channels == len(dead)
    x = images(4, SHAPE)
    with torch.no_grad():
        torch.testing.assert_close(pruned(x), model(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", HYBRIDS)
def test_how_many_heads_and_channels_remain_does_not_depend_on_the_weights(name: str) -> None:
    model = hybrid(name)
    ratios = {layer: 0.15 * (index % 6) for index, layer in enumerate(widths(model))}
    found = [widths(prune_channels(hybrid(name, seed), ratios, SHAPE)) for seed in range(3)]
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize(
    ("ratio", "round_to", "heads"),
    [(0.2, 1, 3), (0.5, 8, 2), (0.7, 8, 1), (0.99, 1, 1), (0.2, 32, 4), (0.5, 32, 2), (0.9, 32, 2), (0.5, 24, 3), (0.9, 80, 4)],
)
def test_whole_heads_remain_as_many_as_the_ratio_and_the_rounding_say(ratio: float, round_to: int, heads: int) -> None:
    model = hybrid()
    where, attention = last_attention(model)
    assert attention.query.out_channels == 4 * HEAD_DIM
    pruned = prune_channels(model, {f"{where}.query": ratio}, SHAPE, round_to=round_to).get_submodule(where)
    assert isinstance(pruned, Attention)
    assert {pruned.get_submodule(layer).out_channels for layer in PROJECTIONS} == {heads * HEAD_DIM}
    assert pruned.out.in_channels == heads * HEAD_DIM
    assert pruned.out.out_channels == attention.out.out_channels


@pytest.mark.parametrize("name", ["hybrid_serial", "hybrid_serial_sincos"])
def test_everything_on_the_stream_of_tokens_loses_the_same_channels_in_order(name: str) -> None:
    """Every vector on the stream carries the number of its channel: norms, positions and biases must still agree."""
    model = hybrid(name)
    count = model.classifier.in_features
    numbers = torch.arange(float(count))
    with torch.no_grad():
        model.positions.rows[:] = model.positions.columns[:] = numbers
        for module in model.modules():
            if isinstance(module, MapNorm):
                module.norm.weight[:] = module.norm.bias[:] = numbers
        for block in model.blocks:
            block.attention.out.bias[:] = block.down.bias[:] = numbers
    pruned = prune_channels(model, {"stem.2.0": 0.8}, SHAPE, round_to=4)
    left = pruned.blocks[0].down.bias
    assert len(left) == 12
    assert torch.equal(left, left.sort().values)
    norms = [vector for module in pruned.modules() if isinstance(module, MapNorm) for vector in (module.norm.weight, module.norm.bias)]
    rows = [*pruned.positions.rows, *pruned.positions.columns]
    for vector in (*norms, *rows, *(block.attention.out.bias for block in pruned.blocks)):
        assert torch.equal(vector, left)
    assert [p.requires_grad for p in pruned.positions.parameters()] == [p.requires_grad for p in model.positions.parameters()]


@pytest.mark.parametrize("seed", range(4))
def test_a_layer_norm_keeps_the_order_of_what_remains(seed: int) -> None:
    class Normed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.norm, self.head = nn.Conv2d(3, 64, 1), MapNorm(64), nn.Linear(64, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.norm(self.stem(x)).mean((2, 3)))

    torch.manual_seed(seed)
    model = Normed()
    with torch.no_grad():
        # nearly equal, so that the order of the weights of the convolution decides what remains
        model.stem.bias[:] = model.norm.norm.weight[:] = 1 + torch.arange(64.0) / 1000
    pruned = prune_channels(model, {"stem": 0.93}, SHAPE, round_to=4)
    assert pruned.norm.norm.normalized_shape == (4,)
    assert torch.equal(pruned.norm.norm.weight, pruned.stem.bias)


def written_out(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    return (queries @ keys.transpose(2, 3)).softmax(3) @ values


class OwnAttention(nn.Module):
    """Attention as users write it, with a fixed number of heads."""

    def __init__(self, heads: int, product: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.heads, self.product = heads, product
        self.stem, self.q, self.k, self.v = nn.Conv2d(3, 32, 3, stride=2), nn.Linear(32, 32), nn.Linear(32, 32), nn.Linear(32, 32)
        self.out, self.head = nn.Linear(32, 32), nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x)).flatten(2).transpose(1, 2)
        batch, tokens, _ = x.shape
        q, k, v = (layer(x).view(batch, tokens, self.heads, -1).transpose(1, 2) for layer in (self.q, self.k, self.v))
        mixed = self.product(q, k, v).transpose(1, 2).reshape(batch, tokens, -1)
        return self.head(self.out(mixed).mean(1))


@pytest.mark.parametrize("product", [written_out, F.scaled_dot_product_attention], ids=["written out", "fused"])
def test_heads_of_attention_whose_number_is_fixed_stay_whole(product: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
    torch.manual_seed(0)
    model = OwnAttention(2, product)
    after = widths(prune_channels(model, dict.fromkeys(widths(model), 0.5), SHAPE))
    assert after == {"stem": 16, "q": 32, "k": 32, "v": 32, "out": 16, "head": 4}


@pytest.mark.parametrize("product", [written_out, F.scaled_dot_product_attention], ids=["written out", "fused"])
def test_a_single_head_loses_channels(product: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
    torch.manual_seed(0)
    model = OwnAttention(1, product)
    after = widths(prune_channels(model, dict.fromkeys(widths(model), 0.5), SHAPE))
    assert after == {"stem": 16, "q": 16, "k": 16, "v": 16, "out": 16, "head": 4}
