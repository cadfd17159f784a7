"""`fab metrics`: the load of hosts and the state of a job, for Prometheus and OpenTelemetry."""

from __future__ import annotations

import os
import time
from pathlib import Path

from torchfab.commands.top import find_target
from torchfab.core.console import write_err, write_verbatim
from torchfab.core.errors import TorchfabError, UsageError
from torchfab.core.lazy_dataclass import dataclass
from torchfab.launching import job_lookup
from torchfab.launching.context import CommandContext
from torchfab.metrics import prometheus
from torchfab.metrics.families import Family, families
from torchfab.monitoring.host_load import job_status
from torchfab.monitoring.job_status import ask_status
from torchfab.monitoring.live_load import POLL_S, LiveLoad, Target

_SAMPLE_S = 1.0  # between two measurements, if the metrics are wanted once


@dataclass(frozen=True)
class MetricsOptions:
    """Where the metrics go.

    Parameters
    ----------
    output : str
        A file, replaced atomically. Default empty: stdout, unless they are sent.
    otlp : str
        URL of an OpenTelemetry collector. Default empty: they are not sent.
    every_s : float
        Seconds between two outputs, until Ctrl-C. Default 0: once.
    """

    output: str = ""
    otlp: str = ""
    every_s: float = 0.0


def run(job: str, hostfile: str, hostfile_format: str, options: MetricsOptions, ctx: CommandContext) -> int:
    """Measure hosts and a job, and print, write or send the metrics.

    Parameters
    ----------
    job : str
        Name of a job; empty: the hosts of the file, and the latest job on them.
    hostfile, hostfile_format : str
        As for `fab top`.
    options : MetricsOptions
        Where the metrics go.
    ctx : CommandContext
        Records and settings of this command.

    Returns
    -------
    int
        Exit code: 1 if a host did not answer, else 0.

    Raises
    ------
    UsageError
        A flag is wrong, or both a job and hosts are given.
    TorchfabError
        The file cannot be written, or the collector does not accept the metrics. With `every_s`, this is only reported.
    """
    options = _checked(options)
    target = _target(job, hostfile, hostfile_format, ctx)
    try:
        with LiveLoad(target, options.every_s or _SAMPLE_S, job_lookup.stall_s(None, ctx)) as live:
            live.wait_for_all()
            if not options.every_s:
                _deliver(_measure(live), options)
                return 0 if live.is_complete() else 1
            _repeat(live, options)
    except KeyboardInterrupt:  # Ctrl-C is the normal way to exit
        pass
    return 0


def _checked(options: MetricsOptions) -> MetricsOptions:
    from torchfab.metrics import otlp

    if options.every_s and not (options.output or options.otlp):
        raise UsageError("--every needs --output or --otlp", "without --every, the metrics are printed once")
    folder = Path(options.output).parent
    if options.output and not folder.is_dir():
        raise UsageError(f"--output: there is no folder {folder}", f"mkdir -p {folder}")
    url = otlp.endpoint(options.otlp) if options.otlp else ""
    return MetricsOptions(options.output, url, options.every_s)


def _target(job: str, hostfile: str, hostfile_format: str, ctx: CommandContext) -> Target:
    """Return the hosts and the job; of a job whose machines ssh does not reach, only the job."""
    try:
        return find_target(job, hostfile, ctx, hostfile_format)
    except UsageError:
        if not job or hostfile or ctx.hosts:
            raise
        record = job_lookup.find(job, ctx)
        return Target((), record.settings, record)


def _measure(live: LiveLoad) -> list[Family]:
    snapshot, record = live.snapshot(), live.target.record
    if record is None:
        return families(snapshot, None)
    return families(snapshot, record, job_status(snapshot) or ask_status(record))


def _repeat(live: LiveLoad, options: MetricsOptions) -> None:
    while True:
        due = time.monotonic() + options.every_s
        try:
            _deliver(_measure(live), options)
        except TorchfabError as error:  # the collector, or the disk, may come back
            write_err(str(error))
        while time.monotonic() < due:
            live.update()
            time.sleep(POLL_S)


def _deliver(found: list[Family], options: MetricsOptions) -> None:
    if options.output:
        write_file(Path(options.output), prometheus.render(found))
    if options.otlp:
        from torchfab.metrics import otlp

        otlp.send(found, options.otlp)
    if not options.output and not options.otlp:
        write_verbatim(prometheus.render(found).rstrip("\n"))


def write_file(path: Path, text: str) -> None:
    """Replace a file atomically: a reader sees the old content or the new one. All users may read it.

    Parameters
    ----------
    path : Path
        The file.
    text : str
        Its content.

    Raises
    ------
    TorchfabError
        It cannot be written; the old file is unchanged.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")  # node_exporter reads only names that end in .prom
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.chmod(0o644)
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise TorchfabError(f"cannot write {path}: {error.strerror}", "free disk space, or check permissions") from None
