"""The test split's door for finished points: each is scored on it once, and the study keeps the result."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.cli import required

if TYPE_CHECKING:
    import numpy as np
    import optuna

    from core.bundle import Preprocessing
    from core.config import Config
    from core.data.types import Images
    from core.engines import EngineHost
    from results.record import TrialRecord

RUNS = Path("runs")


def heldout_accuracy(
    study: optuna.Study,
    record: TrialRecord,
    config: Config,
    preprocessing: Preprocessing,
    engines: EngineHost,
    model: Path,
    variant: str = "",
) -> dict[str, Any]:
    """Accuracy of the engine on the test split: computed once per candidate (and `variant` of it) and logged in the study."""
    from results.record import TEST_KEY

    logged: dict[str, dict[str, Any]] = study.user_attrs.get(TEST_KEY, {})
    key = f"{record.fingerprint}{variant}"
    if key not in logged:
        from core.data.heldout import load_test_data

        test = load_test_data(config.data, RUNS / ".cache")
        with required("an exported point must run on the test images"):
            logits = answers(engines, model, preprocessing, test)
            right = _right_answers(study, record, preprocessing, engines, test)
        logged = {**logged, key: score(logits, right)}
        study.set_user_attr(TEST_KEY, logged)
    return logged[key]


def _right_answers(study: optuna.Study, record: TrialRecord, preprocessing: Preprocessing, engines: EngineHost, test: Images) -> np.ndarray:
    """What the test images show (N,): their labels, or what the FP32 teacher answers where they have none."""
    assert record.measurement is not None
    if record.measurement.judged_by == "labels":
        return test.labels.numpy()
    return answers(engines, RUNS / study.study_name / "teacher" / "model.onnx", preprocessing, test).argmax(1)


def answers(engines: EngineHost, model: Path, preprocessing: Preprocessing, images: Images) -> np.ndarray:
    """Logits (N, K) of the engine of `model` on a whole split."""
    import numpy as np

    return np.concatenate([engines.predict(model, preprocessing.normalise(part.numpy()))[0] for part in images.chunks()])


def score(logits: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """Accuracy of logits (N, K) against labels (N,), with the 95 % Wilson interval."""
    right, count = int((logits.argmax(1) == labels).sum()), len(labels)
    return {"accuracy": right / count, "images": count, "interval": wilson(right, count)}


def optimism(searched: float, test: Mapping[str, Any]) -> str:
    """A line for a search accuracy that the test split does not bear out; empty where it lies within or below the interval."""
    if searched <= test["interval"][1]:
        return ""
    return "note: the search accuracy lies above the test interval: points were chosen by it, and given weights may have seen its images"


def wilson(right: int, count: int, z: float = 1.959964) -> tuple[float, float]:
    """95 % interval of a proportion. References: Wilson 1927; Brown, Cai, DasGupta 2001."""
    share = right / count
    centre = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * (share * (1 - share) / count + z * z / (4 * count * count)) ** 0.5
    # by rounding, all right would end below 1, and none right begin above 0
    return (0.0 if right == 0 else max(0.0, centre - half)), (1.0 if right == count else min(1.0, centre + half))
