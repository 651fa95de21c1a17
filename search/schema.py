"""JSON schemas of spaces and configurations, for editors: python -m search.schema

Written from the models themselves into docs/schema/. A YAML file says which one is its own in its first line:

    # yaml-language-server: $schema=../docs/schema/space.json
"""

from __future__ import annotations

import ast
import inspect
import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel

import core.candidate
import core.config
import search.space
from core.candidate import SELF
from core.cli import Parser, run_main
from core.config import Config
from core.files import write_atomically
from search.space import Space

FOLDER = Path(__file__).resolve().parents[1] / "docs" / "schema"
MODELS: dict[str, type[BaseModel]] = {"space": Space, "config": Config}
DRAFT = "http://json-schema.org/draft-07/schema#"
MODULES = (core.candidate, core.config, search.space)
BASE = {"type": "string", "description": "Name of an entry of configs/, or a YAML file, on which this one is laid."}
SAMPLED = {
    "Space": ("Candidate",),
    "StudentSpace": ("Candidate",),
    "DistilSpace": ("DistilPlan",),
    "PruneSpace": ("Candidate",),
    "QuantiseSpace": ("Candidate", "GroupPlan"),
    "AllocationSpace": ("AllocationPlan",),
}
"""Section of a space -> what is sampled from it, whose fields of the same name say what they mean."""
PUBLISHED = ("temperature", "weight", "ce_weight")
"""Of a DistilPlan: what null stands for is known."""
Schema = dict[str, Any]


def main(argv: list[str]) -> int:
    """Write docs/schema/*.json."""
    Parser(prog="python -m search.schema", description="Write the JSON schemas of spaces and configurations into docs/schema/.").parse_args(
        argv
    )
    for name in MODELS:
        print(f"written: {write_atomically(FOLDER / f'{name}.json', schema_text(name))}")
    return 0


def schema_text(name: str) -> str:
    """The file's text."""
    return json.dumps(schema(name), indent=1, ensure_ascii=False) + "\n"


def schema(name: str) -> Schema:
    """Of `space` or `config`: keys, types, defaults, limits of single values, what each means; names that tables hold are suggested.

    A key means what the docstring below its field says; one that opens a section and has none, what the section's class says.
    What one key says about another is checked when the file is used.
    """
    model = MODELS[name]
    found = _without_titles(model.model_json_schema())
    sections = {model.__name__: found, **found["$defs"]}
    told = _docstrings()
    for section, body in sections.items():
        for key, field in body.get("properties", {}).items():
            known = [told[each, key] for each in (section, *SAMPLED.get(section, ())) if (each, key) in told]
            known += [sections[field["$ref"].rpartition("/")[2]]["description"].splitlines()[0]] if "$ref" in field else []
            field.update({"description": known[0]} if known else {})
    for (section, key), names in _suggestions().items():
        if section in sections:
            _suggest(sections[section]["properties"][key], names)
    if name == "config":
        for key in PUBLISHED:  # null is what is published for the loss; it is filled in before the field's own type looks
            sections["DistilPlan"]["properties"][key]["type"] = ["number", "null"]
        found["properties"] = {"base": BASE, **found["properties"]}
    else:
        found["properties"]["allocation"] = _by_name(
            found["properties"]["allocation"], sections["AllocationSpace"]["properties"]["strategy"]
        )
    return {"$schema": DRAFT, "title": f"paretopress {name}", **found}


def _suggestions() -> dict[tuple[str, str], list[str]]:
    """(section, key) -> names that its table has; plugins and libraries have more."""
    from core.data import DATASETS
    from core.losses import DISTIL_LOSSES
    from core.quantise import MODEL_QUANTISERS, QUANTISERS
    from core.runtimes import RUNTIMES
    from core.students import STUDENTS

    quantisers = sorted({*QUANTISERS, *MODEL_QUANTISERS})
    return {
        ("StudentSpace", "name"): [*sorted(STUDENTS), SELF],
        ("TeacherConfig", "name"): sorted(STUDENTS),
        ("DistilSpace", "loss"): sorted(DISTIL_LOSSES),
        ("DistilPlan", "loss"): sorted(DISTIL_LOSSES),
        ("QuantiseSpace", "quantiser"): quantisers,
        ("RuntimeConfig", "name"): ["auto", *sorted(RUNTIMES)],
        ("DataConfig", "name"): sorted(DATASETS),
    }


def _suggest(field: Schema, names: list[str]) -> None:
    """Let every plain text of `field` be one of `names`, or any other."""
    for part in [field, *field.get("oneOf", []), *(choice.get("items", {}) for choice in field.get("oneOf", []))]:
        if part.get("type") == "string":
            part.pop("type")
            part["anyOf"] = [{"enum": names}, {"type": "string"}]


def _by_name(field: Schema, strategy: Schema) -> Schema:
    """A section, or the name of its strategy alone."""
    return {"anyOf": [{"$ref": field["$ref"]}, {"enum": strategy["enum"]}], **{key: field[key] for key in field if key != "$ref"}}


def _without_titles(part: Any) -> Any:
    """pydantic's titles repeat the keys."""
    if isinstance(part, list):
        return [_without_titles(each) for each in part]
    if not isinstance(part, dict):
        return part
    return {key: _without_titles(value) for key, value in part.items() if not (key == "title" and isinstance(value, str))}


def _docstrings() -> dict[tuple[str, str], str]:
    """(class, field) -> the text below the field, its own or that of the class it inherits from.

    pydantic can read them too, but then at every start of every command.
    """
    found: dict[tuple[str, str], str] = {}
    for module in MODULES:
        for node in ast.parse(inspect.getsource(module)).body:
            if not isinstance(node, ast.ClassDef):
                continue
            bases = {base.id for base in node.bases if isinstance(base, ast.Name)}
            found |= {(node.name, key): text for (section, key), text in found.items() if section in bases}
            for field, below in zip(node.body, node.body[1:], strict=False):
                told = below.value if isinstance(below, ast.Expr) else None
                if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(told, ast.Constant):
                    found[node.name, field.target.id] = inspect.cleandoc(str(told.value))
    return found


if __name__ == "__main__":
    raise SystemExit(run_main(main))
