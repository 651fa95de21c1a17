"""Packed files that were damaged on purpose, under a checksum that fits: what a reader must refuse, or find canonical.

python -m tests.core.pack_mutations --files 10000 [--out FILE.json]
"""

from __future__ import annotations

import argparse
import json
import time
import zlib
from collections import Counter
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import numpy as np
from hypothesis import HealthCheck, assume, given, seed, settings
from hypothesis import strategies as st

from core.files import write_atomically
from core.pack import CODINGS, MAGIC, VERSION, VERSIONS, Coding, PackError, QTensor, Tensor, coding_of, pack, unpack, version_of

CHECKSUM_BYTES = 4
HEADER_BYTES = len(MAGIC) + 3
"""Magic, version, coding, number of tensors."""
MOST_EDITS, MOST_BYTES = 4, 12
LARGE = (b"\xff\xff\xff\xff\x0f", b"\x80\x80\x80\x80\x80\x00", b"\xff" * 6, b"\x00" * 6, b"\x80\x01")
"""Numbers that lie: 2**32, a zero that takes six bytes, one that does not end, nothing, 128."""


def with_checksum(content: bytes) -> bytes:
    return content + zlib.crc32(content).to_bytes(CHECKSUM_BYTES, "little")


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


WHOLE = [pack(network(sample), coding, version) for sample in range(3) for coding in CODINGS for version in VERSIONS]
assert {(coding_of(data), version_of(data)) for data in WHOLE} == {(coding, version) for coding in CODINGS for version in VERSIONS}


@st.composite
def edited(draw: st.DrawFn, content: bytes) -> bytes:
    """`content` after one edit: a bit, a byte, a field of the header, a lying number; bytes left out, put in, doubled; the end cut off."""
    place = draw(st.integers(len(MAGIC), len(content) - 1))
    size = draw(st.integers(1, MOST_BYTES))
    before, after = content[:place], content[place:]
    kind = draw(st.sampled_from(("bit", "byte", "byte", "header", "number", "left out", "put in", "doubled", "cut")))
    if kind == "bit":
        return before + bytes([after[0] ^ 1 << draw(st.integers(0, 7))]) + after[1:]
    if kind == "byte":
        return before + bytes([draw(st.integers(0, 255))]) + after[1:]
    if kind == "header":
        field = draw(st.integers(len(MAGIC), HEADER_BYTES - 1))
        return content[:field] + bytes([draw(st.integers(0, 6) | st.integers(0, 255))]) + content[field + 1 :]
    if kind == "number":
        return before + draw(st.sampled_from(LARGE)) + after[1:]
    if kind == "left out":
        return before + after[size:]
    if kind == "put in":
        return before + draw(st.binary(min_size=1, max_size=size)) + after
    return before + after[:size] + after if kind == "doubled" else before


@st.composite
def mutated(draw: st.DrawFn) -> tuple[Coding, bytes]:
    """A packed file of any coding and version after a few edits, its checksum mended; and the coding that it had."""
    data = draw(st.sampled_from(WHOLE))
    content = data[:-CHECKSUM_BYTES]
    for _ in range(draw(st.integers(1, MOST_EDITS))):
        if len(content) > HEADER_BYTES:
            content = draw(edited(content))
    assume(content != data[:-CHECKSUM_BYTES])
    return coding_of(data), with_checksum(content)


def outcome(data: bytes) -> str:
    """`refused`, or `canonical`: read, and what `pack` writes of it. Any exception but PackError is the caller's to see."""
    try:
        tensors = unpack(data)
    except PackError:
        return "refused"
    assert pack(tensors, coding_of(data), version_of(data)) == data, "what is accepted is canonical"
    return "canonical"


def survive(files: int, seed_of_run: int) -> dict[str, Counter[str]]:
    """Read `files` mutated files: coding -> how many had each outcome."""
    found: dict[str, Counter[str]] = {coding: Counter() for coding in CODINGS}

    @seed(seed_of_run)
    @settings(max_examples=files, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(mutated())
    def read(case: tuple[Coding, bytes]) -> None:
        coding, data = case
        found[coding][outcome(data)] += 1

    run: Callable[[], None] = read
    run()
    return found


def main() -> None:
    """Try many files; any exception but PackError ends with its traceback."""
    from tests.faults.runs import facts  # late: it imports the whole search, which the tests of the coder do not need

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, help="counts, seconds and versions as JSON")
    args = parser.parse_args()
    start = time.perf_counter()
    found = survive(args.files, args.seed)
    seconds = round(time.perf_counter() - start, 1)
    total = sum(found.values(), Counter())
    told = ", ".join(f"{count} {name}" for name, count in total.items())
    print(f"{total.total()} mutated files in {seconds:.0f} s: {told}, no other exception")
    if args.out:
        result = {
            "files": total.total(),
            "seed": args.seed,
            "format": {"written": VERSION, "read": VERSIONS},
            "outcomes": {coding: dict(counts) for coding, counts in found.items()},
            "other_exceptions": 0,
            "seconds": seconds,
            "coder": {name: version(name) for name in ("constriction", "numpy", "hypothesis")},
            **facts(),
        }
        write_atomically(args.out, json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
