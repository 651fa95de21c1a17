"""Spaces in which a strategy chooses the bits: what is asked, what is refused, and a search from the command line."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.samplers import RandomSampler
from optuna.trial import FixedTrial

from core.candidate import AllocationPlan
from core.config import Config, StoppingConfig, TeacherConfig, TeacherTrainConfig
from core.errors import UserError
from core.runtimes import RUNTIMES, onnxruntime
from core.yaml_io import parse
from results.record import read_records
from search.baselines import all_baselines
from search.digest import portable, space_digest
from search.foresee import corners
from search.sample import live_parameters, sample
from search.space import TAKES, Space
from search.study import CONTENT_KEY, DIGEST_KEY, check_space
from tests.search.studies import DOT, command, load, refused, search

Capture = pytest.CaptureFixture[str]
BITS = {"weight_bits": [2, 3, 4, 6, 8], "positions": 3, "execution": ["int8", "float"]}
STATED: dict[str, Any] = {
    "per_position": "per_position",
    "per_layer": "per_layer",
    "haq": "haq",
    "sqnr": {"strategy": "sqnr", "sqnr_db": {"low": 8, "high": 30}},
    "sensitivity": {"strategy": "sensitivity", "budget_bits": {"low": 2, "high": 6, "step": 0.5}},
    "sdq": {"strategy": "sdq", "budget_kb": [20, 40]},
}
ASKED = {
    "per_position": {"bits_0", "bits_1", "bits_2"},
    "per_layer": {"bits_0", "bits_1", "bits_2"},
    "haq": {f"action_{i}" for i in range(3)},
}
ASKED |= {"sqnr": {"sqnr_db"}, "sensitivity": {"budget_bits"}, "sdq": {"budget_kb"}}


def space(**sections: object) -> Space:
    return parse(Space, {"student": {"name": ["resnet8", "resnet20"]}, "quantise": BITS} | sections, "x.yaml")


def message(**sections: object) -> str:
    with pytest.raises(UserError) as caught:
        space(**sections)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("strategy", TAKES)
def test_every_trial_of_a_strategy_asks_for_the_same_parameters(strategy: str) -> None:
    of = space(allocation=STATED[strategy])
    study = optuna.create_study(sampler=RandomSampler(seed=0))
    trials = [study.ask() for _ in range(10)]
    found = [sample(of, trial) for trial in trials]
    assert {tuple(trial.params) for trial in trials} == {tuple(trials[0].params)}
    assert set(trials[0].params) == {"student", "exec_0", "exec_1", "exec_2"} | ASKED[strategy]
    assert live_parameters(of) == len(trials[0].params)
    assert {candidate.allocation.strategy for candidate in found} == {strategy}
    assert len({candidate.model_dump_json() for candidate in found}) > 5


def test_the_default_strategy_leaves_nothing_open() -> None:
    assert (
        sample(
            space(),
            FixedTrial(
                {"student": "resnet8"} | {f"{gene}_{i}": value for i in range(3) for gene, value in (("bits", 0), ("exec", "float"))}
            ),
        ).allocation
        == AllocationPlan()
    )


def test_per_layer_keeps_bits_and_execution_of_every_position_apart_from_depth() -> None:
    answers: dict[str, Any] = (
        {"student": "resnet8"} | {f"bits_{i}": i for i in range(3)} | {f"exec_{i}": ("int8", "float")[i % 2] for i in range(3)}
    )
    assert sample(space(allocation="per_layer"), FixedTrial(answers)).allocation.layers == ((2, "int8"), (3, "float"), (4, "int8"))


def test_a_strategy_states_what_it_lacks_and_what_it_does_not_look_at() -> None:
    assert "must state one of budget_bits, budget_kb for sensitivity, but got none" in message(allocation="sensitivity")
    both = {"strategy": "haq", "budget_bits": 3, "budget_kb": 40}
    assert "must state at most one of budget_bits, budget_kb for haq, but got budget_bits and budget_kb" in message(allocation=both)
    assert "per_position does not look at budget_bits; leave it out" in message(allocation={"budget_bits": 3})
    assert "haq does not look at sqnr_db" in message(allocation={"strategy": "haq", "sqnr_db": 20})
    assert "chooses among quantise.weight_bits, but that is 8 alone" in message(allocation="haq", quantise={})
    assert "sdq draws 2 to 8 bits" in message(
        allocation={"strategy": "sdq", "budget_bits": 3}, quantise={"weight_bits": [4, 16], "execution": ["int8", "float"]}
    )
    assert "strategy" in message(allocation="best")
    own = message(allocation="haq", quantise=BITS | {"quantiser": ["lsq", "nncf"]})
    assert "allocation haq chooses bits, but quantiser nncf has its own; leave it out" in own
    assert "budget_bits" in message(allocation={"strategy": "sdq", "budget_bits": 0})


TIMED = {"strategy": "haq", "budget_kb": 40, "budget_ms": {"low": 0.1, "high": 0.5}}


def test_a_latency_budget_goes_beside_one_of_bytes_and_first_trials_have_the_loosest() -> None:
    of = space(allocation=TIMED)
    assert live_parameters(of) == live_parameters(space(allocation="haq")) + 1
    drawn = [sample(of, FixedTrial(parameters)).allocation for parameters in all_baselines(of, {"resnet8": 1, "resnet20": 2})]
    assert {(plan.budget_kb, plan.budget_ms) for plan in drawn} == {(40.0, 0.5)}
    assert {candidate.allocation.budget_ms for candidate in corners(of)} == {0.1, 0.5}


def test_a_latency_budget_is_refused_where_no_execution_can_give_way() -> None:
    for strategy in (each for each in TAKES if each != "haq"):
        stated = {"strategy": strategy, "budget_ms": 0.3} | ({"budget_bits": 3} if TAKES[strategy][0] else {})
        assert f"{strategy} does not look at budget_ms; leave it out" in message(allocation=stated)
    for execution in ("int8", "float"):
        answer = message(allocation=TIMED, quantise=BITS | {"execution": execution})
        assert f"makes INT8 of float layers, but quantise.execution is {execution}; give it [int8, float]" in answer
    assert "must state a number in every choice of budget_ms" in message(allocation=TIMED | {"budget_ms": [0.1, None]})
    assert "budget_ms" in message(allocation=TIMED | {"budget_ms": 0})


IN_TIME = ("allocation.strategy=haq", "allocation.budget_ms=0.3", "quantise.execution=[int8, float]")
NO_TIMES = [
    (["runtime.name=tensorrt_rtx", "runtime.build_for=[SM89]"], "runtime.build_for (--build-only) is given"),
    (["runtime.agent=http://device:8080"], "runtime.agent is given"),
]


@pytest.mark.parametrize(("settings", "found"), NO_TIMES)
def test_a_latency_budget_without_times_of_layers_ends_before_the_study(
    settings: list[str], found: str, empty: Path, capfd: Capture
) -> None:
    answer = refused(search(capfd, *command("--trials", "1", settings=[*IN_TIME, *settings])))
    assert f"what each layer takes (openvino, onnxruntime), but {found}; name such a runtime, or leave budget_ms out" in answer
    assert not Path("runs/tiny").exists()


def test_a_latency_budget_in_a_runtime_that_times_no_layers_ends_before_the_study(
    empty: Path, capfd: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(RUNTIMES, "onnxruntime", lambda: replace(onnxruntime.runtime(), layer_times=None))
    answer = refused(search(capfd, *command("--trials", "1", settings=[*IN_TIME, "runtime.name=onnxruntime"])))
    assert "what each layer takes (openvino), but the runtime is onnxruntime; name such a runtime, or leave budget_ms out" in answer
    assert not Path("runs/tiny").exists()


@pytest.mark.parametrize("runtime", ["openvino", "onnxruntime"])
@pytest.mark.slow
def test_a_search_under_a_latency_budget_times_layers_once(runtime: str, empty: Path, dot: None, capfd: Capture) -> None:
    limits = ["allocation.strategy=haq", "allocation.budget_ms=1000", "quantise.execution=[int8, float]", "quantise.weight_bits=[2, 8]"]
    assert search(capfd, *command("--trials", "1", settings=[*DOT, *limits, f"runtime.name={runtime}"])).code == 0
    kept = [record.candidate for record in read_records(load()) if record.state == "COMPLETE"]
    assert {candidate.allocation.budget_ms for candidate in kept if candidate} == {1000.0}
    assert len(list(Path("runs/tiny/layer_times").glob("dot-1-*.json"))) == 1


def test_a_global_ratio_is_one() -> None:
    assert "positions 1 where the scope is global" in message(prune={"scope": "global", "positions": 3, "ratio": 0.3})
    assert space(prune={"scope": "global", "ratio": 0.3}).prune.scope == "global"


def test_the_criterion_may_be_searched() -> None:
    of = space(prune={"ratio": 0.3, "importance": ["taylor", "l1"]}, quantise={})
    assert {sample(of, FixedTrial({"student": "resnet8", "importance": name})).importance for name in ("l1", "taylor")} == {"l1", "taylor"}


@pytest.mark.parametrize("strategy", TAKES)
def test_baselines_and_corners_lie_in_the_space(strategy: str) -> None:
    of = space(allocation=STATED[strategy])
    for parameters in all_baselines(of, {"resnet8": 1, "resnet20": 2}):
        assert sample(of, FixedTrial(parameters)).allocation.strategy == strategy
    assert len(corners(of)) >= 4


def test_baselines_ask_for_four_bits_where_there_is_a_budget_in_bits() -> None:
    found = all_baselines(space(allocation=STATED["sensitivity"]), {"resnet8": 1, "resnet20": 2})
    assert {parameters["budget_bits"] for parameters in found} == {4.0, 6.0}  # 6.0: the largest student, nearest to 8


def test_a_study_from_before_there_were_strategies_goes_on() -> None:
    digest, content = space_digest(space(), Config())
    old = json.loads(json.dumps(content))
    del old["space"]["allocation"], old["space"]["order"], old["config"]["journal"]
    del old["space"]["prune"]["importance"], old["space"]["prune"]["scope"]
    assert portable(old) == portable(json.loads(json.dumps(content)))
    assert space_digest(space(allocation="haq"), Config())[0] != digest


def test_a_study_from_before_there_were_latency_budgets_and_simulated_activations_goes_on() -> None:
    content = json.loads(json.dumps(space_digest(space(allocation="haq"), Config())[1]))
    old = json.loads(json.dumps(content))
    del old["space"]["allocation"]["budget_ms"], old["config"]["quantise"]["simulate_activations"]
    assert portable(old) == portable(content)
    assert space_digest(space(allocation=TIMED), Config())[0] != space_digest(space(allocation=TIMED | {"budget_ms": 0.3}), Config())[0]


def test_a_study_from_before_there_was_infobatch_goes_on_with_all_its_teachers() -> None:
    config = Config(more_teachers=(TeacherConfig(name="resnet8"),))
    digest, content = space_digest(space(), config)
    old = json.loads(json.dumps(content))
    for teacher in (old["config"]["teacher"], *old["config"]["more_teachers"]):
        del teacher["train"]["infobatch"]
    assert portable(old) == portable(json.loads(json.dumps(content)))
    chosen = TeacherConfig(train=TeacherTrainConfig(infobatch=0.5))
    assert space_digest(space(), config.model_copy(update={"teacher": chosen}))[0] != digest


def test_an_order_is_a_list_of_two_and_may_be_searched() -> None:
    of = space(order=[["quantise", "prune"], ["prune", "quantise"]], quantise={"weight_bits": 4})
    assert live_parameters(of) == 2  # the student is the other
    found = {sample(of, FixedTrial({"student": "resnet8", "order": order})).order for order in ("prune, quantise", "quantise, prune")}
    assert found == {"prune, quantise", "quantise, prune"}
    assert space(order=["quantise", "prune"]).order == "quantise, prune"
    assert space(order=list(found)).order == of.order  # as a study keeps it
    assert "order" in message(order=["quantise"])
    assert "there is distil.init scratch" in message(order=["quantise", "prune"], distil={"init": "scratch"})
    assert "there is quantiser nncf" in message(order=["quantise", "prune"], quantise={"quantiser": "nncf"})
    assert "there is quantiser float" in message(order=["quantise", "prune"], quantise={"quantiser": ["lsq", "float"]})
    assert "there is quantiser brecq" in message(order=["quantise", "prune"], quantise={"quantiser": ["lsq", "brecq"]})


def test_per_layer_names_the_positions_that_a_student_needs(empty: Path, capfd: Capture) -> None:
    answer = search(capfd, *command("--trials", "1", settings=["allocation=per_layer", "quantise.positions=9"]))
    assert refused(answer).endswith("resnet8 has 10 and quantise.positions is 9; set quantise.positions to 10")


@pytest.mark.parametrize("strategy", ["sensitivity", "sdq"])
@pytest.mark.slow
def test_a_search_by_a_budget_alone_ends_with_settled_candidates(strategy: str, empty: Path, dot: None, capfd: Capture) -> None:
    settings = [
        *DOT,
        f"allocation.strategy={strategy}",
        "allocation.budget_bits=[3, 5]",
        "quantise.weight_bits=[2, 4, 8]",
        "quantise.edge_bits=null",
    ]
    answer = search(capfd, *command("--trials", "2", settings=settings))
    assert answer.code == 0, answer
    records = [record for record in read_records(load()) if record.state == "COMPLETE"]
    assert records
    for record in records:
        assert record.candidate is not None
        assert record.candidate.allocation.settled
        assert len(record.candidate.groups) == 2
        assert record.mean_bits == sum(gene.weight_bits for gene in record.candidate.groups) / 2


def test_who_wants_everything_trained_from_now_on_goes_on_with_the_same_study() -> None:
    plain, trained = (Config(stopping=StoppingConfig(skip=on, stop=on)) for on in (True, False))
    assert space_digest(space(), plain)[0] == space_digest(space(), trained)[0]


def test_a_study_whose_digest_is_of_another_version_goes_on_where_nothing_that_binds_it_differs() -> None:
    digest, content = space_digest(space(), Config())
    made = optuna.create_study()
    made.set_user_attr(DIGEST_KEY, "of another version")
    made.set_user_attr(CONTENT_KEY, json.loads(json.dumps(content)))
    made.add_trial(optuna.trial.create_trial(value=1.0))
    check_space(made, digest, content)
    other, changed = space_digest(space(allocation="haq"), Config())
    with pytest.raises(UserError, match=r"differs in space\.allocation;"):
        check_space(made, other, changed)
