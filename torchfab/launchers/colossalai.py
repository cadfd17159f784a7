"""`colossalai run` from node 0, without a line of ColossalAI in the script. To change a launch, change `head_argv`.

    colossalai run --hostfile hosts --nproc_per_node 2 --master_addr host1 train_llm.py

It runs torchrun on every node, over Fabric; `shims/colossalai_run.py` replaces its connections.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from torchfab.core.errors import UsageError
from torchfab.core.flag_values import flag
from torchfab.core.lazy_dataclass import dataclass
from torchfab.core.specs import Facts, Job, Node, Plan, Process, Requirements, Slot
from torchfab.launchers import escape_for_torchrun, head_node, nproc, per_node, torchrun_agent
from torchfab.launchers.rank_layout import Layout, Placement, make_plan
from torchfab.launchers.shims import source_of

NAME = "colossalai"
# --no-deps: its dependencies would replace torch with 2.5.1 or older.
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


facts_from_flags = nproc.facts_from_flags


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
    layout = head_node.lay_out(job, nodes, facts)
    if len(set(layout.counts)) > 1:
        raise UsageError(
            f"colossalai runs the same number of ranks on every node, not {layout.note}",
            "give --nproc-per-node, or use launch-per-node",
        )
    processes = [[_relay(layout, each)] for each in layout.placements]
    processes[0].append(_head(layout))
    return make_plan(layout, processes, head_node.versions(facts, "colossalai", "torch"), has_head=True)


def head_argv(layout: Layout) -> tuple[str, ...]:
    """Return the command that runs on node 0.

    Parameters
    ----------
    layout : Layout
        Where the ranks run: the same number on every node.

    Returns
    -------
    tuple of str
    """
    job, folder = layout.job, head_node.head_folder(layout)
    return (
        *(job.python, f"{folder}/colossalai_run.py", "run"),
        *("--hostfile", f"{folder}/hostfile"),
        *("--nproc_per_node", str(layout.counts[0])),
        *("--master_addr", layout.master, "--master_port", str(layout.port)),
        # Arguments for torchrun. A shell on each node expands the variables to that node's folder.
        *("--extra_launch_args", 'redirects=3,log_dir="$TORCHFAB_FOLDER/logs"'),
        *_script_args(job),
    )


def _script_args(job: Job) -> tuple[str, ...]:
    """Return the script and its arguments, quoted for a shell: colossalai passes them to one without quotes."""
    script = escape_for_torchrun(job.script)
    arguments = [shlex.quote(arg) for arg in script[1:]]
    if script[0] == "-m":
        return ("-m", arguments[0], "--", *arguments[1:])
    if job.is_program or not script[0].endswith(".py") or "\n" in script[0]:
        raise UsageError(
            f"colossalai runs scripts whose names end in .py, and modules (-m); got {script[0]!r}",
            "rename it, or use launch-per-node",
        )
    # Escaped by backslashes: with a closing quote, colossalai would not recognize the suffix .py.
    return ("--", re.sub(r"([^\w@%+=:,./-])", r"\\\1", script[0]), *arguments)


def _relay(layout: Layout, placement: Placement) -> Process:
    job, facts, env = placement.job, placement.facts, head_node.node_environment(layout, placement)
    env["TORCHELASTIC_ERROR_FILE"] = f"{facts.folder}/agent/errors/error.json"
    torchrun = shlex.join([job.python, *torchrun_agent.arguments(f"{facts.folder}/agent/{torchrun_agent.FILE}")])
    files = {torchrun_agent.FILE: torchrun_agent.CODE, "bin/torchrun": f'#!/bin/sh\nexec {torchrun} "$@"\n'}
    return head_node.relay(placement, env, per_node.RANK_LOGS, files)


def _head(layout: Layout) -> Process:
    return Process(
        "head",
        head_node.head_argv(layout, head_argv(layout)),
        head_node.head_environment(layout.job),
        files={
            "hostfile": "".join(f"{name}\n" for name in head_node.node_names(layout)),
            "colossalai_run.py": source_of("colossalai_run"),
            **head_node.head_files(layout, relay_here=True, fail_fast=True),
        },
        path=(head_node.program_folder(head_node.head_folder(layout)),),
        secrets=False,
    )
