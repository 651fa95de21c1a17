"""Muon: convolutions step along the orthogonalised momentum of their gradient, everything else by SGD with Nesterov momentum.

A convolution's weight is seen as a matrix (outputs, inputs * kernel). Its update is the nearest matrix with equal singular values, so
that every direction learns at one pace; its length is `lr` times the weight's own, and the weight keeps the length it began with. A
learning rate is then a relative step, whatever the layer. Weights followed by batch norm lose nothing by the fixed length.

References: Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks"; the fixed length is airbench94_muon's.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from core.hardware import multiplies_bf16

STEPS = 3
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the quintic iteration: it drives singular values to about 1 (0.7 to 1.2) in few steps."""
LARGE = 128
"""From this side on a CPU that multiplies bfloat16 is faster in it than in float32."""


class Muon(torch.optim.Optimizer):
    """One optimiser over groups of both kinds: `orthogonal` groups take Muon's step, the others SGD's."""

    def __init__(self, groups: Iterable[dict[str, Any]]) -> None:
        """Each group holds params, lr, momentum, orthogonal (bool), and weight_decay where it is not orthogonal."""
        super().__init__(groups, {"weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        assert closure is None
        for group in self.param_groups:
            if not (params := [p for p in group["params"] if p.grad is not None]):
                continue
            updates = [self._nesterov(p, group) for p in params]
            if not group["orthogonal"]:
                torch._foreach_add_(params, updates, alpha=-group["lr"])
                continue
            for param, update in zip(params, _orthogonal(updates), strict=True):
                length = self.state[param].setdefault("length", param.norm())
                param.sub_(update * (group["lr"] * length / update.norm().clamp(min=1e-12)))
                param.mul_(length / param.norm().clamp(min=1e-12))

    def _nesterov(self, param: Tensor, group: dict[str, Any]) -> Tensor:
        assert param.grad is not None
        gradient = param.grad.add(param, alpha=group["weight_decay"]) if group["weight_decay"] else param.grad
        buffer = self.state[param].setdefault("momentum", torch.zeros_like(param))
        buffer.mul_(group["momentum"]).add_(gradient)
        return gradient.add(buffer, alpha=group["momentum"])


def is_orthogonal(param: nn.Parameter) -> bool:
    """Whether Muon's step suits it: the weight of a convolution over more than one input channel. A depthwise filter is no matrix.

    A weight of zeros has no length to keep, and would stay what it is.
    """
    return param.ndim == 4 and param.shape[1] > 1 and bool(param.detach().any())


def orthogonalise(matrices: Tensor) -> Tensor:
    """Float32 (n, rows, columns) of any lengths -> about the nearest matrices with singular values 1, float32.

    An iteration multiplies X by a polynomial P of its Gram matrix G = X X^T. P and G commute, so the next Gram matrix is P P G: all
    iterations are done on the small matrices, and X is multiplied once by their product.
    """
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = x / (x.flatten(1).norm(dim=1).view(-1, 1, 1) + 1e-7)
    x = x.to(torch.bfloat16 if x.is_cuda or (x.shape[1] >= LARGE and multiplies_bf16()) else torch.float32)
    gram = (x @ x.mT).float()
    turn = factor = _polynomial(gram)
    for _ in range(STEPS - 1):
        gram = factor @ (factor @ gram)
        factor = _polynomial(gram)
        turn = factor @ turn
    x = (turn.to(x.dtype) @ x).float()
    return x.mT if tall else x


def _polynomial(gram: Tensor) -> Tensor:
    """a I + b G + c G G of Gram matrices (n, r, r)."""
    a, b, c = COEFFICIENTS
    factor = torch.baddbmm(b * gram, gram, gram, alpha=c)
    factor.diagonal(dim1=1, dim2=2).add_(a)
    return factor


def _orthogonal(updates: list[Tensor]) -> list[Tensor]:
    """Each update made orthogonal; equal shapes go together in one batch."""
    shapes: dict[torch.Size, list[int]] = defaultdict(list)
    for index, update in enumerate(updates):
        shapes[update.shape].append(index)
    out = list(updates)
    for shape, indices in shapes.items():
        made = orthogonalise(torch.stack([updates[index].reshape(shape[0], -1) for index in indices]))
        for index, matrix in zip(indices, made, strict=True):
            out[index] = matrix.view(shape)
    return out
