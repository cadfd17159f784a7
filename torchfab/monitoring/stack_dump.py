"""The stacks of all ranks of a running job."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torchfab import runtimes
from torchfab.core import inventory
from torchfab.core.errors import UsageError
from torchfab.records import Record
from torchfab.stacks import report
from torchfab.stacks.model import Dump

TIMEOUT_S = 10.0
NATIVE_TIMEOUT_S = 60.0  # the symbols of torch's libraries are some hundred megabytes


@dataclass(frozen=True)
class StackOptions:
    """Which stacks to collect, and how to show them.

    Parameters
    ----------
    ranks : str
        `0,2-5`; empty for all.
    native : bool
        Whether frames of C and C++ are wanted too.
    everything : bool
        Whether every frame and every thread is shown.
    exact : bool
        Whether stacks are equal only where every line is.
    signal : str
        The signal that faulthandler answers where py-spy cannot look; empty: none is sent.
    timeout_s : float
        For each rank; 0: 10 s, and 60 s with native frames.
    """

    ranks: str = ""
    native: bool = False
    everything: bool = False
    exact: bool = False
    signal: str = "SIGUSR2"
    timeout_s: float = 0.0

    @property
    def request(self) -> Mapping[str, Any]:
        """The same for a runtime."""
        ranks = list(inventory.parse_ranks(self.ranks)) if self.ranks else None
        timeout_s = self.timeout_s or (NATIVE_TIMEOUT_S if self.native else TIMEOUT_S)
        return {"ranks": ranks, "native": self.native, "timeout_s": timeout_s, "signal": self.signal}


def dump(record: Record, wanted: StackOptions) -> Dump:
    """Return the stacks of a job's ranks, as far as they can be had.

    Raises
    ------
    UsageError
        The job has no such rank.
    TorchfabError
        The job's runtime cannot look into its ranks; the message says what to type instead.
    """
    request = wanted.request
    beyond = [rank for rank in request["ranks"] or () if rank >= record.world_size]
    if beyond and not record.is_elastic:
        raise UsageError(f"job {record.name} has the ranks 0-{record.world_size - 1}, and no rank {beyond[0]}")
    found: Dump = runtimes.load(record.runtime).stacks(record, request)
    return found


def text(record: Record, wanted: StackOptions | None = None) -> str:
    """Return the page of `fab stacks`: for whoever finds that a job hangs, and wants to keep why."""
    wanted = wanted or StackOptions()
    return report.text(record.name, dump(record, wanted), wanted.everything, wanted.exact)
