"""The pruning benchmark on one student: says nothing about speed, but everything about whether it runs and what it keeps."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import prune_latency


@pytest.mark.slow
def test_a_student_is_timed_with_and_without_half_of_its_channels_and_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "prune.json"
    words = ["--students", "light_cnn", "--max-s", "0.05", "--out", str(out)]
    assert prune_latency.main(words) == 0
    rows = json.loads(out.read_text())["rows"]
    assert [(row["execution"], row["ratio"]) for row in rows] == [("int8", 0.0), ("int8", 0.5), ("float", 0.0), ("float", 0.5)]
    for dense, pruned in (rows[:2], rows[2:]):
        assert all(pruned[what] < dense[what] for what in ("channels", "parameters", "macs"))
        assert min(dense["p50_ms"], pruned["p50_ms"]) > 0
    assert prune_latency.main(words) == 0
    assert json.loads(out.read_text())["rows"] == rows  # the milliseconds too: nothing was timed again
    printed = capsys.readouterr().out
    assert "| light_cnn | " in printed
    assert "Latency left exceeds MACs left by more than 10 points in " in printed


def timed(ratio: float, ms: float, macs: int, widths: list[int]) -> dict[str, object]:
    common = {"student": "net", "execution": "int8", "error": None, "stable": True, "layers": 4, "parameters": 1}
    return {**common, "ratio": ratio, "p50_ms": ms, "macs": macs, "channels": sum(widths), "widths": widths}


def test_latency_that_falls_with_the_macs_needs_no_reason() -> None:
    rows = [timed(0.0, 1.0, 1000, [16, 16, 10]), timed(0.5, 0.3, 250, [8, 8, 10])]
    assert "by more than 10 points in 0 cases." in prune_latency.table(rows)


def test_what_does_not_fall_is_split_into_time_by_mac_and_time_by_layer() -> None:
    """0.4 ms for 4 layers and 0.6 us per MAC: what was put in is found again."""
    rows = [timed(0.0, 0.4 + 0.6, 1000, [16, 16, 10]), timed(0.5, 0.4 + 0.15, 250, [8, 16, 10])]
    (line,) = [line for line in prune_latency.table(rows).splitlines() if line.startswith("- **net, int8:**")]
    assert "55 % of the latency and 25 % of the MACs are left" in line
    assert "0.400 ms, 40 % of the dense time, go with no MACs: 4 layers x 100.0 us" in line
    assert "1 of 2 layers kept all channels" in line


def test_a_network_that_became_slower_is_said_to_be() -> None:
    rows = [timed(0.0, 1.0, 1000, [16, 16, 10]), timed(0.5, 1.2, 250, [8, 8, 10])]
    assert "it is slower with fewer channels" in prune_latency.table(rows)


def test_no_reason_is_read_from_unstable_times_which_are_counted() -> None:
    wide = [timed(0.0, 1.0, 1000, [16, 16, 10]) | {"stable": False}, timed(0.5, 1.2, 250, [8, 8, 10])]
    told = prune_latency.table(wide)
    assert "in 1 cases. In all of them a time is unstable (*), so no reason is read from them." in told
    assert "- **" not in told
    narrow = [row | {"student": "other", "stable": True} for row in wide]
    both = prune_latency.table([*wide, *narrow])
    assert "in 2 cases. In 1 of them a time is unstable (*), so no reason is read from them. The others:" in both
    assert both.count("- **other, int8:** ") == both.count("- **") == 1
