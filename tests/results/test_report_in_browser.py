"""The report of a long study in a real browser: every figure, and every way in which a trial can end."""

from __future__ import annotations

import random
import re
from pathlib import Path

import optuna
import pytest

from core.candidate import Candidate, GroupPlan, Rung
from results.epochs import Epoch
from results.front import complete, objectives
from results.given_up import FAILED, KINDS
from results.layers import LayerFacts
from results.record import TrialRecord
from results.report import sections, write_report
from results.view import StudyView
from tests.browser import in_a_browser, rendered
from tests.results.views import view_of

COUNT = 24
LAYERS = tuple(
    LayerFacts(f"layer{index}", (8, 8, 3, 3), 2 + index % 7, 100 + index, "int8" if index % 2 else "float", 1, 5000) for index in range(9)
)
ASKED = {
    "student": optuna.distributions.CategoricalDistribution(["resnet8", "resnet20"]),
    "bits_0": optuna.distributions.IntDistribution(0, 3),
    "temperature": optuna.distributions.FloatDistribution(1, 8),
}


@pytest.fixture
def long(make_record, teacher, tmp_path: Path) -> StudyView:
    """COUNT complete trials, and one of every other kind."""
    draw = random.Random(0)
    records, trials = [], []
    for number in range(COUNT):
        student, bits, temperature = draw.choice(["resnet8", "resnet20"]), draw.randrange(4), draw.uniform(1, 8)
        accuracy = 0.8 + 0.04 * (student == "resnet20") + 0.03 * bits + draw.uniform(0, 0.02)
        record = make_record(
            number, accuracy, int(4_000 * (2 + bits) * draw.uniform(0.8, 1.3)), 0.1 * draw.uniform(0.6, 2.0), student=student
        )
        plan = Candidate(student=student, width=0.5, groups=(GroupPlan(weight_bits=2 + bits),))
        records.append(record.model_copy(update={"candidate": plan, "mean_bits": 2.0 + bits}))
        params = {"student": student, "bits_0": bits, "temperature": temperature}
        trials.append(optuna.trial.create_trial(params=params, distributions=ASKED, values=list(objectives(record))))
    known = {"student": "resnet8", "width": 0.5, "candidate": Candidate(student="resnet8", width=0.5)}
    given_up = {"size_bytes": 9_000, "latency_ms": 0.2, "rungs": (Rung(stage="distil", epoch=1.0, accuracy=0.6),)}
    for number, ending in enumerate(KINDS, start=COUNT):
        records.append(TrialRecord(number=number, state="PRUNED", ending=ending, reason="trial 3 is better", **known, **given_up))
    records.append(TrialRecord(number=len(records), state="FAIL", reason="the loss is NaN", **known))
    each = [(trial, epoch) for trial in range(COUNT) for epoch in (1, 2, 3)]
    epochs = tuple(Epoch(trial, "distil", float(epoch), 3.0, 500.0, 2.0 / epoch, 0.1, 0.5 + 0.1 * epoch) for trial, epoch in each)
    run = {"device": {"cpu": "a CPU", "cores": 2, "isa": ["avx2"], "threads": 1, "runtime": "openvino"}, "seed": 0, "wall_seconds": 900.0}
    view = view_of(complete(records), teacher, tmp_path)
    layers = dict.fromkeys(range(len(view.front)), LAYERS)
    return view_of(records, teacher, tmp_path, trials, layers=layers, epochs=epochs, run=run | {"teacher_seconds": 20.0, "started": 0.0})


def test_a_long_study_leaves_nothing_out(long: StudyView) -> None:
    assert [section.title for section in sections(long) if not section.figures and section.table is None] == []


@in_a_browser
@pytest.mark.slow
def test_every_figure_of_a_long_study_is_drawn_with_every_kind_of_trial(long: StudyView, tmp_path: Path) -> None:
    html = next(path for path in write_report(long, tmp_path / "out") if path.suffix == ".html")
    document, complaints = rendered(html, tmp_path / "profile")
    assert complaints == []
    drawn = re.findall(r'<div(?=[^>]*js-plotly-plot)[^>]* id="([^"]+)"', document)
    assert set(re.findall(r'data-plot="([^"]+)"', document)) <= set(drawn)
    assert len(drawn) >= sum(len(section.figures) for section in sections(long)) >= 8
    legends = set(re.findall(r'class="legendtext"[^>]*>([^<]+)<', document))
    assert {kind.name for kind in (*KINDS.values(), FAILED)} | {"dominated"} <= {re.sub(r" \(.*", "", name) for name in legends}
