"""Verdicts on collectives as JSON."""

from __future__ import annotations

from typing import Any

from torchfab.collectives.align import Verdict


def verdict_as_json(verdict: Verdict) -> dict[str, Any]:
    """Return a verdict as JSON values.

    Parameters
    ----------
    verdict : Verdict
        The verdict.

    Returns
    -------
    dict
        As `fab stacks --json` and `fab why --json` print it.
    """
    return {
        "kind": verdict.kind.value,
        "ranks": list(verdict.ranks),
        "hosts": list(verdict.hosts),
        "group": {
            "name": verdict.group.name,
            "description": verdict.group.description,
            "ranks": list(verdict.group.ranks),
        },
        "number": verdict.number,
        "words": verdict.words,
    }
