"""Who failed first, in plays of two ranks on two hosts: status, wait and why name the same one."""

from __future__ import annotations

import pytest

from tests.integration import launcher_contract
from tests.integration.fab import Fab, eventually
from tests.integration.jobs import ok, two
from tests.integration.launcher_contract import PLAY, shown

EXPECTED = {
    "lingers": ("exception", "no label in batch 17"),
    "hangs": ("exception", "no label in batch 17"),
    "exit-0": ("exception", "no label in batch 17"),
    "thread-after": ("exception", "no label in batch 17"),
    "ends-last": ("exception", "no label in batch 17"),
    "early": ("left-early", "had ended with exit code 0"),
}


@pytest.mark.parametrize("how", EXPECTED)
def test_status_wait_and_why_name_the_same_first_rank(fab: Fab, how: str) -> None:
    fab.write("play.py", PLAY)
    out = fab.workdir / "out"
    out.mkdir()
    ok(fab(*two(fab, "--name", "x", "--env", f"OUT={out}", "--", "play.py", how)))
    assert eventually(lambda: (out / "over").exists(), 30)
    waited = fab("wait", "x", config={"failure_grace_s": 6})
    why = shown(fab, "why", "x")
    assert (why["cause"]["name"], why["first"]["rank"]) == (EXPECTED[how][0], 1), why
    assert EXPECTED[how][1] in why["cause"]["words"]
    assert shown(fab, "status", "x")["first_failure"]["rank"] == 1
    assert "rank 1 on node2 failed first" in waited.stderr, waited
    assert "logs x --rank 1" in waited.stderr


def test_rank_that_ends_at_once_has_its_code_and_its_log(fab: Fab) -> None:
    fab.write(
        "at_once.py", "import os\nprint('begin', flush=True)\nraise ValueError('no file of ' + os.environ['RANK'])\n"
    )
    hosts = str(fab.cluster.hostfile)
    ok(fab("launch-per-node", "--hostfile", hosts, "--nproc-per-node", "2", "--name", "x", "--", "at_once.py"))
    fab("wait", "x", config={"failure_grace_s": 6}, timeout_s=120)
    why, status = shown(fab, "why", "x"), shown(fab, "status", "x")
    first = why["first"]["rank"]
    assert why["cause"]["words"] == f"the script raised ValueError: no file of {first}"
    assert status["first_failure"]["rank"] == first
    assert {rank["code"] for node in status["nodes"] for rank in node["ranks"] if rank["rank"] == first} == {1}
    assert "begin" in fab("logs", "x", "--rank", str(first)).stdout


def test_launch_per_node_names_the_same_first_rank(fab: Fab) -> None:
    launcher_contract.check_first_rank(fab, "launch-per-node")
