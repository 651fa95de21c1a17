"""Four ways to expect a tensor's integers, and which of them to follow: contexts pay where weights depend on each other, and nowhere else.

`contexts`: what every context expects (core/pack/counts.py). `plain`: one table of the tensor's own integers, which takes their order-0
entropy and a few bytes. `zeros`: how many are zero by context, which ones the others are by the tensor: what a sparse codebook wants, whose
values no other tensor shares. `filters`: the same, but the others by how large they are in their filter: what magnitude pruning leaves
is all beyond one threshold, and that is another integer in every filter, for each has its own step.

Both ends know what each would have cost in the steps before, and follow the cheapest: nothing is stored.

References: Herbster & Warmuth 1998, Tracking the Best Expert (older costs fade, so that a change is soon followed).
"""

from __future__ import annotations

import numpy as np

from core.pack.counts import BOUNDS, CONTEXTS, FILTERS, PLAIN, ZEROS, Counts

LEVELS = np.array([0.7, 0.82, 0.94, 1.06, 1.2, 1.4])
"""What parts the filters: the mean magnitude of their integers that are not zero, over that of the tensor."""
LEVEL_COUNT = len(LEVELS) + 1
ZERO_TRUST, OTHERS_TRUST, SHARED_TRUST, LEVEL_TRUST = 20.0, 16.0, 20.0, 20.0
"""How many integers a guess counts for: the first of the share of zeros; of the others; of these before other tensors; that of a level."""
FLAT = 0.75
"""How much of the others' first guess is the same for all, and no bell: a pruned tensor has few small integers."""
FEWEST_ZEROS, MOST_ZEROS = 0.02, 0.999
FADING, MARGIN = 2, 8
"""Costs are quartered with every step; others must cost 1/256 less than the contexts, which may tell more as soon as they know more."""
ROOT, TWICE_LOG2_E = 0.7071067811865476, 2.8853900817779268
UNIT = 65536.0
"""Costs are counted in 1/65536 bit: their sums are of integers."""


class Experts:
    """What is expected of one tensor, step by step."""

    def __init__(self, counts: Counts, zero: int, valid: np.ndarray) -> None:
        """`zero`: the symbol of 0; `valid`, bool (alphabet,): the symbols that the tensor may have."""
        self.counts, self.zero = counts, zero
        self.own = np.zeros((LEVEL_COUNT, counts.size), np.int64)
        self.costs = [int(UNIT) * (expert != counts.followed) for expert in range(4)]
        self.distances = np.abs(np.arange(counts.size) - zero)
        self.others = valid & (self.distances > 0)

    def expect(self, contexts: np.ndarray, mean: float) -> None:
        """Get ready for a step that has the distinct `contexts` (n,); `mean` is the tensor's mean magnitude as far as it is known."""
        self.expected = self.counts.expected(contexts)
        self.sums = self.expected.cumsum(1)[:, -1]  # not sum: its order differs between machines
        self.empty = self.expected[:, self.zero] / self.sums
        own = self.own * self.others
        self.shares = self._shares(own.sum(0), mean)
        self.by_level = (own + LEVEL_TRUST * self.shares) / (own.sum(1, keepdims=True) + LEVEL_TRUST)
        guess = min(max(1.0 - mean / float((self.shares * self.distances).cumsum()[-1]), FEWEST_ZEROS), MOST_ZEROS)
        self.plain = (float(self.own[:, self.zero].sum()) + ZERO_TRUST * guess) / (float(self.own.sum()) + ZERO_TRUST)

    def tables(self, rows: np.ndarray, levels: np.ndarray) -> np.ndarray:
        """Of the expert that is followed: what each of `rows` (n,) of the contexts expects at its level (n,).

        float64 (n, alphabet); rows do not sum to 1.
        """
        followed = self.counts.followed
        if followed == CONTEXTS:
            return self.expected[rows]
        empty = np.full(len(rows), self.plain) if followed == PLAIN else self.empty[rows]
        tables: np.ndarray = (1.0 - empty)[:, None] * (self.by_level[levels] if followed == FILTERS else self.shares)
        tables[:, self.zero] = empty
        return tables

    def learn(self, contexts: np.ndarray, found: np.ndarray, at_level: np.ndarray) -> None:
        """Add what was seen in this step: by every context, `found`, int64 (n, alphabet), and at every level, int64 (levels, alphabet)."""
        zeros, filled = found[:, self.zero], found.sum(1) - found[:, self.zero]
        rows, symbols = found.nonzero()
        levels, others = (at_level * self.others).nonzero()
        often = at_level[levels, others]
        plain = np.array([self.plain, 1.0 - self.plain])
        of_level, of_all = self.by_level[levels, others], self.shares[others]
        logs = _bits(self.expected[rows, symbols], self.sums, self.empty, 1.0 - self.empty, of_all, of_level, plain)
        by_context, sums, empty, full, of_all_bits, of_level_bits, plain_bits = logs
        empty_by_context = int((zeros * empty + filled * full).sum())
        which = int((often * of_all_bits).sum())
        step = {
            CONTEXTS: int((found[rows, symbols] * (sums[rows] - by_context)).sum()),
            PLAIN: -int(zeros.sum() * plain_bits[0] + filled.sum() * plain_bits[1]) - which,
            ZEROS: -empty_by_context - which,
            FILTERS: -empty_by_context - int((often * of_level_bits).sum()),
        }
        self.costs = [(before >> FADING) + step[expert] for expert, before in enumerate(self.costs)]
        best = min(PLAIN, ZEROS, FILTERS, key=lambda expert: self.costs[expert])
        self.counts.followed = best if self.costs[best] < self.costs[CONTEXTS] - (self.costs[CONTEXTS] >> MARGIN) else CONTEXTS
        self.own += at_level
        self.counts.add(contexts, found)

    def _shares(self, own: np.ndarray, mean: float) -> np.ndarray:
        """What the integers that are not zero are expected to be, float64 (alphabet,), 0 for zero and for what is not valid."""
        bell = self.counts.bells[np.searchsorted(BOUNDS, mean)] * self.others
        guess = (1.0 - FLAT) * (bell / bell.sum()) + FLAT / self.others.sum() * self.others
        before = self.counts.totals.sum(0) * self.others - own
        guess = (before + SHARED_TRUST * guess) / (float(before.sum()) + SHARED_TRUST)
        shares: np.ndarray = (own + OTHERS_TRUST * guess) / (float(own.sum()) + OTHERS_TRUST)
        return shares


def _bits(*parts: np.ndarray) -> list[np.ndarray]:
    """log2 of float64 > 0, each (n,), in 1/65536 bit, int64 (n,), without a library's log: that rounds differently elsewhere."""
    mantissas, exponents = np.frexp(np.concatenate(parts))
    ratio = (mantissas - ROOT) / (mantissas + ROOT)
    square = ratio * ratio
    series = ratio * (1.0 + square * (1.0 / 3.0 + square * (0.2 + square / 7.0)))
    found = np.floor((exponents - 0.5 + TWICE_LOG2_E * series) * UNIT).astype(np.int64)
    ends = np.cumsum([len(part) for part in parts])
    return [found[end - len(part) : end] for part, end in zip(parts, ends.tolist(), strict=True)]
