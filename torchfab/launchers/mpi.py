"""mpirun on node 0, which starts the ranks everywhere. To change a launch, change `openmpi_argv` or `mpich_argv`.

    mpirun.openmpi --hostfile hosts -np 4 python train_llm.py
    mpiexec.hydra -f hosts -n 4 python train_llm.py

The script need not know MPI: `shims/rank.py` tells every rank its place in the words of torch.distributed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torchfab.core.errors import UsageError
from torchfab.core.flag_values import flag
from torchfab.core.specs import Facts, Job, Node, NodePlan, Plan, Process, Program, Requirements, Slot
from torchfab.launchers import head_node, master_address, nproc, resolved_defaults

NAME = "mpi"
OPENMPI = Program(("mpirun.openmpi", "orterun"), "sudo apt-get install -y openmpi-bin")
MPICH = Program(("mpiexec.hydra",), "sudo apt-get install -y mpich")
EITHER = Program((*OPENMPI.names, *MPICH.names), OPENMPI.install)
PROGRAMS = {"openmpi": OPENMPI, "mpich": MPICH, "auto": EITHER}
# Every node has its own folder: the shell on the node finds the way from the environment that its gate gave it.
RANK = 'exec "$0" -I -S "$TORCHFAB_FOLDER/rank.py" --logs "$@"'


@dataclass(frozen=True)
class Flags:
    """The flags of launch-mpi alone."""

    nproc_per_node: str = flag("auto", nproc.HELP)
    flavour: str = flag("auto", "openmpi, mpich, or auto: the first that all nodes have. [auto]")
    interface: str = flag("", "Network interface between the nodes, as eth0. [what MPI, gloo and NCCL choose]")


def options(flags: Flags) -> Mapping[str, Any]:
    """Return the checked flags.

    Raises
    ------
    UsageError
        A flag's value is not one of those that it takes.
    """
    if flags.flavour not in PROGRAMS:
        raise UsageError(f"--flavour is auto, openmpi or mpich, got {flags.flavour!r}")
    return {
        "nproc_per_node": nproc.check(flags.nproc_per_node),
        "flavour": flags.flavour,
        "interface": flags.interface,
    }


def requirements(job: Job) -> Requirements:
    """Return what every node must have."""
    return Requirements(modules=("torch",), port=True, programs=(PROGRAMS[job.options["flavour"]],))


def facts_from_flags(job: Job, nodes: Sequence[Node]) -> tuple[Facts, ...] | None:
    """Return the facts that the flags give, if they give all: ranks per node, port and flavour; else None."""
    return None if job.options["flavour"] == "auto" else nproc.facts_from_flags(job, nodes)


def plan(job: Job, nodes: Sequence[Node], slots: Sequence[Slot], facts: Sequence[Facts]) -> Plan:
    """Return what runs where: mpirun on node 0, a gate for its daemon on every other node.

    Parameters
    ----------
    job : Job
        What was asked for; its options are those of `options`.
    nodes, facts : sequences of equal length
        The nodes and what they told, in the order of node ranks.
    slots : sequence of Slot
        Not used: a hosts file has none.
    """
    master, port = master_address(job, nodes), facts[0].port or job.port
    ranks = [nproc.ranks_on(job, node, fact) for node, fact in zip(nodes, facts, strict=True)]
    program = _program(job, facts)
    envs = [
        {**head_node.node_environment(job, node, fact, count, master, port), **_interface_environment(job)}
        for node, fact, count in zip(nodes, facts, ranks, strict=True)
    ]
    head = _head(job, nodes, facts, ranks, master, program, envs[0])
    plans = [NodePlan(nodes[0], facts[0].folder, (head,))]
    for node, fact, env in list(zip(nodes, facts, envs, strict=True))[1:]:
        plans.append(NodePlan(node, fact.folder, (head_node.gate(job, node, fact, env, head_node.RANK_LOGS),)))
    words = {"ranks": f"{sum(ranks)} ({nproc.counts_per_node(ranks)})", **_notes(facts, program)}
    return Plan(
        job, tuple(plans), sum(ranks), resolved_defaults(job, nodes, master, port, **words), len(nodes), has_head=True
    )


def _program(job: Job, facts: Sequence[Facts]) -> str:
    """Return the name of the program: the first of the flavour that every node has."""
    names = PROGRAMS[job.options["flavour"]].names
    found = [name for name in names if all(name in fact.versions for fact in facts)]
    if found:
        return found[0]
    if not any(fact.versions for fact in facts):  # a dry run that asked nobody
        return names[0]
    raise UsageError(f"no MPI is on all nodes: some have {names[0]}, others {names[-1]}", "install the same on all")


def _head(
    job: Job,
    nodes: Sequence[Node],
    facts: Sequence[Facts],
    ranks: Sequence[int],
    master: str,
    program: str,
    env: Mapping[str, str],
) -> Process:
    folder = f"{facts[0].folder}/head"
    names = head_node.names(nodes, master)
    hosts = list(zip(names, ranks, strict=True))
    if program in MPICH.names:
        argv = mpich_argv(job, program, folder, master, sum(ranks))
        lines = [f"{name}:{count}" for name, count in hosts]
    else:
        argv = openmpi_argv(job, program, folder, sum(ranks))
        lines = [f"{name} slots={count}" for name, count in hosts]
    return Process(
        "head",
        head_node.head_argv(job, facts[0], (*argv, "sh", "-c", RANK, job.python, job.python, *job.script)),
        {**env, head_node.FOLDER: folder},
        rank_logs=head_node.RANK_LOGS,
        folders=("logs", "errors"),
        files={
            "hostfile": "".join(f"{line}\n" for line in lines),
            **head_node.rank_files(),
            **head_node.head_files(job, nodes, facts, master, gate_here=False, fail_fast=False),
        },
        path=(head_node.program_folder(folder),),
    )


def openmpi_argv(job: Job, program: str, folder: str, ranks: int) -> tuple[str, ...]:
    """Return the command that runs on node 0, up to the program of the ranks."""
    interface = job.options["interface"]
    return (
        *(program, "--allow-run-as-root"),
        *("--hostfile", f"{folder}/hostfile"),
        *("-np", str(ranks)),
        *("--map-by", "slot", "--bind-to", "none"),
        # Our ssh is the first on PATH: the agent's option is split at blanks, which a folder may have. Its daemons stay
        # in the foreground, where their gates see them end.
        *("--mca", "plm_rsh_agent", "ssh"),
        *("--mca", "plm_rsh_no_tree_spawn", "1"),
        *("--mca", "orte_leave_session_attached", "1"),
        *(("--mca", "btl_tcp_if_include", interface, "--mca", "oob_tcp_if_include", interface) if interface else ()),
        # Names only: no value is on a command line. The gates give every node the same and what is its own.
        *(word for name in sorted({*job.env, *job.secrets}) for word in ("-x", name)),
    )


def mpich_argv(job: Job, program: str, folder: str, master: str, ranks: int) -> tuple[str, ...]:
    """Return the command that runs on node 0, up to the program of the ranks."""
    interface = job.options["interface"]
    return (
        program,
        *("-launcher", "ssh", "-launcher-exec", f"{folder}/bin/ssh"),
        # Without it, a host whose own name does not resolve hangs.
        *(("-iface", interface) if interface else ("-localhost", master)),
        *("-f", f"{folder}/hostfile"),
        *("-n", str(ranks)),
        # Nothing travels: -genv shows its values in ps, and -genvlist loses the first of several names on the way to
        # other nodes (4.0.2). The gates give every node its environment.
        "-genvnone",
    )


def _interface_environment(job: Job) -> dict[str, str]:
    interface = job.options["interface"]
    names = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")
    return {name: interface for name in names if name not in job.env} if interface else {}


def _notes(facts: Sequence[Facts], program: str) -> dict[str, str]:
    notes = head_node.versions(facts, program, "torch")
    if facts[0].is_root and program in OPENMPI.names:
        notes["root"] = "Open MPI advises against it and is told --allow-run-as-root; an ordinary user is safer"
    return notes
