"""deepspeed on every node, or from one head. To change what a launch does, change `agent_argv` or `head_argv`.

The tutorial's one-liner was `deepspeed --include host1@host2 train_llm.py`, which needs a hostfile, pdsh, and SSH keys
between the nodes. `deepspeed --no_ssh` on every node needs none of them; `--from-head` launches as the tutorial does.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torchfab.core.errors import UsageError
from torchfab.core.flag_values import flag, is_whole
from torchfab.core.specs import Facts, Job, Node, NodePlan, Plan, Process, Program, Requirements, Slot
from torchfab.launchers import head_node, master_address, nproc, resolved_defaults

NAME = "deepspeed"
PDSH = Program(("pdsh",), "sudo apt-get install -y pdsh", version_flag="-V", on_head_only=True)
# <time>_rank<rank>.log
RANK_LOGS = r"logs/\d+_rank(?P<rank>\d+)\.log"
# deepspeed joins the arguments for the other nodes with blanks; a shell on each node expands them, with its own folder.
RANK_LOG_DIR, RANK_PROGRAM = '"$TORCHFAB_FOLDER/logs"', '"$TORCHFAB_FOLDER/bin/rank"'


@dataclass(frozen=True)
class Flags:
    """The flags of launch-deepspeed alone."""

    nproc_per_node: str = flag("auto", nproc.HELP)
    from_head: bool = flag(False, "One deepspeed on node 0 reaches the others through pdsh and ssh.")
    local_rank: bool = flag(False, "Pass --local_rank=N to the script, if it does not read LOCAL_RANK.")
    deepspeed_args: str = flag("", 'More arguments for deepspeed: "--bind_cores_to_rank".')


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
    try:
        more = tuple(shlex.split(flags.deepspeed_args))
    except ValueError as error:
        raise UsageError(f"--deepspeed-args {flags.deepspeed_args!r}: {error}") from None
    return {
        "nproc_per_node": nproc.check(flags.nproc_per_node),
        "from_head": flags.from_head,
        "local_rank": flags.local_rank,
        "deepspeed_args": more,
    }


def requirements(job: Job) -> Requirements:
    """List what every node must have.

    Parameters
    ----------
    job : Job
        The job.

    Returns
    -------
    Requirements
    """
    return Requirements(("torch", "deepspeed"), port=True, programs=(PDSH,) if job.options["from_head"] else ())


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
    """Plan the launch: one deepspeed on each node, or one on node 0 and a relay on every node.

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
    """
    master, port = master_address(job, nodes), facts[0].port or job.port
    ranks = [nproc.ranks_on(job, node, fact) for node, fact in zip(nodes, facts, strict=True)]
    names = head_node.node_names(nodes, master)
    hosts = "".join(f"{name} slots={_slots(node, n)}\n" for name, node, n in zip(names, nodes, ranks, strict=True))
    include = _include(names, nodes, ranks)
    from_head = job.options["from_head"]
    if from_head:
        head_node.require_alike(job, nodes)
    plans = []
    for node, fact, count in zip(nodes, facts, ranks, strict=True):
        here = job.on(node)
        env = _environment(here, node, fact, count, master, port)
        if from_head:
            processes = [_relay(here, node, fact, env)]
            processes += [_head(here, nodes, facts, hosts, include, (master, port))] if node.rank == 0 else []
        else:
            processes = [_agent(here, node, fact, env, hosts, agent_argv(here, node, fact, include, master, port))]
        plans.append(NodePlan(node, fact.folder, tuple(processes)))
    values = {
        "ranks": f"{sum(ranks)} ({nproc.counts_per_node(ranks)})",
        **head_node.versions(facts, "deepspeed", "torch"),
    }
    return Plan(
        job, tuple(plans), sum(ranks), resolved_defaults(job, nodes, master, port, **values), len(nodes), from_head
    )


def agent_argv(job: Job, node: Node, facts: Facts, include: Sequence[str], master: str, port: int) -> tuple[str, ...]:
    """Return the command that runs on one node.

    Parameters
    ----------
    job : Job
        The job.
    node : Node
        The node.
    facts : Facts
        Its facts.
    include : sequence of str
        The option that selects devices, or nothing.
    master : str
        Address of the rendezvous.
    port : int
        Port of the rendezvous.

    Returns
    -------
    tuple of str
    """
    return (
        *(job.python, "-m", "deepspeed.launcher.runner"),
        *("--no_ssh", "--node_rank", str(node.rank)),
        *_common(job, f"{facts.folder}/agent/hostfile", include, f"{facts.folder}/agent/logs", master, port),
        *(("--module", *job.script[1:]) if job.script_path is None else job.script),
    )


def head_argv(job: Job, folder: str, include: Sequence[str], master: str, port: int) -> tuple[str, ...]:
    """Return the command that runs on node 0 with `--from-head`.

    Parameters
    ----------
    job : Job
        The job.
    folder : str
        The folder of the head on node 0.
    include : sequence of str
        The option that selects devices, or nothing.
    master : str
        Address of the rendezvous.
    port : int
        Port of the rendezvous.

    Returns
    -------
    tuple of str
    """
    return (
        *(job.python, "-m", "deepspeed.launcher.runner"),
        # Treat a single host like many. torchfab has checked the hosts in phase one.
        *("--launcher", "pdsh", "--force_multi", "--no_ssh_check"),
        *_common(job, f"{folder}/hostfile", include, RANK_LOG_DIR, master, port),
        # The script and its arguments bypass deepspeed's quoting and pdsh's %h: they are in a file that bin/rank reads.
        *("--no_python", RANK_PROGRAM),
    )


def _common(job: Job, hostfile: str, include: Sequence[str], logs: str, master: str, port: int) -> tuple[str, ...]:
    return (
        *("--hostfile", hostfile, *include),
        *("--master_addr", master, "--master_port", str(port)),
        *("--enable_each_rank_log", logs),
        *(() if job.options["local_rank"] else ("--no_local_rank",)),
        *job.options["deepspeed_args"],
    )


def _slots(node: Node, ranks: int) -> int:
    """Return how many devices deepspeed must assume so that the named ones are among them."""
    return max(ranks, *(int(gpu) + 1 for gpu in _devices(node)), 0)


def _include(names: Sequence[str], nodes: Sequence[Node], ranks: Sequence[int]) -> tuple[str, ...]:
    """Return the option that selects devices, if any are named: deepspeed overwrites CUDA_VISIBLE_DEVICES."""
    if not any(node.gpus for node in nodes):
        return ()
    parts = []
    for name, node, count in zip(names, nodes, ranks, strict=True):
        devices = _devices(node)[:count] or [str(index) for index in range(count)]
        parts.append(f"{name}:{','.join(devices)}")
    return ("--include", "@".join(parts))


def _devices(node: Node) -> list[str]:
    unknown = next((gpu for gpu in node.gpus if not is_whole(gpu)), None)
    if unknown:
        raise UsageError(f"{node.origin}: deepspeed knows devices by their index, got gpus={unknown}")
    return list(node.gpus)


def _environment(job: Job, node: Node, facts: Facts, ranks: int, master: str, port: int) -> dict[str, str]:
    env = head_node.node_environment(job, node, facts, ranks, master, port)
    if "CUDA_VISIBLE_DEVICES" not in job.env:  # --include selects the devices
        env.pop("CUDA_VISIBLE_DEVICES", None)
    if facts.cpus and not facts.gpus:
        env.setdefault("DS_ACCELERATOR", "cpu")
    return env


def _agent(job: Job, node: Node, facts: Facts, env: Mapping[str, str], hosts: str, argv: tuple[str, ...]) -> Process:
    return Process("agent", argv, env, rank_logs=RANK_LOGS, folders=("logs",), files={"hostfile": hosts})


def _relay(job: Job, node: Node, facts: Facts, env: Mapping[str, str]) -> Process:
    rank = shlex.join([job.python, "-I", "-S", f"{facts.folder}/agent/rank.py", "--script"])
    files = {
        "script.json": json.dumps([job.python, *job.script]) + "\n",
        "bin/rank": f'#!/bin/sh\nexec {rank} "$@"\n',
    }
    return head_node.relay(job, node, facts, env, RANK_LOGS, files)


def _head(
    job: Job,
    nodes: Sequence[Node],
    facts: Sequence[Facts],
    hosts: str,
    include: Sequence[str],
    rendezvous: tuple[str, int],
) -> Process:
    folder = f"{facts[0].folder}/head"
    return Process(
        "head",
        head_node.head_argv(job, facts[0], head_argv(job, folder, include, *rendezvous)),
        head_node.head_environment(job, DS_ENV_FILE=f"{folder}/deepspeed_env"),
        files={
            "hostfile": hosts,
            # Replaces those of the home folder and the working directory: a blank line in them crashes deepspeed.
            "deepspeed_env": f"TORCHFAB_JOB_ID={job.job_id}\n",
            **head_node.head_files(job, nodes, facts, rendezvous[0], relay_here=True, fail_fast=True),
        },
        path=(head_node.program_folder(folder),),
        secrets=False,
    )
