"""Shared by the launchers with a head: one process on node 0 that connects to the other nodes by ssh.

By themselves, such jobs end with the head's ssh connections: their ranks have no supervisor on their nodes, logs and
exit codes go to the head only, and the environment is passed on command lines. Therefore

- every node has a relay (`torchfab/remote/shims/relay.py`), a process of the plan like any other, with the node's
  environment and a supervisor: it waits for the head's command and runs it as its child;
- the ssh of the head is `shims/rsh.py`: it knows the nodes of this job only, and delivers commands to their relays;
- `shims/rank.py` starts each rank: it sets the rank's environment and keeps its log and its exit code.
"""

from __future__ import annotations

import json
import posixpath
import shlex
from collections.abc import Mapping, Sequence

from torchfab.core import environment
from torchfab.core.errors import UsageError
from torchfab.core.specs import Facts, Job, Node, Process
from torchfab.launchers.shims import source_of

FOLDER = "TORCHFAB_FOLDER"  # variable that gives a rank the folder of its parent process in the plan
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


def require_alike(job: Job, nodes: Sequence[Node]) -> None:
    """Check that all nodes have the same interpreter and working directory: the head uses its own for all.

    Parameters
    ----------
    job : Job
        The job.
    nodes : sequence of Node
        The nodes, by rank.

    Raises
    ------
    UsageError
        A node has others than node 0.
    """
    first = job.on(nodes[0])
    for node in nodes:
        here = job.on(node)
        for key, value, expected in (("python", here.python, first.python), ("workdir", here.workdir, first.workdir)):
            if value != expected:
                raise UsageError(
                    f"{node.origin}: launch-{job.launcher} starts all ranks from {nodes[0].label}, with one {key}: "
                    f"{expected} there, {value} here",
                    f"give the same {key}= on all lines, or use launch-per-node",
                )


def node_names(nodes: Sequence[Node], master: str) -> tuple[str, ...]:
    """Return the names that the launcher uses for the nodes: the addresses by which they reach each other.

    Parameters
    ----------
    nodes : sequence of Node
        The nodes, by rank.
    master : str
        Address of node 0.

    Returns
    -------
    tuple of str

    Raises
    ------
    UsageError
        Two nodes have the same name.
    """
    found = (master, *(node.address or node.host for node in nodes[1:]))
    twice = next((name for name in found if found.count(name) > 1), None)
    if twice:
        origin = next(node.origin for node in reversed(nodes) if (node.address or node.host) == twice)
        raise UsageError(f"{origin}: this launcher knows a node by its address alone, and two have {twice}")
    return found


def node_environment(job: Job, node: Node, facts: Facts, ranks: int, master: str, port: int) -> dict[str, str]:
    """Return the environment of every process on a node.

    Parameters
    ----------
    job : Job
        The job.
    node : Node
        The node.
    facts : Facts
        Its facts.
    ranks : int
        Number of ranks on the node.
    master : str
        Address of the rendezvous.
    port : int
        Port of the rendezvous.

    Returns
    -------
    dict of str to str
    """
    return {
        "PYTHONUNBUFFERED": "1",
        **environment.omp_threads(ranks, facts.gpus, facts.cpus),
        **environment.visible_devices(node.gpus),
        **job.env,
        "MASTER_ADDR": master,
        "MASTER_PORT": str(port),
        "LOCAL_WORLD_SIZE": str(ranks),
        **environment.job_markers(job.job_id, node.rank),
    }


def head_environment(job: Job, **more: str) -> dict[str, str]:
    """Return the environment of a head whose ranks all run below relays: minimal, as launchers export what they have.

    Parameters
    ----------
    job : Job
        The job; of its environment only the variables of Python are kept.
    **more : str
        More variables.

    Returns
    -------
    dict of str to str
    """
    of_python = {name: value for name, value in job.env.items() if name.startswith("PYTHON")}
    return {"PYTHONUNBUFFERED": "1", **of_python, **more, **environment.job_markers(job.job_id, 0)}


def relay(
    job: Job, node: Node, facts: Facts, env: Mapping[str, str], rank_logs: str, files: Mapping[str, str] | None = None
) -> Process:
    """Return the relay of a node: the process that waits for the command of the head.

    Parameters
    ----------
    job : Job
        The job.
    node : Node
        The node.
    facts : Facts
        Its facts.
    env : Mapping of str to str
        Its environment.
    rank_logs : str
        As in Process.
    files : Mapping of str to str, optional
        More files for its folder.

    Returns
    -------
    Process
    """
    folder = f"{facts.folder}/agent"
    return Process(
        "agent",
        (absolute_python(job), "-I", "-S", f"{folder}/relay.py", "await"),
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


def head_argv(job: Job, facts: Facts, argv: Sequence[str]) -> tuple[str, ...]:
    """Return the command of the head: the launcher's own, run by head.py, which notifies the relays at its end.

    Parameters
    ----------
    job : Job
        The job.
    facts : Facts
        The facts of node 0.
    argv : sequence of str
        The launcher's command.

    Returns
    -------
    tuple of str
    """
    return (absolute_python(job), "-I", "-S", f"{facts.folder}/head/head.py", *argv)


def head_files(
    job: Job, nodes: Sequence[Node], facts: Sequence[Facts], master: str, relay_here: bool, fail_fast: bool
) -> dict[str, str]:
    """Return the files of the head: its ssh, and how to reach each node.

    Parameters
    ----------
    job : Job
        The job.
    nodes, facts : sequences of equal length
        The nodes and their facts, by node rank.
    master : str
        Address of node 0.
    relay_here : bool
        Whether node 0 has a relay too; else commands for node 0 run below the head itself.
    fail_fast : bool
        Whether to end the head when a node fails, because it would wait for the other nodes.

    Returns
    -------
    dict of str to str
        Contents by name.
    """
    routes = {
        name: {
            "ssh": _ssh_argv(job, node),
            "gate": _relay_argv(job.on(node), node, fact) if node.rank or relay_here else [],
        }
        for name, node, fact in zip(node_names(nodes, master), nodes, facts, strict=True)
    }
    ssh = f"{facts[0].folder}/head/rsh.py"
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


def _relay_argv(job: Job, node: Node, facts: Facts) -> list[str]:
    marks = [f"{name}={value}" for name, value in environment.job_markers(job.job_id, node.rank).items()]
    return ["env", *marks, absolute_python(job), "-I", "-S", f"{facts.folder}/agent/relay.py", "deliver"]


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
