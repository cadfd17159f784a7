"""What every launcher must be able to do, as checks that the tests of each launcher call with their own words."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.integration.fab import BIGRAM, Fab, eventually
from tests.integration.jobs import ok, status_of

PLACE = """
import json, os, signal, subprocess, sys, time
rank, out = os.environ["RANK"], os.environ["OUT_DIR"]
print("hello from", rank, flush=True)
if os.environ.get("STUBBORN"):
    # It leaves the session, and the signals that ask it to end: only the job's id tells whose it is.
    ignore = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(120)"
    subprocess.Popen([sys.executable, "-c", ignore], start_new_session=True)
with open(f"{out}/{rank}.new", "w") as file:
    json.dump({"argv": sys.argv[1:], "env": dict(os.environ), "cwd": os.getcwd()}, file)
os.replace(f"{out}/{rank}.new", f"{out}/{rank}.json")
while os.environ.get("FAILS") and not os.path.exists(f"{out}/1.json"):
    time.sleep(0.05)
if os.environ.get("FAILS") == rank:
    time.sleep(0.5)
    sys.exit(7)
time.sleep(float(os.environ.get("SECONDS_TO_RUN", "90")))
"""
WORDS = [
    *("", "a b", "it's", '"q"', "$HOME", "`id`", "$(id)", ";", "&&", "*", "~", "#{pid}", "\\", "%h %n %%", "a=b,c"),
    *("-", "--", "--hostfile", "-m", "--env", "two\nlines", "é€😀", "{a,b}", "!"),
]
SMALL = (
    *("--max-steps", "20", "--batch-size", "2", "--seq-length", "32", "--eval-size", "8", "--log-freq", "1"),
    *("--lr", "0.05", "--save-dir", "runs", "--dataset-cache-root"),
)
STEP_20 = re.compile(r" step=20\b.*? loss=(\d+\.\d+)")


def hosts(fab: Fab, *words: str) -> tuple[str, ...]:
    """Return the words of a launch with one rank on each of the two hosts."""
    return (*words, "--hostfile", str(fab.cluster.hostfile), "--nproc-per-node", "1")


def out_dir(fab: Fab, name: str) -> Path:
    """Make a folder into which the ranks of a job write who they are."""
    path = fab.workdir / f"out-{name}"
    path.mkdir()
    fab.own(path)
    return path


def is_complete(out: Path) -> bool:
    """Say whether both ranks have written who they are."""
    return {path.name for path in out.glob("*.json")} >= {"0.json", "1.json"}


def check_that_words_arrive_and_a_failure_ends_it(fab: Fab, *way: str) -> None:
    """Launch a script that gets strange words, and whose rank 1 exits with 7."""
    fab.write("place.py", PLACE)
    out = out_dir(fab, "words")
    env = ("--env", f"OUT_DIR={out}", "--env", "FAILS=1", "--env", 'TEXT=a "b" $c', "--env", "A_TOKEN=hunter2")
    ok(fab(*hosts(fab, *way), "--name", "words", *env, "--", "place.py", *WORDS))
    waited = fab("wait", "words", config={"failure_grace_s": 2}, timeout_s=200)
    assert waited.rc == 7, (waited, fab("logs", "words"))
    assert "rank 1 on" in waited.stderr, waited
    places = [json.loads((out / f"{rank}.json").read_text()) for rank in (0, 1)]
    assert [place["argv"] for place in places] == [WORDS, WORDS]
    assert [place["cwd"] for place in places] == [str(fab.workdir)] * 2
    wanted = {"WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1", "TEXT": 'a "b" $c', "A_TOKEN": "hunter2"}
    for rank, place in enumerate(places):
        mine = {**wanted, "RANK": str(rank), "TORCHFAB_NODE_RANK": str(rank)}
        assert {name: place["env"].get(name) for name in mine} == mine
        assert place["env"]["MASTER_ADDR"] == places[0]["env"]["MASTER_ADDR"]
    status = status_of(fab, "words")
    assert (status["state"], status["exit_code"], status["first_failure"]["rank"]) == ("failed", 7, 1), status
    lines = ok(fab("logs", "words")).stdout.splitlines()
    for rank in (0, 1):
        assert [line for line in lines if line.endswith(f"[{rank}] hello from {rank}")], lines
    assert fab.processes() == {}
    assert not [path for path in files_of(fab) if b"hunter2" in path.read_bytes()]
    record = json.loads((fab.records / "words" / "record.json").read_text())
    assert "torch " in record["chosen"]["versions"]


def files_of(fab: Fab) -> list[Path]:
    """Return the files of records and of job folders."""
    found = [*fab.records.rglob("*"), *fab.node_dir.rglob("*")]
    return [path for path in found if path.is_file()]


def check_that_stop_stops_one_job_and_a_killed_head_is_seen(fab: Fab, *way: str) -> None:
    """Launch two jobs; stop the one; kill the head of the other."""
    fab.write("place.py", PLACE)
    outs = {name: out_dir(fab, name) for name in ("one", "one-b")}
    for name, out in outs.items():
        env = ("--env", f"OUT_DIR={out}", "--env", "STUBBORN=1" if name == "one" else "X=1")
        ok(fab(*hosts(fab, *way), "--name", name, *env, "--", "place.py"))
    assert eventually(lambda: all(map(is_complete, outs.values())), 150), fab("logs", "one")
    stopped = ok(fab("stop", "one", "--grace", "2"))
    assert "no process of it is left on 2 nodes" in stopped.stdout, stopped
    assert jobs_running(fab) == {"one-b"}
    # Only a launcher that tells its other nodes of the end would leave them time to: look twice.
    assert not eventually(lambda: status_of(fab, "one-b")["state"] != "running", 1.5), fab("logs", "one-b")
    os.kill(head_pid(status_of(fab, "one-b")), signal.SIGKILL)
    # While its supervisor cleans up after it, the ranks that this ended are all that has failed.
    assert eventually(lambda: status_of(fab, "one-b")["exit_code"] == 137, 60), status_of(fab, "one-b")
    told = status_of(fab, "one-b")
    assert (told["state"], told["first_failure"]["rank"]) == ("failed", None), told
    ok(fab("stop", "one-b", "--grace", "2"))
    assert fab.processes() == {}


def jobs_running(fab: Fab) -> set[str]:
    """Return the names of the jobs that have a process, as the environment of each tells."""
    found = set()
    for pid in fab.processes():
        environment = Path(f"/proc/{pid}/environ").read_bytes()
        found |= {match[1].decode() for match in re.finditer(rb"TORCHFAB_JOB_ID=([\w-]+)-[0-9a-f]{8}\0", environment)}
    return found


def head_pid(status: dict[str, Any]) -> int:
    """Return the pid of the head; where there is none, of the launcher on node 0."""
    pids = {process["name"]: int(process["pid"]) for process in status["nodes"][0]["processes"]}
    return pids.get("head") or pids["agent"]


def loss_at_step_20(fab: Fab, cache: Path, *way: str) -> float:
    """Train on both hosts, and return what rank 0 logged: after the first it tells what all ranks have learned."""
    fab.take(*BIGRAM)
    script = ("bigram.py", *SMALL, str(cache), "--experiment-name", "one run")
    words = (*hosts(fab, *way), "--name", "train", "--follow", "--", *script)
    done = ok(fab(*words, timeout_s=240))
    match = STEP_20.search(done.stdout)
    assert match, done
    return float(match[1])


def check_that_the_dry_run_works_when_pasted(fab: Fab, *way: str) -> None:
    """Paste what the dry run prints into bash on the launch machine; the ranks must run."""
    fab.write("place.py", PLACE)
    out = out_dir(fab, "paste")
    env = ("--env", f"OUT_DIR={out}", "--env", "SECONDS_TO_RUN=0", "--env", "A_TOKEN=hunter2")
    text = ok(fab(*hosts(fab, *way), "--dry-run", "--name", "paste", *env, "--", "place.py", *WORDS)).stdout
    assert "hunter2" not in text
    bash = fab.cluster.on_launch_machine("env", "A_TOKEN=hunter2", "bash")
    pasted = subprocess.run(bash, input=text, capture_output=True, text=True, check=False, cwd=fab.workdir, timeout=60)
    assert pasted.returncode == 0, (pasted.stderr, text)
    assert eventually(lambda: is_complete(out), 150), (outputs(fab), text)
    places = [json.loads((out / f"{rank}.json").read_text()) for rank in (0, 1)]
    assert [place["argv"] for place in places] == [WORDS, WORDS]
    assert {place["env"]["A_TOKEN"] for place in places} == {"hunter2"}
    assert eventually(lambda: not fab.processes(), 60), fab.processes()


def outputs(fab: Fab) -> dict[str, str]:
    """Return what the processes of a pasted job have said."""
    return {str(path): path.read_text(errors="replace") for path in fab.node_dir.rglob("output.log")}


def has_module(name: str) -> bool:
    """Say whether the interpreter that runs the tests has a module."""
    code = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({name!r}) is None)"
    return subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
