"""Query and cancel a Slurm job, on a host that has Slurm's commands; its status comes from Slurm and the shared folder.

A job's folder contains node.py, slurm.json (the spec of each node's process), job.sbatch, slurm.log (output of the
batch script and srun), stop.json, and per node node-<SLURM_NODEID>/agent, as `torchfab.remote.job_files` describes it.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time

from torchfab.remote import job_files
from torchfab.remote.job import status as node_status
from torchfab.remote.job import stop as node_stop

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
# Fields of `scontrol show job`. The lines are anchored, because the job's name may contain anything but a newline.
_FIELDS = {
    "state": r"^   JobState=(\S+)",
    "why": r"^   JobState=\S+ Reason=(.*?) Dependency=",
    "restarts": r"^   Requeue=\S+ Restarts=([0-9]{1,9})\b",
    "exit": r"^   Requeue=.* ExitCode=(\d+:\d+)",
    "limit": r"^   RunTime=\S+ TimeLimit=(\S+)",
    "start": r"^   StartTime=(\S+)",
    "hosts": r"^   NodeList=(\S+)",
}
# Prefixes of variables that change the behaviour or the output of Slurm's commands.
_UNSET_PREFIXES = ("SQUEUE_", "SACCT_", "SINFO_", "SCANCEL_", "SLURM_JOB", "SLURM_TIME_FORMAT")


class SlurmError(Exception):
    """A Slurm command failed; the message is its error output."""


def run(*argv: str, timeout_s: float = COMMAND_TIMEOUT_S, env: dict[str, str] | None = None) -> str:
    """Run one of Slurm's commands.

    Parameters
    ----------
    *argv : str
        The command line.
    timeout_s : float
        Seconds. Default 20.
    env : dict of str to str, optional
        Additional environment variables.

    Returns
    -------
    str
        Its standard output.

    Raises
    ------
    SlurmError
        The command is missing, fails, or does not end in time.
    """
    base = {name: value for name, value in os.environ.items() if not name.startswith(_UNSET_PREFIXES)}
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
        raise SlurmError(_error_text(argv[0], done.stderr) or f"{argv[0]} ended with code {done.returncode}")
    return done.stdout


def _error_text(program: str, stderr: str) -> str:
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    kept = [re.sub(rf"^(?:{program}|slurm_load_\w+): (?:error|fatal): ", "", line) for line in lines]
    kept = [line for line in kept if not line.startswith("Batch job submission failed: Unspecified")]
    return "; ".join(dict.fromkeys(kept[-4:]))


_FIXES = (
    ("not found", "install Slurm's client, or name a host that has it with --login user@host"),
    ("configuration source", "set SLURM_CONF, or name a host of the cluster with --login user@host"),
    ("contact slurm controller", "check that the cluster is up: scontrol ping"),
    ("invalid partition", "list the partitions: sinfo -s"),
    ("invalid account", "list yours: sacctmgr show associations user=$USER format=account,partition,qos"),
    ("invalid qos", "list yours: sacctmgr show associations user=$USER format=account,partition,qos"),
    ("node count", "request fewer --nodes, or check how many there are: sinfo -s"),
    ("more processors", "request fewer --cpus-per-task, or check how many the nodes have: sinfo -N -l"),
    ("node configuration", "no node has all of it; list the nodes' resources: sinfo -N -o '%N %c %m %G %f'"),
    ("generic resource", "list the nodes' GPUs: sinfo -N -o '%N %G'"),
    ("feature", "list the nodes' features: sinfo -N -o '%N %f'"),
    ("time limit", "request less --time, or check the partition's limit: sinfo -s"),
)


def suggest_fix(text: str) -> str:
    """Return how to fix an error of a Slurm command.

    Parameters
    ----------
    text : str
        The error message.

    Returns
    -------
    str
        Empty if the message itself is clear enough, or is not known.
    """
    return next((fix for sign, fix in _FIXES if sign in text.lower()), "")


# ---- status


def query(slurm_id: str) -> dict[str, Any]:
    """Query Slurm for a job.

    Parameters
    ----------
    slurm_id : str
        Id of the job in Slurm.

    Returns
    -------
    dict
        `state` (empty if Slurm no longer knows the job), `why`, `restarts`, `exit` ("code:signal"), `limit`, `start`,
        `hosts` (names in the order of SLURM_NODEID); or `error`, if the query fails.
    """
    try:
        text = run("scontrol", "show", "job", slurm_id)
    except SlurmError as error:
        if "Invalid job id" in str(error):
            return {"state": "", **_query_history(slurm_id)}
        return {"error": str(error)}
    found: dict[str, Any] = {}
    for name, pattern in _FIELDS.items():
        match = re.search(pattern, text, re.MULTILINE)
        found[name] = match[1] if match and match[1] != "(null)" else ""
    found["restarts"] = int(found["restarts"] or 0)
    found["hosts"] = _expand(found["hosts"])
    return found


def _query_history(slurm_id: str) -> dict[str, Any]:
    """Query the accounting, or the log of completed jobs (`sacct -c`), for a job that slurmctld no longer knows."""
    for options in ((), ("-c",)):
        try:
            out = run("sacct", *options, "-X", "-n", "-P", "-j", slurm_id, "-o", "State,ExitCode,NodeList,Timelimit")
        except SlurmError:
            continue
        rows = [line.split("|") for line in out.splitlines() if line.count("|") == 3 and line.split("|")[0]]
        if rows:
            state, code, hosts, limit = rows[-1]
            limit = limit if ":" in limit else ""  # `sacct -c` prints bare minutes, or nothing
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
    """Return the status of a job: its state in Slurm, and the files of the supervisors on each node.

    Parameters
    ----------
    request : dict
        `slurm_id`, `folder`, `job_id`, `nodes` (number of nodes).

    Returns
    -------
    dict
        `slurm`: as `query` returns it; `nodes`: rank, host and status of each; `exists`: whether the folder does;
        `stop_asked`: time of the stop request, or None; `said`: last line of slurm.log; `now`: seconds since the epoch.
    """
    slurm = query(request["slurm_id"])
    folder = request["folder"]
    stop = job_files.read_json(os.path.join(folder, job_files.STOP))
    lines = [line for line in node_status.tail(os.path.join(folder, LOG)).splitlines() if line.strip()]
    return {
        "slurm": slurm,
        "nodes": [_node(request, slurm, rank) for rank in range(request["nodes"])],
        "exists": os.path.isdir(folder),
        "stop_asked": stop["time"] if stop else None,
        "said": lines[-1][-500:] if lines else "",
        "now": time.time(),
    }


def is_active(slurm: dict[str, Any]) -> bool:
    """Check whether processes of the job may be running.

    Parameters
    ----------
    slurm : dict
        As `query` returns it.

    Returns
    -------
    bool
        True also if the query has failed.
    """
    return "error" in slurm or (bool(slurm["state"]) and slurm["state"] not in FINAL | WAITING)


def _node(request: dict[str, Any], slurm: dict[str, Any], rank: int) -> dict[str, Any]:
    """Return one node's host and status; no status while its files are missing or from before a requeue."""
    folder = node_folder(request["folder"], rank)
    spec = job_files.read_json(os.path.join(folder, AGENT, job_files.SPEC)) or {}
    hosts = slurm.get("hosts") or []
    host = hosts[rank] if rank < len(hosts) else spec.get("host", "")
    if not spec or spec["restart"] < slurm.get("restarts", 0):
        return {"rank": rank, "host": host, "status": None}
    answer = node_status.status(folder, request["job_id"], rank, alive=is_active(slurm))
    return {"rank": rank, "host": spec["host"], "status": answer}


def node_folder(folder: str, rank: int) -> str:
    """Return the folder of one node in the job's folder.

    Parameters
    ----------
    folder : str
        The job's folder.
    rank : int
        SLURM_NODEID of the node.

    Returns
    -------
    str
        Its path; it need not exist.
    """
    return os.path.join(folder, f"node-{rank}")


def find_checkpoint_files(request: dict[str, Any]) -> dict[str, Any]:
    """Find the changed files of the job's checkpoints, in folders that this host shares with the nodes.

    Parameters
    ----------
    request : dict
        `folder`, and as `torchfab.remote.job.checkpoint_files.find_changed` takes it.

    Returns
    -------
    dict
        As `torchfab.remote.job.checkpoint_files.find_changed` returns it; `running` is 0: the ranks run elsewhere.
    """
    from torchfab.remote.job import checkpoint_files

    return checkpoint_files.find_changed(node_folder(request["folder"], 0), request)


# ---- stop


def stop(request: dict[str, Any]) -> dict[str, Any]:
    """Cancel a job and wait until Slurm reports that no process of it is left.

    Parameters
    ----------
    request : dict
        As for `status`, and `grace_s` (seconds between TERM and KILL).

    Returns
    -------
    dict
        `before` (its state at the beginning), `asked` (number of running processes), `killed` and `left`
        (descriptions), `seconds` (duration), `rank_ends` (how the ranks ended); or `problems`.
    """
    begun, before = time.time(), status(request)
    slurm = before["slurm"]
    if "error" in slurm:
        return {"problems": [{"what": slurm["error"], "fix": suggest_fix(slurm["error"])}]}
    report = {"before": slurm["state"], "asked": _running(before), "killed": [], "left": [], "seconds": 0.0}
    if slurm["state"] in FINAL or not slurm["state"]:
        return {**report, "asked": 0}
    try:
        if is_active(slurm):
            _end_ranks(request, begun)
        _write_stop(request, begun)
        run("scancel", request["slurm_id"])
    except SlurmError as error:
        return {"problems": [{"what": str(error), "fix": ""}]}
    last = await_end(request, begun + request["grace_s"] + KILL_WAIT_S + 15)
    ended = last["state"] in FINAL or not last["state"]
    left = [] if ended else [f"Slurm job {request['slurm_id']}: {last['state']}"]
    report.update(killed=_killed(request), left=left, seconds=time.time() - begun)
    return {**report, "rank_ends": _rank_ends(request)}


def _end_ranks(request: dict[str, Any], begun: float) -> None:
    """Let the supervisors end the ranks within the grace period, by a file: scancel would signal data loaders too."""
    deadline = begun + request["grace_s"]
    if _write_stop(request, begun, ranks_first=True):
        _await_ranks(request, deadline)
    elif request["grace_s"] > KILL_WAIT_S:  # no supervisor, or a full disk, or Slurm would kill before the deadline
        run("scancel", "--signal=TERM", request["slurm_id"])
        await_end(request, deadline)


def _await_ranks(request: dict[str, Any], deadline: float) -> None:
    """Wait until the supervisors of all nodes have ended their ranks, or the deadline has passed."""
    processes = [os.path.join(node_folder(request["folder"], rank), AGENT) for rank in range(request["nodes"])]
    while time.time() < deadline and any(map(node_stop.may_have_ranks, processes)):
        time.sleep(0.1)


def _rank_ends(request: dict[str, Any]) -> dict[str, Any]:
    return node_stop.rank_ends([node_folder(request["folder"], rank) for rank in range(request["nodes"])])


def _write_stop(request: dict[str, Any], now: float, ranks_first: bool = False) -> bool:
    """Write the file that requests the stop; return whether supervisors can find it."""
    nodes = [node_folder(request["folder"], rank) for rank in range(request["nodes"])]
    grace_s = request["grace_s"]
    written = [
        node_stop.write_stop(folder, now, grace_s, ranks_first)
        for folder in (request["folder"], *nodes)
        if os.path.isdir(folder)
    ]
    return len(written) > 1 and all(written)


def await_end(request: dict[str, Any], deadline: float) -> dict[str, Any]:
    """Query Slurm until the job has ended, or the deadline has passed.

    Parameters
    ----------
    request : dict
        `slurm_id`.
    deadline : float
        Seconds since the epoch.

    Returns
    -------
    dict
        The last result of `query`; `state` is the error if the query failed.
    """
    while True:
        slurm = query(request["slurm_id"])
        known = slurm if "error" not in slurm else {"state": slurm["error"]}
        if known["state"] in FINAL or not known["state"] or time.time() > deadline:
            return known
        time.sleep(0.3)


def _processes(job_status: dict[str, Any]) -> list[dict[str, Any]]:
    return [process for node in job_status["nodes"] if node["status"] for process in node["status"]["processes"]]


def _running(job_status: dict[str, Any]) -> int:
    active = [process for process in _processes(job_status) if process["state"] in ("starting", "running")]
    return len(active) + sum(rank["ended"] is None for process in active for rank in process["ranks"])


def _killed(request: dict[str, Any]) -> list[str]:
    paths = [
        os.path.join(node_folder(request["folder"], rank), AGENT, job_files.EXIT) for rank in range(request["nodes"])
    ]
    return [text for path in paths for text in (job_files.read_json(path) or {}).get("killed", [])]


def forget(request: dict[str, Any]) -> dict[str, Any]:
    """Remove the job's folder.

    Parameters
    ----------
    request : dict
        `folder`.

    Returns
    -------
    dict
        Empty, or `problems`.
    """
    try:
        shutil.rmtree(request["folder"])
    except FileNotFoundError:
        pass
    except OSError as error:
        return {"problems": [{"what": f"cannot remove {request['folder']}: {error.strerror}", "fix": ""}]}
    return {}
