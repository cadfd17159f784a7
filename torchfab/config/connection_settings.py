"""Connection settings, used by every command that connects to hosts and stored in the record of a job."""

from __future__ import annotations

from torchfab.core.lazy_dataclass import dataclass


@dataclass(frozen=True)
class ConnectionSettings:
    """The settings for connections to hosts.

    Parameters
    ----------
    ssh_config : str
        Path of an ssh config file (`fab -S`); empty for the user's and the system's own.
    identities : tuple of str
        Private key files (`fab -i`).
    connect_timeout_s : float
        Time limit for each step of a connection: TCP, banner, authentication. Default 10.
    timeout_is_given : bool
        Whether it was given on the command line (`fab -t`); otherwise ssh's ConnectTimeout takes precedence.
    fanout : int
        Maximum number of hosts that are connected to at once. Default 64.
    agent_python : str
        The interpreter, 3.9 or newer, that runs torchfab's own code on a node. Default `python3`.
    prepare_timeout_s, start_timeout_s, answer_timeout_s : float
        Time limits for the two phases of a launch, and for any other answer. Default 60, 30 and 30.
    reach_timeout_s : float
        Time limit for the connection from a node to node 0 that `fab doctor` tries. Default 3, because a lost SYN is
        sent again after 1 s.
    sync_timeout_s : float
        Time limit of `fab sync` for listing the files to copy, for reading them all on each side, and for a copy that
        makes no progress. Default 60.
    tmux_conf : str
        Configuration file on the nodes that `fab attach` loads into torchfab's tmux server; empty: none.
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
    tmux_conf: str = ""

    @property
    def ssh_options(self) -> tuple[str, ...]:
        """The config file and keys as options of OpenSSH's client: `-F FILE`, `-i KEY`."""
        config = ("-F", self.ssh_config) if self.ssh_config else ()
        return (*config, *(word for path in self.identities for word in ("-i", path)))
