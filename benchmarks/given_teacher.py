"""A teacher that was trained on all training images, as a file: what searches on fewer images are given, and what no clock has in it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from core.data import load_search_data
from core.students.own import save_weights
from core.teacher import obtain_teacher
from core.train import open_device
from core.yaml_io import load_config
from search.setup import split_overrides
from search.space import load_space

ROOT = Path(__file__).resolve().parents[1]
CACHE = Path("runs", ".cache")
FOLDER = CACHE / "given"
OF_A_SEARCH = ("data.train_limit", "seed")
"""Settings that the teacher does without: searches with other seeds on other numbers of images compare only with one teacher."""


def given_teacher(space: Path, settings: Sequence[str]) -> list[str]:
    """Settings that name the teacher's file and its normalisation; none where `settings` name a teacher's weights or network.

    Trained once by the configuration of `space` with `settings`, and kept below runs/.cache.
    """
    names = {text.split("=")[0] for text in settings}
    if names & {"teacher.weights", "teacher.model"}:
        return []
    space_sets, config_sets = split_overrides([text for text in settings if text.split("=")[0] not in OF_A_SEARCH])
    config = load_config(load_space(space, space_sets).config, config_sets, ROOT)
    data = load_search_data(config.data, CACHE)
    teacher = obtain_teacher(config, data, open_device(config.hardware), CACHE, on_wait=print)
    file = (FOLDER / f"{teacher.digest}.safetensors").absolute()
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        save_weights(teacher.model, file)
    normal = teacher.normalise
    return [f"teacher.weights={file}", f"teacher.mean={json.dumps(normal.mean)}", f"teacher.std={json.dumps(normal.std)}"]
