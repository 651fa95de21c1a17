"""The comparison of coders on weight files: says nothing about trained networks, but everything about what is counted and kept."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks import coding
from core.errors import UserError
from core.pack import QTensor, pack
from tests.core.pack_mutations import bell


def sparse(seed: int) -> QTensor:
    tensor = bell((64, 32, 3, 3), 4, seed, 3.0)
    kept = np.random.default_rng(seed).random(tensor.values.shape) < 0.1
    return QTensor(np.where(kept, tensor.values, -2).astype(np.int8), tensor.scales, 4)


def finished(folder: Path, name: str, seed: int) -> Path:
    path = folder / name / "weights.pack"
    path.parent.mkdir(parents=True)
    tensors = {"a.weight": sparse(seed), "a.bias": np.zeros(64, np.float32), "b.weight": bell((10, 64), 8, seed)}
    path.write_bytes(pack(tensors, "coded" if seed else "packed"))
    return path


def test_weight_files_are_measured_and_rows_of_before_stay(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    finished(tmp_path, "vgg8-chain-90-0", 0)
    out = tmp_path / "coding.json"
    common = ["--folder", str(tmp_path), "--out", str(out)]
    assert coding.main([*common, "--packed", str(tmp_path / "*" / "weights.pack")]) == 0
    (row,) = json.loads(out.read_text())["networks"].values()
    assert row["weights"] == 64 * 32 * 9 + 640
    assert row["most_frequent"] > 0.85 * row["weights"]
    assert row["bars"]["coded/huffman"] < 1
    assert row["bars"]["coded/nncodec"] is None
    assert row["coded"] + row["rest"] < row["packed"]
    finished(tmp_path, "resnet20-w4-0", 1)
    assert coding.main([*common, "--packed", str(tmp_path / "resnet20*" / "weights.pack")]) == 0
    networks = json.loads(out.read_text())["networks"]
    assert networks["vgg8-chain-90-0"] == row
    assert list(networks) == ["vgg8-chain-90-0", "resnet20-w4-0"]
    assert "coded/entropy" in capsys.readouterr().out


def test_no_integers_are_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"run benchmarks/quantised_networks\.py or benchmarks/compression\.py first"):
        coding.main(["--folder", str(tmp_path), "--packed", str(tmp_path / "*.pack"), "--out", str(tmp_path / "out.json")])
