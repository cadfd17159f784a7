"""`fab logs` and `fab wait`: print a job's logs, or wait for its end."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from typing import Any

from torchfab.commands.status import rank_flag
from torchfab.core import inventory
from torchfab.core.console import write_err
from torchfab.core.errors import UsageError
from torchfab.core.format import duration
from torchfab.core.status import JobStatus
from torchfab.monitoring.first_failure import with_first_failure
from torchfab.monitoring.watcher import NO_LOG_LINES, JobWatcher, Printer, describe_failure
from torchfab.records import Record
from torchfab.supervise import lease_status


def log_request(rank: str, lines: int | str, grep: str, follow: bool) -> dict[str, Any]:
    """Build the request for the nodes' log readers from the flags of `fab logs`.

    Parameters
    ----------
    rank : str
        Ranks, such as `0-3,7`; empty: all.
    lines : int or str
        Number of last lines per log file, or `all`.
    grep : str
        Regular expression that lines must match; empty: none.
    follow : bool
        Wait for new lines until the job ends.

    Returns
    -------
    dict
        `follow`, `lines`, `ranks` and `grep`.

    Raises
    ------
    UsageError
        A flag's value is invalid.
    """
    try:
        re.compile(grep)
    except (re.error, OverflowError, RecursionError) as error:
        raise UsageError(f"--grep {grep!r} is no regular expression: {error}") from None
    ranks = list(inventory.parse_ranks(rank)) if rank else None
    count = None if lines == "all" else int(lines)
    return {"follow": follow, "lines": count, "ranks": ranks, "grep": grep or None}


def show_logs(record: Record, request: Mapping[str, Any], printer: Printer, stall_s: float) -> int:
    """Print a job's logs.

    Parameters
    ----------
    record : Record
        The job.
    request : Mapping
        From `log_request`.
    printer : Printer
        Prints the lines.
    stall_s : float
        Seconds without output after which a followed job counts as hanging.

    Returns
    -------
    int
        Exit code: that of the job if followed to its end; else 0, or 1 if a node is unreachable.

    Raises
    ------
    UsageError
        The job has no such rank.
    """
    too_high = [rank for rank in request["ranks"] or () if rank >= record.world_size]
    if too_high and not record.is_elastic:
        raise UsageError(f"job {record.name} has the ranks 0-{record.world_size - 1}, and no rank {too_high[0]}")
    watch = JobWatcher(record, printer, retries=request["follow"], stall_s=stall_s)
    if not request["follow"]:
        return 0 if watch.print_existing(request) else 1
    return _watch_to_end(watch, request)


def follow(record: Record, failure_grace_s: float, stall_s: float) -> int:
    """Print a job's logs from its start until it ends.

    Parameters
    ----------
    record : Record
        The job.
    failure_grace_s : float
        Seconds to wait for the other nodes after one has failed.
    stall_s : float
        Seconds without output after which the job counts as hanging.

    Returns
    -------
    int
        Exit code of the job.
    """
    request = log_request("", "all", "", follow=True)
    return _watch_to_end(JobWatcher(record, Printer(), failure_grace_s, stall_s=stall_s), request)


def wait(record: Record, failure_grace_s: float, stall_s: float) -> int:
    """Block until a job has ended.

    Parameters
    ----------
    record : Record
        The job.
    failure_grace_s : float
        Seconds to wait for the other nodes after one has failed.
    stall_s : float
        Seconds without output after which the job counts as hanging.

    Returns
    -------
    int
        Exit code of the job.
    """
    return _watch_to_end(JobWatcher(record, Printer(), failure_grace_s, stall_s=stall_s), NO_LOG_LINES)


def _watch_to_end(watch: JobWatcher, request: Mapping[str, Any]) -> int:
    name = watch.record.name
    try:
        status = watch.run(request)
    except KeyboardInterrupt:
        watch.printer.finish()
        write_err(f"\nthe job goes on; fab logs --follow {name} | fab status {name} | to end it: fab stop {name}")
        return 130
    if status.state != "succeeded" and (next_record := lease_status.next_attempt(watch.record)):
        write_err(f"{name}: attempt {next_record.attempt}, launched by its supervisor")
        printer = Printer(watch.printer.folding, watch.printer.reports)
        return _watch_to_end(JobWatcher(next_record, printer, watch.failure_grace_s, stall_s=watch.stall_s), request)
    watch.record.remember(status.state, status.exit_code, status.has_ended)
    status = with_first_failure(watch.record, status)
    write_err(_end_message(watch.record, status))
    return 1 if status.exit_code is None else status.exit_code


def _end_message(record: Record, status: JobStatus) -> str:
    if status.state == "succeeded":
        ends = [process.ended - node.skew_s for node in status.nodes for process in node.processes if process.ended]
        seconds = max(ends, default=time.time()) - record.created
        return f"job {record.name} succeeded after {duration(seconds)}; its logs: fab logs {record.name}"
    if status.state == "stopped":
        return f"job {record.name} was stopped"
    code = f"exit code {status.exit_code}"
    next_commands = f"fab why {record.name} | fab logs {record.name}{rank_flag(status)}"
    return f"job {record.name} failed: {describe_failure(status)}; {code}; {next_commands}"
