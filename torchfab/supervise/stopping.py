"""Stop a job with everything that belongs to it: its supervisor, its current attempt, and what earlier ones left."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field, replace

from torchfab import runtimes
from torchfab.core.errors import HostsFailedError, TorchfabError
from torchfab.core.lazy_dataclass import dataclass
from torchfab.core.status import JobStatus
from torchfab.monitoring.job_status import ask_status
from torchfab.records import Record, Records
from torchfab.runtimes import StopReport
from torchfab.supervise import history, job_locks, orphans


@dataclass(frozen=True)
class StopOutcome:
    """What a stop has done on each node.

    Parameters
    ----------
    record : Record
        The attempt that was stopped.
    grace_s : float
        Seconds between SIGTERM and SIGKILL.
    reports : tuple of StopReport
        Of its nodes.
    status : JobStatus, optional
        The status of the job afterwards; None unless all nodes have answered that no process is left.
    earlier : Mapping of int to tuple of StopReport
        What was stopped of earlier attempts, by number of the attempt. Default: nothing.
    """

    record: Record
    grace_s: float
    reports: tuple[StopReport, ...]
    status: JobStatus | None
    earlier: Mapping[int, tuple[StopReport, ...]] = field(default_factory=dict)

    @property
    def unreachable(self) -> HostsFailedError | None:
        """The error of the nodes that could not be reached to stop the job; None if there are none."""
        failed: dict[str, TorchfabError] = {each.node.label: each.error for each in self.reports if each.error}
        if not failed:
            return None
        problem = f"{len(failed)} of {len(self.reports)} nodes could not be reached to stop the job"
        return HostsFailedError(problem, failed)

    @property
    def left(self) -> tuple[StopReport, ...]:
        """The reports of nodes on which processes are left."""
        return tuple(report for report in self.reports if report.left and not report.error)

    @property
    def left_processes(self) -> list[str]:
        """Descriptions of processes that may still run, with their hosts, including those of earlier attempts."""
        found = [f"{report.node.label}: {process}" for report in self.left for process in report.left]
        for attempt, reports in self.earlier.items():
            for report in reports:
                if report.error or report.left:
                    reason = report.error or report.left[0]
                    found.append(f"attempt {attempt} may still run on {report.node.label}: {reason}")
        return found

    @property
    def signalled(self) -> tuple[StopReport, ...]:
        """The reports of nodes on which processes ran."""
        return tuple(report for report in self.reports if report.signalled)

    @property
    def has_killed_ranks(self) -> bool:
        """Whether ranks were killed because they had not ended after a grace of more than 0 s."""
        return self.grace_s > 0 and any(report.killed_ranks for report in self.signalled)

    @property
    def is_complete(self) -> bool:
        """Whether it is verified that no process is left, including those of earlier attempts."""
        of_earlier = [report for reports in self.earlier.values() for report in reports]
        return self.status is not None and not any(report.error or report.left for report in of_earlier)


def stop_job(record: Record, grace_s: float | None = None) -> StopOutcome:
    """Stop a job, and verify that no process of it is left.

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
    StopOutcome

    Raises
    ------
    TorchfabError
        The supervisor does not respond before the timeout.
    """
    grace_s = record.grace_s if grace_s is None else grace_s
    with job_locks.stopping(record.folder):
        current = replace(Records(record.folder.parent).get(record.name), settings=record.settings)
        outcome = _stop_current(current, grace_s)
        return replace(outcome, earlier=_stop_earlier(current, grace_s))


def _stop_current(record: Record, grace_s: float) -> StopOutcome:
    reports = tuple(runtimes.load(record.runtime).stop(record, grace_s))
    record.note("stop", grace_s=grace_s, unreachable=sorted(each.node.label for each in reports if each.error))
    is_clean = not any(report.error or report.left for report in reports)
    return StopOutcome(record, grace_s, reports, _status_after(record, reports) if is_clean else None)


def _stop_earlier(record: Record, grace_s: float) -> dict[int, tuple[StopReport, ...]]:
    """Stop processes that earlier attempts may have left."""
    found: dict[int, tuple[StopReport, ...]] = {}
    for attempt, hosts in history.orphaned_hosts(record.events()).items():
        found[attempt] = orphans.stop(record, attempt, hosts, grace_s)
        for report in found[attempt]:
            if report.error is None and not report.left:
                text = orphans.describe_stop(report, attempt)
                record.note("caught up", text=text, attempt=attempt, hosts=[report.node.label])
    return found


def _status_after(record: Record, reports: tuple[StopReport, ...]) -> JobStatus:
    """Return the status that the nodes reported after the stop; request it if a node did not report one."""
    reported = [report.status for report in reports if report.status]
    if len(reported) < len(reports) or not reported:
        return ask_status(record)
    found = JobStatus(tuple(reported), record.min_nodes)
    record.remember(found.state, found.exit_code, found.has_ended)
    return found
