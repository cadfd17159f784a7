"""`fab signal`: send a signal to the ranks of a job as a notice, once to each."""

from __future__ import annotations

import re
from collections.abc import Sequence

from torchfab import runtimes
from torchfab.core import inventory
from torchfab.core.console import write_out
from torchfab.core.errors import HostsFailedError, TorchfabError, UsageError
from torchfab.core.format import plural
from torchfab.monitoring.job_status import ask_status
from torchfab.records import Record
from torchfab.runtimes import SignalReport

NOTICES = ("SIGUSR1", "SIGUSR2", "SIGHUP", "SIGCONT", "SIGURG", "SIGWINCH")
_SIGNAL = re.compile(r"(?:SIG)?(?:USR|RTMIN|RTMAX)\+?\d*")  # one that is misspelt is no job
_ENDING = ("SIGTERM", "SIGKILL", "SIGINT", "SIGQUIT", "SIGABRT")


def parse(job: str, name: str) -> tuple[str, str]:
    """Return the job and the signal of a command line in which the job is optional.

    Parameters
    ----------
    job, name : str
        The first and second word of the command line; empty: not given.

    Returns
    -------
    tuple of str
        The name of the job (empty: the latest), and the name of the signal: `SIGUSR1`.

    Raises
    ------
    UsageError
        The signal is missing, unknown, or not a notice.
    """
    if not name and (_full_name(job) in (*NOTICES, *_ENDING) or _SIGNAL.fullmatch(job)):
        job, name = "", job
    return job, notice(name, job)


def _full_name(name: str) -> str:
    return "SIG" + name.upper().removeprefix("SIG")


def notice(name: str, job: str = "") -> str:
    """Return the full name of a signal that may be sent to ranks.

    Parameters
    ----------
    name : str
        `USR1`, `usr1` or `SIGUSR1`.
    job : str
        Name of the job, for the fix; empty: the latest one.

    Returns
    -------
    str
        `SIGUSR1`.

    Raises
    ------
    UsageError
        It is missing, unknown, or not a notice.
    """
    known, job = ", ".join(each.removeprefix("SIG") for each in NOTICES), f" {job}" if job else ""
    if not name:
        raise UsageError("the signal is missing", f"one of {known}: fab signal{job} USR1")
    if (full := _full_name(name)) in NOTICES:
        return full
    if full in _ENDING:
        raise UsageError(f"{full} ends ranks: it is not a notice", f"use fab stop{job}, which lets the ranks save")
    raise UsageError(f"the signal is one of {known}, got {name!r}")


def send_signal(record: Record, name: str, ranks: str) -> int:
    """Send a signal once to each rank of a job, or to some ranks, and print how many received it.

    Parameters
    ----------
    record : Record
        The job.
    name : str
        The signal, as `notice` returns it.
    ranks : str
        `0,2-5`; empty: all.

    Returns
    -------
    int
        Exit code: 0 if every selected rank received it, 1 if a rank is not running.

    Raises
    ------
    UsageError
        A rank does not exist, the job is not running, or the signal would end a rank. Nothing was sent.
    HostsFailedError
        Some nodes did not answer.
    """
    chosen = chosen_ranks(record, ranks)
    reports = deliver(record, name, chosen)
    got = [(each.rank, report.node.label) for report in reports for each in report.ranks if each.sent]
    expected = range(record.world_size) if chosen is None else chosen
    missing = sorted(set(expected) - {rank for rank, _ in got})
    hosts = plural(len({host for _, host in got}), "host")
    ended = f"; {_named(missing)} {_do(missing)} not run" if missing else ""
    write_out(f"{name} sent to {plural(len(got), 'rank')} on {hosts}{_ignored(reports)}{ended}")
    return 1 if missing and not record.is_elastic else 0


def _named(ranks: Sequence[int]) -> str:
    return f"rank{'s' if len(ranks) > 1 else ''} {inventory.fold_ranks(ranks)}"


def _do(ranks: Sequence[int]) -> str:
    return "does" if len(ranks) == 1 else "do"


def _ignored(reports: Sequence[SignalReport]) -> str:
    count = sum(each.effect == "ignored" for report in reports for each in report.ranks)
    return f", {count} of which {'ignores' if count == 1 else 'ignore'} it" if count else ""


def chosen_ranks(record: Record, text: str) -> list[int] | None:
    """Return the ranks that a flag selects.

    Parameters
    ----------
    record : Record
        The job.
    text : str
        `0,2-5`; empty: all.

    Returns
    -------
    list of int or None
        None: all.

    Raises
    ------
    UsageError
        The job does not have such a rank.
    """
    if not text:
        return None
    ranks = list(inventory.parse_ranks(text))
    beyond = [rank for rank in ranks if rank >= record.world_size]
    if beyond and not record.is_elastic:
        raise UsageError(f"job {record.name} has the ranks 0-{record.world_size - 1}, and no rank {beyond[0]}")
    return ranks


def deliver(record: Record, name: str, ranks: Sequence[int] | None) -> tuple[SignalReport, ...]:
    """Send a signal once to each rank of a job, or to some ranks.

    Parameters
    ----------
    record : Record
        The job.
    name : str
        The signal: `SIGUSR1`.
    ranks : sequence of int, optional
        Which ranks. None: all.

    Returns
    -------
    tuple of SignalReport
        One for each node; at least one rank is running.

    Raises
    ------
    UsageError
        The job or the ranks are not running, or the signal would end a rank. Nothing was sent.
    HostsFailedError
        Some nodes did not answer.
    """
    reports = runtimes.load(record.runtime).signal(record, name, ranks)
    failed: dict[str, TorchfabError] = {each.node.label: each.error for each in reports if each.error}
    if failed:
        raise HostsFailedError(_failure(reports, failed, name), failed)
    if not any(report.ranks for report in reports):
        raise _not_running(record, ranks)
    ended = sorted(each.rank or 0 for report in reports for each in report.ranks if each.effect == "ends")
    if ended:
        raise would_end(record, name, ended)
    return reports


def _failure(reports: Sequence[SignalReport], failed: dict[str, TorchfabError], name: str) -> str:
    count = sum(each.sent for report in reports for each in report.ranks)
    outcome = f"{plural(count, 'rank')} on the others received {name}" if count else f"{name} was sent to no rank"
    return f"{len(failed)} of {plural(len(reports), 'host')} failed; {outcome}"


def _not_running(record: Record, ranks: Sequence[int] | None) -> UsageError:
    found = ask_status(record)
    if ranks is None or found.has_ended:
        return UsageError(
            f"no rank of job {record.name} is running; the job is {found.state}", f"fab status {record.name}"
        )
    return UsageError(f"job {record.name}: {_named(ranks)} {_do(ranks)} not run", f"fab status {record.name}")


def would_end(record: Record, name: str, ranks: Sequence[int]) -> UsageError:
    """Return the error for a signal that would end ranks.

    Parameters
    ----------
    record : Record
        The job.
    name : str
        The signal: `SIGUSR1`.
    ranks : sequence of int
        The ranks.

    Returns
    -------
    UsageError
    """
    have = "has" if len(ranks) == 1 else "have"
    return UsageError(
        f"{_named(ranks)} of job {record.name} {have} no handler for {name}, which would end a rank "
        "without one; nothing was sent",
        f"handle it in the script, before the training starts: signal.signal(signal.{name}, handler)",
    )
