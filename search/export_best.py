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
    import optuna

    from core.bundle import EngineFacts
    from core.candidate import Measurement
    from core.config import Config
    from core.data.types import SearchData
    from core.engines import EngineHost
    from results.record import TrialRecord

RUNS = Path("runs")


def build_parser() -> argparse.ArgumentParser:
    """The flags of search.export_best."""
    parser = Parser(
        prog="python -m search.export_best", description="Write one point of a study's Pareto front as a folder of files that run."
    )
    parser.add_argument("--study", metavar="NAME", help="folder below runs/; default: the newest run's")
    parser.add_argument("--storage", metavar="URL", help="database of the study, where it is not in the run's folder")
    parser.add_argument("--rank", type=int, metavar="R", help="0 is the most accurate point of the front (default)")
    parser.add_argument("--out", type=Path, metavar="DIR", help="default: exported/<study>[-refined]-rank<R>[-<runtime>]")
    parser.add_argument("--runtime", metavar="NAME", help="export for another runtime: on its grid, scored and timed there")
    parser.add_argument("--refined", action="store_true", help="a point of the refined front (search.refine) in place of the searched one")
    parser.add_argument("--engine", action="store_true", help="also the runtime's own files for this device: engine, timing cache")
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
        study = load_study(url, name, folder)
        record, rank = _choose(_records(study, folder, args.refined), args)
        refined, runtime = "-refined" if args.refined else "", f"-{args.runtime}" if args.runtime else ""
        out = args.out or Path("exported") / f"{name}{refined}-rank{rank}{runtime}"
        export(study, record, rank, folder, out, args)
    return 0


def newest_run(runs: Path) -> str:
    """Name of the run that began or ended last. Raises UserError when there is none."""
    # study.db would not do: an export writes to it too
    found = list(runs.glob("*/run.json"))
    if not found:
        raise UserError(f"there is no run in {runs}/; run search.run first, or name a --study and its --storage")
    return max(found, key=lambda path: path.stat().st_mtime).parent.name


def _records(study: optuna.Study, folder: Path, refined: bool) -> list[TrialRecord]:
    """Of the search, or of its refinement."""
    from results.record import read_records
    from results.refined import read_refined

    return list(read_refined(folder).records) if refined else read_records(study)


def _choose(records: list[TrialRecord], args: argparse.Namespace) -> tuple[TrialRecord, int]:
    """The point asked for and its rank."""
    from results.front import at_rank, front, select

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
    from results.record import candidate_file
    from search.elsewhere import runtime_of
    from search.final_score import heldout_accuracy
    from search.reexport import reexport
    from search.study import INPUTS_KEY, NETWORK

    check_replaceable(out.resolve())
    config = config_of(study, args)
    run = run_facts(folder)
    model, packed = (candidate_file(folder, record, name) for name in ("model.onnx", "weights.pack"))
    assert record.measurement is not None
    assert record.candidate is not None
    _check_files(model, packed, record)
    data = load_search_data(config.data, RUNS / ".cache")
    _check_data(data, run)
    network = study.user_attrs.get(INPUTS_KEY, {}).get(NETWORK)
    preprocessing = Preprocessing(image_size=data.info.image_size, channels=1 if data.info.channels == 1 else 3, **run["normalisation"])
    with EngineHost(runtime_of(config.runtime, args.runtime, record, refined=args.refined), folder) as engines:
        _check_engine(engines, asked=args.engine)
        exported, variant = record, variant_of(record)
        if engines.runtime.name != record.measurement.latency.runtime:
            place = folder / "reexported" / f"{Path(str(record.path)).name}-{engines.runtime.name}"
            measured = reexport(record, config, data, preprocessing, engines, packed, place, network)
            exported, variant = record.model_copy(update={"measurement": measured}), f"{variant}@{engines.runtime.name}"
            model, packed = place / "model.onnx", place / "weights.pack"
        if engines.config.precision != config.runtime.precision:
            variant += f":{engines.config.precision}"  # float layers answer otherwise in another one
        test = heldout_accuracy(study, exported, config, preprocessing, engines, model, variant)
        device = {"device": engines.device, "fingerprint": engines.fingerprint}
        facts = run | device | _twins(exported, config, data, engines, model, network) | _calibration(config, data)
        measurement = _measurement(study, exported, rank, facts, test)
        engine, files = _engine_files(engines, model, asked=args.engine)
        write_bundle(
            out,
            onnx=model.read_bytes(),
            packed=packed.read_bytes(),
            candidate=record.candidate,
            measurement=measurement,
            labels=data.info.classes,
            preprocessing=preprocessing,
            runtime=engines.runtime.name,
            precision=engines.config.precision,
            readme_facts=_readme_facts(exported, measurement),
            engine=engine,
            engine_files=files,
        )
    _tell(record, exported, rank, measurement, out)


def variant_of(record: TrialRecord) -> str:
    """What tells a refined model from the searched one of the same candidate; empty for the latter."""
    return Path(str(record.path)).name.removeprefix(str(record.fingerprint))


def _tell(record: TrialRecord, exported: TrialRecord, rank: int, measurement: Mapping[str, Any], out: Path) -> None:
    """What was exported, how the other runtime changed it, and the float twins."""
    from core.bundle_card import judge, twin_lines
    from search.final_score import optimism

    assert exported.measurement is not None
    test, measured = measurement["test"], exported.measurement
    low, high = (100 * bound for bound in test["interval"])
    print(
        f"rank {rank} (trial {record.number}): test {judge(measured.judged_by)} {100 * test['accuracy']:.2f} % of {test['images']} images "
        f"(95 % interval {low:.2f} to {high:.2f}), search {judge(measured.judged_by)} {100 * measured.accuracy:.2f} %, "
        f"{measured.size_bytes / 1000:.1f} KB, {_speed(measured)}"
    )
    if note := optimism(measured.accuracy, test):
        print(note)
    if exported is not record and record.measurement is not None:
        old, new = record.measurement, exported.measurement
        print(
            f"from {old.latency.runtime} to {new.latency.runtime}: search {100 * old.accuracy:.2f} to {100 * new.accuracy:.2f} %, "
            f"{old.size_bytes / 1000:.1f} to {new.size_bytes / 1000:.1f} KB, {_speed(old)} to {_speed(new)}"
        )
    for line in twin_lines(measurement["twins"]):
        print(line)
    print(f"written: {out}")


def _twins(record: TrialRecord, config: Config, data: SearchData, engines: EngineHost, model: Path, network: str | None) -> dict[str, Any]:
    """`twins`; empty where the network cannot be rebuilt, since the bundle itself needs no rebuilding."""
    from search.reexport import time_twins

    try:
        return {"twins": time_twins(record, config, data, engines, model, network)}
    except UserError as error:
        print(f"no float twin was timed: {error}")
        return {"twins": []}


def _check_engine(engines: EngineHost, *, asked: bool) -> None:
    """UserError where --engine is `asked` for and there are no files to write: before the test split is opened."""
    if not asked or engines.config.build_for:
        return
    if engines.config.agent is not None or engines.runtime.files is None:
        where = f"{engines.runtime.name} has none" if engines.config.agent is None else "it runs at an agent, whose files stay there"
        raise UserError(f"--engine writes the runtime's own files, but {where}; leave it out")


def _engine_files(engines: EngineHost, model: Path, *, asked: bool) -> tuple[EngineFacts | None, dict[str, bytes]]:
    """The engine and what was learnt to build it, where they are asked for; always where engines are only built: they are the result."""
    from core.bundle import EngineFacts

    targets = engines.config.build_for
    if not asked and not targets:
        return None, {}
    with required("a point must build to be exported with --engine"):
        files = engines.files(model)
    device = engines.device
    facts = {
        "files": tuple(files),
        "runtime": engines.runtime.name,
        "version": str(engines.runtime.version),
        "device": ", ".join(targets) or str(device.get("gpu") or device["cpu"]),
        "batch": engines.config.batch,
    }
    return EngineFacts.model_validate(facts), files


def _calibration(config: Config, data: SearchData) -> dict[str, Any]:
    """Positions in the training split of the images that chose the activation scales."""
    from core.compress import calibration_indices

    return {"calibration": calibration_indices(len(data.train), config.quantise.calibration_images).tolist()}


def config_of(study: optuna.Study, args: argparse.Namespace, *, needs_images: bool = True) -> Config:
    """The configuration that the study was made with."""
    from core.config import Config
    from core.data import DATASETS
    from core.yaml_io import parse
    from search.study import CONTENT_KEY

    if CONTENT_KEY not in study.user_attrs:
        raise UserError(f"the study {study.study_name!r} was not made by this program; name another --study")
    content = dict(study.user_attrs[CONTENT_KEY]["config"])
    images = str(args.data_dir) if args.data_dir is not None else content["data"]["dir"]
    if needs_images and images is not None and not Path(images).exists():
        raise UserError(
            f"an export scores the point on the search's own test images, but there is no folder {images}; name it with --data-dir"
        )
    config = parse(Config, {**content, "data": {**content["data"], "dir": images}}, f"the study {study.study_name!r}")
    if config.data.name not in DATASETS:
        raise UserError(f"the data set {config.data.name!r} is not one of this program's; name the file that registers it with --plugin")
    return config


def run_facts(folder: Path) -> dict[str, Any]:
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


def _check_files(model: Path, packed: Path, record: TrialRecord) -> None:
    """Raises UserError unless the two files belong together and to the measurement."""
    from core.export import check_rebuilds
    from core.onnx_layers import read_model
    from core.pack import unpack
    from results.record import file_digests

    assert record.measurement is not None
    content, size_bytes, now = packed.read_bytes(), record.measurement.size_bytes, file_digests(packed.parent)
    if len(content) != size_bytes:
        raise UserError(f"{packed} must have the {size_bytes} bytes that were measured, but has {len(content)}; search anew with --fresh")
    for path in (packed, model):
        if (known := record.files.get(path.name, now[path.name])) != now[path.name]:
            law = f"{path} must be the file that was measured, with the digest {known}, but has {now[path.name]}"
            raise UserError(f"{law}; restore it from a copy, or search anew with --fresh")
    with required(f"{packed} must rebuild the weights of {model.name}"):
        check_rebuilds(read_model(model), unpack(content))


def _check_data(data: SearchData, run: Mapping[str, Any]) -> None:
    if data.info.digest != run["data"]["digest"]:
        raise UserError(
            f"the test images must belong to the data of the search, but this data's digest is {data.info.digest}, "
            f"not {run['data']['digest']}; point --data-dir at the images of the search, unchanged"
        )


def _measurement(study: optuna.Study, record: TrialRecord, rank: int, run: Mapping[str, Any], test: Mapping[str, Any]) -> dict[str, Any]:
    """measurement.json: `search` as measured by the search (or the re-export), `latency` timed anew beside the `twins`."""
    assert record.measurement is not None
    own = {"latency": run["twins"][0]["latency"]} if run["twins"] else {}
    return {
        "study": study.study_name,
        "trial": record.number,
        "rank": rank,
        "candidate_fingerprint": record.fingerprint,
        "search": record.measurement.model_dump(mode="json"),
        "test": dict(test),
        **own,
        **{key: run[key] for key in ("seed", "teacher", "data", "device", "fingerprint", "versions", "twins", "calibration")},
    }


def _speed(measured: Measurement) -> str:
    from core.candidate import BuildReport

    latency = measured.latency
    return f"not timed ({', '.join(latency.compute_capability)})" if isinstance(latency, BuildReport) else f"{latency.p50_ms:.3f} ms"


def _readme_facts(record: TrialRecord, measurement: Mapping[str, Any]) -> dict[str, object]:
    from core.bundle_card import elsewhere, judge, twin_lines

    assert record.measurement is not None
    measured, test = record.measurement, measurement["test"]
    latency = measurement.get("latency", measurement["search"]["latency"])
    speed = _speed(measured)
    if "p50_ms" in latency:
        how = f"batch {latency['batch']}, {latency['threads']} thread(s), {latency['runtime']}{elsewhere(latency, measurement)}"
        speed = f"{latency['p50_ms']:.3f} ms median, {latency['p95_ms']:.3f} ms p95, {how}"
    return {
        "student": f"{record.student} at width {record.width:g}" if record.width else str(record.student),
        f"test {judge(measured.judged_by)}": f"{100 * test['accuracy']:.2f} % of {test['images']} images",
        f"search {judge(measured.judged_by)}": f"{100 * measured.accuracy:.2f} % of {measured.images} images",
        "packed weights": f"{measured.size_bytes} bytes, {measured.mean_bits:.1f} bits a layer on average",
        "latency": speed,
        **{name: text for name, _, text in (line.partition(": ") for line in twin_lines(measurement["twins"]))},
    }


if __name__ == "__main__":
    raise SystemExit(run_main(main))
