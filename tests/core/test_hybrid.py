"""Attention on maps is attention, and the hybrids use it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from core.errors import UserError
from core.students import STUDENTS, hybrid_parallel, hybrid_serial
from core.students.attention import HEAD_DIM, Attention, MapNorm, Positions, initialise_attention
from core.students.hybrid import ParallelBlock
from tests.tiny_nets import images


def attention(channels: int = 32) -> Attention:
    torch.manual_seed(0)
    module = Attention(channels).eval()
    initialise_attention(module)
    return module


def test_attention_on_a_map_is_torch_s_attention_on_its_positions() -> None:
    ours = attention()
    theirs = nn.MultiheadAttention(32, 32 // HEAD_DIM, batch_first=True).eval()
    with torch.no_grad():
        theirs.in_proj_weight[:] = torch.cat([layer.weight.flatten(1) for layer in (ours.query, ours.key, ours.value)])
        theirs.in_proj_bias[:] = torch.cat([layer.bias for layer in (ours.query, ours.key, ours.value)])
        theirs.out_proj.weight[:], theirs.out_proj.bias[:] = ours.out.weight.flatten(1), ours.out.bias
        x = images(2, (32, 3, 5))
        tokens = x.flatten(2).transpose(1, 2)
        expected = theirs(tokens, tokens, tokens)[0].transpose(1, 2).view_as(x)
        torch.testing.assert_close(ours(x), expected)


def test_attention_alone_knows_no_positions() -> None:
    module, x = attention(), images(2, (32, 4, 4))
    with torch.no_grad():
        torch.testing.assert_close(module(x.flip(2, 3)), module(x).flip(2, 3))


@pytest.mark.parametrize("name", ["hybrid_serial", "hybrid_serial_sincos"])
def test_with_positions_where_something_is_makes_a_difference(name: str) -> None:
    torch.manual_seed(0)
    model = STUDENTS[name](classes=4, width=0.25).eval()
    x = images(2, (32, 8, 8))
    with torch.no_grad():
        tokens, flipped = model.blocks(model.positions(x)), model.blocks(model.positions(x.flip(2, 3)))
        assert not torch.allclose(flipped, tokens.flip(2, 3), atol=1e-3)
        torch.testing.assert_close(model.blocks(x.flip(2, 3)), model.blocks(x).flip(2, 3))


@pytest.mark.parametrize("kind", ["learned", "sincos"])
def test_positions_of_another_map_lie_between_their_own(kind: str) -> None:
    positions = Positions(32, 8, kind)  # type: ignore[arg-type]
    own, half = (positions(torch.zeros(1, 32, side, side)) for side in (8, 4))
    torch.testing.assert_close(half, F.avg_pool2d(own, 2))
    torch.testing.assert_close(own[0, :, 2, 5], positions.rows[2] + positions.columns[5])
    assert positions(torch.zeros(1, 32, 8, 5)).shape == (1, 32, 8, 5)


def test_fixed_positions_all_differ_and_are_not_trained() -> None:
    positions = Positions(32, 8, "sincos")
    vectors = positions(torch.zeros(1, 32, 8, 8)).flatten(2)[0].t()
    distances = torch.cdist(vectors, vectors) + torch.eye(64)
    assert distances.min() > 0.05
    assert not any(parameter.requires_grad for parameter in positions.parameters())
    assert all(parameter.requires_grad for parameter in Positions(32, 8, "learned").parameters())


def test_fixed_positions_give_half_of_the_channels_to_the_row_and_half_to_the_column() -> None:
    vectors = Positions(32, 6, "sincos")(torch.zeros(1, 32, 6, 6))[0]
    assert torch.equal(vectors[:16], vectors[:16, :, :1].expand(16, 6, 6))
    assert torch.equal(vectors[16:], vectors[16:, :1].expand(16, 6, 6))
    torch.testing.assert_close(vectors[:16, :, 0], vectors[16:, 0])


def test_a_norm_on_a_map_makes_every_position_s_channels_mean_zero_and_variance_one() -> None:
    x = MapNorm(32)(images(2, (32, 3, 3)) * 5 + 2)
    torch.testing.assert_close(x.mean(1), torch.zeros(2, 3, 3), rtol=0, atol=1e-5)
    torch.testing.assert_close(x.var(1, unbiased=False), torch.ones(2, 3, 3), rtol=0, atol=1e-4)


def test_the_attention_branch_of_a_parallel_block_sees_the_whole_map_and_its_convolution_does_not() -> None:
    torch.manual_seed(0)
    block = ParallelBlock(32).eval()
    x = images(1, (32, 8, 8)) + 3.0  # the ReLU lets most of it through
    moved = x.clone()
    moved[:, :16, 0, 0] -= 2.0
    with torch.no_grad():
        assert (block(moved) - block(x))[:, :, 7, 7].abs().max() > 1e-6
        for parameter in block.attention.out.parameters():
            parameter.zero_()
        assert torch.equal(block(moved)[:, :, 7, 7], block(x)[:, :, 7, 7])


@pytest.mark.parametrize("name", ["hybrid_serial", "hybrid_serial_sincos", "hybrid_parallel"])
def test_every_attention_has_whole_heads_at_any_width(name: str) -> None:
    for width in (0.05, 0.3, 0.5, 0.77, 1.0, 1.5):
        with torch.device("meta"):
            model = STUDENTS[name](classes=4, width=width)
        blocks = [module for module in model.modules() if isinstance(module, Attention)]
        assert blocks
        assert all(block.query.out_channels % HEAD_DIM == 0 for block in blocks)


@pytest.mark.parametrize("name", ["hybrid_serial", "hybrid_serial_sincos", "hybrid_parallel"])
def test_a_hybrid_learns_in_bfloat16(name: str) -> None:
    torch.manual_seed(0)
    model = STUDENTS[name](classes=4, image_size=16, width=0.25).train()
    x, labels = images(16, (3, 16, 16)), torch.arange(16) % 4
    optimiser = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.05, momentum=0.9, nesterov=True)
    losses = []
    for _ in range(25):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = F.cross_entropy(model(x), labels)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert all(torch.isfinite(torch.tensor(losses)))
    assert losses[-1] < 0.3 * losses[0]


def test_stages_and_depth_are_as_configured() -> None:
    with torch.device("meta"):
        model = hybrid_serial(classes=4, image_size=32, stages=(16, 32), depth=2)
        parallel = hybrid_parallel(classes=4, image_size=32, stages=(16, 32), depth=3)
    assert model.features(torch.empty(1, 3, 32, 32, device="meta")).shape == (1, 32, 16, 16)
    assert parallel.features(torch.empty(1, 3, 32, 32, device="meta")).shape == (1, 32, 8, 8)
    counts = [sum(isinstance(module, Attention) for module in network.modules()) for network in (model, parallel)]
    assert counts == [2, 3]


@pytest.mark.parametrize(
    ("build", "bad", "message"),
    [
        (hybrid_serial, {"stages": (32,)}, "at least 2 stages"),
        (hybrid_serial, {"stages": (32, 8)}, "at least 16 channels"),
        (hybrid_parallel, {"stages": (0, 32)}, r"but got \[0, 32\]"),
        (hybrid_parallel, {"depth": 0}, "at least 1 block, but got 0"),
        (hybrid_serial, {"positions": "fixed"}, "positions must be one of learned, sincos, but got 'fixed'"),
    ],
)
def test_what_makes_no_hybrid_is_refused(build: Callable[..., nn.Module], bad: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build(classes=4, **bad)
