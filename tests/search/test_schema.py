"""The JSON schemas that editors read: as the code has them, and true of every YAML file that ships."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from core.config import Config
from core.errors import UserError
from core.yaml_io import load_config, load_yaml, parse
from search.schema import FOLDER, MODELS, main, schema, schema_text
from search.space import Space, default_space, load_space

ROOT = FOLDER.parents[1]
SHIPPED = [(kind, path) for kind in MODELS for path in sorted((ROOT / f"{kind}s").rglob("*.yaml"))]
SPACE: dict[str, Any] = load_yaml(ROOT / "spaces" / "digits.yaml")


def complaints(kind: str, data: Any) -> list[str]:
    return [error.message for error in jsonschema.Draft7Validator(schema(kind)).iter_errors(data)]


@pytest.mark.parametrize("kind", MODELS)
def test_the_committed_schema_is_that_of_the_code(kind: str) -> None:
    jsonschema.Draft7Validator.check_schema(schema(kind))
    assert (FOLDER / f"{kind}.json").read_text(encoding="utf-8") == schema_text(kind), "run: python -m search.schema"


def test_the_command_writes_both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("search.schema.FOLDER", tmp_path)
    assert main([]) == 0
    assert {path.name: path.read_text(encoding="utf-8") for path in tmp_path.iterdir()} == {
        f"{kind}.json": schema_text(kind) for kind in MODELS
    }


@pytest.mark.parametrize(("kind", "path"), SHIPPED, ids=lambda value: getattr(value, "stem", value))
def test_a_shipped_file_names_its_schema_and_keeps_it(kind: str, path: Path) -> None:
    place = os.path.relpath(FOLDER / f"{kind}.json", path.parent)
    assert path.read_text(encoding="utf-8").splitlines()[0] == f"# yaml-language-server: $schema={place}"
    assert complaints(kind, load_yaml(path)) == []


def test_what_the_program_writes_keeps_the_schema() -> None:
    assert complaints("config", Config().model_dump(mode="json")) == []
    assert complaints("space", load_space(ROOT / "spaces" / "digits.yaml").model_dump(mode="json")) == []
    assert complaints("space", default_space().model_dump(mode="json", exclude_defaults=True)) == []


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("space", "student: {nmae: resnet8}"),
        ("space", "student: {name: [resnet8, 3]}"),
        ("space", "{student: {name: resnet8}, quantise: {weight_bits: [4, 9]}}"),
        ("space", "{student: {name: resnet8}, quantise: {execution: int4}}"),
        ("space", "{student: {name: resnet8}, prune: {ratio: {low: 0.1}}}"),
        ("space", "{student: {name: resnet8}, constraints: {accuracy: 97}}"),
        ("space", "config: digits"),
        *(
            ("space", f"{{student: {{name: resnet8}}, {section}}}")
            for section in (
                "prune: {ratio: 1}",
                "prune: {ratio: -0.1}",
                "prune: {ratio: [0, 1.5]}",
                "prune: {ratio: {low: 0, high: 1}}",
                "prune: {ratio: {low: 0, high: 0.5, step: 0}}",
                "prune: {ratio: []}",
                "prune: {round_to: [8, 8]}",
                "distil: {temperature: 0}",
                "distil: {temperature: [4, null, 0]}",
                "distil: {weight: -1}",
                "distil: {weight: {low: -1, high: 1}}",
                "quantise: {weight_bits: []}",
                "quantise: {weight_bits: [4, 4]}",
                "quantise: {sparsity: -0.5}",
                "order: []",
                "order: [[prune, quantise], [prune, quantise]]",
                "allocation: {strategy: haq, budget_kb: 0}",
            )
        ),
        ("space", "student: {name: []}"),
        ("space", "student: {name: [resnet8, resnet8]}"),
        ("space", "student: {name: resnet8, width: 0}"),
        ("config", "parent: {distil: {temperature: 0}}"),
        ("config", "parent: {distil: {weight: much}}"),
        ("config", "finetune: {epochs: many}"),
        ("config", "finetune: {optimiser: adma}"),
        ("config", "data: {search_fraction: 1.5}"),
        ("config", "view: {number: 8}"),
    ],
)
def test_an_editor_refuses_what_the_program_refuses(kind: str, text: str) -> None:
    assert complaints(kind, yaml.safe_load(text)) != []
    with pytest.raises(UserError):
        parse(MODELS[kind], yaml.safe_load(text), "here")


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("space", "student: {name: [of_my_plugin, 'timm:resnet18', self]}"),
        ("space", "{student: {name: resnet8, width: {low: 0.5, high: 1}}, allocation: per_layer}"),
        ("space", "{student: {name: resnet8}, quantise: {edge_bits: null, weight_bits: 4}}"),
        ("space", "{student: {name: [resnet8], width: [0.5, 1]}, prune: {ratio: {low: 0, high: 0.99}, round_to: [4, 8]}}"),
        ("space", "{student: {name: resnet8}, distil: {weight: [0, null], temperature: {low: 1, high: 8, step: null, log: true}}}"),
        ("space", "{student: {name: resnet8}, order: [[prune, quantise], [quantise, prune]]}"),
        ("config", "{teacher: {name: of_my_plugin, width: 1}, runtime: {name: openvino}}"),
        ("config", "parent: {distil: {loss: dkd, temperature: null, weight: null, ce_weight: null}}"),
    ],
)
def test_an_editor_takes_what_the_program_takes(kind: str, text: str) -> None:
    parse(MODELS[kind], yaml.safe_load(text), "here")
    assert complaints(kind, yaml.safe_load(text)) == []


def test_a_configuration_on_top_of_another_keeps_the_schema(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("base: digits\nfinetune: {epochs: 3}\n")
    assert load_config(str(path), [], ROOT).finetune.epochs == 3
    assert complaints("config", load_yaml(path)) == []


@pytest.mark.parametrize("kind", MODELS)
def test_every_section_and_every_key_of_it_is_explained_in_a_line(kind: str) -> None:
    whole = schema(kind)
    sections = {kind: whole, **whole["$defs"]}
    told = {(name, key): field.get("description", "") for name, body in sections.items() for key, field in body["properties"].items()}
    assert set(MODELS[kind].model_fields) <= {key for name, key in told if name == kind}
    assert [key for key, text in told.items() if not text.endswith(".") or "\n" in text or len(text.split()) < 2] == []
    assert [name for name, body in whole["$defs"].items() if "description" not in body] == []


def test_a_key_without_words_of_its_own_has_those_of_what_it_inherits_from_or_opens() -> None:
    sections = {"config": schema("config"), **schema("config")["$defs"]}
    for heir, parent in (("PtqConfig", "RangeConfig"), ("TeacherTrainConfig", "TrainConfig")):
        for key, field in sections[parent]["properties"].items():
            assert sections[heir]["properties"][key]["description"] == field["description"]
    opened = {"data": "DataConfig", "views": "ViewsConfig", "stopping": "StoppingConfig"}
    for key, section in opened.items():
        assert sections[section]["description"].startswith(sections["config"]["properties"][key]["description"])
    assert sections["ParentConfig"]["properties"]["train"]["description"] != sections["TrainConfig"]["description"].splitlines()[0]


def test_names_of_tables_are_suggested_and_keys_are_explained() -> None:
    sections = schema("space")["$defs"]
    suggested = sections["StudentSpace"]["properties"]["name"]["oneOf"][0]["anyOf"][0]["enum"]
    assert {"resnet8", "light_cnn", "self"} <= set(suggested)
    assert "Of DKD" in sections["DistilSpace"]["properties"]["alpha"]["description"]
    assert "held out" in schema("config")["$defs"]["DataConfig"]["properties"]["search_fraction"]["description"]


def test_a_space_alone_is_a_space_and_no_configuration() -> None:
    assert complaints("space", SPACE) == []
    assert complaints("config", SPACE) != []
    assert json.loads(schema_text("space"))["required"] == ["student"]
    assert Space.model_validate(SPACE).config == "digits"
