"""Dump the stacks of a Slurm job's ranks with a job step."""

from __future__ import annotations

from torchfab.remote.slurm import step

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def handle(request: dict[str, Any], bundle: str) -> dict[str, Any]:
    """Return the stacks of the job's ranks by node.

    Parameters
    ----------
    request : dict
        As for `torchfab.remote.slurm.job.status`, and as for `torchfab.remote.stacks.dump`.
    bundle : str
        Source of node.py.

    Returns
    -------
    dict
        As `step.run` returns it; or `wants`, as in `torchfab.remote.stacks.dump`.
    """
    found = step.run(request, bundle, step.OVERHEAD_S + 2 * request["timeout_s"])
    answers = [node["answer"] for node in found.get("nodes", [])]
    without_pyspy = [each for each in answers if each and each.get("wants")]
    return dict(without_pyspy[0]) if without_pyspy and request.get("program") is None else found
