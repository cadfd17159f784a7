"""`fab logs` and `fab wait`: a job's past, or the job to its end."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from typing import Any

from torchfab import runtimes
from torchfab.commands.status import rank_flag
from torchfab.core import inventory
from torchfab.core.console import write_err
from torchfab.core.errors import UsageError
from torchfab.core.status import JobStatus, duration
from torchfab.monitoring.watcher import NO_LINES, Printer, Watch, describe_failure
from torchfab.records import Record
from torchfab.supervise import lease_status


def log_request(rank: str, lines: int | str, grep: str, follow: bool) -> dict[str, Any]:
    """Return what the nodes are asked for.

    Raises
    ------
    UsageError
        A flag's value is wrong.
    """
    try:
        re.compile(grep)
    except (re.error, OverflowError, RecursionError) as error:
        raise UsageError(f"--grep {grep!r} is no regular expression: {error}") from None
    ranks = list(inventory.parse_ranks(rank)) if rank else None
    count = None if lines == "all" else int(lines)
    return {"follow": follow, "lines": count, "ranks": ranks, "grep": grep or None}


def show_logs(record: Record, request: Mapping[str, Any], folding: bool, stall_s: float) -> int:
    """Print a job's logs; return its exit code if followed to its end, else 0, or 1 if a node was missing."""
    beyond = [rank for rank in request["ranks"] or () if rank >= record.world_size]
    if beyond and not record.is_elastic:
        raise UsageError(f"job {record.name} has the ranks 0-{record.world_size - 1}, and no rank {beyond[0]}")
    watch = Watch(record, Printer(folding), retries=request["follow"], stall_s=stall_s)
    if not request["follow"]:
        return _show_past(watch, request)
    return _see_through(watch, request)


def _show_past(watch: Watch, request: Mapping[str, Any]) -> int:
    for event in runtimes.load(watch.record.runtime).follow(watch.record, request):
        watch._take(event)
        if watch.lost and len(watch.lost) + len(watch.ended) >= len(watch.record.nodes):
            break
    watch.printer.flush()
    return 1 if watch.lost else 0


def follow(record: Record, failure_grace_s: float, stall_s: float) -> int:
    """Print a job's logs from its start, see it to its end, and return its exit code."""
    request = log_request("", "all", "", follow=True)
    return _see_through(Watch(record, Printer(), failure_grace_s, stall_s=stall_s), request)


def wait(record: Record, failure_grace_s: float, stall_s: float) -> int:
    """Block until a job has ended; return its exit code."""
    return _see_through(Watch(record, Printer(), failure_grace_s, stall_s=stall_s), NO_LINES)


def _see_through(watch: Watch, request: Mapping[str, Any]) -> int:
    name = watch.record.name
    try:
        found = watch.run(request)
    except KeyboardInterrupt:
        watch.printer.flush()
        write_err(f"\nthe job goes on; fab logs --follow {name} | fab status {name} | to end it: fab stop {name}")
        return 130
    if found.state != "succeeded" and (following := lease_status.next_attempt(watch.record)):
        write_err(f"{name}: attempt {following.attempt}, launched by its supervisor")
        grace_s, stall_s = watch.failure_grace_s, watch.stall_s
        return _see_through(Watch(following, Printer(watch.printer.folding), grace_s, stall_s=stall_s), request)
    watch.record.remember(found.state, found.exit_code, found.has_ended)
    write_err(_end_words(watch.record, found))
    return 1 if found.exit_code is None else found.exit_code


def _end_words(record: Record, found: JobStatus) -> str:
    if found.state == "succeeded":
        ends = [
            process["ended"] - node.skew_s for node in found.nodes for process in node.processes if process["ended"]
        ]
        seconds = max(ends, default=time.time()) - record.created
        return f"job {record.name} succeeded after {duration(seconds)}; its logs: fab logs {record.name}"
    if found.state == "stopped":
        return f"job {record.name} was stopped"
    code = f"exit code {found.exit_code}"
    next_words = f"fab why {record.name} | fab logs {record.name}{rank_flag(found)}"
    return f"job {record.name} failed: {describe_failure(found)}; {code}; {next_words}"
