"""Everything a run holds open: data, teacher, engine host, runner; and the summary it leaves."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
import torch

from core.candidate import KB, milliseconds
from core.cli import required
from core.config import Config
from core.data import load_search_data
from core.engines import EngineHost
from core.export import export_onnx, float_tensors, structure_key
from core.files import write_atomically
from core.layers import count_parameters
from core.pack import pack
from core.teacher import answered, network_digest, obtain_teacher
from core.teacher_logits import open_answers
from core.train import open_device
from core.views import viewed
from objectives.bench import Stages, Workbench
from objectives.rungs import with_rate
from results.analysis import reference_of
from results.front import Point, front
from results.record import TeacherReport, read_records
from results.table import conditions
from results.view import read_view
from search.first_trials import FirstTrials
from search.lock import StudyLock
from search.methods import check_answers, check_networks, check_teachers, finest_grid
from search.preflight import check_disk
from search.progress import Progress
from search.showcase import show_study
from search.space import Space, options
from search.stopping import Judge
from search.students import check_students
from search.study import CONTENT_KEY, NETWORK, bind, check_inputs
from search.summary import write_run_json, write_summary
from search.trial import TrialRunner

NEXT = {"report": "a web page", "explain --rank 0": "one model", "dashboard": "live", "export_best --rank 0": "files that run"}
"""Command of search/ -> what it gives."""


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

    def counters(self) -> dict[str, float]:
        """Work that is done once per study, and what this process's trials took beside their stages in this start."""
        runner = self.runner
        storage = runner.loop_seconds - runner.stage_seconds - runner.sampler_seconds
        return {
            "teacher_forward_images": self.bench.logits.forward_images,
            "sampler_seconds": round(runner.sampler_seconds, 2),
            "storage_seconds": round(max(0.0, storage), 2),
        }

    def begin(self, facts: Mapping[str, Any]) -> None:
        """Write run.json before the first trial: an export needs it also from a run that was killed."""
        write_run_json(self.bench.folder, read_records(self.study), self.teacher, facts)

    def summarise(self, facts: Mapping[str, Any]) -> None:
        """Print the front, write front.csv, front.html and run.json, and leave plots and notes for the dashboard."""
        records = read_records(self.study)
        best = front(records)
        self.progress.result(best, self.teacher)
        for line in write_summary(self.bench.folder, records, self.teacher, facts):
            self.progress.message(line)
        self.progress.message(
            f"written: {self.bench.folder / 'front.csv'}, {self.bench.folder / 'front.html'}, {self.bench.folder / 'run.json'}"
        )
        if best:
            self.progress.message(next_steps(self.bench.folder))
        show_study(self.study, read_view(self.study, self.bench.folder, self.study.user_attrs.get(CONTENT_KEY, {})))


def next_steps(folder: Path) -> str:
    """What to do with a study that has a front: the commands find the newest run, and its database where that is in its folder."""
    steps = ", ".join(f"python -m search.{command} ({what})" for command, what in NEXT.items())
    return f"next: {steps}{'' if (folder / 'study.db').is_file() else '; with the --storage of this run'}"


@contextmanager
def open_session(
    space: Space,
    config: Config,
    made_from: tuple[str, Mapping[str, Any]],
    folder: Path,
    cache: Path,
    progress: Progress,
    study: optuna.Study,
    lock: StudyLock,
) -> Iterator[Session]:
    """Load data, obtain the teacher, start the engine host; closes the host at the end. `lock` is the study's.

    `made_from`: `space_digest` of the whole run, of whose `config` a worker has its share.
    """
    check_disk(Path())
    with EngineHost(config.runtime, folder) as engines:
        with required("a search needs a teacher that trains and runs"):
            bench = open_bench(space, config, engines, folder, cache, progress, study)
            teacher = measure_teacher(bench)
        progress.teacher = teacher
        sizes = {name: count_parameters(bench.network(name, 1.0)) for name in options(space.student.name)}
        own = None if config.teacher.model else config.teacher.name
        timed = [f"{median:.3f} ms in {engines.runtime.name}" for median in milliseconds(teacher.latency)]
        speed = timed[0] if timed else conditions(teacher.latency)
        judge = "" if bench.data.info.labelled else " (its own answers: nobody labelled them)"
        progress.message(
            f"teacher {bench.teacher.name}: {100 * teacher.accuracy:.2f} % of {len(bench.data.search)} search images{judge}, "
            f"{teacher.size_bytes / KB:.1f} KB, {speed}; "
            f"ready in {bench.teacher_seconds:.0f} s"
        )
        runner = TrialRunner(
            *(space, bench, progress, read_records(study)),
            begun=lock.release,
            asked=lambda: bench.logits.forward_images,
            judge=Judge(config.stopping),
        )
        reference = reference_of(teacher, len(bench.data.info.classes))
        runner.first = _first(runner, FirstTrials(space, bench, sizes, own, progress.message), made_from, reference)
        yield Session(runner, bench, teacher, study, progress)


def _first(
    runner: TrialRunner, queued: FirstTrials, made_from: tuple[str, Mapping[str, Any]], reference: Point
) -> Callable[[optuna.Study], float]:
    """What `runner` does before it takes a trial: the first time, it binds the study to what this process has opened."""

    def first(study: optuna.Study) -> float:
        if runner.reference is None:
            runner.reference = bind(study, *made_from, runner.bench.inputs, reference)
        return queued.queue(study)

    return first


def open_bench(
    space: Space,
    config: Config,
    engines: EngineHost,
    folder: Path,
    cache: Path,
    progress: Progress,
    study: optuna.Study,
    *,
    elsewhere: bool = False,
) -> Workbench:
    """What is made once and used by every trial. Raises UserError when it is not what `study` began with.

    `elsewhere`: the device or runtime may be another one.
    """
    device = open_device(config.hardware)
    progress.stage(None, "data")
    data = load_search_data(config.data, cache)
    inputs = {"images": data.info.digest} | ({} if elsewhere else {"device or runtime": engines.fingerprint})
    inputs |= {NETWORK: network_digest(config.teacher)} if config.teacher.model else {}
    check_inputs(study, inputs)
    check_students(space, config, data.info)  # before the teacher trains
    check_networks(space, config, data.info)
    check_answers(space, config, data.info, len(data.train), cache)
    stages = Stages(lambda name: progress.stage(None, name), lambda name, *numbers: progress.epoch(None, name, *numbers))
    teachers = []
    for number, each in enumerate(config.teachers, start=1):
        with stages("teacher" if number == 1 else f"teacher {number}") as on_epoch:
            rated = with_rate(on_epoch, each.train, len(data.train))
            again = config.teachers[: number - 1].count(each)  # equal sections are trained apart: one network twice is no ensemble
            own = config.model_copy(update={"teacher": each, "seed": config.seed + again})
            teachers.append(obtain_teacher(own, data, device, cache, rated, progress.message))
    if any(each.model or each.weights for each in config.teachers):
        inputs |= {"weights or network": "+".join(teacher.digest for teacher in teachers)}
        check_inputs(study, inputs)
    for teacher in teachers[1:]:
        progress.message(f"teacher {teacher.name}: {100 * teacher.accuracy:.2f} % of {len(data.search)} search images, for its answers")
    data = answered(data, teachers[0], device)
    train_set = viewed(data.train, teachers[0].normalise, config.views, config.seed, device.device)
    check_teachers(space, config, teachers, train_set)
    logits = open_answers(teachers, config, train_set, data.info, device, cache, finest_grid(space))
    return Workbench(
        config,
        data,
        train_set,
        teachers[0],
        logits,
        device,
        engines,
        folder,
        sum(stages.seconds.values()),
        progress.message,
        space.objectives.size,
        inputs,
    )


def measure_teacher(bench: Workbench) -> TeacherReport:
    """The FP32 teacher's packed bytes and latency in the study's own runtime."""
    model = copy.deepcopy(bench.teacher.model).cpu().float()
    exported = export_onnx(model, bench.input_shape)
    path = write_atomically(bench.folder / "teacher" / "model.onnx", exported.SerializeToString())
    latency = bench.engines.latency(path, key=structure_key(exported))
    return TeacherReport(accuracy=bench.teacher.accuracy, size_bytes=len(pack(float_tensors(model))), latency=latency)
