"""The teacher of configs/cifar10.yaml on an image folder: python benchmarks/cifar10_teacher.py --data-dir FOLDER

Trains on the training split only, times it, and scores it on the search and on the test split (single view).
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

from core.data import load_search_data  # noqa: E402
from core.data.heldout import load_test_data  # noqa: E402
from core.hardware import device_facts  # noqa: E402
from core.layers import count_parameters  # noqa: E402
from core.teacher import obtain_teacher  # noqa: E402
from core.train import open_device, predict  # noqa: E402
from core.yaml_io import load_config  # noqa: E402
from search.export_best import wilson  # noqa: E402
from search.summary import versions  # noqa: E402

RESULT = ROOT / "benchmarks" / "results" / "cifar10_teacher.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--set", action="append", default=[], dest="overrides")
    parser.add_argument("--cache", type=Path, default=Path("runs/.cache"), help="decoded images; the teacher itself is always trained anew")
    args = parser.parse_args()
    config = load_config("cifar10", [f"data.dir={args.data_dir}", *args.overrides], ROOT)
    data, device = load_search_data(config.data, args.cache), open_device(config.hardware)
    log: list[dict[str, float]] = []

    def on_epoch(done: float, epochs: float, rate: float, loss: float) -> None:
        log.append({"epoch": done, "images_per_s": round(rate), "loss": round(loss, 4), "seconds": round(time.perf_counter() - start, 1)})
        print(log[-1], flush=True)

    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as empty:
        teacher = obtain_teacher(config, data, device, Path(empty), on_epoch)
    seconds = time.perf_counter() - start
    test = load_test_data(config.data, args.cache)
    right = int((predict(teacher.model, test.images, teacher.normalise, device, amp=False).argmax(1) == test.labels).sum())
    row = {
        "data": f"{data.info.name}: {len(data.train)} training, {len(data.search)} search, {len(test)} test images",
        "teacher": config.teacher.model_dump(mode="json"),
        "parameters": count_parameters(teacher.model),
        "seconds": round(seconds, 1),
        "search_accuracy": teacher.accuracy,
        "test_accuracy": right / len(test),
        "test_interval": wilson(right, len(test)),
        "epochs": log,
        "device": device_facts(),
        "threads": torch.get_num_threads(),
        "amp": str(device.amp),
        "versions": versions(),
    }
    RESULT.parent.mkdir(parents=True, exist_ok=True)
    RESULT.write_text(json.dumps(row, indent=1) + "\n")
    print(f"{seconds:.0f} s, search {100 * teacher.accuracy:.2f} %, test {100 * row['test_accuracy']:.2f} %")


if __name__ == "__main__":
    main()
