"""Running nvidia-smi: what it prints, and what happens without an answer."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from torchfab.remote.host import gpu_health, gpu_usage, nvidia_smi


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file that runs as nvidia-smi; it does not exist yet."""
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    return tmp_path / "nvidia-smi"


def install(program: Path, script: str) -> None:
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)


def test_stdout_and_stderr_and_exit_code_are_returned(program: Path) -> None:
    install(program, 'echo "args: $*"; echo broken >&2; exit 9')
    assert nvidia_smi.run("-q", "-x", timeout_s=10) == (9, "args: -q -x\nbroken\n")


def test_a_machine_without_nvidia_smi_has_no_problem(program: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(program.parent))
    with pytest.raises(nvidia_smi.NotInstalledError):
        nvidia_smi.run(timeout_s=10)
    assert gpu_usage.collect() == {"gpus": [], "problem": ""}
    assert gpu_health.run_nvidia_smi() == {"gpus": [], "missing": True, "problem": "nvidia-smi is not there"}


def test_a_hanging_nvidia_smi_is_killed(program: Path) -> None:
    install(program, "exec sleep 60")
    with pytest.raises(nvidia_smi.NvidiaSmiError, match=r"did not answer within 0\.2 s"):
        nvidia_smi.run(timeout_s=0.2)


def test_a_file_that_is_no_program_is_a_problem_of_the_node(program: Path) -> None:
    install(program, "")
    program.write_bytes(b"\x7fELF")
    problem = gpu_usage.collect()["problem"]
    assert problem == gpu_health.run_nvidia_smi()["problem"] == "nvidia-smi does not run: Exec format error"


def test_a_machine_without_gpus_is_recognised() -> None:
    assert nvidia_smi.reports_no_gpu("No devices were found")
    assert not nvidia_smi.reports_no_gpu("NVIDIA-SMI has failed")
