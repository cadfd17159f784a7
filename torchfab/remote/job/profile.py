"""Profile the ranks on this node through their probes: all at one instant; then hand their traces out in chunks.

A request starts it in a thread and is answered at once, so that all nodes have it before the instant comes; a second
one waits for its end.
"""

from __future__ import annotations

import base64
import json
import os
import re
import stat
import threading

from torchfab.remote import job_files, procfs
from torchfab.remote.job import recorder, status

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

HANDLER = "torchfab_profile"
MAX_TRACE_BYTES = 512 * 1024 * 1024
_CHUNK_BYTES = 4 * 1024 * 1024
_CHECK_S = 5.0
_NAME = re.compile(r"\d+-\d+")
_running: dict[str, _Run] = {}


class _Run:
    """A profile of the ranks on this node."""

    def __init__(self, folder: str, request: dict[str, Any]) -> None:
        self.folder, self.request = folder, request
        self.ranks: list[dict[str, Any]] = []
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        self.ranks = profile_ranks(self.folder, self.request)


def begin(request: dict[str, Any]) -> dict[str, Any]:
    """Start to profile the job's ranks on this node.

    Parameters
    ----------
    request : dict
        As `profile_ranks` takes it, with the keys that `job_files.folder_of` needs.

    Returns
    -------
    dict
        Empty.
    """
    folder = job_files.folder_of(request)
    _running[folder] = _Run(folder, request)
    return {}


def result(request: dict[str, Any]) -> dict[str, Any]:
    """Wait for the end of the profile, and return what there is of it.

    Parameters
    ----------
    request : dict
        The keys that `job_files.folder_of` needs.

    Returns
    -------
    dict
        `ranks`: as `profile_ranks` returns them.
    """
    run = _running.pop(job_files.folder_of(request), None)
    if run is None:
        return {"ranks": []}
    run.thread.join()
    return {"ranks": run.ranks}


def profile_ranks(folder: str, request: dict[str, Any]) -> list[dict[str, Any]]:
    """Profile the running ranks of a job on this node.

    Parameters
    ----------
    folder : str
        The job's folder on this node.
    request : dict
        `ranks` (which; None: all), `start` (seconds since the epoch, by this machine's clock), `seconds`, `timeout_s`
        (for the traces, beyond the end).

    Returns
    -------
    list of dict
        For each: `rank`, `pid`, `problem`; without a problem also what `shims/rank_profile.py` returns.
    """
    wanted = request["ranks"]
    running = {rank: pid for rank, pid in _running_ranks(folder).items() if wanted is None or rank in wanted}
    probes = {probe.rank: probe for name in job_files.processes(folder) for probe in _probes(folder, name, running)}
    found = {rank: _entry(rank, pid, {"problem": "no probe"}) for rank, pid in running.items()}
    checked = _ask(list(probes.values()), "check=1", _CHECK_S)
    found.update(checked)
    able = [probes[rank] for rank, each in checked.items() if not each["problem"]]
    query = f"start={request['start']!r}&seconds={request['seconds']!r}"
    found.update(_ask(able, query, request["lead_s"] + request["seconds"] + request["timeout_s"]))
    return [_bounded(found[rank]) for rank in sorted(found)]


def _running_ranks(folder: str) -> dict[int, int]:
    entries = [rank for name in job_files.processes(folder) for rank in status.read_ranks(os.path.join(folder, name))]
    alive = [each for each in entries if each["ended"] is None and procfs.is_alive(each["pid"], each["start_time"])]
    return {each["rank"]: each["pid"] for each in alive}


def _probes(folder: str, name: str, running: dict[int, int]) -> list[recorder.Probe]:
    return [probe for probe in recorder.find(os.path.join(folder, name)) if probe.rank in running]


def _ask(probes: list[recorder.Probe], query: str, timeout_s: float) -> dict[int, dict[str, Any]]:
    bodies = recorder.fetch([(probe.path, f"{HANDLER}?{query}") for probe in probes], timeout_s)
    return {probe.rank: _entry(probe.rank, probe.pid, _report(probe, body)) for probe, body in zip(probes, bodies)}


def _report(probe: recorder.Probe, body: bytes | None) -> dict[str, Any]:
    if body is None:
        return {"problem": "no answer" if probe.is_alive() else "it has ended"}
    try:
        return dict(json.loads(body))
    except ValueError:
        return {"problem": "its answer is not JSON"}


def _entry(rank: int, pid: int, report: dict[str, Any]) -> dict[str, Any]:
    return {"rank": rank, "pid": pid, **report}


def _bounded(entry: dict[str, Any]) -> dict[str, Any]:
    if entry.get("size", 0) <= MAX_TRACE_BYTES:
        return entry
    return _entry(entry["rank"], entry["pid"], {"problem": f"its trace is larger than {MAX_TRACE_BYTES >> 20} MiB"})


# ---- the traces


def chunk(request: dict[str, Any]) -> dict[str, Any]:
    """Return a part of the trace of a rank.

    Parameters
    ----------
    request : dict
        `rank`, `pid`, `offset` (bytes), and the keys that `job_files.folder_of` needs.

    Returns
    -------
    dict
        `data`: at most 4 MiB, base64; `problems` where there is no such file.
    """
    for path in _traces(job_files.folder_of(request), f"{int(request['rank'])}-{int(request['pid'])}"):
        return {"data": base64.b64encode(_read(path, request["offset"])).decode()}
    what = f"the trace of rank {request['rank']} is gone from the node"
    return {"problems": [{"what": what, "fix": "profile again"}]}


def remove(request: dict[str, Any]) -> dict[str, Any]:
    """Remove the traces of the job from this node.

    Parameters
    ----------
    request : dict
        The keys that `job_files.folder_of` needs.

    Returns
    -------
    dict
        Empty.
    """
    for path in _traces(job_files.folder_of(request)):
        os.unlink(path)
    return {}


def _traces(folder: str, name: str = "") -> list[str]:
    suffix = ".trace.json.gz"
    found = []
    for process in job_files.processes(folder):
        parent = os.path.join(folder, process, recorder.FOLDER)
        names = os.listdir(parent) if os.path.isdir(parent) else []
        traces = [each for each in names if each.endswith(suffix) and _NAME.fullmatch(each[: -len(suffix)])]
        found += [os.path.join(parent, each) for each in traces if not name or each == name + suffix]
    return found


def _read(path: str, offset: int) -> bytes:
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            return b""
        return os.pread(fd, _CHUNK_BYTES, offset)
    finally:
        os.close(fd)
