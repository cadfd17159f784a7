"""Findings about differences between nodes: versions, GPUs, clocks, code, disks. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from torchfab.core.format import format_offset
from torchfab.core.lazy_dataclass import dataclass
from torchfab.doctor import packages, same_machine
from torchfab.doctor.finding import ERROR, WARNING, Finding, minorities, minority_findings
from torchfab.doctor.model import CheckRequirements, NodeReport
from torchfab.transport.messages.launch import PackagesMark

# torchrun's rendezvous counts a node as dead when its last heartbeat is 15 s old by another node's clock.
BROKEN_CLOCK_S = 10.0
SKEWED_CLOCK_S = 0.5


def findings(nodes: Sequence[NodeReport], requirements: CheckRequirements) -> Iterator[Finding]:
    """Yield the differences between nodes.

    Parameters
    ----------
    nodes : sequence of NodeReport
        All nodes, node 0 first.
    requirements : CheckRequirements
        What the job needs.

    Yields
    ------
    Finding
        About the nodes that differ from most.
    """
    for each in CONSISTENCY_CHECKS:
        values = {node.host: value for node in nodes if (value := each.value(node)) is not None}
        yield from minority_findings(each.kind, each.severity, values, each.what, each.fix)
    yield from clock_findings(nodes)
    yield from _code(nodes, requirements)
    yield from packages.findings(_package_marks(nodes), requirements.lists)
    yield from _shared(nodes)
    yield from _same_machine(nodes)


def _package_marks(nodes: Sequence[NodeReport]) -> dict[str, PackagesMark | None]:
    probes = {node.host: node.parts.python for node in nodes}
    return {host: probe.packages for host, probe in probes.items() if probe is not None and not probe.problem}


def _same_machine(nodes: Sequence[NodeReport]) -> Iterator[Finding]:
    identities = {each.node.rank: each.parts.machine.identity for each in nodes if each.parts.machine}
    for group in same_machine.groups([each.node for each in nodes], identities):
        hosts = tuple(node.label for node in group)
        yield Finding("same-machine", ERROR, hosts, same_machine.problem(group), fix=same_machine.FIX)


# ---- values that must be equal on all nodes


@dataclass(frozen=True)
class ConsistencyCheck:
    """A value that should be equal on all nodes.

    Parameters
    ----------
    kind, severity, what, fix : str
        The finding about nodes that differ, as in Finding.
    value : callable
        Returns a node's value as text. None if it is unknown or another finding covers it.
    """

    kind: str
    severity: str
    value: Callable[[NodeReport], str | None]
    what: str
    fix: str


def python(node: NodeReport) -> str | None:
    """Return the version of the training interpreter.

    Parameters
    ----------
    node : NodeReport
        The node.

    Returns
    -------
    str or None
        None if unknown.
    """
    return _python_value(node, "python")


def torch(node: NodeReport) -> str | None:
    """Return the version of torch.

    Parameters
    ----------
    node : NodeReport
        The node.

    Returns
    -------
    str or None
        None if unknown or not installed.
    """
    return _python_value(node, "torch") or None


def cuda(node: NodeReport) -> str | None:
    """Return the version of CUDA that torch was built with.

    Parameters
    ----------
    node : NodeReport
        The node.

    Returns
    -------
    str or None
        None if unknown or without torch.
    """
    return _python_value(node, "cuda") if torch(node) else None


def nccl(node: NodeReport) -> str | None:
    """Return the version of the NCCL that torch contains.

    Parameters
    ----------
    node : NodeReport
        The node.

    Returns
    -------
    str or None
        None if unknown or without torch.
    """
    return _python_value(node, "nccl") if torch(node) else None


def _python_value(node: NodeReport, name: str) -> str | None:
    probe = node.parts.python
    return None if probe is None or probe.problem else str(getattr(probe, name))


def driver(node: NodeReport) -> str | None:
    """Return the version of the NVIDIA driver.

    Parameters
    ----------
    node : NodeReport
        The node.

    Returns
    -------
    str or None
        None if unknown or without GPUs.
    """
    return node.parts.gpus.driver or None if node.parts.gpus else None


def gpus(node: NodeReport) -> str | None:
    """Return the number and model of the GPUs: `8 NVIDIA H100 80GB HBM3`.

    Parameters
    ----------
    node : NodeReport
        The node.

    Returns
    -------
    str or None
        None if unknown.
    """
    probe = node.parts.gpus
    if probe is None or probe.problem:
        return None
    names = [each.name + (" (MIG)" if each.mig else "") for each in probe.gpus]
    return ", ".join(f"{names.count(name)} {name}" for name in dict.fromkeys(names)) or "none"


def tmux(node: NodeReport) -> str | None:
    """Return the version of tmux.

    Parameters
    ----------
    node : NodeReport
        The node.

    Returns
    -------
    str or None
        None if unknown or not installed.
    """
    return node.parts.tmux.version or None if node.parts.tmux else None


def open_files(node: NodeReport) -> str | None:
    """Return the limit of open files (`ulimit -n`).

    Parameters
    ----------
    node : NodeReport
        The node.

    Returns
    -------
    str or None
        A number or `unlimited`. None if unknown.
    """
    limits = node.parts.limits
    return None if limits is None else str(limits.files if limits.files is not None else "unlimited")


_INSTALL = "install the same version everywhere, or give an interpreter with equal versions with --python"
CONSISTENCY_CHECKS = (
    ConsistencyCheck("python-differs", WARNING, python, "the version of python differs from the other nodes", _INSTALL),
    ConsistencyCheck("torch-differs", ERROR, torch, "the version of torch differs from the other nodes", _INSTALL),
    ConsistencyCheck("cuda-differs", ERROR, cuda, "the CUDA version of torch differs from the other nodes", _INSTALL),
    ConsistencyCheck("nccl-differs", ERROR, nccl, "the version of NCCL differs from the other nodes", _INSTALL),
    ConsistencyCheck(
        "driver-differs",
        WARNING,
        driver,
        "the version of the driver differs from the other nodes",
        "install the same driver",
    ),
    ConsistencyCheck(
        *("gpus-differ", ERROR, gpus, "the GPUs differ from the other nodes"),
        "see nvidia-smi -L and dmesg there; if intended: exclude the node, or use launch-per-gpu with a gpus file",
    ),
)


# ---- clocks


def clock_findings(nodes: Sequence[NodeReport], most_s: float = SKEWED_CLOCK_S) -> Iterator[Finding]:
    """Yield the nodes whose clock differs too much from the median of all clocks, including that of this machine.

    Parameters
    ----------
    nodes : sequence of NodeReport
        All nodes.
    most_s : float
        The largest offset that is accepted, in seconds. Default 0.5.

    Yields
    ------
    Finding
        About one node each. The uncertainty of the offset is subtracted from it.
    """
    known = {node.host: node.clock for node in nodes if node.clock is not None}
    aheads = sorted([0.0, *(clock.ahead_s for clock in known.values())])
    median = aheads[(len(aheads) - 1) // 2]
    for host, clock in known.items():
        off = clock.ahead_s - median
        if abs(off) - clock.within_s <= most_s:
            continue
        broken = abs(off) > BROKEN_CLOCK_S
        what = "its clock is off" + (": torchrun's rendezvous treats the node as dead" if broken else "")
        yield Finding(
            *("clock-skew", ERROR if broken else WARNING, (host,), what, f"within {most_s * 1000:.0f} ms"),
            f"{format_offset(off)} (± {clock.within_s * 1000:.1f} ms)",
            "synchronize it with a time server: timedatectl set-ntp true, or chronyc makestep",
        )


# ---- code


def code_digest(node: NodeReport) -> str | None:
    """Return the digest of the code in the working directory.

    Parameters
    ----------
    node : NodeReport
        The node.

    Returns
    -------
    str or None
        None if unknown or incomplete.
    """
    probe = node.parts.code
    return probe.digest or None if probe and probe.whole else None


def ranks_to_list_files(nodes: Sequence[NodeReport]) -> set[int]:
    """Select one node per code version, to compare them file by file.

    Parameters
    ----------
    nodes : sequence of NodeReport
        All nodes.

    Returns
    -------
    set of int
        Node ranks. Empty if all nodes have the same code.
    """
    ranks: dict[str, int] = {}
    for node in sorted(nodes, key=lambda node: node.node.rank):
        if (digest := code_digest(node)) is not None:
            ranks.setdefault(digest, node.node.rank)
    return set(ranks.values()) if len(ranks) > 1 else set()


def _code(nodes: Sequence[NodeReport], requirements: CheckRequirements) -> Iterator[Finding]:
    values = {node.host: digest for node in nodes if (digest := code_digest(node)) is not None}
    usual, others = minorities(values)
    files = {
        code_digest(node): node.connectivity.files
        for node in nodes
        if node.connectivity and node.connectivity.files is not None
    }
    for digest, hosts in others.items():
        names = _describe_files(files.get(usual, {}), files.get(digest, {}))
        what = f"the code in {requirements.workdir} differs from the other nodes" + (f": {names}" if names else "")
        yield Finding("code-differs", ERROR, tuple(hosts), what, usual, digest, "copy it to all nodes: fab sync")
    if requirements.digest and usual and usual != requirements.digest:
        hosts = [host for host, digest in values.items() if digest == usual]
        what = f"the code in {requirements.workdir} differs from this machine"
        yield Finding(
            *("code-not-ours", WARNING, tuple(hosts), what, requirements.digest, usual),
            "copy it to the nodes, if it is meant to be equal: fab sync",
        )


def _describe_files(usual: Mapping[str, str], found: Mapping[str, str]) -> str:
    differing = sorted(name for name in {*usual, *found} if usual.get(name, "") != found.get(name, ""))
    parts = [f"{name} is missing" if not found.get(name) else name for name in differing[:3]]
    return ", ".join(parts) + (f" and {len(differing) - 3} more files" if len(differing) > 3 else "")


# ---- shared disks


def sees_file_of_node_0(node: NodeReport, place: str) -> bool | None:
    """Test whether a node sees the file that node 0 has made in a directory.

    Parameters
    ----------
    node : NodeReport
        The node.
    place : str
        The key of the directory: `workdir`.

    Returns
    -------
    bool or None
        None if unknown.
    """
    return node.connectivity.sees.get(place) if node.connectivity else None


def _shared(nodes: Sequence[NodeReport]) -> Iterator[Finding]:
    texts = {True: "shared with node 0", False: "its own"}
    values = {
        node.host: texts[answer] for node in nodes[1:] if (answer := sees_file_of_node_0(node, "workdir")) is not None
    }
    yield from minority_findings(
        *("workdir-not-shared", WARNING, values, "the disk of the working directory differs from the other nodes"),
        "check whether the file system is mounted there: findmnt -T, mount -a",
    )
