"""Build the request for the nodes' log readers from the flags of `fab logs`, and check its ranks."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from torchfab.core import inventory
from torchfab.core.errors import UsageError
from torchfab.records import Record


def log_request(rank: str, lines: int | str, grep: str, follow: bool) -> dict[str, Any]:
    """Build the request for the nodes' log readers from the flags of `fab logs`.

    Parameters
    ----------
    rank : str
        Ranks, such as `0-3,7`; empty: all.
    lines : int or str
        Number of last lines per log file, or `all`.
    grep : str
        Regular expression that lines must match; empty: none.
    follow : bool
        Wait for new lines until the job ends.

    Returns
    -------
    dict
        `follow`, `lines`, `ranks` and `grep`.

    Raises
    ------
    UsageError
        A flag's value is invalid.
    """
    try:
        re.compile(grep)
    except (re.error, OverflowError, RecursionError) as error:
        raise UsageError(f"--grep {grep!r} is not a regular expression: {error}") from None
    ranks = list(inventory.parse_ranks(rank)) if rank else None
    count = None if lines == "all" else int(lines)
    return {"follow": follow, "lines": count, "ranks": ranks, "grep": grep or None}


def check_ranks(ranks: Iterable[int], record: Record) -> None:
    """Check that a job has the given ranks.

    Parameters
    ----------
    ranks : iterable of int
        The ranks.
    record : Record
        The job. An elastic one may have more ranks than planned.

    Raises
    ------
    UsageError
        The job has no such rank.
    """
    too_high = [rank for rank in ranks if rank >= record.world_size]
    if too_high and not record.is_elastic:
        raise UsageError(f"job {record.name} has the ranks 0-{record.world_size - 1}, and no rank {too_high[0]}")
