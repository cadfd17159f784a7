"""`colossalai run` from node 0, without a line of ColossalAI in the script. To change a launch, change `head_argv`.

    colossalai run --hostfile hosts --nproc_per_node 2 --master_addr host1 train_llm.py

It runs torchrun on every node, over Fabric; `shims/colossalai_run.py` replaces its connections.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torchfab.core.errors import UsageError
from torchfab.core.flag_values import flag
from torchfab.core.specs import Facts, Job, Node, NodePlan, Plan, Process, Requirements, Slot
from torchfab.launchers import escape_for_torchrun, head_node, master_address, nproc, per_node, resolved_defaults
from torchfab.launchers.shims import source_of

NAME = "colossalai"
# --no-deps: its dependencies would replace torch by 2.5.1 or older.
INSTALL = "--no-deps colossalai==0.5.0, and the rest with: -m pip install fabric click packaging psutil rich numpy"


@dataclass(frozen=True)
class Flags:
    """The flags of launch-colossalai alone."""

    nproc_per_node: str = flag("auto", nproc.HELP)


def options(flags: Flags) -> Mapping[str, Any]:
    """Check the flags.

    Parameters
    ----------
    flags : Flags
        The flags of this launcher.

    Returns
    -------
    Mapping
        The options of the job (`Job.options`).

    Raises
    ------
    UsageError
        The value of a flag is invalid.
    """
    return {"nproc_per_node": nproc.check(flags.nproc_per_node)}


def requirements(job: Job) -> Requirements:
    """List what every node must have; only node 0 needs ColossalAI.

    Parameters
    ----------
    job : Job
        The job.

    Returns
    -------
    Requirements
    """
    modules = ("colossalai", "fabric", "click", "packaging", "psutil")
    return Requirements(("torch",), port=True, head_modules=modules, installs={"colossalai": INSTALL})


def facts_from_flags(job: Job, nodes: Sequence[Node]) -> tuple[Facts, ...] | None:
    """Return the facts if the flags determine all of them: ranks per node and port.

    Parameters
    ----------
    job : Job
        The job.
    nodes : sequence of Node
        The nodes, by rank.

    Returns
    -------
    tuple of Facts or None
        None: the nodes must be asked.
    """
    return nproc.facts_from_flags(job, nodes)


def plan(job: Job, nodes: Sequence[Node], slots: Sequence[Slot], facts: Sequence[Facts]) -> Plan:
    """Plan the launch: colossalai on node 0, and on every node a relay that runs its torchrun.

    Parameters
    ----------
    job : Job
        The job; its options come from `options`.
    nodes, facts : sequences of equal length
        The nodes and their facts, by node rank.
    slots : sequence of Slot
        Unused: a hosts file has no slots.

    Returns
    -------
    Plan

    Raises
    ------
    UsageError
        The nodes have different numbers of ranks, or colossalai does not accept the script.
    """
    master, port = master_address(job, nodes), facts[0].port or job.port
    ranks = [nproc.ranks_on(job, node, fact) for node, fact in zip(nodes, facts, strict=True)]
    if len(set(ranks)) > 1:
        raise UsageError(
            f"colossalai runs the same number of ranks on every node, not {nproc.counts_per_node(ranks)}",
            "give --nproc-per-node, or use launch-per-node",
        )
    head_node.require_alike(job, nodes)
    plans = []
    for node, fact in zip(nodes, facts, strict=True):
        here = job.on(node)
        processes = [_relay(here, node, fact, head_node.node_environment(here, node, fact, ranks[0], master, port))]
        processes += [_head(here, nodes, facts, ranks[0], (master, port))] if node.rank == 0 else []
        plans.append(NodePlan(node, fact.folder, tuple(processes)))
    values = {
        "ranks": f"{sum(ranks)} ({nproc.counts_per_node(ranks)})",
        **head_node.versions(facts, "colossalai", "torch"),
    }
    return Plan(
        job, tuple(plans), sum(ranks), resolved_defaults(job, nodes, master, port, **values), len(nodes), has_head=True
    )


def head_argv(job: Job, folder: str, ranks: int, master: str, port: int) -> tuple[str, ...]:
    """Return the command that runs on node 0.

    Parameters
    ----------
    job : Job
        The job.
    folder : str
        The folder of the head on node 0.
    ranks : int
        Number of ranks on each node.
    master : str
        Address of the rendezvous.
    port : int
        Port of the rendezvous.

    Returns
    -------
    tuple of str
    """
    return (
        *(job.python, f"{folder}/colossalai_run.py", "run"),
        *("--hostfile", f"{folder}/hostfile"),
        *("--nproc_per_node", str(ranks)),
        *("--master_addr", master, "--master_port", str(port)),
        # Arguments for torchrun. A shell on the node expands them, with the folder of that node.
        *("--extra_launch_args", 'redirects=3,log_dir="$TORCHFAB_FOLDER/logs"'),
        *_script_args(job),
    )


def _script_args(job: Job) -> tuple[str, ...]:
    """Return the script and its arguments, quoted for a shell: colossalai passes them to one without quotes."""
    script = escape_for_torchrun(job.script)
    arguments = [shlex.quote(arg) for arg in script[1:]]
    if script[0] == "-m":
        return ("-m", arguments[0], "--", *arguments[1:])
    if not script[0].endswith(".py") or "\n" in script[0]:
        raise UsageError(
            f"colossalai runs scripts whose names end in .py, and modules (-m); got {script[0]!r}",
            "rename it, or use launch-per-node",
        )
    # Escaped by backslashes: with a closing quote, colossalai would not recognize the suffix .py.
    return ("--", re.sub(r"([^\w@%+=:,./-])", r"\\\1", script[0]), *arguments)


def _relay(job: Job, node: Node, facts: Facts, env: dict[str, str]) -> Process:
    env["TORCHELASTIC_ERROR_FILE"] = f"{facts.folder}/agent/errors/error.json"
    torchrun = f'#!/bin/sh\nexec {shlex.join([job.python, "-m", "torch.distributed.run"])} "$@"\n'
    return head_node.relay(job, node, facts, env, per_node.RANK_LOGS, {"bin/torchrun": torchrun})


def _head(job: Job, nodes: Sequence[Node], facts: Sequence[Facts], ranks: int, rendezvous: tuple[str, int]) -> Process:
    folder = f"{facts[0].folder}/head"
    return Process(
        "head",
        head_node.head_argv(job, facts[0], head_argv(job, folder, ranks, *rendezvous)),
        head_node.head_environment(job),
        files={
            "hostfile": "".join(f"{name}\n" for name in head_node.node_names(nodes, rendezvous[0])),
            "colossalai_run.py": source_of("colossalai_run"),
            **head_node.head_files(job, nodes, facts, rendezvous[0], relay_here=True, fail_fast=True),
        },
        path=(head_node.program_folder(folder),),
        secrets=False,
    )
