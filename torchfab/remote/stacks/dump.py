"""Stack dumps of a job's ranks on this node, of all ranks at once: by py-spy, else by a signal to faulthandler.

The ranks are descendants of their supervisor, not of this process, so py-spy needs permission to ptrace them.
"""

from __future__ import annotations

import os
import time

from torchfab.remote import job_files, procfs
from torchfab.remote.job import recorder, status
from torchfab.remote.stacks import faulthandler, pyspy

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_CPU_S = 0.25  # interval over which the CPU use of a process is measured
_PROBES_S = 2.0  # for the answers of all probes
_STOPPED, _UNINTERRUPTIBLE = "T", "D"
_CAP_SYS_PTRACE = 19


def handle(request: dict[str, Any]) -> dict[str, Any]:
    """Dump the stacks of the job's ranks on this node.

    Parameters
    ----------
    request : dict
        As `dump_node` takes it, with the keys that `files.folder_of` needs.

    Returns
    -------
    dict
        As `dump_node` returns it.
    """
    return dump_node(job_files.folder_of(request), request)


def dump_node(folder: str, request: dict[str, Any]) -> dict[str, Any]:
    """Dump the stacks of the ranks in a job's folder.

    Parameters
    ----------
    folder : str
        The job's folder on this node.
    request : dict
        `ranks` (which ones; None: all; an empty list: only the collectives, of all ranks), `native`,
        `timeout_s` (for each rank), `signal` (name of the signal that faulthandler handles; empty: send none), and
        `program`: py-spy itself, as `pyspy.unpack` takes it; empty: not available; or `copy`: the path of a py-spy
        that was sent. If neither is given and none is found, the answer contains `wants`, and nothing else was done.

    Returns
    -------
    dict
        `ranks`: one entry each, as `_entry` makes it, with `threads` (main thread first), `by`, `problem`; `spy`:
        path of py-spy; `rights`: the settings that decide whether py-spy may ptrace; `machine`; `collectives`:
        as `recorder.collectives` returns them.
    """
    entries = targets(folder, request["ranks"])
    running = [entry for entry in entries if entry["ended"] is None]
    result: dict[str, Any] = {"machine": os.uname().machine, "rights": ptrace_rights(), "spy": "", "ranks": entries}
    result["collectives"] = recorder.collectives(folder, _PROBES_S)
    if not running:
        return result
    path, result["spy"] = pyspy.find([each for entry in running for each in entry.pop("beside")])
    if not path and request.get("copy"):
        path, result["spy"] = request["copy"], "sent"
    if not path and request.get("program") is None:
        return {**result, "wants": True, "ranks": []}
    _measure(running)
    if path or not request["program"]:
        _dump(path, running, request, result["collectives"])
        return result
    path = pyspy.unpack(request["program"], folder)
    result["spy"] = "sent" if path else ""
    try:
        _dump(path, running, request, result["collectives"])
    finally:
        pyspy.remove(path)
    return result


def ptrace_rights() -> dict[str, Any]:
    """Return the settings that decide whether a process may ptrace another one of the same user.

    Returns
    -------
    dict
        `ptrace_scope` (of Yama; empty if it is not in use), `cap_sys_ptrace`, `uid`.
    """
    effective = int(procfs.status_field(os.getpid(), "CapEff") or "0", 16)
    scope = status.tail("/proc/sys/kernel/yama/ptrace_scope").strip()
    return {"ptrace_scope": scope, "cap_sys_ptrace": bool(effective >> _CAP_SYS_PTRACE & 1), "uid": os.getuid()}


# ---- processes


def targets(folder: str, requested: list[int] | None) -> list[dict[str, Any]]:
    """List the ranks on this node with their last known status.

    Parameters
    ----------
    folder : str
        The job's folder on this node.
    requested : list of int, optional
        Which ranks; None: all.

    Returns
    -------
    list of dict
        One entry for each rank; a process without ranks has one entry for those that it will start.
    """
    found: list[dict[str, Any]] = []
    for name in job_files.processes(folder):
        own = os.path.join(folder, name)
        spec = job_files.read_json(os.path.join(own, job_files.SPEC)) or {}
        last = {rank["rank"]: rank for rank in status.read_ranks(own)}
        found += [_entry(name, own, spec, rank) for rank in last.values()]
        started = job_files.read_json(os.path.join(own, job_files.STARTED))
        if not last and started and procfs.is_alive(started["pid"], started["start_time"]):
            found.append(_entry(name, own, spec, {**started, "rank": None, "ended": None, "code": None}))
    return [entry for entry in found if requested is None or entry["rank"] in requested]


def _entry(name: str, folder: str, spec: dict[str, Any], rank: dict[str, Any]) -> dict[str, Any]:
    entry = {"process": name, "rank": rank["rank"], "pid": rank["pid"], "ended": rank["ended"], "code": rank["code"]}
    if rank["ended"] is None and not procfs.is_alive(rank["pid"], rank["start_time"]):
        entry["ended"] = time.time()
    if entry["ended"] is None:
        entry["pid"] = _python_below(rank["pid"])
        entry["beside"] = _interpreter_folders(entry["pid"], spec)
        entry["folder"] = folder
    return entry


def _python_below(pid: int) -> int:
    """Return the pid of the interpreter: `pid` itself, or a descendant if the rank starts with a shell script."""
    below = procfs.find_below(pid, lambda each: "python" in os.path.basename(_program(each)))
    return below[0] if below else pid


def _program(pid: int) -> str:
    try:
        return os.readlink(f"/proc/{pid}/exe")
    except OSError:
        return ""


def _interpreter_folders(pid: int, spec: dict[str, Any]) -> list[str]:
    """Return the folders of the interpreter, by its name in argv and by its real path: py-spy may be in them."""
    paths = [*spec.get("argv", ())[:1], *procfs.command_line(pid)[:1], _program(pid)]
    return [os.path.dirname(path) for path in paths if path.startswith("/")]


# ---- state


def _measure(running: list[dict[str, Any]]) -> None:
    """Add the state of each process, the kernel function that it waits in, and its CPU use (1.0: one core)."""
    begun, before = time.monotonic(), [_cpu_s(entry["pid"]) for entry in running]
    time.sleep(_CPU_S)
    passed_s = time.monotonic() - begun
    for entry, cpu_s in zip(running, before):  # Python 3.9 has no strict=
        pid = entry["pid"]
        entry["cpu"] = max(0.0, _cpu_s(pid) - cpu_s) / passed_s
        entry["state"] = (procfs.stat_fields(pid) or [""])[0]
        entry["waits_in"] = status.tail(f"/proc/{pid}/wchan").strip("\0\n 0")
        entry["tracer"] = int(procfs.status_field(pid, "TracerPid") or 0)


def _cpu_s(pid: int) -> float:
    fields = procfs.stat_fields(pid)
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK") if fields else 0.0


# ---- stacks


def _add_probed(running: list[dict[str, Any]], probed: list[dict[str, Any]]) -> None:
    """Add the stacks from the ranks' probes, which need no ptrace permission, for ranks that py-spy could not read."""
    stacks = {each["pid"]: each["stack"] for each in probed}
    for entry in running:
        if not entry["threads"] and (frames := stacks.get(entry["pid"])):
            thread = {"name": "MainThread", "active": False, "frames": [list(frame) for frame in frames]}
            entry.update(threads=[thread], by="probe")


def _dump(path: str, running: list[dict[str, Any]], request: dict[str, Any], probed: list[dict[str, Any]]) -> None:
    """Add the stacks of all ranks, or the reason why there are none."""
    if path:
        pyspy.dump_all(path, running, request["native"], request["timeout_s"])
    else:
        for entry in running:
            entry.update(threads=[], by="", problem="there is no py-spy")
    _add_probed(running, probed)
    left = [entry for entry in running if not entry["threads"]]
    for entry in left:
        caught = int(procfs.status_field(entry["pid"], "SigCgt") or "0", 16)
        entry["signal"] = faulthandler.check_signal(entry["state"], caught, request["signal"])
    faulthandler.signal_all([entry for entry in left if entry["signal"] == faulthandler.ALLOWED], request["signal"])
    for entry in running:
        _add_source(entry["threads"][:1])
        del entry["folder"]


def _add_source(threads: list[dict[str, Any]]) -> None:
    """Add the source line to each frame: a call into C, such as time.sleep, has no frame of its own."""
    texts: dict[str, list[str]] = {}
    for thread in threads:
        for frame in thread["frames"]:
            _, path, line = frame
            if path not in texts:
                texts[path] = _lines(path)
            frame.append(texts[path][line - 1].strip()[:200] if 0 < line <= len(texts[path]) else "")


def _lines(path: str) -> list[str]:
    if not (path.endswith(".py") and os.path.isfile(path)):
        return []
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read(4 * 1024 * 1024).splitlines()
    except OSError:
        return []
