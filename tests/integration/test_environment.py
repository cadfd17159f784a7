"""The environment of ranks: what the node, the launch machine and the flags give them."""

from __future__ import annotations

import os
import sys

import pytest

from tests.integration.fab import Fab
from tests.integration.faults_injected import refused, start_up_file

SHOW = """import os
print('PATH is', os.environ['PATH'].split(':')[0])
print('PET', [name for name in os.environ if name.startswith('PET_')])
"""


def test_a_ranks_path_begins_with_the_interpreters_folder_and_has_no_pet(fab: Fab) -> None:
    fab.write("show.py", SHOW)
    with start_up_file(fab.cluster.node(0), "export PET_STANDALONE=1 PET_NNODES=7\n"):
        done = fab(*fab.launch("--name", "env", "--follow", "--", "show.py"), env={"LD_LIBRARY_PATH": "/nowhere"})
    assert done.rc == 0, done
    assert f"PATH is {os.path.dirname(sys.executable)}" in done.stdout
    assert "PET []" in done.stdout
    assert "note: LD_LIBRARY_PATH is set here and not forwarded: --env LD_LIBRARY_PATH" in done.stderr


@pytest.mark.parametrize("pair", ["RANK=3", "WORLD_SIZE=2", "LOCAL_RANK=0", "MASTER_ADDR=a", "MASTER_PORT=1"])
def test_variables_that_the_launcher_sets_are_refused(fab: Fab, pair: str) -> None:
    name = pair.partition("=")[0]
    done = fab(*fab.launch("--env", pair))
    refused(done, f"--env {name}: the launcher sets {name} for every process", "fix: ")
    fab.assert_nothing_left()
