"""The offset of another machine's clock."""

from __future__ import annotations

from torchfab.core.lazy_dataclass import dataclass


@dataclass(frozen=True)
class Clock:
    """The offset of a node's clock from the clock of this machine.

    Parameters
    ----------
    ahead_s : float
        Seconds by which the node's clock is ahead.
    within_s : float
        The uncertainty of `ahead_s`, plus or minus, in seconds.
    """

    ahead_s: float
    within_s: float
