"""The probe of a rank: run in real interpreters, with a package in the place of torch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from torchfab.launchers.shims import source_of

# What the probe uses of torch, in files of the same names. `server` is the text of the class of the worker server.
NATIVE = """
import os, socket
class _WorkerServer:
    def __init__(self, path):
        os.write(2, b"[W WorkerServer.cpp:113] Server listening")
        {server}
def _dump_fr_trace_json(*_):
    return '{{"entries": [1]}}'
"""
LISTEN = "self.socket = socket.socket(socket.AF_UNIX); self.socket.bind(path)"
DISTRIBUTED = """
class World:
    pg_group_ranks = {}
_world = World()
"""


class Ranks:
    """A folder with a probe and a package in the place of torch."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.probe, self.packages = folder, folder / "probe", folder / "packages"
        self.probe.mkdir(parents=True)
        (self.probe / "sitecustomize.py").write_text(source_of("probe"))
        self.make_torch(LISTEN)

    def make_torch(self, server: str) -> None:
        """Write the package; `server` is the body of the server's `__init__`."""
        for name in ("torch", "torch/_C", "torch/distributed"):
            (self.packages / name).mkdir(parents=True, exist_ok=True)
            (self.packages / name / "__init__.py").write_text("")
        (self.packages / "torch" / "_C" / "_distributed_c10d.py").write_text(NATIVE.format(server=server))
        imports = "import torch._C._distributed_c10d\n"
        (self.packages / "torch" / "distributed" / "distributed_c10d.py").write_text(imports + DISTRIBUTED)

    def run(self, script: str, env: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
        """Run a script as a process of the job."""
        path = os.pathsep.join([str(self.probe), str(self.packages)])
        base = {"PATH": os.environ["PATH"], "PYTHONPATH": path}
        argv = [sys.executable, "-c", script]
        return subprocess.run(argv, env={**base, **env}, capture_output=True, text=True, check=False, timeout=60)

    @property
    def left(self) -> list[str]:
        """The files in the probe's folder, besides itself."""
        return sorted(path.name for path in self.probe.iterdir() if path.suffix in (".sock", ".json"))


@pytest.fixture
def ranks(tmp_path: Path) -> Ranks:
    """A folder with a probe."""
    return Ranks(tmp_path)


def test_a_rank_has_a_private_socket_until_it_ends(ranks: Ranks) -> None:
    script = f"import os, torch.distributed.distributed_c10d\nfor each in os.scandir({str(ranks.probe)!r}):\n"
    script += "    if each.name.endswith('.sock'): print(each.name, oct(each.stat().st_mode & 0o777), os.getpid())"
    done = ranks.run(script, {"RANK": "3"})
    name, mode, pid = done.stdout.split()
    assert (name, mode) == (f"3-{pid}.sock", "0o600")
    assert (done.returncode, done.stderr, ranks.left) == (0, "", [])


@pytest.mark.parametrize("depth", [1, 12])
def test_a_path_of_any_length_will_do(tmp_path: Path, depth: int) -> None:
    ranks = Ranks(tmp_path.joinpath(*["a-long-name"] * depth))
    script = f"import os, torch.distributed.distributed_c10d; print(os.listdir({str(ranks.probe)!r}))"
    assert ".sock" in ranks.run(script, {"RANK": "0"}).stdout


def test_a_process_without_a_rank_has_none(ranks: Ranks) -> None:
    script = f"import os, torch.distributed.distributed_c10d; print(os.listdir({str(ranks.probe)!r}))"
    done = ranks.run(script, {})
    assert ".sock" not in done.stdout
    assert done.stderr == ""


def test_what_a_rank_starts_finds_no_probe_and_what_a_launcher_starts_does(ranks: Ranks) -> None:
    show = "import os; print(os.environ.get('PYTHONPATH'))"
    rank = ranks.run(f"import torch.distributed.distributed_c10d\n{show}", {"RANK": "0"})
    assert rank.stdout.strip() == str(ranks.packages)
    assert str(ranks.probe) in ranks.run(f"import torch.distributed.distributed_c10d\n{show}", {}).stdout


def test_the_module_path_of_a_program_is_as_without_a_probe(ranks: Ranks) -> None:
    assert str(ranks.probe) not in ranks.run("import sys; print(sys.path)", {"RANK": "0"}).stdout


def test_the_programs_own_sitecustomize_runs_and_may_fail(ranks: Ranks) -> None:
    (ranks.packages / "sitecustomize.py").write_text("import sys\nsys.own = 'was here'\n")
    show = "import sys, sitecustomize; print(sys.own, sitecustomize.__file__)"
    assert ranks.run(show, {}).stdout.split() == ["was", "here", str(ranks.packages / "sitecustomize.py")]
    (ranks.packages / "sitecustomize.py").write_text("raise ValueError('own')")
    done = ranks.run("print('went on')", {"RANK": "0"})
    assert "ValueError: own" in done.stderr
    assert done.stdout == "went on\n"


@pytest.mark.parametrize("server", ["raise RuntimeError('no socket')", "pass"])
def test_an_error_of_the_server_is_one_line_and_the_script_runs(ranks: Ranks, server: str) -> None:
    ranks.make_torch(server)  # with "pass" there is no socket whose mode could be set
    done = ranks.run("import torch.distributed.distributed_c10d; print('trained')", {"RANK": "0"})
    assert (done.returncode, done.stdout) == (0, "trained\n")
    assert done.stderr.startswith("torchfab: the probe of this rank does not work: ")
    assert done.stderr.count("\n") == 1


def test_a_torch_without_the_server_is_silent(ranks: Ranks) -> None:
    (ranks.packages / "torch" / "_C" / "_distributed_c10d.py").write_text("")
    done = ranks.run("import torch.distributed.distributed_c10d", {"RANK": "0"})
    assert (done.returncode, done.stderr, ranks.left) == (0, "", [])


def test_an_uncaught_exception_leaves_the_collectives_and_its_frames(ranks: Ranks) -> None:
    script = "import torch.distributed.distributed_c10d\ndef step():\n    raise ValueError('x')\nstep()"
    done = ranks.run(script, {"RANK": "5"})
    assert done.returncode == 1
    (name,) = ranks.left
    record = json.loads((ranks.probe / name).read_text())
    assert (record["rank"], record["recorder"], record["groups"]) == (5, {"entries": [1]}, {})
    assert [frame[0] for frame in record["stack"]] == ["step", "<module>"]


def test_settings_of_the_user_stay(ranks: Ranks) -> None:
    names = ("TORCH_FR_BUFFER_SIZE", "TORCH_NCCL_TRACE_BUFFER_SIZE", "TORCH_NCCL_DEBUG_INFO_TEMP_FILE")
    show = f"import os; print([os.environ.get(name) for name in {names}])"
    own = {"RANK": "0", "TORCH_FR_BUFFER_SIZE": "9", "TORCH_NCCL_DEBUG_INFO_TEMP_FILE": "/x"}
    assert ranks.run(show, own).stdout.strip() == "['9', None, '/x']"
    assert ranks.run(show, {"RANK": "0", names[1]: "7"}).stdout.startswith("[None, '7', ")
    assert ranks.run(show, {"RANK": "0"}).stdout.startswith("['2000', None, ")
    assert ranks.run(show, {}).stdout.strip() == "[None, None, None]"
