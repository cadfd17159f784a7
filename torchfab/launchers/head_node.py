"""Shared by the launchers with a head: one process on node 0 that connects to the other nodes by ssh.

Without further measures, the ranks of such jobs end with the head's ssh connections: they have no supervisor on their
nodes, logs and exit codes go to the head only, and the environment is passed on command lines. Therefore

- every node has a relay (`torchfab/remote/shims/relay.py`), a process of the plan like any other, with the node's
  environment and a supervisor: it waits for the head's command and runs it as its child;
- the ssh of the head is `shims/rsh.py`: it knows the nodes of this job only, and delivers commands to their relays;
- `shims/rank.py` starts each rank: it sets the rank's environment and keeps its log and its exit code.
"""

from __future__ import annotations

import json
import posixpath
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

from torchfab.core import environment
from torchfab.core.errors import UsageError
from torchfab.core.specs import Facts, Job, Node, Process
from torchfab.launchers import nproc
from torchfab.launchers.rank_layout import Layout, Placement, process_environment
from torchfab.launchers.shims import source_of

FOLDER = "TORCHFAB_FOLDER"  # environment variable: the folder of a rank's parent process in the plan
RANK_LOGS = r"logs/rank-(?P<rank>\d+)\.log"
_BATCH = ("-o", "BatchMode=yes", "-o", "ConnectTimeout=10", "-o", "ServerAliveInterval=15")


def absolute_python(job: Job) -> str:
    """Return the interpreter with its full path if it has one: an ssh command starts in the home folder.

    Parameters
    ----------
    job : Job
        The job.

    Returns
    -------
    str
    """
    return posixpath.join(job.workdir, job.python) if "/" in job.python else job.python


def lay_out(job: Job, nodes: Sequence[Node], facts: Sequence[Facts]) -> Layout:
    """Lay out the ranks of a job with a head, which uses its own interpreter and working directory for all nodes.

    Parameters
    ----------
    job : Job
        The job; its option `nproc_per_node` comes from `nproc.check`.
    nodes, facts : sequences of equal length
        The nodes and their facts, by node rank.

    Returns
    -------
    Layout

    Raises
    ------
    UsageError
        A node's interpreter or working directory differs from that of node 0; or as for `nproc.lay_out`.
    """
    first = job.on(nodes[0])
    for node in nodes:
        here = job.on(node)
        for key, value, expected in (("python", here.python, first.python), ("workdir", here.workdir, first.workdir)):
            if value != expected:
                raise UsageError(
                    f"{node.origin}: launch-{job.launcher} starts all ranks from {nodes[0].label}, with one {key}: "
                    f"it is {expected} there and {value} here",
                    f"give the same {key}= on all lines, or use launch-per-node",
                )
    return nproc.lay_out(replace(job, python=first.python, workdir=first.workdir), nodes, facts)


def node_names(layout: Layout) -> tuple[str, ...]:
    """Return the names that the launcher uses for the nodes: the addresses by which they reach each other.

    Parameters
    ----------
    layout : Layout
        Where the ranks run.

    Returns
    -------
    tuple of str
        By node rank.

    Raises
    ------
    UsageError
        Two nodes have the same name.
    """
    nodes = layout.nodes
    found = (layout.master, *(node.address or node.host for node in nodes[1:]))
    twice = next((name for name, count in Counter(found).items() if count > 1), None)
    if twice:
        origin = next(node.origin for node in reversed(nodes) if (node.address or node.host) == twice)
        raise UsageError(f"{origin}: this launcher identifies a node by its address alone, and two nodes have {twice}")
    return found


def node_environment(layout: Layout, placement: Placement) -> dict[str, str]:
    """Return the environment of every process on a node.

    Parameters
    ----------
    layout : Layout
        Where the ranks run.
    placement : Placement
        The node.

    Returns
    -------
    dict of str to str
    """
    return process_environment(
        placement,
        MASTER_ADDR=layout.master,
        MASTER_PORT=str(layout.port),
        LOCAL_WORLD_SIZE=str(placement.ranks),
    )


def head_environment(job: Job, **more: str) -> dict[str, str]:
    """Return the environment of a head whose ranks all run below relays; minimal, because launchers pass theirs on.

    Parameters
    ----------
    job : Job
        The job; only the variables of Python are kept from its environment.
    **more : str
        More variables.

    Returns
    -------
    dict of str to str
    """
    of_python = {name: value for name, value in job.env.items() if name.startswith("PYTHON")}
    return {"PYTHONUNBUFFERED": "1", **of_python, **more, **environment.job_markers(job.job_id, 0)}


def relay(
    placement: Placement, env: Mapping[str, str], rank_logs: str, files: Mapping[str, str] | None = None
) -> Process:
    """Return the relay of a node: the process that waits for the command of the head.

    Parameters
    ----------
    placement : Placement
        The node.
    env : Mapping of str to str
        The environment of the node.
    rank_logs : str
        As in Process.
    files : Mapping of str to str, optional
        More files for its folder.

    Returns
    -------
    Process
    """
    folder = f"{placement.facts.folder}/agent"
    return Process(
        "agent",
        (absolute_python(placement.job), "-I", "-S", f"{folder}/relay.py", "await"),
        {**env, FOLDER: folder},
        rank_logs=rank_logs,
        folders=("logs", "errors"),
        files={"relay.py": source_of("relay"), **rank_files(), **(files or {})},
        path=(program_folder(folder),),
    )


def rank_files() -> dict[str, str]:
    """Return the files that ranks need in the folder of their parent process.

    Returns
    -------
    dict of str to str
        Contents by name.
    """
    return {"rank.py": source_of("rank")}


def head_folder(layout: Layout) -> str:
    """Return the folder of the head on node 0.

    Parameters
    ----------
    layout : Layout
        Where the ranks run.

    Returns
    -------
    str
    """
    return f"{layout.facts[0].folder}/head"


def head_argv(layout: Layout, argv: Sequence[str]) -> tuple[str, ...]:
    """Return the command of the head: the launcher's own, run by head.py, which notifies the relays at its end.

    Parameters
    ----------
    layout : Layout
        Where the ranks run.
    argv : sequence of str
        The launcher's command.

    Returns
    -------
    tuple of str
    """
    return (absolute_python(layout.job), "-I", "-S", f"{head_folder(layout)}/head.py", *argv)


def head_files(layout: Layout, relay_here: bool, fail_fast: bool) -> dict[str, str]:
    """Return the files of the head: its ssh, and how to reach each node.

    Parameters
    ----------
    layout : Layout
        Where the ranks run.
    relay_here : bool
        Whether node 0 has a relay too; else commands for node 0 run as children of the head itself.
    fail_fast : bool
        Whether to end the head when a node fails, because it would wait for the other nodes.

    Returns
    -------
    dict of str to str
        Contents by name.
    """
    job = layout.job
    routes = {
        name: {"ssh": _ssh_argv(job, each.node), "gate": _relay_argv(each) if each.node.rank or relay_here else []}
        for name, each in zip(node_names(layout), layout.placements, strict=True)
    }
    ssh = f"{head_folder(layout)}/rsh.py"
    return {
        "head.py": source_of("head"),
        "rsh.py": source_of("rsh"),
        "nodes.json": json.dumps({"nodes": routes, "fail_fast": fail_fast}, indent=1) + "\n",
        "bin/ssh": f'#!/bin/sh\nexec {shlex.join([absolute_python(job), "-I", "-S", ssh])} "$@"\n',
    }


def _ssh_argv(job: Job, node: Node) -> list[str]:
    if node.rank == 0:
        return []
    address = ["-o", f"HostName={node.address}"] if node.address else []
    port = ["-p", str(node.port)] if node.port else []
    user = ["-l", node.user] if node.user else []
    return ["ssh", *_BATCH, *job.ssh_options, *address, *port, *user, "--", node.host]


def _relay_argv(placement: Placement) -> list[str]:
    job = placement.job
    marks = [f"{name}={value}" for name, value in environment.job_markers(job.job_id, placement.node.rank).items()]
    return ["env", *marks, absolute_python(job), "-I", "-S", f"{placement.facts.folder}/agent/relay.py", "deliver"]


def program_folder(folder: str) -> str:
    """Return the folder that comes first in the PATH of a process.

    Parameters
    ----------
    folder : str
        The folder of the process.

    Returns
    -------
    str
    """
    return posixpath.join(folder, "bin")


def versions(facts: Sequence[Facts], *names: str) -> dict[str, str]:
    """Describe the versions of modules and programs, all of them if the nodes differ.

    Parameters
    ----------
    facts : sequence of Facts
        The facts of the nodes.
    *names : str
        The modules and programs.

    Returns
    -------
    dict of str to str
        `versions`; empty if none is known.
    """
    found = {name: sorted({fact.versions[name] for fact in facts if name in fact.versions}) for name in names}
    texts = [_describe_version(name, each) for name, each in found.items() if each]
    return {"versions": ", ".join(texts)} if texts else {}


def _describe_version(name: str, found: Sequence[str]) -> str:
    return f"{name} {' and '.join(found)}" + (" (the nodes differ)" if len(found) > 1 else "")
