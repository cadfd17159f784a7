"""`colossalai run` from node 0, without a line of ColossalAI in the script. To change a launch, change `head_argv`.

    colossalai run --hostfile hosts --nproc_per_node 2 --master_addr host1 train_llm.py

It is torchrun on every node, over Fabric. Its connections are replaced by ours (`shims/colossalai_run.py`).
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
# --no-deps: with its dependencies it replaces torch by 2.5.1 or older.
INSTALL = "--no-deps colossalai==0.5.0, and the rest with: -m pip install fabric click packaging psutil rich numpy"


@dataclass(frozen=True)
class Flags:
    """The flags of launch-colossalai alone."""

    nproc_per_node: str = flag("auto", nproc.HELP)


def options(flags: Flags) -> Mapping[str, Any]:
    """Return the checked flags.

    Raises
    ------
    UsageError
        A flag's value is not one of those that it takes.
    """
    return {"nproc_per_node": nproc.check(flags.nproc_per_node)}


def requirements(job: Job) -> Requirements:
    """Return what every node must have; only node 0 needs ColossalAI."""
    modules = ("colossalai", "fabric", "click", "packaging", "psutil")
    return Requirements(("torch",), port=True, head_modules=modules, installs={"colossalai": INSTALL})


def facts_from_flags(job: Job, nodes: Sequence[Node]) -> tuple[Facts, ...] | None:
    """Return the facts that the flags give, if they give all: ranks per node and port; else None."""
    return nproc.facts_from_flags(job, nodes)


def plan(job: Job, nodes: Sequence[Node], slots: Sequence[Slot], facts: Sequence[Facts]) -> Plan:
    """Return what runs where: colossalai on node 0, a gate for its torchrun on every node.

    Parameters
    ----------
    job : Job
        What was asked for; its options are those of `options`.
    nodes, facts : sequences of equal length
        The nodes and what they told, in the order of node ranks.
    slots : sequence of Slot
        Not used: a hosts file has none.

    Raises
    ------
    UsageError
        The nodes have different numbers of ranks, or the script is nothing that colossalai takes.
    """
    master, port = master_address(job, nodes), facts[0].port or job.port
    ranks = [nproc.ranks_on(job, node, fact) for node, fact in zip(nodes, facts, strict=True)]
    if len(set(ranks)) > 1:
        raise UsageError(
            f"colossalai runs the same number of ranks on every node, not {nproc.counts_per_node(ranks)}",
            "give --nproc-per-node, or use launch-per-node",
        )
    plans = []
    for node, fact in zip(nodes, facts, strict=True):
        processes = [_gate(job, node, fact, head_node.node_environment(job, node, fact, ranks[0], master, port))]
        processes += [_head(job, nodes, facts, ranks[0], (master, port))] if node.rank == 0 else []
        plans.append(NodePlan(node, fact.folder, tuple(processes)))
    words = {
        "ranks": f"{sum(ranks)} ({nproc.counts_per_node(ranks)})",
        **head_node.versions(facts, "colossalai", "torch"),
    }
    return Plan(
        job, tuple(plans), sum(ranks), resolved_defaults(job, nodes, master, port, **words), len(nodes), has_head=True
    )


def head_argv(job: Job, folder: str, ranks: int, master: str, port: int) -> tuple[str, ...]:
    """Return the command that runs on node 0."""
    return (
        *(job.python, f"{folder}/colossalai_run.py", "run"),
        *("--hostfile", f"{folder}/hostfile"),
        *("--nproc_per_node", str(ranks)),
        *("--master_addr", master, "--master_port", str(port)),
        # Words for torchrun. A shell on the node reads them, and fills in the node's own folder.
        *("--extra_launch_args", 'redirects=3,log_dir="$TORCHFAB_FOLDER/logs"'),
        *_script_words(job),
    )


def _script_words(job: Job) -> tuple[str, ...]:
    """Return the script and its arguments, quoted for the shell to which colossalai gives them bare."""
    script = escape_for_torchrun(job.script)
    arguments = [shlex.quote(word) for word in script[1:]]
    if script[0] == "-m":
        return ("-m", arguments[0], "--", *arguments[1:])
    if not script[0].endswith(".py") or "\n" in script[0]:
        raise UsageError(
            f"colossalai runs scripts whose names end in .py, and modules (-m); got {script[0]!r}",
            "rename it, or use launch-per-node",
        )
    # With a quote at its end, colossalai would not see that it ends in .py.
    return ("--", re.sub(r"([^\w@%+=:,./-])", r"\\\1", script[0]), *arguments)


def _gate(job: Job, node: Node, facts: Facts, env: dict[str, str]) -> Process:
    env["TORCHELASTIC_ERROR_FILE"] = f"{facts.folder}/agent/errors/error.json"
    torchrun = f'#!/bin/sh\nexec {shlex.join([job.python, "-m", "torch.distributed.run"])} "$@"\n'
    return head_node.gate(job, node, facts, env, per_node.RANK_LOGS, {"bin/torchrun": torchrun})


def _head(job: Job, nodes: Sequence[Node], facts: Sequence[Facts], ranks: int, rendezvous: tuple[str, int]) -> Process:
    folder = f"{facts[0].folder}/head"
    return Process(
        "head",
        head_node.head_argv(job, facts[0], head_argv(job, folder, ranks, *rendezvous)),
        head_node.head_environment(job),
        files={
            "hostfile": "".join(f"{name}\n" for name in head_node.names(nodes, rendezvous[0])),
            "colossalai_run.py": source_of("colossalai_run"),
            **head_node.head_files(job, nodes, facts, rendezvous[0], gate_here=True, fail_fast=True),
        },
        path=(head_node.program_folder(folder),),
        secrets=False,
    )
