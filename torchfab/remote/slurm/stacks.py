"""The stacks of a Slurm job's ranks: a step beside them in the job's own allocation looks into the ranks of its node.

Nothing but Slurm reaches the nodes. What the step needs, and what it finds, lies in a folder that they share.
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
_BESIDES_S = 30.0  # until srun has started its tasks, and beside py-spy's own time


def answer(request: dict[str, Any], bundle: str) -> dict[str, Any]:
    """Return the stacks of the job's ranks, by node.

    Parameters
    ----------
    request : dict
        As for `torchfab.remote.slurm.job.status`, and as for `torchfab.remote.stacks.dump.answer`.
    bundle : str
        Source of node.py.

    Returns
    -------
    dict
        `nodes`: rank of a node, its host, and its answer, or None and in `said` what srun said; or `problems`; or
        `wants`, as there.
    """
    told = job.ask(request["slurm_id"])
    if "error" in told:
        return {"problems": [{"what": told["error"], "fix": job.fix_of(told["error"])}]}
    if told["state"] != "RUNNING":
        what = f"Slurm job {request['slurm_id']} does not run: {told['state'] or 'Slurm has forgotten it'}"
        return {"problems": [{"what": what, "fix": ""}]}
    folder = os.path.join(request["folder"], f"stacks-{os.urandom(4).hex()}")
    files.make_private(folder)
    try:
        return _ask_nodes(folder, request, bundle, told["hosts"])
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _ask_nodes(folder: str, request: dict[str, Any], bundle: str, hosts: list[str]) -> dict[str, Any]:
    request = dict(request)
    if request.get("program"):
        request["copy"] = pyspy.write(request["program"], folder)
    files.write_text(os.path.join(folder, files.BUNDLE), bundle)
    files.write_json(os.path.join(folder, _REQUEST), {**request, "program": request.get("program") and ""})
    said = _srun(folder, request, len(hosts))
    answers = [files.read_json(os.path.join(folder, f"{rank}.json")) for rank in range(len(hosts))]
    wanting = [each for each in answers if each and each.get("wants")]
    if wanting and "program" not in request:
        return dict(wanting[0])
    nodes = [{"rank": rank, "host": host, "answer": answers[rank]} for rank, host in enumerate(hosts)]
    return {"nodes": nodes, "said": said}


def _srun(folder: str, request: dict[str, Any], nodes: int) -> str:
    """Run one task on each node of the allocation; return what srun says where it fails."""
    spec = files.read_json(os.path.join(job.node_folder(request["folder"], 0), job.AGENT, files.SPEC)) or {}
    python = (spec.get("argv") or ["python3"])[0]
    each = (f"--nodes={nodes}", f"--ntasks={nodes}", "--ntasks-per-node=1")
    where = (f"--jobid={request['slurm_id']}", "--overlap", *each)
    what = (python, "-I", "-S", os.path.join(folder, files.BUNDLE), "slurm-stacks")
    try:
        job.run("srun", *where, "--input=none", *what, timeout_s=_BESIDES_S + 2 * request["timeout_s"])
    except job.SlurmError as error:
        return str(error)
    return ""


def main() -> int:
    """Look into the ranks of this node of the job, as a task of the step."""
    folder = os.path.dirname(os.path.abspath(sys.argv[0]))
    rank = int(os.environ["SLURM_NODEID"])
    request = files.read_json(os.path.join(folder, _REQUEST))
    if request["program"] is None:
        del request["program"]
    found = dump.of_node(job.node_folder(request["folder"], rank), request)
    files.write_json(os.path.join(folder, f"{rank}.json"), found)
    return 0
