"""What the contexts of the context coder have seen: shared by all tensors of one alphabet, so that a small layer pays for no table."""

from __future__ import annotations

import functools
import itertools

import numpy as np

BOUNDS = np.array(list(itertools.accumulate([0.02] + [1.25] * 40, lambda bound, factor: bound * factor)))
"""Magnitudes in quantisation steps that part the contexts: 0.02 to 150."""
CENTRES = np.concatenate([BOUNDS[:1] * 0.8, BOUNDS * 1.118])
LEANINGS = np.array([-2.0, -0.8, -0.25, 0.25, 0.8, 2.0])
"""What parts the signs: the value foretold by the kernel's other weights, over the foretold magnitude."""
SIGNS = len(LEANINGS) + 1
BELL_TRUST, SMOOTH_TRUST, TOTAL_TRUST = 60, 10.0, 6.0
"""How many counts the bell counts for; how many per symbol the smoothed counts, and those of all signs together."""
SMOOTHING = 0.5
"""Half the width over which counts are smoothed, as a share of the context's magnitude."""


CONTEXTS, PLAIN, ZEROS, FILTERS = range(4)
"""Who expects a tensor's integers (core/pack/experts.py)."""


class Counts:
    """How often every context has seen every symbol, int64 (contexts, alphabet), and every magnitude alone, whatever the sign."""

    def __init__(self, low: int, high: int) -> None:
        self.size = high - low + 1
        self.followed = PLAIN
        """The expert of the latest step: the next tensor begins with it."""
        self.bells = _bells(low, high)
        self.counts = np.zeros((len(CENTRES) * SIGNS, self.size), np.int64)
        self.totals = np.zeros((len(CENTRES), self.size), np.int64)
        reach = np.floor(CENTRES * SMOOTHING).astype(np.int64)[:, None]
        symbols = np.arange(self.size)[None]
        self.first, self.last = np.maximum(symbols - reach, 0), np.minimum(symbols + reach + 1, self.size)

    def expected(self, contexts: np.ndarray) -> np.ndarray:
        """What every one of the rising `contexts` (n,) expects: weights of symbols, float64 (n, alphabet) > 0, that do not sum to 1."""
        sizes = contexts // SIGNS
        new = np.diff(sizes, prepend=-1) > 0
        return self.counts[contexts] + TOTAL_TRUST * self.size * self._guess(sizes[new])[new.cumsum() - 1]

    def _guess(self, sizes: np.ndarray) -> np.ndarray:
        """What every one of `sizes` (n,) expects, whatever the sign, float64 (n, alphabet)."""
        totals = self.totals[sizes]
        near = 4 * totals + self.totals[np.maximum(sizes - 1, 0)] + self.totals[np.minimum(sizes + 1, len(CENTRES) - 1)]
        running = np.concatenate([np.zeros((len(near), 1), np.int64), near.cumsum(1)], axis=1)
        first, last = self.first[sizes], self.last[sizes]
        spans = np.take_along_axis(running, last, 1) - np.take_along_axis(running, first, 1)
        smooth = (spans << 10) // (last - first) + self.bells[sizes]
        trust = SMOOTH_TRUST * self.size
        guess = totals + trust * (smooth / smooth.sum(1, keepdims=True))
        guesses: np.ndarray = guess / (totals.sum(1, keepdims=True) + trust)
        return guesses

    def add(self, contexts: np.ndarray, found: np.ndarray) -> None:
        """Count `found`, int64 (n, alphabet): how often each of the distinct `contexts` (n,) has just seen every symbol."""
        self.counts[contexts] += found
        np.add.at(self.totals, contexts // SIGNS, found)


@functools.cache
def _bells(low: int, high: int) -> np.ndarray:
    """First guesses, int64 (magnitudes, alphabet) > 0: bells (1 + (k/s)^2 / 4)^-4 whose mean magnitude is the context's."""
    own = np.arange(low, high + 1, dtype=np.float64)[None]
    squares = own * own
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
