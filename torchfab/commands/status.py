"""`fab status`: print the status of a job."""

from __future__ import annotations

import sys
import time

from torchfab import documents
from torchfab.core import stall, status
from torchfab.core.console import write_out
from torchfab.core.format import align_columns, plural
from torchfab.core.status import JobStatus
from torchfab.monitoring.first_failure import with_first_failure
from torchfab.monitoring.job_status import ask_status, describe_failure, rank_flag
from torchfab.monitoring.stack_dump import describe_collectives
from torchfab.records import Record
from torchfab.supervise import supervisor_status


def show_status(record: Record, watch: bool, as_json: bool, stall_s: float) -> int:
    """Print the status of a job, and whether it hangs.

    Parameters
    ----------
    record : Record
        The job.
    watch : bool
        Repeat every 2 seconds until the job has ended.
    as_json : bool
        Print JSON.
    stall_s : float
        Seconds without output after which the job counts as hanging.

    Returns
    -------
    int
        Exit code: 0 if the job is pending, starting, running or succeeded, else 1.
    """
    while True:
        found = with_first_failure(record, ask_status(record))
        if as_json:
            extra = {"stall": stall.as_json(found, stall_s), **supervisor_status.as_json(record)}
            write_out(documents.encode({**status.as_json(record.name, found), **extra}))
        else:
            if watch and sys.stdout.isatty():
                sys.stdout.write("\x1b[H\x1b[2J")
            write_out(status_text(record, found))
            if supervised := supervisor_status.describe(record, found.state):
                write_out(supervised)
            if silence := stall.detect_stall(found, stall_s):
                write_out(stall.render_warning(silence, record.name))
                for line in describe_collectives(record):
                    write_out(f"  {line}")
        if not watch or found.has_ended:
            return 0 if found.state in ("pending", "starting", "running", "succeeded") else 1
        time.sleep(2)


def status_text(record: Record, found: JobStatus) -> str:
    """Render the status of a job as human-readable text.

    Parameters
    ----------
    record : Record
        The job.
    found : JobStatus
        Its status.

    Returns
    -------
    str
        A headline, a table of the nodes, and the next commands for a failed job.
    """
    launched = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(record.created))
    ranks = plural(record.world_size, "rank")
    head = f"job {record.name}: {found.state} ({record.launcher}, {ranks}, launched {launched})"
    lines = [head, *([align_columns(status.table_rows(found))] if found.nodes else [])]
    if found.reason and not found.has_failed:
        lines.append(found.reason)
    if found.has_failed and found.state != "stopped":
        lines.append(f"{describe_failure(found)}; fab why {record.name} | fab logs {record.name}{rank_flag(found)}")
        if not found.has_ended:
            lines.append(f"other processes are still running; to end them: fab stop {record.name}")
    return "\n".join(lines)
