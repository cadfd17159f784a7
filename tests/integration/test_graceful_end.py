"""A stop lets every rank save, under every launcher: loaders and launchers live until the ranks have ended."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from testbed.allocation import find_program
from tests.integration import ends, launcher_contract
from tests.integration.fab import Fab, eventually
from tests.integration.jobs import gpufile, host_line, ok
from tests.support import absent

# Trains with two loaders. SIGTERM sets a flag that is read at the end of a step; the ranks then meet once more, which
# needs the store of the rendezvous, and odd ranks save for a while. A second SIGTERM means "leave now".
SAVES = """
import json, os, signal, sys, time
import torch, torch.distributed as dist
from torch.utils.data import DataLoader, Dataset

class Numbers(Dataset):
    def __len__(self):
        return 1_000_000
    def __getitem__(self, index):
        return torch.tensor([float(index)])

terms = []
def on_term(number, frame):
    terms.append(time.time())
    if len(terms) > 1:
        os._exit(9)

rank, out, save_s = int(os.environ["RANK"]), sys.argv[1], float(sys.argv[2])
signal.signal(signal.SIGTERM, on_term)
dist.init_process_group("gloo")
loader = iter(DataLoader(Numbers(), batch_size=2, num_workers=2, prefetch_factor=1))
open(f"{out}/{rank}.ready", "w").close()
stop = torch.zeros(1)
while not stop:
    next(loader)
    time.sleep(0.05)
    stop[0] = len(terms)
    dist.all_reduce(stop)
dist.all_reduce(torch.ones(1), group=dist.new_group())
deadline = time.time() + save_s * (rank % 2)
while time.time() < deadline:
    next(loader)
    time.sleep(0.5)
while not terms:
    time.sleep(0.01)
with open(f"{out}/{rank}.new", "w") as file:
    json.dump({"terms": len(terms), "saved_s": time.time() - terms[0]}, file)
os.replace(f"{out}/{rank}.new", f"{out}/{rank}.json")
os._exit(0)
"""
PLAIN = """
import os, sys, time
open(f"{sys.argv[1]}/{os.environ['RANK']}.ready", "w").close()
time.sleep(600)
"""
LAUNCHERS = {
    "launch-per-node": ("launch-per-node",),
    "launch-per-gpu": ("launch-per-gpu",),
    "launch-deepspeed": ("launch-deepspeed",),
    "launch-deepspeed --from-head": ("launch-deepspeed", "--from-head"),
    "launch-mpi, Open MPI": ("launch-mpi", "--flavour", "openmpi"),
    "launch-mpi, MPICH": ("launch-mpi", "--flavour", "mpich"),
    "launch-colossalai": ("launch-colossalai",),
}


def is_installed(launcher: str) -> str:
    """Return the missing requirement of a launcher; empty if it is installed."""
    for module in ("deepspeed", "colossalai"):
        if module in launcher and not launcher_contract.has_module(module):
            return f"{module} is not installed"
    programs = {"--from-head": "pdsh", "Open MPI": "mpirun.openmpi", "MPICH": "mpiexec.hydra"}
    needed = [program for part, program in programs.items() if part in launcher]
    return "".join(f"{program} is not installed" for program in needed if not find_program(program))


@pytest.fixture(params=LAUNCHERS)
def launcher(request: pytest.FixtureRequest) -> str:
    """Return each launcher that is installed here."""
    name = str(request.param)
    if problem := is_installed(name):
        absent(problem)
    return name


def launch(fab: Fab, launcher: str, script: str, *args: str, ranks: int = 4) -> Path:
    """Launch a script with two ranks on each of the two hosts; return its folder once all ranks are ready."""
    fab.write("script.py", script)
    out = launcher_contract.out_dir(fab, "saved")
    task = LAUNCHERS[launcher]
    if launcher == "launch-per-gpu":
        task = (*task, "--gpufile", gpufile(fab, 0, 0, 1, 1))
    else:
        task = (*task, "--hostfile", str(fab.cluster.hostfile), "--nproc-per-node", "2")
    ok(fab(*task, "--name", "saver", "--", "script.py", str(out), *args))
    assert eventually(lambda: len(list(out.glob("*.ready"))) == ranks, 150), fab("logs", "saver")
    return out


def saved(out: Path) -> dict[int, dict[str, Any]]:
    """Return the files that each rank saved."""
    return {int(path.stem): json.loads(path.read_text()) for path in out.glob("*.json")}


def test_stop_lets_ranks_save_with_loaders_and_one_term(fab: Fab, launcher: str) -> None:
    out = launch(fab, launcher, SAVES, "6")
    stopped = fab("stop", "saver", "--grace", "40", timeout_s=90)
    found = saved(out)
    assert sorted(found) == [0, 1, 2, 3], (stopped, fab("logs", "saver", "--lines", "30"))
    assert {each["terms"] for each in found.values()} == {1}, found
    assert min(found[rank]["saved_s"] for rank in (1, 3)) > 5, found
    assert stopped.rc == 0, stopped
    assert "4 ranks ended by themselves" in stopped.stdout, stopped
    assert "killed" not in stopped.stdout, stopped
    assert fab.processes() == {}


def test_stop_ends_ranks_without_a_handler_at_once(fab: Fab) -> None:
    launch(fab, "launch-per-node", PLAIN)
    stopped = ok(fab("stop", "saver", "--grace", "40"))
    assert re.search(r"4 ranks ended by themselves \([12]?[0-9] s\)", stopped.stdout), stopped
    assert fab.processes() == {}


def test_ranks_that_need_more_than_the_grace_are_reported(fab: Fab) -> None:
    out = launch(fab, "launch-per-node", SAVES, "60")
    stopped = fab("stop", "saver", "--grace", "8")
    assert sorted(saved(out)) == [0, 2], stopped
    assert stopped.rc == 3, stopped
    assert re.search(r"2 ranks ended by themselves \(\d s\), 2 were killed after 8 s", stopped.stdout), stopped
    assert "no process of it is left on 2 nodes" in stopped.stdout, stopped
    assert ok(fab("stop", "saver")).stdout.count("killed") == 0


# The other launchers are in the matrix of ends.
@pytest.mark.parametrize("launcher", ["launch-per-node", "launch-mpi, Open MPI"])
def test_the_others_of_a_node_save_when_a_rank_fails(fab: Fab, launcher: str) -> None:
    if problem := is_installed(launcher):
        absent(problem)
    fab.write("script.py", ends.SCRIPT)
    out = launcher_contract.out_dir(fab, "saved")
    hosts = fab.write("one_host", f"{host_line(fab, 0)}\n")
    task = (*LAUNCHERS[launcher], "--hostfile", str(hosts), "--nproc-per-node", "4", "--grace", "20")
    ok(fab(*task, "--name", "peers", "--", "script.py", str(out), "3"))
    assert ends.await_ready(out, 4), fab("logs", "peers")
    (out / "fail").touch()
    waited = fab("wait", "peers", timeout_s=90)
    assert ends.problems_of(ends.read_ends(out, 4)) == {}, (waited, fab("logs", "peers"))
    assert waited.rc == 7, waited
    assert fab.processes() == {}
