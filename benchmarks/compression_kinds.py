"""The rows of benchmarks/compression.py: which networks there are, and what is made of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any

from benchmarks.compression_bars import STRATEGIES
from benchmarks.distil_table import PLANS
from core.candidate import SELF, DistilPlan

RATES = (0.1, 0.3, 1, 2, 3, 6, 10)
"""Factors on the mean coded bits of a weight: the more weights a network has, the less each of them feels one."""
FEWER_BITS_RATES = (0.1, 0.3, 0.5, 1, 1.5, 2)
"""The same for `rate` whose steps start on W3's grid, not on W4's: a training of a few epochs does not make them grow that far."""
MUON = {"optimiser": "muon", "lr": 0.05, "rest_lr": 0.05, "momentum": 0.6}
"""What a network that has lost nine weights of ten recovers by, in as many epochs."""


@dataclass(frozen=True)
class Kind:
    """One way to compress: a quantiser at some bits, or a strategy at the bytes of so many bits in every layer."""

    quantiser: str
    bits: int = 8
    strategy: str | None = None
    genes: dict[str, Any] = field(default_factory=dict)
    """Of the candidate."""
    finetuned: bool = False
    """In float first, in as many epochs as the others have: what of their accuracy is the fine-tuning's; what is pruned recovers by it."""
    train: dict[str, Any] = field(default_factory=dict)
    """Of its fine-tuning's recipe, where it is not the one of all."""
    pruned: float = 0.0
    """Share of the channels that go first, of every group that can be pruned."""
    width: float = 1.0
    """Of the network."""
    distil: DistilPlan = field(default_factory=DistilPlan)
    """What teaches the network and its fine-tuning."""
    longer: bool = False
    """In LONGER times the epochs: what a limit of bytes can hold where time is no matter."""


KINDS: dict[str, Kind] = {
    "fp32": Kind("float"),
    "fp32-tuned": Kind("float", finetuned=True),
    "int8": Kind("ptq"),
    "int8-nncf": Kind("nncf"),
    "w4": Kind("lsq", 4),
    "w3": Kind("lsq", 3),
    "w2": Kind("lsq", 2),
    **{f"{strategy}-w{bits}": Kind("lsq", bits, strategy) for bits, strategy in product((4, 3), STRATEGIES)},
    # Deep Compression's chain: magnitudes below 1 standard deviation, 16 shared values, coded
    "codebook": Kind("codebook", 4, genes={"sparsity": 1.0, "sparsity_by": "std"}),
    **{f"rate-{weight:g}": Kind("rate", 4, genes={"rate_weight": weight}) for weight in RATES},
    **{f"rate-w3-{weight:g}": Kind("rate", 3, genes={"rate_weight": weight}) for weight in FEWER_BITS_RATES},
}
CHAINS: dict[str, Kind] = {
    # the chain again, with a share of all weights, as a network with many too many of them allows
    "chain-88": Kind("codebook", 4, genes={"sparsity": 0.88, "sparsity_by": "global"}),
    "chain-lamp-89": Kind("codebook", 4, genes={"sparsity": 0.89, "sparsity_by": "lamp"}, train=MUON),
}
# the teacher's own network: there is nothing to train first
OWN: dict[str, Kind] = {
    "fp32": KINDS["fp32"],
    "chain-pruned-lamp-90": Kind("codebook", 4, genes={"sparsity": 0.9, "sparsity_by": "lamp"}, finetuned=True, train=MUON, pruned=0.3),
}


def taught_longer(plan: str, rates: Sequence[float], width: float = 1.0) -> dict[str, Kind]:
    """A network in float, and what `rate` makes of it at each weight."""
    first = Kind("float", longer=True, distil=PLANS[plan], width=width)
    rated = {f"long-rate-{weight:g}": replace(first, quantiser="rate", bits=4, genes={"rate_weight": weight}) for weight in rates}
    return {"long-fp32": first, **rated}


NETWORKS: tuple[tuple[str, tuple[int, ...], dict[str, Kind]], ...] = (
    ("resnet20", (0,), KINDS),
    # what claims of paired seeds need
    (
        "resnet20",
        (1, 2),
        {name: kind for name, kind in KINDS.items() if not (kind.strategy and kind.bits == 4) and kind.quantiser != "codebook"},
    ),
    ("vgg8", (0,), KINDS | CHAINS),
    # MLPerf Tiny's network
    ("resnet8", (0,), {name: kind for name, kind in KINDS.items() if kind.strategy is None or name == "sensitivity-w3"}),
    # in as many bytes as a quarter of resnet8 in INT8
    ("resnet14", (0,), {name: KINDS[name] for name in ("fp32", "rate-1", "rate-2", "rate-3", "rate-w3-1", "rate-w3-1.5")}),
    ("resnet20", (0,), taught_longer("sdd_lskd", (0.3, 1))),
    # the teacher's shape with half of its channels: more weights than resnet20, fewer bits for each; its maps at 24 px have no quarters
    ("airbench", (0,), taught_longer("lskd", (0.3, 1), width=0.5)),
    (SELF, (0,), OWN),
)
"""(student, seeds, what is made of it)"""


@dataclass(frozen=True)
class Row:
    """One network, compressed."""

    student: str
    kind: str
    seed: int

    @property
    def name(self) -> str:
        return f"{self.student}:{self.kind}:{self.seed}"


KIND_OF = {Row(student, name, seed): kind for student, seeds, kinds in NETWORKS for seed in seeds for name, kind in kinds.items()}
ROWS = tuple(KIND_OF)
