"""Write the README's measured section from benchmarks/results/*.json: python benchmarks/readme.py [--check]

No number of that section is typed by hand. `--check` fails when the README differs from the results.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    path = ROOT / "README.md"
    old = path.read_text(encoding="utf-8")
    head, rest = old.split(BEGIN)
    new = f"{head}{BEGIN}\n{section()}\n{END}{rest.split(END)[1]}"
    if check and new != old:
        sys.exit("README.md's measured section differs from benchmarks/results; run python benchmarks/readme.py")
    path.write_text(new, encoding="utf-8")


def section() -> str:
    cifar = json.loads((RESULTS / "cifar10_search.json").read_text())
    digits = json.loads((RESULTS / "digits_seeds.json").read_text())["rows"]
    return "\n\n".join([machine(cifar["run"]), cifar_text(cifar), digits_text(digits)])


def machine(run: dict[str, Any]) -> str:
    device, versions = run["device"], run["versions"]
    named = ", ".join(f"{name} {versions[name]}" for name in ("torch", "optuna", "onnx", "openvino"))
    isa = ", ".join(device["isa"])
    return f"Measured on {device['cpu']} ({device['cores']} cores, {isa}), no GPU; Python {versions['python']}, {named}."


def cifar_text(result: dict[str, Any]) -> str:
    run, test = result["run"], result["teacher_test"]
    config, teacher = result["space_and_config"]["config"], run["teacher"]
    states = ", ".join(f"{count} {state.lower()}" for state, count in sorted(run["trials"].items()))
    epochs = (config["parent"]["train"]["epochs"], config["finetune"]["epochs"], config["quantise"]["train"]["epochs"])
    splits = f"{run['data']['train']:,} to train, {run['data']['search']:,} to choose on, {test['images']:,} to test"
    trained = f"{run['teacher_seconds'] / 60:.1f} minutes, test accuracy {percent(test)}"
    budget = f"parents {epochs[0]:g} epochs each, then {epochs[1]:g} to distil and {epochs[2]:g} to quantise per trial"
    latency, table = teacher["latency"], "\n".join(front_row(row, teacher) for row in result["front"])
    exported = "; ".join(f"rank {point['rank']} {percent(point['test'])}" for point in result["exported"])
    lines = [
        "### CIFAR-10 (JPEG)",
        f"The images of CIFAR-10 re-encoded as JPEG, as an image folder: {splits}. Compare only with numbers from these images. "
        f"One search of {sum(run['trials'].values())} trials ({states}), seed {run['seed']}, took {run['wall_seconds'] / 60:.0f} minutes "
        f"after the teacher ({trained}). Budget: {budget}. "
        f"Command: `python -m search.run --space spaces/cifar10.yaml --data-dir FOLDER --trials {sum(run['trials'].values())}`.",
        "| rank | student (width) | mean bits | search accuracy | KB | ms | x smaller | x faster |\n"
        f"|---|---|---|---|---|---|---|---|\n{table}\n"
        f"| - | teacher, FP32 | 32 | {100 * teacher['accuracy']:.2f} % | {teacher['size_bytes'] / 1000:,.0f} "
        f"| {latency['p50_ms']:.3f} | 1 | 1 |",
        f"On the test split: {exported} (n = {test['images']:,}, 95 % intervals). ms: median of the OpenVINO engine, f32 for float "
        f"layers, batch {latency['batch']}, {latency['threads']} thread. KB: 1000 bytes of packed weights.",
    ]
    return "\n\n".join(lines)


def front_row(row: dict[str, Any], teacher: dict[str, Any]) -> str:
    smaller = teacher["size_bytes"] / row["size_bytes"]
    faster = teacher["latency"]["p50_ms"] / row["p50_ms"]
    mark = "" if row["stable"] else "*"
    return (
        f"| {row['rank']} | {row['student']} ({row['width']:g}) | {row['mean_bits']:.1f} | {100 * row['search_accuracy']:.2f} % "
        f"| {row['size_bytes'] / 1000:.1f} | {row['p50_ms']:.3f}{mark} | {smaller:.0f} | {faster:.1f} |"
    )


def digits_text(rows: list[dict[str, Any]]) -> str:
    mean = sum(row["rank0"]["test"]["accuracy"] for row in rows) / len(rows)
    table = "\n".join(digits_row(row) for row in rows)
    return (
        "### Digits\n\nThe demo's search (20 trials) with three seeds, each with its own split: "
        f"{rows[0]['rank0']['test']['images']} test images. Mean test accuracy of rank 0: {100 * mean:.2f} %. "
        "`small` is the most accurate point, on the search split, in at most 1/20 of the teacher's bytes.\n\n"
        "| seed | seconds | front | teacher: bytes, test | rank 0: bytes, test | small: bytes, test |\n|---|---|---|---|---|---|\n" + table
    )


def digits_row(row: dict[str, Any]) -> str:
    points = " | ".join(f"{row[name]['bytes']:,}, {percent(row[name]['test'])}" for name in ("rank0", "small"))
    teacher = f"{row['teacher']['bytes']:,}, {percent(row['teacher']['test'])}"
    return f"| {row['seed']} | {row['wall_s']:.0f} | {row['front_points']} points | {teacher} | {points} |"


def percent(score: dict[str, Any]) -> str:
    low, high = score["interval"]
    return f"{100 * score['accuracy']:.2f} % ({100 * low:.1f}-{100 * high:.1f})"


if __name__ == "__main__":
    main()
