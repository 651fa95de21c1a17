"""Laws of the codings of the packed file: never larger, below the order-0 entropy where weights depend on each other, safe on any bytes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from safetensors.numpy import save

from core.candidate import ShapePlan
from core.compress import CompressedModel, least_size, recoded
from core.pack import (
    CODINGS,
    MAGIC,
    VERSION,
    Coding,
    PackError,
    QTensor,
    Tensor,
    coding_of,
    floor_bytes,
    huffman,
    main,
    pack,
    tensor_bytes,
    unpack,
)
from core.pack.context import describe, encode
from core.pack.report import entropy_bytes, sizes_of
from tests.core.pack_mutations import bell, mutated, network, outcome, survive, with_checksum

CODED: tuple[Coding, ...] = ("coded", "huffman")


def integers_of(tensors: dict[str, Tensor]) -> list[np.ndarray]:
    return [tensor.values for tensor in tensors.values() if isinstance(tensor, QTensor)]


def smooth_kernels(bits: int, seed: int = 0) -> QTensor:
    """Kernels whose neighbours have the same sign, filters and channels of unequal size: what training leaves."""
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(64, 64, 3, 3)) + 1.5 * rng.normal(size=(64, 64, 1, 1))
    values *= np.exp(rng.normal(size=(64, 1, 1, 1)) * 0.3) * np.exp(rng.normal(size=(1, 64, 1, 1)) * 0.6) * 2**bits / 14
    values = np.clip(np.round(values), -(2 ** (bits - 1)), 2 ** (bits - 1) - 1).astype(np.int8)
    return QTensor(values, np.ones(64, np.float32), bits)


@pytest.mark.parametrize("coding", CODINGS)
def test_every_coding_gives_the_same_integers_back(coding: Coding) -> None:
    tensors = network(0)
    for before, after in zip(integers_of(tensors), integers_of(unpack(pack(tensors, coding))), strict=True):
        assert (before.dtype, before.shape, before.tobytes()) == (after.dtype, after.shape, after.tobytes())


@pytest.mark.parametrize("coding", CODED)
@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 7, 8])
def test_the_extreme_integers_of_every_depth_come_back(bits: int, coding: Coding) -> None:
    values = np.zeros((16, 64), np.int8)
    values[0, :2] = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    data = pack({"x": QTensor(values, np.ones(16, np.float32), bits)}, coding)
    assert coding_of(data) == coding
    back = unpack(data)["x"]
    assert isinstance(back, QTensor)
    assert (back.values == values).all()


@pytest.mark.parametrize("coding", CODED)
def test_a_file_is_never_larger_than_bit_packed(coding: Coding) -> None:
    rng = np.random.default_rng(0)
    noise = rng.integers(-128, 128, (16, 16, 3, 3)).astype(np.int8)  # uniform: nothing can be saved
    tensors: dict[str, Tensor] = {"x": QTensor(noise, np.ones(16, np.float32), 8)}
    assert pack(tensors, coding) == pack(tensors, "packed")


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_independent_integers_take_their_entropy_within_half_a_per_cent(bits: int) -> None:
    tensors: dict[str, Tensor] = {f"layer{index}": bell((64, 32, 3, 3), bits, index) for index in range(3)}
    entropy = sum(entropy_bytes(values) for values in integers_of(tensors))
    assert sum(each.coded for each in sizes_of(tensors).values()) < 1.005 * entropy


def plane(shape: tuple[int, ...], zeros: float, kind: str, centre: int = 0, seed: int = 0) -> QTensor:
    """Independent 4-bit integers, a share `zeros` of them at `centre`; the others all alike, or fewer the larger they are."""
    rng = np.random.default_rng(seed)
    found = np.arange(-8, 8)[np.arange(-8, 8) != centre]
    weights = np.ones(15) if kind == "flat" else 0.6 ** np.abs(found - centre)
    values = rng.choice(found, shape, p=weights / weights.sum())
    return QTensor(np.where(rng.random(shape) < zeros, centre, values).astype(np.int8), np.ones(shape[0], np.float32), 4)


def coded_bytes(tensors: dict[str, Tensor]) -> int:
    """Of the common stream and the guesses of every tensor."""
    layers = [describe(tensor.values, tensor.bits) for tensor in tensors.values() if isinstance(tensor, QTensor)]
    return len(encode(layers, integers_of(tensors))) + sum(1 + bool(layer.centre) for layer in layers)


@pytest.mark.parametrize("zeros", [0.5, 0.9, 0.93, 0.95, 0.98])
@pytest.mark.parametrize(
    ("shapes", "kind"), [([(128, 64, 3, 3)], "flat"), ([(128, 64, 3, 3)] * 2, "falling"), ([(256, 256, 3, 3)], "falling")]
)
def test_sparse_integers_take_their_entropy_within_one_per_cent_and_less_than_by_huffman(
    shapes: list[tuple[int, ...]], kind: str, zeros: float
) -> None:
    tensors: dict[str, Tensor] = {f"x{index}": plane(shape, zeros, kind, -2 * index, index) for index, shape in enumerate(shapes)}
    coded = coded_bytes(tensors)
    assert coded <= 1.01 * sum(entropy_bytes(values) for values in integers_of(tensors))
    assert coded <= sum(len(huffman.encode(values)) for values in integers_of(tensors))


@pytest.mark.parametrize("zeros", [0.5, 0.9, 0.95, 0.98])
def test_a_small_sparse_tensor_takes_some_twenty_bytes_more_than_its_entropy_and_no_more_than_by_huffman(zeros: float) -> None:
    tensors: dict[str, Tensor] = {"x": plane((16, 16, 3, 3), zeros, "falling")}
    sizes = sizes_of(tensors)["x"]
    assert coded_bytes(tensors) <= min(sizes.huffman, sizes.entropy + 20)


def test_values_that_no_other_tensor_shares_cost_a_table_and_no_more() -> None:
    """Codebooks: whatever the indices of one tensor mean, those of the next mean something else."""
    rng = np.random.default_rng(0)
    tensors: dict[str, Tensor] = {}
    for index in range(6):
        shares = rng.dirichlet(np.full(16, 0.5))
        values = rng.choice(16, (64, 32, 3, 3), p=shares) - 8
        tensors[f"x{index}"] = QTensor(values.astype(np.int8), np.ones(64, np.float32), 4)
    assert coded_bytes(tensors) <= 1.01 * sum(entropy_bytes(values) for values in integers_of(tensors))


def patchy(seed: int) -> QTensor:
    """Filters and channels that are pruned more and less; what is left is all alike."""
    rng = np.random.default_rng(seed)
    density = np.clip(0.08 * np.exp(rng.normal(size=(64, 1, 1, 1)) + rng.normal(size=(1, 64, 1, 1))), 0, 0.9)
    values = rng.choice(rng.permutation([-7, -6, -4, -3, -1, 1, 2, 3, 4, 5, 6, 7])[:5], (64, 64, 3, 3))
    return QTensor(np.where(rng.random((64, 64, 3, 3)) < density, values, 0).astype(np.int8), np.ones(64, np.float32), 4)


def test_how_many_are_zero_is_learnt_by_context_also_where_values_mean_something_else_in_every_tensor() -> None:
    tensors: dict[str, Tensor] = {f"x{index}": patchy(index) for index in range(3)}
    assert coded_bytes(tensors) <= 0.9 * sum(entropy_bytes(values) for values in integers_of(tensors))


def test_what_is_left_beyond_one_threshold_costs_less_than_its_entropy_since_every_filter_has_its_own_step() -> None:
    """Masked weights in integers: the threshold is another one in every filter."""
    rng = np.random.default_rng(0)
    weights = rng.normal(size=(64, 64, 3, 3)) * np.exp(0.5 * rng.normal(size=(64, 1, 1, 1)))
    kept = np.where(np.abs(weights) > np.quantile(np.abs(weights), 0.9), weights, 0.0)
    scales = np.abs(kept).max((1, 2, 3)).clip(0.1) / 7
    values = np.round(kept / scales[:, None, None, None]).astype(np.int8)
    tensors: dict[str, Tensor] = {"x": QTensor(values, np.ones(64, np.float32), 4)}
    assert coded_bytes(tensors) <= 0.93 * sum(entropy_bytes(each) for each in integers_of(tensors))


@pytest.mark.parametrize("tensor", [smooth_kernels(2), plane((64, 64, 3, 3), 0.9, "flat"), patchy(0)])
def test_choosing_among_experts_costs_almost_nothing_where_contexts_were_right_and_saves_where_they_were_wrong(tensor: QTensor) -> None:
    layer = describe(tensor.values, tensor.bits)
    chosen, by_contexts = (len(encode([layer], [tensor.values], experts)) for experts in (True, False))
    assert chosen < 1.004 * by_contexts


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_integers_that_depend_on_each_other_take_less_than_their_entropy(bits: int) -> None:
    tensor = smooth_kernels(bits)
    tensors: dict[str, Tensor] = {"x": tensor}
    sizes = sizes_of(tensors)["x"]
    assert sizes.coded < min(0.96 * sizes.entropy, sizes.huffman)
    assert len(pack(tensors, "coded")) - floor_bytes(pack(tensors)) == pytest.approx(sizes.coded, abs=12)


def test_a_mostly_empty_tensor_is_coded_by_its_gaps() -> None:
    values = np.zeros((128, 128), np.int8)
    values.reshape(-1)[::300] = 5
    sizes = sizes_of({"x": QTensor(values, np.ones(128, np.float32), 8)})["x"]
    assert sizes.huffman < values.size / 8 / 4  # a code of whole bits alone takes one bit a weight


def test_a_centre_off_zero_costs_one_byte_and_no_more() -> None:
    plain = bell((64, 32, 3, 3), 4, 0, 0.3)
    moved = QTensor(np.clip(plain.values - 3, -8, 7).astype(np.int8), plain.scales, 4)
    straight, shifted = (sizes_of({"x": tensor})["x"].coded for tensor in (plain, moved))
    assert shifted < 1.01 * straight


def test_tensors_of_one_alphabet_share_what_was_learnt() -> None:
    small: dict[str, Tensor] = {f"x{index}": bell((16, 16, 3, 3), 4, index) for index in range(8)}
    alone = sum(sizes_of({name: tensor})[name].coded for name, tensor in small.items())
    assert sum(each.coded for each in sizes_of(small).values()) < alone


def test_what_no_coding_saves_is_below_every_file() -> None:
    tensors = network(0)
    files = [pack(tensors, coding) for coding in CODINGS]
    assert {floor_bytes(data) for data in files} == {floor_bytes(files[0])}
    assert floor_bytes(files[0]) < min(map(len, files))


@pytest.mark.parametrize(("version", "expected"), [(2, (589, "d4c23953")), (3, (553, "0a90e9e9"))])
def test_the_bytes_of_a_coded_file_are_those_of_every_machine(version: int, expected: tuple[int, str]) -> None:
    """The stream must not change with numpy, constriction or the processor: old files would no longer be read."""
    data = pack(network(0), "coded", version)
    assert (len(data), data[-4:].hex()) == expected
    assert integers_of(unpack(data))[2].tobytes() == integers_of(network(0))[2].tobytes()


def test_the_choice_of_experts_is_that_of_every_machine() -> None:
    tensors: dict[str, Tensor] = {"x": patchy(0), "y": smooth_kernels(4), "z": plane((64, 64, 3, 3), 0.9, "flat"), "w": smooth_kernels(8)}
    data = pack(tensors, "coded")
    assert (len(data), data[-4:].hex()) == (54307, "e5651c4d")


@settings(max_examples=100)
@given(mutated())
def test_a_mutated_file_is_refused_or_canonical(case: tuple[Coding, bytes]) -> None:
    outcome(case[1])


def test_mutations_of_every_coding_are_refused_and_now_and_then_read() -> None:
    found = survive(300, seed_of_run=0)
    assert sum(counts.total() for counts in found.values()) == 300
    assert all(counts["refused"] > counts["canonical"] for counts in found.values())
    assert any(counts["canonical"] for counts in found.values())


@pytest.mark.parametrize("coding", [1, 2])
def test_a_few_bytes_that_claim_many_weights_are_refused(coding: int) -> None:
    kind, dimensions = 0x48, b"\x02\x01" + b"\xff\xff\xff\xff\x0f"  # 8 bits, entropy-coded, 1 x 2**32
    content = MAGIC + bytes([VERSION, coding, 1, 0, 1]) + b"x" + bytes([kind]) + dimensions + bytes(64)
    with pytest.raises(PackError, match="at most 64 weights per byte"):
        unpack(with_checksum(content))


def test_weights_that_take_almost_nothing_stay_within_what_a_reader_accepts() -> None:
    tensors: dict[str, Tensor] = {"x": QTensor(np.zeros((64, 64, 3, 3), np.int8), np.ones(64, np.float32), 2)}
    for coding in CODINGS:
        back = unpack(pack(tensors, coding))["x"]
        assert isinstance(back, QTensor)
        assert not back.values.any()


def test_an_unknown_coding_is_named() -> None:
    data = bytearray(pack(network(0))[:-4])
    data[len(MAGIC) + 1] = 3
    with pytest.raises(PackError, match="packed, coded, huffman"):
        unpack(with_checksum(bytes(data)))


def test_inspect_prints_every_coding_of_every_tensor(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "weights.pack"
    path.write_bytes(pack(network(0)))
    assert main(["inspect", str(path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["tensor", "shape", "bits", "float32", "packed", "huffman", "coded", "entropy"]
    assert lines[1].split()[:5] == ["stem.weight", "8x3x3x3", "8", str(8 * 27 * 4), str(8 * 27)]
    files = [len(pack(network(0), coding)) for coding in ("packed", "huffman", "coded")]
    assert [int(number) for number in lines[-2].split()[-3:]] == files
    assert lines[-1] == f"this file is packed: {path.stat().st_size} bytes"


@pytest.mark.parametrize("coding", CODINGS)
def test_unpacked_safetensors_pack_to_the_same_file(tmp_path: Path, coding: Coding) -> None:
    path, spread, again = tmp_path / "a.pack", tmp_path / "a.safetensors", tmp_path / "b.pack"
    path.write_bytes(pack(network(0), coding))
    assert main(["unpack", str(path), str(spread)]) == 0
    assert main(["pack", str(spread), str(again), "--coding", coding]) == 0
    assert again.read_bytes() == path.read_bytes()


def test_safetensors_of_something_else_are_refused_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(b"no safetensors")
    command = [sys.executable, "-m", "core.pack", "pack", str(path), str(tmp_path / "out.pack")]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize("bits", ["1" * 5000, "[" * 100_000, '"four"', "-3", "4.5", "99", "[4]", "NaN", "4"])
def test_safetensors_whose_bits_are_none_are_refused(bits: str, tmp_path: Path) -> None:
    """Longer than a Python integer may be written, nested deeper than Python reads, no number, not of 2 to 8 or 16; or of no integers."""
    path = tmp_path / "a.safetensors"
    arrays = {"w": np.zeros((2, 3), np.float32), "w.scales": np.ones(2, np.float32)}
    path.write_bytes(save(arrays, metadata={"bits": f'{{"w": {bits}}}'}))
    with pytest.raises(PackError):
        main(["pack", str(path), str(tmp_path / "out.pack")])


@pytest.mark.parametrize("coding", CODINGS)
def test_the_bytes_of_the_tensors_and_the_frame_are_the_file(coding: Coding) -> None:
    data = pack(network(0), coding)
    frame = len(MAGIC) + 1 + 1 + 1 + 4
    assert sum(tensor_bytes(data).values()) + frame == pytest.approx(len(data), abs=12)  # the last word of a stream is not full


def test_a_search_for_coded_bytes_never_refuses_what_could_be_small_enough() -> None:
    tensors = network(0)
    packed = pack(tensors)
    drafted = CompressedModel(ShapePlan(student="none", width=1.0, layers=()), onnx.ModelProto(), packed, 0, 0)
    assert least_size(drafted, "coded") < len(recoded(drafted, "coded").packed) < len(packed)
