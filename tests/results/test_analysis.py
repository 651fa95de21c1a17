import math
from itertools import pairwise

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.candidate import Candidate, GroupPlan
from results.analysis import MIN_TRIALS, OBJECTIVES, decides, hypervolume_history, hypervolume_of, importances, logarithmic
from results.front import objectives
from tests.results.views import view_of

REFERENCE = (1.0, 1.0, 1.0)
POINTS = st.lists(st.tuples(*[st.floats(0.0, 1.0)] * 3), min_size=1, max_size=6)


def test_a_single_point_spans_the_box_to_the_reference():
    assert hypervolume_history([(0.5, 0.75, 0.0)], REFERENCE) == pytest.approx([0.5 * 0.25 * 1.0])


def test_two_points_overlap_is_counted_once():
    assert hypervolume_history([(0.5, 0.0, 0.0), (0.0, 0.5, 0.0)], REFERENCE)[-1] == pytest.approx(0.75)


@settings(max_examples=25)
@given(POINTS)
def test_hypervolume_never_falls_and_ends_the_same_in_any_order(points):
    forward, backward = hypervolume_history(points, REFERENCE), hypervolume_history(points[::-1], REFERENCE)
    assert all(a <= b + 1e-12 for a, b in pairwise(forward))
    assert forward[-1] == pytest.approx(backward[-1], abs=1e-9)


def test_points_that_are_dominated_or_beyond_the_reference_add_nothing():
    assert len(set(hypervolume_history([(0.5, 0.5, 0.5), (0.6, 0.5, 0.5), (0.1, 0.1, 1.5)], REFERENCE))) == 1


def test_a_halving_of_bytes_counts_as_much_as_a_halving_of_ms():
    before, after = logarithmic((0.9, 2000.0, 2.0)), logarithmic((0.9, 1000.0, 1.0))
    assert [a - b for a, b in zip(before, after, strict=True)] == pytest.approx([0.0, 1.0, 1.0])


def test_the_hypervolume_of_a_study_counts_from_the_teacher_and_from_guessing(records, teacher, tmp_path):
    numbers, volumes = hypervolume_of(view_of(records[:1], teacher, tmp_path, classes=10))
    accuracy, size, ms = objectives(records[0])
    box = (accuracy - 0.1) * math.log2(teacher.size_bytes / size) * math.log2(teacher.latency.p50_ms / ms)
    assert (numbers, volumes) == ([0], pytest.approx([box]))
    assert hypervolume_of(view_of(records, None, tmp_path)) == ([], [])
    assert hypervolume_of(view_of(records, teacher, tmp_path, classes=None)) == ([], [])


@pytest.fixture(scope="module")
def planted(make_record):
    """Records and trials in which bits_0 alone decides the accuracy, and ratio_0 alone size and latency."""
    distributions = {name: optuna.distributions.IntDistribution(0, 3) for name in ("bits_0", "ratio_0", "temperature")}
    records, trials = [], []
    for number in range(48):
        params = {"bits_0": number % 4, "ratio_0": number // 4 % 4, "temperature": number // 16 % 4}
        values = [0.9 + 0.01 * params["bits_0"], 1000 * 2 ** params["ratio_0"], 0.1 * 2 ** params["ratio_0"]]
        records.append(make_record(number, values[0], values[1], values[2]))
        trials.append(optuna.trial.create_trial(params=params, distributions=distributions, values=values))
    return records, trials


def test_the_parameter_that_decides_an_objective_has_the_largest_share_of_it(planted, tmp_path):
    records, trials = planted
    found = importances(view_of(records, None, tmp_path, trials=trials))
    assert {objective: next(iter(shares)) for objective, shares in found.items()} == {
        "accuracy": "bits_0",
        "size": "ratio_0",
        "latency": "ratio_0",
    }
    for shares in found.values():
        assert sum(shares.values()) == pytest.approx(1.0)
        assert next(iter(shares.values())) > 0.9


def test_the_training_is_not_said_to_explain_size_or_latency(planted, tmp_path):
    records, trials = planted
    found = importances(view_of(records, None, tmp_path, trials=trials))
    assert {objective: "temperature" in shares for objective, shares in found.items()} == {
        "accuracy": True,
        "size": False,
        "latency": False,
    }


def test_bits_are_said_to_explain_the_latency_only_where_some_force_a_layer_to_float(planted, tmp_path):
    records, trials = planted
    wide = Candidate(student="resnet8", groups=(GroupPlan(weight_bits=16, execution="float"),))
    for some, there in ((records, False), ([records[0].model_copy(update={"candidate": wide}), *records[1:]], True)):
        found = importances(view_of(some, None, tmp_path, trials=trials))
        assert {objective: "bits_0" in shares for objective, shares in found.items()} == {"accuracy": True, "size": True, "latency": there}


@pytest.mark.parametrize(("quantiser", "coded", "size", "latency"), [
    ("lsq", False, False, False), ("codebook", False, True, True), ("lsq", True, True, False)
])  # fmt: skip
def test_the_quantiser_counts_where_it_changes_the_file_or_the_execution(quantiser, coded, size, latency, make_record, tmp_path):
    record = make_record(0, 0.9, 5_000, 0.1).model_copy(update={"candidate": Candidate(student="resnet8", quantiser=quantiser)})
    view = view_of([record], None, tmp_path, space={"objectives": {"size": "coded" if coded else "packed"}})
    assert [decides(view, "quantiser", objective) for objective in OBJECTIVES] == [True, size, latency]
    assert [decides(view, "sparsity", objective) for objective in OBJECTIVES] == [True, coded, False]


def test_few_trials_have_no_importances(planted, tmp_path):
    records, trials = planted
    fewer = MIN_TRIALS - 1
    assert importances(view_of(records[:fewer], None, tmp_path, trials=trials[:fewer])) == {}
    assert importances(view_of([], None, tmp_path)) == {}
