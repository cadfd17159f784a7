"""The numbers of collectives: the flight recorder has them, and the trace has when they ran.

Both have them in the same order for each operation, as each backend executes in the order of the calls. So one shift
between the two lists numbers them all.
"""

from __future__ import annotations

from collections.abc import Sequence

from torchfab.profiling.model import Call

_SLACK_S = 0.001  # between the call and its record


def numbered(began: Sequence[tuple[float, str]], calls: Sequence[Call]) -> list[Call | None]:
    """Return the call of each execution of a collective.

    Parameters
    ----------
    began : sequence of (float, str)
        When each began, in seconds since the epoch by the clock of `calls`, and its operation; in rising order.
    calls : sequence of Call
        The calls, the oldest first.

    Returns
    -------
    list of Call or None
        None: the flight recorder does not have it any more.
    """
    found: list[Call | None] = [None] * len(began)
    for operation in {_key(each[1]) for each in began}:
        at = [number for number, each in enumerate(began) if _key(each[1]) == operation]
        own = [each for each in calls if _key(each.operation) == operation]
        shift = _largest_shift([began[number][0] for number in at], [each.time for each in own])
        for order, number in enumerate(at):
            if 0 <= order + shift < len(own):
                found[number] = own[order + shift]
    return found


def _key(operation: str) -> str:
    """Return an operation as the trace and the flight recorder both name it: `gloo:allreduce`."""
    return operation.replace("_", "").lower()


def _largest_shift(began: Sequence[float], called: Sequence[float]) -> int:
    """Return the largest shift by which no execution begins before its call.

    A queue that was empty once in the window makes it exact: then the next call came after that execution had begun.
    """
    for shift in range(len(called) - len(began), -len(began), -1):
        pairs = ((order, order + shift) for order in range(len(began)) if 0 <= order + shift < len(called))
        if all(began[order] >= called[at] - _SLACK_S for order, at in pairs):
            return shift
    return len(called)  # none fits
