"""The report's words and tables: plain cells that the web page and the Markdown file both print."""

from __future__ import annotations

import math
import shlex
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

from core.candidate import KB, BuildReport, LatencyReport, milliseconds
from results.choices import mean_ratio
from results.front import Point, objectives
from results.given_up import last_accuracy
from results.record import TrialRecord
from results.table import (
    HEADINGS,
    cells,
    conditions,
    duration,
    mean_bits,
    measurement,
    student_name,
    teacher_cells,
    times_faster,
    times_smaller,
)
from results.view import StudyView


class Table(NamedTuple):
    """Headings and rows of text, all of one length."""

    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


GLOSSARY = {
    "student": "the network that is made small; its width is a factor on the number of channels",
    "engine": "a network as a runtime has built it for this device: what was timed and scored",
    "teacher": "the large FP32 network that students learn from, and that they are compared with",
    "parent": "the dense network of a student, trained once; trials cut their channels and weights out of it",
    "front": "the models that no other model beats in all of accuracy, size and latency; every one is the best at some trade-off",
    "rank": "place on the front by accuracy; 0 is the most accurate",
    "dominated": "measured, but another model is at least as good in everything and better in something",
    "hypervolume": "one number for a whole front: what it dominates. It grows as the search finds better models",
    "pruned trial": "one that was given up, in one of the four ways below; not to be confused with pruned channels",
    "skipped": "given up before training: a model of the front is as small and as fast, and almost surely more accurate",
    "stopped": "given up by a look before its first epoch or in the first half of its training: it could no longer join the front",
    "limit": "given up because it exceeded, or surely missed, a limit that the search was given",
    "reused": "the same network as an earlier trial, whose result it took over",
    "pruned channels": "channels removed from the network's layers, as a mean share over the depth",
    "mean bits": "bits that a stored weight takes, as a mean over the layers; fewer bits make the file smaller, not faster",
    "INT8, float, FP32": "how a layer computes: in integers of 8 bits, or in floats (of 32 bits); this decides the latency",
    "MMACs": "millions of multiplications for one image",
    "epoch": "one pass over the training images",
    "seed": "the number that all chance follows from: the same seed gives the same search again, but for latencies",
    "agreement": "share of images on which the engine and PyTorch give the same answer",
    "interval": "the range that holds the true value with 95 % confidence",
}
TAUGHT = "share of images on which a model and the teacher name the same class"


def glossary(view: StudyView) -> Table:
    """The report's words."""
    rank = f"{GLOSSARY['rank']}. `{command(view, 'export_best')} --rank R` writes that model"
    told = GLOSSARY | {"rank": rank} | ({} if view.quality == "accuracy" else {"agreement": TAUGHT})
    return Table(("word", "meaning"), tuple(told.items()))


def command(view: StudyView, name: str) -> str:
    """How a user calls `search.<name>` on this study."""
    return f"python -m search.{name} --study {shlex.quote(view.name)}"


def opening(view: StudyView) -> str:
    """What this study is, and what it found, for a reader who has never seen one."""
    states = Counter(record.state for record in view.records)
    text = (
        "This study searched for small, fast versions of an image classifier. Each trial built one version: it chose a network, removed "
        "channels, trained it to imitate a large teacher, stored its weights in few bits, and measured the result as it would run. "
        f"Of {len(view.records)} finished trials {states['COMPLETE']} are complete, {states['PRUNED']} were pruned and {states['FAIL']} "
        f"failed. {len(view.front)} {'model is' if len(view.front) == 1 else 'models are'} on the front."
    )
    judge = (
        " Nobody labelled the images: what is called accuracy here is the agreement with the teacher, the share of images on which a model "
        "and the teacher name the same class."
    )
    return text + ("" if view.quality == "accuracy" else judge)


def highlights(view: StudyView) -> list[tuple[str, str, str]]:
    """(what, value, explanation) of the study's best numbers."""
    if not view.front:
        return []
    best, smallest, *fastest = view.front[0], *(min(view.front, key=lambda record: objectives(record)[axis]) for axis in _costs(view))
    small = times_smaller(smallest, view.teacher)
    labelled = view.quality == "accuracy"
    reference = f"teacher {100 * view.teacher.accuracy:.2f} %" if view.teacher and labelled else student_name(best)
    return [
        ("most accurate" if labelled else "nearest to the teacher", f"{100 * measurement(best).accuracy:.2f} %", reference),
        ("smallest", f"{measurement(smallest).size_bytes / KB:.1f} KB", _comparison(small, "smaller", smallest)),
        *(
            ("fastest", f"{median_ms:.3f} ms", _comparison(times_faster(record, view.teacher), "faster", record))
            for record in fastest
            for median_ms in milliseconds(measurement(record).latency)
        ),
    ]


def _costs(view: StudyView) -> range:
    """Axes of `objectives` that are to be small."""
    return range(1, len(objectives(view.front[0])))


def _comparison(times: float | None, word: str, record: TrialRecord) -> str:
    accuracy = f"at {100 * measurement(record).accuracy:.2f} %"
    return accuracy if times is None else f"{times:.1f} x {word} than the teacher, {accuracy}"


def chosen(view: StudyView, reference: Point | None) -> Table:
    """Teacher beside the points of the front that stand out: most accurate, balanced, smallest, fastest."""
    from results.analysis import logarithmic

    picks: dict[int, list[str]] = {}
    picks.setdefault(0, []).append("most accurate")
    if reference is not None:
        gains = [[r - v for r, v in zip(reference, logarithmic(objectives(record)), strict=True)] for record in view.front]
        volumes = [math.prod(gain) if min(gain) > 0 else 0.0 for gain in gains]
        if max(volumes) > 0:
            picks.setdefault(volumes.index(max(volumes)), []).append("balanced")
    for axis, name in zip(_costs(view), ("smallest", "fastest"), strict=False):
        picks.setdefault(min(range(len(view.front)), key=lambda rank: objectives(view.front[rank])[axis]), []).append(name)
    rows = [_chosen_row(view, ", ".join(names), rank) for rank, names in picks.items()]
    if view.teacher is not None:
        report = view.teacher
        faster = "1.0" if milliseconds(report.latency) else "-"
        numbers = (f"{100 * report.accuracy:.2f}", "-", f"{report.size_bytes / KB:.1f}", "1.0", _interval(report.latency), faster)
        rows.insert(0, ("teacher, FP32", "-", "teacher", *numbers, "32.0", "0"))
    return Table(_headings(view, CHOSEN), tuple(rows))


def _headings(view: StudyView, usual: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(heading.replace("accuracy", view.quality) for heading in usual)


CHOSEN = ("model", "rank", "student (width)", "accuracy %", "test %", "KB", "x smaller", "ms (interval)", "x faster", "bits", "pruned %")


def _chosen_row(view: StudyView, name: str, rank: int) -> tuple[str, ...]:
    record = view.front[rank]
    measured, test = measurement(record), view.tests.get(str(record.fingerprint))
    smaller, faster = times_smaller(record, view.teacher), times_faster(record, view.teacher)
    return (
        name,
        str(rank),
        student_name(record),
        f"{100 * measured.accuracy:.2f}",
        "-" if test is None else f"{100 * test['accuracy']:.2f}",
        f"{measured.size_bytes / KB:.1f}",
        "-" if smaller is None else f"{smaller:.1f}",
        _interval(measured.latency),
        "-" if faster is None else f"{faster:.1f}",
        f"{mean_bits(record):.1f}",
        "-" if record.candidate is None else f"{100 * mean_ratio(record.candidate):.0f}",
    )


def _interval(latency: LatencyReport | BuildReport) -> str:
    if isinstance(latency, BuildReport):
        return "-"
    return f"{latency.p50_ms:.3f}{'' if latency.stable else '*'} ({latency.ci_ms[0]:.3f} to {latency.ci_ms[1]:.3f})"


def whole_front(view: StudyView) -> Table:
    """Every rank, and the teacher below."""
    last = (teacher_cells(view.teacher),) if view.teacher is not None else ()
    return Table(_headings(view, HEADINGS), (*(cells(rank, record, view.teacher) for rank, record in enumerate(view.front)), *last))


def unfinished(records: Sequence[TrialRecord]) -> Table:
    """Pruned and failed trials: what was known of them, and why they ended."""
    words = {"PRUNED": "pruned", "FAIL": "failed"}
    rows = [
        (
            str(record.number),
            record.ending or words[record.state],
            "-" if record.size_bytes is None else f"{record.size_bytes / KB:.1f}",
            "-" if record.latency_ms is None else f"{record.latency_ms:.3f}",
            "-" if (seen := last_accuracy(record)) is None else f"{100 * seen:.1f}",
            record.reason or "no reason given",
        )
        for record in records
        if record.state in words
    ]
    return Table(("trial", "ended", "KB", "ms", "last seen %", "why"), tuple(rows))


def device(view: StudyView) -> Table:
    """What the numbers were measured on; no rows where run.json does not say."""
    run, facts = view.run, view.run.get("device", {})
    began = run["starts"][0]["started"] if run.get("starts") else run.get("started")
    data, versions = run.get("data", {}), run.get("versions", {})
    isa = ", ".join(facts.get("isa", ())) or "none of those that matter"
    rows = [
        ("processor", f"{facts['cpu']}, {facts.get('cores')} cores ({isa})" if "cpu" in facts else ""),
        (
            "engine",
            f"{facts['runtime']} {facts.get('runtime_version', '')}, {_threads(facts.get('threads'))}" if "runtime" in facts else "",
        ),
        ("device fingerprint", str(run.get("fingerprint", ""))),
        (
            "training",
            f"{run['training_device']}, {run.get('amp')}, {_threads(run.get('torch_threads'))}" if "training_device" in run else "",
        ),
        ("data", f"{data['name']}: {data['train']} training and {data['search']} search images" if "name" in data else ""),
        ("seed", str(run.get("seed", ""))),
        ("command", "python -m search.run " + shlex.join(map(str, run["command"])) if "command" in run else ""),
        ("begun", time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(began)) if began is not None else ""),
        ("took", duration(run["wall_seconds"]) if "wall_seconds" in run else ""),
        ("versions", ", ".join(f"{name} {version}" for name, version in versions.items() if version != "not installed")),
    ]
    return Table(("what", "value"), tuple(row for row in rows if row[1]))


def protocol(view: StudyView) -> list[str]:
    """How each number was obtained, in sentences."""
    if not view.front:
        return []
    measured = measurement(view.front[0])
    runtime: dict[str, Any] = view.config.get("runtime", {})
    limit = f" or {runtime['max_s']:g} s were over" if "max_s" in runtime else ""
    timing = (
        f"Latency is the median time of one call ({conditions(measured.latency)}): warmed up until steady, then timed in blocks of about "
        f"20 ms until the 95 % interval of the median was narrow{limit}. A value marked * stayed wide or drifted. All latencies of a study "
        "come from one device, and models of equal structure are measured once."
    )
    untimed = f"The {conditions(measured.latency)}. The study has two objectives, accuracy and size."
    return [
        f"{_judged(view)} in its engine on {measured.images} search images. The search never trained on them, but it chose by them, so the "
        'best values are a little optimistic. The test images are opened only by an export, once per model; "test %" is the same on them, '
        'and "-" means not exported.',
        _size(view),
        timing if view.timed else untimed,
        f"One image more or less is {100 / measured.images:.2f} points of accuracy: differences of a few images mean little.",
    ]


def _size(view: StudyView) -> str:
    packed, teacher = ("entropy-coded", "bit-packed") if view.coded else ("packed", "in the same format")
    known = " It is known after training: that of a trial given up before is a lower limit." if view.coded else ""
    return (
        f"Size is the number of bytes of the {packed} weight file, from which the exported weights come back bit for bit; 1 KB is {KB} "
        f"bytes.{known} The teacher is counted {teacher} at full precision."
    )


def _judged(view: StudyView) -> str:
    if view.quality == "accuracy":
        return "Accuracy is that of the exported model"
    return "Agreement is the share of images on which the exported model names the class that the teacher names, measured"


def markdown(table: Table) -> str:
    """A GitHub table."""
    lines = [table.headings, tuple("---" for _ in table.headings), *table.rows]
    return "\n".join("| " + " | ".join(" ".join(cell.split()).replace("|", "\\|") for cell in line) + " |" for line in lines)


def _threads(number: object) -> str:
    return f"{number} thread{'' if number == 1 else 's'}"
