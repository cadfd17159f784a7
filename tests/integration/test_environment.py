"""The environment of ranks: variables of the node, of the launch machine and of flags."""

from __future__ import annotations

import os
import re
import sys
import time

import pytest

from tests.integration.fab import Fab
from tests.integration.faults import Matrix
from tests.integration.faults_injected import refused, start_up_file
from tests.integration.jobs import status_of

SHOW = """import os
print('PATH is', os.environ['PATH'].split(':')[0])
print('PET', [name for name in os.environ if name.startswith('PET_')])
print('RANK', os.environ['RANK'], 'of', os.environ['WORLD_SIZE'])
"""
LAUNCHER_VARIABLES = {"PET_STANDALONE": "1", "PET_NNODES": "7", "PET_RDZV_CONF": "is_host=0", "RANK": "5"}
LAUNCHER_VARIABLES |= {"WORLD_SIZE": "9", "MASTER_ADDR": "nowhere.invalid", "MASTER_PORT": "1"}


def test_a_ranks_path_begins_with_the_interpreters_folder_and_variables_of_launchers_are_dropped(
    fab: Fab, matrix: Matrix
) -> None:
    row = matrix.row("a node's login environment has PET_STANDALONE, RANK, MASTER_ADDR", fab, "env")
    row.without(3)
    fab.write("show.py", SHOW)
    exports = " ".join(f"{name}={value}" for name, value in LAUNCHER_VARIABLES.items())
    with start_up_file(fab.cluster.node(0), f"export {exports}\n"):
        done = fab(*fab.launch("--name", "env", "--follow", "--", "show.py"), env={"LD_LIBRARY_PATH": "/nowhere"})
    assert done.rc == 0, done
    assert f"PATH is {os.path.dirname(sys.executable)}" in done.stdout
    assert "PET []" in done.stdout
    assert sorted(re.findall(r"RANK (\d of \d)", fab("logs", "env").stdout)) == ["0 of 4", "1 of 4", "2 of 4", "3 of 4"]
    assert "note: LD_LIBRARY_PATH is set here and not forwarded: --env LD_LIBRARY_PATH" in done.stderr
    names = ", ".join(sorted(LAUNCHER_VARIABLES))
    expected = (
        f"warning: node1: its login environment has variables of launchers, which ranks do not inherit: {names}\n"
    )
    assert done.stderr.count(expected) == 1, done
    ranks = [rank for node in status_of(fab, "env")["nodes"] for rank in node["ranks"]]
    assert sorted(rank["rank"] for rank in ranks) == [0, 1, 2, 3]
    row.output_has(done.stderr, "its login environment has variables of launchers")
    row.nothing_left()
    row.logs("node1 [0] RANK 0 of 4", "node2 [3] RANK 3 of 4")


@pytest.mark.parametrize("pair", ["RANK=3", "WORLD_SIZE=2", "LOCAL_RANK=0", "MASTER_ADDR=a", "MASTER_PORT=1"])
def test_variables_that_the_launcher_sets_are_refused(fab: Fab, pair: str) -> None:
    name = pair.partition("=")[0]
    done = fab(*fab.launch("--env", pair))
    refused(done, f"--env {name}: the launcher sets {name} for every process", "fix: ")
    fab.assert_nothing_left()


TMUX_FILES = {
    "which ends sessions": "set -g destroy-unattached on\nset -g exit-unattached on\n"
    "set-hook -g session-created 'kill-server'\n",
    "which waits and stays": "run-shell 'sleep 35'\nset -g exit-empty off\nset -g remain-on-exit on\n"
    "new-session -d -s mine\n",
}


@pytest.mark.parametrize("what", TMUX_FILES)
def test_a_nodes_tmux_configuration_has_no_effect(fab: Fab, matrix: Matrix, what: str) -> None:
    row = matrix.row(f"a node's tmux.conf {what}", fab)
    row.without(2, 3)
    path = fab.cluster.node(1).home / ".tmux.conf"
    path.write_text(TMUX_FILES[what])
    begun = time.monotonic()
    try:
        assert fab(*fab.launch("--name", "x", gpus=True)).rc == 0
        row.state_is("running", "running")
        row.stopped()
    finally:
        path.unlink()
    assert time.monotonic() - begun < 60
