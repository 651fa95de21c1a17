"""What a packed file holds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from core.candidate import WEIGHT_BITS
from core.errors import UserError

BITS = WEIGHT_BITS
Coding = Literal["packed", "coded", "huffman"]
CODINGS: tuple[Coding, ...] = ("packed", "coded", "huffman")
"""How integers are written; the place in this tuple stands in the file."""


class PackError(UserError):
    """These bytes are no packed weight file, or these tensors do not fit in one."""


@dataclass(frozen=True, eq=False)
class QTensor:
    """Quantised weights: `values` (out, ...) int8 for 2-8 bits or int16 for 16, `scales` (out,) float32."""

    values: np.ndarray
    scales: np.ndarray
    bits: int


Tensor = QTensor | np.ndarray


def check_quantised(name: str, tensor: QTensor) -> None:
    """PackError unless bits, dtype, shape and range of `tensor` belong together."""
    if type(tensor.bits) is not int or tensor.bits not in BITS:
        raise PackError(f"bits must be one of {', '.join(map(str, BITS))}, but {name!r} has {tensor.bits}")
    dtype = np.dtype(np.int16 if tensor.bits == 16 else np.int8)
    if tensor.values.dtype != dtype:
        raise PackError(f"{tensor.bits}-bit values must be {dtype}, but {name!r} has {tensor.values.dtype}")
    if tensor.values.ndim == 0 or tensor.scales.shape != tensor.values.shape[:1]:
        raise PackError(f"one scale per output channel, but {name!r} has {tensor.scales.shape} for values of {tensor.values.shape}")
    low, high = limits(tensor.bits)
    if tensor.values.size and not low <= int(tensor.values.min()) <= int(tensor.values.max()) <= high:
        raise PackError(f"{tensor.bits}-bit values lie in {low}..{high}, but {name!r} has values beyond; clip them first")


def limits(bits: int) -> tuple[int, int]:
    """(lowest, highest) integer of `bits` bits in two's complement."""
    return -(1 << (bits - 1)), (1 << (bits - 1)) - 1
