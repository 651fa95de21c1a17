"""From a command line to a checked space and configuration, before anything heavy is imported."""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path

from core.config import Config
from core.data import DATASETS
from core.errors import UserError
from core.runtimes import RUNTIMES
from core.students import STUDENTS
from core.tables import lookup
from core.yaml_io import load_config
from search.space import SELF, Space, check_names, default_space, load_space, options, split_overrides

ROOT = Path(__file__).resolve().parents[1]
LOSSES = ("ce", "kd", "dkd", "lskd")
QUANTISER_NAMES = ("lsq", "ptq")


def build_parser() -> argparse.ArgumentParser:
    """The flags of search.run."""
    parser = argparse.ArgumentParser(
        prog="python -m search.run",
        description="Search for the Pareto front of (accuracy, bytes, latency) of compressed versions of an image classifier.",
        epilog="examples: --space spaces/digits.yaml --trials 20 | --model my_net.py:build --weights w.safetensors --data-dir images/ --max-latency-ms 1",
    )
    what = parser.add_argument_group("what to search")
    what.add_argument("--space", type=Path, metavar="YAML", help="what may vary (spaces/*.yaml); without it, --model is pruned and quantised")
    what.add_argument("--config", metavar="NAME|YAML", help="how to train and measure (configs/*.yaml); default: the one the space names")
    what.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides", help="override one key, e.g. data.image_size=64")
    what.add_argument("--trials", type=int, default=50, metavar="N", help="end with N complete or pruned trials in the study (default %(default)s)")
    what.add_argument("--seed", type=int, help="of sampler, weights, order and augmentation")
    own = parser.add_argument_group("your own network and images")
    own.add_argument("--model", metavar="FILE.py:FUNCTION", help="your network: it is the teacher, and the student `self`")
    own.add_argument("--weights", type=Path, metavar="FILE", help="its weights: safetensors, or a state dict")
    own.add_argument("--data-dir", type=Path, metavar="FOLDER", help="image folder (train/<class>/*, test/<class>/*, or <class>/*), or where a download lies")
    own.add_argument("--skip-bad", action="store_true", help="leave corrupt images out instead of stopping")
    own.add_argument("--plugin", type=Path, action="append", default=[], metavar="FILE.py", help="runs your file, which may register students, losses, data sets")
    own.add_argument("--max-latency-ms", type=float, metavar="MS", help="hard limit: slower candidates are not trained")
    own.add_argument("--max-size-kb", type=float, metavar="KB", help="hard limit in KB of 1000 bytes")
    run = parser.add_argument_group("the run")
    run.add_argument("--study", metavar="NAME", help="name and folder below runs/; default: the space's name. The same command continues it")
    run.add_argument("--storage", metavar="URL", help="database of the study; default: SQLite in the run's folder")
    run.add_argument("--fresh", action="store_true", help="delete the study first")
    run.add_argument("--dry-run", action="store_true", help="check everything, measure one candidate, print the plan, train nothing")
    run.add_argument("--quiet", action="store_true", help="print the front only")
    return parser


def load_plugins(paths: Sequence[Path]) -> None:
    """Run the user's files, in order. Raises UserError when one is missing or raises."""
    for path in paths:
        if not path.is_file():
            raise UserError(f"--plugin must be a Python file, but there is no {path}")
        spec = importlib.util.spec_from_file_location(f"paretopress_plugin_{path.stem}", path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        # lazily: what the file raises is the user's business, and core/students/own.py words it
        from core.students.own import own_code

        with own_code(path, "run"):
            spec.loader.exec_module(module)


def resolve_arguments(args: argparse.Namespace) -> tuple[Space, Config]:
    """The checked space and configuration of a command line. Raises UserError with the law, the values and the remedy."""
    if args.trials < 1:
        raise UserError(f"--trials must be at least 1, but got {args.trials}")
    if args.space is None and args.model is None:
        raise UserError("say what to search: --space spaces/digits.yaml, or your own network with --model my_net.py:build --data-dir FOLDER")
    for_space, for_config = split_overrides([*args.overrides, *_flags_as_overrides(args)])
    space = _own_space(for_space) if args.space is None else load_space(args.space, for_space)
    config = load_config(args.config or space.config, for_config, ROOT)
    _check(space, config, str(args.space or "the default space"))
    return space, config


def _flags_as_overrides(args: argparse.Namespace) -> list[str]:
    """Flags are short names of keys: one way in."""
    values = {
        "seed": args.seed,
        "teacher.model": args.model,
        "teacher.weights": args.weights,
        "data.dir": args.data_dir,
        "data.skip_bad": "true" if args.skip_bad else None,
        "constraints.latency_ms": args.max_latency_ms,
        "constraints.size_kb": args.max_size_kb,
    }
    if args.data_dir is not None and args.space is None and args.config is None:
        values["data.name"] = "folder"
    return [f"{key}={value}" for key, value in values.items() if value is not None]


def _own_space(overrides: Sequence[str]) -> Space:
    """The space of a run without YAML: the user's network, pruned and quantised, by configs/own.yaml."""
    from core.yaml_io import apply_overrides, parse

    data = default_space(SELF).model_dump(mode="json", exclude_defaults=True) | {"config": "own"}
    return parse(Space, apply_overrides(data, overrides), "the default space with --set")


def _check(space: Space, config: Config, where: str) -> None:
    check_names(space, STUDENTS, _names("losses"), _names("quantise"), where)
    lookup(DATASETS, "data set", config.data.name)
    if config.runtime.name != "auto":
        lookup(RUNTIMES, "runtime", config.runtime.name)
    if config.teacher.model is None:
        lookup(STUDENTS, "student", config.teacher.name)
    if SELF in options(space.student.name) and config.teacher.model is None:
        raise UserError("student.name self is your own network: name it with --model my_net.py:build")
    if config.teacher.weights is not None and config.teacher.model is None:
        raise UserError("--weights belongs to a network: name it with --model my_net.py:build")


def _names(table: str) -> tuple[str, ...]:
    """Names of the torch-importing tables without importing torch, unless a plugin already did."""
    if table == "losses":
        module = sys.modules.get("core.losses")
        return tuple(module.DISTIL_LOSSES) if module else LOSSES
    module = sys.modules.get("core.quantise")
    return tuple(module.QUANTISERS) if module else QUANTISER_NAMES
