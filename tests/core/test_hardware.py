"""Laws of the device fingerprint."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from core.errors import MissingRuntime
from core.hardware import _cpu, device_facts, device_fingerprint, exact_int8_bits, gpu, main
from core.runtimes import RUNTIMES, resolve_runtime

X86 = "processor\t: 0\nmodel name\t: Some CPU @ 2 GHz\nflags\t\t: fpu avx2 avx512f\n\nprocessor\t: 1\nmodel name\t: Other\nflags\t\t: fpu\n"
ARM = "processor\t: 0\nFeatures\t: fp asimd asimddp i8mm\nCPU implementer\t: 0x41\nCPU part\t: 0xd40\n"


def test_the_fingerprint_is_twelve_hex_digits_and_repeatable() -> None:
    facts, digest = device_fingerprint(1, "openvino", "2026.4.1")
    assert re.fullmatch("[0-9a-f]{12}", digest)
    assert (facts, digest) == device_fingerprint(1, "openvino", "2026.4.1")


def test_the_fingerprint_ignores_the_patch_version_alone() -> None:
    digest = device_fingerprint(1, "openvino", "2026.4.1")[1]
    assert device_fingerprint(1, "openvino", "2026.4.2")[1] == digest
    others = [(2, "openvino", "2026.4.1"), (1, "onnxruntime", "2026.4.1"), (1, "openvino", "2026.5.1")]
    assert len({digest, *(device_fingerprint(*other)[1] for other in others)}) == 4


def test_the_facts_name_the_processor() -> None:
    facts = device_facts()
    assert set(facts) == {"cpu", "isa", "machine", "cores"}
    assert facts["cpu"]
    assert facts["cores"] >= 1
    assert facts["isa"] == sorted(facts["isa"])


@pytest.mark.parametrize(
    ("text", "model", "flag"), [(X86, "Some CPU @ 2 GHz", "avx512f"), (ARM, "0x41 0xd40", "asimddp")], ids=["x86", "arm"]
)
def test_both_styles_of_cpuinfo_are_read(text: str, model: str, flag: str) -> None:
    found, flags = _cpu(text)
    assert found == model
    assert flag in flags


@pytest.mark.parametrize(
    ("machine", "isa", "bits"),
    [
        ("x86_64", ["avx2"], 7),
        ("x86_64", ["avx2", "avx512f"], 7),
        ("AMD64", [], 7),
        ("x86_64", ["avx2", "avx_vnni"], 8),
        ("x86_64", ["avx2", "avx512f", "avx512_vnni"], 8),
        ("aarch64", ["asimd"], 8),
    ],
)
def test_int8_kernels_of_x86_are_exact_with_eight_bits_where_it_multiplies_int8(machine: str, isa: list[str], bits: int) -> None:
    assert exact_int8_bits({"machine": machine, "isa": isa}) == bits


def test_a_machine_without_cpuinfo_still_has_a_name() -> None:
    assert _cpu("")[0]


def test_the_command_lists_every_runtime(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    printed = capsys.readouterr().out
    for make in RUNTIMES.values():
        runtime = make()
        assert (f"{runtime.name} {runtime.version}" if runtime.version else f"pip install {runtime.pip_name}") in printed


@pytest.fixture
def smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A file whose lines a command called nvidia-smi prints, or with `exit N` in it fails."""
    answer = tmp_path / "answer"
    command = tmp_path / "nvidia-smi"
    command.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/asked\nif grep -q exit {answer}; then exit 9; fi\ncat {answer}\n')
    command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "")  # so that it is put back
    monkeypatch.delenv("CUDA_DEVICE_ORDER")
    gpu.cache_clear()
    yield answer
    gpu.cache_clear()


def test_a_gpu_is_named_with_its_compute_capability_and_driver(smi: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    smi.write_text("NVIDIA GeForce RTX 4070, 8.9, 580.65\nNVIDIA T4, 7.5, 580.65\n")
    assert gpu() == {"gpu": "NVIDIA GeForce RTX 4070", "compute_capability": "SM89", "driver": "580.65"}
    gpu.cache_clear()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,0")
    gpu()
    assert "-i 1 " in (smi.parent / "asked").read_text()
    assert os.environ["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"  # or CUDA would count otherwise


@pytest.mark.parametrize("answer", ["exit", "", "No devices were found\n"])
def test_a_driver_without_an_answer_is_no_gpu(smi: Path, answer: str) -> None:
    smi.write_text(answer)
    assert gpu() is None


@pytest.mark.parametrize("hidden", ["", "-1"])
def test_a_hidden_gpu_is_no_gpu(smi: Path, monkeypatch: pytest.MonkeyPatch, hidden: str) -> None:
    smi.write_text("NVIDIA T4, 7.5, 580.65\n")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
    assert gpu() is None


def test_only_a_gpus_latencies_depend_on_the_gpu(smi: Path) -> None:
    smi.write_text("NVIDIA T4, 7.5, 580.65\n")
    facts, digest = device_fingerprint(1, "tensorrt", "11.4", on_gpu=True)
    assert facts["gpu"] == "NVIDIA T4"
    on_cpu, other = device_fingerprint(1, "tensorrt", "11.4")
    assert "gpu" not in on_cpu
    assert digest != other


@pytest.mark.skipif(RUNTIMES["tensorrt_rtx"]().version is None, reason="tensorrt_rtx is not installed")
def test_a_gpu_that_a_runtime_does_not_know_is_refused_with_those_it_knows(smi: Path) -> None:
    smi.write_text("NVIDIA H100, 9.0, 580.65\n")
    with pytest.raises(MissingRuntime, match=r"runs on SM75, .*, but this GPU \(NVIDIA H100\) is SM90"):
        resolve_runtime("tensorrt_rtx")
    assert resolve_runtime("auto") != "tensorrt_rtx"
    smi.write_text("NVIDIA T4, 7.5, 580.65\n")
    gpu.cache_clear()
    assert resolve_runtime("tensorrt_rtx") == "tensorrt_rtx"


def test_the_fingerprint_needs_no_torch_and_no_runtime() -> None:
    code = "import sys, core.hardware as h; h.main([]); print({'torch', 'openvino', 'onnxruntime'} & {*sys.modules})"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == "set()"
