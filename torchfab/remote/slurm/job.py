"""Slurm where its commands are: say how a job is, by Slurm and by the folder that its nodes share, and cancel it.

A job's folder: node.py and slurm.json (the spec of each node's process), job.sbatch, slurm.log (what the batch script
and srun say), stop.json, and per node node-<SLURM_NODEID>/agent as `torchfab.remote.files` describes it.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time

from torchfab.remote import files
from torchfab.remote.job import status as life
from torchfab.remote.job import stop as ending

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

SPEC, LOG, FILE, AGENT = "slurm.json", "slurm.log", "job.sbatch", "agent"
FINAL = {
    *("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "PREEMPTED", "OUT_OF_MEMORY", "DEADLINE"),
    *("BOOT_FAIL", "REVOKED"),
}
WAITING = {"PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT", "RESV_DEL_HOLD"}
COMMAND_TIMEOUT_S = 20
KILL_WAIT_S = 30  # Slurm's default between TERM and KILL
# Of `scontrol show job`; the lines are anchored, as the job's name may hold anything but a new line.
_FIELDS = {
    "state": r"^   JobState=(\S+)",
    "why": r"^   JobState=\S+ Reason=(.*?) Dependency=",
    "restarts": r"^   Requeue=\S+ Restarts=([0-9]{1,9})\b",
    "exit": r"^   Requeue=.* ExitCode=(\d+:\d+)",
    "limit": r"^   RunTime=\S+ TimeLimit=(\S+)",
    "start": r"^   StartTime=(\S+)",
    "hosts": r"^   NodeList=(\S+)",
}
# Variables that change what Slurm's commands do or print.
_STRANGE = ("SQUEUE_", "SACCT_", "SINFO_", "SCANCEL_", "SLURM_JOB", "SLURM_TIME_FORMAT")


class SlurmError(Exception):
    """A command of Slurm failed: what it said."""


def run(*argv: str, timeout_s: float = COMMAND_TIMEOUT_S, env: dict[str, str] | None = None) -> str:
    """Run one of Slurm's commands; return its output, or raise SlurmError with what it said."""
    base = {name: value for name, value in os.environ.items() if not name.startswith(_STRANGE)}
    env = {**base, "LC_ALL": "C", **(env or {})}
    try:
        done = subprocess.run(
            argv,
            check=False,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout_s,
            env=env,
        )
    except FileNotFoundError:
        raise SlurmError(f"{argv[0]}: not found: Slurm's commands are not on the PATH here") from None
    except subprocess.TimeoutExpired:
        raise SlurmError(f"{argv[0]} gave no answer within {timeout_s:g} s") from None
    if done.returncode:
        raise SlurmError(_last_words(argv[0], done.stderr) or f"{argv[0]} ended with code {done.returncode}")
    return done.stdout


def _last_words(program: str, text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    kept = [re.sub(rf"^(?:{program}|slurm_load_\w+): (?:error|fatal): ", "", line) for line in lines]
    kept = [line for line in kept if not line.startswith("Batch job submission failed: Unspecified")]
    return "; ".join(dict.fromkeys(kept[-4:]))


_FIXES = (
    ("not found", "install Slurm's client, or name a host that has it with --login user@host"),
    ("configuration source", "set SLURM_CONF, or name a host of the cluster with --login user@host"),
    ("contact slurm controller", "see whether the cluster is up: scontrol ping"),
    ("invalid partition", "see which there are: sinfo -s"),
    ("invalid account", "see yours: sacctmgr show associations user=$USER format=account,partition,qos"),
    ("invalid qos", "see yours: sacctmgr show associations user=$USER format=account,partition,qos"),
    ("node count", "ask for fewer --nodes, or see how many there are: sinfo -s"),
    ("more processors", "ask for fewer --cpus-per-task, or see what nodes have: sinfo -N -l"),
    ("node configuration", "no node has all of it; see what nodes have: sinfo -N -o '%N %c %m %G %f'"),
    ("generic resource", "see which GPUs nodes have: sinfo -N -o '%N %G'"),
    ("feature", "see which features nodes have: sinfo -N -o '%N %f'"),
    ("time limit", "ask for less --time, or see what the partition allows: sinfo -s"),
)


def fix_of(text: str) -> str:
    """Return what to do about what a command of Slurm said; empty where it says so itself."""
    return next((fix for sign, fix in _FIXES if sign in text.lower()), "")


# ---- status


def ask(slurm_id: str) -> dict[str, Any]:
    """Return what Slurm knows of a job.

    Returns
    -------
    dict
        `state` (empty when Slurm has forgotten the job), `why`, `restarts`, `exit` ("code:signal"), `limit`, `start`,
        `hosts` (names in the order of SLURM_NODEID); or `error`: Slurm cannot be asked.
    """
    try:
        text = run("scontrol", "show", "job", slurm_id)
    except SlurmError as error:
        if "Invalid job id" in str(error):
            return {"state": "", **_ask_history(slurm_id)}
        return {"error": str(error)}
    found: dict[str, Any] = {}
    for name, pattern in _FIELDS.items():
        match = re.search(pattern, text, re.MULTILINE)
        found[name] = match[1] if match and match[1] != "(null)" else ""
    found["restarts"] = int(found["restarts"] or 0)
    found["hosts"] = _expand(found["hosts"])
    return found


def _ask_history(slurm_id: str) -> dict[str, Any]:
    """Ask the accounting, or the log of completed jobs (`sacct -c`), about a job that slurmctld has forgotten."""
    for words in ((), ("-c",)):
        try:
            out = run("sacct", *words, "-X", "-n", "-P", "-j", slurm_id, "-o", "State,ExitCode,NodeList,Timelimit")
        except SlurmError:
            continue
        rows = [line.split("|") for line in out.splitlines() if line.count("|") == 3 and line.split("|")[0]]
        if rows:
            state, code, hosts, limit = rows[-1]
            limit = limit if ":" in limit else ""  # `sacct -c` says bare minutes, or nothing
            first = state.split()[:1]  # "CANCELLED by 1000"
            return {"state": "".join(first), "why": "", "exit": code, "hosts": _expand(hosts), "limit": limit}
    return {}


def _expand(hosts: str) -> list[str]:
    if "[" not in hosts and "," not in hosts:
        return [hosts] if hosts else []
    try:
        return run("scontrol", "show", "hostnames", hosts).split()
    except SlurmError:
        return []


def status(request: dict[str, Any]) -> dict[str, Any]:
    """Return how a job is: what Slurm says of it, and what the supervisors wrote down on each node.

    Parameters
    ----------
    request : dict
        `slurm_id`, `folder`, `job_id`, `nodes` (how many).
    """
    told = ask(request["slurm_id"])
    folder = request["folder"]
    stop = files.read_json(os.path.join(folder, files.STOP))
    lines = [line for line in life.tail(os.path.join(folder, LOG)).splitlines() if line.strip()]
    return {
        "slurm": told,
        "nodes": [_node(request, told, rank) for rank in range(request["nodes"])],
        "exists": os.path.isdir(folder),
        "stop_asked": stop["time"] if stop else None,
        "said": lines[-1][-500:] if lines else "",
        "now": time.time(),
    }


def is_active(told: dict[str, Any]) -> bool:
    """Say whether processes of the job may run, as far as Slurm tells."""
    return "error" in told or (bool(told["state"]) and told["state"] not in FINAL | WAITING)


def _node(request: dict[str, Any], told: dict[str, Any], rank: int) -> dict[str, Any]:
    """Return one node's host and status; no status while nothing was written there in the job's present run."""
    folder = node_folder(request["folder"], rank)
    spec = files.read_json(os.path.join(folder, AGENT, files.SPEC)) or {}
    hosts = told.get("hosts") or []
    host = hosts[rank] if rank < len(hosts) else spec.get("host", "")
    if not spec or spec["restart"] < told.get("restarts", 0):
        return {"rank": rank, "host": host, "status": None}
    answer = life.status(folder, request["job_id"], rank, alive=is_active(told))
    return {"rank": rank, "host": spec["host"], "status": answer}


def node_folder(folder: str, rank: int) -> str:
    """Return the folder of one node in the job's folder."""
    return os.path.join(folder, f"node-{rank}")


# ---- stop


def stop(request: dict[str, Any]) -> dict[str, Any]:
    """Cancel a job, and wait until Slurm says that nothing of it is left.

    Parameters
    ----------
    request : dict
        As for `status`, and `grace_s`.

    Returns
    -------
    dict
        `before` (its state when we came), `asked` (how many processes ran), `killed`, `left`, `seconds`.
    """
    begun, before = time.time(), status(request)
    told = before["slurm"]
    if "error" in told:
        return {"problems": [{"what": told["error"], "fix": fix_of(told["error"])}]}
    done = {"before": told["state"], "asked": _running(before), "killed": [], "left": [], "seconds": 0.0}
    if told["state"] in FINAL or not told["state"]:
        return {**done, "asked": 0}
    _write_stop(request, begun)
    try:
        if request["grace_s"] > KILL_WAIT_S and is_active(told):  # or Slurm would kill before the grace is over
            run("scancel", "--signal=TERM", request["slurm_id"])
            await_end(request, begun + request["grace_s"])
        run("scancel", request["slurm_id"])
    except SlurmError as error:
        return {"problems": [{"what": str(error), "fix": ""}]}
    last = await_end(request, begun + request["grace_s"] + KILL_WAIT_S + 15)
    ended = last["state"] in FINAL or not last["state"]
    left = [] if ended else [f"Slurm job {request['slurm_id']}: {last['state']}"]
    return {**done, "killed": _killed(request), "left": left, "seconds": time.time() - begun}


def _write_stop(request: dict[str, Any], now: float) -> None:
    for folder in (request["folder"], *(node_folder(request["folder"], rank) for rank in range(request["nodes"]))):
        if os.path.isdir(folder):
            ending.write_stop(folder, now, request["grace_s"])


def await_end(request: dict[str, Any], deadline: float) -> dict[str, Any]:
    """Ask until the job has ended, or the time has come; return what was told last."""
    while True:
        told = ask(request["slurm_id"])
        known = told if "error" not in told else {"state": told["error"]}
        if known["state"] in FINAL or not known["state"] or time.time() > deadline:
            return known
        time.sleep(0.3)


def _processes(found: dict[str, Any]) -> list[dict[str, Any]]:
    return [process for node in found["nodes"] if node["status"] for process in node["status"]["processes"]]


def _running(found: dict[str, Any]) -> int:
    active = [process for process in _processes(found) if process["state"] in ("starting", "running")]
    return len(active) + sum(rank["ended"] is None for process in active for rank in process["ranks"])


def _killed(request: dict[str, Any]) -> list[str]:
    paths = [os.path.join(node_folder(request["folder"], rank), AGENT, files.EXIT) for rank in range(request["nodes"])]
    return [text for path in paths for text in (files.read_json(path) or {}).get("killed", [])]


def forget(request: dict[str, Any]) -> dict[str, Any]:
    """Remove the job's folder."""
    try:
        shutil.rmtree(request["folder"])
    except FileNotFoundError:
        pass
    except OSError as error:
        return {"problems": [{"what": f"cannot remove {request['folder']}: {error.strerror}", "fix": ""}]}
    return {}
