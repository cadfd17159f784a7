"""Handle a request on all nodes of a Slurm job, by a job step that runs beside the ranks in the job's own allocation.

The nodes are reached through Slurm only. The step reads its request from, and writes its results to, a folder that they
share.
"""

from __future__ import annotations

import os
import shutil
import sys

from torchfab.remote import job_files
from torchfab.remote.job import rank_signals
from torchfab.remote.slurm import job
from torchfab.remote.stacks import dump, pyspy

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_REQUEST = "request.json"
OVERHEAD_S = 30.0  # for srun to start its tasks


def run(request: dict[str, Any], bundle: str, timeout_s: float) -> dict[str, Any]:
    """Return the answers of the job's nodes.

    Parameters
    ----------
    request : dict
        As for `torchfab.remote.slurm.job.status`, and as the function of its operation takes it.
    bundle : str
        Source of node.py.
    timeout_s : float
        How long srun may take, in seconds.

    Returns
    -------
    dict
        `nodes`: rank, host and answer of each node, or None for the answer and the error of srun in `said`; or
        `problems`.
    """
    slurm = job.query(request["slurm_id"])
    if "error" in slurm:
        return {"problems": [{"what": slurm["error"], "fix": job.suggest_fix(slurm["error"])}]}
    if slurm["state"] != "RUNNING":
        what = f"Slurm job {request['slurm_id']} does not run: {slurm['state'] or 'Slurm has purged its record'}"
        return {"problems": [{"what": what, "fix": ""}]}
    folder = os.path.join(request["folder"], f"step-{os.urandom(4).hex()}")
    job_files.make_private(folder)
    try:
        return _run(folder, request, bundle, slurm["hosts"], timeout_s)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _run(folder: str, request: dict[str, Any], bundle: str, hosts: list[str], timeout_s: float) -> dict[str, Any]:
    request = dict(request)
    if request.get("program"):
        request["copy"] = pyspy.write(request["program"], folder)
        request["program"] = ""
    job_files.write_text(os.path.join(folder, job_files.BUNDLE), bundle)
    job_files.write_json(os.path.join(folder, _REQUEST), request)
    error = _srun(folder, request, len(hosts), timeout_s)
    answers = [job_files.read_json(os.path.join(folder, f"{rank}.json")) for rank in range(len(hosts))]
    nodes = [{"rank": rank, "host": host, "answer": answers[rank]} for rank, host in enumerate(hosts)]
    return {"nodes": nodes, "said": error}


def _srun(folder: str, request: dict[str, Any], nodes: int, timeout_s: float) -> str:
    """Run one task on each node of the allocation; return the error of srun, empty on success."""
    spec = job_files.read_json(os.path.join(job.node_folder(request["folder"], 0), job.AGENT, job_files.SPEC)) or {}
    python = (spec.get("argv") or ["python3"])[0]
    tasks = (f"--nodes={nodes}", f"--ntasks={nodes}", "--ntasks-per-node=1")
    options = (f"--jobid={request['slurm_id']}", "--overlap", *tasks)
    command = (python, "-I", "-S", os.path.join(folder, job_files.BUNDLE), "slurm-step")
    try:
        job.run("srun", *options, "--input=none", *command, timeout_s=timeout_s)
    except job.SlurmError as error:
        return str(error)
    return ""


def main() -> int:
    """Handle the request on this node, as a task of the step; write the answer into the shared folder.

    Returns
    -------
    int
        The exit code.
    """
    folder = os.path.dirname(os.path.abspath(sys.argv[0]))
    rank = int(os.environ["SLURM_NODEID"])
    request = job_files.read_json(os.path.join(folder, _REQUEST))
    found = _handle(job.node_folder(request["folder"], rank), request)
    job_files.write_json(os.path.join(folder, f"{rank}.json"), found)
    return 0


def _handle(folder: str, request: dict[str, Any]) -> dict[str, Any]:
    if request["op"] == "slurm_signal":
        return rank_signals.signal_ranks(folder, request)
    return dump.dump_node(folder, request)
