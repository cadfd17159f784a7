"""The life of a job on a node: how it is, and how it is stopped, with proof that nothing is left."""

from __future__ import annotations

import os
import re
import signal
import time

from torchfab.remote import files, logfiles, procfs, tmux

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_TAIL_BYTES = 16 * 1024
# How long after its own KILL a supervisor gets to write down how its process ended: a loaded node is slow, not stuck.
_SUPERVISORS_S = 5.0


def answer_status(request: dict[str, Any]) -> dict[str, Any]:
    """Say how the job is here."""
    return status(files.folder_of(request), request["job_id"], request["node_rank"])


def status(folder: str, job_id: str, node_rank: int, alive: bool | None = None) -> dict[str, Any]:
    """Return how the job is on this node: one entry per process, each with its ranks, and the last log line.

    The state of a process is `starting`, `running`, `succeeded`, `failed`, `stopped` (it ended after somebody asked the
    job to stop) or `lost` (it ended, or its machine restarted, and nobody was left to write down how).
    Supervisors are looked for here, unless `alive` says whether they can run: where the folder is another machine's.
    """
    stop = files.read_json(os.path.join(folder, files.STOP))
    entries = [_process_status(os.path.join(folder, name), name, stop, alive) for name in files.processes(folder)]
    answer: dict[str, Any] = {"processes": entries, "now": time.time(), "exists": os.path.isdir(folder)}
    answer["stop_asked"] = stop["time"] if stop else None
    if alive is None and any(entry["state"] == "lost" for entry in entries):
        answer["left"] = [procfs.describe(pid) for pid in procfs.job_processes(job_id, node_rank)]
    return answer


def has_ended(folder: str) -> bool:
    """Say whether every process of the job on this node has ended, or the job's folder is gone."""
    states = []
    stop = files.read_json(os.path.join(folder, files.STOP))
    for name in files.processes(folder):
        started = files.read_json(os.path.join(folder, name, files.STARTED)) or {}
        states.append(_state(started, files.read_json(os.path.join(folder, name, files.EXIT)), stop)[0])
    return not os.path.isdir(folder) or (bool(states) and not {"starting", "running"} & set(states))


def _process_status(folder: str, name: str, stop: dict[str, Any] | None, alive: bool | None = None) -> dict[str, Any]:
    spec = files.read_json(os.path.join(folder, files.SPEC)) or {}
    started = files.read_json(os.path.join(folder, files.STARTED)) or {}
    ended = files.read_json(os.path.join(folder, files.EXIT))
    state, reason = _state(started, ended, stop, alive)
    ranks = ranks_of(folder)
    reported = reported_failures(os.path.join(folder, files.OUTPUT)) if state == "failed" else []
    _fill_codes(ranks, state, reported)
    return {
        "name": name,
        "state": state,
        "reason": reason,
        "pid": started.get("pid"),
        "started": started.get("time"),
        "ended": ended["time"] if ended and state != "running" else None,
        "code": ended["code"] if ended else None,
        "signal": ended["signal"] if ended else None,
        "warned": ended.get("warned") if ended else None,
        "ranks": ranks,
        "last_line": _last_line(logfiles.find(folder, spec), ranks),
        "reported": reported,
    }


def ranks_of(folder: str) -> list[dict[str, Any]]:
    """Return the ranks of a process, as its supervisor has seen them so far."""
    spec = files.read_json(os.path.join(folder, files.SPEC)) or {}
    started = files.read_json(os.path.join(folder, files.STARTED)) or {}
    ended = files.read_json(os.path.join(folder, files.EXIT))
    return files.read_json(os.path.join(folder, files.RANKS)) or _own_rank(spec, started, ended)


def _fill_codes(ranks: list[dict[str, Any]], state: str, reported: list[dict[str, int]]) -> None:
    """Fill in exit codes that a launcher had taken before the supervisor could read them, from what it reports."""
    codes = {each["rank"]: each["code"] for each in reported}
    for rank in ranks:
        if rank["ended"] and rank["code"] is None:
            rank["code"] = 0 if state == "succeeded" else codes.get(rank["rank"])


def _own_rank(spec: dict[str, Any], started: dict[str, Any], ended: dict[str, Any] | None) -> list[dict[str, Any]]:
    # A process that is a rank itself and ended before anyone could look at it.
    if spec.get("rank") is None or not started:
        return []
    rank = {"rank": spec["rank"], "local_rank": None, "world_size": None, "attempt": 0, "pid": started["pid"]}
    end = {"ended": ended["time"], "code": ended["code"]} if ended else {"ended": None, "code": None}
    return [{**rank, "start_time": started["start_time"], "started": started["time"], **end}]


def _state(
    started: dict[str, Any], ended: dict[str, Any] | None, stop: dict[str, Any] | None, alive: bool | None = None
) -> tuple[str, str]:
    supervised = _supervised(started) if alive is None else alive
    if ended and ended.get("error"):
        return "failed", ended["error"]
    if ended and not (ended.get("cleaning") and supervised):
        return _end_state(ended, stop), ""
    if not started:
        return ("stopped", "before it had started") if stop else ("starting", "")
    if supervised:
        return "running", ""
    if alive is None and started["boot_id"] != procfs.boot_id():
        return "lost", "the node was restarted"
    return "lost", "its supervisor was killed"


def _end_state(ended: dict[str, Any], stop: dict[str, Any] | None) -> str:
    if ended["code"] == 0:
        return "succeeded"
    return "stopped" if stop and stop["time"] <= ended["time"] else "failed"


def _supervised(started: dict[str, Any]) -> bool:
    same_boot = started.get("boot_id") == procfs.boot_id()
    return same_boot and procfs.is_alive(started["supervisor_pid"], started["supervisor_start_time"])


def _last_line(logs: list[logfiles.LogFile], ranks: list[dict[str, Any]]) -> dict[str, Any] | None:
    written = [log for log in logs if logfiles.size(log.full_path)]
    if not written:
        return None
    newest = max(written, key=lambda log: os.stat(log.full_path).st_mtime)
    lines = [line for line in tail(newest.full_path).splitlines() if line.strip()]
    text = lines[-1][-500:] if lines else ""
    return {"time": os.stat(newest.full_path).st_mtime, "text": text, "label": newest.label(ranks)}


def tail(path: str) -> str:
    """Return the last 16 KiB of a file; empty when there is none."""
    try:
        with open(path, "rb") as file:
            file.seek(max(0, logfiles.size(path) - _TAIL_BYTES))
            return file.read(_TAIL_BYTES).decode(errors="replace").replace("\r", "\n")
    except OSError:
        return ""


def reported_failures(path: str) -> list[dict[str, int]]:
    """Return the ranks that torchrun's own report, at the end of its output in a file, names as failed."""
    return failures_in(tail(path))


def failures_in(text: str) -> list[dict[str, int]]:
    """Return the ranks that torchrun's own report names as failed, the root cause first.

    Its blocks read `rank : 3 (local_rank: 1)` and, two lines later, `exitcode : 7 (pid: 4711)`. They are the fall-back
    for a rank that lived too short to be seen in /proc.
    """
    failures: list[dict[str, int]] = []
    root: list[dict[str, int]] = []
    into, rank = failures, None
    for line in text.splitlines():
        name, _, value = (part.strip() for part in line.partition(":"))
        if name.startswith("Root Cause"):
            into = root
        elif name == "rank":
            rank = _leading_number(value)
        elif name == "exitcode" and rank is not None:
            code = _leading_number(value)
            into += [] if code is None else [{"rank": rank, "code": code}]
            rank = None
    return root + failures


def _leading_number(text: str) -> int | None:
    # A script can print what looks like a report and is none.
    match = re.match(r"-?[0-9]{1,9}\b", text)
    return int(match[0]) if match else None


# ---- stop


def stop(folder: str, job_id: str, node_rank: int, session: str, grace_s: float) -> dict[str, Any]:
    """End every process of the job on this node: TERM, `grace_s` seconds, KILL; then prove that none is left.

    Returns
    -------
    dict
        `asked`: how many processes were asked to end, `killed`: those that had to be killed, described, `left`: those
        that run nevertheless (an empty list is the proof), `seconds`: how long it took.
    """
    begun = time.time()
    found = procfs.job_processes(job_id, node_rank)
    supervisors = procfs.running_program(os.path.join(folder, files.BUNDLE))
    unstarted = _take_secrets_of_unstarted(folder)
    # Somebody may have removed the folder under the running job.
    if (found or supervisors or unstarted) and os.path.isdir(folder):
        _write_stop(folder, begun, grace_s)
    # A supervisor asks what is its own to end, waits, kills, and writes down how it ended.
    _signal_all(supervisors or found, signal.SIGTERM)
    killed = _end_all(folder, job_id, node_rank, begun + grace_s)
    tmux.close_session(session)
    left = [procfs.describe(pid) for pid in procfs.job_processes(job_id, node_rank)]
    return {"asked": len(found), "killed": killed, "left": left, "seconds": time.time() - begun}


def _write_stop(folder: str, now: float, grace_s: float) -> None:
    try:
        files.write_json(os.path.join(folder, files.STOP), {"time": now, "grace_s": grace_s})
    except OSError:  # a disk that is broken keeps nothing from being stopped
        pass


def _take_secrets_of_unstarted(folder: str) -> bool:
    """Remove the secrets of processes that have not started; say whether there are such processes."""
    found = False
    for name in files.processes(folder):
        if not os.path.exists(os.path.join(folder, name, files.STARTED)):
            found = True
            if os.path.exists(os.path.join(folder, name, files.SECRETS)):
                os.unlink(os.path.join(folder, name, files.SECRETS))
    return found


def _end_all(folder: str, job_id: str, node_rank: int, kill_at: float) -> list[str]:
    """Wait for the supervisors to end what is theirs, then end what escaped them; return what was killed, described."""
    # Supervisors kill at `kill_at` themselves; one that still runs long after is stuck, or stopped by a signal.
    program = os.path.join(folder, files.BUNDLE)
    while time.time() < kill_at + _SUPERVISORS_S and procfs.running_program(program):
        time.sleep(0.02)
    _signal_all(procfs.running_program(program), signal.SIGKILL)
    return _killed_by_supervisors(folder) + _end_escaped(job_id, node_rank, kill_at)


def _end_escaped(job_id: str, node_rank: int, kill_at: float) -> list[str]:
    asked: set[int] = set()
    killed: dict[int, str] = {}
    while time.time() < kill_at + 10:
        found = procfs.job_processes(job_id, node_rank)
        if not found:
            break
        for pid in found:
            if time.time() >= kill_at:
                killed.setdefault(pid, procfs.describe(pid))
                _signal(pid, signal.SIGKILL)
            elif pid not in asked:
                asked.add(pid)
                _signal(pid, signal.SIGTERM)
        time.sleep(0.02)
    return list(killed.values())


def _killed_by_supervisors(folder: str) -> list[str]:
    ends = (files.read_json(os.path.join(folder, name, files.EXIT)) for name in files.processes(folder))
    return [text for end in ends if end for text in end.get("killed", [])]


def _signal_all(pids: list[int], number: signal.Signals) -> None:
    for pid in pids:
        _signal(pid, number)


def _signal(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except OSError:  # gone meanwhile
        pass
