"""What a study is bound to: its space and configuration, without what may differ from start to start."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from core.candidate import fingerprint
from core.config import Config
from search.space import Space


def space_digest(space: Space, config: Config) -> tuple[str, dict[str, Any]]:
    """16 hex digits of all that shapes a study's results, and the dict they are of."""
    content = {"space": space.resolved(), "config": config.model_dump(mode="json")}
    return fingerprint(portable(content)), content


def portable(content: Mapping[str, Any]) -> dict[str, Any]:
    """The content of a study without the folders of its files: they may move. `check_inputs` in search/study.py keeps what is in them."""
    config = content["config"]
    teacher = config["teacher"]
    # the device and its threads are in its fingerprint; how long to wait, and how many processes decode images, changes no result
    runtime = {key: value for key, value in config["runtime"].items() if key not in ("agent", "threads", "wait_s", "timeout_s")}
    data = {key: value for key, value in config["data"].items() if key != "workers"}
    if not runtime.get("build_for"):
        runtime.pop("build_for", None)  # as in a study of an older version
    config = {key: value for key, value in config.items() if key not in ("journal", "stopping")}  # no result of a trial depends on them
    moved = {"data": {**data, "dir": None}, "teacher": _placeless(teacher), "runtime": runtime}
    # absent in a study of an older version
    more = {"more_teachers": [_placeless(each) for each in config.get("more_teachers", ())]}
    space = {key: value for key, value in content["space"].items() if key != "allocation" or value["strategy"] != "per_position"}
    found = {**content, "space": space, "config": {**config, **moved, **more}}
    for path, value in NEWER.items():
        found = _without(found, path, value)
    return found


NEWER: dict[tuple[str, ...], Any] = {
    ("space", "prune", "importance"): "l2",
    ("space", "prune", "scope"): "local",
    ("space", "order"): "prune, quantise",
    ("space", "allocation", "budget_ms"): None,
    ("config", "quantise", "simulate_activations"): False,
}
"""Keys that studies of an older version had not -> the value that is as those were."""


def _without(tree: Mapping[str, Any], path: tuple[str, ...], value: Any) -> dict[str, Any]:
    """`tree` without the key at `path` where it is there and has that value."""
    head, *rest = path
    if rest:
        return {**tree, head: _without(tree[head], tuple(rest), value)} if head in tree else dict(tree)
    return {key: found for key, found in tree.items() if (key, found) != (head, value)}


def _placeless(teacher: Mapping[str, Any]) -> dict[str, Any]:
    moved = {**teacher, "model": teacher["model"] and Path(teacher["model"]).name, "weights": teacher["weights"] and "given"}
    return _without(moved, ("train", "infobatch"), 0.0)  # as in NEWER, of every teacher
