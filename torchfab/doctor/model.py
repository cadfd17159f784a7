"""The values of doctor: what to check, the report of each node, and the report on all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field, replace
from types import MappingProxyType
from typing import Any

from torchfab.core.clock import Clock
from torchfab.core.errors import TorchfabError
from torchfab.core.lazy_dataclass import dataclass
from torchfab.core.specs import Node
from torchfab.doctor.finding import ERROR, Finding
from torchfab.transport.messages.doctor import ConnectivityAnswer, ProbeAnswer


def _nothing() -> Mapping[str, Any]:
    return MappingProxyType({})


@dataclass(frozen=True)
class CheckRequirements:
    """The requirements of a job that the nodes are checked against.

    Parameters
    ----------
    workdir, python, node_dir : str
        As in Job.
    master_addr : str
        The address of node 0 for the other nodes. Empty: that of the hosts file.
    port : int
        The port of the rendezvous. 0: any free one.
    env : Mapping of str to str
        The environment that a launch from here would set on the nodes.
    names : tuple of str, optional
        The files to compare, relative to the workdir. None: each node searches for them.
    digest : str
        The digest of these files on the launch machine. Empty if it does not have the directory.
    lists : Mapping of str to str
        Digests of the project's package lists on the launch machine, by name.
    setup, setup_timeout_s, python_is_default
        As in Job.
    """

    workdir: str
    python: str
    node_dir: str
    master_addr: str = ""
    port: int = 0
    env: Mapping[str, str] = field(default_factory=_nothing)
    names: tuple[str, ...] | None = None
    digest: str = ""
    lists: Mapping[str, str] = field(default_factory=_nothing)
    setup: str = ""
    setup_timeout_s: float = 0.0
    python_is_default: bool = False

    def on(self, node: Node) -> CheckRequirements:
        """Return the requirements with the interpreter, the directories and the variables of a node.

        Parameters
        ----------
        node : Node
            The node.

        Returns
        -------
        CheckRequirements
        """
        return replace(
            self,
            workdir=node.workdir or self.workdir,
            python=node.python or self.python,
            node_dir=node.node_dir or self.node_dir,
            env={**self.env, **dict(node.env)},
            setup=node.setup or self.setup,
            python_is_default=self.python_is_default and not node.python,
        )


@dataclass(frozen=True)
class NodeReport:
    """The report of one node.

    Parameters
    ----------
    node : Node
        The node.
    probe : ProbeAnswer, optional
        The answer of `torchfab.remote.host.probe`; None if it is missing.
    connectivity : ConnectivityAnswer, optional
        The answer of `torchfab.remote.host.connectivity`; None if it is missing.
    clock : Clock, optional
        The offset of its clock. None if unknown.
    error : TorchfabError, optional
        Why an answer is missing.
    connect_s : float, optional
        Seconds until the connection was open. None if it failed.
    """

    node: Node
    probe: ProbeAnswer | None = None
    connectivity: ConnectivityAnswer | None = None
    clock: Clock | None = None
    error: TorchfabError | None = None
    connect_s: float | None = None

    @property
    def host(self) -> str:
        """The node's label, as in the hosts file."""
        return self.node.label

    @property
    def parts(self) -> ProbeAnswer:
        """The parts of the probe; all None if it is missing."""
        return self.probe or _NO_PROBE


_NO_PROBE = ProbeAnswer()


@dataclass(frozen=True)
class Report:
    """The report on all nodes.

    Parameters
    ----------
    nodes : tuple of NodeReport
        In the order of their ranks.
    findings : tuple of Finding
        The worst first.
    seconds : float
        The duration of the checks.
    """

    nodes: tuple[NodeReport, ...]
    findings: tuple[Finding, ...]
    seconds: float

    def errors(self) -> tuple[Finding, ...]:
        """Return the findings of severity ERROR.

        Returns
        -------
        tuple of Finding
            What prevents a job from running correctly.
        """
        return tuple(finding for finding in self.findings if finding.severity == ERROR)

    def is_healthy(self, host: str) -> bool:
        """Test whether a host is free of errors.

        Parameters
        ----------
        host : str
            The host's label.

        Returns
        -------
        bool
            Warnings do not count.
        """
        return not any(host in finding.hosts for finding in self.errors())
