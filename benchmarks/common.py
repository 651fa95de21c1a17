"""What benchmarks share: reading a finished run, and the teacher's engine on the test split."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from core.bundle import Preprocessing
from core.config import Config
from core.data import load_search_data
from core.data.heldout import load_test_data
from core.engines import EngineHost
from results.front import front
from results.record import TrialRecord, read_records
from search import export_best
from search.final_score import answers, score
from search.study import CONTENT_KEY, load_study

RUNS = Path("runs")
CACHE = RUNS / ".cache"


def front_of(study: str) -> list[TrialRecord]:
    """The front of a finished run below runs/, by rank."""
    return front(read_records(load_study(url_of(study), study)))


def url_of(study: str) -> str:
    return f"sqlite:///{RUNS / study / 'study.db'}"


def config_of(study: str) -> dict[str, Any]:
    """The configuration that a run below runs/ was made with."""
    config: dict[str, Any] = load_study(url_of(study), study).user_attrs[CONTENT_KEY]["config"]
    return config


def teacher_test(study: str) -> dict[str, object]:
    """Accuracy of the FP32 teacher's engine on the test split, with its 95 % interval; for comparison, nothing is chosen by it."""
    folder = RUNS / study
    config = Config.model_validate(config_of(study))
    info = load_search_data(config.data, CACHE).info
    normalisation = json.loads((folder / "run.json").read_text())["normalisation"]
    inputs = Preprocessing.model_validate({"image_size": info.image_size, "channels": info.channels, **normalisation})
    test = load_test_data(config.data, CACHE)
    with EngineHost(config.runtime, folder) as engines:
        logits = answers(engines, folder / "teacher" / "model.onnx", inputs, test)
    return score(logits, test.labels.numpy())


def exported_point(study: str, rank: int) -> dict[str, object]:
    """Export one rank of a run below runs/ and read what its bundle says."""
    out = Path("exported", f"{study}-rank{rank}")
    assert export_best.main(["--study", study, "--rank", str(rank), "--out", str(out)]) == 0
    measured = json.loads((out / "measurement.json").read_text())
    search = measured["search"]
    return {
        "rank": rank,
        "bytes": search["size_bytes"],
        "ms": search["latency"]["p50_ms"],
        "search_accuracy": search["accuracy"],
        "test": measured["test"],
    }
