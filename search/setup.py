"""From a command line to a checked space and configuration, before anything heavy is imported."""

from __future__ import annotations

import argparse
import ast
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path

from core.cli import Parser
from core.config import Config, RuntimeConfig
from core.errors import UserError
from core.runtimes import RUNTIMES, building_runtime, compute_capability, running_runtime
from core.students import STUDENTS
from core.tables import lookup
from core.yaml_io import apply_overrides, load_config
from search.images import check_images
from search.methods import check_methods
from search.sample import genes
from search.space import QuantiseSpace, Range, Space, check_names, default_space, load_space
from search.starts import check_starts

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = """examples:
  python -m search.run --space spaces/digits.yaml --trials 20
  python -m search.run --model my_net.py:build --weights my_net.safetensors --data-dir my_images/ --max-latency-ms 1.0 --trials 30
FUNCTION(classes, channels, image_size), or of fewer of these, returns a torch.nn.Module that maps images to logits.
Spaces that ship: spaces/*.yaml; spaces/examples/ for a phone, a Jetson, a server, a microcontroller; spaces/recipes/ of published methods.
The same command goes on where it was stopped. Then: python -m search.report | explain | dashboard | export_best,
and python -m core.predict --bundle exported/... on new images.
Spaces and configurations, key by key: docs/guide.md"""
DEFAULT_TARGETS = ("80", "86", "89", "120")
"""Of --build-only: 7.5 computes INT8 layers in float."""


def build_parser() -> argparse.ArgumentParser:
    """The flags of search.run."""
    parser = Parser(
        prog="python -m search.run",
        description="Search for the Pareto front of (accuracy, bytes, latency) of compressed versions of an image classifier.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=EXAMPLES,
    )
    what = parser.add_argument_group("what to search")
    what.add_argument("--space", type=Path, metavar="YAML", help="what may vary (spaces/*.yaml); without it --model is pruned, quantised")
    what.add_argument("--config", metavar="NAME|YAML", help="how to train and measure (configs/*.yaml); default: the space's")
    what.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides", help="override a key: data.image_size=64"
    )
    what.add_argument("--trials", type=int, default=50, metavar="N", help="end with N complete or pruned trials (default %(default)s)")
    what.add_argument("--seed", type=int, help="of sampler, weights, order and augmentation")
    own = parser.add_argument_group("your own network and images")
    own.add_argument("--model", metavar="FILE.py:FUNCTION", help="your network: it is the teacher, and the student `self`")
    own.add_argument("--weights", type=Path, metavar="FILE", help="its weights: safetensors, or a state dict")
    own.add_argument(
        "--data-dir",
        type=Path,
        metavar="FOLDER",
        help="images: train/<class>/*, test/<class>/*, or <class>/*; or the folder that holds, or gets, a downloaded archive",
    )
    own.add_argument("--skip-bad", action="store_true", help="leave corrupt images out instead of stopping")
    own.add_argument(
        "--plugin",
        type=Path,
        action="append",
        default=[],
        metavar="FILE.py",
        help="your file; may register students, losses, quantisers, data sets",
    )
    own.add_argument("--max-latency-ms", type=float, metavar="MS", help="hard limit: slower candidates are not trained")
    own.add_argument("--max-size-kb", type=float, metavar="KB", help="hard limit in KB of 1000 bytes")
    _add_course(parser)
    return parser


def _add_course(parser: argparse.ArgumentParser) -> None:
    """The flags of the run itself."""
    run = parser.add_argument_group("the run")
    run.add_argument(
        "--runtime",
        metavar="NAME",
        help="openvino, onnxruntime, tensorrt, ...: python -m core.hardware lists them; default: the configuration's (auto)",
    )
    run.add_argument(
        "--build-only",
        nargs="*",
        metavar="SM",
        help="time nothing: build engines for these compute capabilities (89 ...; without any: 80 and later), on a machine without a GPU",
    )
    run.add_argument("--study", metavar="NAME", help="name and folder below runs/; default: the space's name")
    run.add_argument("--storage", metavar="URL", help="database of the study; default: SQLite in the run's folder")
    run.add_argument(
        "--workers", type=int, default=1, metavar="N", help="processes that run trials (default %(default)s; SQLite takes up to 4)"
    )
    run.add_argument("--cluster", metavar="NAME", help="place the workers by ray, dask, ray://host:port or dask://host:port")
    run.add_argument("--gpus-per-worker", type=float, default=0.0, metavar="G", help="of a Ray cluster (default %(default)g)")
    run.add_argument(
        "--sampler", default="tpe", metavar="NAME", help="tpe (default), nsga2, nsga3, gp, random, grid (all combinations) or auto"
    )
    run.add_argument("--max-hours", type=float, metavar="H", help="begin no trial after H hours of this start")
    run.add_argument("--plateau", type=int, metavar="N", help="end when N trials hardly added to the hypervolume")
    run.add_argument("--fresh", action="store_true", help="delete the study first")
    run.add_argument("--remeasure", action="store_true", help="on another device than before: time the stored models here, then go on")
    run.add_argument(
        "--dry-run", action="store_true", help="check, measure for up to 30 s, foresee hours, sizes and latencies, train nothing"
    )
    run.add_argument("--quiet", action="store_true", help="print the front only")


def load_plugins(paths: Sequence[Path]) -> None:
    """Run the user's files, in order. Raises UserError when one is missing or raises."""
    for path in paths:
        if not path.is_file():
            raise UserError(f"--plugin must be a Python file, but there is no {path}")
        from core.students.own import import_file, own_code  # late: it imports torch
        from core.students.own_sources import importable

        path = path.resolve()
        with own_code(path, "being loaded as a plugin"), importable(path):
            import_file(path)


def resolve_arguments(args: argparse.Namespace) -> tuple[Space, Config]:
    """The checked space and configuration of a command line. Raises UserError with the law, the values and the remedy."""
    if args.trials < 1:
        raise UserError(f"--trials must be at least 1, but got {args.trials}")
    check_course(args.sampler, args.max_hours, args.plateau)
    if args.space is None and args.model is None:
        raise UserError(
            "say what to search: --space spaces/digits.yaml, or your own network with --model my_net.py:build --data-dir FOLDER"
        )
    for_space, for_config = split_overrides([*args.overrides, *_flags_as_overrides(args)])
    space = _own_space(for_space) if args.space is None else load_space(args.space, for_space)
    if args.sampler == "grid":
        check_grid(space)
    config = load_config(args.config or space.config, for_config, ROOT)
    _check(space, config, str(args.space or "the default space"))
    return space, config


def split_overrides(assignments: Sequence[str]) -> tuple[list[str], list[str]]:
    """`--set` assignments of the space's keys, and the others: the configuration's.

    Only `quantise` is a section of both: of a whole one each gets its part.
    """
    own = set(Space.model_fields) - {"quantise"} | {"quantise." + key for key in QuantiseSpace.model_fields}
    mine: list[str] = []
    others: list[str] = []
    for text in assignments:
        keys = text.partition("=")[0].strip().split(".")
        if keys == ["quantise"] and isinstance(section := apply_overrides({}, [text])["quantise"], dict):
            for part, takes in ((mine, True), (others, False)):
                values = {key: value for key, value in section.items() if (key in QuantiseSpace.model_fields) is takes}
                part.extend([f"quantise={json.dumps(values)}"] if values else [])
        else:
            (mine if own & {keys[0], ".".join(keys[:2])} else others).append(text)
    return mine, others


def check_course(sampler: str, hours: float | None, plateau: int | None) -> None:
    """Raises UserError for an unknown sampler and for an end that is none."""
    lookup(dict.fromkeys([*_names("search/samplers.py", "SAMPLERS"), "auto"]), "sampler", sampler)
    if hours is not None and not 0 < hours < math.inf:
        raise UserError(f"--max-hours must be a number above 0, but got {hours:g}; leave it out for no limit")
    if plateau is not None and plateau < 1:
        raise UserError(f"--plateau must be at least 1, but got {plateau}; leave it out for none")


def check_grid(space: Space) -> None:
    """Raises UserError where the space has more combinations than can be counted."""
    for name, value in genes(space).items():
        if isinstance(value, Range) and value.step is None:
            raise UserError(
                f"--sampler grid takes lists and ranges with a step, but {name} is any number from {value.low:g} to {value.high:g}; "
                "give it a step or a list"
            )


def _flags_as_overrides(args: argparse.Namespace) -> list[str]:
    """Flags are short names of keys: one way in."""
    values = {
        "seed": args.seed,
        "teacher.model": args.model,
        "teacher.weights": args.weights,
        "data.dir": args.data_dir,
        "data.skip_bad": args.skip_bad or None,
        "constraints.latency_ms": args.max_latency_ms,
        "constraints.size_kb": args.max_size_kb,
        "runtime.name": args.runtime,
        "runtime.build_for": None if args.build_only is None else [*map(compute_capability, args.build_only or DEFAULT_TARGETS)],
    }
    # as JSON, which is YAML too: a folder called 2024 is no number
    return [f"{key}={json.dumps(value, default=str)}" for key, value in values.items() if value is not None]


def _own_space(overrides: Sequence[str]) -> Space:
    """The space of a run without YAML: the user's network, pruned and quantised, by configs/own.yaml."""
    from core.yaml_io import parse

    data = default_space().model_dump(mode="json", exclude_defaults=True) | {"config": "own"}
    return parse(Space, apply_overrides(data, overrides), "the default space with --set")


def _check(space: Space, config: Config, where: str) -> None:
    losses = _names("core/losses.py", "DISTIL_LOSSES")
    check_names(space, STUDENTS, losses, _quantisers(), where)
    lookup(dict.fromkeys(losses), "loss", config.parent.distil.loss)
    check_methods(space, config)
    check_images(space, config)
    if config.runtime.name != "auto":
        lookup(RUNTIMES, "runtime", config.runtime.name)
    if config.runtime.build_for:
        building_runtime(config.runtime.name, config.runtime.build_for)
        if space.constraints.latency_ms is not None:
            raise UserError(
                "constraints.latency_ms limits a latency, but runtime.build_for (--build-only) measures none; leave one of them out"
            )
    if space.allocation.budget_ms is not None:
        _check_layer_times(config.runtime)
    check_starts(space, config)
    _check_files(config)


def _check_layer_times(config: RuntimeConfig) -> None:
    """A latency budget needs the time of every layer, which not every runtime says, and none of an engine that is not here."""
    if config.agent is not None:
        found = "runtime.agent is given"
    elif config.build_for:
        found = "runtime.build_for (--build-only) is given"
    elif (runtime := running_runtime(config.name)).layer_times is None:
        found = f"the runtime is {runtime.name}"
    else:
        return
    known = ", ".join(name for name, entry in RUNTIMES.items() if entry().layer_times is not None)
    raise UserError(
        f"allocation.budget_ms needs a runtime that says on this machine what each layer takes ({known}), but {found}; "
        "name such a runtime, or leave budget_ms out"
    )


def _quantisers() -> list[str]:
    return [name for table in ("QUANTISERS", "MODEL_QUANTISERS") for name in _names("core/quantise/__init__.py", table)]


def _check_files(config: Config) -> None:
    """Files that are not there are named at once; what is in them is read later."""
    for teacher in config.teachers:
        file = (teacher.model or "").rpartition(":")[0]
        if teacher.model is not None and not (file and Path(file).expanduser().is_file()):
            named = f"there is no file {file}" if file else f"{teacher.model!r} names a file but no function"
            raise UserError(f"--model must name a Python file and a function in it, such as my_net.py:build, but {named}")
        if teacher.weights is not None and not teacher.weights.is_file():
            raise UserError(f"--weights must be a file, but there is no {teacher.weights}")


def _names(file: str, table: str) -> list[str]:
    """Names in the table of a module that imports torch: of the table itself where a plugin has imported it, else of its source.

    Importing would take seconds that a misspelt name need not wait for. Tables are dict literals, so the source holds their names.
    """
    module = sys.modules.get(file.removesuffix(".py").removesuffix("/__init__").replace("/", "."))
    if module is not None:
        return list(getattr(module, table))
    for node in ast.walk(ast.parse((ROOT / file).read_text(encoding="utf-8"))):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.target.id == table:
            assert isinstance(node.value, ast.Dict), f"{table} must be a dict literal"
            return [str(ast.literal_eval(key)) for key in node.value.keys if key is not None]
    raise AssertionError(f"{file} has no table {table}")
