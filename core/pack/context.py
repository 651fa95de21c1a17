"""The context coder: integers of weights in fewer bytes than their order-0 entropy, by ANS over adaptive, shared statistics.

A weight's magnitude is foretold from those already coded in its filter, its input channel, its place in the kernel and its kernel, its
sign from the signs in its kernel. Foretold magnitude and sign are the context. Every context counts what it has seen: its first guess
is a bell of that width, its last the counts. Where contexts tell nothing, the tensor's own table is followed (core/pack/experts.py).

Weights are visited in steps that grow by two fifths (the first ones double), each spread evenly over the whole tensor: every filter and
channel is known a little early on, and numpy handles a step at once. Encoder and decoder take the same walk (`_walk`).

The file must mean the same on every machine: sums are of integers, and floats are only added, multiplied, divided, rooted and compared
one by one, which IEEE 754 defines to the last bit; no exp, log or pow.

References: Wiedemann et al. 2020, DeepCABAC, arXiv 1907.11900 (contexts from neighbours); Duda 2013, arXiv 1311.2540 (ANS).
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from core.pack.counts import BOUNDS, FILTERS, LEANINGS, SIGNS, Counts
from core.pack.experts import LEVEL_COUNT, LEVELS, Experts
from core.pack.types import PackError, limits

MEANS = np.array(list(itertools.accumulate([1 / 64] + [1.189207115] * 55, lambda mean, factor: mean * factor)))
"""First guesses of a tensor's mean magnitude: 1/64 to 216 in quarter octaves."""
FIRST_STEP, STEP_GROWTH, SMALL = 64, 1.4, 256
"""Weights of the first step; by how much a step multiplies what is known; below how many it doubles, since a step takes its time."""
LATTICE = (np.uint32(3242174889), np.uint32(2447445414))  # 2^32 by the plastic number and its square: even in both directions
MEAN_TRUST, FILTER_TRUST, CHANNEL_TRUST, PLACE_TRUST, KERNEL_TRUST, COLUMN_TRUST = 20.0, 40.0, 40.0, 100.0, 12.0, 30.0
"""How many weights of a filter, channel, ... the guess without them counts for."""
LEVEL_TRUST = 6.0
"""How many integers of a filter that are not zero the tensor's mean counts for."""
PAIR_TRUST = 30.0
"""The sum of squares that a correlation of 0 between two places counts for."""
MAX_PLACES = 1024
"""Of a kernel, at most: correlations are known of every two of them. 32 x 32; others are not coded."""
FLOATS_AT_ONCE, CELLS_AT_ONCE = 1 << 16, 1 << 15
"""Of kernels, and weights of a step, that are in memory together with all that is known of them."""
PLACES_PER_WEIGHT, WEIGHTS_PER_STEP = 64, 256
"""A weight is foretold from so many places of its kernel in the time that it takes itself; a short step takes that of so many weights."""

TABLES_AT_ONCE = 1 << 26
"""Bytes of tables that an encoder holds, beside those of the tensor that it is at."""

T = TypeVar("T")
Statistics = dict[tuple[int, int], Counts]
"""Alphabet -> what its contexts have seen."""
Written = tuple[np.ndarray, np.ndarray]
"""Symbols of one context in a step, int32 (n,), and the weights of every symbol there, float64 (alphabet,)."""
Runs = Sequence[tuple[slice, np.ndarray]]
"""Cells of one context, as a part of the cells ordered by context, and the weights of every symbol there, float64 (alphabet,)."""
Groups = tuple[np.ndarray, ...]
"""For every kind of group (`_Seen`), the one that each of a step's cells is in, int64 (n,)."""
Swap = Callable[[np.ndarray, np.ndarray, Runs], np.ndarray]
"""(cells of a step int64 (n,), their order by context int64 (n,), runs) -> their symbols int64 (n,)"""


@dataclass(frozen=True)
class Layer:
    """What encoder and decoder know of a tensor before its integers."""

    shape: tuple[int, ...]
    """Output channels first; at least one dimension."""
    bits: int
    """2 to 8."""
    centre: int
    """The integer from which magnitudes are counted: 0, or that of most weights."""
    mean: int
    """Index into MEANS."""

    @property
    def count(self) -> int:
        """Number of integers."""
        return math.prod(self.shape)

    @property
    def alphabet(self) -> tuple[int, int]:
        """(lowest, highest) integer as counted from the centre; one for all centres but 0, so that there are few."""
        low, high = limits(self.bits)
        return (low, high) if self.centre == 0 else (low - high, high - low)


def work(shape: tuple[int, ...]) -> int:
    """The time that a tensor takes, in weights: as many as it has, or more where kernels are large or steps are short."""
    count, steps = math.prod(shape), len(_ends(math.prod(shape), doubling=True)) + 1
    return max(count, count * math.prod(shape[2:]) // PLACES_PER_WEIGHT, steps * WEIGHTS_PER_STEP)


def describe(values: np.ndarray, bits: int) -> Layer:
    """The best first guesses for the `bits`-bit integers `values` (out, ...)."""
    low, _ = limits(bits)
    counts = np.bincount(values.reshape(-1).astype(np.int64) - low, minlength=1)
    mode = int(counts.argmax())
    centre = mode + low if 2 * int(counts[mode]) > values.size else 0
    mean = float(np.abs(values.astype(np.int64) - centre).mean()) if values.size else 0.0
    return Layer(values.shape, bits, centre, int(np.abs(MEANS - mean).argmin()))


def encode(layers: Sequence[Layer], values: Sequence[np.ndarray], experts: bool = True) -> bytes:
    """The stream of all tensors in turn, whole 32-bit words; by contexts alone without `experts`.

    What is written last is read first, so tables wait until all are known. Beyond TABLES_AT_ONCE they are dropped, and made again from
    the statistics of their first tensor.
    """
    import constriction

    statistics: Statistics = {}
    held: list[Written] = []
    begins: list[tuple[int, Statistics]] = [(0, {})]
    size = 0
    for index, (layer, array) in enumerate(zip(layers, values, strict=True)):
        if size > TABLES_AT_ONCE:
            begins.append((index, copy.deepcopy(statistics)))
            held, size = [], 0
        held += (written := _written(layer, array, statistics, experts, _both))
        size += sum(table.nbytes for _, table in written)
    coder, end = constriction.stream.stack.AnsCoder(), len(layers)
    for begin, before in reversed(begins):
        if end < len(layers):
            held = [each for index in range(begin, end) for each in _written(layers[index], values[index], before, experts, _both)]
        for found, table in reversed(held):
            coder.encode_reverse(found, _model(table))
        end = begin
    return coder.get_compressed().astype("<u4").tobytes()


def costs(layers: Sequence[Layer], values: Sequence[np.ndarray], experts: bool = True) -> list[float]:
    """The bits that each tensor takes in the stream of all."""
    statistics: Statistics = {}
    return [sum(_written(layer, array, statistics, experts, _cost)) for layer, array in zip(layers, values, strict=True)]


def _written(layer: Layer, values: np.ndarray, statistics: Statistics, experts: bool, of: Callable[[np.ndarray, np.ndarray], T]) -> list[T]:
    """What the tensor has to say, run by run: what is made `of` symbols int64 (n,) and their table. `statistics` learn of it."""
    symbols, written = values.reshape(-1).astype(np.int64) - layer.centre - layer.alphabet[0], list[T]()

    def note(cells: np.ndarray, order: np.ndarray, runs: Runs) -> np.ndarray:
        written.extend(of(symbols[cells[order[part]]], table) for part, table in runs)
        return symbols[cells]

    _walk(layer, _counts_for(layer, statistics), note, experts)
    return written


def decode(layers: Sequence[Layer], stream: bytes, experts: bool = True) -> list[np.ndarray]:
    """The integers of every tensor, int8 of its shape; PackError unless the stream holds exactly these. `experts` as they were encoded."""
    import constriction

    words = np.frombuffer(stream, "<u4").astype(np.uint32)
    if len(words) and words[-1] == 0:
        raise PackError("an entropy-coded stream must not end in a word of zeros, but this one does: it is damaged; export it again")
    coder = constriction.stream.stack.AnsCoder(words)

    def read(cells: np.ndarray, order: np.ndarray, runs: Runs) -> np.ndarray:
        symbols = np.empty(len(cells), np.int64)
        for part, table in runs:
            symbols[order[part]] = coder.decode(_model(table), part.stop - part.start)
        return symbols

    statistics: Statistics = {}
    found = [_walk(layer, _counts_for(layer, statistics), read, experts) for layer in layers]
    if not coder.is_empty():
        raise PackError("an entropy-coded stream must end with its last integer, but this one goes on: it is damaged; export it again")
    return found


def _walk(layer: Layer, counts: Counts, swap: Swap, choosing: bool) -> np.ndarray:
    """Visit every cell of the tensor, step by step, and take its symbol from `swap`; int8 of the tensor's shape."""
    low, high = limits(layer.bits)
    lowest = layer.alphabet[0] + layer.centre
    own = np.arange(counts.size) + lowest
    experts = Experts(counts, -layer.alphabet[0], (own >= low) & (own <= high)) if choosing else None
    values = np.zeros(layer.count, np.int8)
    seen = _Seen(layer)
    for cells in _steps(layer, choosing):
        contexts, levels = seen.foretell(cells)
        keys = contexts * LEVEL_COUNT + levels if experts and counts.followed == FILTERS else contexts
        order = np.argsort(keys, kind="stable")
        starts = np.flatnonzero(np.diff(keys[order], prepend=-1))
        of_run = contexts[order[starts]]
        new = np.diff(of_run, prepend=-1) > 0
        distinct, rows = of_run[new], new.cumsum() - 1
        if experts:
            experts.expect(distinct, seen.mean())
        tables = experts.tables(rows, levels[order[starts]]) if experts else counts.expected(distinct)
        ends = np.append(starts[1:], len(cells))
        parts = zip(starts.tolist(), ends.tolist(), strict=True)
        symbols = swap(cells, order, [(slice(*part), table) for part, table in zip(parts, tables, strict=True)])
        found = symbols + lowest
        if found.min() < low or found.max() > high:
            raise PackError(f"{layer.bits}-bit values lie in {low}..{high}, but this packed weight file has others: it is damaged")
        by_context = _histogram(np.repeat(rows, ends - starts), symbols[order], (len(distinct), counts.size))
        if experts:
            experts.learn(distinct, by_context, _histogram(levels, symbols, (LEVEL_COUNT, counts.size)))
        else:
            counts.add(distinct, by_context)
        values[cells] = found
        seen.add(cells, found - layer.centre)
    return values.reshape(layer.shape)


def _histogram(rows: np.ndarray, symbols: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """How often every symbol (n,) is in every row (n,): int64 of `shape`."""
    return np.bincount(rows * shape[1] + symbols, minlength=math.prod(shape)).reshape(shape)


def _steps(layer: Layer, doubling: bool) -> list[np.ndarray]:
    """Flat indices of every step; the first ones are longer with `doubling`."""
    if layer.count == 0:
        return []
    filters = np.arange(layer.shape[0], dtype=np.uint32)[:, None] * LATTICE[0]
    phase = (filters + np.arange(layer.count // layer.shape[0], dtype=np.uint32)[None] * LATTICE[1]).reshape(-1)
    return np.split(np.argsort(phase, kind="stable"), _ends(layer.count, doubling))


def _ends(count: int, doubling: bool) -> list[int]:
    """Where all steps but the last end."""
    ends, end = [], FIRST_STEP
    while end < count:
        ends.append(end)
        end = int(end * (2 if doubling and end < SMALL else STEP_GROWTH))
    return ends


class _Seen:
    """Sums and numbers of the magnitudes coded so far, by filter, input channel, place, kernel, and channel with place."""

    def __init__(self, layer: Layer) -> None:
        self.places = math.prod(layer.shape[2:])
        self.channels = math.prod(layer.shape[1:2])
        self.guess = float(MEANS[layer.mean])
        filters = layer.shape[0]
        sizes = (1, filters, self.channels, self.places, filters * self.channels, self.channels * self.places)
        kinds = [kind for kind, size in enumerate(sizes) if kind < 2 or size < layer.count]  # a group of one weight tells of no other
        self.sums = {kind: np.zeros(sizes[kind]) for kind in kinds}
        self.numbers = {kind: np.zeros(sizes[kind]) for kind in kinds}
        self.filled = np.zeros(filters)
        """Integers of every filter that are not zero."""
        self.leaning = min(self.places, filters * self.channels) > 1
        """Whether weights lean on others of their kernel: there are some, and other kernels show how."""
        kernels = (self.places, filters * self.channels) if self.leaning else (0, 0)
        self.kernels, self.known = np.zeros(kernels, np.int16), np.zeros(kernels, np.bool_)

    def mean(self) -> float:
        """The mean magnitude of the tensor as far as it is known."""
        return float((self.sums[0][0] + MEAN_TRUST * self.guess) / (self.numbers[0][0] + MEAN_TRUST))

    def foretell(self, cells: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The context of every cell, and how large the integers of its filter are where they are not zero (LEVELS); both int16 (n,)."""
        contexts, levels = np.empty((2, len(cells)), np.int16)
        of_filter, few = self._levels(), len(cells) < self.places
        correlations = self._correlations(np.arange(self.places)) if self.leaning and not few else None
        for part in _parts(len(cells), CELLS_AT_ONCE // self.places if few else CELLS_AT_ONCE):
            groups = self._groups(cells[part])
            contexts[part] = self._contexts(groups, correlations)
            levels[part] = of_filter[groups[1]]
        return contexts, levels

    def add(self, cells: np.ndarray, values: np.ndarray) -> None:
        """Learn the `values` (n,) of `cells`, counted from the centre."""
        for part in _parts(len(cells), CELLS_AT_ONCE):
            groups = self._groups(cells[part])
            magnitudes = np.abs(values[part]).astype(np.float64)
            for kind, sums in self.sums.items():
                np.add.at(sums, groups[kind], magnitudes)  # integers below 2^53: exact
                np.add.at(self.numbers[kind], groups[kind], 1.0)
            np.add.at(self.filled, groups[1][magnitudes > 0], 1.0)
            if self.leaning:
                self.kernels[groups[3], groups[4]], self.known[groups[3], groups[4]] = values[part], True

    def _groups(self, cells: np.ndarray) -> Groups:
        """For every kind of group, the one that each cell is in."""
        filters, columns = np.divmod(cells, self.channels * self.places)
        channels, places = np.divmod(columns, self.places)
        return np.zeros_like(cells), filters, channels, places, filters * self.channels + channels, columns

    def _levels(self) -> np.ndarray:
        """How large the integers of every filter are where they are not zero, int64 (filters,) below LEVEL_COUNT."""
        mean = (self.sums[0][0] + 1.0) / (float(self.filled.sum()) + 1.0)
        return np.searchsorted(LEVELS, (self.sums[1] + LEVEL_TRUST * mean) / ((self.filled + LEVEL_TRUST) * mean))

    def _contexts(self, groups: Groups, correlations: np.ndarray | None) -> np.ndarray:
        """The context of every cell, int64 (n,)."""
        mean = self.mean()
        plain = np.full(len(groups[0]), mean)
        for kind, trust in ((1, FILTER_TRUST), (2, CHANNEL_TRUST), (3, PLACE_TRUST)):
            plain *= self._ratio(kind, groups, trust, mean)
        magnitudes = plain * self._ratio(4, groups, KERNEL_TRUST, plain) * self._ratio(5, groups, COLUMN_TRUST, plain)
        leanings = self._lean(groups[4], groups[3], correlations) / magnitudes if self.leaning else np.zeros(len(magnitudes))
        return np.searchsorted(BOUNDS, magnitudes) * SIGNS + np.searchsorted(LEANINGS, leanings)

    def _ratio(self, kind: int, groups: Groups, trust: float, guess: float | np.ndarray) -> float | np.ndarray:
        """The mean magnitude of every cell's group over `guess`, (n,) or one for all, that stands for `trust` weights; (n,), or 1."""
        if kind not in self.sums:
            return 1.0
        group = groups[kind]
        ratio: np.ndarray = (self.sums[kind][group] + trust * guess) / ((self.numbers[kind][group] + trust) * guess)
        return ratio

    def _correlations(self, places: np.ndarray) -> np.ndarray:
        """Of every place of a kernel with `places` (n,), float64 (places, n)."""
        together, energy = np.zeros((2, self.places, len(places)))
        for part in _parts(self.kernels.shape[1], max(FLOATS_AT_ONCE // self.places, 1)):
            kernels, known = self.kernels[:, part].astype(np.float64), self.known[places, part].astype(np.float64)
            together += kernels @ kernels[places].T  # integers below 2^53: exact in any order
            energy += kernels**2 @ known.T
        together /= energy + 1.0
        together *= energy / (energy + PAIR_TRUST)
        return together

    def _lean(self, kernels: np.ndarray, places: np.ndarray, correlations: np.ndarray | None) -> np.ndarray:
        """Sum over the known weights of the same kernel, each times the correlation of its place with the cell's; float64 (n,)."""
        if correlations is None:
            return (self._correlations(places) * self.kernels[:, kernels]).cumsum(0)[-1]
        leaning = np.zeros(len(kernels))
        for row, values in zip(correlations, self.kernels, strict=True):
            leaning += row.take(places) * values.take(kernels)
        return leaning


def _parts(count: int, at_once: int) -> list[slice]:
    """The numbers below `count`, so many at once."""
    return [slice(start, start + at_once) for start in range(0, count, at_once)]


def _counts_for(layer: Layer, statistics: Statistics) -> Counts:
    """The counts of the layer's alphabet."""
    if layer.alphabet not in statistics:
        statistics[layer.alphabet] = Counts(*layer.alphabet)
    return statistics[layer.alphabet]


def _model(table: np.ndarray) -> Any:
    import constriction

    return constriction.stream.model.Categorical(table, perfect=False)


def _both(symbols: np.ndarray, table: np.ndarray) -> Written:
    return symbols.astype(np.int32), table


def _cost(symbols: np.ndarray, table: np.ndarray) -> float:
    """Bits of `symbols` under the unnormalised `table`; for information alone."""
    return float((np.log2(table.sum()) - np.log2(table[symbols])).sum())
