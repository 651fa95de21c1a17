"""A space is strict, canonical, and its digest changes with its content alone."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.config import Config
from core.errors import UserError
from core.methods import METHODS
from core.students import STUDENTS
from core.yaml_io import load_config, parse
from search.digest import space_digest
from search.setup import split_overrides
from search.space import Range, Space, check_names, default_space, load_space

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = sorted((ROOT / "spaces").rglob("*.yaml"))


def space(**sections: object) -> Space:
    return parse(Space, {"student": {"name": "resnet8"}} | sections, "x.yaml")


def message(call, *args, **kwargs) -> str:
    with pytest.raises(UserError) as caught:
        call(*args, **kwargs)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_shipped_space_loads_with_its_config_and_known_names(path: Path) -> None:
    shipped = load_space(path)
    assert shipped.config is not None
    load_config(shipped.config, [], ROOT)
    check_names(shipped, STUDENTS, METHODS, ["lsq", "ptq", "rate", "codebook", "brecq", "nncf", "float"])


def test_cifar10_searches_every_layer_of_its_deepest_student() -> None:
    shipped = load_space(ROOT / "spaces" / "cifar10.yaml")
    assert shipped.quantise.positions == 22  # resnet20: 19 convolutions, 2 projections, 1 classifier
    assert shipped.quantise.weight_bits == (2, 3, 4, 5, 6, 7, 8, 16)


def test_a_space_that_names_a_student_is_enough_and_asks_nothing() -> None:
    bare = space()
    assert (bare.student.width, bare.prune.ratio, bare.quantise.weight_bits, bare.quantise.edge_bits) == (1.0, 0.0, 8, 8)
    assert bare.objectives.size == "packed"


def test_scalars_lists_and_ranges_are_told_apart() -> None:
    result = space(student={"name": ["a", "b"], "width": {"low": 0.5, "high": 1.0}}, distil={"temperature": 3})
    assert result.student.name == ("a", "b")
    assert result.student.width == Range(low=0.5, high=1.0)
    assert result.distil.temperature == 3.0


@given(st.permutations([2, 3, 4, 8, 16]))
def test_the_order_of_choices_means_nothing(bits: list[int]) -> None:
    ordered = space(quantise={"weight_bits": [2, 3, 4, 8, 16], "execution": ["int8", "float"]})
    assert space(quantise={"weight_bits": bits, "execution": ["float", "int8"]}) == ordered


def test_one_choice_and_an_empty_range_are_the_fixed_value() -> None:
    assert space(student={"name": ["resnet8"], "width": [1]}, prune={"ratio": {"low": 0.0, "high": 0.0}}) == space()


def test_edge_bits_may_be_null_or_a_choice_with_null() -> None:
    assert space(quantise={"edge_bits": None}).quantise.edge_bits is None
    assert space(quantise={"edge_bits": [None, 8, 4]}).quantise.edge_bits == (4, 8, None)


@pytest.mark.parametrize(
    ("sections", "says"),
    [
        (
            {"prunee": {}},
            "unknown key 'prunee' in x.yaml, did you mean 'prune'? known: allocation, config, constraints, distil, objectives, ",
        ),
        (
            {"prune": {"ratoi": 0}},
            "unknown key 'ratoi' in x.yaml at prune, did you mean 'ratio'? known: importance, positions, ratio, round_to, scope",
        ),
        ({"prune": {"ratio": {"lo": 0, "high": 0.5}}}, "unknown key 'lo' in x.yaml at prune.ratio, did you mean 'low'? known: high, log,"),
        ({"prune": {"ratio": {"low": 0.1}}}, "`high` must be given (x.yaml, prune.ratio.high)"),
        ({"prune": {"ratio": {"low": 0.6, "high": 0.1}}}, "`ratio` must have low <= high, but got low 0.6, high 0.1 (x.yaml, prune.ratio)"),
        ({"prune": {"ratio": {"low": 0, "high": 0.5, "step": 0}}}, "`ratio` must have step > 0, but got step 0 (x.yaml, prune.ratio)"),
        ({"prune": {"ratio": {"low": 0, "high": 0.5, "step": -1}}}, "`ratio` must have step > 0, but got step -1"),
        ({"prune": {"ratio": {"low": 0, "high": 0.55, "step": 0.1}}}, "`ratio` must reach high in whole steps of 0.1 from low 0, but got"),
        ({"prune": {"ratio": {"low": 0, "high": 0.5, "log": True}}}, "`ratio` must have low > 0 and no step where log is true"),
        ({"prune": {"ratio": {"low": 0, "high": 1}}}, "`ratio` must be at least 0 and less than 1, but got 1 (x.yaml, prune.ratio)"),
        ({"prune": {"ratio": [0, -0.5]}}, "`ratio` must be at least 0 and less than 1, but got -0.5 (x.yaml, prune.ratio)"),
        ({"prune": {"ratio": "0.5"}}, "`ratio` must be a number, but got '0.5' (x.yaml, prune.ratio)"),
        ({"prune": {"positions": 0}}, "`positions` must be at least 1, but got 0 (x.yaml, prune.positions)"),
        ({"prune": {"positions": [3]}}, "`positions` must be a whole number, but got [3] (x.yaml, prune.positions)"),
        (
            {"quantise": {"weight_bits": 9}},
            "`weight_bits` must be one of 2, 3, 4, 5, 6, 7, 8, 16, but got 9 (x.yaml, quantise.weight_bits)",
        ),
        (
            {"quantise": {"sparsity": [0.5, 1.5]}},
            "`quantise` must have sparsity less than 1 where it is a share, but got 1.5 (x.yaml, quantise)",
        ),
        (
            {"quantise": {"sparsity": 0.5, "quantiser": ["ptq", "float"]}},
            "`quantise` must have lsq, rate or codebook where sparsity is not 0, but got float, ptq (x.yaml, quantise)",
        ),
        ({"quantise": {"rate_weight": -1}}, "`rate_weight` must be at least 0, but got -1 (x.yaml, quantise.rate_weight)"),
        ({"quantise": {"weight_bits": [8, 9]}}, "`weight_bits` must be one of 2, 3, 4, 5, 6, 7, 8, 16, but got 9"),
        (
            {"quantise": {"weight_bits": []}},
            "`weight_bits` must have at least one choice, but the list is empty (x.yaml, quantise.weight_bits)",
        ),
        ({"quantise": {"weight_bits": [4, 4]}}, "`weight_bits` must have distinct choices, but 4 is given 2 times"),
        ({"quantise": {"weight_bits": {"low": 2, "high": 8}}}, "`weight_bits` must be a value or a list of values, but got"),
        ({"quantise": {"weight_bits": 16}}, "`quantise` must allow execution float where 16 bits are allowed"),
        ({"quantise": {"edge_bits": 16}}, "`quantise` must allow execution float where 16 bits are allowed"),
        (
            {"quantise": {"execution": ["int4"]}},
            "`execution` must be one of 'int8', 'float', but got 'int4' (x.yaml, quantise.execution[0])",
        ),
        ({"student": {"name": []}}, "`name` must have at least one choice, but the list is empty (x.yaml, student.name)"),
        ({"student": {"name": 8}}, "`name` must be text, but got 8 (x.yaml, student.name)"),
        ({"student": {"name": "a", "width": 0}}, "`width` must be greater than 0, but got 0 (x.yaml, student.width)"),
        ({"student": {"name": "self", "width": 0.5}}, "`student` must have width 1.0 where 'self' is the only name"),
        ({"student": {}}, "`name` must be given (x.yaml, student.name)"),
        ({"student": "resnet8"}, "`student` must be a section of 'key: value' lines, but got 'resnet8' (x.yaml, student)"),
        ({"distil": {"temperature": [4, 0]}}, "`temperature` must be greater than 0, but got 0 (x.yaml, distil.temperature)"),
        ({"distil": {"weight": [0, 1], "ce_weight": 0}}, "`distil` must not let weight and ce_weight both be 0"),
        ({"distil": {"weight": [None, -1]}}, "`weight` must be at least 0, but got -1 (x.yaml, distil.weight)"),
        ({"distil": {"beta": -1}}, "`beta` must be at least 0, but got -1 (x.yaml, distil.beta)"),
        ({"distil": {"temperature": "hot"}}, "`temperature` must be a number, but got 'hot' (x.yaml, distil.temperature)"),
        ({"distil": {"init": "copy"}}, "`init` must be one of 'inherit', 'scratch', but got 'copy' (x.yaml, distil.init)"),
        ({"constraints": {"accuracy": 90}}, "`accuracy` must be at most 1, but got 90 (x.yaml, constraints.accuracy)"),
        ({"constraints": {"latency_ms": 0}}, "`latency_ms` must be greater than 0, but got 0 (x.yaml, constraints.latency_ms)"),
    ],
)
def test_a_mistake_is_law_value_place(sections: dict, says: str) -> None:
    text = message(space, **sections)
    assert text.startswith(says), text


def test_a_long_list_of_choices_is_checked_in_a_moment() -> None:
    assert len(space(student={"name": [f"s{i}" for i in range(50_000)]}).student.name) == 50_000


@pytest.mark.parametrize(("low", "high", "step"), [(0.0, 0.6, 0.1), (0.1, 0.7, 0.2), (1, 8, 1), (0.3, 0.9, 0.3), (1e-30, 1e18, 1e-30)])
def test_steps_are_counted_in_decimals(low: float, high: float, step: float) -> None:
    assert Range(low=low, high=high, step=step).high == high


def test_unknown_names_list_the_known() -> None:
    tables = {"students": ["resnet8", "resnet20"], "losses": ["kd"], "quantisers": ["lsq"]}
    check_names(space(student={"name": ["resnet8", "self"]}), **tables)
    text = message(check_names, space(student={"name": ["resnet8", "resnet21"]}), **tables, where="spaces/x.yaml")
    assert text == "unknown student 'resnet21', did you mean 'resnet20'? known: resnet20, resnet8, self (spaces/x.yaml, student.name)"
    assert message(check_names, space(distil={"loss": "qq"}), **tables) == "unknown loss 'qq'; known: kd (the space, distil.loss)"
    assert message(check_names, space(quantise={"quantiser": "lsqq"}), **tables).startswith("unknown quantiser 'lsqq', did you mean 'lsq'?")


def test_resolved_is_json_and_parses_to_the_space() -> None:
    for path in SHIPPED:
        shipped = load_space(path)
        resolved = json.loads(json.dumps(shipped.resolved()))
        assert parse(Space, resolved, "resolved") == shipped.model_copy(update={"config": None})


def test_the_digest_follows_content_and_nothing_else() -> None:
    first, content = space_digest(space(config="digits"), Config())
    assert first == space_digest(space(config="configs/digits.yaml", student={"name": ["resnet8"], "width": 1}), Config())[0]
    assert first != space_digest(space(prune={"round_to": 4}), Config())[0]
    assert first != space_digest(space(), Config(seed=1))[0]
    assert content == {"space": space().resolved(), "config": Config().model_dump(mode="json")}


def test_a_config_path_starts_at_the_space_and_a_name_stays(tmp_path: Path) -> None:
    path = tmp_path / "my.yaml"
    path.write_text("student: {name: resnet8}\nconfig: how/own.yaml\n")
    assert load_space(path).config == str(tmp_path / "how" / "own.yaml")
    path.write_text("student: {name: resnet8}\nconfig: digits\n")
    assert load_space(path).config == "digits"
    path.write_text("student: {name: resnet8}\nconfig: 3\n")
    assert message(load_space, path) == f"`config` must be text, but got 3 ({path}, config)"


def test_overrides_go_to_the_space_or_to_the_config(tmp_path: Path) -> None:
    mine, others = split_overrides(["quantise.positions=3", "quantise.train.lr=1", "student.name=a", "seed=1", "config=x", "dta.x=1"])
    assert mine == ["quantise.positions=3", "student.name=a", "config=x"]
    assert others == ["quantise.train.lr=1", "seed=1", "dta.x=1"]
    mine, others = split_overrides(["quantise={weight_bits: [4, 8], train: {lr: 1}}", "quantise={edge_bits: null}"])
    assert mine == ['quantise={"weight_bits": [4, 8]}', 'quantise={"edge_bits": null}']
    assert others == ['quantise={"train": {"lr": 1}}']
    path = tmp_path / "my.yaml"
    path.write_text("student: {name: resnet8}\n")
    assert load_space(path, mine[:1]).quantise.weight_bits == (4, 8)
    assert load_space(path, ["prune.ratio=[0, 0.5]"]).prune.ratio == (0.0, 0.5)
    assert f"({path} with --set, prune.ratio)" in message(load_space, path, ["prune.ratio=2"])


def test_the_default_space_compresses_the_users_own_network() -> None:
    assert default_space().student.name == "self"
    check_names(default_space(), [], ["kd"], ["lsq"])


def test_loading_a_space_imports_nothing_heavy() -> None:
    code = "import search.space, search.sample, sys; print([m for m in ('torch', 'optuna', 'pandas', 'onnx') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
