"""Integer weights of trained networks, for benchmarks/coding.py: one float training per network, then LSQ from it at every bit width.

    python benchmarks/quantised_networks.py --data-dir FOLDER [--networks resnet20 mobilenet_v2] [--bits 2 3 4 8] [--epochs 3]

Writes runs/.cache/coding/<network>-w<bits>.npz: int8 arrays (out, in, ...) by layer in order of execution, first and last layer at 8
bits as in a search, and `bits/<layer>`. What is there is not trained again.
"""

from __future__ import annotations

import argparse
import copy
import io
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
import torch  # noqa: E402
from torch import nn  # noqa: E402

from core.cli import run_main  # noqa: E402
from core.config import Config, TrainConfig  # noqa: E402
from core.data import load_search_data  # noqa: E402
from core.files import write_atomically  # noqa: E402
from core.layers import layer_infos  # noqa: E402
from core.quantise.fold import make_gains_positive  # noqa: E402
from core.quantise.lsq import lsq  # noqa: E402
from core.students import STUDENTS  # noqa: E402
from core.train import Batch, Device, fit, open_device, predict_all  # noqa: E402
from core.views import ViewedSet, normalisation_of, viewed  # noqa: E402
from core.yaml_io import load_config  # noqa: E402

FOLDER = Path("runs", ".cache", "coding")
CACHE = FOLDER.parent


def main(argv: Sequence[str] | None = None) -> int:
    """Train and quantise every network that has no file yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--networks", nargs="+", default=["resnet20"])
    parser.add_argument("--bits", nargs="+", type=int, default=[2, 3, 4, 8])
    parser.add_argument("--epochs", type=float, default=3.0, help="of the float training; every LSQ fine-tuning takes a third")
    parser.add_argument("--threads", type=int)
    args = parser.parse_args(argv)
    stated = [f"data.dir={json.dumps(str(args.data_dir))}", f"parent.train.epochs={args.epochs}"]
    threads = [f"hardware.threads={args.threads}"] if args.threads else []
    config = load_config("cifar10", [*stated, f"quantise.train.epochs={args.epochs / 3}", *threads], ROOT)
    device = open_device(config.hardware)
    data = load_search_data(config.data, CACHE)
    views = viewed(data.train, normalisation_of(data.info), config.views, config.seed, device.device)

    def accuracy(model: nn.Module) -> float:
        logits = predict_all(model, data.search, normalisation_of(data.info), device)
        return float((logits.argmax(1) == data.search.labels.cpu()).float().mean())

    for network in args.networks:
        wanted = [bits for bits in args.bits if not file_of(network, bits).exists()]
        if not wanted:
            continue
        torch.manual_seed(config.seed)
        model = STUDENTS[network](classes=len(data.info.classes), channels=data.info.channels, image_size=data.info.image_size)
        train(model, views, config.parent.train, device)
        print(f"{network}: float, {accuracy(model):.4f} on the search split", flush=True)
        for bits in wanted:
            content, found = quantised(model, bits, config, views, device, data.info.shape), io.BytesIO()
            np.savez_compressed(found, **content)  # type: ignore[arg-type]
            write_atomically(file_of(network, bits), found.getvalue())
            print(f"{network}: {bits} bits, {file_of(network, bits)}", flush=True)
    return 0


def file_of(network: str, bits: int) -> Path:
    """Where the integers of a network are kept."""
    return FOLDER / f"{network}-w{bits}.npz"


def quantised(
    dense: nn.Module, bits: int, config: Config, views: ViewedSet, device: Device, shape: tuple[int, int, int]
) -> dict[str, np.ndarray[Any, Any]]:
    """The integers of a copy of `dense` after LSQ training, and the bits of every layer."""
    model = copy.deepcopy(dense).cpu()
    names = [info.name for info in layer_infos(model, shape)]
    wanted = {name: 8 if name in (names[0], names[-1]) else bits for name in names}
    make_gains_positive(model, wanted, shape)
    integers = lsq(model, wanted, lambda network, penalty=None: train(network, views, config.quantise.train, device))
    arrays = {name: integers[name].values.cpu().numpy().astype(np.int8) for name in names}
    return arrays | {f"bits/{name}": np.array(wanted[name]) for name in names}


def train(model: nn.Module, views: ViewedSet, recipe: TrainConfig, device: Device) -> nn.Module:
    """Train in place with labels alone."""

    def loss(logits: torch.Tensor, batch: Batch) -> torch.Tensor:
        return nn.functional.cross_entropy(logits.float(), batch.labels)

    def on_epoch(done: float, total: float, rate: float, mean_loss: float) -> None:
        print(f"epoch {done:g} of {total:g}: {rate:.0f} images/s, loss {mean_loss:.3f}", flush=True)

    return fit(model, views, loss, recipe, device, seed=0, on_epoch=on_epoch)


if __name__ == "__main__":
    raise SystemExit(run_main(main))
