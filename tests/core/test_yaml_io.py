"""YAML in, frozen values out: what is read is what was meant, and every mistake is one line that names the file."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.config import Config, DataConfig
from core.errors import UserError
from core.yaml_io import MAX_BYTES, apply_overrides, load_config, load_yaml, parse

words = st.text("abcdefgh_", min_size=1, max_size=8)


@pytest.fixture
def write(tmp_path: Path):
    def write_file(content: str | bytes, name: str = "my.yaml") -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write_file


def message(call, *args) -> str:
    with pytest.raises(UserError) as caught:
        call(*args)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001),
        ("5e-4", 0.0005),
        ("1.5", 1.5),
        (".5", 0.5),
        ("-2", -2),
        ("0", 0),
        ("true", True),
        ("off", "off"),
        ("no", "no"),
        ("null", None),
        ("~", None),
        ("1:30", "1:30"),
        ("010", "010"),
        ("2026-01-01", "2026-01-01"),
        (".inf", ".inf"),
        (".nan", ".nan"),
        ("9" * 5000, "9" * 5000),
        ("'8'", "8"),
        ("[2, x]", [2, "x"]),
    ],
)
def test_scalars_follow_the_core_schema_of_yaml_1_2(write, text: str, value: object) -> None:
    loaded = load_yaml(write(f"key: {text}"))["key"]
    assert loaded == value
    assert type(loaded) is type(value)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", ["is empty"]),
        ("# nothing yet\n", ["is empty"]),
        ("- 1\n- 2\n", ["'key: value'", "[1, 2]"]),
        ("a: [1, 2", ["line 1, column 9"]),
        ("a: 1\n b: 2", ["line 2, column 3"]),
        ("a: 1\n\tb: 2", ["line 2, column 1"]),
        ("a: 'x", ["quoted scalar"]),
        ("a: 1\nb: 2\na: 3\n", ["line 3, column 1", "'a' is given twice"]),
        ("s: {x: 1, x: 1}", ["line 1, column 11", "'x' is given twice"]),
        ("a: &x [1]\nb: *x\n", ["line 2, column 4", "aliases (*x)"]),
        ("a: !!python/object/apply:os.system [ls]", ["line 1, column 4", "tags"]),
        ("a: !!set {x}", ["tags"]),
        ("[a]: 1", ["a key must be a plain word"]),
        ("a: 1\n---\nb: 2", ["line 2", "another document"]),
        ("a: 1e999", ["line 1, column 4", "finite"]),
        (b"a: \xff\xfe\xfa", ["is not YAML text in UTF-8"]),
        (b"a: \x00", ["is not YAML text in UTF-8"]),
        ("[" * 5000, ["nested too deeply"]),
        (b" " * (MAX_BYTES + 1), [str(MAX_BYTES), str(MAX_BYTES + 1)]),
    ],
)
def test_a_bad_file_is_one_line_with_its_name_and_place(write, content: str | bytes, says: list[str]) -> None:
    path = write(content)
    text = message(load_yaml, path)
    assert str(path) in text
    assert all(part in text for part in says), text


def test_a_missing_file_is_named_with_its_nearest_neighbour(write) -> None:
    path = write("a: 1", "digits.yaml")
    assert message(load_yaml, path.with_name("digit.yaml")) == f"no such file: {path.with_name('digit.yaml')}, did you mean 'digits.yaml'?"
    assert "is a folder" in message(load_yaml, path.parent)
    assert "no such file" in message(load_yaml, path.parent / "none" / "x.yaml")


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_an_unreadable_file_is_named(write) -> None:
    path = write("a: 1")
    path.chmod(0)
    assert f"cannot read {path}" in message(load_yaml, path)


def test_a_misspelt_key_names_the_section_the_nearest_and_the_known() -> None:
    text = message(parse, Config, {"data": {"image_sise": 8}}, "configs/x.yaml")
    assert text.startswith("unknown key 'image_sise' in configs/x.yaml at data, did you mean 'image_size'? known: channels, classes, dir,")
    text = message(parse, Config, {"dta": {}}, "configs/x.yaml")
    assert text.startswith("unknown key 'dta' in configs/x.yaml, did you mean 'data'? known: data, finetune,")
    text = message(parse, Config, {"teacher": {"train": {"zzz": 1}}}, "x.yaml")
    assert text.startswith("unknown key 'zzz' in x.yaml at teacher.train; known: batch_size, early_sizes, ema,")


@pytest.mark.parametrize("key", ["<<", "<fixed>", "<range>", "a b", "ü"])
def test_odd_keys_are_named_as_they_are_written(key: str) -> None:
    assert f"unknown key {key!r} in x.yaml;" in message(parse, DataConfig, {key: 1}, "x.yaml")


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ({"seed": "5"}, "`seed` must be a whole number, but got '5' (x.yaml, seed)"),
        ({"seed": True}, "`seed` must be a whole number, but got true (x.yaml, seed)"),
        ({"finetune": {"epochs": "many"}}, "`epochs` must be a number, but got 'many' (x.yaml, finetune.epochs)"),
        ({"finetune": {"epochs": -1}}, "`epochs` must be at least 0, but got -1 (x.yaml, finetune.epochs)"),
        ({"finetune": {"lr": 0}}, "`lr` must be greater than 0, but got 0 (x.yaml, finetune.lr)"),
        ({"data": {"search_fraction": 1.0}}, "`search_fraction` must be less than 1, but got 1.0 (x.yaml, data.search_fraction)"),
        ({"views": {"number": 17}}, "`number` must be at most 16, but got 17 (x.yaml, views.number)"),
        ({"views": {"flip": "yes"}}, "`flip` must be true or false, but got 'yes' (x.yaml, views.flip)"),
        ({"views": 3}, "`views` must be a section of 'key: value' lines, but got 3 (x.yaml, views)"),
        ({"teacher": {"mean": 0.5}}, "`mean` must be a list, but got 0.5 (x.yaml, teacher.mean)"),
        ({"teacher": {"mean": [0.5, "x"]}}, "`mean` must be a number, but got 'x' (x.yaml, teacher.mean[1])"),
        ({"hardware": {"amp": "fp8"}}, "`amp` must be one of 'auto', 'bf16', 'fp16', 'off', but got 'fp8' (x.yaml, hardware.amp)"),
        ({"data": {"name": None}}, "`name` must be text, but got null (x.yaml, data.name)"),
    ],
)
def test_a_wrong_value_is_law_value_place(data: dict, says: str) -> None:
    assert message(parse, Config, data, "x.yaml") == says


def test_several_mistakes_name_the_misspelling_first_and_count_the_rest() -> None:
    text = message(parse, Config, {"seed": "x", "data": {"seeed": 1}}, "x.yaml")
    assert text.startswith("unknown key 'seeed'")
    assert text.endswith("(and 1 more)")


def test_parse_takes_lists_for_tuples_text_for_paths_and_whole_numbers_for_floats() -> None:
    config = parse(Config, {"teacher": {"mean": [0, 1], "weights": "w.safetensors"}, "data": {"dir": Path("images")}}, "x.yaml")
    assert config.teacher.mean == (0.0, 1.0)
    assert config.teacher.weights == Path("w.safetensors")
    assert config.data.dir == Path("images")


def test_a_dumped_config_parses_to_itself() -> None:
    config = parse(Config, {"seed": 3, "data": {"dir": "x", "channels": 1}, "teacher": {"std": [0.5]}}, "x.yaml")
    assert parse(Config, config.model_dump(mode="json"), "again") == config


@given(path=st.lists(words, min_size=1, max_size=3), value=st.integers(-(10**6), 10**6) | st.booleans() | st.floats(-1e6, 1e6) | words)
def test_an_override_sets_exactly_its_key(path: list[str], value: object) -> None:
    text = str(value).lower() if isinstance(value, bool) else value
    before = {"untouched": {"x": 1}}
    after = apply_overrides(before, [f"{'.'.join(path)}={text}"])
    found = after
    for key in path:
        found = found[key]
    assert found == value
    assert after["untouched"] == {"x": 1}
    assert before == {"untouched": {"x": 1}}


def test_overrides_are_yaml_keep_their_siblings_and_the_last_wins() -> None:
    data = {"data": {"name": "digits", "seed": 1}}
    result = apply_overrides(data, ["data.seed=2", "data.seed=3", "teacher.mean=[0.5, 0.5]", "data.dir=a=b", "data.channels="])
    assert result == {"data": {"name": "digits", "seed": 3, "dir": "a=b", "channels": None}, "teacher": {"mean": [0.5, 0.5]}}
    assert data == {"data": {"name": "digits", "seed": 1}}


@pytest.mark.parametrize("assignment", ["seed", "=3", ".seed=3", "data.=3", "data..seed=3", ""])
def test_an_override_that_is_no_assignment_shows_one(assignment: str) -> None:
    assert "dotted.key=value" in message(apply_overrides, {}, [assignment])


def test_a_bad_override_is_named() -> None:
    assert message(apply_overrides, {}, ["data.dir=[1"]).startswith("--set data.dir=[1, line 1, column 3: ")
    assert message(apply_overrides, {"seed": 1}, ["seed.x=2"]) == "--set seed.x=2: seed is not a section but the value 1"
    assert "in the defaults with --set at data, did you mean 'seed'?" in message(load_config, None, ["data.sead=1"], Path())


def test_no_config_means_the_defaults() -> None:
    assert load_config(None, [], Path()) == Config()
    assert load_config(None, ["seed=7"], Path()).seed == 7


def test_a_bare_name_is_an_entry_of_configs_and_an_unknown_one_lists_them(write, tmp_path: Path) -> None:
    write("seed: 4", "configs/cifar10.yaml")
    assert load_config("cifar10", [], tmp_path).seed == 4
    assert load_config("cifar10", ["seed=5"], tmp_path).seed == 5
    assert load_config(str(tmp_path / "configs" / "cifar10.yaml"), [], Path("elsewhere")).seed == 4
    text = message(load_config, "cifar1", [], tmp_path)
    assert "did you mean 'cifar10'? known in" in text
    assert "known in" in message(load_config, "x" * 5000, [], tmp_path)
    assert "no such file" in message(load_config, str(tmp_path / "none.yaml"), [], tmp_path)


def test_paths_in_a_config_start_at_its_folder_those_of_overrides_do_not(write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    path = write("data: {dir: images}\nteacher: {model: 'net.py:build', weights: /abs/w.safetensors}", "a/own.yaml")
    config = load_config(str(path), [], Path())
    assert config.data.dir == tmp_path / "a" / "images"
    assert config.teacher.model == f"{tmp_path}/a/net.py:build"
    assert config.teacher.weights == Path("/abs/w.safetensors")
    assert load_config(str(path), ["data.dir=images"], Path()).data.dir == Path("images")
    assert load_config(str(path), ["data.dir=~/images"], Path()).data.dir == tmp_path / "home" / "images"
    assert "names no path" in message(load_config, None, ["data.dir=~nobody-has-this-name/x"], Path())


def test_a_config_lies_over_its_base_key_by_key(tmp_path: Path) -> None:
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "low.yaml").write_text("seed: 3\nteacher: {weights: w.pt}\nfinetune: {epochs: 4, lr: 0.5}\n")
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "middle.yaml").write_text("base: low\nfinetune: {lr: 0.25}\n")
    (tmp_path / "deep" / "top.yaml").write_text("base: middle.yaml\nseed: 4\n")
    config = load_config(str(tmp_path / "deep" / "top.yaml"), ["finetune.momentum=0.5"], tmp_path)
    assert (config.seed, config.finetune.epochs, config.finetune.lr, config.finetune.momentum) == (4, 4.0, 0.25, 0.5)
    assert config.teacher.weights == tmp_path / "configs" / "w.pt"


@pytest.mark.parametrize(
    ("base", "says"),
    [
        ("top.yaml", "a configuration's base must not lead back to itself"),
        ("[a]", "`base` must be the name or path of a configuration, but got"),
        ("lwo", "unknown config 'lwo'"),
        ("gone.yaml", "no such file: "),
    ],
)
def test_a_base_that_is_none_is_said(base: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "top.yaml").write_text(f"base: {base}\n")
    with pytest.raises(UserError, match=re.escape(says)):
        load_config(str(tmp_path / "top.yaml"), [], tmp_path)


def test_every_teacher_s_files_start_at_the_config(tmp_path: Path) -> None:
    (tmp_path / "my.yaml").write_text("more_teachers: [{weights: a.pt}, {model: 'net.py:build'}]\n")
    first, second = load_config(str(tmp_path / "my.yaml"), [], tmp_path).more_teachers
    assert (first.weights, second.model) == (tmp_path / "a.pt", str(tmp_path / "net.py:build"))
