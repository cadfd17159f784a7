"""The probe of the ranks: a `sitecustomize` that processes find in PYTHONPATH. See `torchfab/remote/shims/probe.py`."""

from __future__ import annotations

from dataclasses import replace

from torchfab.core.specs import NodePlan, Plan, Process
from torchfab.launchers.shims import source_of

FOLDER = "probe"


def with_probe(plan: Plan) -> Plan:
    """Return a plan whose ranks have a probe.

    Parameters
    ----------
    plan : Plan
        The plan of any launcher.

    Returns
    -------
    Plan
        The same plan for a job without probes.
    """
    return replace(plan, nodes=tuple(_on_node(each) for each in plan.nodes)) if plan.job.probe else plan


def _on_node(node_plan: NodePlan) -> NodePlan:
    processes = tuple(_probed(node_plan.folder, each) for each in node_plan.processes)
    return replace(node_plan, processes=processes)


def _probed(folder: str, process: Process) -> Process:
    if not process.secrets:  # it runs no rank, and its PYTHONPATH may be passed on to other nodes
        return process
    sources = {f"{FOLDER}/sitecustomize.py": source_of("probe"), f"{FOLDER}/rank_profile.py": source_of("rank_profile")}
    files = {**process.files, **sources}
    # Python writes the compiled probe to a folder: a private one, like every other folder of a job.
    folders = (*process.folders, f"{FOLDER}/__pycache__")
    return replace(process, files=files, folders=folders, python_path=(f"{folder}/{process.name}/{FOLDER}",))
