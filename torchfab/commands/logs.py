"""`fab logs` and `fab wait`: print a job's logs, or wait for its end."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torchfab.core.console import write_err
from torchfab.monitoring.job_status import end_message
from torchfab.monitoring.job_watcher import NO_LOG_LINES, JobWatcher, Printer
from torchfab.monitoring.log_request import check_ranks, log_request
from torchfab.records import Record
from torchfab.supervise.follower import JobFollower


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
    check_ranks(request["ranks"] or (), record)
    watch = JobWatcher(record, printer, retries=request["follow"], stall_s=stall_s)
    if not request["follow"]:
        is_whole = watch.print_existing(request)
        if is_whole and not watch.lines_read and (note := _describe_nothing(request)):
            write_err(note)
        return 0 if is_whole else 1
    return _watch_to_end(watch, request)


def _describe_nothing(request: Mapping[str, Any]) -> str:
    """Return why no line was printed if the request is the likely reason; else an empty text."""
    ranks = [*request["ranks"]] if request["ranks"] else []
    of = f" of rank{'s' if len(ranks) > 1 else ''} {', '.join(map(str, ranks))}" if ranks else ""
    matching = f" that matches {request['grep']!r}" if request["grep"] else ""
    return f"there is no log line{of}{matching}" if of or matching else ""


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
    name, follower = watch.record.name, JobFollower(watch)
    try:
        for _ in follower.steps(request):
            pass
    except KeyboardInterrupt:
        follower.watch.printer.finish()
        write_err(
            f"\nthe job is still running; fab logs --follow {name} | fab status {name} | to end it: fab stop {name}"
        )
        return 130
    status = follower.final_status()
    write_err(end_message(follower.record, status))
    return 1 if status.exit_code is None else status.exit_code
