"""Packed files that were damaged on purpose, under a checksum that fits: what a reader must refuse, or find canonical.

python -m tests.core.pack_mutations --files 10000
"""

from __future__ import annotations

import argparse
import time
import zlib

import numpy as np

from core.pack import CODINGS, MAGIC, Coding, PackError, QTensor, Tensor, coding_of, pack, unpack


def with_checksum(content: bytes) -> bytes:
    return content + zlib.crc32(content).to_bytes(4, "little")


def bell(shape: tuple[int, ...], bits: int, seed: int, width: float | None = None) -> QTensor:
    """Integers as trained weights have them: many small ones, some large."""
    rng = np.random.default_rng(seed)
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    values = np.clip(np.round(rng.laplace(0, width or 2**bits / 12, shape)), low, high)
    return QTensor(values.astype(np.int8), rng.random(shape[0]).astype(np.float16).astype(np.float32), bits)


def network(seed: int) -> dict[str, Tensor]:
    """A few layers: wide and narrow, sparse, pointwise, with a centre that is not 0."""
    sparse = bell((8, 8, 3, 3), 4, seed + 1, 0.3)
    return {
        "stem.weight": bell((8, 3, 3, 3), 8, seed),
        "body.weight": sparse,
        "body.bias": np.arange(8, dtype=np.float32) / 7,
        "moved.indices": QTensor(np.where(sparse.values == 0, -3, sparse.values).astype(np.int8), sparse.scales, 4),
        "head.weight": bell((10, 16), 2, seed + 2),
    }


def mutate(data: bytes, rng: np.random.Generator) -> bytes:
    """One to four bytes changed, left out or doubled, now and then the end cut off."""
    content = bytearray(data[:-4])
    for _ in range(rng.integers(1, 5)):
        place = int(rng.integers(len(MAGIC), len(content)))
        change = rng.integers(8)
        if change == 0:
            del content[place]
        elif change == 1:
            content.insert(place, int(rng.integers(256)))
        elif change == 2:
            content[place] ^= 1 << int(rng.integers(8))
        else:
            content[place] = int(rng.integers(256))
    if rng.integers(10) == 0:
        del content[int(rng.integers(len(MAGIC), len(content))) :]
    return with_checksum(bytes(content))


def survive(files: int, seed: int) -> tuple[int, int]:
    """Read `files` mutated files of every coding in turn: (refused, accepted). Any exception but PackError is the caller's to see."""
    rng = np.random.default_rng(seed)
    whole: list[tuple[Coding, bytes]] = [(coding, pack(network(sample), coding)) for sample in range(5) for coding in CODINGS]
    assert all(coding_of(data) == coding for coding, data in whole)
    refused = 0
    for index in range(files):
        mutated = mutate(whole[index % len(whole)][1], rng)
        try:
            tensors = unpack(mutated)
        except PackError:
            refused += 1
        else:
            assert pack(tensors, coding_of(mutated)) == mutated, "what is accepted is canonical"
    return refused, files - refused


def main() -> None:
    """Try many files; any exception but PackError ends with its traceback."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    start = time.perf_counter()
    refused, accepted = survive(args.files, args.seed)
    print(f"{args.files} mutated files in {time.perf_counter() - start:.0f} s: {refused} refused, {accepted} canonical, no other exception")


if __name__ == "__main__":
    main()
