"""The README inside a bundle: how a newcomer runs the model, with and without this project."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

TEMPLATE = """\
# A compressed image classifier

This folder is complete: the network, its labels, and how an image becomes its input. It was made and measured for the runtime
`{runtime}`; the file `model.onnx` is standard ONNX and also runs in others.

{facts}
- Classes ({count}): {classes}

## Run it with paretopress

From the root of a paretopress checkout, DIR being this folder:

    python -m core.predict --bundle DIR photo.png             # the likeliest classes, a line per image
    python -m core.predict --bundle DIR photos/ --csv out.csv # a whole folder
    ls photos/*.png | python -m core.predict --bundle DIR -   # paths on standard input, answered one by one

## Check it

    pip install -r requirements.txt
    python verify.py            # digests, size and latency on your machine, beside what is stated here
    python verify.py images/    # accuracy too; images/ has a folder per class

## Run it with ONNX Runtime alone

`pip install onnxruntime pillow numpy`, save these lines as `classify.py` beside this folder (an export replaces a bundle that holds
nothing else), then `python classify.py DIR photo.png`:

```python
{snippet}
```

Images of another size than {size}x{size} are scaled on the shorter side and cropped around the centre, turned upright and laid over white
where they are transparent.

A program of your own may also open `model.onnx` in OpenVINO. On x86 processors without AVX-512 let it do so with
`INFERENCE_NUM_THREADS` 1: with more threads, OpenVINO 2026.4 computes some shortcuts of residual networks in INT8 wrongly there.

## Files

| File | What it is |
|---|---|
| `model.onnx` | the network; input `images` float32 (batch, channels, height, width), output `logits` (batch, classes) |
| `weights.pack` | the same weights without loss: the size that the search counted (`python -m core.pack inspect weights.pack`) |
| `candidate.yaml` | the choices that led to this network |
| `measurement.json` | accuracy, size and latency, with the machine and the versions they were measured on |
| `labels.json` | names of the classes, in the order of the logits |
| `preprocessing.json` | size, channels, mean and std: x = (pixel / 255 - mean) / std |
| `MODEL_CARD.md` | what it is for, what it was made of, how good it is, what was not tried |
| `verify.py`, `requirements.txt` | derive size, accuracy and latency anew, and what that needs |
{engine}| `bundle.json` | format version, runtime, SHA-256 of every file; change a file and the bundle is refused |
"""

SNIPPET = """\
import json, pathlib, sys
import onnxruntime
folder, photo = map(pathlib.Path, sys.argv[1:])
sys.path.insert(0, str(folder))
sys.dont_write_bytecode = True
from verify import prepare
labels, inputs = (json.loads((folder / name).read_text("utf-8")) for name in ("labels.json", "preprocessing.json"))
session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
logits = session.run(["logits"], {"images": prepare(photo, inputs)[None]})[0][0]
print(labels[int(logits.argmax())])"""


def readme(runtime: str, labels: Sequence[str], image_size: int, facts: Mapping[str, object], engine: str = "") -> str:
    """The text of README.md. `facts` become a list, in their order; `engine` is the table's row of the engine files, if any."""
    shown = [f"`{label}`" for label in labels[:10]]
    classes = ", ".join(shown) + (", ... (all in `labels.json`)" if len(labels) > 10 else "")
    listed = "\n".join(f"- {name}: {value}" for name, value in facts.items()) or f"- Runtime: {runtime}"
    shape = {"count": len(labels), "classes": classes, "snippet": SNIPPET, "size": image_size}
    return TEMPLATE.format(runtime=runtime, facts=listed, engine=engine, **shape)
