"""The distillation benchmarks at sizes that say nothing about speed, but everything about whether they run and what they keep."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import distil_table, distil_throughput
from benchmarks.distil_markdown import markdown, mean_and_error
from core.errors import UserError
from tests.image_layouts import noise

TINY = [
    *("teacher.name=resnet8", "teacher.train.epochs=1", "teacher.train.batch_size=16", "parent.train.batch_size=16"),
    *("views.number=2", "data.search_fraction=0.25", "hardware.device=cpu", "hardware.amp=off"),
]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CIFAR-10 of 10 classes with 4 + 1 images of 16 x 16."""
    return noise(tmp_path_factory.mktemp("pictures"), 16)


def table(pictures: Path, out: Path, *more: str) -> int:
    overrides = [flag for assignment in TINY for flag in ("--set", assignment)]
    flags = ["--data-dir", str(pictures), "--threads", "1", "--epochs", "1", "--out", str(out), *overrides]
    return distil_table.main([*flags, *more])


def test_rows_are_trained_once_and_added_by_later_calls(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "table.json"
    assert table(pictures, out, "--rows", "resnet20:kd:0") == 0
    first = json.loads(out.read_text())["rows"]
    assert table(pictures, out, "--rows", "resnet20:kd:0,resnet20:sdd_lskd:0,resnet20:kd_averaged:0") == 0
    rows = json.loads(out.read_text())["rows"]
    assert [row["row"] for row in rows] == ["resnet20:kd:0", "resnet20:sdd_lskd:0", "resnet20:kd_averaged:0"]
    assert rows[0] == first[0]  # the seconds too: it was not trained again
    assert "the teacher ran on 0 images" in capsys.readouterr().out  # the second call found the teacher's answers on disk
    assert all(row["teacher_forward_images"] == 0 for row in rows)
    assert all(0 <= row["test_accuracy"] <= 1 and 0 <= row["search_accuracy"] <= 1 and row["images_per_second"] > 0 for row in rows)
    assert rows[1]["plan"]["grid"] == 2
    with pytest.raises(UserError, match="another recipe"):
        table(pictures, out, "--rows", "resnet20:ce:0", "--set", "parent.train.lr=0.01")
    assert distil_table.main(["--markdown", "--out", str(out)]) == 0
    assert "| resnet20 (1) | sdd_lskd | 1 |" in capsys.readouterr().out


def test_shards_are_disjoint_and_together_all() -> None:
    shards = [distil_table.TABLE.choose(None, f"{index}/2") for index in range(2)]
    assert not set(shards[0]) & set(shards[1])
    assert {row for shard in shards for row in shard} == set(distil_table.ROWS)
    assert len(distil_table.ROWS) == 2 * 6 * 3


@pytest.mark.parametrize(("rows", "shard"), [("resnet20:kd:9", "0/1"), ("kd", "0/1"), (None, "2/2"), (None, "1")])
def test_rows_and_shards_that_are_none_are_refused(rows: str | None, shard: str) -> None:
    with pytest.raises(UserError, match=r"row is student:loss:seed|--shard must be"):
        distil_table.TABLE.choose(rows, shard)


def test_standard_errors_are_of_paired_differences() -> None:
    def row(loss: str, seed: int, test: float) -> dict[str, object]:
        common = {"student": "s", "width": 1.0, "threads": 1, "images_per_second": 10.0, "device": {"cpu": "c"}}
        return {**common, "loss": loss, "seed": seed, "test_accuracy": test, "search_accuracy": test}

    kd, better = [0.5, 0.7, 0.6], [0.51, 0.71, 0.61]
    shared = {
        "recipe": {"epochs": 1, "batch_size": 2, "optimiser": "sgd", "lr": 0.1, "schedule": "one_cycle", "early_sizes": [[16, 0.5]]},
        "teacher": {"name": "t", "search_accuracy": 0.9},
        "data": {"name": "d", "train": 10},
        "search_images": 1,
        "test_images": 1,
        "precision": "torch.float32",
        "versions": {"torch": "1"},
    }
    rows = [row(loss, seed, value) for loss, values in (("kd", kd), ("lskd", better)) for seed, value in enumerate(values)]
    text = markdown({**shared, "rows": rows})
    assert "| +1.00 ± 0.00 (n = 3) |" in text  # though each of the two spreads over 20 points
    assert f"| {mean_and_error([50.0, 70.0, 60.0])} |" in text
    assert mean_and_error([50.0, 70.0, 60.0]) == f"60.00 ± {10 / 3**0.5:.2f}"
    assert markdown({}) == "no row is finished yet"


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # a machine with one core
def test_the_loops_run_in_turn_and_the_teacher_only_in_the_plain_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "throughput.json"
    sizes = ["--rounds", "2", "--steps", "2", "--plain-steps", "1", "--warm-steps", "1", "--batch", "4", "--threads", "1"]
    assert distil_throughput.main([*sizes, "--device", "cpu", "--amp", "off", "--out", str(out)]) == 0
    result = json.loads(out.read_text())
    rates = result["images_per_second"]
    assert list(rates) == ["plain_0_workers", "plain_2_workers", "ours", "bare"]
    assert all(len(values["rounds"]) == 2 and values["min"] > 0 for values in rates.values())
    assert rates[result["plain"]]["median"] == max(rates[name]["median"] for name in rates if name.startswith("plain"))
    assert result["teacher_forward_images_while_timed"] == 0
    for name, other in (("ours/plain", result["plain"]), ("ours/bare", "bare")):
        expected = [a / b for a, b in zip(rates["ours"]["rounds"], rates[other]["rounds"], strict=True)]
        assert result["ratios"][name]["rounds"] == pytest.approx(expected, rel=0.01, abs=0.01)
