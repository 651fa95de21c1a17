"""Write what was measured into READMEs and into protocol, methods, guide and recipes of docs/: python benchmarks/readme.py [--check]

Figures come from benchmarks/results/*.json. None is typed by hand: the words of each language are in benchmarks/readme_text.py.
`--check` fails when a page differs from the results.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
SHOWN = 6
"""Points of a front that a README lists, beside those that were exported."""
MARKS = "<!-- measured{}: begin -->", "<!-- measured{}: end -->"
"""A page with several sections has names in them, after a blank."""


def main() -> None:
    sys.path.insert(0, str(ROOT))
    from benchmarks import (
        compression_markdown,
        interval_coverage,
        library_networks,
        qat_step,
        walk,
    )  # late: as a script this file is in no package
    from benchmarks.readme_text import PAGES
    from benchmarks.recipes import with_measured

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    sections = {page: {"": section(words)} for page, words in PAGES.items()} | {
        "docs/protocol.md": {"": protocol(), " coverage": interval_coverage.sentence(read("interval_coverage"))},
        "docs/methods.md": {
            "": methods(),
            " compression": compression_markdown.markdown(read("compression")),
            " steps": qat_step.section(read("qat_step")),
        },
        "docs/guide.md": {"": walk.section(read("walk")), " networks": library_networks.markdown(read("library_networks"))},
    }
    changes: dict[str, Callable[[str], str]] = {page: partial(with_sections, texts=texts) for page, texts in sections.items()}
    changes["docs/recipes.md"] = with_measured
    for page, change in changes.items():
        path = ROOT / page
        old = path.read_text(encoding="utf-8")
        new = change(old)
        if check and new != old:
            sys.exit(f"what {page} says was measured differs from benchmarks/results; run python benchmarks/readme.py")
        path.write_text(new, encoding="utf-8")


def protocol() -> str:
    """The measured section of docs/protocol.md: every student's latencies, what a study survives, and what stopping saves and loses."""
    from benchmarks import (
        account,
        efficiency_result,
        folded_weights,
        latency_zoo,
        prune_latency,
        replay_text,
        simulated_search,
        workers_text,
    )

    survived = workers_text.section(read("kills"), read("fuzz"), read("scaling"))
    pruned = f"## What pruning does to latency\n\n{prune_latency.section(read('prune_latency')['rows'])}"
    folded = f"## Weights of float layers in ONNX Runtime\n\n{folded_weights.section(read('folded_weights')['rows'])}"
    stopping = f"## Skipping and stopping\n\n{replay_text.section(read('replay'))}"
    live = f"## Against a search written by hand\n\n{efficiency_result.section(read('search_efficiency'))}"
    spent = f"## Where the time of a study goes\n\n{account.text(read('account'))}"
    simulated = f"## Samplers and seeds\n\n{simulated_search.section(read('simulated_search'))}"
    return "\n\n".join([latency_zoo.table(read("latency_zoo")["rows"]), pruned, folded, survived, stopping, simulated, spent, live])


def methods() -> str:
    """The measured section of docs/methods.md: the teacher of configs/cifar10.yaml, and what each loss taught."""
    from benchmarks.distil_markdown import markdown

    return f"{teacher_text(read('teacher'))}\n\n{markdown(read('distil_table'))}"


def teacher_text(result: dict[str, Any]) -> str:
    recipe, device, images = result["recipe"], result["device"], result["data"]["train"]
    return (
        f"**The teacher of `configs/cifar10.yaml`** ({result['teacher']}, {recipe['epochs']:g} epochs on {images:,} images, one seed): "
        f"{percent(result['test'])} on {result['test']['images']:,} test images, single view, {100 * result['search_accuracy']:.2f} % on "
        f"the search split, in {result['seconds'] / 60:.1f} minutes. {device['cpu']}, {result['threads']} threads, "
        f"{result['precision'].removeprefix('torch.')}, torch {result['versions']['torch']}."
    )


def with_sections(page: str, texts: Mapping[str, str]) -> str:
    """The page with each text between the marks of its name."""
    for name, text in texts.items():
        begin, end = (mark.format(name) for mark in MARKS)
        head, rest = page.split(begin)
        page = f"{head}{begin}\n{text}\n{end}{rest.split(end)[1]}"
    return page


def section(words: dict[str, str]) -> str:
    """The measured section in the language of `words`."""
    cifar = json.loads((RESULTS / "cifar10_search.json").read_text())
    digits = json.loads((RESULTS / "digits_seeds.json").read_text())["rows"]
    home = cifar["run"]["device"]
    return "\n\n".join([machine(cifar["run"], words), cifar_text(cifar, words), digits_text(digits, home, words), *parts(home, words)])


def machine(run: dict[str, Any], words: dict[str, str]) -> str:
    device, versions = run["device"], run["versions"]
    named = ", ".join(f"{name} {versions[name]}" for name in ("torch", "optuna", "onnx", "openvino", "onnxruntime"))
    return words["machine"].format(
        cpu=device["cpu"], cores=device["cores"], isa=", ".join(device["isa"]), python=versions["python"], versions=named
    )


def elsewhere(device: dict[str, Any], home: dict[str, Any], words: dict[str, str]) -> str:
    """Where something was measured that was not measured on the machine that the section begins with."""
    same = all(device[key] == home[key] for key in ("cpu", "cores", "isa"))
    return "" if same else words["elsewhere"].format(cpu=device["cpu"], cores=device["cores"], isa=", ".join(device["isa"]))


def cifar_text(result: dict[str, Any], words: dict[str, str]) -> str:
    run, test, config, teacher = result["run"], result["teacher_test"], result["space_and_config"]["config"], result["run"]["teacher"]
    front, exported = result["front"], {point["rank"] for point in result["exported"]}
    chosen = [row for row in front if row["rank"] in exported | set(spread(len(front)))]
    facts = {
        "train": run["data"]["train"],
        "search": run["data"]["search"],
        "test": test["images"],
        "trials": sum(run["trials"].values()),
        "states": ", ".join(words[state].format(count=count) for state, count in sorted(run["trials"].items())),
        "seed": run["seed"],
        "minutes": (run["wall_seconds"] - (run["teacher_seconds"] if "account" in run else 0)) / 60,
        "teacher_minutes": run["teacher_seconds"] / 60,
        "teacher_test": percent(test),
        "parent": config["parent"]["train"]["epochs"],
        "distil": config["finetune"]["epochs"],
        "quantise": config["quantise"]["train"]["epochs"],
        "exported": "; ".join(f"rank {point['rank']} {percent(point['test'])}" for point in result["exported"]),
        "batch": teacher["latency"]["batch"],
        "threads": teacher["latency"]["threads"],
        "shown": len(chosen),
        "front": len(front),
    }
    rows = "\n".join(front_row(row, teacher) for row in chosen)
    last = (
        f"| - | {words['teacher']} | 32 | {100 * teacher['accuracy']:.2f} % | {teacher['size_bytes'] / 1000:,.0f} "
        f"| {teacher['latency']['p50_ms']:.3f} | 1 | 1 |"
    )
    table = f"{words['front_head']}\n|---|---|---|---|---|---|---|---|\n{rows}\n{last}"
    lines = [words["cifar_title"], words["cifar"].format(**facts), table, words["cifar_foot"].format(**facts)]
    return "\n\n".join([*lines, *([words["changed"]] if has_changed(config) else [])])


def spread(count: int) -> list[int]:
    """At most SHOWN of `count` ranks, the first and the last among them, evenly apart."""
    return sorted({round(place * (count - 1) / (SHOWN - 1)) for place in range(SHOWN)})


def has_changed(recorded: dict[str, Any], name: str = "cifar10") -> bool:
    """Whether a training of the recorded run is another one in the configuration `name` of today."""
    from core.yaml_io import load_config

    today = load_config(name, [], ROOT).model_dump(mode="json")
    pairs = [(recorded["finetune"], today["finetune"])]
    pairs += [(recorded[part]["train"], today[part]["train"]) for part in ("teacher", "parent", "quantise")]
    return any(key not in new or new[key] != value for old, new in pairs for key, value in old.items())


def front_row(row: dict[str, Any], teacher: dict[str, Any]) -> str:
    smaller = teacher["size_bytes"] / row["size_bytes"]
    faster = teacher["latency"]["p50_ms"] / row["p50_ms"]
    mark = "" if row["stable"] else "*"
    return (
        f"| {row['rank']} | {row['student']} ({row['width']:g}) | {row['mean_bits']:.1f} | {100 * row['search_accuracy']:.2f} % "
        f"| {row['size_bytes'] / 1000:.1f} | {row['p50_ms']:.3f}{mark} | {smaller:.0f} | {faster:.1f} |"
    )


def digits_text(rows: list[dict[str, Any]], home: dict[str, Any], words: dict[str, str]) -> str:
    mean = sum(row["rank0"]["test"]["accuracy"] for row in rows) / len(rows)
    head = words["digits"].format(images=rows[0]["rank0"]["test"]["images"], mean=100 * mean) + elsewhere(rows[0]["device"], home, words)
    table = "\n".join(digits_row(row, words["points"]) for row in rows)
    told = f"{words['digits_title']}\n\n{head}\n\n{words['digits_head']}\n|---|---|---|---|---|\n{table}"
    changed = any("config" not in row or has_changed(row["config"], "digits") for row in rows)
    return f"{told}\n\n{words['digits_changed']}" if changed else told


def digits_row(row: dict[str, Any], unit: str) -> str:
    teacher, best = (f"{row[name]['bytes']:,}, {percent(row[name]['test'])}" for name in ("teacher", "rank0"))
    return f"| {row['seed']} | {row['wall_s']:.0f} | {row['front_points']} {unit} | {teacher} | {best} |"


def parts(home: dict[str, Any], words: dict[str, str]) -> list[str]:
    """Paragraphs on training speed, latency, its repeatability, and engines for GPUs."""
    speed, zoo, repeat, matrix = (read(name) for name in ("distil_throughput", "latency_zoo", "latency_repeatability", "matrix"))
    speeds = throughput(speed, words) + elsewhere(speed["device"], home, words)
    first, *rest = latency(zoo, words)
    timed = [first + elsewhere(zoo["rows"][0]["device"], home, words), *rest]
    repeated = repeatability(repeat, words) + elsewhere(zoo["rows"][0]["device"], home, words)  # of the same fingerprint
    return [words["parts_title"], efficiency(home, words), speeds, *timed, repeated, gpu(matrix, words)]


def read(name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    return content


def efficiency(home: dict[str, Any], words: dict[str, str]) -> str:
    """How much sooner than a loop written by hand, with latencies timed again by one host."""
    from benchmarks.efficiency_result import LATENCIES

    content = read("search_efficiency")
    shared, told = content["shared"], content["result"][LATENCIES[True]]
    sooner = [float(seed["speedup"]) for seed in told["seeds"].values()]
    facts = {"trials": shared["trials"], "epochs": shared["epochs"], "images": shared["train_limit"], "seeds": len(sooner)}
    said = words["efficiency"].format(low=min(sooner), high=max(sooner), median=told["median"], **facts)
    return said + elsewhere(shared["device"], home, words)


def throughput(result: dict[str, Any], words: dict[str, str]) -> str:
    rates, ratio = result["images_per_second"], result["ratios"]["ours/plain"]
    return words["throughput"].format(
        batch=result["batch"],
        precision=result["precision_ours"].removeprefix("torch."),
        threads=result["device"]["threads"],
        ours=rates["ours"]["median"],
        plain=rates[result["plain"]]["median"],
        bare=rates["bare"]["median"],
        ratio=ratio["median"],
        low=ratio["min"],
        high=ratio["max"],
        rounds=ratio["n"],
        share=100 * result["ratios"]["ours/bare"]["median"],
    )


def latency(result: dict[str, Any], words: dict[str, str]) -> list[str]:
    rows = {(row["student"], row["execution"], row["precision"], row["runtime"]): row for row in result["rows"]}
    eager = rows["resnet20", "float", "f32", "torch_eager"]
    students = sorted({row["student"] for row in result["rows"]})

    def twins(student: str, runtime: str) -> tuple[dict[str, Any], dict[str, Any]]:
        return rows[student, "int8", "f32", runtime], rows[student, "float", "f32", runtime]

    def slower(runtime: str) -> str:
        pairs = ((name, *twins(name, runtime)) for name in students)
        # beyond both intervals, as the search's prior asks
        return ", ".join(name for name, int8, f32 in pairs if int8["ci_ms"][0] > f32["ci_ms"][1]) or words["none"]

    lines = [words["latency_head"], "|---|---|---|---|---|---|"]
    for runtime, name in (("openvino", "OpenVINO"), ("onnxruntime", "ONNX Runtime")):
        int8, f32 = twins("resnet20", runtime)
        half = rows.get(("resnet20", "float", "bf16", runtime))
        times = f"{ms(int8)} | {ms(f32)} | {ms(half) if half else '-'}"
        lines.append(f"| {name} | {times} | {more(int8, f32):.2f} | {more(int8, eager):.1f} |")
    head = words["latency"].format(torch=eager["version"].split("+")[0], eager=ms(eager))
    tail = words["slower"].format(students=len(students), openvino=slower("openvino"), onnxruntime=slower("onnxruntime"))
    return [head, "\n".join(lines), tail]


def ms(row: dict[str, Any]) -> str:
    return f"{row['p50_ms']:.3f}{'' if row['stable'] else '*'}"


def more(row: dict[str, Any], other: dict[str, Any]) -> float:
    """How many times the row's milliseconds the other takes."""
    return float(other["p50_ms"] / row["p50_ms"])


def repeatability(result: dict[str, Any], words: dict[str, str]) -> str:
    from benchmarks.latency_repeatability import APART

    summary = result["summary"]
    ours, plain = summary["protocol"], summary["plain"]
    return words["repeat"].format(
        count=summary["candidates"],
        apart=100 * APART,
        tau=ours["kendall_tau"],
        difference=100 * ours["median_difference"],
        plain_tau=plain["kendall_tau"],
        plain_difference=100 * plain["median_difference"],
    )


def gpu(result: dict[str, Any], words: dict[str, str]) -> str:
    rows = result["rows"]
    return words["gpu"].format(
        version=result["tensorrt_rtx"],
        built=sum(row["error"] is None for row in rows),
        asked=len(rows),
        students=len({row["student"] for row in rows}),
        targets=", ".join(result["targets"]),
        warnings=sum(len(row["warnings"]) for row in rows),
    )


def percent(score: dict[str, Any]) -> str:
    low, high = score["interval"]
    return f"{100 * score['accuracy']:.2f} % ({100 * low:.1f}-{100 * high:.1f})"


if __name__ == "__main__":
    main()
