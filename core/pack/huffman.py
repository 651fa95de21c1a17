"""Huffman codes for the integers of one tensor, as Deep Compression has them: the coder to compare the context coder with.

Dense tensors are coded symbol by symbol. Sparse ones are coded as the values that are not 0 and the gaps before them; a gap beyond
the largest is bridged by a filler zero. Whatever is smallest is taken.

    payload = form u8: 0 dense, else the bits of a gap | dense: code of all values
                                                       | sparse: number of entries, code of the gaps, code of the values
    code    = lowest symbol + 128 u8, number of symbols - 1 u8, length of each symbol's code in 4 bits | codes, most significant bit first

Codes are canonical, at most 15 bits long, and both halves are padded with zeros to whole bytes.

References: Han et al. 2016, Deep Compression, arXiv 1510.00149, sections 2 and 4.
"""

from __future__ import annotations

import heapq
import itertools

import numpy as np

from core.pack.binary import Cursor, varint
from core.pack.types import PackError

LONGEST = 15
GAP_BITS = (5, 8)  # of linear layers and of convolutions in the paper
DENSE = 0
LOWEST = -128


def encode(values: np.ndarray) -> bytes:
    """The smallest payload of the 2 to 8-bit integers `values`, any shape, at least one of them."""
    flat = values.reshape(-1).astype(np.int64)
    sparse = [_sparse(flat, bits) for bits in GAP_BITS] if np.count_nonzero(flat) * 2 < flat.size else []
    return min([bytes([DENSE]) + _encode_symbols(flat), *sparse], key=len)


def decode(cursor: Cursor, count: int) -> np.ndarray:
    """The next payload's `count` integers, int64 (count,); PackError for a malformed one."""
    form = cursor.take(1)[0]
    if form == DENSE:
        return _decode_symbols(cursor, count)
    entries = cursor.varint()
    if form not in GAP_BITS or not 0 < entries <= count:
        raise PackError(
            f"Huffman-coded integers are dense or have gaps of {GAP_BITS} bits, but this packed file has form {form}; export it again"
        )
    gaps = _decode_symbols(cursor, entries) - LOWEST
    places = np.cumsum(gaps + 1) - 1
    if gaps.min() < 0 or gaps.max() >= 1 << form or places[-1] >= count:
        raise PackError(
            "gaps between integers must stay within their tensor, but those of this file do not: it is damaged; export it again"
        )
    values = np.zeros(count, np.int64)
    values[places] = _decode_symbols(cursor, entries)
    return values


def _sparse(flat: np.ndarray, bits: int) -> bytes:
    """Gaps and values of what is not 0, and of fillers."""
    largest = (1 << bits) - 1
    places = np.flatnonzero(flat)
    if len(places) == 0:
        places = np.zeros(1, np.int64)
    gaps = np.diff(places, prepend=-1) - 1
    fillers = gaps // (largest + 1)
    starts = np.repeat(places - gaps, fillers)
    within = np.arange(len(starts)) - np.repeat(np.cumsum(fillers) - fillers, fillers)
    places = np.sort(np.concatenate([places, starts + (within + 1) * (largest + 1) - 1]))
    gaps = np.diff(places, prepend=-1) - 1
    return bytes([bits]) + varint(len(places)) + _encode_symbols(gaps + LOWEST) + _encode_symbols(flat[places])


def _encode_symbols(symbols: np.ndarray) -> bytes:
    """Table and codes of `symbols`, int64 (n,) within [-128, 127]."""
    lowest = int(symbols.min())
    lengths = _lengths(np.bincount(symbols - lowest))
    codes = _codes(lengths)
    shifts = np.arange(LONGEST - 1, -1, -1)
    planes = (codes[:, None] << (LONGEST - lengths)[:, None] >> shifts & 1).astype(np.uint8)  # left-aligned, (alphabet, LONGEST)
    used = np.arange(LONGEST)[None] < lengths[:, None]
    chosen = symbols - lowest
    bits = planes[chosen][used[chosen]]
    nibbles = np.concatenate([lengths, np.zeros(len(lengths) % 2, np.int64)]).reshape(-1, 2)
    table = (nibbles[:, 0] << 4 | nibbles[:, 1]).astype(np.uint8).tobytes()
    return bytes([lowest - LOWEST, len(lengths) - 1]) + table + np.packbits(bits).tobytes()


def _decode_symbols(cursor: Cursor, count: int) -> np.ndarray:
    """The next `count` symbols, int64 (count,)."""
    lowest, size = cursor.take(1)[0] + LOWEST, cursor.take(1)[0] + 1
    table = np.frombuffer(cursor.take(-(-size // 2)), np.uint8)
    lengths = np.stack([table >> 4, table & 15], axis=1).reshape(-1)[:size].astype(np.int64)
    symbols, steps = _lookup(lengths)
    window = _windows(cursor.peek(-(-count * LONGEST // 8)), count)
    hops, place, places = steps[window].tolist(), 0, []
    for _ in range(count):
        if place >= len(hops) or hops[place] == 0:
            raise PackError("Huffman codes must be those of their table and end in the file, but these do not; export it again")
        places.append(place)
        place += hops[place]
    cursor.take(-(-place // 8))
    return symbols[window[places]] + lowest


def _windows(data: bytes, count: int) -> np.ndarray:
    """The LONGEST bits from every bit on that `count` codes may reach, int32 (bits,)."""
    bits = np.unpackbits(np.frombuffer(data, np.uint8), count=min(8 * len(data), count * LONGEST))
    padded = np.concatenate([bits, np.zeros(LONGEST, np.uint8)]).astype(np.int32)
    windows = np.zeros(len(bits), np.int32)
    for shift in range(LONGEST):
        windows |= padded[shift : shift + len(bits)] << (LONGEST - 1 - shift)
    return windows


def _lookup(lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(symbol, length of its code) of every window, 2^LONGEST each; length 0 where no code begins so."""
    codes = _codes(lengths)
    if sum(1 << (LONGEST - int(length)) for length in lengths if length) > 1 << LONGEST:
        raise PackError("the lengths of a Huffman code must leave room for all its symbols, but these do not; export it again")
    symbols, steps = np.zeros(1 << LONGEST, np.int64), np.zeros(1 << LONGEST, np.int64)
    for symbol in np.flatnonzero(lengths):
        rest = LONGEST - int(lengths[symbol])
        part = slice(int(codes[symbol]) << rest, (int(codes[symbol]) + 1) << rest)
        symbols[part], steps[part] = symbol, lengths[symbol]
    return symbols, steps


def _lengths(counts: np.ndarray) -> np.ndarray:
    """Bits of every symbol's code, int64; 0 for those that do not occur."""
    while True:
        lengths = _optimal(counts)
        if lengths.max() <= LONGEST:
            return lengths
        counts = np.where(counts > 0, counts // 2 + 1, 0)


def _optimal(counts: np.ndarray) -> np.ndarray:
    """Huffman's code lengths; a lone symbol takes one bit."""
    lengths = np.zeros(len(counts), np.int64)
    heap: list[tuple[int, int, tuple[int, ...]]] = [(int(counts[symbol]), int(symbol), (int(symbol),)) for symbol in np.flatnonzero(counts)]
    heapq.heapify(heap)
    if len(heap) == 1:
        lengths[heap[0][1]] = 1
    serial = itertools.count(len(counts))  # equal counts: older trees first, on every machine
    while len(heap) > 1:
        (first, _, left), (second, _, right) = heapq.heappop(heap), heapq.heappop(heap)
        lengths[[*left, *right]] += 1
        heapq.heappush(heap, (first + second, next(serial), left + right))
    return lengths


def _codes(lengths: np.ndarray) -> np.ndarray:
    """Canonical codes, int64: shorter ones first, equal lengths in the order of the symbols."""
    codes, code, before = np.zeros(len(lengths), np.int64), 0, 0
    for symbol in np.lexsort((np.arange(len(lengths)), lengths)):
        length = int(lengths[symbol])
        if length:
            code <<= length - before
            codes[symbol], code, before = code, code + 1, length
    return codes
