"""A replay of a table says what is known of it: a planted one whose outcome is known by hand, and one of simulated trials."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path
from statistics import mean
from typing import Any

import pytest

from benchmarks import replay as command
from benchmarks import replay_text, simulated_search
from benchmarks.recorded import Table, read_table, space_of
from benchmarks.replay_gate import Ended, gate_claims, joining, order_of, replay, spent_until, upper_share, upper_share_of_rows
from benchmarks.surrogate import MARKS, Surrogate, features, fitted, paired, search
from benchmarks.table_search import row_of
from core.candidate import Candidate, LatencyReport, Measurement, Rung
from core.config import StoppingConfig
from core.errors import UserError
from results.analysis import logarithmic, reference_of
from results.front import front, objectives
from results.record import TeacherReport, TrialRecord
from search.space import load_space

NEVER = StoppingConfig(skip=False, stop=False)
EARLY = StoppingConfig(confidence=0.8)
SECONDS = {"engine": 100.0, "prune": 1.0, "distil": 10.0, "quantise": 6.0, "accuracy": 3.0}
"""20 s of training: engines count for nothing."""


# --- a planted table -------------------------------------------------------------------------------------------------


def row(number: int, student: str, accuracy: float, size: int, ms: float, half_width: float = 0.01) -> TrialRecord:
    """A trial whose rungs are all 0.1 below its accuracy. All have the same traits, but for the student."""
    interval = (ms - half_width, ms + half_width)
    latency = LatencyReport(
        p50_ms=ms, p95_ms=ms, ci_ms=interval, samples=10, batch=1, threads=1, runtime="none", precision="f32", fingerprint="0", stable=True
    )  # fmt: skip
    point = Measurement(
        accuracy=accuracy, images=100_000, size_bytes=size, latency=latency, agreement=1, parameters=1000, macs=1000, mean_bits=8
    )  # fmt: skip
    rungs = tuple(
        Rung(stage=stage, epoch=epoch, accuracy=accuracy - 0.1) for stage, epoch in (("distil", 1), ("distil", 2), ("quantise", 1))
    )
    return TrialRecord(
        number=number, state="COMPLETE", candidate=Candidate(student=student), fingerprint=f"{number}", measurement=point, rungs=rungs,
        seconds=SECONDS,
    )  # fmt: skip


BEST = row(0, "b", 0.95, 1024, 1.0, half_width=0.1)
SMALL = [row(1 + i, "a", 0.80, 512, 4.0) for i in range(8)]
"""Less accurate than BEST and slower, but smaller: nothing dominates them."""
USUAL = row(9, "a", 0.70, 2048, 2.0)
"""Less than its like, and larger and slower than BEST: rightly skipped."""
STRANGE = row(10, "a", 0.97, 2048, 2.0)
"""Far better than its like, and not smaller or faster than BEST: skipped because its limit is wrong."""
OTHER = row(11, "c", 0.70, 2048, 2.0)
"""Of a student that nobody else has: nothing is known of it, so it is trained."""
NEAR = row(12, "a", 0.80, 2048, 1.0)
"""As fast as BEST within the noise: not skipped, and rightly stopped at its first rung."""
LATE = row(13, "a", 0.96, 2048, 1.0)
"""The same, but it would have joined: wrongly stopped."""
PLANTED = [BEST, *SMALL, USUAL, STRANGE, OTHER, NEAR, LATE.model_copy(update={"rungs": NEAR.rungs})]


@pytest.fixture(scope="module")
def planted() -> Table:
    """Eight times the teacher's bytes and ms are BEST's. Three parents took 30, 40 and 50 s."""
    latency = BEST.measurement.latency.model_copy(update={"p50_ms": 8.0})  # type: ignore[union-attr]
    teacher = TeacherReport(accuracy=0.98, size_bytes=8192, latency=latency)
    return Table(tuple(PLANTED), teacher, reference_of(teacher, 10), {"a-1": 30.0, "b-1": 40.0, "c-1": 50.0})


def test_a_planted_table_is_skipped_and_stopped_where_it_should_be(planted: Table) -> None:
    outcome = replay(planted, PLANTED, EARLY)
    assert [each.row.number for each in outcome.of(stopped=False)] == [9, 10]
    assert [each.row.number for each in outcome.of(stopped=True)] == [12, 13]
    assert [each.row.number for each in outcome.ended if each.joins] == [10, 13]


def test_the_seconds_saved_of_a_planted_table_are_those_known_by_hand(planted: Table) -> None:
    outcome = replay(planted, PLANTED, EARLY)
    spent = 10 * 20 + 2 * (1 + 10 / 2)  # ten rows in full; two until the first of two epochs of distil
    assert outcome.saved == pytest.approx(1 - spent / (14 * 20))
    assert outcome.saved_with_parents == pytest.approx(1 - (spent + 30 + 40 + 50) / (14 * 20 + 30 + 40 + 50))


def test_the_hypervolume_lost_of_a_planted_table_is_that_known_by_hand(planted: Table) -> None:
    # Boxes (accuracy above chance, halvings of bytes, of ms): BEST .85 3 3, SMALL .7 4 1, LATE .86 2 3, STRANGE .87 2 2
    kept = 0.85 * 3 * 3 + 0.7 * 1 * 1
    whole = kept + 0.01 * 2 * 3 + 0.01 * 2 * 2
    assert replay(planted, PLANTED, EARLY).lost == pytest.approx(1 - kept / whole)


def test_claims_keep_skipped_and_stopped_apart(planted: Table) -> None:
    claims = gate_claims(planted, [PLANTED] * 10, EARLY)
    assert (claims["stopped_per_order"], claims["stopped_would_have_joined"]) == (2, 0.5)
    assert (claims["skipped_per_order"], claims["skipped_would_have_joined"]) == (2, 0.5)
    # of 1 in 2 trials, not of 10 in 20: orders share their rows
    assert claims["stopped_would_have_joined_upper_95"] == pytest.approx(upper_share(1, 2))
    assert (claims["stopped_different_rows"], claims["skipped_different_rows"]) == (2, 2)


def test_an_optimal_row_is_skipped_only_where_its_limit_is_wrong(planted: Table) -> None:
    claims = gate_claims(planted, [PLANTED] * 4, EARLY)
    assert claims["optimal_rows"] == 11  # BEST, eight SMALL, STRANGE and LATE
    assert (claims["optimal_skipped"], claims["optimal_stopped"]) == (4, 4)  # one of each in every order
    assert claims["optimal_skipped_bound_right"] == 0
    assert claims["skipped_bound_right"] == 0.5


def test_a_training_costs_the_epochs_that_were_done_in_each_stage() -> None:
    assert [spent_until(BEST, BEST.rungs[:done]) for done in range(4)] == [1.0, 6.0, 11.0, 17.0]


def test_who_knows_trains_what_joins_the_front_on_arrival_and_nothing_else() -> None:
    joined = {row.number for row in joining(PLANTED)}
    assert {row.number for row in front(PLANTED)} <= joined
    for place, row in enumerate(PLANTED):
        earlier = front(PLANTED[:place])
        assert (row.number in joined) is any(each is row for each in front([*earlier, row]))


def test_the_page_says_what_was_saved_and_lost(planted: Table) -> None:
    claims = gate_claims(planted, [PLANTED] * 4, EARLY)
    rows = {"gate: a": claims, "gate: b": claims | {"confidence_of": "each answer"}, "sampler: tpe": {"volumes": {}}}
    paired = {"tpe - random": {"all": {"mean_share": 0.0123, "low_95_share": -0.001, "high_95_share": 0.02}}}
    told = {"r2": {"accuracy": {"ridge": 0.8, "boosting": 0.91}}, "chosen": {"accuracy": "boosting"}}
    text = replay_text.section(
        {"table": {"name": "t.json", "rows": len(PLANTED)}, "teachers": [0.9], "rows": rows, "paired": paired, "surrogate": told}
    )
    assert f"{len(PLANTED)} random candidates of `t.json`" in text
    (cells,) = [line for line in text.splitlines() if line.startswith("| 0.8 ")]
    most, once = (100 * claims[f"stopped_would_have_joined_upper_95{of}"] for of in ("_rows", ""))
    assert f"| 2.0 | 50.0 % (at most {most:.1f} %; {once:.1f} %) | 2.0 |" in cells
    assert cells.count("|") == replay_text.HEAD.count("|")
    assert "tpe - random: +1.23 % (-0.10 to +2.00; all of the budget)" in text


# --- simulated rows --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A table of 60 simulated trials, as it is written; a trial's training took two seconds."""
    runner = simulated_search.simulate("random", 60, 0, tmp_path_factory.mktemp("table"), stopping=NEVER, positions=4)
    records = [record.model_copy(update={"seconds": {"distil": 1.0, "quantise": 1.0}}) for record in runner.records]
    teacher = TeacherReport(accuracy=0.93, size_bytes=8_000_000, latency=simulated_search.latency_of(4.0))
    return {
        "shared": {"space": runner.space.resolved()},
        "facts": {"teacher": teacher.model_dump(mode="json")},
        "studies": {
            "a": {"parent_seconds": {"resnet8-1": 1.0}, "teacher": {"accuracy": 0.9}},
            "b": {"parent_seconds": {"resnet8-1": 2.0, "resnet20-1": 5.0}, "teacher": {"accuracy": 0.9}},
        },
        "rows": [row_of(record, "a", []) for record in records],
    }


@pytest.fixture(scope="module")
def simulated(content: dict[str, Any]) -> Table:
    return read_table(content, simulated_search.CLASSES)


@pytest.fixture(scope="module")
def surrogate(simulated: Table, content: dict[str, Any]) -> Surrogate:
    return fitted(simulated, space_of(content))


def test_a_table_is_read_with_a_parent_counted_once(simulated: Table, content: dict[str, Any]) -> None:
    assert [record.number for record in simulated.rows] == list(range(len(content["rows"])))
    assert simulated.parents == {"resnet20-1": 5.0, "resnet8-1": 1.5}


def test_a_gate_that_is_open_saves_and_loses_nothing(simulated: Table) -> None:
    outcome = replay(simulated, order_of(simulated, 0), NEVER)
    assert outcome.saved == outcome.saved_with_parents == pytest.approx(0.0)
    assert outcome.lost == pytest.approx(0.0)
    assert outcome.ended == ()


def test_the_gate_saves_time_and_its_claims_are_shares(simulated: Table) -> None:
    claims = gate_claims(simulated, [order_of(simulated, seed) for seed in range(4)], StoppingConfig())
    assert 0 < claims["saved_median"] < 1
    assert -1e-9 <= claims["hypervolume_lost_median"] <= claims["hypervolume_lost_worst_tenth"] < 0.2
    assert claims["stopped_would_have_joined"] <= claims["stopped_would_have_joined_upper_95"] <= 1
    assert claims["optimal_skipped_bound_right"] == 0
    first, again = (replay(simulated, order_of(simulated, 3), StoppingConfig()) for _ in range(2))
    assert first == again


def test_the_limit_of_a_share_is_that_of_the_binomial_law() -> None:
    assert upper_share(0, 59) == pytest.approx(0.0495, abs=1e-3)  # the rule of three
    assert upper_share(5, 5) == upper_share(0, 0) == 1.0


def test_orders_add_no_rows_to_the_limit_of_a_share() -> None:
    def ended(joins: int, orders: int, rows: int = 40) -> list[Ended]:
        return [Ended(row(number, "a", 0.9, 1, 1.0), True, number < joins, 1.0, ()) for number in range(rows) for _ in range(orders)]

    once = upper_share_of_rows(ended(3, 1))
    assert 3 / 40 < once < 0.25
    assert upper_share_of_rows(ended(3, 50)) == pytest.approx(once)
    assert upper_share_of_rows(ended(0, 50)) == upper_share(0, 40)
    assert upper_share_of_rows([]) == 1.0


# --- samplers --------------------------------------------------------------------------------------------------------


def test_the_models_of_a_formula_explain_it_and_say_how_well(surrogate: Surrogate, simulated: Table) -> None:
    told = surrogate.told
    assert told["rows"] == len(simulated.rows)
    for metric, scores in told["r2"].items():
        assert scores[told["chosen"][metric]] == max(scores.values())
    assert max(told["r2"]["size_bytes"].values()) > 0.8
    missed = [abs(math.log2(surrogate(each.candidate)[1] / objectives(each)[1])) for each in simulated.rows if each.candidate is not None]
    assert mean(missed) < 0.3


def test_features_are_the_same_for_the_same_candidate_and_differ_in_what_was_changed(simulated: Table) -> None:
    space = load_space(Path("spaces", "cifar10.yaml"), ["quantise.positions=4"])
    candidate = simulated.rows[0].candidate
    assert candidate is not None
    groups = (candidate.groups[0].model_copy(update={"weight_bits": 2}), *candidate.groups[1:])
    one, other = features(candidate, space), features(candidate.model_copy(update={"groups": groups}), space)
    assert len(one) == len(other)
    assert [a == b for a, b in zip(one, other, strict=True)].count(False) == 3  # its bits, the mean, the noise


def test_no_sampler_is_told_more_than_the_table_has_seen(surrogate: Surrogate, simulated: Table) -> None:
    seen = [logarithmic(objectives(each)) for each in simulated.rows]
    for point in search(surrogate, "random", 0, 20):
        for axis, value in enumerate(logarithmic(point)):
            assert min(each[axis] for each in seen) - 1e-9 <= value <= max(each[axis] for each in seen) + 1e-9


def test_a_seed_gives_the_same_search_of_a_model_again(surrogate: Surrogate) -> None:
    assert search(surrogate, "tpe", 1, 15) == search(surrogate, "tpe", 1, 15)
    assert search(surrogate, "tpe", 1, 5) != search(surrogate, "tpe", 2, 5)


def test_paired_differences_have_an_interval_that_shrinks_with_the_scatter() -> None:
    wide, narrow = paired([1.0, 3.0, 2.0], [1.0, 1.0, 1.0]), paired([2.0, 2.0, 2.0], [1.0, 1.0, 1.0])
    assert wide["mean"] == narrow["mean"] == wide["mean_share"] == 1.0
    assert narrow["low_95"] == narrow["high_95"] == 1.0
    assert wide["high_95"] == pytest.approx(1 + 4.3027 / math.sqrt(3), abs=1e-3)  # t of 2 degrees of freedom


def test_too_few_rows_are_refused(planted: Table) -> None:
    with pytest.raises(UserError, match="needs at least 20 rows, but there are 14"):
        fitted(planted, load_space(Path("spaces", "cifar10.yaml"), []))


@pytest.mark.slow
def test_a_replay_keeps_its_rows_until_the_table_changes(content: dict[str, Any], tmp_path: Path) -> None:
    table, out = tmp_path / "t.json", tmp_path / "r.json"
    numbers = ["--seeds", "2", "--budget", "8", "--jobs", "1", "--confidences", "0.9", "--samplers", "nsga2", "--out", str(out)]
    content = content | {"rows": content["rows"][:24]}
    table.write_text(json.dumps(content))
    command.main([str(table), *numbers])
    first = json.loads(out.read_text())
    assert Counter(key.split(":")[0] for key in first["rows"]) == {"gate": 1, "sampler": 2}
    assert set(first["paired"]["nsga2 - random, 8 trials, 2 seeds"]) == set(MARKS)
    out.write_text(out.read_text().replace('"orders": 2', '"orders": 77'))
    command.main([str(table), *numbers])
    assert '"orders": 77' in out.read_text()
    table.write_text(json.dumps(content, indent=1))
    command.main([str(table), *numbers])
    assert '"orders": 77' not in out.read_text()


# --- simulated studies -----------------------------------------------------------------------------------------------


def test_a_simulated_case_is_run_twice_and_says_whether_its_seed_gave_it_again(tmp_path: Path) -> None:
    out = tmp_path / "s.json"
    command = ["--trials", "12", "--gp-trials", "3", "--samplers", "random", "gp", "--out", str(out)]
    assert simulated_search.main(command) == 0
    rows = json.loads(out.read_text())
    assert sorted({(key.split(",")[0], row["asked"]) for key, row in rows.items()}) == [("gp", 3), ("random", 12)]
    assert len(rows) == 2 * len(simulated_search.CASES)
    assert all(row["reproduced"] and row["survived"] for row in rows.values())
    out.write_text(out.read_text().replace('"reproduced": true', '"reproduced": false', 1))
    assert simulated_search.main(command) == 1  # finished rows are kept


def test_other_seeds_and_cases_give_other_records() -> None:
    digests = {simulated_search.once("random", 12, seed, settings)[1] for seed in (0, 1) for settings in ({}, {"limited": 0.9})}
    assert len(digests) == 4
