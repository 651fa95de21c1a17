"""Laws of what reading untrusted bytes may cost: time and memory by the file's size, whatever it claims; and the same bytes as ever."""

from __future__ import annotations

import hashlib
import time
import tracemalloc

import numpy as np
import pytest

from core.pack import MAGIC, VERSION, PackError, QTensor, Tensor, coding_of, context, pack, tensor_bytes, unpack
from core.pack.binary import varint
from core.pack.file import WEIGHTS_PER_BYTE
from core.pack.report import sizes_of
from core.pack.types import limits
from tests.core.pack_mutations import bell, network, with_checksum

Shape = tuple[int, ...]
SLOWER = 20
"""Times as long per byte as a small network, at most: some 4 are usual."""
BYTES_PER_WEIGHT, BYTES_PER_PAIR, BYTES_AT_ALL = 60, 44, 2 << 20
"""Of memory: per weight that a byte may stand for, per pair of places, and for the contexts' tables."""
ROWS_AND_KERNELS: list[Shape] = [(1, 9), (1, 768), (1, 10**6), (500, 2000), (1, 10**6, 9), (1, 10**6, 49), (300, 300, 64)]
LARGE_KERNELS: list[Shape] = [(1, 1, 256), (1, 4, 256), (1, 10**6, 256), (1, 1, 1024), (1, 2, 1024), (1, 10**6, 1024), (10**6, 1, 1024)]


def claims(shapes: list[Shape], size: int) -> bytes:
    """A file of `size` bytes, or as many as the tensors' own take, that claims 8-bit integers of these shapes; its stream is noise."""
    content = MAGIC + bytes([VERSION, 1]) + varint(len(shapes))
    for index, shape in enumerate(shapes):
        name = str(index).encode()
        dimensions = b"".join(map(varint, (len(shape), *shape)))
        content += varint(0) + varint(len(name)) + name + bytes([0x48]) + dimensions + bytes([20]) + bytes(2 * shape[0])
    noise = np.random.default_rng(0).integers(1, 256, max(size - len(content), 4) // 4 * 4).astype(np.uint8)
    return with_checksum(content + noise.tobytes())


def fullest(shape: Shape, size: int) -> bytes:
    """An honest file of some `size` bytes that is as slow as one may be: zeros of that shape, or of as much of it as a reader accepts."""
    budget = (WEIGHTS_PER_BYTE - 6) * size
    longest = shape.index(max(shape[:2]))
    while context.work(shape) > budget:
        shape = (*shape[:longest], shape[longest] * 9 // 10, *shape[longest + 1 :])
    zeros = QTensor(np.zeros(shape, np.int8), np.ones(shape[0], np.float32), 2)
    tensors: dict[str, Tensor] = {str(index): zeros for index in range(budget // context.work(shape))}
    data = pack(tensors | {"floats": np.ones(max(size // 2 - shape[0], 1), np.float32)}, "coded")
    assert coding_of(data) == "coded"
    return data


def seconds_per_byte(data: bytes, times: int) -> float:
    """Of the processor, the least of so many readings."""
    taken = []
    for _ in range(times):
        start = time.process_time()
        unpack(data)
        taken.append(time.process_time() - start)
    return min(taken) / len(data)


@pytest.mark.parametrize("shape", ROWS_AND_KERNELS + LARGE_KERNELS)
def test_no_file_is_much_slower_to_read_than_a_small_network_of_its_size(shape: Shape) -> None:
    data, small = fullest(shape, 1000), pack(network(0), "coded")
    assert seconds_per_byte(data, 2) < SLOWER * seconds_per_byte(small, 3)


@pytest.mark.parametrize("shape", [(1, 10**6), (2, 10**6), (2, 10**6, 2), (1, 10**6, 9), (1, 10**6, 256), (1, 10**6, 1024)])
def test_reading_takes_memory_by_the_size_of_the_file(shape: Shape) -> None:
    data = fullest(shape, 4000)
    tracemalloc.start()
    unpack(data)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    pairs = int(np.prod(shape[2:])) ** 2
    assert peak < BYTES_PER_WEIGHT * WEIGHTS_PER_BYTE * len(data) + BYTES_PER_PAIR * pairs + BYTES_AT_ALL


@pytest.mark.parametrize(
    "shapes", [[(1, 249, 1024)], [(1, 1, 1024)] * 200, [(1, 257, 256)], [(1, 768)] * 330, [(1, 255_900), (1, 9)], [(1, 2**32, 3)]]
)
def test_who_claims_more_than_a_reader_has_time_for_is_refused_before_anything_is_decoded(
    shapes: list[Shape], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(context, "decode", lambda *_: pytest.fail("decoded"))
    with pytest.raises(PackError, match="at most 64 weights per byte, and fewer in large kernels and small tensors"):
        unpack(claims(shapes, 4000))


def test_usual_kernels_count_as_what_they_are() -> None:
    usual: list[Shape] = [(10, 1000), (64, 64, 3, 3), (128, 1, 1, 64), (64, 3, 7, 7), (300, 1, 7, 7), (300, 1, 8, 8)]
    assert [context.work(shape) for shape in usual] == [int(np.prod(shape)) for shape in usual]
    assert context.work((300, 1, 16, 16)) == 4 * 300 * 256


@pytest.mark.parametrize(("floats", "coding"), [(100, "packed"), (1000, "coded")])
def test_large_kernels_that_would_take_a_reader_too_long_are_bit_packed(floats: int, coding: str) -> None:
    zeros = QTensor(np.zeros((1, 4, 32, 32), np.int8), np.ones(1, np.float32), 2)
    data = pack({"x": zeros, "y": np.ones(floats, np.float32)}, "coded")
    assert coding_of(data) == coding
    back = unpack(data)["x"]
    assert isinstance(back, QTensor)
    assert not back.values.any()


def streams() -> str:
    """Digest of the streams of kernels of many sizes, few and many of them."""
    digest = hashlib.sha256()
    for shape in [(3, 100), (40, 1, 3, 3), (1, 1, 40), (1, 30, 9), (24, 16, 3, 3), (8, 3, 7, 7), (3, 3, 16, 16), (1, 3, 32, 32)]:
        tensor = bell(shape, 4, len(shape))
        for experts in (False, True):
            digest.update(context.encode([context.describe(tensor.values, 4)], [tensor.values], experts))
    return digest.hexdigest()[:16]


@pytest.mark.parametrize("at_once", [None, 1 << 10])
def test_the_bytes_are_those_of_every_kernel_and_machine_however_many_weights_are_in_memory_together(
    at_once: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if at_once:
        monkeypatch.setattr(context, "CELLS_AT_ONCE", at_once)
        monkeypatch.setattr(context, "FLOATS_AT_ONCE", at_once)
    assert streams() == "cacc23989ed2baf5"


def unequal(count: int) -> dict[str, Tensor]:
    """Small tensors whose filters and channels differ in magnitude, made of integers that every numpy draws alike."""
    draw, tensors = np.random.default_rng(7), dict[str, Tensor]()
    for index in range(count):
        bits = (8, 6, 8, 5)[index % 4]
        magnitudes = draw.integers(1, 2 ** (bits - 3), (16, 1, 1, 1)) * draw.integers(1, 5, (1, 8, 1, 1))
        values = magnitudes * draw.integers(-300, 301, (16, 8, 3, 3)) // 600
        if index % 10 == 9:
            values[draw.integers(0, 10, values.shape) < 7] = 3
        low, high = limits(bits)
        tensors[f"layer{index}.weight"] = QTensor(np.clip(values, low, high).astype(np.int8), np.full(16, 0.5, np.float32), bits)
    return tensors


@pytest.mark.parametrize("at_once", [None, 1 << 20, 0])
def test_a_stream_is_the_same_however_many_tables_are_in_memory_together(at_once: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    if at_once is not None:
        monkeypatch.setattr(context, "TABLES_AT_ONCE", at_once)
    data = pack(unequal(16), "coded")
    assert hashlib.sha256(data).hexdigest()[:16] == "79ec49ac0d42d9a3"  # of the encoder that held all of them
    sizes = repr(sorted(tensor_bytes(data).items()))
    assert hashlib.sha256(sizes.encode()).hexdigest()[:16] == "d6e65abef0babcad"


@pytest.mark.slow
def test_measuring_holds_the_tables_of_one_tensor() -> None:
    """All together they take 12 MB."""
    tensors = unequal(40)
    data = pack(tensors, "coded")
    for make in (lambda: tensor_bytes(data), lambda: sizes_of(tensors)):
        tracemalloc.start()
        make()
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 6_000_000
