import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import UserError
from results.front import at_rank, front, non_dominated, objectives, select

VALUES = st.one_of(st.integers(0, 3).map(float), st.floats(allow_nan=False))
POINTS = st.lists(st.tuples(VALUES, VALUES, VALUES), max_size=40)


def dominates(a, b) -> bool:
    return a != b and a[0] >= b[0] and a[1] <= b[1] and a[2] <= b[2]


@given(POINTS)
def test_the_front_is_exactly_the_points_that_no_other_dominates(points):
    expected = [index for index, point in enumerate(points) if not any(dominates(other, point) for other in points)]
    assert non_dominated(points) == expected


@given(POINTS)
def test_the_front_of_a_front_is_itself(points):
    kept = [points[index] for index in non_dominated(points)]
    assert non_dominated(kept) == list(range(len(kept)))


def test_the_front_agrees_with_optuna():
    import random

    import optuna

    rng = random.Random(0)
    study = optuna.create_study(directions=["maximize", "minimize", "minimize"])
    points = [(rng.randrange(6) / 6, float(rng.randrange(6)), float(rng.randrange(6))) for _ in range(60)]
    study.add_trials([optuna.trial.create_trial(values=list(point)) for point in points])
    assert non_dominated(points) == sorted(trial.number for trial in study.best_trials)


def test_a_point_with_nan_is_on_no_front():
    assert non_dominated([(math.nan, 1.0, 1.0), (0.5, 2.0, 2.0), (0.9, math.nan, 0.0)]) == [1]


def test_no_points_have_no_front():
    assert non_dominated([]) == []


def test_ranks_go_by_accuracy_then_speed_then_size_then_trial_number(make_record):
    best = make_record(9, 0.95, 900, 0.9)
    faster_but_larger = make_record(8, 0.9, 500, 0.1)
    slower_but_smaller = make_record(1, 0.9, 400, 0.2)
    equal_but_later = make_record(3, 0.9, 400, 0.2)
    ranked = front([equal_but_later, slower_but_smaller, faster_but_larger, best])
    assert [record.number for record in ranked] == [9, 8, 1, 3]


def test_equal_networks_count_once_with_the_lowest_trial_number(records):
    assert [record.number for record in front(records)] == [4, 1, 0]
    assert front(reversed(records)) == front(records)


def test_only_complete_trials_are_on_the_front(records):
    assert front([record for record in records if record.state != "COMPLETE"]) == []


def test_ranks_never_gain_accuracy(records):
    for better, worse in pairwise(front(records)):
        assert objectives(better)[0] >= objectives(worse)[0]


def test_a_rank_beyond_the_front_names_the_last_one(records):
    assert at_rank(records, 2).number == 0
    for rank in (3, -1):
        with pytest.raises(UserError, match=rf"between 0 and 2 .*3 points.*got {rank}"):
            at_rank(records, rank)


@pytest.mark.parametrize(
    ("limits", "number"),
    [
        ({}, 4),
        ({"max_latency_ms": 0.2}, 1),
        ({"max_latency_ms": 0.39}, 1),
        ({"max_size_kb": 9.99}, 0),
        ({"min_accuracy": 0.95, "max_size_kb": 10}, 1),
    ],
)
def test_the_most_accurate_point_within_the_limits_is_chosen(records, limits, number):
    assert select(records, **limits).number == number


@given(max_latency_ms=st.floats(0.01, 1.0), max_size_kb=st.floats(0.1, 50.0), min_accuracy=st.floats(0.0, 1.0))
def test_what_is_chosen_keeps_every_limit_and_a_miss_means_that_nothing_does(make_record, max_latency_ms, max_size_kb, min_accuracy):
    records = [make_record(0, 0.90, 5_000, 0.10), make_record(1, 0.95, 10_000, 0.20), make_record(2, 0.98, 20_000, 0.40)]

    def keeps(record):
        accuracy, size_bytes, latency_ms = objectives(record)
        return accuracy >= min_accuracy and size_bytes <= 1000 * max_size_kb and latency_ms <= max_latency_ms

    try:
        assert keeps(select(records, max_latency_ms, max_size_kb, min_accuracy))
    except UserError:
        assert not any(keeps(record) for record in records)


def test_a_miss_names_the_nearest_point_and_the_binding_limit(records):
    with pytest.raises(UserError) as caught:
        select(records, max_latency_ms=0.09, max_size_kb=4.9)
    message = str(caught.value)
    assert "rank 2 (trial 0)" in message
    assert "binding limit: --max-latency-ms, relax it to 0.1 " in message


def test_relaxing_the_binding_limit_as_told_makes_the_nearest_point_fit(make_record):
    records = [make_record(0, 0.91239, 5_000, 0.1)]
    with pytest.raises(UserError, match=r"binding limit: --min-accuracy, relax it to 0\.9123"):
        select(records, min_accuracy=0.95)
    assert select(records, min_accuracy=0.9123).number == 0
    records = [make_record(0, 0.9, 2002, 0.1)]
    with pytest.raises(UserError, match=r"binding limit: --max-size-kb, relax it to 2\.002 "):
        select(records, max_size_kb=2.0)
    assert select(records, max_size_kb=2.002).number == 0


def test_an_empty_front_says_how_the_trials_ended(records):
    with pytest.raises(UserError, match=r"of 2 finished trials none is complete \(1 pruned, 1 failed\).*--trials"):
        select([record for record in records if record.state != "COMPLETE"])


@pytest.mark.parametrize("limits", [{"max_latency_ms": 0.0}, {"max_size_kb": -1.0}, {"max_size_kb": math.nan}, {"min_accuracy": 1.5}])
def test_impossible_limits_are_refused(records, limits):
    with pytest.raises(UserError, match="must be"):
        select(records, **limits)


def test_an_accuracy_limit_in_per_cent_is_explained(records):
    with pytest.raises(UserError, match=r"for 97 % give 0\.97"):
        select(records, min_accuracy=97)
