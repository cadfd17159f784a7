"""What may be left of earlier attempts, on nodes that could not be asked to stop them."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from dataclasses import replace

from torchfab import runtimes
from torchfab.core.errors import TorchfabError
from torchfab.records import Record, Records
from torchfab.runtimes import StopReport
from torchfab.supervise import history
from torchfab.supervise.event_journal import EventJournal

_CATCH_UP_S = 30.0


def stop(record: Record, attempt: int, hosts: Iterable[str], grace_s: float) -> tuple[StopReport, ...]:
    """Stop an earlier attempt of a job on some of its hosts; return what was done on each.

    Parameters
    ----------
    record : Record
        The job as it is now.
    """
    try:
        earlier = Records(record.folder.parent).attempt(record, str(attempt))
    except TorchfabError:  # its record is gone: nothing tells what to look for
        return ()
    wanted = set(hosts)
    nodes = [node for node in earlier.nodes if node.label in wanted]
    if not nodes:
        return ()
    reports: tuple[StopReport, ...] = runtimes.load(earlier.runtime).stop(
        replace(earlier, settings=record.settings), grace_s, nodes
    )
    return reports


def words(report: StopReport, attempt: int) -> str:
    """Return what was done on a node that could be asked."""
    count = "1 process" if report.signalled == 1 else f"{report.signalled} processes"
    what = f"{count} of attempt {attempt} ended" if report.signalled else f"nothing of attempt {attempt} ran any more"
    return f"{report.node.label} can be asked again: {what}"


class OrphanedAttempts:
    """Where earlier attempts of a supervised job may still run: they are stopped there as soon as that can be asked.

    Parameters
    ----------
    scribe : Scribe
        Knows the job, and is told.
    grace_s : float
        As for `fab stop`.
    """

    def __init__(self, scribe: EventJournal, grace_s: float) -> None:
        self.scribe, self.grace_s = scribe, grace_s
        self.hosts = history.left_behind(scribe.events)
        self.lock = threading.Lock()
        self.over = threading.Event()

    def start(self) -> None:
        """Look for them every 30 s, in the background."""
        threading.Thread(target=self._keep_catching_up, daemon=True).start()

    def add(self, attempt: int, hosts: Sequence[str]) -> None:
        """Note that an attempt may still run on some hosts."""
        with self.lock:
            self.hosts.setdefault(attempt, set()).update(hosts)
        self.scribe.note("left behind", attempt=attempt, hosts=list(hosts))

    def catch_up(self, all_hosts: bool = False) -> None:
        """Stop them where that can be done now.

        Parameters
        ----------
        all_hosts : bool
            Whether nothing of the current attempt runs. Default False: its own nodes are left alone, as attempts share
            the name of their tmux session.
        """
        busy = set() if all_hosts else {node.label for node in self.scribe.record.nodes}
        with self.lock:
            for attempt, hosts in list(self.hosts.items()):
                self._stop(attempt, hosts - busy)

    def _stop(self, attempt: int, wanted: set[str]) -> None:
        for report in stop(self.scribe.record, attempt, wanted, self.grace_s):
            if report.error is None and not report.left:
                host = report.node.label
                self.hosts[attempt].discard(host)
                self.scribe.note("caught up", words(report, attempt), attempt=attempt, hosts=[host])
        if not self.hosts[attempt]:
            del self.hosts[attempt]

    def _keep_catching_up(self) -> None:
        while not self.over.wait(_CATCH_UP_S):
            if self.hosts:
                self.catch_up()
