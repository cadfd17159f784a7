"""Collect the stacks of all ranks of a running job."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torchfab import runtimes
from torchfab.core import inventory
from torchfab.core.errors import TorchfabError, UsageError
from torchfab.core.lazy_dataclass import dataclass
from torchfab.records import Record

if TYPE_CHECKING:
    from torchfab.stacks.model import StackDump

TIMEOUT_S = 10.0
NATIVE_TIMEOUT_S = 60.0  # the symbols of torch's libraries are some hundred megabytes


@dataclass(frozen=True)
class StackOptions:
    """Which stacks to collect, and how to show them.

    Parameters
    ----------
    ranks : str
        `0,2-5`. Empty: all. Default empty.
    native : bool
        Whether to include C and C++ frames. Default False.
    everything : bool
        Whether to show every frame and every thread. Default False.
    exact : bool
        Whether stacks must have equal line numbers to be grouped. Default False.
    signal : str
        The signal that makes faulthandler dump stacks where py-spy is not permitted. Empty: none. Default SIGUSR2.
    timeout_s : float
        Time limit in seconds for each rank. 0: 10 s, or 60 s with native frames. Default 0.
    """

    ranks: str = ""
    native: bool = False
    everything: bool = False
    exact: bool = False
    signal: str = "SIGUSR2"
    timeout_s: float = 0.0

    @property
    def request(self) -> Mapping[str, Any]:
        """The options as the JSON request of a runtime."""
        ranks = list(inventory.parse_ranks(self.ranks)) if self.ranks else None
        timeout_s = self.timeout_s or (NATIVE_TIMEOUT_S if self.native else TIMEOUT_S)
        return {"ranks": ranks, "native": self.native, "timeout_s": timeout_s, "signal": self.signal}


def collect(record: Record, options: StackOptions) -> StackDump:
    """Collect the stacks of a job's ranks, from all ranks that can be inspected.

    Parameters
    ----------
    record : Record
        The job.
    options : StackOptions
        Which stacks to collect.

    Returns
    -------
    StackDump
        The stacks, and the reasons for those that are missing.

    Raises
    ------
    UsageError
        The job does not have such a rank.
    TorchfabError
        The job's runtime cannot inspect its ranks. The message names the command to use instead.
    """
    request = options.request
    beyond = [rank for rank in request["ranks"] or () if rank >= record.world_size]
    if beyond and not record.is_elastic:
        raise UsageError(f"job {record.name} has the ranks 0-{record.world_size - 1}, and no rank {beyond[0]}")
    collected: StackDump = runtimes.load(record.runtime).stacks(record, request)
    return collected


def describe_collectives(record: Record) -> list[str]:
    """Return the findings about the collectives of a running job, without its stacks.

    Parameters
    ----------
    record : Record
        The job.

    Returns
    -------
    list of str
        A line for each finding. Empty: nothing is known, or the nodes are unreachable.
    """
    from torchfab.stacks import report

    request = {**StackOptions().request, "ranks": []}
    try:
        dump: StackDump = runtimes.load(record.runtime).stacks(record, request)
    except TorchfabError:
        return []
    return report.verdict_lines(dump)


def render(record: Record, options: StackOptions | None = None) -> str:
    """Collect the stacks of a job's ranks, and render them as `fab stacks` does.

    Parameters
    ----------
    record : Record
        The job.
    options : StackOptions, optional
        Which stacks to collect, and how to show them. Default None: the defaults of `StackOptions`.

    Returns
    -------
    str
        Human-readable text.

    Raises
    ------
    UsageError, TorchfabError
        As `collect`.
    """
    from torchfab.stacks import report

    options = options or StackOptions()
    return report.render(record.name, collect(record, options), options.everything, options.exact)
