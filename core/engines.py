"""Engines from the outside: a host that has a child process build, time and run them, under a time limit.

    python -m core.engines build MODEL.onnx --runtime tensorrt_rtx --sm 89     an engine for a GPU that need not be here

A crash or a hang of a native library costs one request: the child is replaced and EngineBuildError says why.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from filelock import FileLock

from core.agent_client import AgentConnection
from core.candidate import KB, BuildReport, EngineArtifact, LatencyReport
from core.cli import Parser, required, run_main
from core.config import RuntimeConfig
from core.engine_process import Child, ChildLost
from core.errors import DiskRefused, EngineBuildError, MeasurementError, UserError, one_line
from core.files import is_held, read_json, write_json, writing
from core.hardware import check_threads, device_fingerprint
from core.latency import longest_s
from core.measuring import measuring
from core.runtimes import building_runtime, check_precision, compute_capability, installed_runtime, on_grid, running_runtime

HOST_PREFIX, ALIVE = "engines-", "alive.lock"
"""The folder of a host below its `work_dir`, and the file in it that a living host holds."""
QUIET_KEY = "quiet_ms"
"""Entry of the latency cache: fingerprint and precision -> the reference network's quiet times in the latest stable measurements."""
REMEMBERED = 9
SCORER = "onnxruntime"
"""Runs the models whose engines are only built: it computes on every grid of activations, as in `verify.py` of a bundle."""


@dataclass(frozen=True)
class EngineFile:
    """A serialised engine, what the builder made of the model and what it warned of."""

    path: Path
    size_bytes: int
    artifact: EngineArtifact
    warnings: tuple[str, ...]


class EngineHost:
    """One runtime on this machine, behind one long-lived child that starts with the first request; with `runtime.agent` on another one.

    `work_dir` holds the latency cache, what a GPU runtime learns of its device and, while the host is open, images on their way to
    the child. With `runtime.build_for` (compute capabilities) it builds engines for them and times none; SCORER answers in their place.
    The child ends with the thread that made the first request: keep a host within one thread.
    """

    def __init__(self, runtime: RuntimeConfig, work_dir: Path) -> None:
        """UserError for an unknown runtime, a precision it lacks or more threads than cores, MissingRuntime for one that is not installed
        or has no GPU, DiskRefused where `work_dir` may not be written.
        """
        self.config = runtime
        self._agent = None if runtime.agent is None else AgentConnection(runtime)
        if runtime.build_for:
            self.runtime, self._scorer = building_runtime(runtime.name, runtime.build_for), installed_runtime(SCORER).name
        elif self._agent is not None:
            self.runtime = self._agent.runtime
        else:
            self.runtime = running_runtime(runtime.name)
        check_precision(self.runtime, runtime.precision)
        if runtime.activation_grid != "auto":
            self.runtime = on_grid(self.runtime, runtime.activation_grid)
        on_gpu = self.runtime.device == "cuda" and not runtime.build_for
        if self._agent is not None:
            self.device, self.fingerprint = self._agent.device, self._agent.fingerprint
        else:
            check_threads(runtime.threads)
            self.device, self.fingerprint = device_fingerprint(runtime.threads, self.runtime.name, str(self.runtime.version), on_gpu=on_gpu)
        self._cache = work_dir / "latency.json"
        with writing(work_dir):
            work_dir.mkdir(parents=True, exist_ok=True)
            self._engine_cache = str(work_dir.resolve() / "engine-cache") if on_gpu else None
            self._folder = tempfile.TemporaryDirectory(dir=work_dir, prefix=HOST_PREFIX)
            self._alive = FileLock(Path(self._folder.name, ALIVE))  # free when this process dies, however it does
            self._alive.acquire()
        self._child: Child | None = None
        self._closed = False

    def __enter__(self) -> EngineHost:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """End the child and remove what was on its way to it, also while another thread asks or waits: that one gets EngineBuildError
        or MeasurementError. A closed host may not be used again."""
        self._closed = True
        self._replace_child()
        self._alive.release()
        self._folder.cleanup()

    @property
    def scratch(self) -> Path:
        """A folder of this host alone, also where several machines share `work_dir`; gone when the host is closed."""
        return Path(self._folder.name)

    def latency(self, model: Path, key: str | None = None) -> LatencyReport | BuildReport:
        """Time one call of `batch` images of the ONNX file `model`, alone on this machine; a host that only builds says what it built.

        A `key` names the model's structure: the same key on the same device, with the same options, is measured once
        per `work_dir`. EngineBuildError when the engine cannot be built or run, MeasurementError when another measurement holds
        the machine for longer than `runtime.wait_s`.
        """
        config = self.config
        if config.build_for:
            return self.build_report(model, Path(self._folder.name, "model.engine"))
        entry = f"{key} {self.fingerprint} batch={config.batch} precision={config.precision}"
        with self._alone():
            cached = read_json(self._cache) if key is not None else {}
            if entry in cached:
                return LatencyReport.model_validate(cached[entry])
            report, _ = self._time(model)
            if key is not None:
                write_json(self._cache, read_json(self._cache) | {entry: report.model_dump(mode="json")})
        return report

    def time_model(self, model: Path) -> tuple[LatencyReport, EngineArtifact]:
        """Time the ONNX file `model` now, and say what really ran. Errors as `latency`, and UserError where engines are only built."""
        if self.config.build_for:
            targets = ", ".join(self.config.build_for)
            raise UserError(
                f"an engine is timed where it runs, but runtime.build_for ({targets}) only builds; name a runtime that runs here"
            )
        with self._alone():
            return self._time(model)

    def predict(self, model: Path, images: np.ndarray, batch: int = 64) -> tuple[np.ndarray, EngineArtifact]:
        """Logits (N, K) of float32 images (N, C, H, W), N >= 1, from the engine at the same precision as it is timed.

        EngineBuildError when the engine cannot be built or run, MeasurementError when a logit is not finite. The time
        limit is that of the configuration for every 1000 images.
        """
        assert images.dtype == np.float32, images.dtype
        assert images.ndim == 4, images.shape
        assert len(images) > 0, images.shape
        limit_s = self.config.timeout_s * max(1.0, len(images) / 1000)
        if self._agent is not None:
            logits, artifact = self._agent.predict(model, images, min(batch, len(images)), limit_s)
        else:
            logits, artifact = self._predict_here(model, images, min(batch, len(images)), limit_s)
        finite = np.isfinite(logits).all(axis=1)
        if not finite.all():
            raise MeasurementError(
                f"an engine's logits must be finite, but those of {model} are not for {int((~finite).sum())} of {len(finite)} images"
            )
        return logits, artifact

    def build(self, model: Path, targets: Sequence[str], out: Path) -> EngineFile:
        """Build one engine of the ONNX file `model` for compute capabilities such as "SM89" into `out`, or raise EngineBuildError."""
        config = self.config
        answer = self._ask("build", model, config.batch, config.timeout_s, compute_capability=list(targets), out=str(out.resolve()))
        return EngineFile(out, answer["size_bytes"], self._artifact(model, answer), tuple(answer["warnings"]))

    def build_report(self, model: Path, out: Path) -> BuildReport:
        """Build the engine for all of `runtime.build_for` into `out`, and what there is to say of one that cannot run here."""
        config, built = self.config, self.build(model, self.config.build_for, out)
        return BuildReport(
            **built.artifact.model_dump(exclude={"model_path"}),
            compute_capability=config.build_for,
            engine_bytes=built.size_bytes,
            scored_in=self._scorer,
            batch=config.batch,
            threads=config.threads,
            fingerprint=self.fingerprint,
        )

    def files(self, model: Path) -> dict[str, bytes]:
        """The runtime's own files of the ONNX file `model` for this device, or for `runtime.build_for`: name -> content (ENGINE_FILES).

        Empty where it has none, and with an agent: they belong to its device. EngineBuildError when the engine cannot be built.
        """
        if self._agent is not None:
            return {}
        with tempfile.TemporaryDirectory(dir=self._folder.name) as out:
            if self.config.build_for:
                self.build(model, self.config.build_for, Path(out, "model.engine"))
            else:
                self._ask("files", model, self.config.batch, self.config.timeout_s, out=out)
            return {path.name: path.read_bytes() for path in sorted(Path(out).iterdir())}

    @property
    def times_layers(self) -> bool:
        """Whether `layer_times` has an answer."""
        return self._agent is None and not self.config.build_for and self.runtime.layer_times is not None

    def layer_times(self, model: Path) -> dict[str, float]:
        """Node of the ONNX file -> milliseconds, timed now and alone; empty where the runtime does not say. Errors as `latency`."""
        if not self.times_layers:
            return {}
        with self._alone():
            return dict(self._ask("layer_times", model, self.config.batch, self.config.timeout_s)["nodes"])

    def _alone(self) -> AbstractContextManager[None]:
        """Nobody else measures on this machine; an agent's machine sees to itself."""
        return nullcontext() if self._agent is not None else measuring(self.config.wait_s, lambda: self._closed)

    def _time(self, model: Path) -> tuple[LatencyReport, EngineArtifact]:
        """Measured, and a second time where something else was busy; what wavers again is kept, and marked."""
        if self._agent is not None:
            return self._agent.time_model(model)
        measured = self._measure(model)
        return measured if measured[0].stable else self._measure(model)

    def _predict_here(self, model: Path, images: np.ndarray, batch: int, limit_s: float) -> tuple[np.ndarray, EngineArtifact]:
        """Through the child, images and logits as files: pipes would copy them as text."""
        source, target = Path(self._folder.name, "images.npy"), Path(self._folder.name, "logits.npy")
        stand_in = {"runtime": self._scorer, "precision": "f32"} if self.config.build_for else {}
        with self._open_for(model):
            with writing(source):
                np.save(source, images)
            answer = self._ask("predict", model, batch, limit_s, images=str(source), out=str(target), **stand_in)
            return np.load(target, allow_pickle=False), self._artifact(model, answer)

    def _measure(self, model: Path) -> tuple[LatencyReport, EngineArtifact]:
        """A latency as the child measured it, beside the pinned reference network."""
        config = self.config
        device = f"{self.fingerprint} precision={config.precision}"
        known = read_json(self._cache).get(QUIET_KEY, {})
        levels = known.get(device, [])
        timing = {"warmup_s": config.warmup_s, "max_s": config.max_s, "quiet_ms": statistics.median(levels) if levels else None}
        limit_s = config.timeout_s + longest_s(config.warmup_s, config.max_s)
        with self._open_for(model):
            answer = self._ask("latency", model, config.batch, limit_s, timing=timing, reference=str(self._reference()))
        artifact = self._artifact(model, answer)
        report = LatencyReport(
            **answer["timing"],
            **answer["conditions"],
            batch=config.batch,
            threads=config.threads,
            runtime=self.runtime.name,
            precision=artifact.precision,
            fingerprint=self.fingerprint,
        )
        if report.stable:
            levels = [*levels, answer["own_quiet_ms"]][-REMEMBERED:]  # its own: the smaller of two could only fall, from one to the next
            write_json(self._cache, read_json(self._cache) | {QUIET_KEY: {**known, device: levels}})
        return report, artifact

    def _reference(self) -> Path:
        """The file of the reference network."""
        path = Path(self._folder.name, "reference.onnx")
        if not path.exists():
            from core.reference import write_reference  # late: onnx, which nothing else here needs

            write_reference(path)
        return path

    def _artifact(self, model: Path, answer: dict[str, Any]) -> EngineArtifact:
        return EngineArtifact(runtime=answer["runtime"], model_path=str(model), **answer["artifact"])

    def _ask(
        self, op: str, model: Path, batch: int, limit_s: float, *, runtime: str | None = None, precision: str | None = None, **more: Any
    ) -> dict[str, Any]:
        """The child's answer about one engine within `limit_s`, with the `runtime` that gave it, or the exception it stands for."""
        config, name = self.config, runtime or self.runtime.name
        options = {"batch": batch, "threads": config.threads, "precision": precision or config.precision, "cache": self._engine_cache}
        request = {"op": op, "model": str(Path(model).resolve()), "runtime": name, "options": options, **more}
        try:
            with self._open_for(model):
                answer = self._living_child().ask(request, limit_s)
        except ChildLost as error:
            self._replace_child()
            raise EngineBuildError(f"{name} {error} ({op} of {model}, limit {limit_s:g} s)") from error
        except BaseException:  # Ctrl-C in between: the answer that comes later would be taken for that of the next request
            self._replace_child()
            raise
        if "ok" in answer:
            return {**answer["ok"], "runtime": name}
        if answer["error"] == "disk":
            raise DiskRefused(answer["message"])
        if answer["error"] == "user":
            raise UserError(answer["message"])
        raise EngineBuildError(f"{name} cannot build or run {model}: {one_line(answer['message'])}")

    @contextmanager
    def _open_for(self, model: Path) -> Iterator[None]:
        """Within it the host must stay open: whatever breaks because another thread closes its pipes and files is EngineBuildError."""
        law = f"an engine host must be open to load {model}, but it was closed meanwhile; ask another"
        if self._closed:
            raise EngineBuildError(law)
        try:
            yield
        except (ValueError, OSError, DiskRefused) as error:
            if not self._closed:
                raise
            raise EngineBuildError(law) from error

    def _living_child(self) -> Child:
        """The child, or a new one where it has ended."""
        child = self._child
        if child is None or not child.alive():
            self._replace_child()
            self._child = child = Child(Path(self._folder.name))
            if self._closed:  # `close` has not seen this one
                self._replace_child()
        return child

    def _replace_child(self) -> None:
        """Kill the child, if any; the next request starts another."""
        child, self._child = self._child, None
        if child is not None:
            child.kill()


def living_hosts(work_dir: Path) -> list[Path]:
    """Folders of hosts that are open: somebody works in `work_dir`, in a trial or before his first."""
    return [folder for folder in sorted(work_dir.glob(f"{HOST_PREFIX}*")) if is_held(folder / ALIVE)]


def main(argv: list[str]) -> int:
    """Build engines of an ONNX file for GPUs that need not be here, one file each."""
    parser = Parser(prog="python -m core.engines", description=main.__doc__)
    build = parser.add_subparsers(dest="command", required=True).add_parser("build", help="build engines", description=main.__doc__)
    build.add_argument("model", type=Path, metavar="MODEL.onnx", help="as a run or an export writes it for this runtime")
    build.add_argument("--runtime", default="tensorrt_rtx", metavar="NAME", help="default %(default)s")
    build.add_argument("--sm", action="append", required=True, metavar="N", help="compute capability without its point: 89; repeat it")
    build.add_argument("--precision", default="f32", choices=("f32", "f16", "bf16"), help="of float layers (default %(default)s)")
    build.add_argument("--batch", type=int, default=1, metavar="N", help="images per call (default %(default)s)")
    build.add_argument("--out", type=Path, metavar="FOLDER", help="default: beside the model")
    build.add_argument("--timeout-s", type=float, default=RuntimeConfig().timeout_s, metavar="S", help="default %(default)s")
    args = parser.parse_args(argv)
    if not args.model.is_file():
        raise UserError(f"MODEL must be an ONNX file, but there is no {args.model}; name one")
    if args.batch < 1 or not 0 < args.timeout_s < float("inf"):
        got = f"{args.batch} and {args.timeout_s:g}"
        raise UserError(f"--batch must be at least 1 and --timeout-s a number above 0, but got {got}; correct them")
    targets = tuple(map(compute_capability, args.sm))
    plain = RuntimeConfig(name=args.runtime, batch=args.batch, precision=args.precision, timeout_s=args.timeout_s)
    config = plain.model_copy(update={"build_for": targets})
    folder = args.out or args.model.parent
    with required("the model must become an engine"), tempfile.TemporaryDirectory() as work, EngineHost(config, Path(work)) as host:
        for target in targets:
            _describe(host.build(args.model, (target,), folder / f"{args.model.stem}.{target}.engine"))
    return 0


def _describe(built: EngineFile) -> None:
    """A line per engine, and its warnings: a layer that was meant for INT8 can fall back to float without an error."""
    artifact = built.artifact
    count = "layers unknown" if artifact.layers is None else f"{artifact.int8_layers} of {artifact.layers} layers in INT8"
    print(f"{built.path}: {built.size_bytes / KB:.1f} KB, {count}, the others in {artifact.precision}")
    for warning in dict.fromkeys(built.warnings):
        print(f"  warning: {warning}")


if __name__ == "__main__":
    raise SystemExit(run_main(main))
