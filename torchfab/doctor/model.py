"""What was asked of the nodes, what they told, and what follows from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from torchfab.core.errors import TorchfabError
from torchfab.core.specs import Node
from torchfab.doctor.finding import ERROR, Finding


def _nothing() -> Mapping[str, Any]:
    return MappingProxyType({})


@dataclass(frozen=True)
class CheckRequirements:
    """What a job would need of the nodes.

    Parameters
    ----------
    workdir, python, node_dir : str
        As of a Job.
    master_addr : str
        Address of node 0 for the others; empty for that of the hosts file.
    port : int
        Port of the rendezvous; 0: a free one.
    env : Mapping of str to str
        The environment that a launch from here would carry to the nodes.
    names : tuple of str, optional
        The files whose contents are compared, relative to the workdir; None: the nodes find them.
    digest : str
        That of these files on the launch machine; empty where it has no such directory.
    """

    workdir: str
    python: str
    node_dir: str
    master_addr: str = ""
    port: int = 0
    env: Mapping[str, str] = field(default_factory=_nothing)
    names: tuple[str, ...] | None = None
    digest: str = ""


@dataclass(frozen=True)
class Clock:
    """How far a node's clock is ahead of this machine's, and to how many seconds that is known."""

    ahead_s: float
    within_s: float


@dataclass(frozen=True)
class NodeReport:
    """One node: what it told, or why it did not.

    Parameters
    ----------
    told : Mapping
        The answer of `torchfab.remote.host.probe`; empty where there is none.
    way : Mapping
        The answer of `torchfab.remote.host.connectivity`; empty where there is none.
    error : TorchfabError, optional
        Why something is missing.
    connect_s : float, optional
        How long it took until the node could be asked.
    """

    node: Node
    probe: Mapping[str, Any] = field(default_factory=_nothing)
    connectivity: Mapping[str, Any] = field(default_factory=_nothing)
    clock: Clock | None = None
    error: TorchfabError | None = None
    connect_s: float | None = None

    @property
    def host(self) -> str:
        """The node's name for people."""
        return self.node.label

    def part(self, name: str) -> Any:
        """Return one part of what it told; None where that part failed."""
        part = self.probe.get(name)
        return None if isinstance(part, Mapping) and "failed" in part else part


@dataclass(frozen=True)
class Report:
    """What was found out about some nodes.

    Parameters
    ----------
    nodes : tuple of Seen
        In the order of their ranks.
    findings : tuple of Finding
        What is wrong, worst first.
    seconds : float
        How long it took to find out.
    """

    nodes: tuple[NodeReport, ...]
    findings: tuple[Finding, ...]
    seconds: float

    def errors(self) -> tuple[Finding, ...]:
        """Return what keeps a job from running as it should."""
        return tuple(finding for finding in self.findings if finding.severity == ERROR)

    def is_healthy(self, host: str) -> bool:
        """Say whether no error is about this host."""
        return not any(host in finding.hosts for finding in self.errors())
