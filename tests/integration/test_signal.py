"""Notices to the ranks of a running job: `fab signal`."""

from __future__ import annotations

import re
from pathlib import Path

from tests.integration import launcher_contract
from tests.integration.fab import Fab, eventually
from tests.integration.jobs import ok

# Two loaders per rank; every process that gets SIGUSR1 says so.
NOTED = """
import os, signal, subprocess, sys, time
rank, out = os.environ["RANK"], sys.argv[1]
def on_signal(number, frame):
    with open(f"{out}/{rank}-{os.getpid()}", "a") as file:
        file.write(f"{number}\\n")
signal.signal(signal.SIGUSR1, on_signal)
loaders = [os.fork() for _ in range(2)]
if 0 not in loaders:
    open(f"{out}/{rank}.ready", "w").close()
while True:
    time.sleep(0.1)
"""


def test_each_rank_gets_one_notice_and_the_job_goes_on(fab: Fab) -> None:
    fab.write("noted.py", NOTED)
    out = launcher_contract.out_dir(fab, "noted")
    task = ("launch-per-node", "--hostfile", str(fab.cluster.hostfile), "--nproc-per-node", "2")
    ok(fab(*task, "--name", "noted", "--", "noted.py", str(out)))
    assert eventually(lambda: len(list(out.glob("*.ready"))) == 4, 150), fab("logs", "noted")
    sent = ok(fab("signal", "noted", "USR1"))
    assert sent.stdout == "SIGUSR1 sent to 4 ranks on 2 hosts\n", sent
    one = ok(fab("signal", "SIGUSR1", "--rank", "3"))
    assert one.stdout == "SIGUSR1 sent to 1 rank on 1 host\n", one
    assert eventually(lambda: sorted(found(out)) == [("0", 1), ("1", 1), ("2", 1), ("3", 2)], 20), found(out)
    refused = fab("signal", "noted", "USR2")
    assert refused.rc == 2, refused
    assert "ranks 0-3 of job noted have no handler of SIGUSR2" in refused.stderr
    ended = fab("signal", "noted", "TERM")
    assert (ended.rc, "use fab stop noted" in ended.stderr) == (2, True), ended
    assert sorted(found(out)) == [("0", 1), ("1", 1), ("2", 1), ("3", 2)]
    assert re.search(r"4 ranks ended by themselves", ok(fab("stop", "noted")).stdout)
    late = fab("signal", "noted", "USR1")
    assert (late.rc, "no rank of it runs; it is stopped" in late.stderr) == (2, True), late
    unknown = fab("signal", "nothing", "USR1")
    assert (unknown.rc, "Traceback" in unknown.stderr) == (2, False), unknown


def found(out: Path) -> list[tuple[str, int]]:
    """Return which processes got how many notices: by rank."""
    paths = list(out.glob("*-*"))
    return [(path.name.partition("-")[0], len(path.read_text().splitlines())) for path in paths]
