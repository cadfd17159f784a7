"""`fab stop`: stop a job or a launch that is under way, and verify that no process of it is left."""

from __future__ import annotations

import math
import os
import socket
import time
from collections.abc import Sequence
from pathlib import Path

from torchfab import runtimes
from torchfab.core import inventory
from torchfab.core.console import fold_reasons, write_err, write_out
from torchfab.core.errors import TorchfabError, UsageError
from torchfab.core.format import format_bytes, plural
from torchfab.launching import job_lookup
from torchfab.launching.context import CommandContext
from torchfab.launching.interrupts import STOP_SIGNAL
from torchfab.records import Record
from torchfab.supervise import orphans
from torchfab.supervise.stopping import StopOutcome, stop_job

RANKS_KILLED = 3
_NAMED = 10  # of the processes that are left
_MEANS = {
    "cgroup": "verified by the kernel's cgroup",
    "proc": "verified by searching /proc as this user",
    "slurm": "as Slurm reports",
    "kubernetes": "as Kubernetes reports",
}


def run(job: str, grace_s: float | None, ctx: CommandContext) -> int:
    """Stop a job, or the launch of it that is under way.

    Parameters
    ----------
    job : str
        Name of the job; empty: the latest one.
    grace_s : float or None
        Seconds between SIGTERM and SIGKILL; None: the grace of the launch.
    ctx : CommandContext
        Records and settings of this command.

    Returns
    -------
    int
        Exit code, as `stop` returns it.
    """
    if job and stop_launch(job, ctx):
        return 0
    return stop(job_lookup.find(job, ctx), grace_s)


def stop_launch(job: str, ctx: CommandContext) -> bool:
    """Send SIGUSR1 to the `fab` that is launching a job, and wait until it has rolled the launch back.

    Parameters
    ----------
    job : str
        Name of the job.
    ctx : CommandContext
        Records and settings of this command.

    Returns
    -------
    bool
        True if the launch was rolled back; False if no launch is under way or the job runs already.

    Raises
    ------
    UsageError
        The launching `fab` runs on another machine.
    TorchfabError
        The launching `fab` does not exit before the timeout.
    """
    launching = ctx.records.launch_holder(job)
    if launching is None:
        return False
    pid, host = launching
    if host != socket.gethostname():
        raise UsageError(
            f"job {job} is being launched at this moment, on {host}", "press Ctrl-C there, or stop it later"
        )
    if not _survives_stop_signal(pid):
        raise UsageError(
            f"job {job} is being launched at this moment, by a thread of a program (pid {pid}) that cannot be "
            "interrupted",
            f"once it runs: fab stop {job}",
        )
    write_err(f"job {job} is being launched (fab, pid {pid}): cancelling the launch")
    os.kill(pid, STOP_SIGNAL)
    settings = ctx.settings
    more_s = float(ctx.config["setup_timeout_s"]) + float(ctx.config["hook_timeout_s"])
    deadline = time.monotonic() + settings.prepare_timeout_s + settings.start_timeout_s + more_s
    while ctx.records.launch_holder(job):
        if time.monotonic() > deadline:
            raise TorchfabError(f"fab (pid {pid}) is still launching job {job}", f"fab stop {job} again")
        time.sleep(0.05)
    if (ctx.records.root / job / "record.json").exists():
        return False
    write_out(f"job {job}: its launch was rolled back; none of its processes is running")
    return True


def _survives_stop_signal(pid: int, within_s: float = 1.0) -> bool:
    """Return whether a process handles or ignores our signal, as a launch does from its start."""
    deadline = time.monotonic() + within_s
    while True:
        try:
            lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        except OSError:
            return True  # it has ended, or may not be inspected
        masks = [int(line.split()[1], 16) for line in lines if line.startswith(("SigCgt:", "SigIgn:"))]
        if any(mask >> (STOP_SIGNAL - 1) & 1 for mask in masks):
            return True
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)


def stop(record: Record, grace_s: float | None = None) -> int:
    """Stop a job and print what was done on each node.

    The job's supervisor exits first. A restart that is under way is awaited, and the attempt that it starts is
    stopped too.

    Parameters
    ----------
    record : Record
        The job.
    grace_s : float, optional
        Seconds between SIGTERM and SIGKILL. Default: the grace of the launch.

    Returns
    -------
    int
        Exit code: 1 unless it is verified that no process is left; else RANKS_KILLED if ranks were killed because they
        had not ended after a grace period of more than 0 s; else 0.
    """
    outcome = stop_job(record, grace_s)
    _print_current(outcome)
    _print_earlier(outcome)
    if not outcome.is_complete:
        return 1
    return RANKS_KILLED if outcome.has_killed_ranks else 0


def _print_earlier(outcome: StopOutcome) -> None:
    """Print what was stopped of earlier attempts."""
    for attempt, reports in outcome.earlier.items():
        for report in reports:
            if report.error is None and not report.left:
                write_out(orphans.describe_stop(report, attempt))
            else:
                problem = report.error or report.left[0]
                write_err(f"error: attempt {attempt} may still run on {report.node.label}: {problem}")


def _print_current(outcome: StopOutcome) -> None:
    """Print what was done on each node."""
    name, reports = outcome.record.name, outcome.reports
    groups: dict[str, list[str]] = {}
    for report in reports:
        if report.error is None:
            groups.setdefault(_stop_summary(report), []).append(report.node.label)
    for summary, hosts in groups.items():
        write_out(f"{inventory.fold(hosts)}: {summary}")
    if error := outcome.unreachable:
        write_err(
            "\n".join([f"error: {error}", *fold_reasons(error), f"  when they are reachable again: fab stop {name}"])
        )
        return
    for summary in (_ranks_summary(outcome.signalled, outcome.grace_s), _cleared_summary(reports)):
        if summary:
            write_out(summary)
    if outcome.left:
        _report_left(name, [report.node.label for report in outcome.left if not report.summary])
    elif found := outcome.status:
        proof = (
            f", no process of it is left on {plural(len(found.nodes), 'node')}{_means(reports)}" if found.nodes else ""
        )
        write_out(f"job {name}: {found.state}{proof}")


def _report_left(job: str, hosts: Sequence[str]) -> None:
    if not hosts:  # a scheduler ends the processes itself
        return
    write_err(f"error: job {job}: not all of its processes could be ended on {inventory.fold(hosts)}")
    write_err(f"  fix: end the processes named above as their user or as root, then: fab stop {job}")


def _means(reports: Sequence[runtimes.StopReport]) -> str:
    """Return how it was verified that no process is left; with the nodes, if the means differ."""
    hosts: dict[str, list[str]] = {}
    for report in reports:
        if report.proof:
            hosts.setdefault(_MEANS[report.proof], []).append(report.node.label)
    if len(hosts) < 2:
        return "".join(f" ({means})" for means in hosts)
    return " (" + ", ".join(f"{means} on {inventory.fold(names)}" for means, names in hosts.items()) + ")"


def _cleared_summary(reports: Sequence[runtimes.StopReport]) -> str:
    """Describe what was removed outside the job's folders; empty if nothing was."""
    files, folders = sum(each.cleared_files for each in reports), sum(each.cleared_folders for each in reports)
    size = format_bytes(sum(each.cleared_bytes for each in reports))
    parts = [f"{plural(files, 'file')} of shared memory ({size})"] if files else []
    parts += [plural(folders, "temporary folder")] if folders else []
    return f"removed what its processes had left: {', '.join(parts)}" if parts else ""


def _ranks_summary(reports: Sequence[runtimes.StopReport], grace_s: float) -> str:
    """Describe how the ranks ended; empty if none ran."""
    ended, killed = sum(report.ended_ranks for report in reports), sum(report.killed_ranks for report in reports)
    seconds = math.ceil(max((report.ranks_s for report in reports), default=0.0))
    parts = []
    if ended:
        themselves = "itself" if ended == 1 else "themselves"
        parts.append(f"{plural(ended, 'rank')} ended by {themselves} ({seconds} s)")
    if killed:
        subject = f"{killed}" if ended else plural(killed, "rank")
        were = "was" if killed == 1 else "were"
        parts.append(f"{subject} {were} killed after {grace_s:g} s{_unfinished_summary(reports)}")
    return ", ".join(parts)


def _unfinished_summary(reports: Sequence[runtimes.StopReport]) -> str:
    """Describe what the killed ranks had not finished, and how to give them more time."""
    unfinished = sum(report.unfinished_ranks for report in reports)
    files = list(dict.fromkeys(path for report in reports for path in report.writing))
    if not unfinished:
        return " (--grace gives more time)"
    had = f": {unfinished} had not finished "
    if not files:
        return f"{had}handling SIGTERM (--grace gives more time)"
    more = f" and {plural(len(files) - 1, 'other file')}" if len(files) > 1 else ""
    return f"{had}saving, {files[0]}{more} still open for writing (--grace gives more time)"


def _stop_summary(report: runtimes.StopReport) -> str:
    if report.summary:
        return str(report.summary)
    if report.left:
        are = "is" if len(report.left) == 1 else "are"
        more = f", and {len(report.left) - _NAMED} more" if len(report.left) > _NAMED else ""
        named = ", ".join(report.left[:_NAMED])
        return f"{plural(len(report.left), 'process')} {are} left and cannot be ended: {named}{more}"
    if not report.signalled:
        return "none of its processes was running"
    # Whole seconds and commands without pids, so that equal results of several nodes fold into one line.
    count = plural(report.signalled, "process")
    return f"{count} ended within {math.ceil(report.seconds)} s{_killed_summary(report.killed)}"


def _killed_summary(killed: Sequence[str]) -> str:
    if not killed:
        return ""
    commands = dict.fromkeys(each.partition(" ")[2].strip("()") for each in killed)
    return f", {len(killed)} of them had to be killed: {', '.join(list(commands)[:3])}"
