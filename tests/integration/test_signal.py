"""Notices to the ranks of a running job: `fab signal` and `fab checkpoint`."""

from __future__ import annotations

import re
from pathlib import Path

from tests.integration import launcher_contract
from tests.integration.fab import BIGRAM, Fab, eventually
from tests.integration.jobs import ok, status_of
from tests.integration.launcher_contract import SMALL
from tests.integration.test_graceful_end import PLAIN

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
    assert (late.rc, "is running; the job is stopped" in late.stderr) == (2, True), late
    unknown = fab("signal", "nothing", "USR1")
    assert (unknown.rc, "Traceback" in unknown.stderr) == (2, False), unknown


def found(out: Path) -> list[tuple[str, int]]:
    """Return which processes got how many notices: by rank."""
    paths = list(out.glob("*-*"))
    return [(path.name.partition("-")[0], len(path.read_text().splitlines())) for path in paths]


def test_a_checkpoint_is_asked_for_and_whole(fab: Fab) -> None:
    fab.take(*BIGRAM)
    training = (
        *SMALL,
        str(fab.workdir / "cache"),
        "--max-steps",
        "100000",
        "--experiment-name",
        "asked",
        "--ckpt-freq",
        "0",
    )
    task = ("launch-per-node", "--hostfile", str(fab.cluster.hostfile), "--nproc-per-node", "1")
    ok(fab(*task, "--name", "asked", "--env", "PAUSE_S=0.2", "--", "bigram.py", *training))
    assert eventually(lambda: " step=2/" in fab("logs", "asked").stdout, 150), fab("logs", "asked")
    saved = ok(fab("checkpoint", "asked", timeout_s=90))
    match = re.fullmatch(
        r"checkpoint of step (\d+) on node1: (runs/asked/checkpoints/step-0*\1\.pt), .* after \d+\.\d s\n", saved.stdout
    )
    assert match, saved
    assert (fab.workdir / match[2]).exists(), saved
    assert [path.name for path in (fab.workdir / match[2]).parent.glob("*.part")] == []
    assert status_of(fab, "asked")["state"] == "running"
    ok(fab("stop", "asked"))


def test_a_script_without_a_handler_is_not_ended_by_a_checkpoint(fab: Fab) -> None:
    fab.write("plain.py", PLAIN)
    out = launcher_contract.out_dir(fab, "runs")
    task = ("launch-per-node", "--hostfile", str(fab.cluster.hostfile), "--nproc-per-node", "1")
    ok(fab(*task, "--name", "plain", "--", "plain.py", str(out)))
    assert eventually(lambda: len(list(out.glob("*.ready"))) == 2, 150), fab("logs", "plain")
    unknown = fab("checkpoint", "plain")
    assert (unknown.rc, "fab checkpoint plain --dir FOLDER" in unknown.stderr) == (2, True), unknown
    refused = fab("checkpoint", "plain", "--dir", str(out))
    assert (refused.rc, "ranks 0-1 of job plain have no handler for SIGUSR1" in refused.stderr) == (2, True), refused
    ignored = fab("checkpoint", "plain", "--dir", str(out), "--signal", "CONT")
    assert (ignored.rc, "every rank of job plain ignores SIGCONT" in ignored.stderr) == (2, True), ignored
    assert status_of(fab, "plain")["state"] == "running"
    ok(fab("stop", "plain"))
