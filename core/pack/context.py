"""The context coder: integers of weights in fewer bytes than their order-0 entropy, by ANS over adaptive, shared statistics.

A weight's magnitude is foretold from those already coded in its filter, its input channel, its place in the kernel and its kernel, its
sign from the signs in its kernel. Foretold magnitude and sign are the context. Every context counts what it has seen: its first guess
is a bell of that width, its last the counts. All tensors of one alphabet share the counts, so a small layer pays for no table.

Weights are visited in steps that grow by two fifths, each spread evenly over the whole tensor: every filter and channel is known a
little early on, and numpy handles a step at once. Encoder and decoder take the same walk (`_walk`).

The file must mean the same on every machine: sums are of integers, and floats are only added, multiplied, divided, rooted and compared
one by one, which IEEE 754 defines to the last bit; no exp, log or pow.

References: Wiedemann et al. 2020, DeepCABAC, arXiv 1907.11900 (contexts from neighbours); Duda 2013, arXiv 1311.2540 (ANS).
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from core.pack.types import PackError, limits

BOUNDS = np.array(list(itertools.accumulate([0.02] + [1.25] * 40, lambda bound, factor: bound * factor)))
"""Magnitudes in quantisation steps that part the contexts: 0.02 to 150."""
CENTRES = np.concatenate([BOUNDS[:1] * 0.8, BOUNDS * 1.118])
LEANINGS = np.array([-2.0, -0.8, -0.25, 0.25, 0.8, 2.0])
"""What parts the signs: the value foretold by the kernel's other weights, over the foretold magnitude."""
SIGNS = len(LEANINGS) + 1
MEANS = np.array(list(itertools.accumulate([1 / 64] + [1.189207115] * 55, lambda mean, factor: mean * factor)))
"""First guesses of a tensor's mean magnitude: 1/64 to 216 in quarter octaves."""
FIRST_STEP, STEP_GROWTH = 64, 1.4
LATTICE = (np.uint32(3242174889), np.uint32(2447445414))  # 2^32 by the plastic number and its square: even in both directions
MEAN_TRUST, FILTER_TRUST, CHANNEL_TRUST, PLACE_TRUST, KERNEL_TRUST, COLUMN_TRUST = 20.0, 40.0, 40.0, 100.0, 12.0, 30.0
"""How many weights of a filter, channel, ... the guess without them counts for."""
BELL_TRUST, SMOOTH_TRUST, TOTAL_TRUST = 60, 10.0, 6.0
"""How many counts the bell counts for; how many per symbol the smoothed counts, and those of all signs together."""
SMOOTHING = 0.5
"""Half the width over which counts are smoothed, as a share of the context's magnitude."""
PAIR_TRUST = 30.0
"""The sum of squares that a correlation of 0 between two places counts for."""

Runs = Sequence[tuple[slice, np.ndarray]]
"""Cells of one context, as a part of the cells ordered by context, and the weights of every symbol there, float64 (alphabet,)."""
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


def describe(values: np.ndarray, bits: int) -> Layer:
    """The best first guesses for the `bits`-bit integers `values` (out, ...)."""
    low, _ = limits(bits)
    counts = np.bincount(values.reshape(-1).astype(np.int64) - low, minlength=1)
    mode = int(counts.argmax())
    centre = mode + low if 2 * int(counts[mode]) > values.size else 0
    mean = float(np.abs(values.astype(np.int64) - centre).mean()) if values.size else 0.0
    return Layer(values.shape, bits, centre, int(np.abs(MEANS - mean).argmin()))


def encode(layers: Sequence[Layer], values: Sequence[np.ndarray]) -> tuple[bytes, list[float]]:
    """The stream of all tensors in turn, whole 32-bit words, and the bits that each of them takes."""
    import constriction

    written: list[tuple[np.ndarray, np.ndarray]] = []
    bits: list[float] = []
    statistics: dict[tuple[int, int], _Counts] = {}
    for layer, array in zip(layers, values, strict=True):
        symbols, start = array.reshape(-1).astype(np.int64) - layer.centre - layer.alphabet[0], len(written)

        def note(cells: np.ndarray, order: np.ndarray, runs: Runs, symbols: np.ndarray = symbols) -> np.ndarray:
            written.extend((symbols[cells[order[part]]], table) for part, table in runs)
            return symbols[cells]

        _walk(layer, _counts_for(layer, statistics), note)
        bits.append(sum(_cost(found, table) for found, table in written[start:]))
    coder = constriction.stream.stack.AnsCoder()
    for found, table in reversed(written):  # a stack: what is written last is read first
        coder.encode_reverse(found.astype(np.int32), _model(table))
    return coder.get_compressed().astype("<u4").tobytes(), bits


def decode(layers: Sequence[Layer], stream: bytes) -> list[np.ndarray]:
    """The integers of every tensor, int8 of its shape; PackError unless the stream holds exactly these."""
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

    statistics: dict[tuple[int, int], _Counts] = {}
    found = [_walk(layer, _counts_for(layer, statistics), read) for layer in layers]
    if not coder.is_empty():
        raise PackError("an entropy-coded stream must end with its last integer, but this one goes on: it is damaged; export it again")
    return found


def _walk(layer: Layer, counts: _Counts, swap: Swap) -> np.ndarray:
    """Visit every cell of the tensor, step by step, and take its symbol from `swap`; int8 of the tensor's shape."""
    low, high = limits(layer.bits)
    values = np.zeros(layer.count, np.int8)
    seen = _Seen(layer)
    for cells in _steps(layer):
        contexts = seen.foretell(cells)
        order = np.argsort(contexts, kind="stable")
        symbols = swap(cells, order, counts.runs(contexts[order]))
        counts.add(contexts, symbols)
        found = symbols + (layer.alphabet[0] + layer.centre)
        if found.min() < low or found.max() > high:
            raise PackError(f"{layer.bits}-bit values lie in {low}..{high}, but this packed weight file has others: it is damaged")
        values[cells] = found
        seen.add(cells, found - layer.centre)
    return values.reshape(layer.shape)


def _steps(layer: Layer) -> list[np.ndarray]:
    """Flat indices of every step."""
    if layer.count == 0:
        return []
    filters = np.arange(layer.shape[0], dtype=np.uint32)[:, None] * LATTICE[0]
    phase = (filters + np.arange(layer.count // layer.shape[0], dtype=np.uint32)[None] * LATTICE[1]).reshape(-1)
    ends, end = [], FIRST_STEP
    while end < layer.count:
        ends.append(end)
        end = int(end * STEP_GROWTH)
    return np.split(np.argsort(phase, kind="stable"), ends)


class _Seen:
    """Sums and numbers of the magnitudes coded so far, by filter, input channel, place, kernel, and channel with place."""

    def __init__(self, layer: Layer) -> None:
        self.places = math.prod(layer.shape[2:])
        self.channels = math.prod(layer.shape[1:2])
        self.guess = float(MEANS[layer.mean])
        filters = layer.shape[0]
        sizes = (1, filters, self.channels, self.places, filters * self.channels, self.channels * self.places)
        self.sums = [np.zeros(size) for size in sizes]
        self.numbers = [np.zeros(size) for size in sizes]
        self.kernels = np.zeros((filters * self.channels, self.places))
        self.known = np.zeros((filters * self.channels, self.places), np.bool_)

    def groups(self, cells: np.ndarray) -> tuple[np.ndarray, ...]:
        """For every kind of group, the one that each cell is in."""
        filters, columns = np.divmod(cells, self.channels * self.places)
        channels, places = np.divmod(columns, self.places)
        return np.zeros_like(cells), filters, channels, places, filters * self.channels + channels, columns

    def foretell(self, cells: np.ndarray) -> np.ndarray:
        """The context of every cell, int64 (n,)."""
        _, filters, channels, places, kernels, columns = self.groups(cells)
        mean = (self.sums[0][0] + MEAN_TRUST * self.guess) / (self.numbers[0][0] + MEAN_TRUST)
        by_filter, by_channel, by_place = (
            (self.sums[kind] + trust * mean) / ((self.numbers[kind] + trust) * mean)
            for kind, trust in ((1, FILTER_TRUST), (2, CHANNEL_TRUST), (3, PLACE_TRUST))
        )
        plain = mean * by_filter[filters] * by_channel[channels] * by_place[places]
        by_kernel = (self.sums[4][kernels] + KERNEL_TRUST * plain) / ((self.numbers[4][kernels] + KERNEL_TRUST) * plain)
        by_column = (self.sums[5][columns] + COLUMN_TRUST * plain) / ((self.numbers[5][columns] + COLUMN_TRUST) * plain)
        magnitudes = plain * by_kernel * by_column
        leanings = self._lean(kernels, places) / magnitudes
        return np.searchsorted(BOUNDS, magnitudes) * SIGNS + np.searchsorted(LEANINGS, leanings)

    def _lean(self, kernels: np.ndarray, places: np.ndarray) -> np.ndarray:
        """Sum over the known weights of the same kernel, each times the correlation of its place with the cell's."""
        together = self.kernels.T @ self.kernels  # integers below 2^53: exact in any order
        energy = (self.kernels * self.kernels).T @ self.known
        weights = together / (energy + 1.0) * (energy / (energy + PAIR_TRUST))
        leaning = np.zeros(len(kernels))
        for place in range(self.places):
            leaning += weights[place][places] * self.kernels[kernels, place]
        return leaning

    def add(self, cells: np.ndarray, values: np.ndarray) -> None:
        """Learn `values` (n,), counted from the centre."""
        magnitudes = np.abs(values)
        groups = self.groups(cells)
        for sums, numbers, group in zip(self.sums, self.numbers, groups, strict=True):
            sums += np.bincount(group, magnitudes, len(sums))  # integers below 2^53: exact
            numbers += np.bincount(group, minlength=len(numbers))
        self.kernels[groups[4], groups[3]] = values
        self.known[groups[4], groups[3]] = True


class _Counts:
    """How often every context has seen every symbol, int64 (contexts, alphabet), and every magnitude alone, whatever the sign."""

    def __init__(self, low: int, high: int) -> None:
        self.size = high - low + 1
        self.bells = _bells(low, high)
        self.counts = np.zeros((len(CENTRES) * SIGNS, self.size), np.int64)
        self.totals = np.zeros((len(CENTRES), self.size), np.int64)
        reach = np.floor(CENTRES * SMOOTHING).astype(np.int64)[:, None]
        symbols = np.arange(self.size)[None]
        self.first, self.last = np.maximum(symbols - reach, 0), np.minimum(symbols + reach + 1, self.size)

    def runs(self, ordered: np.ndarray) -> list[tuple[slice, np.ndarray]]:
        """Where every context stands in the sorted `ordered` (n,), and what it expects."""
        starts = np.flatnonzero(np.diff(ordered, prepend=-1))
        tables = self._expected(*np.divmod(ordered[starts], SIGNS))
        ends = itertools.pairwise([*starts.tolist(), len(ordered)])
        return [(slice(*pair), table) for pair, table in zip(ends, tables, strict=True)]

    def _expected(self, sizes: np.ndarray, signs: np.ndarray) -> np.ndarray:
        """float64 (n, alphabet) for magnitudes and signs (n,); rows do not sum to 1."""
        totals = self.totals[sizes]
        near = 4 * totals + self.totals[np.maximum(sizes - 1, 0)] + self.totals[np.minimum(sizes + 1, len(CENTRES) - 1)]
        running = np.concatenate([np.zeros((len(near), 1), np.int64), near.cumsum(1)], axis=1)
        first, last = self.first[sizes], self.last[sizes]
        spans = np.take_along_axis(running, last, 1) - np.take_along_axis(running, first, 1)
        smooth = (spans << 10) // (last - first) + self.bells[sizes]
        smooth_trust, total_trust = SMOOTH_TRUST * self.size, TOTAL_TRUST * self.size
        guess = totals + smooth_trust * (smooth / smooth.sum(1, keepdims=True))
        guess = guess / (totals.sum(1, keepdims=True) + smooth_trust)
        return self.counts[sizes * SIGNS + signs] + total_trust * guess

    def add(self, contexts: np.ndarray, symbols: np.ndarray) -> None:
        """Count what was seen."""
        np.add.at(self.counts, (contexts, symbols), 1)
        np.add.at(self.totals, (contexts // SIGNS, symbols), 1)


@functools.cache
def _bells(low: int, high: int) -> np.ndarray:
    """First guesses, int64 (magnitudes, alphabet): bells (1 + (k/s)^2 / 4)^-4 whose mean magnitude is the context's."""
    squares = np.arange(low, high + 1, dtype=np.float64)[None] ** 2
    means = np.minimum(CENTRES, (high - low) / 3.2)[:, None]
    narrow, wide = np.full_like(means, 1e-3), np.full_like(means, 1e4)
    for _ in range(60):
        middle = np.sqrt(narrow * wide)
        heights = 1.0 + squares / (4.0 * middle * middle)
        heights = 1.0 / (heights * heights * heights * heights)
        heights = heights / np.cumsum(heights, axis=1)[:, -1:]  # not sum: its order differs between machines
        thin = np.cumsum(heights * np.sqrt(squares), axis=1)[:, -1:] < means
        narrow, wide = np.where(thin, middle, narrow), np.where(thin, wide, middle)
    return np.floor(heights * (BELL_TRUST * 4096)).astype(np.int64) + 1


def _counts_for(layer: Layer, statistics: dict[tuple[int, int], _Counts]) -> _Counts:
    """The counts of the layer's alphabet."""
    if layer.alphabet not in statistics:
        statistics[layer.alphabet] = _Counts(*layer.alphabet)
    return statistics[layer.alphabet]


def _model(table: np.ndarray) -> Any:
    import constriction

    return constriction.stream.model.Categorical(table, perfect=False)


def _cost(symbols: np.ndarray, table: np.ndarray) -> float:
    """Bits of `symbols` under the unnormalised `table`; for information alone."""
    return float((np.log2(table.sum()) - np.log2(table[symbols])).sum())
