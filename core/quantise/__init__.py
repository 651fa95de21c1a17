"""Quantisers: name -> fn(model, bits per layer, finetune) -> integers per layer. Weights here, activations in `graph`."""

from __future__ import annotations

from collections.abc import Callable

from core.quantise.integer import IntegerWeight
from core.quantise.lsq import lsq, ptq

QUANTISERS: dict[str, Callable[..., dict[str, IntegerWeight]]] = {
    "lsq": lsq,
    "ptq": ptq,
}
