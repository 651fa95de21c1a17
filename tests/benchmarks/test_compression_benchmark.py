"""The compression benchmark at a size that says nothing about accuracy, but everything about whether it runs and what it keeps."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from benchmarks import compression
from benchmarks.compression_bars import Rows, bars, bytes_for
from benchmarks.compression_kinds import KIND_OF, ROWS
from benchmarks.compression_markdown import markdown
from core.candidate import WEIGHT_BITS
from core.errors import UserError
from core.files import write_atomically
from core.quantise import MODEL_QUANTISERS, QUANTISERS
from core.runtimes import RUNTIMES
from core.students import STUDENTS
from core.teacher_logits import check_early_regions
from core.yaml_io import load_config
from tests.image_layouts import noise

TINY = [
    *("teacher.name=resnet8", "teacher.train.epochs=1", "teacher.train.batch_size=16", "parent.train.batch_size=16"),
    *("quantise.train.batch_size=16", "quantise.calibration_images=16", "views.number=2", "views.shift=1"),
    *("data.search_fraction=0.25", "hardware.device=cpu", "hardware.amp=off", "runtime.max_s=0.02", "runtime.warmup_s=0"),
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
    monkeypatch.setattr(compression, "PARENTS", tmp_path / "none")
    data, out = noise(tmp_path / "pictures", 8), tmp_path / "table.json"
    assert make(data, out, "resnet20:fp32:0,resnet20:w3:0") == 0
    first = json.loads(out.read_text())["rows"]
    assert make(data, out, "resnet20:fp32:0,resnet20:w3:0,resnet20:haq-w3:0,resnet20:per_position-w3:0") == 0
    rows = {row["kind"]: row for row in json.loads(out.read_text())["rows"]}
    assert [rows["fp32"], rows["w3"]] == first  # the seconds too: they were not made again
    assert len(list(Path("runs/compression/parents").glob("*.safetensors"))) == 1
    for kind in ("haq-w3", "per_position-w3"):
        assert rows[kind]["packed_bytes"] <= rows["w3"]["packed_bytes"] < rows["fp32"]["packed_bytes"] / 4
    assert len(rows["haq-w3"]["bits"]) == 22
    assert all(0 <= row["test_accuracy"] <= 1 and row["agreement"] >= 0.5 for row in rows.values())
    for row in rows.values():
        assert tuple(row["openvino"]) == RUNTIMES["openvino"]().precisions
        for precision, found in row["openvino"].items():
            assert found["precision"] == precision
            assert found["images"] == json.loads(out.read_text())["search_images"]
            assert found["agreement"] >= (0.9 if precision == "f32" else 0.5)  # near ties of a network that has learnt nothing
            assert abs(found["accuracy"] - found["simulated_accuracy"]) <= 1 - found["agreement"] + 1e-9
    with pytest.raises(UserError, match="another finetune"):
        make(data, out, "resnet20:w2:0", "--set", "quantise.train.lr=0.02")
    capsys.readouterr()
    assert compression.main(["--markdown", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "| resnet20 | haq-w3 | 1 |" in printed
    assert "`codebook` and `chain` take two trainings of 0.5 epochs" in printed
    for precision, least in {"f32": "99.9", "bf16": "99"}.items():
        claim = f"| engine and simulation, float layers in {precision}: equal top-1 on at least {least} % of the images | "
        assert (claim in printed) == (precision in RUNTIMES["openvino"]().precisions)


def test_a_strategy_that_chooses_uniform_bits_trains_nothing_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(compression, "TRIALS", 1)  # uniform bits are the first draw
    monkeypatch.setattr(compression, "PARENTS", tmp_path / "none")
    data, out = noise(tmp_path / "pictures", 8), tmp_path / "table.json"
    assert make(data, out, "resnet20:w3:0,resnet20:per_layer-w3:0,resnet20:haq-w3:0") == 0
    rows = {row["kind"]: row for row in json.loads(out.read_text())["rows"]}
    own = ("row", "kind", "bits", "same_as")
    assert [rows[kind]["same_as"] for kind in ("per_layer-w3", "haq-w3")] == ["resnet20:w3:0"] * 2
    assert rows["per_layer-w3"]["bits"] == [8, *[3] * 20, 8]
    for row in rows.values():
        assert {key: value for key, value in row.items() if key not in own} == {
            key: value for key, value in rows["w3"].items() if key not in own
        }
    assert "2 rows are copies of others" in markdown(json.loads(out.read_text()))


def test_a_kept_parent_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(compression, "PARENTS", tmp_path / "kept")
    data, out, name = noise(tmp_path / "pictures", 8), tmp_path / "table.json", "resnet8:fp32:0"
    assert make(data, out, name) == 0
    (made,) = Path("runs/compression/parents").glob("*.safetensors")
    weights = load_file(made)
    save_file({key: torch.zeros_like(value) for key, value in weights.items()}, tmp_path / "other.safetensors")
    write_atomically(tmp_path / "kept" / made.name, (tmp_path / "other.safetensors").read_bytes())
    made.unlink()
    assert make(data, tmp_path / "again.json", name) == 0
    assert not any(value.any() for value in load_file(made).values())
    (row,) = json.loads((tmp_path / "again.json").read_text())["rows"]
    assert row["search_accuracy"] == pytest.approx(0.1)  # one answer for all images


def test_every_kind_is_of_a_quantiser_that_there_is_and_every_row_has_its_place() -> None:
    kinds = list(KIND_OF.values())
    assert {kind.quantiser for kind in kinds} <= {*QUANTISERS, *MODEL_QUANTISERS}
    assert {kind.bits for kind in kinds} <= set(WEIGHT_BITS)
    shards = [compression.TABLE.choose(None, f"{index}/3") for index in range(3)]
    assert {row for shard in shards for row in shard} == set(ROWS)
    assert sum(map(len, shards)) == len(ROWS)
    assert len({row.name for row in ROWS}) == len(ROWS)
    assert {row.student for row in ROWS} == {"resnet20", "vgg8", "resnet8", "resnet14", "airbench", "self"}
    with pytest.raises(UserError, match="a row is network:kind:seed"):
        compression.TABLE.choose("resnet20:w4", "0/1")


def test_networks_that_are_taught_for_longer_have_regions_at_every_size_that_their_parents_see() -> None:
    recipe = load_config("cifar10", [], compression.ROOT).parent.train
    assert recipe.early_sizes
    for student, plan in {row.student: kind.distil for row, kind in KIND_OF.items() if kind.longer}.items():
        network = STUDENTS[student](classes=10, channels=3, image_size=32)
        check_early_regions(network, torch.randn(2, 3, 32, 32), plan.grid, {"parent.train": recipe}, student)


SGD = {"optimiser": "sgd", "lr": 0.01}


def row(student: str, kind: str, seed: int, test: float, size: int, **more: object) -> dict[str, object]:
    common = {
        "threads": 1,
        "runtime": "r",
        "device": {"cpu": "c"},
        "mean_bits": 3.0,
        "coded_bytes": size // 2,
        "parameters": 10,
        "recipe": SGD,
    }
    named = {"row": f"{student}:{kind}:{seed}", "student": student, "kind": kind, "seed": seed}
    return {**common, **named, "test_accuracy": test, "search_accuracy": test, "teacher_test_accuracy": 0.9, "packed_bytes": size, **more}


def result_of(rows: list[dict[str, object]]) -> dict[str, Any]:
    return {
        "rows": rows,
        "parent": {"train": {"epochs": 1}},
        "finetune": {"epochs": 3, **SGD},
        "together": {"resnet20:0": {"teacher": {"name": "t", "search_accuracy": 0.9}}},
        "data": {"name": "d", "train": 10},
        "test_images": 10,
    }


def judged(rows: list[dict[str, object]]) -> dict[str, tuple[str, bool | None]]:
    """Claim without its student -> figure, met."""
    table: dict[tuple[str, str], Rows] = defaultdict(dict)
    for each in rows:
        table[str(each["student"]), str(each["kind"])][int(str(each["seed"]))] = each
    return {bar.claim.partition(": ")[2]: (bar.figure, bar.met) for bar in bars(table)}


def of_seeds(kinds: dict[str, tuple[tuple[float, float], int]]) -> list[dict[str, object]]:
    return [row("s", kind, seed, test, size) for kind, (tests, size) in kinds.items() for seed, test in enumerate(tests)]


def test_strategies_are_compared_with_the_uniform_bits_of_their_bytes_in_pairs() -> None:
    rows = of_seeds({"fp32": ((0.9, 0.8), 8000), "w3": ((0.86, 0.76), 1000), "haq-w3": ((0.88, 0.78), 1000)})
    for each in rows:
        each["bits"] = [3, 4] if each["kind"] == "haq-w3" and each["seed"] == 0 else [3, 3]
    lines = markdown(result_of(rows)).split("### What is asked of it")[0].strip().splitlines()
    assert (
        "| haq-w3 | 2 | 83.00 ± 5.00 | -2.00 ± 0.00 (n = 2) | +2.00 ± 0.00 (n = 2), 1 of them the same network | 3.00 | 1.0 | 0.5 | 16.0x |"
        in lines[-1]
    )
    assert markdown({}) == "no row is finished yet"


def test_the_table_names_who_was_trained_by_another_optimiser() -> None:
    rows = of_seeds({"fp32": ((0.9,), 8000), "w3": ((0.86,), 1000)})
    assert "Fine-tunes are by" not in markdown(result_of(rows))
    rows[1]["recipe"] = {"optimiser": "muon", "lr": 0.05}
    assert "Fine-tunes are by sgd at 0.01, `w3` by muon at 0.05." in markdown(result_of(rows))


def test_the_table_says_what_becomes_of_the_teacher_s_own_network() -> None:
    rows = of_seeds({"fp32": ((0.9,), 8000), "chain": ((0.86,), 1000)})
    assert "`self`" not in markdown(result_of(rows))
    for each in rows:
        each |= {"student": "self", "pruned": 0.25 if each["kind"] == "chain" else 0.0}
    assert (
        "`self` is the teacher's own network; `chain`: 25 % of the channels of every group go first, and a training in float follows. "
        in (markdown(result_of(rows)))
    )


def test_a_bar_is_judged_by_the_mean_over_paired_seeds_and_says_its_figure() -> None:
    found = judged(
        of_seeds(
            {
                "fp32": ((0.900, 0.910), 8000),
                "w4": ((0.896, 0.908), 1200),
                "w3": ((0.880, 0.890), 1000),
                "sqnr-w3": ((0.882, 0.886), 1000),  # better and worse
                "haq-w3": ((0.884, 0.892), 1000),
                "int8": ((0.898, 0.908), 2000),
                "int8-nncf": ((0.901, 0.911), 2000),
            }
        )
    )
    assert found["lsq W4A8 loses at most 0.5 point"] == ("-0.30 ± 0.10 points (n = 2)", True)
    assert found["lsq W3A8 loses at most 1 point"] == ("-2.00 ± 0.00 points (n = 2)", False)
    mixed = found["the best mixed bits beat uniform ones at W3's bytes by more than a standard error"]
    assert mixed == ("haq: +0.30 ± 0.10 points (n = 2); on the search split +0.30 ± 0.10 points (n = 2)", True)
    assert found["NNCF's INT8 is better than ours by at most 0.2 point"] == ("+0.30 ± 0.00 points (n = 2)", False)
    assert not any("rate" in claim or "Deep Compression" in claim for claim in found)  # there are no rows for them


def test_what_is_compressed_is_told_beside_a_float_network_that_was_trained_as_long() -> None:
    rows = of_seeds({"fp32": ((0.9,), 8000), "fp32-tuned": ((0.91,), 8000), "w4": ((0.905,), 1200)})
    rows += of_seeds({"long-fp32": ((0.93,), 8000), "long-rate-1": ((0.92,), 900)})
    rows[-1]["width"] = 0.5
    assert judged(rows)["lsq W4A8 loses at most 0.5 point"] == ("+0.50 points (n = 1); as long in float: +1.00 points (n = 1)", True)
    printed = markdown(result_of(rows))
    assert "| long-fp32 | 1 | 93.00 | - |" in printed
    assert "| long-rate-1 | 1 | 92.00 | -1.00 (n = 1) |" in printed
    assert "`s` has 0.5 of its width. " in printed


def test_mixed_bits_of_one_seed_leave_their_bar_open() -> None:
    found = judged([row("s", "w3", 0, 0.80, 1000), row("s", "sdq-w3", 0, 0.85, 1000)])
    mixed = found["the best mixed bits beat uniform ones at W3's bytes by more than a standard error"]
    assert mixed == ("sdq: +5.00 points (n = 1); on the search split +5.00 points (n = 1)", None)


def test_what_is_best_is_chosen_on_the_search_split_and_judged_on_the_test_split() -> None:
    def seeds(kind: str, test: float, search: float) -> list[dict[str, object]]:
        return [row("s", kind, seed, test, 1000, search_accuracy=search) for seed in range(2)]

    found = judged([*seeds("w3", 0.80, 0.80), *seeds("haq-w3", 0.79, 0.83), *seeds("sqnr-w3", 0.82, 0.81)])
    mixed = found["the best mixed bits beat uniform ones at W3's bytes by more than a standard error"]
    assert mixed == ("haq: -1.00 ± 0.00 points (n = 2); on the search split +3.00 ± 0.00 points (n = 2)", False)


def test_a_claim_about_several_seeds_stays_open_until_all_are_there() -> None:
    rows = [row("resnet20", kind, seed, test, 1000) for kind, test in (("fp32", 0.90), ("w4", 0.90)) for seed in range(2)]
    claim = "lsq W4A8 loses at most 0.5 point"
    assert judged(rows)[claim] == ("+0.00 ± 0.00 points (n = 2)", None)
    assert judged([*rows, *(row("resnet20", kind, 2, 0.9, 1000) for kind in ("fp32", "w4"))])[claim][1] is True


def test_rate_is_held_against_lsq_s_bytes_at_its_accuracy() -> None:
    line = [row("s", "w2", 0, 0.70, 400), row("s", "w3", 0, 0.80, 600), row("s", "w4", 0, 0.82, 800)]  # 200, 300, 400 coded bytes
    assert [bytes_for(accuracy, line) for accuracy in (0.70, 0.75, 0.80, 0.81, 0.90)] == pytest.approx([200, 250, 300, 350, 400])
    assert bytes_for(0.90, [*line, row("s", "w4", 0, 0.79, 1000)]) == 400  # the best of them, not the largest
    found = judged([*line, row("s", "rate-0.1", 0, 0.75, 400), row("s", "rate-0.3", 0, 0.81, 500)])
    assert found["rate has 1.3x smaller coded files than lsq at equal accuracy"] == (
        "rate-0.3: 1.40x (n = 1); on the search split 1.40x",
        True,
    )
    collapsed = judged([*line, row("s", "rate-1", 0, 0.10, 40)])
    assert "rate has 1.3x smaller coded files than lsq at equal accuracy" not in collapsed  # nothing is said


def test_of_the_chains_that_lose_little_the_smallest_counts() -> None:
    floats = row("vgg8", "fp32", 0, 0.90, 100_000)
    chains = [row("vgg8", "codebook", 0, 0.899, 8_000), row("vgg8", "chain-90", 0, 0.896, 5_000), row("vgg8", "chain-95", 0, 0.88, 2_000)]
    claim = "Deep Compression's chain is 35x smaller than its FP32 file and loses at most 0.5 point"
    assert judged([floats, *chains])[claim] == ("chain-90: 40.0x, -0.40 points (n = 1)", True)
    assert judged([floats, chains[0]])[claim] == ("codebook: 25.0x, -0.10 points (n = 1)", False)
    assert judged([floats, chains[2]])[claim] == ("chain-95: 100.0x, -2.00 points (n = 1)", False)


def test_small_files_are_judged_by_their_limit_of_bytes() -> None:
    small = row("resnet8", "w4", 0, 0.85, 40_000, search_accuracy=0.886)
    found = judged([row("resnet8", "fp32", 0, 0.84, 300_000, search_accuracy=0.9), small])
    assert found["the FP32 accuracy in 24 KB"] == ("resnet8 w4: +1.00 points (n = 1), 20.0 KB", True)
    other = {**small, "row": "resnet14:w4:0", "student": "resnet14", "teacher_test_accuracy": 0.91, "search_accuracy": 0.9}
    found = judged([row("resnet8", "fp32", 0, 0.84, 300_000), small, other])
    assert found["the FP32 accuracy in 24 KB"][0].startswith("resnet8 w4"), "networks of other teachers are not compared"
    names = [bar.claim for bar in bars({("resnet8", "w4"): {0: small}})]
    assert "within 1.5 points of a teacher of 89.5 % in 80 KB, on the test split" in names


def test_the_worst_row_decides_whether_engines_agree_with_their_simulation() -> None:
    def engines(f32: float, bf16: float, apart: float) -> dict[str, object]:
        one = {"f32": (f32, 0.0), "bf16": (bf16, apart)}
        return {key: {"agreement": share, "accuracy": 0.9 - off, "simulated_accuracy": 0.9} for key, (share, off) in one.items()}

    rows = [
        row("s", "w4", seed, 0.9, 10, openvino=engines(*found)) for seed, found in enumerate([(1.0, 0.995, 0.001), (0.9995, 0.98, 0.003)])
    ]
    table: dict[tuple[str, str], Rows] = {("s", "w4"): dict(enumerate(rows))}
    found = [(bar.figure, bar.met) for bar in bars(table)][-3:]
    worst = "(s:w4:1, worst of 2)"
    assert found == [(f"99.95 % {worst}", True), (f"98.00 % {worst}", False), (f"0.30 points {worst}", True)]
