"""From a fresh clone to an own network that predicts, timed as a user waits for it: python -m benchmarks.walk

Clones this checkout's HEAD into an empty folder, installs, runs the demo, then searches and exports a network of its own on an image
folder of its own, both of which are made here on nobody's clock: drawn discs, rings and squares, and a plain PyTorch loop that trains the
guide's `my_net.py`. The commands stand in the README and the guide (tests/docs/test_walk.py). Every step runs
once, with wall-clock seconds; how long the installation takes is up to the network. Writes results/walk.json, from which
benchmarks/readme.py fills section 10 of docs/guide.md.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from core.cli import run_main
from core.files import write_atomically
from core.hardware import device_facts
from search.summary import versions

ROOT = Path(__file__).resolve().parents[1]
RESULT = ROOT / "benchmarks" / "results" / "walk.json"
SIZE, PER_CLASS = 32, {"train": 300, "val": 60, "test": 120}
EPOCHS = 20
OWN = """
import sys
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from my_net import build

SIZE, COUNTS, EPOCHS = {size}, {counts}, {epochs}
CLASSES = ("disc", "ring", "square")
rows, columns = np.mgrid[:SIZE, :SIZE]


def draw(name, random):
    y, x, radius = *random.uniform(10, SIZE - 10, 2), random.uniform(5, 9)
    distance = np.hypot(rows - y, columns - x)
    inside = {{
        "disc": distance <= radius,
        "ring": (distance <= radius) & (distance >= radius - 2.5),
        "square": np.maximum(abs(rows - y), abs(columns - x)) <= radius * 0.89,
    }}[name]
    pixels = random.integers(0, 140, (SIZE, SIZE, 3))
    pixels[inside] += random.integers(40, 110, 3)
    return pixels.astype(np.uint8)


torch.manual_seed(0)
sets = {{}}
for seed, (split, count) in enumerate(COUNTS.items()):
    random, images, labels = np.random.default_rng(seed), [], []
    for label, name in enumerate(CLASSES):
        folder = __import__("pathlib").Path("my_images", split, name)
        folder.mkdir(parents=True)
        for index in range(count):
            image = draw(name, random)
            Image.fromarray(image).save(folder / f"{{index:03}}.png")
            images.append(torch.from_numpy(image).permute(2, 0, 1))
            labels.append(label)
    sets[split] = torch.stack(images) / 255, torch.tensor(labels)

model, (images, labels) = build(3, 3), sets["train"]
optimiser = torch.optim.AdamW(model.parameters(), lr=0.01)
schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 0.02, total_steps=EPOCHS * 15)
for _ in range(EPOCHS):
    for batch in torch.randperm(len(images)).chunk(15):
        optimiser.zero_grad()
        F.cross_entropy(model(images[batch]), labels[batch]).backward()
        optimiser.step()
        schedule.step()
save_file(model.state_dict(), "my_net.safetensors")
with torch.inference_mode():
    images, labels = sets["test"]
    print(f"accuracy {{(model.eval()(images).argmax(1) == labels).float().mean():.4f}}")
    print(f"parameters {{sum(value.numel() for value in model.parameters())}}")
"""
SEARCH = "python -m search.run --model my_net.py:build --weights my_net.safetensors --data-dir my_images/ --max-latency-ms 1.0 --trials 30"
STEPS = (
    ("install", "make install", "the packages of `.venv`; your internet connection decides here"),
    ("demo", "make demo", "the search of 20 trials on digits, and its export"),
    ("own", None, ""),
    ("search", SEARCH, "the search of your own network on your own images"),
    ("export", "python -m search.export_best --max-size-kb 100 --out my_model", "a point scored on the test images, as a folder"),
    ("predict", "python -m core.predict --bundle my_model my_images/test/ --csv answers.csv", "360 pictures"),
    ("report", "python -m search.report", "the page"),
    ("explain", "python -m search.explain --rank 0", "one model, layer by layer"),
    ("verify", "python my_model/verify.py my_images/test", "digests, size, latency and accuracy derived anew"),
)
"""Name, command (None: what a user brings), and what it does."""


def main(argv: Sequence[str] | None = None) -> int:
    """Walk once."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RESULT)
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        result = walk(Path(folder, "paretopress"))
    write_atomically(args.out, json.dumps(result, indent=1) + "\n")
    print(section(result))
    return 0


def walk(home: Path) -> dict[str, Any]:
    """All steps in a clone at `home`. Raises CalledProcessError where a command fails."""
    seconds, said = {"clone": timed(["git", "clone", "-q", str(ROOT), str(home)], Path.cwd())[0]}, {}
    for name, command, _ in STEPS:
        if command is None:
            said["own"] = bring(home)
            continue
        # what verify.py finds may differ: a latency by more than 15 % is exit code 1
        seconds[name], said[name] = timed(shlex.split(command), home, accepted=(0, 1) if name == "verify" else (0,))
        print(f"{name}: {seconds[name]:.1f} s", flush=True)
    exported = json.loads((home / "my_model" / "measurement.json").read_text(encoding="utf-8"))
    run = json.loads((home / "runs" / "own" / "run.json").read_text(encoding="utf-8"))
    return {
        "device": device_facts(),
        "versions": versions(),
        "commit": timed(["git", "rev-parse", "HEAD"], home)[1].strip(),
        "images": PER_CLASS,
        "seconds": {name: round(value, 1) for name, value in seconds.items()},
        "network": {name: float(re.search(rf"{name} (\S+)", said["own"])[1]) for name in ("accuracy", "parameters")},  # type: ignore[index]
        "teacher": run["teacher"],
        "trials": run["trials"],
        "verified": said["verify"],
        "exported": {"test": exported["test"], "size_bytes": exported["search"]["size_bytes"], "latency": exported["search"]["latency"]},
    }


def bring(home: Path) -> str:
    """The user's network, images and training loop; what that loop prints."""
    from tests.docs.home import shown_files

    (home / "my_net.py").write_text(shown_files()["my_net.py"], encoding="utf-8")
    (home / "train.py").write_text(OWN.format(size=SIZE, counts=PER_CLASS, epochs=EPOCHS), encoding="utf-8")
    return timed(["python", "train.py"], home)[1]


def timed(command: Sequence[str], home: Path, accepted: Sequence[int] = (0,)) -> tuple[float, str]:
    """(seconds, standard output) of a command in `home`; `python` is that of its .venv. Raises CalledProcessError for other exit codes."""
    words = [str(home / ".venv" / "bin" / "python") if word == "python" else word for word in command]
    start = time.perf_counter()
    done = subprocess.run(words, cwd=home, env=clean(), check=False, stdout=subprocess.PIPE, text=True)
    if done.returncode not in accepted:
        done.check_returncode()
    return time.perf_counter() - start, done.stdout


def clean() -> dict[str, str]:
    """The environment without this process's own .venv."""
    return {name: value for name, value in os.environ.items() if name not in ("VIRTUAL_ENV", "PYTHONPATH")}


def section(result: Mapping[str, Any]) -> str:
    """Section 10 of docs/guide.md."""
    device, found, network = result["device"], result["exported"], result["network"]
    rows = [("`git clone`", "", result["seconds"]["clone"])]
    rows += [(f"`{command}`", what, result["seconds"][name]) for name, command, what in STEPS if command is not None]
    counts = ", ".join(f"{3 * count} in `{split}/`" for split, count in result["images"].items())
    named = ", ".join(f"{name} {result['versions'][name]}" for name in ("python", "torch", "openvino"))
    return "\n".join(
        [
            f"One walk by these pages, with drawn images of {SIZE} px in three classes ({counts}),",
            f"the `my_net.py` of section 2 ({network['parameters']:,.0f} parameters), and a plain PyTorch loop that saved its weights.",
            f"{device['cpu']}, {device['cores']} cores; {named}; each step once.",
            "",
            "| Command | What it does | Seconds |",
            "|---|---|---|",
            *(f"| {command} | {what} | {value:.0f} |" for command, what, value in rows),
            "",
            outcome(network, found, result["teacher"]),
        ]
    )


def outcome(network: Mapping[str, float], found: Mapping[str, Any], teacher: Mapping[str, Any]) -> str:
    """What the walk ended with."""
    test, size, steady = found["test"], found["size_bytes"], found["latency"]["stable"] and teacher["latency"]["stable"]
    smaller, (mine, own) = teacher["size_bytes"] / size, (each["latency"]["p50_ms"] for each in (found, teacher))
    told = f"({own / mine:.1f} times faster)" if steady else f"in the search, the network's own {own:.3f} ms; not both intervals are narrow"
    return (
        f"The network had {100 * network['accuracy']:.1f} % on the test images. The exported point has {100 * test['accuracy']:.1f} % of "
        f"{test['images']} (95 %: {100 * test['interval'][0]:.1f}-{100 * test['interval'][1]:.1f}), in {size / 1000:.1f} KB "
        f"({smaller:.0f} times smaller) and {mine:.3f} ms {told}."
    )


if __name__ == "__main__":
    sys.exit(run_main(main))
