"""Stop what is left of earlier attempts on nodes that were out of reach when those attempts were stopped."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from dataclasses import replace

from torchfab import runtimes
from torchfab.core.errors import TorchfabError
from torchfab.core.format import plural
from torchfab.records import Record, Records
from torchfab.runtimes import StopReport
from torchfab.supervise import history
from torchfab.supervise.event_journal import EventJournal

_RETRY_S = 30.0


def stop(record: Record, attempt: int, hosts: Iterable[str], grace_s: float) -> tuple[StopReport, ...]:
    """Stop an earlier attempt of a job on some of its hosts.

    Parameters
    ----------
    record : Record
        The current attempt.
    attempt : int
        The number of the earlier attempt.
    hosts : iterable of str
        Host labels.
    grace_s : float
        Seconds between SIGTERM and SIGKILL.

    Returns
    -------
    tuple of StopReport
        One per host. Empty if the earlier attempt has no readable record.
    """
    try:
        earlier = Records(record.folder.parent).attempt(record, str(attempt))
    except TorchfabError:  # without its record, its processes cannot be identified
        return ()
    labels = set(hosts)
    nodes = [node for node in earlier.nodes if node.label in labels]
    if not nodes:
        return ()
    reports: tuple[StopReport, ...] = runtimes.load(earlier.runtime).stop(
        replace(earlier, settings=record.settings), grace_s, nodes
    )
    return reports


def describe_stop(report: StopReport, attempt: int) -> str:
    """Describe what was stopped on a node that is reachable again.

    Parameters
    ----------
    report : StopReport
        The node's report.
    attempt : int
        The number of the earlier attempt.

    Returns
    -------
    str
        One line.
    """
    count = plural(report.signalled, "process")
    action = (
        f"{count} of attempt {attempt} ended" if report.signalled else f"no process of attempt {attempt} was running"
    )
    return f"{report.node.label} is reachable again: {action}"


class OrphanedAttempts:
    """The hosts on which earlier attempts of a supervised job may still run, to stop them once they are reachable.

    Parameters
    ----------
    journal : EventJournal
        The job's events.
    grace_s : float
        Seconds between SIGTERM and SIGKILL.
    """

    def __init__(self, journal: EventJournal, grace_s: float) -> None:
        self.journal, self.grace_s = journal, grace_s
        self.hosts = history.orphaned_hosts(journal.events)
        self.lock = threading.Lock()
        self.closed = threading.Event()

    def start(self) -> None:
        """Try to stop them every 30 s, in the background, until `closed` is set."""
        threading.Thread(target=self._keep_stopping, daemon=True).start()

    def add(self, attempt: int, hosts: Sequence[str]) -> None:
        """Record that an attempt may still run on some hosts.

        Parameters
        ----------
        attempt : int
            The number of the attempt.
        hosts : sequence of str
            Host labels.
        """
        with self.lock:
            self.hosts.setdefault(attempt, set()).update(hosts)
        self.journal.note("left behind", attempt=attempt, hosts=list(hosts))

    def stop_reachable(self, all_hosts: bool = False) -> None:
        """Stop the earlier attempts on the hosts that are reachable now.

        Parameters
        ----------
        all_hosts : bool
            Include the nodes of the current attempt. Only safe while it does not run, because attempts share the name
            of their tmux session. Default False.
        """
        busy = set() if all_hosts else {node.label for node in self.journal.record.nodes}
        with self.lock:
            for attempt, hosts in list(self.hosts.items()):
                self._stop(attempt, hosts - busy)

    def _stop(self, attempt: int, hosts: set[str]) -> None:
        for report in stop(self.journal.record, attempt, hosts, self.grace_s):
            if report.error is None and not report.left:
                host = report.node.label
                self.hosts[attempt].discard(host)
                self.journal.note("caught up", describe_stop(report, attempt), attempt=attempt, hosts=[host])
        if not self.hosts[attempt]:
            del self.hosts[attempt]

    def _keep_stopping(self) -> None:
        while not self.closed.wait(_RETRY_S):
            if self.hosts:
                self.stop_reachable()
