"""YAML in, checked frozen values out; every way to get it wrong is one `UserError` line that names the file.

    load_yaml -> dict -> apply_overrides (--set) -> parse -> Space | Config

YAML is data here: no tags, no aliases, no duplicate keys, and the scalars of YAML 1.2's core schema. PyYAML's own (1.1) would read
`amp: off` as False and `lr: 1e-3` as a string.
"""

from __future__ import annotations

import copy
import json
import math
import re
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError
from yaml.error import MarkedYAMLError

from core.config import Config
from core.errors import UserError, one_line
from core.explain import explain, show
from core.tables import nearest

M = TypeVar("M", bound=BaseModel)

MAX_BYTES = 1 << 20
PATH_KEYS = (("data", "dir"), ("teacher", "weights"), ("teacher", "model"), ("more_teachers", "weights"), ("more_teachers", "model"))
"""Config keys that name files, of a section or of each in a list; in a YAML file they are relative to that file's folder."""


def load_config(name_or_path: str | None, overrides: Sequence[str], base: Path) -> Config:
    """The configuration of a bare name (`cifar10`: base/configs/cifar10.yaml), of a path, or the defaults (None), with `overrides` applied.

    A path is taken as given, so a relative one starts at the working directory, as do paths in `overrides`.
    """
    if name_or_path is None:
        data, where = {}, "the defaults"
    else:
        path = _config_path(name_or_path, base)
        data, where = _load_based(path, base), str(path)
    if overrides:
        data, where = _resolve_paths(apply_overrides(data, overrides), Path()), f"{where} with --set"
    return parse(Config, data, where)


def parse(model: type[M], data: Mapping[str, Any], where: str) -> M:
    """`data` as a `model`, types taken strictly (no text for numbers, no numbers for booleans); `where` names the file in messages."""
    # By way of JSON: its strict mode takes lists for tuples and text for paths, which Python's does not.
    text = json.dumps(data, default=str)
    try:
        return model.model_validate_json(text, strict=True)
    except ValidationError as error:
        raise UserError(explain(model, error, where)) from None


def apply_overrides(data: Mapping[str, Any], assignments: Sequence[str]) -> dict[str, Any]:
    """A copy of `data` with each `dotted.key=value` set; values are YAML, the last of equal keys wins, unknown keys are left to `parse`."""
    result = copy.deepcopy(dict(data))
    for assignment in assignments:
        keys, value = _split_assignment(assignment)
        section = result
        for depth, key in enumerate(keys[:-1], start=1):
            section = section.setdefault(key, {})
            if not isinstance(section, dict):
                raise UserError(f"--set {assignment}: {'.'.join(keys[:depth])} is not a section but the value {show(section)}")
        section[keys[-1]] = value
    return result


def load_yaml(path: Path) -> dict[str, Any]:
    """The mapping in the YAML file `path`, at most 1 MiB."""
    data = _parse_yaml(_read(path), str(path))
    if data is None:
        raise UserError(f"{path} is empty; it needs 'key: value' lines")
    if not isinstance(data, dict):
        raise UserError(f"{path} must hold 'key: value' lines, but it holds {show(data)}")
    return data


def resolve_path(value: str | Path, folder: Path) -> Path:
    """`value` as a path relative to `folder`; `~` is the home folder, an absolute path stays."""
    try:
        return folder / Path(value).expanduser()
    except RuntimeError as error:  # pathlib's word for an unknown user in ~user
        raise UserError(f"{value} names no path: {error}") from None


def is_bare_name(name: str) -> bool:
    """Whether `name` is an entry of configs/ (`cifar10`) and not a path (`my/own.yaml`, `own.yaml`)."""
    return Path(name).name == name and not name.endswith((".yaml", ".yml"))


def _config_path(name_or_path: str, base: Path) -> Path:
    if not is_bare_name(name_or_path):
        return resolve_path(name_or_path, Path())
    path = base / "configs" / f"{name_or_path}.yaml"
    known = sorted(entry.stem for entry in path.parent.glob("*.yaml"))
    if name_or_path not in known:
        hint = nearest(name_or_path, known) or ";"
        raise UserError(f"unknown config {name_or_path!r}{hint} known in {path.parent}: {', '.join(known) or 'none'}; or name a .yaml file")
    return path


def _load_based(path: Path, base: Path, above: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The mapping in `path`, laid over that of the configuration that its key `base` names; a path there is relative to `path`."""
    if path.resolve() in above:
        raise UserError(f"a configuration's base must not lead back to itself, but {path} does; take one base out")
    data = _resolve_paths(load_yaml(path), path.parent)
    name = data.pop("base", None)
    if name is None:
        return data
    if not isinstance(name, str):
        raise UserError(f"`base` must be the name or path of a configuration, but got {show(name)} ({path}, base)")
    below = _config_path(name if is_bare_name(name) else str(resolve_path(name, path.parent)), base)
    return _laid_over(_load_based(below, base, (*above, path.resolve())), data)


def _laid_over(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Sections are joined key by key; anything else is replaced."""
    both = {
        key: _laid_over(below[key], value) for key, value in above.items() if isinstance(value, dict) and isinstance(below.get(key), dict)
    }
    return {**below, **above, **both}


def _resolve_paths(data: dict[str, Any], folder: Path) -> dict[str, Any]:
    result = copy.deepcopy(data)
    for section, key in PATH_KEYS:
        found = result.get(section)
        for values in found if isinstance(found, list) else [found]:
            if isinstance(values, dict) and isinstance(values.get(key), str):
                values[key] = str(resolve_path(values[key], folder))
    return result


def _split_assignment(assignment: str) -> tuple[list[str], Any]:
    key, equals, value = assignment.partition("=")
    keys = key.strip().split(".")
    if not equals or not all(keys):
        raise UserError(f"--set takes dotted.key=value, such as data.image_size=64, but got {assignment!r}")
    return keys, _parse_yaml(value.encode(errors="surrogateescape"), f"--set {assignment}")


# Reading


def _read(path: Path) -> bytes:
    try:
        if path.is_dir():
            raise UserError(f"{path} is a folder; name a YAML file in it")
        if not path.is_file():
            siblings = sorted(entry.name for entry in path.parent.glob("*.y*ml"))
            raise UserError(f"no such file: {path}{nearest(path.name, siblings)}")
        if path.stat().st_size > MAX_BYTES:
            raise UserError(f"{path} must have at most {MAX_BYTES} bytes, but it has {path.stat().st_size}")
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None


def _parse_yaml(text: bytes, where: str) -> Any:
    try:
        return yaml.load(text, Loader=_CoreLoader)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        position = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        reason = ": ".join(filter(None, [error.context, error.problem])) or "malformed YAML"
        raise UserError(f"{where}{position}: {one_line(reason)}") from None
    except yaml.YAMLError as error:
        raise UserError(f"{where} is not YAML text in UTF-8: {one_line(error)}") from None
    except RecursionError:
        raise UserError(f"{where} is nested too deeply") from None


class _CoreLoader(yaml.SafeLoader):
    """SafeLoader with the core schema of YAML 1.2, without tags, aliases, merge keys and duplicate keys."""

    yaml_implicit_resolvers: dict[str, Any] = {}

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event = self.peek_event()
        mark: Any = event.start_mark
        if isinstance(event, yaml.AliasEvent):
            raise MarkedYAMLError(problem=f"aliases (*{event.anchor}) are not allowed; repeat the value", problem_mark=mark)
        if getattr(event, "tag", None) is not None:
            raise MarkedYAMLError(problem=f"tags ({event.tag}) are not allowed; write plain data", problem_mark=mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise MarkedYAMLError(problem="a key must be a plain word", problem_mark=key.start_mark)
            if key.value in seen:
                raise MarkedYAMLError(problem=f"the key {key.value!r} is given twice", problem_mark=key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)

    def construct_yaml_float(self, node: yaml.ScalarNode) -> float:
        value = float(node.value)
        if not math.isfinite(value):
            raise MarkedYAMLError(problem=f"a number must be finite, but got {node.value}", problem_mark=node.start_mark)
        return value


# .inf and .nan are left out, and integers end at 18 digits: such words stay text, which no numeric field takes.
_SCALARS = {
    "null": (r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    "bool": (r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    "int": (r"[-+]?(0|[1-9][0-9]{0,17})", list("-+0123456789")),
    "float": (r"[-+]?([0-9]+\.[0-9]*|\.[0-9]+|[0-9]+(?=[eE]))([eE][-+]?[0-9]+)?", list("-+.0123456789")),
}
for _name, (_pattern, _first) in _SCALARS.items():
    _CoreLoader.add_implicit_resolver(f"tag:yaml.org,2002:{_name}", re.compile(rf"^(?:{_pattern})$"), _first)
_CoreLoader.add_constructor("tag:yaml.org,2002:float", _CoreLoader.construct_yaml_float)
