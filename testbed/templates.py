"""Text of a node's files, from a layout. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from testbed.layout import Account, Layout, NodeLayout


def sshd_config(node: NodeLayout, openssh: tuple[int, int]) -> str:
    """Return the sshd_config of one node.

    Parameters
    ----------
    node : NodeLayout
        The node.
    openssh : tuple of int
        The server's version, as (9, 2).

    Returns
    -------
    str
        The whole file.
    """
    variables = " ".join(f"{name}={value}" for name, value in node.environment.items())
    lines = [
        f"ListenAddress {node.address}:{node.port}",
        f"HostKey {node.directory}/host_key",
        f"PidFile {node.directory}/sshd.pid",
        f"AuthorizedKeysFile {node.cluster.key}.pub",
        f"SetEnv {variables}",
        "StrictModes no",  # StrictModes rejects everything under /tmp
        "UsePAM no",
        "PasswordAuthentication no",
        "KbdInteractiveAuthentication no",
        "PermitUserRC no",
        "PrintMotd no",
        "PrintLastLog no",
        "MaxStartups 1000",  # the default drops some of 16 logins at once
        "MaxSessions 1000",  # the default refuses the 11th channel of a connection
        "Subsystem sftp internal-sftp",
    ]
    return "\n".join([*lines, *_version_lines(openssh)]) + "\n"


def _version_lines(openssh: tuple[int, int]) -> list[str]:
    if openssh < (9, 8):  # the default key exchange costs 0.2 s of CPU per login on either side
        return ["KexAlgorithms curve25519-sha256,curve25519-sha256@libssh.org"]
    return ["PerSourcePenalties no"]  # otherwise failing logins ban the launch machine


def ssh_config(layout: Layout) -> str:
    """Return the client's config, with keywords that both OpenSSH and paramiko understand."""
    hosts = "\n".join(f"Host {node.name}\n    HostName {node.address}\n    Port {node.port}" for node in layout.nodes)
    return f"""{hosts}
Host node*
    User {layout.account.name}
    IdentityFile {layout.key}
    IdentitiesOnly yes
    UserKnownHostsFile {layout.known_hosts}
    StrictHostKeyChecking yes
"""


def known_hosts(nodes: Sequence[NodeLayout], keys: Sequence[str]) -> str:
    """Return known_hosts: each node's public key, by name and by address."""
    return "".join(f"{_known_names(node)} {key}\n" for node, key in zip(nodes, keys, strict=True))


def _known_names(node: NodeLayout) -> str:
    names = (node.name, node.address)
    return ",".join(names if node.port == 22 else [f"[{name}]:{node.port}" for name in names])


def hostfile(layout: Layout) -> str:
    """Return the `hosts` file: one node per line."""
    return "".join(_inventory_line(node) for node in layout.nodes)


def gpufile(layout: Layout) -> str:
    """Return a `gpus` file: two processes on every node."""
    return "".join(_inventory_line(node) * 2 for node in layout.nodes)


def _inventory_line(node: NodeLayout) -> str:
    """Return the node's line; on loopback with its address, because /etc/hosts has no names there."""
    return f"{node.name}\n" if node.cluster.kind == "netns" else f"{node.name} address={node.address}\n"


def etc_hosts(layout: Layout) -> str:
    """Return the nodes' /etc/hosts, which names all nodes and the launch machine.

    torch listens on IPv6 and asks for the names of IPv4-mapped addresses. Those names are others, so that the nodes'
    own names lead to IPv4 alone.
    """
    named = "".join(f"{node.address} {node.name}\n" for node in layout.nodes)
    mapped = "".join(f"::ffff:{node.address} {node.name}.test\n" for node in layout.nodes)
    return f"127.0.0.1 localhost\n::1 localhost\n{layout.gateway} launch\n{named}{mapped}"


def passwd(machine: str, account: Account, home: str) -> str:
    """Return a node's /etc/passwd: the machine's, preceded by this account with the node's home."""
    entry = f"{account.name}:x:{account.uid}:{account.gid}::{home}:{account.shell}"
    return _with_entry(machine, account.name, entry)


def group(machine: str, account: Account) -> str:
    """Return the nodes' /etc/group, which names the account's group."""
    known = any(line.split(":")[2:3] == [str(account.gid)] for line in machine.splitlines())
    return machine if known else _with_entry(machine, account.name, f"{account.name}:x:{account.gid}:")


def shadow(account: Account) -> str:
    """Return the nodes' /etc/shadow: no password, but not locked (with a `!`, sshd rejects the key)."""
    return f"{account.name}:*:1::::::\n"


def _with_entry(text: str, name: str, entry: str) -> str:
    others = [line for line in text.splitlines() if not line.startswith(f"{name}:")]
    return "\n".join([entry, *others]) + "\n"


def environment_args(variables: Mapping[str, str]) -> tuple[str, ...]:
    """Return K=V arguments for env(1)."""
    return tuple(f"{name}={value}" for name, value in variables.items())
