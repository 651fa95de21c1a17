import math

import pytest

from core.candidate import Candidate, GroupPlan
from results.effects import SPARE_TRIALS, effects, nearest
from results.explanation import explanation
from tests.results.views import view_of


@pytest.fixture
def lawful(make_record):
    """Accuracy gains 0.01 per bit and loses 0.1 per unit of ratio, size is 1000 * 2 ** (bits - ratio), latency does not depend on bits."""

    def study(count: int):
        records = []
        for number in range(count):
            bits, ratio = (2, 3, 4, 5, 6, 8)[number % 6], 0.1 * (number // 2 % 5)
            candidate = Candidate(student="resnet8", groups=(GroupPlan(weight_bits=bits, prune_ratio=ratio),))
            record = make_record(number, 0.8 + 0.01 * bits - 0.1 * ratio, round(1e6 * 2 ** (bits - ratio)), 0.5 * math.exp(-ratio))
            records.append(record.model_copy(update={"candidate": candidate, "mean_bits": float(bits)}))
        return records

    return study


def test_a_linear_law_in_the_trials_is_found(lawful):
    records = lawful(24)
    found = {effect.feature: effect for effect in effects(records[0], records).found}
    assert set(found) == {"mean bits", "mean pruning ratio"}
    bits, ratio = found["mean bits"], found["mean pruning ratio"]
    assert bits.accuracy == pytest.approx((0.01,) * 3)
    assert bits.size == pytest.approx((2.0,) * 3, rel=1e-4)
    assert bits.latency == pytest.approx((1.0,) * 3)
    assert ratio.accuracy == pytest.approx((-0.1,) * 3)
    assert ratio.latency == pytest.approx((math.exp(-1),) * 3)


def test_noise_widens_the_interval_around_the_estimate(lawful):
    records = lawful(24)
    noisy = [
        record.model_copy(
            update={"measurement": record.measurement.model_copy(update={"accuracy": record.measurement.accuracy + (-1) ** n * 0.02})}
        )
        for n, record in enumerate(records)
    ]
    estimate, low, high = effects(noisy[0], noisy).found[0].accuracy
    assert low < estimate < high
    assert high - low > 1e-3


def test_too_few_trials_give_no_effects(lawful):
    coefficients = 3
    assert effects(lawful(24)[0], lawful(coefficients + SPARE_TRIALS - 1)) is None
    assert len(effects(lawful(24)[0], lawful(coefficients + SPARE_TRIALS)).found) == coefficients - 1


def of(student: str, level: float, records):
    """The same trials of another student, which is better by `level`."""
    return [
        record.model_copy(
            update={
                "student": student,
                "number": 100 + record.number,
                "fingerprint": f"{student}-{record.number}",
                "measurement": record.measurement.model_copy(update={"accuracy": record.measurement.accuracy + level}),
            }
        )
        for record in records
    ]


def test_enough_trials_of_the_student_leave_others_out(lawful):
    fitted = effects(lawful(24)[0], [*lawful(24), *of("other", 0.02, lawful(12))])
    assert (fitted.trials, fitted.students) == (24, ("resnet8",))


def test_where_a_student_has_too_few_trials_all_answer_each_at_its_own_level(lawful):
    few = lawful(4)
    fitted = effects(few[0], [*of("other", -0.05, lawful(14)), *few])
    assert (fitted.trials, fitted.students) == (18, ("resnet8", "other"))
    bits, ratio = fitted.found
    assert bits.accuracy == pytest.approx((0.01,) * 3)
    assert ratio.accuracy == pytest.approx((-0.1,) * 3)
    assert nearest(few[0], of("other", 0.0, lawful(12))) == []


def test_what_a_student_is_worth_is_no_effect_of_its_bits(lawful):
    """Trials of one student at 2 bits and of a better one at 8 say nothing of bits."""
    low = [record for record in lawful(60) if record.mean_bits == 2.0]
    high = of("other", 0.05, [record for record in lawful(60) if record.mean_bits == 8.0])
    assert "mean bits" not in {effect.feature for effect in effects(low[0], [*low, *high]).found}


def test_the_nearest_trial_differs_least_and_is_never_the_model_itself(lawful):
    records = lawful(12)
    found = nearest(records[2], records, count=11)
    assert records[2] not in found
    assert len(found) == 11
    bits = [abs(record.mean_bits - records[2].mean_bits) for record in found]
    ratios = [abs(record.candidate.groups[0].prune_ratio - records[2].candidate.groups[0].prune_ratio) for record in found]
    assert bits[0] / 6 + ratios[0] / 0.4 < bits[-1] / 6 + ratios[-1] / 0.4


def test_an_explanation_says_what_a_bit_and_what_channels_cost_and_on_what_that_rests(lawful, tmp_path):
    records = lawful(24)
    told = explanation(view_of(records, None, tmp_path), records[0], (), {})
    assert "linear regression over this study's 24 models of resnet8, 95 % intervals in brackets:" in told
    assert "one more bit in every layer: accuracy +1.00 points (+1.00 to +1.00), size +100 % (+100 to +100), latency +0 % (" in told
    assert "10 % fewer channels: accuracy -1.00 points (-1.00 to -1.00), size -7 % (-7 to -7), latency -10 % (-10 to -10)" in told
    few = lawful(4)
    told = explanation(view_of([*few, *of("other", 0.0, lawful(14))], None, tmp_path), few[0], (), {})
    assert "over this study's 18 models of all 2 students, each with its own level: resnet8 alone has too few" in told
    told = explanation(view_of(few, None, tmp_path), few[0], (), {})
    assert "no regression: it needs trials that differ and at least 6 more than coefficients, and this study has 4 of resnet8" in told
    assert " also" not in told


def test_one_model_alone_says_nothing_of_its_feature(lawful):
    """Its own noise is in every resample, so that an interval of its effect would be far too narrow."""
    records = lawful(60)
    same = [record for record in records if record.mean_bits == 2.0]
    other = next(record for record in records if record.mean_bits == 8.0)
    assert "mean bits" not in {effect.feature for effect in effects(same[0], [*same, other]).found}
    two = [record for record in records if record.mean_bits == 8.0][:2]
    assert "mean bits" in {effect.feature for effect in effects(same[0], [*same, *two]).found}


def test_models_that_differ_in_their_teaching_alone_say_so_and_are_no_regression(lawful, tmp_path):
    first = lawful(1)[0]
    plan = first.candidate.distil
    records = [
        first.model_copy(
            update={
                "number": number,
                "fingerprint": f"{number}",
                "candidate": first.candidate.model_copy(update={"distil": plan.model_copy(update={"temperature": 4.0 + number})}),
            }
        )
        for number in range(12)
    ]
    told = explanation(view_of(records, None, tmp_path), records[0], (), {})
    assert "no regression: bits, pruning, execution and width are the same in all models of this study" in told
    assert "temperature 5.0 (4.0)" in told
