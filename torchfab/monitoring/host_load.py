"""What `fab top` knows of the nodes, and how it is told: tables for people, JSON for machines. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torchfab.core import stall
from torchfab.core.format import columns
from torchfab.core.inventory import fold
from torchfab.core.specs import Node
from torchfab.core.status import JobStatus, NodeStatus, duration, from_answer
from torchfab.sync.results import size

MOST_ROWS = 32  # of nodes without GPUs; beyond that, nodes that do about the same are one row
# A rank that waits for another one keeps its GPU "100 % utilised" by polling, at a fraction of the power of real work.
IDLE_POWER = 0.25
_GPU_HEAD = ("host", "gpu", "util", "power", "memory", "temp", "processes", "")
_HOST_HEAD = ("host", "cpu", "memory", "load", "disk in/out", "network in/out", "")


@dataclass(frozen=True)
class View:
    """What one node told last.

    Parameters
    ----------
    node : Node
        The node.
    load : Mapping, optional
        As `torchfab.remote.job.load_stream` sends it; None while nothing has come.
    error : str
        Why nothing comes any more; empty when all is well.
    """

    node: Node
    load: Mapping[str, Any] | None = None
    error: str = ""


@dataclass(frozen=True)
class Snapshot:
    """All nodes at one moment.

    Parameters
    ----------
    time : float
        Seconds since the epoch.
    views : tuple of View
        The nodes, in their order.
    job : str
        Name of the job that is looked at; empty for none.
    job_ranks : frozenset of int
        The ranks of the nodes, among these, that the job was launched on.
    stall_s : float
        After how many seconds of silence it is said to hang; 0: never.
    min_nodes : int
        As in the job's record.
    """

    time: float
    views: tuple[View, ...]
    job: str = ""
    job_ranks: frozenset[int] = frozenset()
    stall_s: float = 0.0
    min_nodes: int = 0


# ---- the job


def job_status(snapshot: Snapshot) -> JobStatus | None:
    """Return how the job is, as far as its nodes told; None where it is on none of them."""
    found = []
    for view in snapshot.views:
        told = (view.load or {}).get("job")
        if view.error and view.node.rank in snapshot.job_ranks:
            found.append(NodeStatus(view.node, "unreachable", view.error))
        elif told and not view.error:
            found.append(from_answer(view.node, told["status"], told["status"]["now"], told["status"]["now"]))
    return JobStatus(tuple(found), snapshot.min_nodes) if any(node.processes for node in found) else None


def pace(snapshot: Snapshot) -> Mapping[str, Any] | None:
    """Return the pace of the node that is furthest in the steps, or that logs most; None where no job logs."""
    paces = [job for view in snapshot.views if (job := (view.load or {}).get("job"))]
    return max(paces, key=lambda each: (each["step"] or -1, each["lines_s"] or 0.0), default=None)


def job_words(snapshot: Snapshot) -> list[str]:
    """Return what is to be said of the job: how it is, its step, its pace, and whether it seems to hang."""
    status = job_status(snapshot)
    if status is None:
        return []
    lines = [f"job {snapshot.job}: {status.state}{_pace_words(snapshot)}"]
    if silence := stall.find(status, snapshot.stall_s):
        lines.append(stall.words(silence, snapshot.job))
    return lines


def _pace_words(snapshot: Snapshot) -> str:
    found = pace(snapshot)
    if found is None:
        return ""
    words = []
    if found["step"] is not None:
        words.append(f"step {found['step']}" + (f" of {found['steps']}" if found["steps"] else ""))
    if found["steps_s"] is not None:
        words.append(f"{found['steps_s']:.3g} steps/s")
    elif found["step"] is None and found["lines_s"] is not None:
        words.append(f"{found['lines_s']:.3g} lines/s")
    if found["silent_s"] is not None:
        words.append(f"last line {duration(found['silent_s'])} ago")
    return "".join(f", {word}" for word in words)


# ---- tables


def text(snapshot: Snapshot) -> str:
    """Return a snapshot for people."""
    gpus = [row for view in snapshot.views for row in _gpu_rows(view)]
    blocks = ["\n".join(job_words(snapshot))]
    if gpus:
        blocks.append(columns([_GPU_HEAD, *gpus]))
    blocks.append(columns([_HOST_HEAD, *host_rows(snapshot.views)]))
    return "\n\n".join(block for block in blocks if block)


def _gpu_rows(view: View) -> list[tuple[str, ...]]:
    load = view.load if view.load and not view.error else {}
    return [_gpu_row(view.node.label, gpu, runs_here(view)) for gpu in load.get("gpus", ())]


def runs_here(view: View) -> bool:
    """Say whether the job has a running process on a node."""
    job = (view.load or {}).get("job") or {"status": {"processes": ()}}
    return any(each["state"] == "running" for each in job["status"]["processes"])


def _gpu_row(host: str, gpu: Mapping[str, Any], runs: bool) -> tuple[str, ...]:
    memory = f"{_gib(gpu['memory'])}/{_gib(gpu['memory_total'])} GiB" if gpu["memory"] is not None else "?"
    power = f"{_whole(gpu['power'])}/{_whole(gpu['power_limit'])} W" if gpu["power"] is not None else "?"
    temperature = f"{_whole(gpu['temperature'])} C" if gpu["temperature"] is not None else "?"
    util = f"{_whole(gpu['utilization'])} %" if gpu["utilization"] is not None else "?"
    programs = ", ".join(_program(each) for each in gpu["processes"][:2])
    more = f" and {len(gpu['processes']) - 2} more" if len(gpu["processes"]) > 2 else ""
    return (host, str(gpu["index"]), util, power, memory, temperature, programs + more, gpu_mark(gpu, runs))


def _program(process: Mapping[str, Any]) -> str:
    name = str(process["name"]).rsplit("/", 1)[-1]
    return f"{name}({process['pid']})"


def gpu_mark(gpu: Mapping[str, Any], runs: bool) -> str:
    """Return what stands out of a GPU: it is sick, or it draws next to nothing though the job runs on it."""
    if gpu["sick"]:
        return str(gpu["sick"])
    known = gpu["power"] is not None and gpu["power_limit"]
    if runs and gpu["processes"] and known and gpu["power"] < IDLE_POWER * gpu["power_limit"]:
        return "low power: waits or hangs"
    return ""


def host_rows(views: Sequence[View]) -> list[tuple[str, ...]]:
    """Return the rows of the table of hosts; equal ones as one, where they are many."""
    coarse = len(views) > MOST_ROWS
    alike: dict[tuple[str, ...], list[str]] = {}
    for view in views:
        key = _host_row(view, coarse)
        alike.setdefault(key if coarse else (*key, view.node.label), []).append(view.node.label)
    width = len(_HOST_HEAD) - 1
    return [(fold(hosts), *row[:width]) for row, hosts in alike.items()]


def _host_row(view: View, coarse: bool) -> tuple[str, ...]:
    if view.error:
        return ("", "", "", "", "", f"unreachable: {view.error}")
    if view.load is None:
        return ("", "", "", "", "", "connecting")
    load = view.load
    percent = 100 * load["cpu"]
    if coarse:  # rates differ always: they would fold nothing
        memory = 100 * load["memory"] / max(1, load["memory_total"])
        return (f"{round(percent, -1):.0f} %", f"{round(memory, -1):.0f} %", "", "", "", load["problem"])
    return (
        f"{percent:.0f} % of {load['cpus']}",
        f"{_of(load['memory'])}/{_of(load['memory_total'])} GiB",
        f"{load['load']:.1f}",
        f"{size(load['disk_read'])}/s {size(load['disk_written'])}/s",
        f"{size(load['received'])}/s {size(load['sent'])}/s",
        load["problem"],
    )


def _of(count: float) -> str:
    return f"{count / 2**30:.1f}"


def _gib(mib: float | None) -> str:
    return "?" if mib is None else f"{mib / 1024:.1f}"


def _whole(value: float | None) -> str:
    return "?" if value is None else f"{value:.0f}"


def as_json(snapshot: Snapshot) -> dict[str, Any]:
    """Return a snapshot for machines."""
    status = job_status(snapshot)
    job: dict[str, Any] | None = None
    if status is not None:
        job = {"job": snapshot.job, "state": status.state, "stall": stall.as_json(status, snapshot.stall_s)}
        found = pace(snapshot) or {}
        job |= {name: found.get(name) for name in ("step", "steps", "steps_s", "lines_s")}
    return {"time": snapshot.time, "job": job, "nodes": [_node_as_json(view) for view in snapshot.views]}


def _node_as_json(view: View) -> dict[str, Any]:
    load = {name: value for name, value in (view.load or {}).items() if name != "job"}
    gpus = [{**gpu, "mark": gpu_mark(gpu, runs_here(view))} for gpu in load.get("gpus", ())]
    return {"host": view.node.label, "error": view.error or None, **({**load, "gpus": gpus} if not view.error else {})}
