"""The compression benchmark at a size that says nothing about accuracy, but everything about whether it runs and what it keeps."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import compression
from benchmarks.compression_markdown import markdown
from core.candidate import WEIGHT_BITS
from core.errors import UserError
from core.quantise import MODEL_QUANTISERS, QUANTISERS
from tests.image_layouts import noise

TINY = [
    *("teacher.name=resnet8", "teacher.train.epochs=1", "teacher.train.batch_size=16", "parent.train.batch_size=16"),
    *("quantise.train.batch_size=16", "quantise.calibration_images=16", "views.number=2", "views.shift=1"),
    *("data.search_fraction=0.25", "hardware.device=cpu", "hardware.amp=off", "runtime.max_s=0.05", "runtime.warmup_s=0"),
]


def make(data: Path, out: Path, rows: str, *more: str) -> int:
    overrides = [flag for assignment in TINY for flag in ("--set", assignment)]
    flags = ["--data-dir", str(data), "--threads", "1", "--epochs", "0.5", "--float-epochs", "1", "--out", str(out), "--rows", rows]
    return compression.main([*flags, *overrides, *more])


def test_rows_share_their_float_network_and_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(compression, "TRIALS", 2)
    data, out = noise(tmp_path / "pictures", 8), tmp_path / "table.json"
    assert make(data, out, "resnet20:fp32:0,resnet20:w3:0") == 0
    first = json.loads(out.read_text())["rows"]
    assert make(data, out, "resnet20:fp32:0,resnet20:w3:0,resnet20:haq-w3:0") == 0
    rows = {row["kind"]: row for row in json.loads(out.read_text())["rows"]}
    assert [rows["fp32"], rows["w3"]] == first  # the seconds too: they were not made again
    assert len(list(Path("runs/compression/parents").glob("*.safetensors"))) == 1
    assert rows["haq-w3"]["packed_bytes"] <= rows["w3"]["packed_bytes"] < rows["fp32"]["packed_bytes"] / 4
    assert len(rows["haq-w3"]["bits"]) == 22
    assert all(0 <= row["test_accuracy"] <= 1 and row["agreement"] >= 0.5 for row in rows.values())
    with pytest.raises(UserError, match="another finetune"):
        make(data, out, "resnet20:w2:0", "--set", "quantise.train.lr=0.02")
    capsys.readouterr()
    assert compression.main(["--markdown", "--out", str(out)]) == 0
    assert "| resnet20 | haq-w3 | 1 |" in capsys.readouterr().out


def test_every_kind_is_of_a_quantiser_that_there_is_and_every_row_has_its_place() -> None:
    kinds = [compression.kind_of(row) for row in compression.ROWS]
    assert {kind.quantiser for kind in kinds} <= {*QUANTISERS, *MODEL_QUANTISERS}
    assert {kind.bits for kind in kinds} <= set(WEIGHT_BITS)
    shards = [compression.TABLE.choose(None, f"{index}/3") for index in range(3)]
    assert {row for shard in shards for row in shard} == set(compression.ROWS)
    assert len({row.name for row in compression.ROWS}) == len(compression.ROWS)
    assert {row.student for row in compression.ROWS} == {"resnet20", "vgg8", "resnet8"}
    with pytest.raises(UserError, match="a row is network:kind:seed"):
        compression.TABLE.choose("resnet20:w4", "0/1")


def test_strategies_are_compared_with_the_uniform_bits_of_their_bytes_in_pairs() -> None:
    def row(kind: str, seed: int, test: float, size: int) -> dict[str, object]:
        common = {"student": "s", "threads": 1, "runtime": "r", "device": {"cpu": "c"}, "mean_bits": 3.0, "coded_bytes": size // 2}
        return {**common, "kind": kind, "seed": seed, "test_accuracy": test, "packed_bytes": size}

    accuracies = {"fp32": (0.9, 0.8), "w3": (0.86, 0.76), "haq-w3": (0.88, 0.78)}
    sizes = {"fp32": 8000, "w3": 1000, "haq-w3": 1000}
    rows = [row(kind, seed, value, sizes[kind]) for kind, values in accuracies.items() for seed, value in enumerate(values)]
    result = {
        "rows": rows,
        "parent": {"train": {"epochs": 1}},
        "finetune": {"epochs": 3},
        "teacher": {"name": "t", "search_accuracy": 0.9},
        "data": {"name": "d", "train": 10},
        "test_images": 10,
    }
    lines = markdown(result).splitlines()
    assert "| haq-w3 | 2 | 83.00 ± 5.00 | -2.00 ± 0.00 (n = 2) | +2.00 ± 0.00 (n = 2) | 3.00 | 1.0 | 0.5 | 16.0x |" in lines[-1]
    assert markdown({}) == "no row is finished yet"
