"""The outlook learns an upper limit of accuracy: seldom too low, and silent of what it knows little about."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import pytest

from core.candidate import START, Candidate, GroupPlan, LatencyReport, Measurement, Rung
from objectives.budget import Known, dominates, surely_dominates
from objectives.outlook import Finished, Outlook, Traits, interval, looked_at, needed, traits_of


def finished(count: int, seed: int) -> list[Finished]:
    """Trials of two students whose accuracy grows with their capacity, with noise."""
    luck = random.Random(seed)
    return [one(luck) for _ in range(count)]


def one(luck: random.Random) -> Finished:
    student, capacity, bits = luck.choice(["a", "b"]), luck.uniform(10, 18), luck.uniform(2, 8)
    log_odds = 0.3 * (capacity - 14) + 0.2 * (bits - 5) + (0.5 if student == "b" else 0.0) + luck.gauss(0, 0.2)
    accuracy = 1 / (1 + math.exp(-log_odds))
    rung = Rung(stage="distil", epoch=1.0, accuracy=max(0.0, 0.8 * accuracy + luck.gauss(0, 0.01)))
    end = Rung(stage="quantise", epoch=1.0, accuracy=accuracy)
    return Finished(Traits(student, (capacity, capacity + 5, bits, bits - 0.5)), (rung, end), accuracy)


@pytest.mark.parametrize(("confidence", "trials"), [(0.5, 9), (0.8, 9), (0.9, 9), (0.95, 19), (0.99, 99)])
def test_a_quantile_of_a_confidence_needs_so_many_trials(confidence: float, trials: int) -> None:
    assert needed(confidence) == trials


def test_before_there_are_enough_trials_nothing_is_said() -> None:
    known = finished(9, seed=0)
    assert Outlook(tuple(known[:8]), 0.9).upper(known[0].traits) == 1.0
    assert Outlook(tuple(known), 0.9).upper(Traits("a", (10, 15, 2, 1.5))) < 1.0


@pytest.mark.parametrize("at_rung", [False, True])
@pytest.mark.parametrize(("count", "confidence", "least"), [(12, 0.9, 0.8), (40, 0.9, 0.8), (40, 0.75, 0.62)])
def test_the_limit_holds_about_as_often_as_it_says(count: int, confidence: float, least: float, at_rung: bool) -> None:
    holds = []
    for seed in range(60):
        *known, new = finished(count + 1, seed)
        upper = Outlook(tuple(known), confidence).upper(new.traits, new.rungs[:1] if at_rung else ())
        holds.append(new.accuracy <= upper)
    # of 60 draws fewer than `least` come once in 100 times; cross-conformal limits may fall a little short of their word
    assert sum(holds) / len(holds) >= least


def watched(luck: random.Random, looks: int) -> Finished:
    """A trial whose rungs all say the same but for noise of their own: the worst case for looking often."""
    capacity, final = luck.uniform(10, 18), luck.gauss(0, 0.5)
    rungs = [Rung(stage="distil", epoch=n + 1.0, accuracy=1 / (1 + math.exp(-final - luck.gauss(0, 0.1)))) for n in range(looks)]
    end = Rung(stage="quantise", epoch=1.0, accuracy=0.5)
    return Finished(Traits("a", (capacity, capacity + 5, 8.0, 8.0)), (*rungs, end), 1 / (1 + math.exp(-final)))


@pytest.mark.parametrize("together", [True, False])
def test_the_limit_holds_at_all_looks_together_and_not_at_each_alone(together: bool) -> None:
    held = []
    for seed in range(60):
        luck = random.Random(seed)
        *known, new = [watched(luck, looks=27) for _ in range(30)]
        outlook = Outlook(tuple(known), 0.9, together=together)
        held.append(all(new.accuracy <= outlook.upper(new.traits, new.rungs[:count]) for count in range(len(looked_at(new.rungs)) + 1)))
    share = sum(held) / len(held)
    assert share >= 0.8 if together else share <= 0.75  # of 60 draws of 0.9, fewer than 0.8 come once in 100 times


def test_all_looks_together_need_no_more_finished_trials_than_one() -> None:
    known = [watched(random.Random(seed), looks=14) for seed in range(10)]
    worst = Rung(stage="distil", epoch=1.0, accuracy=0.01)
    assert Outlook(tuple(known[:9]), 0.9).upper(known[0].traits, [worst]) < 0.97


def test_where_nobody_looks_the_traits_alone_are_judged_as_ever() -> None:
    known, new = [watched(random.Random(seed), looks=0) for seed in range(30)], watched(random.Random(99), looks=0)
    uppers = [Outlook(tuple(known), 0.9, together=together).upper(new.traits) for together in (True, False)]
    assert uppers[0] == pytest.approx(uppers[1], abs=1e-9)


def test_early_looks_are_remembered() -> None:
    """The last rung is mere noise here: a model that knew it alone would forget what the first one said."""
    known, new = [remembering(random.Random(seed)) for seed in range(40)], [remembering(random.Random(seed)) for seed in range(40, 60)]
    outlook = Outlook(tuple(known), 0.9)
    both = [outlook.upper(each.traits, each.rungs[:2]) - each.accuracy for each in new]
    last = [outlook.upper(each.traits, each.rungs[1:2]) - each.accuracy for each in new]
    assert sum(both) < 0.7 * sum(last)


def remembering(luck: random.Random) -> Finished:
    """A trial whose first rung tells its accuracy, and whose second nothing."""
    accuracy = luck.uniform(0.4, 0.8)
    shown = [accuracy + luck.gauss(0, 0.01), luck.uniform(0.4, 0.8), accuracy]
    rungs = [Rung(stage=stage, epoch=1.0, accuracy=value) for stage, value in zip(("start", "distil", "quantise"), shown, strict=True)]
    return Finished(Traits("a", (14.0, 19.0, 5.0, 5.0)), tuple(rungs), accuracy)


def test_a_student_of_another_width_is_another_student() -> None:
    """Traits and rungs are equal; what the narrow one loses is known from its own trials alone."""
    luck = random.Random(0)
    known = [one(luck) for _ in range(60)]
    known = [replace(each, traits=each.traits._replace(width=width)) for each, width in zip(known, [0.5, 1.0] * 30, strict=True)]
    known = [replace(each, accuracy=each.accuracy * (0.8 if each.traits.width == 0.5 else 1.0)) for each in known]
    outlook, traits = Outlook(tuple(known), 0.9), Traits("a", (14.0, 19.0, 5.0, 4.5))
    assert outlook.upper(traits._replace(width=0.5)) < outlook.upper(traits) - 0.05


def test_a_training_may_be_stopped_before_it_and_in_its_first_half() -> None:
    done = watched(random.Random(0), looks=4).rungs
    first = Rung(stage=START, epoch=0.0, accuracy=0.3)
    assert looked_at(done) == list(done[:2])
    assert looked_at((first, *done[:4])) == [first, *done[:2]]
    assert looked_at((first, done[0])) == [first]
    assert looked_at(()) == []


def test_nothing_is_said_at_a_look_after_which_little_is_left_to_save() -> None:
    known = [watched(random.Random(seed), looks=7) for seed in range(40)]
    worst = [Rung(stage="distil", epoch=n + 1.0, accuracy=0.01) for n in range(7)]
    limits = [Outlook(tuple(known), 0.7).upper(known[0].traits, worst[: count + 1]) for count in range(7)]
    assert all(limit < 0.9 for limit in limits[:4])
    assert limits[4:] == [1.0] * 3


def test_a_rung_says_more_than_the_traits_alone() -> None:
    known, new = finished(40, seed=1), finished(20, seed=2)
    outlook = Outlook(tuple(known), 0.9)
    before = [outlook.upper(each.traits) - each.accuracy for each in new]
    after = [outlook.upper(each.traits, each.rungs[:1]) - each.accuracy for each in new]
    assert sum(after) < 0.7 * sum(before)


def test_more_capacity_and_a_better_rung_never_lower_the_limit() -> None:
    outlook = Outlook(tuple(finished(40, seed=3)), 0.9)
    low, high = Traits("a", (12, 17, 4, 3.5)), Traits("a", (13, 18, 5, 4.5))
    assert outlook.upper(low) <= outlook.upper(high)
    rungs = [Rung(stage="distil", epoch=1.0, accuracy=accuracy) for accuracy in (0.2, 0.4, 0.6)]
    limits = [outlook.upper(low, [rung]) for rung in rungs]
    assert limits == sorted(limits)


def test_a_rung_that_no_finished_trial_has_says_nothing() -> None:
    outlook = Outlook(tuple(finished(40, seed=3)), 0.9)
    assert outlook.upper(Traits("a", (12, 17, 4, 3.5)), [Rung(stage="distil", epoch=7.0, accuracy=0.1)]) == 1.0


MIDDLE = Traits("a", (14.0, 19.0, 5.0, 5.0), 1.0, ("kd", "lsq"), (2.0, 0.5))


def test_nothing_is_said_of_what_no_finished_trial_is_like() -> None:
    """All of them at 4 bits, by one method, at one share of INT8: what 8 bits or another method may bring is not known."""
    known = [each.traits._replace(kinds=("kd", "lsq"), settings=(luck, 0.5)) for luck, each in enumerate(finished(40, seed=5))]
    known = [traits._replace(capacity=(*traits.capacity[:2], 4.0, 4.0)) for traits in known]
    outlook = Outlook(tuple(Finished(traits, (), 0.5 + 0.01 * (n % 5)) for n, traits in enumerate(known)), 0.75)
    like = MIDDLE._replace(capacity=(14.0, 19.0, 4.0, 4.0), settings=(20.0, 0.5))
    assert outlook.upper(like) < 0.6
    for other in (
        like._replace(student="new"),
        like._replace(kinds=("dkd", "lsq")),
        like._replace(capacity=(14.0, 19.0, 8.0, 8.0)),
        like._replace(capacity=(25.0, 30.0, 4.0, 4.0)),
        like._replace(settings=(60.0, 0.5)),
        like._replace(settings=(20.0, 1.0)),
    ):
        assert outlook.upper(other) == 1.0


def test_less_capacity_than_any_finished_trial_has_counts_as_the_least_of_theirs() -> None:
    outlook = Outlook(tuple(finished(40, seed=5)), 0.9)
    assert outlook.upper(Traits("a", (2.0, 3.0, 0.5, 0.5))) == outlook.upper(Traits("a", (9.0, 14.0, 1.5, 1.0)))


def test_an_interrupted_trial_does_not_narrow_the_limits_of_others() -> None:
    """It knows no look from before it went on: the joint limit stays that of all looks."""
    known, new = [watched(random.Random(seed), looks=8) for seed in range(40)], watched(random.Random(99), looks=8)
    whole, alone = (Outlook(tuple(known), 0.75, together=together).upper(new.traits) for together in (True, False))
    resumed = Outlook((*known[:-1], replace(known[-1], rungs=known[-1].rungs[-2:])), 0.75).upper(new.traits)
    assert alone < whole
    assert resumed == pytest.approx(whole, abs=0.1 * (whole - alone))


def test_the_noise_bits_are_those_of_the_worst_positions() -> None:
    even = traits_of(Candidate(student="a", groups=(GroupPlan(weight_bits=5),) * 2), 1024, 4096)
    mixed = traits_of(Candidate(student="a", groups=(GroupPlan(weight_bits=2), GroupPlan(weight_bits=8))), 1024, 4096)
    assert even.capacity == (10.0, 12.0, 5.0, 5.0)
    assert mixed.capacity[2] == 5.0
    assert 2.0 < mixed.capacity[3] < 3.0


def test_what_a_quantiser_does_counts_and_not_what_was_sampled_for_it() -> None:
    def of(quantiser: str, bits: int) -> Traits:
        return traits_of(Candidate(student="a", quantiser=quantiser, groups=(GroupPlan(weight_bits=bits),) * 2), 1024, 4096)

    assert of("nncf", 2) == of("nncf", 8)
    assert of("nncf", 2).capacity == of("lsq", 8).capacity
    assert (of("float", 2).capacity, of("float", 2).settings[-1]) == (of("lsq", 8).capacity, 0.0)
    assert (of("codebook", 4).capacity, of("codebook", 4).settings[-1]) == (of("lsq", 4).capacity, 0.0)
    assert of("lsq", 4).settings[-1] == 1.0


def test_an_interval_holds_its_share_and_narrows_with_images() -> None:
    for accuracy in (0.0, 0.3, 0.9, 1.0):
        low, high = interval(accuracy, 100, 0.95)
        assert 0 <= low <= accuracy <= high <= 1
        assert high - low > interval(accuracy, 1000, 0.95)[1] - interval(accuracy, 1000, 0.95)[0]


def latency(ms: float) -> LatencyReport:
    return LatencyReport(
        p50_ms=ms, p95_ms=2 * ms, ci_ms=(0.9 * ms, 1.1 * ms), samples=9, batch=1, threads=1, runtime="r", precision="f32",
        fingerprint="f", stable=True,
    )  # fmt: skip


def point(accuracy: float, size: int, ms: float) -> Measurement:
    return Measurement(
        accuracy=accuracy, images=1000, size_bytes=size, latency=latency(ms), agreement=1.0, parameters=9, macs=9, mean_bits=8
    )


def known(size: int, ms: float) -> Known:
    return Known(Traits("a", ()), size, latency(ms))


def test_before_training_only_what_noise_cannot_explain_dominates() -> None:
    assert surely_dominates(point(0.9, 1000, 1.0), known(1000, 1.3), 0.87, 0.9)
    assert not surely_dominates(point(0.9, 1000, 1.0), known(1000, 1.1), 0.87, 0.9)  # the intervals of latency overlap
    assert surely_dominates(point(0.9, 1000, 1.0), known(1000, 1.0), 0.87, 0.9)  # one structure, measured once
    assert not surely_dominates(point(0.9, 1000, 1.0), known(999, 1.3), 0.87, 0.9)
    assert not surely_dominates(point(0.9, 1000, 1.0), known(1000, 1.3), 0.895, 0.9)  # within the noise of 1000 images


def test_whatever_dominates_surely_also_dominates_as_measured() -> None:
    luck = random.Random(0)
    for _ in range(300):
        other, mine = point(luck.random(), luck.choice([900, 1000]), luck.uniform(0.8, 1.3)), known(1000, 1.0)
        upper = luck.random()
        assert dominates(other, mine, upper) or not surely_dominates(other, mine, upper, 0.9)
