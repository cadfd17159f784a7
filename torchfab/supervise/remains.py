"""What may be left of earlier attempts, on nodes that could not be asked to stop them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from torchfab import runtimes
from torchfab.errors import TorchfabError
from torchfab.records import Record, Records
from torchfab.runtimes import StopReport


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
    reports: tuple[StopReport, ...] = runtimes.of(earlier.runtime).stop(
        replace(earlier, settings=record.settings), grace_s, nodes
    )
    return reports


def words(report: StopReport, attempt: int) -> str:
    """Return what was done on a node that could be asked."""
    count = "1 process" if report.asked == 1 else f"{report.asked} processes"
    what = f"{count} of attempt {attempt} ended" if report.asked else f"nothing of attempt {attempt} ran any more"
    return f"{report.node.label} can be asked again: {what}"
