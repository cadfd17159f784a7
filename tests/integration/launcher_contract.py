"""Checks that every launcher must pass; the tests of each launcher call them with its arguments."""

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

RECORD_SCRIPT = """
import json, os, signal, subprocess, sys, time
rank, out = os.environ["RANK"], os.environ["OUT_DIR"]
print("hello from", rank, flush=True)
if os.environ.get("STUBBORN"):
    # It leaves the session and ignores SIGTERM: only the job's id in its environment identifies it.
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
HOSTILE_ARGS = [
    *("", "a b", "it's", '"q"', "$HOME", "`id`", "$(id)", ";", "&&", "*", "~", "#{pid}", "\\", "%h %n %%", "a=b,c"),
    *("-", "--", "--hostfile", "-m", "--env", "two\nlines", "é€😀", "{a,b}", "!"),
]
SMALL = (
    *("--max-steps", "20", "--batch-size", "2", "--seq-length", "32", "--eval-size", "8", "--log-freq", "1"),
    *("--lr", "0.05", "--save-dir", "runs", "--dataset-cache-root"),
)
STEP_20 = re.compile(r" step=20\b.*? loss=(\d+\.\d+)")


def hosts(fab: Fab, *words: str) -> tuple[str, ...]:
    """Return the arguments of a launch with one rank on each of the two hosts."""
    return (*words, "--hostfile", str(fab.cluster.hostfile), "--nproc-per-node", "1")


def out_dir(fab: Fab, name: str) -> Path:
    """Create a folder in which the ranks of a job record arguments, environment and folder."""
    path = fab.workdir / f"out-{name}"
    path.mkdir()
    fab.own(path)
    return path


def is_complete(out: Path) -> bool:
    """Return whether both ranks have written their records."""
    return {path.name for path in out.glob("*.json")} >= {"0.json", "1.json"}


def check_arguments_and_failure(fab: Fab, *task: str) -> None:
    """Launch a script with hostile arguments whose rank 1 exits with 7."""
    fab.write("record.py", RECORD_SCRIPT)
    out = out_dir(fab, "words")
    env = ("--env", f"OUT_DIR={out}", "--env", "FAILS=1", "--env", 'TEXT=a "b" $c', "--env", "A_TOKEN=hunter2")
    ok(fab(*hosts(fab, *task), "--name", "words", *env, "--", "record.py", *HOSTILE_ARGS))
    waited = fab("wait", "words", config={"failure_grace_s": 2}, timeout_s=200)
    assert waited.rc == 7, (waited, fab("logs", "words"))
    assert "rank 1 on" in waited.stderr, waited
    records = [json.loads((out / f"{rank}.json").read_text()) for rank in (0, 1)]
    assert [record["argv"] for record in records] == [HOSTILE_ARGS, HOSTILE_ARGS]
    assert [record["cwd"] for record in records] == [str(fab.workdir)] * 2
    expected = {"WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1", "TEXT": 'a "b" $c', "A_TOKEN": "hunter2"}
    for rank, record in enumerate(records):
        mine = {**expected, "RANK": str(rank), "TORCHFAB_NODE_RANK": str(rank)}
        assert {name: record["env"].get(name) for name in mine} == mine
        assert record["env"]["MASTER_ADDR"] == records[0]["env"]["MASTER_ADDR"]
    status = status_of(fab, "words")
    assert (status["state"], status["exit_code"], status["first_failure"]["rank"]) == ("failed", 7, 1), status
    lines = ok(fab("logs", "words")).stdout.splitlines()
    for rank in (0, 1):
        assert [line for line in lines if line.endswith(f"[{rank}] hello from {rank}")], lines
    assert fab.processes() == {}
    assert not [path for path in files_of(fab) if b"hunter2" in path.read_bytes()]
    job_record = json.loads((fab.records / "words" / "record.json").read_text())
    assert "torch " in job_record["chosen"]["versions"]


def shown(fab: Fab, *words: str) -> dict[str, Any]:
    """Return the JSON output of a command."""
    found: dict[str, Any] = json.loads(fab(*words, "--json").stdout)
    return found


def files_of(fab: Fab) -> list[Path]:
    """Return the files of records and of job folders."""
    found = [*fab.records.rglob("*"), *fab.node_dir.rglob("*")]
    return [path for path in found if path.is_file()]


def check_stop_and_killed_head(fab: Fab, *task: str) -> None:
    """Launch two jobs; stop one; kill the head of the other."""
    fab.write("record.py", RECORD_SCRIPT)
    outs = {name: out_dir(fab, name) for name in ("one", "one-b")}
    for name, out in outs.items():
        env = ("--env", f"OUT_DIR={out}", "--env", "STUBBORN=1" if name == "one" else "X=1")
        ok(fab(*hosts(fab, *task), "--name", name, *env, "--", "record.py"))
    assert eventually(lambda: all(map(is_complete, outs.values())), 150), fab("logs", "one")
    stopped = ok(fab("stop", "one", "--grace", "2"))
    assert "no process of it is left on 2 nodes" in stopped.stdout, stopped
    assert jobs_running(fab) == {"one-b"}
    # The other job must stay running: check again after a while.
    assert not eventually(lambda: status_of(fab, "one-b")["state"] != "running", 1.5), fab("logs", "one-b")
    os.kill(head_pid(status_of(fab, "one-b")), signal.SIGKILL)
    # While its supervisor cleans up, only the ranks that the kill ended have failed.
    assert eventually(lambda: status_of(fab, "one-b")["exit_code"] == 137, 60), status_of(fab, "one-b")
    status = status_of(fab, "one-b")
    assert (status["state"], status["first_failure"]["rank"]) == ("failed", None), status
    ok(fab("stop", "one-b", "--grace", "2"))
    assert fab.processes() == {}


def jobs_running(fab: Fab) -> set[str]:
    """Return the names of the jobs with processes, from the environment of each."""
    found = set()
    for pid in fab.processes():
        environment = Path(f"/proc/{pid}/environ").read_bytes()
        found |= {match[1].decode() for match in re.finditer(rb"TORCHFAB_JOB_ID=([\w-]+)-[0-9a-f]{8}\0", environment)}
    return found


def head_pid(status: dict[str, Any]) -> int:
    """Return the pid of the head; without one, of the launcher on node 0."""
    pids = {process["name"]: int(process["pid"]) for process in status["nodes"][0]["processes"]}
    return pids.get("head") or pids["agent"]


def loss_at_step_20(fab: Fab, cache: Path, *task: str) -> float:
    """Train on both hosts; return rank 0's loss at step 20, which depends on the gradients of all ranks."""
    fab.take(*BIGRAM)
    script = ("bigram.py", *SMALL, str(cache), "--experiment-name", "one run")
    words = (*hosts(fab, *task), "--name", "train", "--follow", "--", *script)
    done = ok(fab(*words, timeout_s=240))
    match = STEP_20.search(done.stdout)
    assert match, done
    return float(match[1])


def check_pasted_dry_run(fab: Fab, *task: str) -> None:
    """Paste the dry run into bash on the launch machine; the ranks must run."""
    fab.write("record.py", RECORD_SCRIPT)
    out = out_dir(fab, "paste")
    env = ("--env", f"OUT_DIR={out}", "--env", "SECONDS_TO_RUN=0", "--env", "A_TOKEN=hunter2")
    text = ok(fab(*hosts(fab, *task), "--dry-run", "--name", "paste", *env, "--", "record.py", *HOSTILE_ARGS)).stdout
    assert "hunter2" not in text
    bash = fab.cluster.on_launch_machine("env", "A_TOKEN=hunter2", "bash")
    pasted = subprocess.run(bash, input=text, capture_output=True, text=True, check=False, cwd=fab.workdir, timeout=60)
    assert pasted.returncode == 0, (pasted.stderr, text)
    assert eventually(lambda: is_complete(out), 150), (outputs(fab), text)
    records = [json.loads((out / f"{rank}.json").read_text()) for rank in (0, 1)]
    assert [record["argv"] for record in records] == [HOSTILE_ARGS, HOSTILE_ARGS]
    assert {record["env"]["A_TOKEN"] for record in records} == {"hunter2"}
    assert eventually(lambda: not fab.processes(), 60), fab.processes()


def outputs(fab: Fab) -> dict[str, str]:
    """Return the output of the processes of a pasted job."""
    return {str(path): path.read_text(errors="replace") for path in fab.node_dir.rglob("output.log")}


def has_module(name: str) -> bool:
    """Return whether the interpreter that runs the tests has a module."""
    code = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({name!r}) is None)"
    return subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
