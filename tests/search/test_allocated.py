"""The baseline whose bits follow from a trained parent: about the bytes of uniform 4, queued once, when the others have been taken."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
from optuna.trial import FixedTrial, TrialState

from core.candidate import AllocationPlan
from core.layers import layer_infos
from core.quantise.setting import weight_of
from core.students.own import save_weights
from core.yaml_io import parse
from objectives.allocation import settle
from objectives.bench import Stages, Workbench
from objectives.evaluate import shape_of
from results.record import read_records
from search.allocated import allocated
from search.baselines import ALLOCATED_KEY, all_baselines, allocated_from, enqueue_allocated
from search.sample import sample
from search.space import Space
from tests.objectives.test_evaluate import bench
from tests.search.studies import command, load, search, states
from tests.search.test_workers import Worker, study_folder, together, url_in

__all__ = ["bench", "study_folder"]
BITS = [2, 3, 4, 5, 6, 8]
SIZES = {"light_cnn": 2, "resnet8": 1}


def space(positions: int, **sections: Any) -> Space:
    quantise = {"positions": positions, "weight_bits": BITS, "execution": ["int8", "float"]} | sections.pop("quantise", {})
    return parse(Space, {"student": {"name": ["light_cnn", "resnet8"], "width": 0.25}, "quantise": quantise} | sections, "x.yaml")


def uniform(of: Space) -> dict[str, Any]:
    """The baseline of the largest student at 4 bits."""
    return next(each for each in all_baselines(of, SIZES) if each["student"] == "light_cnn" and each["bits_0"] == BITS.index(4))


def weight_bits(of: Space, parameters: dict[str, Any], bench: Workbench) -> dict[str, int]:
    _, plan = shape_of(sample(of, FixedTrial(parameters)), bench)
    return {layer.name: layer.weight_bits for layer in plan.layers}


def by_sqnr(of: Space, bench: Workbench, budget: float = 3.5) -> dict[str, int]:
    """Layer -> bits of the strategy itself, at the bytes of so many bits."""
    plan = AllocationPlan(strategy="sqnr", choices=tuple(BITS), budget_bits=budget)
    candidate = settle(sample(of, FixedTrial(uniform(of))).model_copy(update={"allocation": plan}), bench, Stages())
    return {layer.name: layer.weight_bits for layer in shape_of(candidate, bench)[1].layers}


def test_where_every_layer_has_a_position_it_gets_the_bits_of_sqnr(bench: Workbench) -> None:
    """More positions than layers, and as many. At the bytes of 4 bits each of these layers would have 4."""
    count = len(layer_infos(bench.network("light_cnn", 0.25), bench.input_shape))
    for positions in (count, 2 * count + 1):
        of = space(positions)
        found = allocated(of, uniform(of), bench, Stages())
        assert found is not None
        assert by_sqnr(of, bench, 4.0) == weight_bits(of, uniform(of), bench)
        assert weight_bits(of, found, bench) == by_sqnr(of, bench) != by_sqnr(of, bench, 4.0)
        assert {name for name, value in found.items() if value != uniform(of)[name]} <= {f"bits_{p}" for p in range(positions)}
        assert allocated(of, uniform(of), bench, Stages()) == found  # once more the same


def test_layers_that_share_a_position_get_the_mean_of_their_bits(bench: Workbench) -> None:
    of = space(2)
    infos = layer_infos(bench.network("light_cnn", 0.25), bench.input_shape)
    wanted, free = by_sqnr(of, bench), infos[1:-1]
    halves = [[info for info in free if infos.index(info) * 2 // len(infos) == half] for half in range(2)]
    means = [sum(wanted[info.name] * info.weights for info in half) / sum(info.weights for info in half) for half in halves]
    found = allocated(of, uniform(of), bench, Stages()) or uniform(of)
    assert [BITS[found[f"bits_{p}"]] for p in range(2)] == [min(BITS, key=lambda bits, mean=mean: abs(bits - mean)) for mean in means]


def test_layers_that_round_unequally_share_the_very_bytes_of_four_bits(bench: Workbench, tmp_path: Path) -> None:
    of, parent = space(20), bench.parent("light_cnn", 0.25)
    infos = layer_infos(parent, bench.input_shape)
    largest = max(infos[1:-1], key=lambda info: info.weights).name
    with torch.no_grad():
        weight_of(parent, largest).sign_()  # two values, which 2 bits hold without an error
    kept = next((bench.folder / "parents").glob("light_cnn-0.25-*.safetensors"))
    (tmp_path / "parents").mkdir()
    save_weights(parent, tmp_path / "parents" / kept.name)
    found = allocated(of, uniform(of), replace(bench, folder=tmp_path), Stages())
    assert found is not None
    bits = weight_bits(of, found, bench)
    assert bits[largest] == 2
    assert all(bits[info.name] > 4 for info in infos[1:-1] if info.name != largest)
    assert sum(bits[info.name] * info.weights for info in infos[1:-1]) <= 4 * sum(info.weights for info in infos[1:-1])


def test_sixteen_bits_are_left_out_and_a_single_choice_is_no_other_trial(bench: Workbench) -> None:
    wide = space(10, quantise={"weight_bits": [4, 6, 16]})
    base = next(each for each in all_baselines(wide, SIZES) if each["student"] == "light_cnn" and each["bits_0"] == 0)
    found = allocated(wide, base, bench, Stages()) or base
    assert {found[f"bits_{p}"] for p in range(10)} <= {0, 1}
    alone = space(10, quantise={"weight_bits": [4, 16]})
    assert allocated(alone, {**base}, bench, Stages()) is None


def test_a_network_of_edges_alone_has_no_bits_to_share_out(bench: Workbench, dot: None) -> None:
    of = parse(Space, {"student": {"name": "dot"}, "quantise": {"positions": 3, "weight_bits": BITS}}, "x.yaml")
    assert allocated(of, all_baselines(of, {"dot": 1})[0], bench, Stages()) is None


# --- once, in its turn -----------------------------------------------------------------------------------------------


def study() -> optuna.Study:
    return optuna.create_study(directions=["maximize", "minimize", "minimize"])


@pytest.mark.parametrize(
    "sections", [{"distil": {"init": "scratch"}}, {"allocation": "haq"}, {"quantise": {"weight_bits": 4}}], ids=["init", "haq", "fixed"]
)
def test_nothing_follows_without_a_parent_or_bits_per_position(sections: dict[str, Any]) -> None:
    assert allocated_from(space(4, **sections), SIZES) is None


def test_a_study_says_from_whose_parent_the_bits_will_come() -> None:
    of = space(4)
    assert allocated_from(of, SIZES) == uniform(of)
    assert uniform(of) in all_baselines(of, SIZES)


def test_a_study_that_began_without_it_goes_on_without_it() -> None:
    made = study()
    made.add_trial(optuna.trial.create_trial(values=[0.5, 1.0, 1.0]))
    enqueue_allocated(made)
    assert ALLOCATED_KEY not in made.user_attrs
    assert states(made) == ["COMPLETE"]


def test_it_waits_until_nothing_else_does_and_is_queued_once() -> None:
    made = study()
    made.enqueue_trial({"temperature": 3.0})
    made.set_user_attr(ALLOCATED_KEY, {"queue": {"temperature": 4.0}})
    enqueue_allocated(made)
    assert states(made) == ["WAITING"]
    made.tell(made.ask(), state=TrialState.PRUNED)
    for _ in range(2):
        enqueue_allocated(made)
    assert [trial.system_attrs["fixed_params"] for trial in made.trials] == [{"temperature": 3.0}, {"temperature": 4.0}]
    made.set_user_attr(ALLOCATED_KEY, {"queue": {"temperature": 4.0}})  # of a process that died between the two writes
    made.tell(made.ask(), state=TrialState.PRUNED)
    enqueue_allocated(made)
    assert states(made) == ["PRUNED", "PRUNED"]


def test_several_workers_run_it_once_and_leave_nothing_waiting(study_folder: Path) -> None:
    workers = [Worker(url_in(study_folder), study_folder, name, seconds=0.02) for name in range(3)]
    workers[0].study.set_user_attr(ALLOCATED_KEY, {"queue": {"temperature": 3.5}})
    together([lambda worker=worker: worker.run(6) for worker in workers])
    made = workers[0].study
    assert states(made) == ["COMPLETE"] * 6
    assert [trial.params["temperature"] for trial in made.trials].count(3.5) == 1
    workers[0].run(7)
    assert [trial.params["temperature"] for trial in made.trials].count(3.5) == 1


@pytest.mark.slow
def test_a_search_that_goes_on_tries_the_bits_that_its_parent_says(again: Path, capfd: pytest.CaptureFixture[str]) -> None:
    before = load().user_attrs[ALLOCATED_KEY]
    assert set(before) == {"queue"}  # the second trial of the finished study was the largest student at 4 bits
    assert search(capfd, *command("--trials", "4")).code == 0
    made, records = load(), read_records(load())
    assert states(made) == ["COMPLETE"] * 4
    assert made.trials[3].params == before["queue"]
    assert made.user_attrs[ALLOCATED_KEY] == {}
    even, shared = records[1], records[3]
    assert "allocate" in even.seconds  # its own, not bookkeeping
    assert (shared.student, shared.width) == (even.student, even.width)
    assert shared.measurement is not None
    assert even.measurement is not None
    assert shared.measurement.size_bytes <= even.measurement.size_bytes
    assert shared.candidate != even.candidate


@pytest.mark.slow
def test_a_baseline_that_is_not_trained_says_the_bits_too_where_its_parent_is_there(again: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """It is the network of the second trial, the largest student at 4 bits, so it is not trained again."""
    made = load()
    of = made.trials[1].params
    made.set_user_attr(ALLOCATED_KEY, {"of": of})
    made.enqueue_trial(of)
    assert search(capfd, *command("--trials", "5")).code == 0
    made, records = load(), read_records(load())
    assert records[3].ending == "reused"
    assert made.trials[4].params != of
    assert made.user_attrs[ALLOCATED_KEY] == {}
