import math

import pytest

from core.candidate import Candidate, GroupPlan
from results.effects import SPARE_TRIALS, effects, nearest


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
    found = {effect.feature: effect for effect in effects(records[0], records)}
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
    estimate, low, high = effects(noisy[0], noisy)[0].accuracy
    assert low < estimate < high
    assert high - low > 1e-3


def test_too_few_trials_give_no_effects(lawful):
    coefficients = 3
    assert effects(lawful(24)[0], lawful(coefficients + SPARE_TRIALS - 1)) == []
    assert len(effects(lawful(24)[0], lawful(coefficients + SPARE_TRIALS))) == coefficients - 1


def test_trials_of_other_students_do_not_count(lawful):
    records = [record.model_copy(update={"student": "other"}) for record in lawful(24)]
    here = lawful(1)[0]
    assert effects(here, [here, *records[1:]]) == []
    assert nearest(here, [here, *records[1:]]) == []


def test_the_nearest_trial_differs_least_and_is_never_the_model_itself(lawful):
    records = lawful(12)
    found = nearest(records[2], records, count=11)
    assert records[2] not in found
    assert len(found) == 11
    bits = [abs(record.mean_bits - records[2].mean_bits) for record in found]
    ratios = [abs(record.candidate.groups[0].prune_ratio - records[2].candidate.groups[0].prune_ratio) for record in found]
    assert bits[0] / 6 + ratios[0] / 0.4 < bits[-1] / 6 + ratios[-1] / 0.4
