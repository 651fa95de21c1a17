"""--dry-run says what a run would do and leaves the study as it was."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from tests.search.studies import begun, command, load, refused, search

Capture = pytest.CaptureFixture[str]


def test_the_plan_names_data_networks_budget_and_runtime_and_writes_no_study(empty: Path, capfd: Capture) -> None:
    answer = search(capfd, *command("--trials", "5", "--dry-run"))
    assert answer.code == 0, answer
    assert "study      tiny: 5 trials, 0 of them finished; seed 0; " in answer.out
    assert "data       digits: 1149 training images, 288 to choose on, 10 classes, 1 x 8 x 8" in answer.out
    assert "student    resnet8 at width 0.25: " in answer.out
    assert "student    resnet8 at width 0.5: " in answer.out
    assert "budget     parent 4, distil 2, quantise 1 epochs on cpu" in answer.out
    assert "runtime    openvino " in answer.out
    assert "reach      " in answer.out
    assert re.search(
        r"candidates measured, (the corners of the space among them|of 4 corners of the space; no time for the others)\)", answer.out
    )
    assert re.search(r"hours      about [^:]+: teacher .+, parents .+, training .+, engines .+; before skipping and stopping", answer.out)
    disk = re.search(r"disk       about ([0-9.]+) MB: models ([0-9.]+), parents ([0-9.]+), kept answers ([0-9.]+)", answer.out)
    assert disk
    whole, *parts = map(float, disk.groups())
    assert min(parts) > 0
    assert sum(parts) == pytest.approx(whole, abs=0.2)
    assert not Path("runs/tiny").exists()
    resolved = yaml.safe_load(answer.out[answer.out.index("space:\n") :])
    assert resolved["config"]["finetune"]["epochs"] == 2.0


def test_a_limit_that_nothing_reaches_is_named_with_its_floor(empty: Path, capfd: Capture) -> None:
    answer = search(capfd, *command("--trials", "5", "--dry-run", "--max-latency-ms", "0.00001", settings=["runtime.max_s=0.02"]))
    assert re.search(
        r"warning    1e-05 ms (is|may be) out of reach: the (floor|least that was measured) is [0-9.]+ ms on this device", answer.out
    )


def test_a_study_that_would_go_on_is_counted_and_one_of_another_space_refused(again: Path, capfd: Capture) -> None:
    assert "tiny: 5 trials, 2 of them finished; " in search(capfd, *command("--trials", "5", "--dry-run")).out
    assert "differs in config.seed" in refused(search(capfd, *command("--trials", "5", "--dry-run", "--seed", "3")))
    fresh = search(capfd, *command("--trials", "5", "--dry-run", "--seed", "3", "--fresh"))
    assert fresh.code == 0
    assert "tiny: 5 trials, 0 of them finished; seed 3" in fresh.out
    assert "SQLite takes at most 4 workers, but --workers is 9" in refused(search(capfd, *command("--dry-run", "--workers", "9")))
    assert begun(load()) == ["COMPLETE", "COMPLETE"]


@pytest.mark.parametrize("seed", ["-1", str(2**32)])
def test_a_seed_has_32_bits(empty: Path, capfd: Capture, seed: str) -> None:
    assert "`seed` must be " in refused(search(capfd, *command("--dry-run", f"--seed={seed}")))
