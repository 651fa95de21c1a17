"""A study's runtime in another one, or on a machine that lacks something of it: what is replaced, and that it is said."""

from __future__ import annotations

import pytest

from core.config import RuntimeConfig
from core.errors import UserError
from core.hardware import usable_cores
from core.runtimes import RUNTIMES
from search.elsewhere import _changed, suited

Capture = pytest.CaptureFixture[str]
AGENT = "http://127.0.0.1:9"


def test_what_a_runtime_or_this_machine_lacks_is_replaced_and_said(capsys: Capture) -> None:
    own = RuntimeConfig(name="openvino", precision="bf16", threads=100_000, batch=4)
    found = suited(own, "onnxruntime")
    assert found == own.model_copy(update={"name": "onnxruntime", "precision": "f32", "threads": usable_cores()})
    assert capsys.readouterr().out.splitlines() == [
        "onnxruntime cannot have runtime.precision bf16 here: f32 is taken",
        f"onnxruntime cannot have runtime.threads 100000 here: {usable_cores()} is taken",
    ]


def test_what_is_there_stays_without_a_word(capsys: Capture) -> None:
    own = RuntimeConfig(name="openvino", activation_grid="int8", build_for=("SM89",))
    assert suited(own, "onnxruntime") == own.model_copy(update={"name": "onnxruntime", "build_for": ()})
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(("name", "changed"), [("tensorrt", {"activation_grid": "auto"}), ("onnxruntime", {})])
def test_a_grid_on_which_a_runtime_would_compute_wrong_numbers_is_left_to_it(name: str, changed: dict[str, str]) -> None:
    assert _changed(RuntimeConfig(activation_grid="uint8_relu"), RUNTIMES[name]()) == changed


def test_what_an_agents_device_may_have_is_asked_of_it() -> None:
    own = RuntimeConfig(agent=AGENT, precision="bf16", threads=100_000)
    assert suited(own, "openvino") == own.model_copy(update={"name": "openvino"})
    assert suited(own, "auto") == own
    assert suited(own, "onnxruntime").precision == "f32"  # which has no other anywhere
    with pytest.raises(UserError, match="unknown runtime 'tensor'"):
        suited(own, "tensor")
