"""Dump the stacks of a Slurm job's ranks with a job step that runs beside them in the job's own allocation.

The nodes are reached through Slurm only. The step reads its request from, and writes its results to, a folder that they
share.
"""

from __future__ import annotations

import os
import shutil
import sys

from torchfab.remote import files
from torchfab.remote.slurm import job
from torchfab.remote.stacks import dump, pyspy

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_REQUEST = "request.json"
_OVERHEAD_S = 30.0  # for srun to start its tasks; py-spy's own time is added


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
        `nodes`: rank, host and answer of each node, or None for the answer and the error of srun in `said`; or
        `problems`; or `wants`, as in `torchfab.remote.stacks.dump`.
    """
    slurm = job.query(request["slurm_id"])
    if "error" in slurm:
        return {"problems": [{"what": slurm["error"], "fix": job.suggest_fix(slurm["error"])}]}
    if slurm["state"] != "RUNNING":
        what = f"Slurm job {request['slurm_id']} does not run: {slurm['state'] or 'Slurm has forgotten it'}"
        return {"problems": [{"what": what, "fix": ""}]}
    folder = os.path.join(request["folder"], f"stacks-{os.urandom(4).hex()}")
    files.make_private(folder)
    try:
        return _run_step(folder, request, bundle, slurm["hosts"])
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _run_step(folder: str, request: dict[str, Any], bundle: str, hosts: list[str]) -> dict[str, Any]:
    request = dict(request)
    if request.get("program"):
        request["copy"] = pyspy.write(request["program"], folder)
    files.write_text(os.path.join(folder, files.BUNDLE), bundle)
    files.write_json(os.path.join(folder, _REQUEST), {**request, "program": request.get("program") and ""})
    error = _srun(folder, request, len(hosts))
    answers = [files.read_json(os.path.join(folder, f"{rank}.json")) for rank in range(len(hosts))]
    without_pyspy = [each for each in answers if each and each.get("wants")]
    if without_pyspy and request.get("program") is None:
        return dict(without_pyspy[0])
    nodes = [{"rank": rank, "host": host, "answer": answers[rank]} for rank, host in enumerate(hosts)]
    return {"nodes": nodes, "said": error}


def _srun(folder: str, request: dict[str, Any], nodes: int) -> str:
    """Run one task on each node of the allocation; return the error of srun, empty on success."""
    spec = files.read_json(os.path.join(job.node_folder(request["folder"], 0), job.AGENT, files.SPEC)) or {}
    python = (spec.get("argv") or ["python3"])[0]
    tasks = (f"--nodes={nodes}", f"--ntasks={nodes}", "--ntasks-per-node=1")
    options = (f"--jobid={request['slurm_id']}", "--overlap", *tasks)
    command = (python, "-I", "-S", os.path.join(folder, files.BUNDLE), "slurm-stacks")
    try:
        job.run("srun", *options, "--input=none", *command, timeout_s=_OVERHEAD_S + 2 * request["timeout_s"])
    except job.SlurmError as error:
        return str(error)
    return ""


def main() -> int:
    """Dump the stacks of the ranks on this node into the shared folder, as a task of the step.

    Returns
    -------
    int
        The exit code.
    """
    folder = os.path.dirname(os.path.abspath(sys.argv[0]))
    rank = int(os.environ["SLURM_NODEID"])
    request = files.read_json(os.path.join(folder, _REQUEST))
    found = dump.dump_node(job.node_folder(request["folder"], rank), request)
    files.write_json(os.path.join(folder, f"{rank}.json"), found)
    return 0
