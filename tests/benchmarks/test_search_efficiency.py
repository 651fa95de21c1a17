"""What the comparison with a hand-written loop says of two arms' points."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch

from benchmarks import pictures, search_efficiency
from benchmarks.efficiency_result import compare, report, result
from benchmarks.plain_search import Budget, PlainSearch, name_of
from core.data.types import DataInfo, ImageSet, SearchData
from core.errors import UserError
from core.export import export_onnx
from core.teacher import Teacher
from core.views import Normalisation
from core.yaml_io import load_config
from search.space import load_space
from tests.search.studies import SPACE, Dot

TEACHER = {
    "accuracy": 0.9,
    "size_bytes": 1000,
    "latency": {
        "p50_ms": 4.0,
        "p95_ms": 4.2,
        "ci_ms": [3.9, 4.1],
        "samples": 10,
        "stable": True,
        "runtime": "onnxruntime",
        "batch": 1,
        "threads": 1,
        "precision": "f32",
        "fingerprint": "0",
    },
}
WEAK, GOOD = (0.5, 500.0, 2.0), (0.7, 250.0, 1.0)
Arm = Sequence[tuple[float, ...]]


def content(*seeds: tuple[Arm, Arm], ended: list[float] | None = None) -> dict[str, Any]:
    """Rows of seeds 0, 1, ...: the points of the plain arm and ours."""
    rows: dict[str, Any] = {}
    for seed, (plain, ours) in enumerate(seeds):
        told = {} if ended is None else {"ended": ended}
        rows |= {f"plain:{seed}": {"points": plain}, f"ours:{seed}": {"points": ours, "teacher": TEACHER, **told}}
    return {"shared": {}, "rows": rows}


def first_seed(content: dict[str, Any], again: bool = False) -> dict[str, Any]:
    told = compare(content, 0, again)
    assert told is not None
    return told


def test_the_clock_stops_at_the_first_point_as_good_as_the_plain_arms_last() -> None:
    told = first_seed(content(([(50, *WEAK), (100, *GOOD)], [(5, *WEAK), (10, *GOOD), (15, *GOOD)])))
    assert (told["plain_seconds"], told["our_seconds"], told["speedup"]) == (100, 10, 10)
    # error 0.3 and not 0.9, a quarter of the bytes, a quarter of the milliseconds
    assert told["plain_hypervolume"] == pytest.approx(0.6 * 2 * 2)


def test_a_search_that_never_gets_there_is_no_times_sooner() -> None:
    told = first_seed(content(([(100, *GOOD)], [(5, *WEAK)])))
    assert told["our_seconds"] is told["our_trials"] is None
    assert told["speedup"] == told["speedup_of_first"] == 0
    assert told["our_hypervolume"] < told["plain_hypervolume"]


def test_a_plain_arm_that_was_there_before_its_end_is_compared_with_that_moment_too() -> None:
    told = first_seed(content(([(40, *GOOD), (100, *WEAK)], [(10, *GOOD)])))
    assert (told["plain_seconds"], told["plain_first_seconds"]) == (100, 40)
    assert (told["speedup"], told["speedup_of_first"]) == (10, 4)


def test_all_trials_until_then_are_counted_also_those_that_were_not_trained() -> None:
    told = first_seed(content(([(100, *GOOD)], [(5, *WEAK), (10, *GOOD)]), ended=[3, 5, 6, 10, 12]))
    assert told["our_trials"] == 4


def test_the_median_counts_a_miss_as_nothing_whatever_the_order_of_the_seeds() -> None:
    miss, fast, slow = ([(100, *GOOD)], [(5, *WEAK)]), ([(100, *GOOD)], [(5, *GOOD)]), ([(100, *GOOD)], [(25, *GOOD)])
    for seeds in ([miss, fast, slow], [fast, miss, slow], [slow, fast, miss]):
        (told,) = result(content(*seeds)).values()
        assert told["median"] == 4
        assert told["never"] == [seeds.index(miss)]


def test_the_bar_stands_for_every_seed_and_not_only_for_the_median() -> None:
    fast, slow = ([(100, *GOOD)], [(5, *GOOD)]), ([(100, *GOOD)], [(20, *GOOD)])
    (told,) = result(content(fast, fast, slow)).values()
    assert told["median_keeps_bar"]
    assert not told["every_seed_keeps_bar"]
    assert told["below_bar"] == [2]
    assert "Median: 20.0 times sooner; less than 10 times with seeds 2" in report(content(fast, fast, slow))
    assert report(content(fast)).endswith("Median: 20.0 times sooner")
    assert "never there: 0" in report(content(([(100, *GOOD)], [(5, *WEAK)])))


def test_latencies_timed_again_by_one_host_may_turn_the_result() -> None:
    rows = content(([(100, *GOOD)], [(10, *GOOD)]))
    rows["rows"]["retimed:0"] = {"plain": [0.5], "ours": [1.0]}  # the plain arm's own clock had been unkind to it
    assert first_seed(rows)["speedup"] == 10
    assert first_seed(rows, again=True)["speedup"] == 0
    assert list(result(rows)) == ["each arm's own latencies", "both timed again by one host"]


def test_a_seed_with_one_arm_is_not_compared() -> None:
    assert compare({"shared": {}, "rows": {"plain:0": {"points": [(1, *WEAK)]}}}, 0) is None
    assert compare(content(([(1, *WEAK)], [(1, *WEAK)])), 0, again=True) is None
    assert "Median" not in report({"shared": {}, "rows": {}})


def test_the_models_of_both_arms_are_timed_again_and_must_be_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["--space", SPACE, "--out", "e.json", "--set", "runtime.max_s=0.05", "--set", "runtime.warmup_s=0.0"]
    args = search_efficiency.build_parser().parse_args(words)
    Path("e.json").write_text(json.dumps(content(([(9, *GOOD)], [(1, *GOOD), (2, *WEAK)]))))
    model = export_onnx(Dot(classes=10, channels=1).eval(), (1, 8, 8)).SerializeToString()
    for arm, points in (("plain", 1), ("ours", 2)):
        folder = search_efficiency.emptied(search_efficiency.models_of(args, arm, 0))
        for point in range(points):
            (folder / name_of(point)).write_bytes(model)
    row = search_efficiency.retimed(args, 0)
    assert (len(row["plain"]), len(row["ours"])) == (1, 2)
    assert min(row["plain"] + row["ours"]) > 0
    search_efficiency.emptied(search_efficiency.models_of(args, "ours", 0))
    with pytest.raises(UserError, match=r"ours-0/000\.onnx is not; run seed 0 anew"):
        search_efficiency.retimed(args, 0)


def test_the_loop_that_is_written_by_hand_learns_and_its_file_is_what_was_scored(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(96) % 2
    noise = torch.randint(0, 60, (96, 3, 32, 32), generator=generator)
    pixels = (noise + 150 * labels[:, None, None, None]).to(torch.uint8)  # dark ones and bright ones
    images, normalise = ImageSet(pixels, labels), Normalisation((0.5,) * 3, (0.3,) * 3)
    info = DataInfo("two", ("dark", "bright"), 3, 32, (0.5,) * 3, (0.3,) * 3, "0" * 16)
    config = load_config("cifar10", ["quantise.calibration_images=16", "runtime.name=onnxruntime"], search_efficiency.ROOT)
    answers_alike = torch.nn.Linear(3072, 2)
    torch.nn.init.zeros_(answers_alike.weight)
    teacher = Teacher(torch.nn.Sequential(torch.nn.Flatten(), answers_alike).eval(), normalise, "", 0.5, "linear")
    space = load_space(search_efficiency.ROOT / "spaces" / "cifar10.yaml", ["student.name=[resnet8]", "student.width=[1.0]"])
    points: list[tuple[float, float, float, float]] = []
    budget = Budget(trials=1, epochs=5, batch_size=16, workers=0)
    PlainSearch(space, config, SearchData(info, images, images), teacher, budget, 0.0, points, tmp_path).run(0, lambda: None)
    ((_, accuracy, size, ms),) = points
    assert accuracy > 0.9  # by the labels: the teacher knows nothing
    session = onnxruntime.InferenceSession(tmp_path / name_of(0))
    answers = session.run(None, {"images": teacher.normalise(pixels).contiguous().numpy()})[0].argmax(1)
    assert (answers == labels.numpy()).mean() == pytest.approx(accuracy)
    assert size > 1000
    assert ms > 0


def test_the_picture_has_a_panel_per_seed_with_both_arms_as_they_grow() -> None:
    figure = pictures.efficiency(content(*[([(50, *WEAK), (100, *GOOD)], [(5, *WEAK), (10, *GOOD)])] * 2))
    assert [(line.name, list(line.x)) for line in figure.data] == [("hand-written loop", [50, 100]), ("search.run", [5, 10])] * 2
    assert all(line.y[1] == pytest.approx(0.6 * 2 * 2) for line in figure.data)
    assert len({line.xaxis for line in figure.data}) == 2
