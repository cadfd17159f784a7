"""torchrun's agent reports to its supervisor before it ends ranks, and runs with any version of torch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from torchfab.launchers import torchrun_agent

# A torchrun that ends its ranks; SIGURG is noted instead of ignored.
RUN = """
import signal, sys
from torch.distributed.elastic.multiprocessing import api
signal.signal(signal.SIGURG, lambda *_: print("SIGURG"))
def main():
    print(*sys.argv[1:])
    api.SubprocessContext()._close("SIGTERM", timeout=30)
    return 3
"""
API = """
class SubprocessContext:
    def _close(self, death_sig, timeout):
        print("ends ranks", death_sig, timeout)
"""
OTHER_API = """
class SubprocessContext:
    def __getattr__(self, name):
        return lambda death_sig, timeout: print(death_sig)
"""


@pytest.mark.parametrize("in_file", [False, True])
@pytest.mark.parametrize(("api", "told"), [(API, "SIGURG\nends ranks SIGTERM 30"), (OTHER_API, "SIGTERM")])
def test_the_agent_signals_itself_before_it_ends_ranks(tmp_path: Path, api: str, told: str, in_file: bool) -> None:
    folder = tmp_path / "torch" / "distributed" / "elastic" / "multiprocessing"
    folder.mkdir(parents=True)
    (folder / "api.py").write_text(api)
    (tmp_path / "torch" / "distributed" / "run.py").write_text(RUN)
    path = tmp_path / torchrun_agent.FILE
    path.write_text(torchrun_agent.CODE)
    for each in (folder, *list(folder.parents)[:3]):
        (each / "__init__.py").touch()
    command = (sys.executable, "-S", *torchrun_agent.arguments(str(path) if in_file else ""))
    env = {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run((*command, "--nnodes", "2"), env=env, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr, done.stdout) == (3, "", f"--nnodes 2\n{told}\n")
