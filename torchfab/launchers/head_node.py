"""What the launchers with a head share: one process on node 0 that reaches the other nodes by an ssh of its own.

A job of theirs would end with the head's ssh connections: its ranks are nobody's descendants on their nodes, their logs
and exit codes go to the head, and the environment comes on command lines. Therefore

- every node has a gate (`torchfab/remote/shims/relay.py`), a process of the plan like any other, with the node's
  environment and a supervisor; it waits for the command that the head has for the node, and runs it below itself;
- the ssh of the head is ours (`shims/rsh.py`): it knows the nodes of this job only, and knocks at their gates;
- each rank is started by `shims/rank.py`, which tells it its rank, and keeps its log and its exit code.
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

FOLDER = "TORCHFAB_FOLDER"  # where a rank finds what belongs to it: the folder of the process above it
RANK_LOGS = r"logs/rank-(?P<rank>\d+)\.log"
_BATCH = ("-o", "BatchMode=yes", "-o", "ConnectTimeout=10", "-o", "ServerAliveInterval=15")


def python(job: Job) -> str:
    """Return the interpreter as it is found from any folder: an ssh command starts in the home folder."""
    return posixpath.join(job.workdir, job.python) if "/" in job.python else job.python


def names(nodes: Sequence[Node], master: str) -> tuple[str, ...]:
    """Return the names by which the launcher knows the nodes: how the nodes reach each other.

    Raises
    ------
    UsageError
        Two nodes have one name.
    """
    found = (master, *(node.address or node.host for node in nodes[1:]))
    twice = next((name for name in found if found.count(name) > 1), None)
    if twice:
        origin = next(node.origin for node in reversed(nodes) if (node.address or node.host) == twice)
        raise UsageError(f"{origin}: this launcher knows a node by its address alone, and two have {twice}")
    return found


def node_environment(job: Job, node: Node, facts: Facts, ranks: int, master: str, port: int) -> dict[str, str]:
    """Return what every process of a node has in its environment."""
    return {
        "PYTHONUNBUFFERED": "1",
        **environment.threads(ranks, facts.gpus, facts.cpus),
        **environment.visible_devices(node.gpus),
        **job.env,
        "MASTER_ADDR": master,
        "MASTER_PORT": str(port),
        "LOCAL_WORLD_SIZE": str(ranks),
        **environment.marks(job.job_id, node.rank),
    }


def head_environment(job: Job, **more: str) -> dict[str, str]:
    """Return the environment of a head whose ranks all live below gates: little, as launchers export what they have."""
    mine = {name: value for name, value in job.env.items() if name.startswith("PYTHON")}
    return {"PYTHONUNBUFFERED": "1", **mine, **more, **environment.marks(job.job_id, 0)}


def gate(
    job: Job, node: Node, facts: Facts, env: Mapping[str, str], rank_logs: str, files: Mapping[str, str] | None = None
) -> Process:
    """Return the process that waits on a node for what the head has for it.

    Parameters
    ----------
    rank_logs : str
        As in Process.
    files : Mapping of str to str
        More files for its folder.
    """
    folder = f"{facts.folder}/agent"
    return Process(
        "agent",
        (python(job), "-I", "-S", f"{folder}/relay.py", "await"),
        {**env, FOLDER: folder},
        rank_logs=rank_logs,
        folders=("logs", "errors"),
        files={"relay.py": source_of("relay"), **rank_files(), **(files or {})},
        path=(program_folder(folder),),
    )


def rank_files() -> dict[str, str]:
    """Return what a rank needs in the folder of the process above it."""
    return {"rank.py": source_of("rank")}


def head_argv(job: Job, facts: Facts, argv: Sequence[str]) -> tuple[str, ...]:
    """Return the command of the head: the launcher's own, below what tells the gates when it has ended."""
    return (python(job), "-I", "-S", f"{facts.folder}/head/head.py", *argv)


def head_files(
    job: Job, nodes: Sequence[Node], facts: Sequence[Facts], master: str, gate_here: bool, fail_fast: bool
) -> dict[str, str]:
    """Return the files of the head: its ssh, and the way to each node.

    Parameters
    ----------
    gate_here : bool
        Whether node 0 has a gate too; else what the head has for node 0 runs below the head itself.
    fail_fast : bool
        Whether the head is to be ended when a node fails, because it would wait for the others.
    """
    reach = {
        name: {"ssh": _ssh_argv(job, node), "gate": _knock(job, node, fact) if node.rank or gate_here else []}
        for name, node, fact in zip(names(nodes, master), nodes, facts, strict=True)
    }
    ssh = f"{facts[0].folder}/head/rsh.py"
    return {
        "head.py": source_of("head"),
        "rsh.py": source_of("rsh"),
        "nodes.json": json.dumps({"nodes": reach, "fail_fast": fail_fast}, indent=1) + "\n",
        "bin/ssh": f'#!/bin/sh\nexec {shlex.join([python(job), "-I", "-S", ssh])} "$@"\n',
    }


def _ssh_argv(job: Job, node: Node) -> list[str]:
    if node.rank == 0:
        return []
    way = ["-o", f"HostName={node.address}"] if node.address else []
    port = ["-p", str(node.port)] if node.port else []
    user = ["-l", node.user] if node.user else []
    return ["ssh", *_BATCH, *job.ssh_options, *way, *port, *user, "--", node.host]


def _knock(job: Job, node: Node, facts: Facts) -> list[str]:
    marks = [f"{name}={value}" for name, value in environment.marks(job.job_id, node.rank).items()]
    return ["env", *marks, python(job), "-I", "-S", f"{facts.folder}/agent/relay.py", "deliver"]


def program_folder(folder: str) -> str:
    """Return where the programs lie that a process finds first."""
    return posixpath.join(folder, "bin")


def versions(facts: Sequence[Facts], *names: str) -> dict[str, str]:
    """Return the versions of modules and programs for people; all of them where the nodes differ."""
    found = {name: sorted({fact.versions[name] for fact in facts if name in fact.versions}) for name in names}
    words = [_version_words(name, each) for name, each in found.items() if each]
    return {"versions": ", ".join(words)} if words else {}


def _version_words(name: str, found: Sequence[str]) -> str:
    return f"{name} {' and '.join(found)}" + (" (the nodes differ)" if len(found) > 1 else "")
