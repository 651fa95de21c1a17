"""Quantisers of weights; activations are in `graph`.

`QUANTISERS`: name -> fn(model, bits per layer, finetune, setting) -> stored weight per layer. What each is good for:

    lsq        supported     trained with learned steps; the default; with sparsity some weights stay the integer 0
    ptq        supported     rounded to min-max, least squared error or a percentile; biases corrected
    float      supported     float32 weights: what the others are compared with
    brecq      experimental  rounding learned block by block on calibration images; no labels, no fine-tuning
    rate       experimental  lsq with the coded bits in the loss, for `objectives.size: coded`; with sparsity as lsq
    codebook   experimental  2^b shared values per layer, trained; computes in float; with sparsity Deep Compression's chain

`MODEL_QUANTISERS`: name -> fn(model, plan, images, runtime) -> a whole ONNX file, for quantisers that place Q/DQ themselves:

    nncf       experimental  INT8 by NNCF, for comparison
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from core.quantise.brecq import brecq
from core.quantise.codebook import codebook
from core.quantise.lsq import lsq
from core.quantise.nncf_int8 import nncf
from core.quantise.ptq import keep_float, ptq
from core.quantise.rate import rate
from core.quantise.stored import StoredWeight

QUANTISERS: dict[str, Callable[..., Mapping[str, StoredWeight]]] = {
    "lsq": lsq,
    "ptq": ptq,
    "rate": rate,
    "codebook": codebook,
    "brecq": brecq,
    "float": keep_float,
}

MODEL_QUANTISERS: dict[str, Callable[..., Any]] = {
    "nncf": nncf,
}
