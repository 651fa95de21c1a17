"""Everything a run holds open: data, teacher, engine host, runner; and the summary it leaves."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
import torch

from core.candidate import KB
from core.cli import required
from core.compress import check_compressible
from core.config import Config
from core.data import load_search_data
from core.engines import EngineHost
from core.export import export_onnx, float_tensors, structure_key
from core.files import write_atomically
from core.layers import count_parameters
from core.losses import REGION_LOSSES
from core.pack import pack
from core.teacher import TeacherLogits, build_teacher_network, check_regions, obtain_teacher
from core.train import open_device
from core.views import viewed
from objectives.bench import Stages, Workbench
from results.front import front
from results.record import TeacherReport, read_records
from search.baselines import enqueue_baselines
from search.preflight import check_disk
from search.progress import Progress
from search.space import SELF, Space, options
from search.study import check_inputs
from search.summary import write_run_json, write_summary
from search.trial import TrialRunner


@dataclass
class Session:
    """An open run."""

    runner: TrialRunner
    bench: Workbench
    teacher: TeacherReport
    study: optuna.Study
    progress: Progress

    def facts(self) -> dict[str, Any]:
        """What run.json says of machine and data."""
        bench = self.bench
        return {
            "runtime": bench.engines.runtime.name,
            "device": bench.engines.device,
            "fingerprint": bench.engines.fingerprint,
            "training_device": str(bench.device.device),
            "amp": str(bench.device.amp),
            "torch_threads": torch.get_num_threads(),
            "teacher_seconds": bench.teacher_seconds,
            "normalisation": {"mean": bench.teacher.normalise.mean, "std": bench.teacher.normalise.std},
            "data": {
                "name": bench.data.info.name,
                "digest": bench.data.info.digest,
                "train": len(bench.data.train),
                "search": len(bench.data.search),
            },
        }

    def counters(self) -> dict[str, int]:
        """Work that is done once per study."""
        return {"teacher_forward_images": self.bench.logits.forward_images}

    def begin(self, facts: Mapping[str, Any]) -> None:
        """Write run.json before the first trial: an export needs it also from a run that was killed."""
        write_run_json(self.bench.folder, read_records(self.study), self.teacher, facts)

    def summarise(self, facts: Mapping[str, Any]) -> None:
        """Print the front and write front.csv, front.html and run.json."""
        records = read_records(self.study)
        self.progress.result(front(records), self.teacher)
        write_summary(self.bench.folder, records, self.teacher, facts)
        self.progress.message(
            f"written: {self.bench.folder / 'front.csv'}, {self.bench.folder / 'front.html'}, {self.bench.folder / 'run.json'}"
        )


@contextmanager
def open_session(space: Space, config: Config, folder: Path, cache: Path, progress: Progress, study: optuna.Study) -> Iterator[Session]:
    """Load data, obtain the teacher, start the engine host; closes the host at the end."""
    check_disk(Path())
    with EngineHost(config.runtime, folder) as engines:
        with required("a search needs a teacher that trains and runs"):
            bench = open_bench(space, config, engines, folder, cache, progress, study)
            if looks_at_regions(space):
                check_regional_networks(space, bench)
            teacher = measure_teacher(bench)
        progress.teacher = teacher
        enqueue_baselines(study, space, {name: count_parameters(bench.network(name, 1.0)) for name in options(space.student.name)})
        progress.message(
            f"teacher {bench.teacher.name}: {100 * teacher.accuracy:.2f} % of {len(bench.data.search)} search images, "
            f"{teacher.size_bytes / KB:.1f} KB, {teacher.latency.p50_ms:.3f} ms in {engines.runtime.name}; "
            f"ready in {bench.teacher_seconds:.0f} s"
        )
        yield Session(TrialRunner(space, bench, progress, read_records(study)), bench, teacher, study, progress)


def looks_at_regions(space: Space) -> bool:
    """Whether a trial may use a loss on the regions of feature maps."""
    return any(loss in REGION_LOSSES for loss in options(space.distil.loss))


def finest_grid(space: Space) -> int:
    """The finest SDD grid that a trial may ask teacher logits for; 1 where no loss looks at regions."""
    return max(options(space.distil.grid)) if looks_at_regions(space) else 1


def check_regional_networks(space: Space, bench: Workbench) -> None:
    """Raises UserError when a loss looks at regions that the teacher or a student does not have."""
    images = bench.train_set.plain(torch.arange(min(2, len(bench.train_set)), device=bench.train_set.labels.device))
    check_regions(bench.teacher.model, images, finest_grid(space), f"the teacher {bench.teacher.name}")
    for name in options(space.student.name):
        check_regions(bench.network(name, max(options(space.student.width))), images.cpu(), 1, f"the student {name}")


def open_bench(
    space: Space, config: Config, engines: EngineHost, folder: Path, cache: Path, progress: Progress, study: optuna.Study
) -> Workbench:
    """What is made once and used by every trial. Raises UserError when it is not what `study` began with."""
    device = open_device(config.hardware)
    progress.stage(None, "data")
    data = load_search_data(config.data, cache)
    inputs = {"images": data.info.digest, "device or runtime": engines.fingerprint}
    check_inputs(study, inputs)
    if SELF in options(space.student.name):  # before the teacher trains
        check_compressible(build_teacher_network(config.teacher, data.info).eval(), data.info.shape)
    stages = Stages(lambda name: progress.stage(None, name), lambda name, *numbers: progress.epoch(None, name, *numbers))
    with stages("teacher") as on_epoch:
        teacher = obtain_teacher(config, data, device, cache, on_epoch)
    if config.teacher.model or config.teacher.weights:
        check_inputs(study, inputs | {"weights or network": teacher.digest})
    train_set = viewed(data.train, teacher.normalise, config.views, config.seed, device.device)
    logits = TeacherLogits(teacher, train_set, data.info.digest, device, cache, grid=finest_grid(space))
    return Workbench(config, data, train_set, teacher, logits, device, engines, folder, stages.seconds["teacher"])


def measure_teacher(bench: Workbench) -> TeacherReport:
    """The FP32 teacher's packed bytes and latency in the study's own runtime."""
    model = copy.deepcopy(bench.teacher.model).cpu().float()
    exported = export_onnx(model, bench.input_shape)
    path = write_atomically(bench.folder / "teacher" / "model.onnx", exported.SerializeToString())
    latency = bench.engines.latency(path, key=structure_key(exported))
    return TeacherReport(accuracy=bench.teacher.accuracy, size_bytes=len(pack(float_tensors(model))), latency=latency)
