"""The load of hosts and GPUs in `fab top`, rendered as tables or JSON. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torchfab.core import stall
from torchfab.core.format import align_columns, duration, format_bytes, format_gib
from torchfab.core.inventory import fold
from torchfab.core.lazy_dataclass import dataclass
from torchfab.core.specs import Node
from torchfab.core.status import JobStatus, NodeStatus, State, from_answer
from torchfab.transport.messages.load import GpuLoad, GpuLoadProcess, JobLoad, NodeLoad

MOST_ROWS = 32  # rows in the table of hosts; with more hosts, those with similar load share a row
# A rank that waits for another one polls: its GPU is "100 % utilised" at a fraction of the power of real work.
IDLE_POWER = 0.25
_GPU_HEAD = ("host", "gpu", "util", "power", "memory", "temp", "processes", "")
_HOST_HEAD = ("host", "cpu", "memory", "load", "disk in/out", "network in/out", "")


@dataclass(frozen=True)
class HostLoad:
    """The latest load of one node.

    Parameters
    ----------
    node : Node
        The node.
    load : NodeLoad, optional
        None until the first has arrived.
    error : str
        Why the stream ended. Empty while it works.
    """

    node: Node
    load: NodeLoad | None = None
    error: str = ""

    @property
    def job(self) -> JobLoad | None:
        """The load of the job there, if it runs there."""
        return self.load.job if self.load else None


@dataclass(frozen=True)
class Snapshot:
    """All nodes at one moment.

    Parameters
    ----------
    time : float
        Seconds since the epoch.
    views : tuple of HostLoad
        The nodes, in their order.
    job : str
        The name of the job to show. Empty: none.
    job_ranks : frozenset of int
        The ranks of the nodes that the job was launched on.
    stall_s : float
        Seconds of silence after which the job counts as hanging. Default 0: never.
    min_nodes : int
        Minimum number of nodes of an elastic job, as in its record. Default 0: all nodes.
    """

    time: float
    views: tuple[HostLoad, ...]
    job: str = ""
    job_ranks: frozenset[int] = frozenset()
    stall_s: float = 0.0
    min_nodes: int = 0


# ---- the job


def job_status(snapshot: Snapshot) -> JobStatus | None:
    """Combine the job's status from its nodes.

    Parameters
    ----------
    snapshot : Snapshot
        The nodes.

    Returns
    -------
    JobStatus or None
        None if the job is on none of the nodes.
    """
    nodes = []
    for view in snapshot.views:
        job = view.job
        if view.error and view.node.rank in snapshot.job_ranks:
            nodes.append(NodeStatus(view.node, State.UNREACHABLE, view.error))
        elif job and not view.error:
            nodes.append(from_answer(view.node, job.status, job.status.now, job.status.now))
    return JobStatus(tuple(nodes), snapshot.min_nodes) if any(node.processes for node in nodes) else None


def job_progress(snapshot: Snapshot) -> JobLoad | None:
    """Return the progress on the node with the largest step, or, without steps, on the node that logs most.

    Parameters
    ----------
    snapshot : Snapshot
        The nodes.

    Returns
    -------
    JobLoad or None
        None if no node reports the job.
    """
    candidates = [view.job for view in snapshot.views if view.job]
    return max(candidates, key=lambda each: (each.step or -1, each.lines_s or 0.0), default=None)


def job_lines(snapshot: Snapshot) -> list[str]:
    """Describe the job: its state, step and step rate, and whether it may hang.

    Parameters
    ----------
    snapshot : Snapshot
        The nodes.

    Returns
    -------
    list of str
        Lines of text. Empty without a job.
    """
    status = job_status(snapshot)
    if status is None:
        return []
    lines = [f"job {snapshot.job}: {status.state}{_describe_progress(snapshot)}"]
    if silence := stall.detect_stall(status, snapshot.stall_s):
        lines.append(stall.render_warning(silence, snapshot.job))
    return lines


def _describe_progress(snapshot: Snapshot) -> str:
    progress = job_progress(snapshot)
    if progress is None:
        return ""
    parts = []
    if progress.step is not None:
        parts.append(f"step {progress.step}" + (f" of {progress.steps}" if progress.steps else ""))
    if progress.steps_s is not None:
        parts.append(f"{progress.steps_s:.3g} steps/s")
    elif progress.step is None and progress.lines_s is not None:
        parts.append(f"{progress.lines_s:.3g} lines/s")
    if progress.silent_s is not None:
        parts.append(f"last line {duration(progress.silent_s)} ago")
    return "".join(f", {part}" for part in parts)


# ---- tables


def render(snapshot: Snapshot) -> str:
    """Render a snapshot as text.

    Parameters
    ----------
    snapshot : Snapshot
        The nodes.

    Returns
    -------
    str
        The job, the table of GPUs, and the table of hosts.
    """
    gpus = [row for view in snapshot.views for row in _gpu_rows(view)]
    blocks = ["\n".join(job_lines(snapshot))]
    if gpus:
        blocks.append(align_columns([_GPU_HEAD, *gpus]))
    blocks.append(align_columns([_HOST_HEAD, *host_rows(snapshot.views)]))
    return "\n\n".join(block for block in blocks if block)


def _gpu_rows(view: HostLoad) -> list[tuple[str, ...]]:
    gpus = view.load.gpus if view.load and not view.error else []
    return [_gpu_row(view.node.label, gpu, job_runs_on(view)) for gpu in gpus]


def job_runs_on(view: HostLoad) -> bool:
    """Test whether the job has a running process on a node.

    Parameters
    ----------
    view : HostLoad
        The node.

    Returns
    -------
    bool
        False without a job.
    """
    return view.job is not None and any(each.state == State.RUNNING for each in view.job.status.processes)


def _gpu_row(host: str, gpu: GpuLoad, runs: bool) -> tuple[str, ...]:
    used, total = (None if mib is None else mib * 1024**2 for mib in (gpu.memory, gpu.memory_total))
    memory = "?" if used is None else f"{format_gib(used)}/{format_gib(total)} GiB"
    power = f"{_rounded(gpu.power)}/{_rounded(gpu.power_limit)} W" if gpu.power is not None else "?"
    temperature = f"{_rounded(gpu.temperature)} C" if gpu.temperature is not None else "?"
    util = f"{_rounded(gpu.utilization)} %" if gpu.utilization is not None else "?"
    programs = ", ".join(_program(each) for each in gpu.processes[:2])
    more = f" and {len(gpu.processes) - 2} more" if len(gpu.processes) > 2 else ""
    return (host, str(gpu.index), util, power, memory, temperature, programs + more, gpu_mark(gpu, runs))


def _program(process: GpuLoadProcess) -> str:
    name = str(process.name).rsplit("/", 1)[-1]
    return f"{name}({process.pid})"


def gpu_mark(gpu: GpuLoad, runs: bool) -> str:
    """Return the remark on a GPU that has a fault, or that draws little power although the job runs on it.

    Parameters
    ----------
    gpu : GpuLoad
        The GPU.
    runs : bool
        Whether the job runs on its node.

    Returns
    -------
    str
        Empty for a healthy GPU.
    """
    if gpu.sick:
        return gpu.sick
    is_idle = gpu.power is not None and bool(gpu.power_limit) and gpu.power < IDLE_POWER * (gpu.power_limit or 0)
    if runs and gpu.processes and is_idle:
        return "low power: waits or hangs"
    return ""


def host_rows(views: Sequence[HostLoad]) -> list[tuple[str, ...]]:
    """Return the rows of the table of hosts. Beyond 32 hosts, equal rows are merged.

    Parameters
    ----------
    views : sequence of HostLoad
        The hosts.

    Returns
    -------
    list of tuple of str
        One row per host or group of hosts.
    """
    coarse = len(views) > MOST_ROWS
    groups: dict[tuple[str, ...], list[str]] = {}
    for view in views:
        key = _host_row(view, coarse)
        groups.setdefault(key if coarse else (*key, view.node.label), []).append(view.node.label)
    width = len(_HOST_HEAD) - 1
    return [(fold(hosts), *row[:width]) for row, hosts in groups.items()]


def _host_row(view: HostLoad, coarse: bool) -> tuple[str, ...]:
    if view.error:
        return ("", "", "", "", "", f"unreachable: {view.error}")
    if view.load is None:
        return ("", "", "", "", "", "connecting")
    load = view.load
    percent = 100 * load.cpu
    if coarse:  # without the rates, which always differ
        memory = 100 * load.memory / max(1, load.memory_total)
        return (f"{round(percent, -1):.0f} %", f"{round(memory, -1):.0f} %", "", "", "", load.problem)
    return (
        f"{percent:.0f} % of {load.cpus}",
        f"{format_gib(load.memory)}/{format_gib(load.memory_total)} GiB",
        f"{load.load:.1f}",
        f"{format_bytes(load.disk_read)}/s {format_bytes(load.disk_written)}/s",
        f"{format_bytes(load.received)}/s {format_bytes(load.sent)}/s",
        load.problem,
    )


def _rounded(value: float | None) -> str:
    return "?" if value is None else f"{value:.0f}"


def as_json(snapshot: Snapshot) -> dict[str, Any]:
    """Convert a snapshot to a JSON object.

    Parameters
    ----------
    snapshot : Snapshot
        The nodes.

    Returns
    -------
    dict
        `time`, `job` (null without one), `nodes`.
    """
    status = job_status(snapshot)
    job: dict[str, Any] | None = None
    if status is not None:
        job = {"job": snapshot.job, "state": status.state, "stall": stall.as_json(status, snapshot.stall_s)}
        progress = job_progress(snapshot)
        job |= {name: getattr(progress, name, None) for name in ("step", "steps", "steps_s", "lines_s")}
    return {"time": snapshot.time, "job": job, "nodes": [_node_as_json(view) for view in snapshot.views]}


# The names of values in JSON, which tell their units.
_HOST_NAMES = {
    "time": "time",
    "cpus": "cpus",
    "load": "load",
    "memory": "memory_bytes",
    "memory_total": "memory_total_bytes",
    "received": "received_bytes_s",
    "sent": "sent_bytes_s",
    "disk_read": "disk_read_bytes_s",
    "disk_written": "disk_written_bytes_s",
    "problem": "problem",
}


def _node_as_json(view: HostLoad) -> dict[str, Any]:
    load = None if view.error else view.load
    values = {name: getattr(load, field, None) for field, name in _HOST_NAMES.items()}
    return {
        "host": view.node.label,
        "error": view.error or None,
        **values,
        "cpu_percent": None if load is None else 100 * load.cpu,
        "gpus": [_gpu_as_json(gpu, job_runs_on(view)) for gpu in (load.gpus if load else ())],
    }


def _gpu_as_json(gpu: GpuLoad, runs: bool) -> dict[str, Any]:
    return {
        "index": gpu.index,
        "uuid": gpu.uuid,
        "name": gpu.name,
        "sick": gpu.sick,
        "mark": gpu_mark(gpu, runs),
        "utilization_percent": gpu.utilization,
        "power_w": gpu.power,
        "power_limit_w": gpu.power_limit,
        "memory_bytes": _bytes(gpu.memory),
        "memory_total_bytes": _bytes(gpu.memory_total),
        "temperature_c": gpu.temperature,
        "processes": [
            {"pid": each.pid, "name": each.name, "memory_bytes": _bytes(each.memory)} for each in gpu.processes
        ],
    }


def _bytes(mib: float | None) -> float | None:
    return None if mib is None else mib * 1024**2
