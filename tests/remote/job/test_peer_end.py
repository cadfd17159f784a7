"""When a rank fails, the others of its node save before their launcher learns of it; each gets SIGTERM once."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.remote.place import Place, wait_for
from torchfab.launchers.shims import source_of
from torchfab.remote import job_files, procfs

# A launcher as torchrun is: when a rank fails or SIGTERM comes, it ends the others and what is below them. With
# RESTARTS, it starts the ranks again that often. As torchrun, it sleeps between two looks: one that reaps a rank in the
# moment in which that fails cannot be held.
LAUNCHER = """
import os, signal, subprocess, sys, time
terms = []
signal.signal(signal.SIGTERM, lambda *_: terms.append(1))
def run(attempt):
    env = {**os.environ, "TORCHELASTIC_RESTART_COUNT": str(attempt)}
    ranks = [
        subprocess.Popen([sys.executable, "-c", *sys.argv[1:3]], env={**env, "RANK": str(number)},
                         start_new_session=True)
        for number in range(3)
    ]
    while not terms and all(rank.poll() is None for rank in ranks):
        time.sleep(0.05)
    for number in (signal.SIGTERM, signal.SIGKILL):
        for rank in ranks:
            if rank.poll() is None:
                os.killpg(rank.pid, number)
for attempt in range(int(os.environ.get("RESTARTS", "0")) + 1):
    run(attempt)
sys.exit(4 if terms else 1)
"""
# Rank 0 fails when it is told to. The others have a helper, and save for a while; what they got is in what they save.
RANK = """
import json, os, signal, subprocess, sys, time
helper = subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(600)"])
terms = []
signal.signal(signal.SIGTERM, lambda *_: terms.append(1))
rank, out = os.environ["RANK"], sys.argv[1]
name = f"{rank}-{os.environ['TORCHELASTIC_RESTART_COUNT']}"
open(f"{out}/ready-{name}", "w").close()
while not terms:
    if rank == "0" and os.path.exists(f"{out}/fail-{os.environ['TORCHELASTIC_RESTART_COUNT']}"):
        os._exit(7)
    time.sleep(0.005)
time.sleep(float(os.environ.get("SAVE_S", "0.7")))
with open(f"{out}/saved-{name}.new", "w") as file:
    json.dump([len(terms), helper.poll() is None], file)
os.replace(f"{out}/saved-{name}.new", f"{out}/saved-{name}")
os._exit(0)
"""


def launched(place: Place, out: Path, **spec: Any) -> subprocess.Popen[bytes]:
    """Start a supervisor whose launcher has three ranks; return it once they are ready."""
    place.prepare([sys.executable, "-c", LAUNCHER, RANK, str(out)], **spec)
    supervisor = place.supervise()
    await_ranks(place, out, 0)
    return supervisor


def await_ranks(place: Place, out: Path, attempt: int) -> None:
    """Wait until the ranks of an attempt are ready and known, and their launcher is watched."""
    wait_for(lambda: len(list(out.glob(f"ready-*-{attempt}"))) == 3)
    wait_for(lambda: len(place.read(place.folder / "agent", job_files.RANKS) or []) == 3 * (attempt + 1))
    launcher = place.read(place.folder / "agent", job_files.STARTED)["pid"]
    wait_for(lambda: "TracerPid:\t0\n" not in Path(f"/proc/{launcher}/status").read_text())


def saved(out: Path) -> dict[str, Any]:
    """Return what each rank saved: how many SIGTERMs it got, and whether its helper lived."""
    return {path.name[6:]: json.loads(path.read_text()) for path in out.glob("saved-?-?")}


def ended(place: Place, supervisor: subprocess.Popen[bytes]) -> dict[str, Any]:
    """Return the record of the end, once nothing runs."""
    supervisor.wait(30)
    assert place.running() == []
    record: dict[str, Any] = place.read(place.folder / "agent", job_files.EXIT)
    return record


def test_the_others_save_when_a_rank_fails(place: Place, tmp_path: Path) -> None:
    supervisor = launched(place, tmp_path, grace_s=20)
    (tmp_path / "fail-0").touch()
    record = ended(place, supervisor)
    assert saved(tmp_path) == {"1-0": [1, True], "2-0": [1, True]}
    assert (record["code"], record["asked"], record["killed"]) == (1, None, [])
    assert [why for _, why in record["peers"]] == ["failed", "failed"]
    codes = {rank["rank"]: rank["code"] for rank in place.read(place.folder / "agent", job_files.RANKS)}
    assert codes == {0: 7, 1: 0, 2: 0}


def test_ranks_that_exceed_the_grace_period_are_killed(place: Place, tmp_path: Path) -> None:
    supervisor = launched(place, tmp_path, grace_s=0.5, env={"SAVE_S": "60"})
    (tmp_path / "fail-0").touch()
    record = ended(place, supervisor)
    assert saved(tmp_path) == {}
    assert record["code"] == 1
    assert len([text for text in record["killed"] if "terms" in text or "python" in text]) >= 2, record


def test_each_attempt_of_the_launcher_lets_ranks_save(place: Place, tmp_path: Path) -> None:
    supervisor = launched(place, tmp_path, grace_s=20, env={"RESTARTS": "1"})
    (tmp_path / "fail-0").touch()
    await_ranks(place, tmp_path, 1)
    (tmp_path / "fail-1").touch()
    assert ended(place, supervisor)["code"] == 1
    assert saved(tmp_path) == {f"{rank}-{attempt}": [1, True] for rank in (1, 2) for attempt in (0, 1)}


def test_a_signal_to_the_launcher_lets_ranks_save(place: Place, tmp_path: Path) -> None:
    supervisor = launched(place, tmp_path, grace_s=20)
    os.kill(place.read(place.folder / "agent", job_files.STARTED)["pid"], signal.SIGTERM)
    record = ended(place, supervisor)
    assert record["code"] == 4, "the signal takes effect after the ranks have ended"
    assert [why for _, why in record["peers"]] == ["SIGTERM"] * 3
    assert saved(tmp_path) == {f"{rank}-0": [1, True] for rank in (0, 1, 2)}


def test_a_scheduler_that_signals_all_processes_gives_each_rank_one_signal(place: Place, tmp_path: Path) -> None:
    supervisor = launched(place, tmp_path, grace_s=20, stop_by_file=True)
    ranks = [rank["pid"] for rank in place.read(place.folder / "agent", job_files.RANKS)]
    agent = place.read(place.folder / "agent", job_files.STARTED)["pid"]
    for pid in (agent, *ranks, supervisor.pid):
        os.kill(pid, signal.SIGTERM)
    assert ended(place, supervisor)["code"] == 4
    assert saved(tmp_path) == {f"{rank}-0": [1, True] for rank in (0, 1, 2)}


def test_a_stop_during_the_end_gives_no_second_signal(place: Place, tmp_path: Path) -> None:
    supervisor = launched(place, tmp_path, grace_s=20)
    (tmp_path / "fail-0").touch()
    wait_for(lambda: any(rank["ended"] for rank in place.read(place.folder / "agent", job_files.RANKS)))
    supervisor.send_signal(signal.SIGTERM)
    record = ended(place, supervisor)
    assert saved(tmp_path) == {"1-0": [1, True], "2-0": [1, True]}
    assert record["asked"] == "SIGTERM"


def test_a_stopped_launcher_can_be_continued(place: Place, tmp_path: Path) -> None:
    supervisor = launched(place, tmp_path, grace_s=20)
    agent = place.read(place.folder / "agent", job_files.STARTED)["pid"]
    os.kill(agent, signal.SIGSTOP)
    wait_for(lambda: procfs.stat_fields(agent)[0] in "tT")
    os.kill(agent, signal.SIGCONT)
    wait_for(lambda: procfs.stat_fields(agent)[0] == "S")
    os.kill(agent, signal.SIGTERM)
    assert ended(place, supervisor)["code"] == 4


# A launcher as hydra's proxy is: told by another node, it kills the shims above its ranks, and ends.
KILLER = """
import os, subprocess, sys, time
names = {"PMI_SIZE": "2", "MPI_LOCALNRANKS": "2", "TORCHELASTIC_RESTART_COUNT": "0"}
shims = [
    subprocess.Popen([sys.executable, "-I", "-S", sys.argv[1], "--logs", sys.executable, "-c", *sys.argv[2:4]],
                     env={**os.environ, **names, "PMI_RANK": str(number), "MPI_LOCALRANKID": str(number)})
    for number in (1, 2)
]
while not os.path.exists(sys.argv[3] + "/kill"):
    time.sleep(0.005)
for shim in shims:
    shim.kill()
sys.exit(5)
"""


def test_ranks_whose_shims_are_killed_get_one_signal(place: Place, tmp_path: Path) -> None:
    shim = place.folder / "agent" / "rank.py"
    job_files.make_private(str(shim.parent / "logs"))
    shim.write_text(source_of("rank"))
    place.prepare([sys.executable, "-c", KILLER, str(shim), RANK, str(tmp_path)], grace_s=20)
    supervisor = place.supervise()
    wait_for(lambda: len(list(tmp_path.glob("ready-?-0"))) == 2)
    wait_for(lambda: len(place.read(place.folder / "agent", job_files.RANKS) or []) == 2)
    (tmp_path / "kill").touch()
    assert ended(place, supervisor)["code"] == 5
    assert saved(tmp_path) == {"1-0": [1, True], "2-0": [1, True]}
