"""Export: python -m search.export_best --rank 0

Takes one point of a study's front, scores it once on the test split, and writes it as a bundle: a folder of files that run.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.cli import Parser, required, run_main
from core.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    import optuna

    from core.bundle import Preprocessing
    from core.config import Config
    from core.data.types import SearchData
    from core.engines import EngineHost
    from results.record import TrialRecord

RUNS = Path("runs")
TEST_KEY = "test_accuracy"


def build_parser() -> argparse.ArgumentParser:
    """The flags of search.export_best."""
    parser = Parser(
        prog="python -m search.export_best", description="Write one point of a study's Pareto front as a folder of files that run."
    )
    parser.add_argument("--study", metavar="NAME", help="folder below runs/; default: the newest run's")
    parser.add_argument("--storage", metavar="URL", help="database of the study, where it is not in the run's folder")
    parser.add_argument("--rank", type=int, metavar="R", help="0 is the most accurate point of the front (default)")
    parser.add_argument("--out", type=Path, metavar="DIR", help="default: exported/<study>-rank<R>")
    parser.add_argument("--runtime", metavar="NAME", help="must be the study's: another runtime has another grid")
    parser.add_argument("--max-latency-ms", type=float, metavar="MS", help="the most accurate point that is this fast")
    parser.add_argument("--max-size-kb", type=float, metavar="KB", help="... this small (KB of 1000 bytes)")
    parser.add_argument("--min-accuracy", type=float, metavar="A", help="... this accurate, in [0, 1]")
    parser.add_argument("--data-dir", type=Path, metavar="FOLDER", help="where the images are now, if they have moved")
    parser.add_argument("--plugin", type=Path, action="append", default=[], metavar="PY", help="your file; may register data sets")
    return parser


def main(argv: list[str]) -> int:
    """Choose, score on the test split, write the bundle, print where it is."""
    args = build_parser().parse_args(argv)
    from search.setup import load_plugins

    load_plugins(args.plugin)
    name = newest_run(RUNS) if args.study is None else args.study
    from search.storage import storage_errors, storage_url
    from search.study import check_name, load_study

    folder = RUNS / check_name(name)
    url = storage_url(folder, args.storage)
    with storage_errors(url):
        study = load_study(url, name)
        record, rank = _choose(study, args)
        out = args.out or Path("exported") / f"{name}-rank{rank}"
        export(study, record, rank, folder, out, args)
    return 0


def newest_run(runs: Path) -> str:
    """Name of the run that began or ended last. Raises UserError when there is none."""
    # study.db would not do: an export writes to it too
    found = list(runs.glob("*/run.json"))
    if not found:
        raise UserError(f"there is no run in {runs}/; run search.run first, or name a --study and its --storage")
    return max(found, key=lambda path: path.stat().st_mtime).parent.name


def _choose(study: optuna.Study, args: argparse.Namespace) -> tuple[TrialRecord, int]:
    """The point asked for and its rank."""
    from results.front import at_rank, front, select
    from results.record import read_records

    records = read_records(study)
    limits = (args.max_latency_ms, args.max_size_kb, args.min_accuracy)
    if any(limit is not None for limit in limits):
        if args.rank is not None:
            raise UserError("--rank names a point and limits choose one: give one or the other")
        record = select(records, *limits)
        return record, front(records).index(record)
    rank = args.rank or 0
    return at_rank(records, rank), rank


def export(study: optuna.Study, record: TrialRecord, rank: int, folder: Path, out: Path, args: argparse.Namespace) -> None:
    """Score the candidate's engine on the test split and write the bundle."""
    from core.bundle import Preprocessing, check_replaceable, write_bundle
    from core.data import load_search_data
    from core.engines import EngineHost

    check_replaceable(out.resolve())
    config = _config_of(study, args)
    run = _run_facts(folder)
    model, packed = (_candidate_file(folder, record, name) for name in ("model.onnx", "weights.pack"))
    assert record.measurement is not None
    assert record.candidate is not None
    _check_files(model, packed, record.measurement.size_bytes)
    data = load_search_data(config.data, RUNS / ".cache")
    _check_data(data, run)
    preprocessing = Preprocessing(image_size=data.info.image_size, channels=1 if data.info.channels == 1 else 3, **run["normalisation"])
    with EngineHost(config.runtime, folder) as engines:
        _check_runtime(args.runtime, engines.runtime.name, record)
        test = _test_accuracy(study, record, config, preprocessing, engines, model)
        measurement = _measurement(study, record, rank, run, test)
        write_bundle(
            out,
            onnx=model.read_bytes(),
            packed=packed.read_bytes(),
            candidate=record.candidate,
            measurement=measurement,
            labels=data.info.classes,
            preprocessing=preprocessing,
            runtime=engines.runtime.name,
            precision=config.runtime.precision,
            readme_facts=_readme_facts(record, test),
        )
    low, high = (100 * bound for bound in test["interval"])
    print(
        f"rank {rank} (trial {record.number}): test accuracy {100 * test['accuracy']:.2f} % of {test['images']} images "
        f"(95 % interval {low:.2f} to {high:.2f}), search accuracy {100 * record.measurement.accuracy:.2f} %, "
        f"{record.measurement.size_bytes / 1000:.1f} KB, {record.measurement.latency.p50_ms:.3f} ms"
    )
    print(f"written: {out}")


def _config_of(study: optuna.Study, args: argparse.Namespace) -> Config:
    """The configuration that the study was made with."""
    from core.config import Config
    from core.data import DATASETS
    from core.yaml_io import parse
    from search.study import CONTENT_KEY

    if CONTENT_KEY not in study.user_attrs:
        raise UserError(f"the study {study.study_name!r} was not made by this program; name another --study")
    content = dict(study.user_attrs[CONTENT_KEY]["config"])
    images = str(args.data_dir) if args.data_dir is not None else content["data"]["dir"]
    if images is not None and not Path(images).is_dir():
        raise UserError(
            f"an export scores the point on the search's own test images, but there is no folder {images}; name it with --data-dir"
        )
    config = parse(Config, {**content, "data": {**content["data"], "dir": images}}, f"the study {study.study_name!r}")
    if config.data.name not in DATASETS:
        raise UserError(f"the data set {config.data.name!r} is not one of this program's; name the file that registers it with --plugin")
    return config


def _run_facts(folder: Path) -> dict[str, Any]:
    """run.json of the study. Raises UserError when it is not there or not whole."""
    path = folder / "run.json"
    try:
        facts: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        missing = {"device", "seed", "teacher", "data", "versions", "normalisation"} - facts.keys()
    except (OSError, ValueError, AttributeError):
        missing = {"everything"}
    if missing:
        raise UserError(f"an export needs {path}, but it lacks {', '.join(sorted(missing))}; the search's own command writes it again")
    return facts


def _candidate_file(folder: Path, record: TrialRecord, name: str) -> Path:
    path = folder / str(record.path) / name
    if not path.is_file():
        raise UserError(
            f"the files of trial {record.number} must be in the run's folder, but {path} is missing; run on the machine that made them"
        )
    return path


def _check_files(model: Path, packed: Path, size_bytes: int) -> None:
    """Raises UserError unless the two files belong together and to the measurement."""
    import onnx

    from core.export import check_rebuilds
    from core.pack import unpack

    content = packed.read_bytes()
    if len(content) != size_bytes:
        raise UserError(f"{packed} must have the {size_bytes} bytes that were measured, but has {len(content)}; search anew with --fresh")
    with required(f"{packed} must rebuild the weights of {model.name}"):
        check_rebuilds(onnx.load(model), unpack(content))


def _check_data(data: SearchData, run: Mapping[str, Any]) -> None:
    if data.info.digest != run["data"]["digest"]:
        raise UserError(
            f"the test images must belong to the data of the search, but this data's digest is {data.info.digest}, "
            f"not {run['data']['digest']}; point --data-dir at the images of the search, unchanged"
        )


def _check_runtime(asked: str | None, runtime: str, record: TrialRecord) -> None:
    from core.runtimes import resolve_runtime

    assert record.measurement is not None
    measured = record.measurement.latency.runtime
    if asked is not None and resolve_runtime(asked) != measured:
        raise UserError(f"--runtime must be the study's ({measured}), but got {asked}; search again with --set runtime.name={asked}")
    if runtime != measured:
        raise UserError(f"this study was measured in {measured}, but runtime.name resolves to {runtime} here; install {measured}")


def _test_accuracy(
    study: optuna.Study, record: TrialRecord, config: Config, preprocessing: Preprocessing, engines: EngineHost, model: Path
) -> dict[str, Any]:
    """Accuracy of the engine on the test split: computed once per candidate and logged in the study."""
    logged: dict[str, dict[str, Any]] = study.user_attrs.get(TEST_KEY, {})
    key = str(record.fingerprint)
    if key not in logged:
        from core.data.heldout import load_test_data

        test = load_test_data(config.data, RUNS / ".cache")
        with required("an exported point must run on the test images"):
            logits, _ = engines.predict(model, preprocessing.normalise(test.images.numpy()))
        logged = {**logged, key: score(logits, test.labels.numpy())}
        study.set_user_attr(TEST_KEY, logged)
    return logged[key]


def score(logits: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """Accuracy of logits (N, K) against labels (N,), with the 95 % Wilson interval."""
    right, count = int((logits.argmax(1) == labels).sum()), len(labels)
    return {"accuracy": right / count, "images": count, "interval": wilson(right, count)}


def wilson(right: int, count: int, z: float = 1.959964) -> tuple[float, float]:
    """95 % interval of a proportion. References: Wilson 1927; Brown, Cai, DasGupta 2001."""
    share = right / count
    centre = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * (share * (1 - share) / count + z * z / (4 * count * count)) ** 0.5
    return max(0.0, centre - half), min(1.0, centre + half)


def _measurement(study: optuna.Study, record: TrialRecord, rank: int, run: Mapping[str, Any], test: Mapping[str, Any]) -> dict[str, Any]:
    assert record.measurement is not None
    return {
        "study": study.study_name,
        "trial": record.number,
        "rank": rank,
        "seed": run["seed"],
        "search": record.measurement.model_dump(mode="json"),
        "test": dict(test),
        "teacher": run["teacher"],
        "data": run["data"],
        "device": run["device"],
        "versions": run["versions"],
    }


def _readme_facts(record: TrialRecord, test: Mapping[str, Any]) -> dict[str, object]:
    assert record.measurement is not None
    measured, latency = record.measurement, record.measurement.latency
    how = f"batch {latency.batch}, {latency.threads} thread(s), {latency.runtime}"
    return {
        "student": f"{record.student} at width {record.width:g}" if record.width else str(record.student),
        "test accuracy": f"{100 * test['accuracy']:.2f} % of {test['images']} images",
        "search accuracy": f"{100 * measured.accuracy:.2f} % of {measured.images} images",
        "packed weights": f"{measured.size_bytes} bytes, {measured.mean_bits:.1f} bits a layer on average",
        "latency": f"{latency.p50_ms:.3f} ms median, {latency.p95_ms:.3f} ms p95, {how}",
    }


if __name__ == "__main__":
    raise SystemExit(run_main(main))
