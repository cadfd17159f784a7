"""Names and paths of one rehearsal cluster. Pure: nothing here touches the machine.

A cluster has one number K, claimed by creating the folder /tmp/tfab-K. All names follow from K: subnet
10.77.K.0/24, bridge tfabK, namespaces tfabKn1…, loopback addresses 127.77.K.1…. So clusters never collide.

    /tmp/tfab-K/            short, because a unix socket's path must stay under 108 bytes
      cluster.json          the layout and its owner, for `load` and `clean`
      id, id.pub            the key that logs in
      known_hosts           the true host keys
      etc/                  the nodes' own hosts, shadow, group (netns)
      node1/                node1's disk: home/, tmux/, passwd, host_key, sshd_config, sshd.log, sshd.pid
      launch/               home/ and tmux/ for commands that run on the launch machine as the nodes' user
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from torchfab.core.errors import TorchfabError

Kind = Literal["netns", "loopback"]
KINDS: tuple[Kind, ...] = get_args(Kind)
NUMBERS = range(1, 255)
MAX_NODES = 250  # of the 254 addresses in the subnet; the last one is the launch machine's
TEMPORARY = Path("/tmp")  # not $TMPDIR, which may be long: sockets are below it
MARK = "TORCHFAB_REHEARSAL"  # in the environment of every process of a node, so that `down` finds escaped ones


class RehearsalError(TorchfabError):
    """The rehearsal cluster cannot be built, reached or taken down."""


def as_kind(text: str) -> Kind:
    """Return the kind that a command-line argument names."""
    for kind in KINDS:
        if kind == text:
            return kind
    raise RehearsalError(f"no such kind of cluster: {text!r}", fix=f"use one of {', '.join(KINDS)}")


@dataclass(frozen=True)
class Account:
    """The user that logs in to the nodes.

    Parameters
    ----------
    name, uid, gid, shell
        As in /etc/passwd; the account need not exist on this machine when `private`.
    private : bool
        The nodes see an /etc/passwd of their own, in which this account's home is the node's (needs root).
    switched : bool
        The caller is root and the nodes run as this other user.
    """

    name: str
    uid: int
    gid: int
    shell: str
    private: bool
    switched: bool


@dataclass(frozen=True)
class NodeLayout:
    """One node's names, address and files; `index` counts from 0 as node_rank does: index 0 is `node1`.

    Index -1 is the launch machine: no sshd, no address of its own, but a private home for the nodes' user.
    """

    cluster: Layout
    index: int

    @property
    def remote(self) -> bool:
        """Whether it is a node, not the launch machine."""
        return self.index >= 0

    @property
    def name(self) -> str:
        return f"node{self.index + 1}" if self.remote else "launch"

    @property
    def address(self) -> str:
        network = "10" if self.cluster.kind == "netns" else "127"
        return f"{network}.77.{self.cluster.number}.{self.index + 1}"

    @property
    def port(self) -> int:
        return self.cluster.port

    @property
    def directory(self) -> Path:
        return self.cluster.run_dir / self.name

    @property
    def home(self) -> Path:
        return self.directory / "home"

    @property
    def tmux_dir(self) -> Path:
        return self.directory / "tmux"

    @property
    def namespace(self) -> str:
        return f"{self.cluster.bridge}n{self.index + 1}"

    @property
    def cable(self) -> str:
        """The bridge's end of the node's veth pair; the other end is eth0 in the node."""
        return f"{self.cluster.bridge}v{self.index + 1}"

    @property
    def environment(self) -> dict[str, str]:
        """Variables that sshd sets for every session, in addition to those of login."""
        return {"HOME": str(self.home), "TMUX_TMPDIR": str(self.tmux_dir), MARK: self.cluster.token}


@dataclass(frozen=True)
class Layout:
    """One whole cluster; cluster.json holds the same value."""

    number: int
    kind: Kind
    size: int
    port: int
    token: str
    directory: Path
    account: Account

    @property
    def run_dir(self) -> Path:
        return run_dir(self.number)

    @property
    def bridge(self) -> str:
        return f"tfab{self.number}"

    @property
    def gateway(self) -> str:
        """The launch machine's address in the nodes' network."""
        return f"10.77.{self.number}.254"

    @property
    def nodes(self) -> tuple[NodeLayout, ...]:
        return tuple(NodeLayout(self, index) for index in range(self.size))

    @property
    def launch(self) -> NodeLayout:
        return NodeLayout(self, -1)

    @property
    def machines(self) -> tuple[NodeLayout, ...]:
        """All nodes, and the launch machine."""
        return (*self.nodes, self.launch)

    @property
    def key(self) -> Path:
        return self.run_dir / "id"

    @property
    def known_hosts(self) -> Path:
        return self.run_dir / "known_hosts"

    @property
    def etc(self) -> Path:
        """The folder that is mounted as /etc in every node: a copy of the machine's /etc when the cluster started."""
        return self.run_dir / "etc"

    @property
    def hosts(self) -> Path:
        """The file that is mounted as /etc/hosts in every node of a netns cluster."""
        return self.run_dir / "etc-hosts"

    def to_json(self) -> dict[str, Any]:
        """Return the layout as JSON for cluster.json."""
        return {**vars(self), "directory": str(self.directory), "account": vars(self.account)}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Layout:
        """Return the layout that `to_json` wrote; other keys are ignored."""
        known = {name: data[name] for name in cls.__dataclass_fields__}
        known["directory"] = Path(data["directory"])
        return cls(**{**known, "account": Account(**data["account"])})


def run_dir(number: int) -> Path:
    """Return the folder of the cluster with this number."""
    return TEMPORARY / f"tfab-{number}"
