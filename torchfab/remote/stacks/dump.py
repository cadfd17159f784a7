"""The stacks of the job's ranks on this node: of all at once, by py-spy, else by the signal that faulthandler answers.

The ranks are no descendants of ours (they are their supervisor's), so that py-spy needs the right to ptrace them.
"""

from __future__ import annotations

import os
import time

from torchfab.remote import files, procfs
from torchfab.remote.job import status
from torchfab.remote.stacks import faulthandler, pyspy

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_CPU_S = 0.25  # how long a process is watched to learn how much it computes
_STOPPED, _UNINTERRUPTIBLE = "T", "D"
_CAP_SYS_PTRACE = 19


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """Return the stacks of the job's ranks here."""
    return of_node(files.folder_of(request), request)


def of_node(folder: str, request: dict[str, Any]) -> dict[str, Any]:
    """Return the stacks of the ranks whose job's folder on this node is `folder`.

    Parameters
    ----------
    request : dict
        `ranks` (those wanted; None for all), `native`, `timeout_s` (for each rank), `signal` (name of the one that
        faulthandler answers; empty: none is sent), and `program`: py-spy itself, as `spy.unpack` takes it; empty: none
        can be had; or `copy`: the path of one that was sent. With neither, and where none is found: `wants` in the
        answer, and nothing else was done.

    Returns
    -------
    dict
        `ranks`: one entry each, as `_entry` makes it, with `threads` (main thread first), `by`, `problem`; `spy`:
        where py-spy was found; `rights`: what decides whether it may look; `machine`.
    """
    entries = targets(folder, request["ranks"])
    running = [entry for entry in entries if entry["ended"] is None]
    told: dict[str, Any] = {"machine": os.uname().machine, "rights": rights(), "spy": "", "ranks": entries}
    if not running:
        return told
    path, told["spy"] = pyspy.find([each for entry in running for each in entry.pop("beside")])
    if not path and request.get("copy"):
        path, told["spy"] = request["copy"], "sent"
    if not path and "program" not in request:
        return {**told, "wants": True, "ranks": []}
    _measure(running)
    if path or not request["program"]:
        _dump(path, running, request)
        return told
    path = pyspy.unpack(request["program"], folder)
    told["spy"] = "sent" if path else ""
    try:
        _dump(path, running, request)
    finally:
        pyspy.remove(path)
    return told


def rights() -> dict[str, Any]:
    """Return what decides whether one process may look into another of the same user."""
    effective = int(_status_field(os.getpid(), "CapEff") or "0", 16)
    scope = status.tail("/proc/sys/kernel/yama/ptrace_scope").strip()
    return {"ptrace_scope": scope, "cap_sys_ptrace": bool(effective >> _CAP_SYS_PTRACE & 1), "uid": os.getuid()}


# ---- whose


def targets(folder: str, wanted: list[int] | None) -> list[dict[str, Any]]:
    """Return the ranks on this node, each as seen last; a process without ranks stands in for those it will start."""
    found: list[dict[str, Any]] = []
    for name in files.processes(folder):
        own = os.path.join(folder, name)
        spec = files.read_json(os.path.join(own, files.SPEC)) or {}
        last = {rank["rank"]: rank for rank in status.ranks_of(own)}
        found += [_entry(name, own, spec, rank) for rank in last.values()]
        started = files.read_json(os.path.join(own, files.STARTED))
        if not last and started and procfs.is_alive(started["pid"], started["start_time"]):
            found.append(_entry(name, own, spec, {**started, "rank": None, "ended": None, "code": None}))
    return [entry for entry in found if wanted is None or entry["rank"] in wanted]


def _entry(name: str, folder: str, spec: dict[str, Any], rank: dict[str, Any]) -> dict[str, Any]:
    entry = {"process": name, "rank": rank["rank"], "pid": rank["pid"], "ended": rank["ended"], "code": rank["code"]}
    if rank["ended"] is None and not procfs.is_alive(rank["pid"], rank["start_time"]):
        entry["ended"] = time.time()
    if entry["ended"] is None:
        entry["pid"] = _python_below(rank["pid"])
        entry["beside"] = _places(entry["pid"], spec)
        entry["folder"] = folder
    return entry


def _python_below(pid: int) -> int:
    """Return the interpreter: `pid` itself, or below a shell script that a rank may begin with."""
    below = procfs.find_below(pid, lambda each: "python" in os.path.basename(_program(each)))
    return below[0] if below else pid


def _program(pid: int) -> str:
    try:
        return os.readlink(f"/proc/{pid}/exe")
    except OSError:
        return ""


def _places(pid: int, spec: dict[str, Any]) -> list[str]:
    """Return the folders in which a py-spy of the training may lie: beside its interpreter, as called and as it is."""
    called = [*spec.get("argv", ())[:1], *procfs.command_line(pid)[:1], _program(pid)]
    return [os.path.dirname(each) for each in called if each.startswith("/")]


# ---- how they are


def _measure(running: list[dict[str, Any]]) -> None:
    """Note the state of each process, what it waits for in the kernel, and how much it computes (1.0: one core)."""
    begun, before = time.monotonic(), [_cpu_s(entry["pid"]) for entry in running]
    time.sleep(_CPU_S)
    passed_s = time.monotonic() - begun
    for entry, cpu_s in zip(running, before):  # Python 3.9 has no strict=
        pid = entry["pid"]
        entry["cpu"] = max(0.0, _cpu_s(pid) - cpu_s) / passed_s
        entry["state"] = (procfs.stat_fields(pid) or [""])[0]
        entry["waits_in"] = status.tail(f"/proc/{pid}/wchan").strip("\0\n 0")
        entry["tracer"] = int(_status_field(pid, "TracerPid") or 0)


def _cpu_s(pid: int) -> float:
    fields = procfs.stat_fields(pid)
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK") if fields else 0.0


def _status_field(pid: int, name: str) -> str:
    for line in status.tail(f"/proc/{pid}/status").splitlines():
        if line.startswith(name + ":"):
            return line.partition(":")[2].strip()
    return ""


# ---- their stacks


def _dump(path: str, running: list[dict[str, Any]], request: dict[str, Any]) -> None:
    """Fill in the stacks of all ranks at once, or why there are none."""
    if path:
        pyspy.dump_all(path, running, request["native"], request["timeout_s"])
    else:
        for entry in running:
            entry.update(threads=[], by="", problem="there is no py-spy")
    left = [entry for entry in running if not entry["threads"]]
    for entry in left:
        caught = int(_status_field(entry["pid"], "SigCgt") or "0", 16)
        entry["signal"] = faulthandler.may_ask(entry["state"], caught, request["signal"])
    faulthandler.ask_all([entry for entry in left if entry["signal"] == faulthandler.MAY], request["signal"])
    for entry in running:
        _add_source(entry["threads"][:1])
        del entry["folder"]


def _add_source(threads: list[dict[str, Any]]) -> None:
    """Add to each frame the text of its line: a call into C, such as time.sleep, has no frame of its own."""
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
