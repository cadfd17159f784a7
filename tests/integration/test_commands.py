"""Any command after `--`: output of each kind on two hosts, and commands that are refused before anything starts."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.integration.fab import Fab
from tests.integration.faults_injected import refused

SHELL = '#!/bin/sh\necho sh $RANK of $WORLD_SIZE "$@"\n'
PYTHON = "import os, sys\nprint('py', os.environ['RANK'], 'of', os.environ['WORLD_SIZE'], *sys.argv[1:])\n"

COMMANDS = {
    "python": (("python", "-u", "show.py", "a b"), "py {rank} of 2 a b"),
    "interpreter flags": (("python", "-O", "show.py"), "py {rank} of 2"),
    "code": (("-c", "import os; print('code', os.environ['RANK'])"), "code {rank}"),
    "a shell script": (("show.sh", "$HOME"), "sh {rank} of 2 $HOME"),
    "bash": (("bash", "show.sh", "a"), "sh {rank} of 2 a"),
    "a program": (("./tool", "a"), "sh {rank} of 2 a"),
    "a program on PATH": (("env", "true-name=1", "sh", "show.sh"), "sh {rank} of 2"),
}


# Of the commands that torchrun starts in the same way, one each: two torchruns take 5 s of CPU time.
PER_NODE = ("python", "code", "a shell script", "a program")


@pytest.mark.parametrize(
    ("case", "gpus"),
    [*((case, True) for case in COMMANDS), *((case, False) for case in PER_NODE)],
    ids=[*(f"{case}-per-gpu" for case in COMMANDS), *(f"{case}-per-node" for case in PER_NODE)],
)
def test_every_rank_runs_the_command(fab: Fab, case: str, gpus: bool) -> None:
    words, expected = COMMANDS[case]
    fab.write("show.py", PYTHON)
    for name in ("show.sh", "tool"):
        Path(fab.write(name, SHELL)).chmod(0o755 if name == "tool" else 0o644)
    nproc = () if gpus else ("--nproc-per-node", "1")
    ranks = 4 if gpus else 2
    done = fab(*fab.launch("--name", "any", *nproc, "--follow", "--", *words, gpus=gpus))
    assert done.rc == 0, done
    for rank in range(ranks):
        assert expected.format(rank=rank).replace(" of 2", f" of {ranks}") in done.stdout


REFUSED = {
    "no program": (("no-such-program", "a"), "there is no program no-such-program on PATH"),
    "a folder": (("configs",), "/configs is a folder"),
    "no shell script": (("no-such.sh",), "no-such.sh does not exist"),
    "torchrun": (
        ("torchrun", "--nproc_per_node", "2", "light.py"),
        "omit it: fab launch-per-node --nproc-per-node 2 -- light.py",
    ),
    "torch.distributed.run": (("python", "-m", "torch.distributed.run", "light.py"), "would start ranks inside"),
    "python alone": (("python",), "names no script"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_command_that_cannot_work_starts_nothing(fab: Fab, case: str) -> None:
    words, expected = REFUSED[case]
    (fab.workdir / "configs").mkdir()
    refused(fab(*fab.launch("--", *words)), expected, "fix: ")
    fab.assert_nothing_left(within_s=10)


def test_a_shell_is_no_interpreter(fab: Fab) -> None:
    refused(fab(*fab.launch("--python", "/bin/bash")), "/bin/bash is not a Python")
