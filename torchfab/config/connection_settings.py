"""How hosts are reached: what every command that connects is given, and what the record of a job keeps."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ConnectionSettings:
    """How to reach hosts.

    Parameters
    ----------
    ssh_config : str
        Path of an ssh config file (`fab -S`); empty for the user's and the system's own.
    identities : tuple of str
        Private key files (`fab -i`).
    connect_timeout_s : float
        For each step of a connection: TCP, banner, authentication.
    timeout_is_given : bool
        Whether that was said on the command line (`fab -t`); else ConnectTimeout of ssh's configuration comes first.
    fanout : int
        How many hosts are connected to at the same moment.
    agent_python : str
        The interpreter, 3.9 or newer, that runs torchfab's own code on a node.
    prepare_timeout_s, start_timeout_s, answer_timeout_s : float
        For the two phases of a launch, and for any other answer.
    reach_timeout_s : float
        For a connection from a node to node 0, when doctor tries it. One SYN that is lost is sent again after 1 s.
    sync_timeout_s : float
        For listing the files that `fab sync` copies, for reading them all on each side, for a copy that stands still.
    """

    ssh_config: str = ""
    identities: tuple[str, ...] = ()
    connect_timeout_s: float = 10.0
    timeout_is_given: bool = False
    fanout: int = 64
    agent_python: str = "python3"
    prepare_timeout_s: float = 60.0
    start_timeout_s: float = 30.0
    answer_timeout_s: float = 30.0
    reach_timeout_s: float = 3.0
    sync_timeout_s: float = 60.0

    @property
    def ssh_options(self) -> tuple[str, ...]:
        """The same as options of OpenSSH's client."""
        config = ("-F", self.ssh_config) if self.ssh_config else ()
        return (*config, *(word for path in self.identities for word in ("-i", path)))
