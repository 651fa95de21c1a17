"""How good a teacher in how much time? python benchmarks/teacher.py --data-dir FOLDER [--config cifar10]

Trains the teacher of a configuration from scratch on the training split, as a study would, and scores it once on the test split, single
view. Nothing else may run on the machine. Writes benchmarks/results/teacher.json. --keep leaves the teacher in runs/.cache/, where
studies and the other benchmarks find it.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

from core.cli import run_main  # noqa: E402
from core.data import load_search_data  # noqa: E402
from core.data.heldout import load_test_data  # noqa: E402
from core.data.types import Images  # noqa: E402
from core.files import write_atomically  # noqa: E402
from core.hardware import device_facts  # noqa: E402
from core.teacher import obtain_teacher  # noqa: E402
from core.train import open_device, predict_all  # noqa: E402
from core.yaml_io import load_config  # noqa: E402
from search.final_score import score  # noqa: E402
from search.summary import versions  # noqa: E402

RESULT = ROOT / "benchmarks" / "results" / "teacher.json"
CACHE = Path("runs", ".cache")


def main(argv: Sequence[str] | None = None) -> int:
    """Train, score, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, help="the archive's folder or an image folder")
    parser.add_argument("--config", default="cifar10")
    parser.add_argument("--set", action="append", default=[], dest="overrides", metavar="KEY=VALUE", help="override a key of the config")
    parser.add_argument("--keep", action="store_true", help="leave the teacher where studies find it")
    parser.add_argument("--out", type=Path, default=RESULT)
    args = parser.parse_args(argv)
    folder = [f"data.dir={json.dumps(str(args.data_dir))}"] if args.data_dir else []
    config = load_config(args.config, [*args.overrides, *folder], ROOT)
    device = open_device(config.hardware)
    data = load_search_data(config.data, CACHE)
    rates: list[int] = []

    def on_epoch(done: float, total: float, rate: float, loss: float) -> None:
        rates.append(round(rate))
        print(f"epoch {done:g} of {total:g}: {rate:.0f} images/s, loss {loss:.3f}", flush=True)

    with tempfile.TemporaryDirectory() as cache:  # from scratch, whatever is kept
        start = time.perf_counter()
        teacher = obtain_teacher(config, data, device, Path(cache), on_epoch)
        seconds = time.perf_counter() - start
        if args.keep:
            shutil.copytree(Path(cache, "teachers"), CACHE / "teachers", dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.lock"))
    test: Images = load_test_data(config.data, CACHE)
    logits = predict_all(teacher.model, test, teacher.normalise, device)
    result = {
        "teacher": teacher.name,
        "recipe": config.teacher.train.model_dump(mode="json"),
        "data": {"name": data.info.name, "digest": data.info.digest, "train": len(data.train)},
        "seconds": round(seconds, 1),
        "images_per_second": rates,
        "search_accuracy": teacher.accuracy,
        "search_images": len(data.search),
        "test": score(logits.numpy(), test.labels.cpu().numpy()),
        "precision": str(device.amp or torch.float32),
        "threads": torch.get_num_threads(),
        "device": device_facts(),
        "versions": versions(),
    }
    write_atomically(args.out, json.dumps(result, indent=1) + "\n")
    print(json.dumps(result["test"]), f"in {seconds:.0f} s")
    return 0


if __name__ == "__main__":
    raise SystemExit(run_main(main))
