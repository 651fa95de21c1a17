"""Laws of the codings of the packed file: never larger, below the order-0 entropy where weights depend on each other, safe on any bytes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from core.candidate import ShapePlan
from core.compress import CompressedModel, least_size, recoded
from core.pack import CODINGS, MAGIC, VERSION, Coding, PackError, QTensor, Tensor, coding_of, floor_bytes, main, pack, tensor_bytes, unpack
from core.pack.report import entropy_bytes, sizes_of
from tests.core.pack_mutations import bell, network, survive, with_checksum

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
def test_independent_integers_take_their_entropy_within_two_per_cent(bits: int) -> None:
    tensors: dict[str, Tensor] = {f"layer{index}": bell((64, 32, 3, 3), bits, index) for index in range(3)}
    entropy = sum(entropy_bytes(values) for values in integers_of(tensors))
    assert sum(each.coded for each in sizes_of(tensors).values()) < 1.02 * entropy


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


def test_the_bytes_of_a_coded_file_are_those_of_every_machine() -> None:
    """The stream must not change with numpy, constriction or the processor: old files would no longer be read."""
    data = pack(network(0), "coded")
    assert (len(data), data[-4:].hex()) == (589, "d4c23953")


def test_mutated_files_are_refused_or_canonical() -> None:
    refused, accepted = survive(300, seed=0)
    assert refused > accepted


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


@pytest.mark.parametrize("coding", CODINGS)
def test_the_bytes_of_the_tensors_and_the_frame_are_the_file(coding: Coding) -> None:
    data = pack(network(0), coding)
    frame = len(MAGIC) + 1 + 1 + 1 + 4
    assert sum(tensor_bytes(data).values()) + frame == pytest.approx(len(data), abs=12)  # the last word of a stream is not full


def test_a_search_for_coded_bytes_never_refuses_what_could_be_small_enough() -> None:
    tensors = network(0)
    packed = pack(tensors)
    drafted = CompressedModel(ShapePlan(student="none", width=1.0, layers=()), onnx.ModelProto(), packed, 0, 0)
    assert least_size(drafted, "packed") == len(packed)
    assert least_size(drafted, "coded") < len(recoded(drafted, "coded").packed) < len(packed)
