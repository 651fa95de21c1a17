"""Nothing that is read is executed: no pickle, no eval, no YAML tags, no shell, but for the files that the user names."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = [path for package in ("core", "objectives", "results", "search") for path in sorted((ROOT / package).rglob("*.py"))]
FORBIDDEN = {
    *("eval", "exec", "compile", "__import__", "os.system", "os.popen", "runpy.run_path", "runpy.run_module"),
    *("pickle.load", "pickle.loads", "pickle.Unpickler", "marshal.load", "marshal.loads", "shelve.open", "joblib.load", "dill.load"),
    *("yaml.unsafe_load", "yaml.full_load", "torch.jit.load", "torch.package.PackageImporter", "pandas.read_pickle", "pd.read_pickle"),
}
GUARDED = {"torch.load": ("weights_only", True), "np.load": ("allow_pickle", False), "numpy.load": ("allow_pickle", False)}
"""Function -> the keyword that it must be called with."""
USERS_FILES = {"core/students/own.py": "exec_module"}
"""Where the files of --model and --plugin are run, and by what."""


@cache
def calls(path: Path) -> list[tuple[str, ast.Call]]:
    """Dotted names of the functions that a file calls."""
    nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    return [(ast.unparse(node.func), node) for node in nodes if isinstance(node, ast.Call)]


def keyword(call: ast.Call, name: str) -> object:
    """Its literal value; None where it is not given."""
    return next((getattr(each.value, "value", None) for each in call.keywords if each.arg == name), None)


def offences(path: Path) -> list[str]:
    """What a file does that could execute what it reads."""
    found = []
    for name, call in calls(path):
        where = f"{path.name}:{call.lineno}: {name}"
        wanted = GUARDED.get(name)
        if name in FORBIDDEN or (wanted and keyword(call, wanted[0]) is not wanted[1]) or keyword(call, "shell"):
            found.append(where)
        if name == "yaml.load" and ast.unparse(keyword_node(call, "Loader")) != "_CoreLoader":
            found.append(where)
        if name.endswith("exec_module") and USERS_FILES.get(str(path.relative_to(ROOT))) is None:
            found.append(where)
    return found


def keyword_node(call: ast.Call, name: str) -> ast.AST:
    """Its expression; an empty one where it is not given."""
    return next((each.value for each in call.keywords if each.arg == name), ast.Constant(None))


def test_no_source_executes_what_it_reads() -> None:
    assert len(SOURCES) > 100
    assert [offence for path in SOURCES for offence in offences(path)] == []


@pytest.mark.parametrize(
    "line",
    [
        "import pickle; pickle.loads(x)", "eval(x)", "exec(x)", "torch.load(p)", "torch.load(p, weights_only=False)", "np.load(p)",
        "np.load(p, allow_pickle=True)", "yaml.load(t)", "yaml.load(t, Loader=yaml.Loader)", "subprocess.run(x, shell=True)",
        "spec.loader.exec_module(m)",
    ],
)  # fmt: skip
def test_the_scan_sees_what_it_looks_for(line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.faults.test_security.ROOT", tmp_path)
    (tmp_path / "file.py").write_text(line)
    assert offences(tmp_path / "file.py")


def test_code_of_the_user_is_run_in_one_place() -> None:
    running = {str(path.relative_to(ROOT)) for path in SOURCES for name, _ in calls(path) if name.endswith("exec_module")}
    assert running == set(USERS_FILES)
