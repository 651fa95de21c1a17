"""What one trial is: the frozen values that pass between its stages, and nothing that computes.

Read with docs/architecture.md: Candidate -> ShapePlan -> CompressedModel (core/compress.py) -> EngineArtifact -> Measurement.
"""

from __future__ import annotations

import hashlib
import json
import math
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from core.methods import method_of

KB = 1000
"""Bytes in the KB of every table, flag and limit."""


def bytes_of(kb: float) -> float:
    """Bytes of so many KB, where a product of floats may lose one: 2.002 KB are 2002."""
    return round(kb * KB, 6)


SELF = "self"
"""The student name of the user's own network."""
IN_FLOAT = frozenset({"codebook", "float"})
"""Quantisers that leave every layer to float, whatever was sampled (STORED, core/compress.py)."""
OWN_BITS = frozenset({"nncf", "float"})
"""Quantisers that do not ask which bits a layer should have."""
DENSE = frozenset({"ptq", "brecq", "nncf", "float"})
"""Quantisers that do not train, and leave `sparsity` aside."""
START = "start"
"""Stage of the rung before any training."""
WEIGHT_BITS = (2, 3, 4, 5, 6, 7, 8, 16)
WeightBits = Literal[2, 3, 4, 5, 6, 7, 8, 16]
StoredBits = Literal[2, 3, 4, 5, 6, 7, 8, 16, 32]
"""32: float weights, of the quantiser `float` and of what `nncf` leaves alone."""
Execution = Literal["int8", "float"]
Strategy = Literal["per_position", "per_layer", "haq", "sqnr", "sensitivity", "sdq"]
"""How the bits of the layers are chosen (core/allocate/)."""
Importance = Literal["l2", "l1", "bn_scale", "taylor"]
SparsityRule = Literal["ratio", "global", "lamp", "std"]
"""What ranks channels (core/importance.py)."""
Order = Literal["prune, quantise", "quantise, prune"]
Ratio = Annotated[float, Field(ge=0.0, lt=1.0)]


class Frozen(BaseModel):
    """Base of every value: immutable, unknown keys refused, JSON through `model_dump_json`."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class GroupPlan(Frozen):
    """Genes of one depth position: storage bits and execution are two maps (docs/architecture.md, decision 1)."""

    weight_bits: WeightBits = 8
    """Bits in which the weights are stored; the file becomes smaller, not the engine faster."""
    execution: Execution = "int8"
    """How a layer computes: in INT8, or in float at `runtime.precision`."""
    prune_ratio: Ratio = 0.0


class DistilPlan(Frozen):
    """How the student learns from the teacher: ce_weight * cross-entropy + weight * loss(temperature).

    Temperature and weights that are not given, or None, are those published for the loss (METHODS, core/methods.py).
    """

    model_config = ConfigDict(allow_inf_nan=False)

    loss: str = "kd"
    """Method on logits, regions or maps (docs/guide.md, section 3); ce: labels alone."""
    temperature: Annotated[float, Field(gt=0.0)] = 4.0
    """Greater than 0; softens the logits of teacher and student. Where not given: as published for the loss."""
    weight: Annotated[float, Field(ge=0.0)] = 0.9
    """At least 0; factor on the distillation loss. Where not given: as published for the loss."""
    ce_weight: Annotated[float, Field(ge=0.0)] = 0.1
    """At least 0; factor on the cross-entropy with the labels. Where not given: as published for the loss."""
    grid: Literal[1, 2, 4] = 1
    """Finest scale of SDD, in cells a side; other losses look at the whole image."""
    complementary_weight: Annotated[float, Field(ge=0.0)] = 2.0
    """Of SDD: factor on regions on which the teacher is right where it is wrong on the whole image, or the reverse."""
    alpha: Annotated[float, Field(ge=0.0)] = 1.0
    """Of DKD: factor on the target class, at least 0."""
    beta: Annotated[float, Field(ge=0.0)] = 8.0
    """Of DKD: factor on the other classes, at least 0; 8 is the published one."""
    init: Literal["inherit", "scratch"] = "inherit"
    """inherit: begin with the parent's best channels; scratch: from the pruned shape's initial weights. Idle in parents."""

    @model_validator(mode="before")
    @classmethod
    def _as_published(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        method = method_of(str(data.get("loss", "kd")))
        published = {key: getattr(method, key) for key in ("temperature", "weight", "ce_weight") if data.get(key) is None}
        return {**data, **published}


class AllocationPlan(Frozen):
    """How the bits of the layers are chosen; what a strategy does not look at is None or empty. None for a budget: there is none.

    The first and the last layer are left out where `Candidate.edge_bits` states their bits.
    """

    strategy: Strategy = "per_position"
    """Who chooses the bits: per_position and per_layer the sampler, the others by their rule (docs/guide.md, section 3)."""
    choices: tuple[WeightBits, ...] = ()
    """Rising; among which a strategy chooses."""
    layers: tuple[tuple[WeightBits, Execution], ...] = ()
    """`per_layer`: of the first, second, ... layer of whatever student."""
    actions: tuple[Annotated[float, Field(ge=0.0, le=1.0)], ...] = ()
    """`haq`: one for each depth position, from the fewest bits to the most."""
    budget_bits: Annotated[float, Field(gt=0.0)] | None = None
    """At most the bytes of so many bits in every layer but the edges; 3.5 is possible."""
    budget_kb: Annotated[float, Field(gt=0.0)] | None = None
    """At most so many KB (1000 bytes) of the bit-packed weight file."""
    budget_ms: Annotated[float, Field(gt=0.0)] | None = None
    """`haq`: at most so many milliseconds of a call, by the measured times of the layers; executions give way, not bits."""
    sqnr_db: float | None = None
    """`sqnr`: least ratio of a layer's weights to their rounding error, in dB; 6 dB are about a bit."""
    sqnr_loss_db: float | None = None
    """`sqnr`: most dB by which that ratio may fall short of the one at 8 bits; at least 0."""
    settled: bool = False
    """The bits stand in the candidate's groups, one group for each layer."""


class Candidate(Frozen):
    """One point of the space, as sampled. `groups` are G depth positions; core/plan.py maps them onto layers."""

    student: str
    width: Annotated[float, Field(gt=0.0)] = 1.0
    """Factor on the channels, greater than 0; every pair of name and width has a dense parent to train."""
    distil: DistilPlan = DistilPlan()
    groups: tuple[GroupPlan, ...] = Field(default=(GroupPlan(),), min_length=1)
    quantiser: str = "lsq"
    """How weights are rounded: ptq, brecq and nncf without training, lsq, rate and codebook by it; float: not at all."""
    round_to: Annotated[int, Field(ge=1)] = 8
    """Channel counts become multiples of it."""
    edge_bits: WeightBits | None = 8
    """Bits of the first and the last layer; null leaves them to their positions."""
    rate_weight: Annotated[float, Field(ge=0.0)] = 0.1
    """Of the quantiser `rate`: factor on the mean coded bits of a weight in the loss, at least 0."""
    sparsity: Annotated[float, Field(ge=0.0)] = 0.0
    """Of the quantisers `lsq`, `rate` and `codebook`: how many weights become zero and stay so through the training; at least 0."""
    sparsity_by: SparsityRule = "ratio"
    """`sparsity` is a share in [0, 1) of each layer's weights or of all (`global`, `lamp`), or a threshold in deviations of a layer's."""
    importance: Importance = "l2"
    """Channels that go: smallest weights (l2, l1), smallest scales in batch norm, or those that the loss feels least (taylor)."""
    prune_scope: Literal["local", "global"] = "local"
    """`global`: the ratio is a share of all channels of the network, ranked together."""
    allocation: AllocationPlan = AllocationPlan()
    order: Order = "prune, quantise"
    """What comes first; [quantise, prune]: quantised weights of the dense parent decide what is pruned."""


class LayerPlan(Frozen):
    """One convolution or linear layer after resolution. `out_channels` are those left by pruning."""

    name: str
    out_channels: int
    weight_bits: StoredBits
    execution: Execution


class ShapePlan(Frozen):
    """What a candidate resolves to: exact shapes, bits and execution of every layer, in order of execution."""

    student: str
    width: float
    layers: tuple[LayerPlan, ...]

    @property
    def mean_bits(self) -> float:
        """Mean of the layers' storage bits, unweighted."""
        return sum(layer.weight_bits for layer in self.layers) / len(self.layers)


class EngineArtifact(Frozen):
    """One engine that was really built. `int8_layers` counts compute layers that ran in INT8, of `layers`; None: unknown."""

    runtime: str
    model_path: str
    precision: str
    int8_layers: int | None = None
    layers: int | None = None


class LatencyReport(Frozen):
    """Latency of one engine. All times in milliseconds per call of `batch` images; `samples` calls were timed."""

    p50_ms: float
    p95_ms: float
    ci_ms: tuple[float, float]
    """95 % interval of the median of the blocks; where they are too few for one, the range of all blocks, the disturbed ones too."""
    samples: int
    blocks: int = 0
    """Undisturbed ones. Where there were none, but some `redone`, all numbers are of those."""
    redone: int = 0
    """Blocks that were timed again, because the pinned reference network moved."""
    reference_ms: float | None = None
    """Its time on the quiet machine; None in studies of an older version, as what follows where a machine does not say it."""
    busy_cores: float | None = None
    """Cores that other processes kept busy during the measurement, on average."""
    clock_mhz: float | None = None
    throttled: bool | None = None
    """Whether heat or power held the clock back."""
    batch: int
    threads: int
    runtime: str
    precision: str
    fingerprint: str
    stable: bool

    @property
    def has_interval(self) -> bool:
        """Whether `ci_ms` is of 95 %. Studies of an older version do not say how many blocks there were."""
        from core.latency import LEAST_BLOCKS  # late: numpy

        return self.blocks >= LEAST_BLOCKS or self.blocks + self.redone == 0

    @property
    def bounds_ms(self) -> tuple[float, float]:
        """Where the median surely lies, for whoever decides by it: `ci_ms`, or anywhere where all blocks together are too few."""
        from core.latency import LEAST_BLOCKS  # late: numpy

        few = 0 < self.blocks + self.redone < LEAST_BLOCKS
        return (0.0, math.inf) if few else self.ci_ms

    def spread(self) -> str:
        """`ci_ms` in words, and what it is."""
        low, high = self.ci_ms
        return f"{'95 % interval' if self.has_interval else 'range of all blocks'} {low:.4f} to {high:.4f}"

    @property
    def width_percent(self) -> float:
        """Of `ci_ms`, in per cent of the median."""
        low, high = self.ci_ms
        return 100 * (high - low) / self.p50_ms

    def unrest(self) -> str:
        """What a measurement that is not stable met, in words; empty for one that is."""
        if self.stable:
            return ""
        met = [f"interval {self.width_percent:.1f} % wide" if self.has_interval else f"only {self.blocks} undisturbed blocks"]
        met += [f"{self.redone} of {self.blocks + self.redone} blocks disturbed"] if self.redone else []
        met += [] if self.busy_cores is None else [f"{self.busy_cores:.1f} cores busy with other work"]
        return f"unstable: {', '.join([*met, *(['the clock was throttled'] if self.throttled else [])])}"


class BuildReport(Frozen):
    """An engine that was built for GPUs that are not here: it is real, and its latency is not measurable on this machine."""

    runtime: str
    compute_capability: tuple[str, ...]
    """Such as "SM89": one engine file for all of them."""
    engine_bytes: int
    """Of that file; the objective is the packed weights, as on every runtime."""
    precision: str
    int8_layers: int | None = None
    layers: int | None = None
    scored_in: str
    """The runtime whose answers on this machine are the accuracy, in float32 where layers are in float."""
    batch: int
    threads: int
    fingerprint: str


def milliseconds(report: LatencyReport | BuildReport) -> tuple[float, ...]:
    """The third objective (median ms), or nothing where no engine can be timed: such a study has two objectives."""
    return (report.p50_ms,) if isinstance(report, LatencyReport) else ()


class Rung(Frozen):
    """Accuracy in [0, 1] of a candidate in PyTorch, on a part of the search split, when `epoch` epochs of a stage were done."""

    stage: str
    epoch: float
    accuracy: float

    @property
    def when(self) -> str:
        """In words."""
        return f"after epoch {self.epoch:g} of {self.stage}" if self.epoch else "before training"


class StageRecord(Frozen):
    """A candidate after one stage. `accuracy` in [0, 1] on the search split, in PyTorch but for the last; `loss` is cross-entropy."""

    stage: str
    accuracy: float
    loss: float
    size_bytes: int
    parameters: int
    macs: int
    latency_ms: float | None
    """None where engines are only built."""
    seconds: float
    """Of all stages since the record before."""


class Measurement(Frozen):
    """The objectives of one engine, with what is needed to trust them. Accuracy in [0, 1]."""

    accuracy: float
    judged_by: Literal["labels", "teacher"] = "labels"
    """What an answer is compared with: labels, or the teacher's top-1 where images have none."""
    images: int
    size_bytes: int
    latency: LatencyReport | BuildReport
    """A `BuildReport` in a study that only builds engines (`runtime.build_for`)."""
    agreement: float
    """Share of images with equal top-1 in the engine and in PyTorch."""
    parameters: int
    macs: int
    mean_bits: float


def fingerprint(*parts: Any) -> str:
    """16 hex digits of the SHA-256 of the parts' canonical JSON; pydantic values are dumped first."""
    plain = [part.model_dump(mode="json") if isinstance(part, BaseModel) else part for part in parts]
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:16]
