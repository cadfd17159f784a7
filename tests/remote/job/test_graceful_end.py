"""The order of an end: ranks first and once, then their launcher; helpers of a rank live until it has ended."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.remote.place import Place, wait_for
from torchfab.remote import job_files

# A launcher as torchrun is: it ends all others when one rank fails, and what is below them too, with SIGKILL at once.
LAUNCHER = """
import os, signal, subprocess, sys, time
ranks = [
    subprocess.Popen([sys.executable, "-c", sys.argv[1], sys.argv[2]], env={**os.environ, "RANK": str(number)},
                     start_new_session=True)
    for number in range(2)
]
signal.signal(signal.SIGTERM, lambda *_: sys.exit(4))
while all(rank.poll() is None for rank in ranks):
    time.sleep(0.01)
for rank in ranks:
    os.killpg(rank.pid, signal.SIGKILL)
sys.exit(1)
"""
# A rank with a helper. Rank 1 saves for a while, with its helper alive; a second SIGTERM ends it at once.
RANK = """
import os, signal, subprocess, sys, time
helper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
terms = []
def on_signal(number, frame):
    terms.append(number)
    if len(terms) > 1:
        os._exit(9)
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
    signal.signal(number, on_signal)
rank, out = os.environ["RANK"], sys.argv[1]
open(f"{out}/ready-{rank}", "w").close()
while not terms:
    time.sleep(0.01)
if rank == "1":
    with open(f"{out}/part", "w"):
        time.sleep(float(os.environ.get("SAVE_S", "1.5")))
alive = helper.poll() is None
with open(f"{out}/saved-{rank}", "w") as file:
    file.write(f"{terms[0]} {alive}")
os._exit(3 if rank == "0" else 0)
"""


def launched(place: Place, out: Path, **spec: Any) -> subprocess.Popen[bytes]:
    """Start a supervisor whose launcher has two ranks; return it once they are ready."""
    place.prepare([sys.executable, "-c", LAUNCHER, RANK, str(out)], **spec)
    supervisor = place.supervise()
    wait_for(lambda: len(list(out.glob("ready-*"))) == 2)
    wait_for(lambda: len(place.read(place.folder / "agent", job_files.RANKS) or []) == 2)
    return supervisor


def ended(place: Place, supervisor: subprocess.Popen[bytes]) -> dict[str, Any]:
    supervisor.wait(30)
    assert place.running() == []
    record: dict[str, Any] = place.read(place.folder / "agent", job_files.EXIT)
    return record


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_every_rank_saves_though_another_has_failed(place: Place, tmp_path: Path, number: signal.Signals) -> None:
    supervisor = launched(place, tmp_path, grace_s=20)
    supervisor.send_signal(number)
    record = ended(place, supervisor)
    assert {path.name: path.read_text() for path in tmp_path.glob("saved-*")} == {
        "saved-0": f"{int(number)} True",
        "saved-1": f"{int(number)} True",
    }
    assert record["code"] == 4, "the launcher gets SIGTERM before it learns of the ranks' end"
    assert record["rank_ends"]["ended"] == 2
    assert 1 < record["rank_ends"]["seconds"] < 10
    assert [text for text in record["killed"] if "launcher" in text] == []


def test_two_requests_give_each_rank_one_signal(place: Place, tmp_path: Path) -> None:
    supervisor = launched(place, tmp_path, grace_s=20)
    supervisor.send_signal(signal.SIGTERM)
    wait_for(lambda: (tmp_path / "saved-0").exists())
    supervisor.send_signal(signal.SIGTERM)
    ended(place, supervisor)
    assert (tmp_path / "saved-1").exists()


def test_ranks_that_exceed_the_grace_period_are_killed_and_counted(place: Place, tmp_path: Path) -> None:
    supervisor = launched(place, tmp_path, grace_s=1, env={"SAVE_S": "60"})
    supervisor.send_signal(signal.SIGTERM)
    record = ended(place, supervisor)
    assert (record["rank_ends"]["ended"], record["rank_ends"]["killed"]) == (1, 1)
    assert (record["rank_ends"]["unfinished"], record["rank_ends"]["writing"]) == (1, [str(tmp_path / "part")])
    assert not (tmp_path / "saved-1").exists()


def test_launchers_wait_while_ranks_of_other_nodes_may_need_them(place: Place, tmp_path: Path) -> None:
    supervisor = launched(place, tmp_path, grace_s=20)
    stop = place.folder / job_files.STOP
    job_files.write_json(str(stop), {"time": 0.0, "grace_s": 20, "ranks_first": True})
    supervisor.send_signal(signal.SIGTERM)
    wait_for(lambda: (place.folder / "agent" / job_files.RANKS_ENDED).exists())
    with pytest.raises(subprocess.TimeoutExpired):
        supervisor.wait(0.5)
    job_files.write_json(str(stop), {"time": 0.0, "grace_s": 20, "ranks_first": False})
    assert ended(place, supervisor)["code"] == 4


def test_a_notice_reaches_the_ranks_and_not_their_launcher(place: Place, tmp_path: Path) -> None:
    supervisor = launched(place, tmp_path, grace_s=20)  # rank 1 needs longer: its launcher ends when rank 0 does
    supervisor.send_signal(signal.SIGUSR1)
    path = tmp_path / "saved-0"
    assert wait_for(lambda: path.exists() and path.read_text()) == f"{int(signal.SIGUSR1)} True"
    ended(place, supervisor)
