"""The notebook runs from its first cell to its last, as it is committed, in an empty folder."""

from __future__ import annotations

import resource
from pathlib import Path
from typing import Any

import nbformat
import pandas
import pytest
from nbclient import NotebookClient

from tests.docs.pages import ROOT

NOTEBOOK = ROOT / "docs" / "tutorial.ipynb"


def processor_seconds() -> float:
    """What processes started here, and theirs, have taken of the processor."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@pytest.fixture
def notebook() -> Any:
    """As committed."""
    return nbformat.read(NOTEBOOK, as_version=4)


def test_it_is_committed_without_outputs(notebook: Any) -> None:
    for cell in notebook.cells:
        assert cell.cell_type != "code" or (cell.outputs, cell.execution_count) == ([], None)


@pytest.mark.timeout(900)
@pytest.mark.slow
def test_it_runs_to_a_bundle_that_knows_new_images(notebook: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # the kernel and its commands start elsewhere, and must find this checkout
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    before = processor_seconds()
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    assert 1 < processor_seconds() - before < 300, "five minutes on one core, whatever else the machine does"
    answers = pandas.read_csv(tmp_path / "answers.csv")
    assert len(answers) == 15
    assert sum(Path(path).parent.name == label for path, label in zip(answers["path"], answers["label"], strict=True)) > 8
    assert {"self", "small_net"} >= set(pandas.read_csv(tmp_path / "runs/shapes/front.csv")["student"])
