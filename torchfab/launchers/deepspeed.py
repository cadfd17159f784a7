"""deepspeed on every node, or from one head. To change a launch, change `agent_argv` or `head_argv`.

The tutorial's one-liner was `deepspeed --include host1@host2 train_llm.py`, which needs a hostfile, pdsh, and SSH keys
between the nodes. `deepspeed --no_ssh` on every node needs none of them; `--from-head` launches as the tutorial does.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from torchfab.core.errors import UsageError
from torchfab.core.flag_values import flag, is_whole
from torchfab.core.lazy_dataclass import dataclass
from torchfab.core.specs import Facts, Job, Node, Plan, Process, Program, Requirements, Slot
from torchfab.launchers import head_node, nproc
from torchfab.launchers.rank_layout import Layout, Placement, make_plan

NAME = "deepspeed"
PDSH = Program(("pdsh",), "sudo apt-get install -y pdsh", version_flag="-V", on_head_only=True)
# <time>_rank<rank>.log
RANK_LOGS = r"logs/\d+_rank(?P<rank>\d+)\.log"
# Run by the training interpreter: parses --deepspeed-args as deepspeed does.
_PARSER = "import sys; from deepspeed.launcher.runner import parse_args; parse_args(sys.argv[1:])"
# deepspeed joins the arguments for the other nodes with blanks; a shell on each node expands them to its own folder.
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
    programs = (PDSH,) if job.options["from_head"] else ()
    given = job.options["deepspeed_args"]
    parser = ("-c", _PARSER, *given, "train.py") if given else ()
    return Requirements(("torch", "deepspeed"), port=True, programs=programs, parser=parser)


facts_from_flags = nproc.facts_from_flags


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
    from_head = job.options["from_head"]
    layout = (head_node if from_head else nproc).lay_out(job, nodes, facts)
    hostfile, include = _hostfile(layout), _include(layout)
    if from_head:
        processes = [[_relay(layout, each)] for each in layout.placements]
        processes[0].append(_head(layout, hostfile, include))
    else:
        processes = [[_agent(layout, each, hostfile, include)] for each in layout.placements]
    return make_plan(layout, processes, head_node.versions(facts, "deepspeed", "torch"), has_head=from_head)


def agent_argv(layout: Layout, placement: Placement, include: Sequence[str]) -> tuple[str, ...]:
    """Return the command that runs on one node.

    Parameters
    ----------
    layout : Layout
        Where the ranks run.
    placement : Placement
        The node.
    include : sequence of str
        The option that selects devices; empty for all devices.

    Returns
    -------
    tuple of str
    """
    job, folder = placement.job, f"{placement.facts.folder}/agent"
    return (
        *(job.python, "-m", "deepspeed.launcher.runner"),
        *("--no_ssh", "--node_rank", str(placement.node.rank)),
        *_common(layout, f"{folder}/hostfile", include, f"{folder}/logs"),
        *_script(job),
    )


def _script(job: Job) -> tuple[str, ...]:
    if job.is_program:
        return ("--no_python", *job.argv)
    return ("--module", *job.script[1:]) if job.script_path is None else job.script


def head_argv(layout: Layout, include: Sequence[str]) -> tuple[str, ...]:
    """Return the command that runs on node 0 with `--from-head`.

    Parameters
    ----------
    layout : Layout
        Where the ranks run.
    include : sequence of str
        The option that selects devices; empty for all devices.

    Returns
    -------
    tuple of str
    """
    return (
        *(layout.job.python, "-m", "deepspeed.launcher.runner"),
        # Use the multi-node path for a single host, too. torchfab has checked the hosts in phase one.
        *("--launcher", "pdsh", "--force_multi", "--no_ssh_check"),
        *_common(layout, f"{head_node.head_folder(layout)}/hostfile", include, RANK_LOG_DIR),
        # The script and its arguments bypass deepspeed's quoting and pdsh's %h: they are in a file that bin/rank reads.
        *("--no_python", RANK_PROGRAM),
    )


def _common(layout: Layout, hostfile: str, include: Sequence[str], logs: str) -> tuple[str, ...]:
    options = layout.job.options
    return (
        *("--hostfile", hostfile, *include),
        *("--master_addr", layout.master, "--master_port", str(layout.port)),
        *("--enable_each_rank_log", logs),
        *(() if options["local_rank"] else ("--no_local_rank",)),
        *options["deepspeed_args"],
    )


def _hostfile(layout: Layout) -> str:
    names = head_node.node_names(layout)
    return "".join(f"{name} slots={_slots(each)}\n" for name, each in zip(names, layout.placements, strict=True))


def _slots(placement: Placement) -> int:
    """Return how many devices deepspeed must assume so that the named ones are among them."""
    return max(placement.ranks, *(int(gpu) + 1 for gpu in _devices(placement.node)), 0)


def _include(layout: Layout) -> tuple[str, ...]:
    """Return the option that selects devices, if any are named: deepspeed overwrites CUDA_VISIBLE_DEVICES."""
    if not any(node.gpus for node in layout.nodes):
        return ()
    parts = []
    for name, each in zip(head_node.node_names(layout), layout.placements, strict=True):
        devices = _devices(each.node)[: each.ranks] or [str(index) for index in range(each.ranks)]
        parts.append(f"{name}:{','.join(devices)}")
    return ("--include", "@".join(parts))


def _devices(node: Node) -> list[str]:
    unknown = next((gpu for gpu in node.gpus if not is_whole(gpu)), None)
    if unknown:
        raise UsageError(f"{node.origin}: deepspeed knows devices by their index, got gpus={unknown}")
    return list(node.gpus)


def _environment(layout: Layout, placement: Placement) -> dict[str, str]:
    env = head_node.node_environment(layout, placement)
    if "CUDA_VISIBLE_DEVICES" not in placement.job.env:  # --include selects the devices
        env.pop("CUDA_VISIBLE_DEVICES", None)
    if placement.facts.cpus and not placement.facts.gpus:
        env.setdefault("DS_ACCELERATOR", "cpu")
    return env


def _agent(layout: Layout, placement: Placement, hostfile: str, include: Sequence[str]) -> Process:
    argv, env = agent_argv(layout, placement, include), _environment(layout, placement)
    return Process("agent", argv, env, rank_logs=RANK_LOGS, folders=("logs",), files={"hostfile": hostfile})


def _relay(layout: Layout, placement: Placement) -> Process:
    job, facts = placement.job, placement.facts
    rank = shlex.join([job.python, "-I", "-S", f"{facts.folder}/agent/rank.py", "--script"])
    files = {
        "script.json": json.dumps(list(job.argv)) + "\n",
        "bin/rank": f'#!/bin/sh\nexec {rank} "$@"\n',
    }
    return head_node.relay(placement, _environment(layout, placement), RANK_LOGS, files)


def _head(layout: Layout, hostfile: str, include: Sequence[str]) -> Process:
    job, folder = layout.placements[0].job, head_node.head_folder(layout)
    return Process(
        "head",
        head_node.head_argv(layout, head_argv(layout, include)),
        head_node.head_environment(job, DS_ENV_FILE=f"{folder}/deepspeed_env"),
        files={
            "hostfile": hostfile,
            # Replaces the files in the home folder and the working directory: a blank line in them crashes deepspeed.
            "deepspeed_env": f"TORCHFAB_JOB_ID={job.job_id}\n",
            **head_node.head_files(layout, relay_here=True, fail_fast=True),
        },
        path=(head_node.program_folder(folder),),
        secrets=False,
    )
