"""A space: WHAT may vary (spaces/*.yaml). HOW a study runs is core/config.py.

A value is a scalar (fixed: it asks nothing of the sampler), a list (choices) or {low, high, step?, log?} (a range). Values are kept
canonical: choices sorted and distinct, one choice or an empty range is the scalar itself. So equal spaces have equal digests.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

from pydantic import AfterValidator, BeforeValidator, Discriminator, Field, GetJsonSchemaHandler, Tag, WithJsonSchema, model_validator
from pydantic_core import CoreSchema

from core.candidate import DENSE, OWN_BITS, SELF, Execution, Frozen, Importance, Order, SparsityRule, Strategy, WeightBits
from core.errors import UserError
from core.students.zoo import check_zoo_name, in_zoo
from core.tables import nearest
from core.yaml_io import apply_overrides, is_bare_name, load_yaml, parse, resolve_path

T = TypeVar("T")


class Range(Frozen):
    """All numbers from `low` to `high`, both included; in steps of `step`, or on a logarithmic scale."""

    low: float
    """Smallest value."""
    high: float
    """Largest value, itself included; with `step` a whole number of steps above `low`."""
    step: float | None = Field(default=None, json_schema_extra={"exclusiveMinimum": 0})
    """Distance between two values, greater than 0; null: any number."""
    log: bool = False
    """Draw on a logarithmic scale; then low > 0 and no step."""

    @model_validator(mode="after")
    def _check(self) -> Range:
        low, high, step = self.low, self.high, self.step
        if low > high:
            raise ValueError(f"must have low <= high, but got low {low:g}, high {high:g}")
        if self.log and (step is not None or low <= 0):
            raise ValueError(f"must have low > 0 and no step where log is true, but got low {low:g}, step {step}")
        if step is not None and step <= 0:
            raise ValueError(f"must have step > 0, but got step {step:g}")
        if step is not None and (rest := (Fraction(str(high)) - Fraction(str(low))) % Fraction(str(step))):
            fitting = float(Fraction(str(high)) - rest)
            raise ValueError(f"must reach high in whole steps of {step:g} from low {low:g}, but got high {high:g}; say high {fitting:g}")
        return self


def _kind(value: Any) -> str:
    if isinstance(value, dict | Range):
        return "<range>"
    return "<choices>" if isinstance(value, list | tuple) else "<fixed>"


def _canonical(value: Any) -> Any:
    if isinstance(value, Range):
        return value.low if value.low == value.high else value
    if not isinstance(value, tuple):
        return value
    if not value:
        raise ValueError("must have at least one choice, but the list is empty")
    entry, times = Counter(value).most_common(1)[0]
    if times > 1:
        raise ValueError(f"must have distinct choices, but {entry} is given {times} times")
    return value[0] if len(value) == 1 else tuple(sorted(value, key=lambda entry: (entry is None, entry)))


class Says:
    """What an editor is told beside the type: JSON schema's own words, each of which binds only the values that it is about."""

    def __init__(self, **words: Any) -> None:
        self.words = words

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        """pydantic's hook."""
        return {**handler(schema), **self.words}


DISTINCT = Says(minItems=1, uniqueItems=True)
Listed = Annotated[
    Annotated[T, Tag("<fixed>")] | Annotated[tuple[T, ...], Tag("<choices>")], Discriminator(_kind), AfterValidator(_canonical), DISTINCT
]
Ranged = Annotated[
    Annotated[T, Tag("<fixed>")] | Annotated[tuple[T, ...], Tag("<choices>")] | Annotated[Range, Tag("<range>")],
    Discriminator(_kind),
    AfterValidator(_canonical),
    DISTINCT,
]


def options(value: Any) -> tuple[Any, ...]:
    """What a value can be: its choices, a range's two ends, or the fixed value alone."""
    if isinstance(value, Range):
        return (value.low, value.high)
    return value if isinstance(value, tuple) else (value,)


def _all(holds: Callable[[float], bool], law: str) -> AfterValidator:
    def check(value: Any) -> Any:
        if wrong := [number for number in options(value) if number is not None and not holds(number)]:
            raise ValueError(f"must be {law}, but got {wrong[0]:g}")
        return value

    return AfterValidator(check)


def _each(**bounds: float) -> Says:
    """JSON schema's bounds, of a number, of every choice and of both ends of a range."""
    return Says(**bounds, items=bounds, properties={"low": bounds, "high": bounds})


ABOVE_0 = _all(lambda number: number > 0, "greater than 0"), _each(exclusiveMinimum=0)
FROM_0 = _all(lambda number: number >= 0, "at least 0"), _each(minimum=0)
Positive = Annotated[Ranged[float], *ABOVE_0]
NotNegative = Annotated[Ranged[float], *FROM_0]
PositiveOrPublished = Annotated[Ranged[float | None], *ABOVE_0]
NotNegativeOrPublished = Annotated[Ranged[float | None], *FROM_0]
SHARE = _each(minimum=0, exclusiveMaximum=1)
Ratio = Annotated[Ranged[float], _all(lambda number: 0 <= number < 1, "at least 0 and less than 1"), SHARE]
Positions = Annotated[int, Field(ge=1, le=1000)]


class StudentSpace(Frozen):
    """Which networks, and the factor on their channels. `self` is the teacher's network, always at width 1, as are a library's."""

    name: Listed[str]
    """Networks: of the table, torchvision:<name>, timm:<name>, of a plugin, or `self`."""
    width: Positive = 1.0

    @model_validator(mode="after")
    def _check(self) -> StudentSpace:
        if self.name == SELF and self.width != 1.0:
            raise ValueError("must have width 1.0 where 'self' is the only name: your own network has no width")
        zoo = [name for name in options(self.name) if in_zoo(name)]
        if zoo and self.width != 1.0:
            raise ValueError(f"must have width 1.0 where {zoo[0]} is a name: a library's network has its own channels")
        return self


class DistilSpace(Frozen):
    """ce_weight * cross-entropy + weight * loss(temperature). None: as published for the loss (METHODS, core/methods.py)."""

    loss: Listed[str] = "kd"
    temperature: PositiveOrPublished = None
    weight: NotNegativeOrPublished = None
    ce_weight: NotNegativeOrPublished = None
    grid: Listed[Literal[1, 2, 4]] = 1
    complementary_weight: NotNegative = 2.0
    alpha: NotNegative = 1.0
    beta: NotNegative = 8.0
    init: Listed[Literal["inherit", "scratch"]] = "inherit"

    @model_validator(mode="after")
    def _check(self) -> DistilSpace:
        if 0 in options(self.weight) and 0 in options(self.ce_weight):
            raise ValueError("must not let weight and ce_weight both be 0: nothing would be learnt")
        return self


class PruneSpace(Frozen):
    """One ratio for each of `positions` depth positions; channel counts are rounded to multiples of `round_to`."""

    positions: Positions = 1
    """How many ratios are sampled over the depth."""
    ratio: Ratio = 0.0
    """Share of the channels to remove, per position; at least 0 and less than 1."""
    round_to: Listed[Annotated[int, Field(ge=1)]] = 8
    importance: Listed[Importance] = "l2"
    scope: Literal["local", "global"] = "local"
    """local: a ratio is of each layer's channels; global: of all together (positions 1), no layer loses more than 90 %."""

    @model_validator(mode="after")
    def _check(self) -> PruneSpace:
        if self.scope == "global" and self.positions != 1:
            raise ValueError(f"must have positions 1 where the scope is global: one ratio is for all layers, but got {self.positions}")
        return self


class QuantiseSpace(Frozen):
    """Storage bits and execution for each of `positions` depth positions; `edge_bits` for the first and last layer, unless null."""

    positions: Positions = 1
    """How many bits and executions are sampled over the depth; as many as layers is a search per layer."""
    weight_bits: Listed[WeightBits] = 8
    execution: Listed[Execution] = "int8"
    quantiser: Listed[str] = "lsq"
    edge_bits: Listed[WeightBits | None] = 8
    rate_weight: NotNegative = 0.1
    sparsity: NotNegative = 0.0
    sparsity_by: SparsityRule = "ratio"

    @model_validator(mode="after")
    def _check(self) -> QuantiseSpace:
        if self.sparsity_by != "std" and max(options(self.sparsity)) >= 1:
            raise ValueError(f"must have sparsity less than 1 where it is a share, but got {max(options(self.sparsity)):g}")
        if max(options(self.sparsity)) > 0 and set(options(self.quantiser)) <= DENSE:
            raise ValueError(f"must have lsq, rate or codebook where sparsity is not 0, but got {', '.join(options(self.quantiser))}")
        if self.execution == "int8" and 16 in (*options(self.weight_bits), *options(self.edge_bits)):
            raise ValueError("must allow execution float where 16 bits are allowed: 16-bit weights do not execute in int8")
        return self


def _as_order(value: Any) -> Any:
    """[prune, quantise] -> "prune, quantise"; a list of such lists is a choice among them. As text, as it is kept, it stays."""
    if not isinstance(value, list | tuple):
        return value
    steps = all(each in ("prune", "quantise") for each in value)
    return ", ".join(value) if steps else tuple(_as_order(each) for each in value)


STEPS: dict[str, Any] = {"type": "array", "items": {"enum": ["prune", "quantise"]}, "minItems": 2, "maxItems": 2, "uniqueItems": True}
ORDER = {"anyOf": [STEPS, {"enum": list(get_args(Order))}]}
Orders = Annotated[
    Listed[Order],
    BeforeValidator(_as_order),
    WithJsonSchema({"anyOf": [ORDER, {"type": "array", "items": ORDER, "minItems": 1, "uniqueItems": True}]}),
]


class AllocationSpace(Frozen):
    """Who chooses the bits of the layers among `quantise.weight_bits` (core/allocate/); the name of a strategy alone will do."""

    strategy: Strategy = "per_position"
    budget_bits: PositiveOrPublished = None
    budget_kb: PositiveOrPublished = None
    budget_ms: PositiveOrPublished = None
    sqnr_db: Ranged[float | None] = None
    sqnr_loss_db: NotNegativeOrPublished = None

    @model_validator(mode="before")
    @classmethod
    def _named(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return {"strategy": data} if isinstance(data, str) else data
        # behind this validator pydantic's strict mode no longer takes lists for tuples
        return {key: tuple(value) if isinstance(value, list) else value for key, value in data.items()}

    @model_validator(mode="after")
    def _check(self) -> AllocationSpace:
        fewest, most, keys = TAKES[self.strategy]
        stated = [key for key in ("budget_bits", "budget_kb", "budget_ms", "sqnr_db", "sqnr_loss_db") if getattr(self, key) is not None]
        given = [key for key in stated if key not in BESIDE.get(self.strategy, ())]
        if idle := [key for key in given if key not in keys]:
            raise ValueError(f"must state only what its strategy looks at, but {self.strategy} does not look at {idle[0]}; leave it out")
        if not fewest <= len(given) <= most:
            wanted = "one" if fewest else "at most one"
            raise ValueError(f"must state {wanted} of {', '.join(keys)} for {self.strategy}, but got {' and '.join(given) or 'none'}")
        if unlimited := [key for key in stated if None in options(getattr(self, key))]:
            raise ValueError(f"must state a number in every choice of {unlimited[0]}, but one is null")
        return self


TAKES: dict[str, tuple[int, int, tuple[str, ...]]] = {
    "per_position": (0, 0, ()),
    "per_layer": (0, 0, ()),
    "haq": (0, 1, ("budget_bits", "budget_kb")),
    "sqnr": (1, 1, ("sqnr_db", "sqnr_loss_db", "budget_bits", "budget_kb")),
    "sensitivity": (1, 1, ("budget_bits", "budget_kb")),
    "sdq": (1, 1, ("budget_bits", "budget_kb")),
}
"""Strategy -> how many of which keys it takes: fewest, most, names."""
BESIDE: dict[str, tuple[str, ...]] = {"haq": ("budget_ms",)}
"""Strategy -> keys that it takes beside those."""


class ObjectiveSpace(Frozen):
    """How size is counted. `packed`: bytes of the bit-packed weight file; `coded`: of the entropy-coded one, known after training."""

    size: Literal["packed", "coded"] = "packed"
    """Bytes of the bit-packed file, or of the entropy-coded one: never larger, but known after training alone."""


class Constraints(Frozen):
    """Limits of the search; None: no limit. 1 KB is 1000 bytes, accuracy is a share in (0, 1].

    Hard ones keep a candidate from being trained; `soft` ones are told to the sampler, which learns to keep them.
    """

    latency_ms: Annotated[float, Field(gt=0.0)] | None = None
    """Milliseconds of a call; slower candidates are not trained."""
    size_kb: Annotated[float, Field(gt=0.0)] | None = None
    """KB of 1000 bytes; larger candidates are not trained."""
    accuracy: Annotated[float, Field(gt=0.0, le=1.0)] | None = None
    """Less accurate candidates count as pruned."""
    soft: bool = False
    """The limits prune nothing: the sampler learns to keep them."""


class Space(Frozen):
    """All that a study may vary. `config` names an entry of configs/ or a YAML file."""

    student: StudentSpace
    distil: DistilSpace = DistilSpace()
    prune: PruneSpace = PruneSpace()
    quantise: QuantiseSpace = QuantiseSpace()
    allocation: AllocationSpace = AllocationSpace()
    order: Orders = "prune, quantise"
    objectives: ObjectiveSpace = ObjectiveSpace()
    constraints: Constraints = Constraints()
    config: str | None = None
    """An entry of configs/ or a YAML file, relative to this file; null: all defaults."""

    @model_validator(mode="after")
    def _choices(self) -> Space:
        strategy, bits = self.allocation.strategy, options(self.quantise.weight_bits)
        if not strategy.startswith("per_") and len(bits) < 2:
            raise ValueError(f"allocation {strategy} chooses among quantise.weight_bits, but that is {bits[0]} alone; give a list")
        fixed = [name for name in options(self.quantise.quantiser) if name in OWN_BITS]
        if strategy != "per_position" and fixed:
            raise ValueError(f"allocation {strategy} chooses bits, but quantiser {fixed[0]} has its own; leave it out")
        if strategy == "sdq" and 16 in bits:
            raise ValueError("allocation sdq draws 2 to 8 bits, but quantise.weight_bits has 16; leave it out")
        if self.allocation.budget_ms is not None and len(options(self.quantise.execution)) < 2:
            only = self.quantise.execution
            raise ValueError(f"allocation.budget_ms makes INT8 of float layers, but quantise.execution is {only}; give it [int8, float]")
        if "quantise, prune" in options(self.order):
            without = {"distil.init scratch": "scratch" in options(self.distil.init), "allocation sdq": strategy == "sdq"}
            without |= {f"quantiser {name}": name in options(self.quantise.quantiser) for name in sorted(DENSE)}
            if wrong := [what for what, present in without.items() if present]:
                law = "order [quantise, prune] trains a dense network on its grids, then what is left of it"
                raise ValueError(f"{law}, but there is {wrong[0]}; leave it out")
        return self

    def resolved(self) -> dict[str, Any]:
        """The space as a canonical dict of JSON values, without `config`: its content counts, not its name."""
        return self.model_dump(mode="json", exclude={"config"})


def load_space(path: Path, overrides: Sequence[str] = ()) -> Space:
    """The space in the YAML file `path` with `overrides` (`key=value`) applied; a `config` path is relative to that file's folder."""
    data = load_yaml(path)
    if isinstance(config := data.get("config"), str) and not is_bare_name(config):
        data = data | {"config": str(resolve_path(config, path.parent))}
    return parse(Space, apply_overrides(data, overrides), f"{path} with --set" if overrides else str(path))


def check_names(space: Space, students: Iterable[str], losses: Iterable[str], quantisers: Iterable[str], where: str = "the space") -> None:
    """UserError for the first name in `space` that no table has."""
    checks = [
        ("student", "student.name", space.student.name, [*students, SELF]),
        ("loss", "distil.loss", space.distil.loss, list(losses)),
        ("quantiser", "quantise.quantiser", space.quantise.quantiser, list(quantisers)),
    ]
    for kind, key, value, known in checks:
        for name in options(value):
            if kind == "student" and in_zoo(name):
                check_zoo_name(name, f"{where}, {key}")
            elif name not in known:
                listed = ", ".join(sorted(set(known)))
                raise UserError(f"unknown {kind} {name!r}{nearest(name, known) or ';'} known: {listed} ({where}, {key})")


def default_space() -> Space:
    """The space of a run without YAML: the user's own network, pruned and quantised."""
    prune = {"positions": 4, "ratio": {"low": 0.0, "high": 0.6, "step": 0.1}}
    quantise = {"positions": 12, "weight_bits": [2, 3, 4, 5, 6, 8], "execution": ["int8", "float"]}
    return parse(Space, {"student": {"name": SELF}, "prune": prune, "quantise": quantise}, "the default space")
