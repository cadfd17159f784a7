"""mpirun on node 0, which starts the ranks on all nodes. To change a launch, change `openmpi_argv` or `mpich_argv`.

    mpirun.openmpi --hostfile hosts -np 4 python train_llm.py
    mpiexec.hydra -f hosts -n 4 python train_llm.py

The script need not use MPI: `shims/rank.py` sets the variables of torch.distributed for every rank.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torchfab.core.errors import UsageError
from torchfab.core.flag_values import flag
from torchfab.core.lazy_dataclass import dataclass
from torchfab.core.specs import Facts, Job, Node, Plan, Process, Program, Requirements, Slot
from torchfab.launchers import head_node, nproc
from torchfab.launchers.rank_layout import Layout, Placement, make_plan

NAME = "mpi"
OPENMPI = Program(("mpirun.openmpi", "orterun"), "sudo apt-get install -y openmpi-bin")
MPICH = Program(("mpiexec.hydra",), "sudo apt-get install -y mpich")
EITHER = Program((*OPENMPI.names, *MPICH.names), OPENMPI.install)
PROGRAMS = {"openmpi": OPENMPI, "mpich": MPICH, "auto": EITHER}
# Every node has its own folder: a shell on the node expands the variable, which the relay has set.
RANK_COMMAND = 'exec "$0" -I -S "$TORCHFAB_FOLDER/rank.py" --logs "$@"'


@dataclass(frozen=True)
class Flags:
    """The flags of launch-mpi alone."""

    nproc_per_node: str = flag("auto", nproc.HELP)
    flavour: str = flag("auto", "openmpi, mpich, or auto: the first that all nodes have. [auto]")
    interface: str = flag("", "Network interface between the nodes, as eth0. [what MPI, gloo and NCCL choose]")


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
    if flags.flavour not in PROGRAMS:
        raise UsageError(f"--flavour is auto, openmpi or mpich, got {flags.flavour!r}")
    return {
        "nproc_per_node": nproc.check(flags.nproc_per_node),
        "flavour": flags.flavour,
        "interface": flags.interface,
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
    return Requirements(modules=("torch",), port=True, programs=(PROGRAMS[job.options["flavour"]],))


def facts_from_flags(job: Job, nodes: Sequence[Node]) -> tuple[Facts, ...] | None:
    """Return the facts if the flags determine all of them: ranks per node, port and flavour.

    Parameters
    ----------
    job : Job
        The job.
    nodes : sequence of Node
        The nodes, by rank.

    Returns
    -------
    tuple of Facts or None
        None: the nodes must be queried.
    """
    return None if job.options["flavour"] == "auto" else nproc.facts_from_flags(job, nodes)


def plan(job: Job, nodes: Sequence[Node], slots: Sequence[Slot], facts: Sequence[Facts]) -> Plan:
    """Plan the launch: mpirun on node 0, and on every other node a relay that runs its daemon.

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
    layout = head_node.lay_out(job, nodes, facts)
    program = _program(job, facts)
    processes = [[_head(layout, program)], *([_relay(layout, each)] for each in layout.placements[1:])]
    return make_plan(layout, processes, _notes(facts, program), has_head=True)


def _program(job: Job, facts: Sequence[Facts]) -> str:
    """Return the name of the first program of the flavour that is installed on every node."""
    names = PROGRAMS[job.options["flavour"]].names
    found = [name for name in names if all(name in fact.versions for fact in facts)]
    if found:
        return found[0]
    if not any(fact.versions for fact in facts):  # a dry run that did not connect to any node
        return names[0]
    problem = f"the nodes have no MPI in common: some have {names[0]}, others {names[-1]}"
    raise UsageError(problem, "install the same one on all nodes")


def _environment(layout: Layout, placement: Placement) -> dict[str, str]:
    return {**head_node.node_environment(layout, placement), **_interface_environment(placement.job)}


def _relay(layout: Layout, placement: Placement) -> Process:
    return head_node.relay(placement, _environment(layout, placement), head_node.RANK_LOGS)


def _head(layout: Layout, program: str) -> Process:
    job, folder = layout.job, head_node.head_folder(layout)
    hosts = list(zip(head_node.node_names(layout), layout.counts, strict=True))
    if program in MPICH.names:
        argv = mpich_argv(layout, program)
        lines = [f"{name}:{count}" for name, count in hosts]
    else:
        argv = openmpi_argv(layout, program)
        lines = [f"{name} slots={count}" for name, count in hosts]
    return Process(
        "head",
        head_node.head_argv(layout, (*argv, "sh", "-c", RANK_COMMAND, job.python, *job.argv)),
        {**_environment(layout, layout.placements[0]), head_node.FOLDER: folder},
        rank_logs=head_node.RANK_LOGS,
        folders=("logs", "errors"),
        files={
            "hostfile": "".join(f"{line}\n" for line in lines),
            **head_node.rank_files(),
            **head_node.head_files(layout, relay_here=False, fail_fast=False),
        },
        path=(head_node.program_folder(folder),),
    )


def openmpi_argv(layout: Layout, program: str) -> tuple[str, ...]:
    """Return the command that runs on node 0, up to the program of the ranks.

    Parameters
    ----------
    layout : Layout
        Where the ranks run.
    program : str
        Name of Open MPI's mpirun.

    Returns
    -------
    tuple of str
    """
    job, interface = layout.job, layout.job.options["interface"]
    own = {name for node in layout.nodes for name, _ in node.env}  # with -x, the values of node 0 would go to all nodes
    return (
        *(program, "--allow-run-as-root"),
        *("--hostfile", f"{head_node.head_folder(layout)}/hostfile"),
        *("-np", str(layout.world_size)),
        *("--map-by", "slot", "--bind-to", "none"),
        # rsh.py is the first ssh on PATH; its path is not given here because Open MPI splits the option at blanks. The
        # daemons stay in the foreground, so that the relays notice their end.
        *("--mca", "plm_rsh_agent", "ssh"),
        *("--mca", "plm_rsh_no_tree_spawn", "1"),
        *("--mca", "orte_leave_session_attached", "1"),
        *(("--mca", "btl_tcp_if_include", interface, "--mca", "oob_tcp_if_include", interface) if interface else ()),
        # Names only, so that no value is on a command line. The relays set the values on every node.
        *(arg for name in sorted({*job.env, *job.secrets} - own) for arg in ("-x", name)),
    )


def mpich_argv(layout: Layout, program: str) -> tuple[str, ...]:
    """Return the command that runs on node 0, up to the program of the ranks.

    Parameters
    ----------
    layout : Layout
        Where the ranks run.
    program : str
        Name of MPICH's mpiexec.

    Returns
    -------
    tuple of str
    """
    folder, interface = head_node.head_folder(layout), layout.job.options["interface"]
    return (
        program,
        *("-launcher", "ssh", "-launcher-exec", f"{folder}/bin/ssh"),
        # Without it, mpiexec hangs on a host whose own name does not resolve.
        *(("-iface", interface) if interface else ("-localhost", layout.master)),
        *("-f", f"{folder}/hostfile"),
        *("-n", str(layout.world_size)),
        # Pass no variables: -genv shows its values in ps, and -genvlist drops the first of several names on other nodes
        # (4.0.2). The relays set the environment on every node.
        "-genvnone",
    )


def _interface_environment(job: Job) -> dict[str, str]:
    interface = job.options["interface"]
    names = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")
    return {name: interface for name in names if name not in job.env} if interface else {}


def _notes(facts: Sequence[Facts], program: str) -> dict[str, str]:
    notes = head_node.versions(facts, program, "torch")
    if facts[0].is_root and program in OPENMPI.names:
        notes["root"] = "Open MPI advises against it; torchfab passes --allow-run-as-root; an ordinary user is safer"
    return notes
