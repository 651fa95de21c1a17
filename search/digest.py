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
    runtime = {key: value for key, value in config["runtime"].items() if key not in ("agent", "wait_s")}  # the device is in its fingerprint
    if not runtime.get("build_for"):
        runtime.pop("build_for", None)  # as in a study of an older version
    config = {key: value for key, value in config.items() if key != "journal"}  # it only looks
    quantise = {key: value for key, value in config["quantise"].items() if (key, value) != ("simulate_activations", False)}
    moved = {"data": {**config["data"], "dir": None}, "teacher": _placeless(teacher), "runtime": runtime, "quantise": quantise}
    # absent in a study of an older version
    more = {"more_teachers": [_placeless(each) for each in config.get("more_teachers", ())]}
    return {**content, "space": _without_defaults(content["space"]), "config": {**config, **moved, **more}}


def _without_defaults(space: Mapping[str, Any]) -> dict[str, Any]:
    """The space without sections and keys that studies of an older version had not, where they are as those were."""
    prune = {key: value for key, value in space["prune"].items() if value != NEWER.get(key)}
    kept = {key: value for key, value in space.items() if key != "allocation" or value["strategy"] != "per_position"}
    if "allocation" in kept:
        kept["allocation"] = {key: value for key, value in kept["allocation"].items() if (key, value) != ("budget_ms", None)}
    return {key: value for key, value in kept.items() if (key, value) != ("order", "prune, quantise")} | {"prune": prune}


NEWER = {"importance": "l2", "scope": "local"}


def _placeless(teacher: Mapping[str, Any]) -> dict[str, Any]:
    return {**teacher, "model": teacher["model"] and Path(teacher["model"]).name, "weights": teacher["weights"] and "given"}
