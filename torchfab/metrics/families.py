"""Metrics of hosts and of a job, from a snapshot. Pure.

Names follow https://prometheus.io/docs/practices/naming/: base units (bytes, seconds, watts), ratios from 0 to 1, the
unit at the end of the name.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import field
from typing import TypeAlias

from torchfab.core import stall
from torchfab.core.lazy_dataclass import dataclass
from torchfab.core.status import JobStatus, State
from torchfab.monitoring.host_load import HostLoad, Snapshot, job_progress
from torchfab.records import Record
from torchfab.transport.messages.load import GpuLoad, NodeLoad

# Unit in OpenTelemetry (UCUM) -> ending of the name in Prometheus.
ENDINGS: Mapping[str, str] = {
    "By": "_bytes",
    "By/s": "_bytes_per_second",
    "s": "_seconds",
    "1/s": "_per_second",
    "W": "_watts",
    "Cel": "_celsius",
    "1": "_ratio",
    "": "",
}
_MIB = 1024**2
Labels: TypeAlias = Mapping[str, str]


@dataclass(frozen=True)
class Family:
    """A metric, with its value for each combination of labels. All are gauges.

    Parameters
    ----------
    name : str
        Without torchfab's prefix and without the unit: `gpu_power`.
    help : str
        One sentence.
    unit : str
        A key of `ENDINGS`.
    samples : tuple of (Mapping, float)
        Labels and value.
    """

    name: str
    help: str
    unit: str = ""
    samples: tuple[tuple[Labels, float], ...] = field(default_factory=tuple)


def families(snapshot: Snapshot, record: Record | None, status: JobStatus | None = None) -> list[Family]:
    """Return the metrics of a snapshot.

    Parameters
    ----------
    snapshot : Snapshot
        The hosts.
    record : Record, optional
        The job on them.
    status : JobStatus, optional
        The status of the job. Default None: it is not known.

    Returns
    -------
    list of Family
        Those with at least one sample. A value that is not known has no sample.
    """
    found = [*_host_families(snapshot.views), *_gpu_families(snapshot.views)]
    if record is not None:
        found += _job_families(snapshot, record, status)
    return [each for each in found if each.samples]


# ---- hosts

# Name, help, unit, field of NodeLoad.
_HOST = (
    ("host_cpu_utilization", "Use of all CPUs together.", "1", "cpu"),
    ("host_cpus", "Number of CPUs.", "", "cpus"),
    ("host_load1", "Load average of the last minute.", "", "load"),
    ("host_memory_used", "Memory in use.", "By", "memory"),
    ("host_memory_size", "Memory of the host.", "By", "memory_total"),
    ("host_network_receive", "Received by all network interfaces.", "By/s", "received"),
    ("host_network_transmit", "Sent by all network interfaces.", "By/s", "sent"),
    ("host_disk_read", "Read from all disks.", "By/s", "disk_read"),
    ("host_disk_written", "Written to all disks.", "By/s", "disk_written"),
)


def _host_families(views: Iterable[HostLoad]) -> Iterator[Family]:
    views = tuple(views)
    up = tuple(({"host": view.node.label}, float(_load(view) is not None)) for view in views)
    yield Family("up", "Whether the host answered.", "", up)
    loads = [(view.node.label, load) for view in views if (load := _load(view)) is not None]
    for name, text, unit, key in _HOST:
        yield Family(name, text, unit, tuple(({"host": host}, float(getattr(load, key))) for host, load in loads))


def _load(view: HostLoad) -> NodeLoad | None:
    return None if view.error else view.load


# ---- GPUs

# Name, help, unit, field of GpuLoad, factor.
_GPU = (
    ("gpu_utilization", "Share of the time in which a kernel ran.", "1", "utilization", 0.01),
    ("gpu_power", "Power draw.", "W", "power", 1),
    ("gpu_power_limit", "Power limit.", "W", "power_limit", 1),
    ("gpu_memory_used", "GPU memory in use.", "By", "memory", _MIB),
    ("gpu_memory_size", "Memory of the GPU.", "By", "memory_total", _MIB),
    ("gpu_temperature", "Temperature.", "Cel", "temperature", 1),
)


def _gpu_families(views: Iterable[HostLoad]) -> Iterator[Family]:
    gpus = [(view.node.label, gpu) for view in views if (load := _load(view)) for gpu in load.gpus]
    info = tuple(({**_gpu(host, gpu), "uuid": gpu.uuid, "name": gpu.name}, 1.0) for host, gpu in gpus)
    yield Family("gpu_info", "The GPU: its name and identifier.", "", info)
    sick = tuple((_gpu(host, gpu), float(bool(gpu.sick))) for host, gpu in gpus)
    yield Family("gpu_sick", "Whether the GPU has a fault.", "", sick)
    for name, text, unit, key, factor in _GPU:
        values = ((_gpu(host, gpu), getattr(gpu, key)) for host, gpu in gpus)
        yield Family(name, text, unit, tuple((labels, value * factor) for labels, value in values if value is not None))


def _gpu(host: str, gpu: GpuLoad) -> Labels:
    return {"host": host, "gpu": str(gpu.index)}


# ---- the job


def _job_families(snapshot: Snapshot, record: Record, status: JobStatus | None) -> Iterator[Family]:
    job: Labels = {"job": record.name}
    info = {**job, "job_id": record.job_id, "launcher": record.launcher, "runtime": record.runtime}
    yield Family("job_info", "The job: its identifier and launcher.", "", ((info, 1.0),))
    yield Family("job_created_timestamp", "When the job was launched, since 1970.", "s", ((job, record.created),))
    yield Family("job_attempt", "Number of the attempt, from 1.", "", ((job, float(record.attempt)),))
    yield Family("job_ranks", "Number of ranks.", "", ((job, float(record.world_size)),))
    if status is None:
        return
    states = tuple(({**job, "state": str(state)}, float(status.state == state)) for state in State)
    yield Family("job_state", "1 for the state that the job is in, 0 for the others.", "", states)
    progress = {**_progress(snapshot), **_silence(status, snapshot.stall_s)}
    for (name, text, unit), value in progress.items():
        yield Family(name, text, unit, ((job, float(value)),) if value is not None else ())


_Values: TypeAlias = dict[tuple[str, str, str], float | None]


def _progress(snapshot: Snapshot) -> _Values:
    progress = job_progress(snapshot)
    return {
        ("job_step", "The last step that a rank logged.", ""): getattr(progress, "step", None),
        ("job_last_step", "The last step of the training.", ""): getattr(progress, "steps", None),
        ("job_steps", "Steps per second.", "1/s"): getattr(progress, "steps_s", None),
        ("job_log_lines", "Log lines per second.", "1/s"): getattr(progress, "lines_s", None),
    }


def _silence(status: JobStatus, stall_s: float) -> _Values:
    silence = stall.measure_silence(status)
    return {
        ("job_silent", "Seconds since a rank logged.", "s"): silence.seconds if silence else None,
        ("job_stalled", "Whether no rank has logged for so long that the job may hang.", ""): float(
            stall.detect_stall(status, stall_s) is not None
        ),
    }
