"""Laws of the packed weight file in every coding: bit-exact both ways, compact, and safe on any bytes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from core.candidate import WEIGHT_BITS
from core.errors import UserError
from core.pack import BITS, CODINGS, MAGIC, VERSION, VERSIONS, Coding, PackError, QTensor, Tensor, coding_of, main, pack, unpack, version_of
from core.pack.file import LEAVES
from tests.core.pack_mutations import outcome, with_checksum

FLOATS = st.one_of(
    arrays.arrays(np.float32, arrays.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=5), elements=st.floats(width=32)),
    arrays.arrays(np.float32, arrays.array_shapes(min_dims=0, max_dims=3, max_side=5), elements=st.floats(width=16)),
)


@st.composite
def quantised(draw: st.DrawFn) -> QTensor:
    bits = draw(st.sampled_from(BITS))
    dtype = np.int16 if bits == 16 else np.int8
    shape = draw(arrays.array_shapes(max_dims=4, max_side=4))
    elements = st.integers(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    scales = draw(arrays.arrays(np.float32, shape[:1], elements=st.floats(min_value=0, width=draw(st.sampled_from((16, 32))))))
    return QTensor(draw(arrays.arrays(dtype, shape, elements=elements)), scales, bits)


EVERY_CODING = st.sampled_from(CODINGS)
NAMES = st.text(max_size=8).filter(lambda name: not 1 <= ord(name[-1:] or "x") <= len(LEAVES))
"""A control character at the end is no name: it stands for a usual end."""
TENSORS = st.dictionaries(NAMES, st.one_of(FLOATS, quantised()), max_size=4)


def assert_same(left: Tensor, right: Tensor) -> None:
    assert type(left) is type(right)
    if isinstance(left, QTensor):
        assert isinstance(right, QTensor)
        assert left.bits == right.bits
        assert_same(left.scales, right.scales)
        left, right = left.values, right.values
    assert isinstance(right, np.ndarray)
    assert (left.shape, left.dtype) == (right.shape, right.dtype)
    assert left.tobytes() == right.tobytes()


def example(bits: int = 3) -> dict[str, Tensor]:
    rng = np.random.default_rng(0)
    limit = 2 ** (bits - 1)
    values = rng.integers(-limit, limit, (8, 3, 3, 3)).astype(np.int16 if bits == 16 else np.int8)
    return {"conv.weight": QTensor(values, rng.random(8).astype(np.float32), bits), "conv.bias": rng.random(8).astype(np.float32)}


@given(TENSORS, EVERY_CODING)
def test_unpack_returns_what_was_packed_bit_by_bit(tensors: dict[str, Tensor], coding: Coding) -> None:
    back = unpack(pack(tensors, coding))
    assert list(back) == list(tensors)
    for name, tensor in tensors.items():
        assert_same(back[name], tensor)


@given(TENSORS, EVERY_CODING, st.sampled_from(VERSIONS))
def test_packing_the_unpacked_gives_the_same_bytes(tensors: dict[str, Tensor], coding: Coding, version: int) -> None:
    data = pack(tensors, coding, version)
    assert version_of(data) == version
    assert pack(unpack(data), coding_of(data), version) == data


def test_a_file_is_written_in_the_newest_version() -> None:
    assert {version_of(pack(example(), coding)) for coding in CODINGS} == {VERSION} == {max(VERSIONS)}


@given(st.binary(max_size=80), st.sampled_from(VERSIONS), EVERY_CODING)
def test_random_bytes_behind_a_header_are_refused_or_canonical(data: bytes, version: int, coding: Coding) -> None:
    outcome(with_checksum(MAGIC + bytes([version, CODINGS.index(coding)]) + data))


@given(st.binary(max_size=80))
def test_random_bytes_without_a_header_are_refused(data: bytes) -> None:
    with pytest.raises(PackError, match="starts with 'PPAK'"):
        unpack(with_checksum(data))


def test_every_single_bit_flip_is_detected() -> None:
    data = pack(example())
    for position in range(len(data) * 8):
        flipped = bytearray(data)
        flipped[position // 8] ^= 1 << position % 8
        with pytest.raises(PackError):
            unpack(bytes(flipped))


def test_every_truncation_is_detected() -> None:
    data = pack(example())
    for size in range(len(data)):
        with pytest.raises(PackError):
            unpack(data[:size])


@pytest.mark.parametrize("bits", BITS)
def test_the_weights_take_their_bits_and_little_more(bits: int) -> None:
    tensors = example(bits)
    floats = 8 * 4 * 2  # scales and biases that need fp32
    frame = len(MAGIC) + 1 + 1 + 1 + 4
    weight, bias = 2 + len("conv") + 1 + 1 + 1 + 4, 2 + 1 + 1 + 1 + 1  # a usual end is one byte, and the bias shares the rest
    assert len(pack(tensors)) == (8 * 27 * bits + 7) // 8 + floats + frame + weight + bias


def test_floats_take_two_bytes_only_when_every_value_survives() -> None:
    halves = np.arange(100, dtype=np.float32) / 8
    thirds = halves.copy()
    thirds[7] = 1 / 3
    assert len(pack({"x": thirds})) - len(pack({"x": halves})) == 200


@pytest.mark.parametrize("bits", [np.float32("nan"), np.float32("inf"), np.float32(-0.0), np.float32(1e-45), np.float32(3e38)])
def test_special_floats_survive(bits: np.float32) -> None:
    assert_same(unpack(pack({"x": np.array(bits)}))["x"], np.array(bits))


def test_the_bits_are_those_of_the_search() -> None:
    assert BITS == WEIGHT_BITS


def test_a_lying_size_costs_no_memory() -> None:
    content = MAGIC + bytes([VERSION, 0, 1, 0, 1]) + b"x" + bytes([0x88, 1]) + b"\xff\xff\xff\xff\x0f"  # 2**32 output channels claimed
    with pytest.raises(PackError, match="cut short"):
        unpack(with_checksum(content))


@pytest.mark.parametrize("coding", ["coded", "huffman"])
def test_kernels_too_large_for_the_context_coder_are_bit_packed(coding: Coding) -> None:
    shapes = {"most": (1, 1, 32, 32), "more": (1, 1, 1025)}
    tensors: dict[str, Tensor] = {name: QTensor(np.zeros(shape, np.int8), np.ones(1, np.float32), 4) for name, shape in shapes.items()}
    data = pack(tensors, coding)
    assert coding_of(data) == coding
    assert len(data) > 1025 // 2
    for name, tensor in unpack(data).items():
        assert_same(tensor, tensors[name])


def test_few_bytes_that_claim_a_huge_kernel_cost_no_memory() -> None:
    kind = bytes([0x40 | 4])
    content = MAGIC + bytes([VERSION, CODINGS.index("coded"), 1, 0, 1]) + b"x" + kind + bytes([3, 1, 1]) + b"\xc0\xb8\x02" + bytes([0])
    with pytest.raises(PackError, match=r"in kernels of at most 1024, but .* shape \(1, 1, 40000\)"):
        unpack(with_checksum(content + b"\0" * 1000))


def test_a_name_that_is_no_utf8_is_refused() -> None:
    with pytest.raises(PackError, match="tensor names are UTF-8"):
        pack({"\ud800": np.zeros(1, np.float32)})


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (QTensor(np.zeros((2, 2), np.int8), np.ones(2, np.float32), 4.0), r"bits must be one of .* has 4\.0"),  # type: ignore[arg-type]
        (QTensor(np.zeros((2, 2), np.int8), np.ones(2, np.float32), 9), "bits must be one of 2, 3, 4, 5, 6, 7, 8, 16"),
        (QTensor(np.full((2, 2), 4, np.int8), np.ones(2, np.float32), 3), r"3-bit values lie in -4\.\.3"),
        (QTensor(np.zeros((2, 2), np.int16), np.ones(2, np.float32), 8), "must be int8"),
        (QTensor(np.zeros((2, 2), np.int8), np.ones(3, np.float32), 8), "one scale per output channel"),
        (QTensor(np.zeros((2, 2), np.int8), np.ones(2), 8), "floats must be float32"),
        (np.zeros(2), "floats must be float32"),
        (np.zeros((1,) * 9, np.float32), "at most 8 dimensions"),
    ],
)
def test_what_does_not_fit_is_refused(tensor: Tensor, message: str) -> None:
    with pytest.raises(PackError, match=message):
        pack({"x": tensor})


def test_a_newer_version_is_named() -> None:
    data = bytearray(pack(example())[:-4])
    data[len(MAGIC)] = VERSION + 1
    with pytest.raises(PackError, match=f"versions 2 and 3, but this one has {VERSION + 1}"):
        unpack(with_checksum(bytes(data)))


def test_non_contiguous_values_are_packed_in_logical_order() -> None:
    values = np.arange(-4, 4, dtype=np.int8).reshape(2, 4).T
    assert_same(unpack(pack({"x": QTensor(values, np.ones(4, np.float32), 3)}))["x"], QTensor(values.copy(), np.ones(4, np.float32), 3))


def test_a_long_name_is_refused() -> None:
    with pytest.raises(PackError, match="at most 255 bytes"):
        pack({"x" * 256: np.zeros(1, np.float32)})


@pytest.mark.parametrize("leaf", LEAVES)
def test_a_usual_end_of_a_name_is_one_byte_and_a_name_that_ends_in_such_a_byte_is_refused(leaf: bytes) -> None:
    values = np.zeros(1, np.float32)
    name = "layer" + leaf.decode()
    short, full = pack({name: values}), pack({name: values}, version=2)
    assert len(full) - len(short) == len(leaf) - 1
    assert list(unpack(short)) == list(unpack(full)) == [name]
    with pytest.raises(PackError, match="ends in no control character"):
        pack({f"layer{chr(LEAVES.index(leaf) + 1)}": values})


def test_a_name_that_is_written_in_full_where_it_has_a_usual_end_is_not_canonical() -> None:
    data = bytearray(pack({"a.weight": np.zeros(1, np.float32)}, version=2)[:-4])
    data[len(MAGIC)] = VERSION
    with pytest.raises(PackError, match="one canonical form"):
        unpack(with_checksum(bytes(data)))


def test_inspecting_a_missing_file_is_a_user_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="No such file"):
        main(["inspect", str(tmp_path / "none.pack")])


def test_the_command_ends_with_one_line_and_exit_code_2(tmp_path: Path) -> None:
    path = tmp_path / "text.pack"
    path.write_text("hello, I am no packed weight file")
    result = subprocess.run([sys.executable, "-m", "core.pack", "inspect", str(path)], capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1
    assert "PPAK" in result.stderr
