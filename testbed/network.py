"""The network of a netns cluster: one bridge, and for every node a namespace and a veth pair to the bridge."""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Collection, Sequence

from testbed.layout import Layout, NodeLayout, RehearsalError

UNUSED_PORT = 9


def ip(*args: str, batch: Sequence[str] = ()) -> str:
    """Run ip(8), with `batch` lines on its stdin if there are any; raise with its stderr on failure."""
    done = _run(*args, batch=batch)
    if done.returncode:
        raise RehearsalError(f"{' '.join(done.args)}: {done.stderr.strip()}")
    return done.stdout


def _run(*args: str, batch: Sequence[str] = ()) -> subprocess.CompletedProcess[str]:
    argv = ["ip", *args, *(["-batch", "-"] if batch else [])]
    return subprocess.run(argv, input="\n".join(batch), capture_output=True, text=True, check=False)


def build(layout: Layout) -> None:
    """Create bridge, namespaces and veth pairs, and assign every node its address."""
    ip(batch=build_lines(layout))
    for node in layout.nodes:
        ip("-n", node.namespace, batch=node_lines(node))


def build_lines(layout: Layout) -> list[str]:
    """Return the lines for ip -batch that configure the machine's side."""
    lines = [f"link add {layout.bridge} type bridge", f"addr add {layout.gateway}/24 dev {layout.bridge}"]
    for node in layout.nodes:
        lines += [
            f"netns add {node.namespace}",
            f"link add {node.cable} type veth peer name eth0 netns {node.namespace}",
            f"link set {node.cable} master {layout.bridge} up",
        ]
    return [*lines, f"link set {layout.bridge} up"]


def node_lines(node: NodeLayout) -> list[str]:
    """Return the lines for ip -batch that configure one node's side."""
    return [f"addr add {node.address}/24 dev eth0", "link set eth0 up", "link set lo up"]


def remove(layout: Layout, within_s: float = 5.0) -> None:
    """Remove what `build` created, as far as it exists; raise if some of it remains for `within_s`."""
    deadline = time.monotonic() + within_s
    while lines := remove_lines(layout, namespaces(), links()):
        # The kernel removes a veth pair by itself, some time after the last process of a namespace has ended. So a line
        # may fail because its work is done.
        stderr = _run("-force", batch=lines).stderr.strip()
        if time.monotonic() > deadline and remove_lines(layout, namespaces(), links()):
            raise RehearsalError(f"the network of {layout.bridge} cannot be removed: {stderr}")
        time.sleep(0.02)


def remove_lines(layout: Layout, existing: Collection[str], cables: Collection[str]) -> list[str]:
    """Return the lines for ip -batch that remove a cluster's namespaces and links, of the `existing` ones."""
    # A connection that was cut keeps its namespace, and the veth pair, for minutes after both have lost their names.
    lines = [f"link del {node.cable}" for node in layout.nodes if node.cable in cables]
    lines += [f"netns del {node.namespace}" for node in layout.nodes if node.namespace in existing]
    return [*lines, *([f"link del {layout.bridge}"] if layout.bridge in cables else [])]


def namespaces() -> set[str]:
    """Return the names of the machine's network namespaces."""
    return {line.split()[0] for line in ip("netns", "list").splitlines() if line.strip()}


def links() -> set[str]:
    """Return the names of the machine's network links."""
    return {line.split(":")[1].split("@")[0].strip() for line in ip("-o", "link").splitlines()}


def routes() -> str:
    """Return the machine's IPv4 routes as text, to see which subnets are taken."""
    return ip("-4", "route", "show", "table", "all")


def pids(layout: Layout) -> list[int]:
    """Return the pids of all processes inside the nodes' namespaces."""
    existing = namespaces()
    names = [node.namespace for node in layout.nodes if node.namespace in existing]
    return [int(pid) for name in names for pid in ip("netns", "pids", name).split()]


def await_reachable(node: NodeLayout, within_s: float = 10.0) -> None:
    """Wait until packets to a node arrive, whatever listens there; raise after `within_s` seconds.

    The kernel answers "no route to host" by itself as long as it waits for an answer to an ARP request that was lost
    when the link was down. Without an entry in its table it asks again at once.
    """
    _run("neigh", "del", node.address, "dev", node.cluster.bridge)
    deadline = time.monotonic() + within_s
    while True:
        try:
            socket.create_connection((node.address, UNUSED_PORT), timeout=1).close()
            return
        except ConnectionRefusedError:  # an answer of the node
            return
        except OSError as error:
            if time.monotonic() > deadline:
                raise RehearsalError(f"{node.name} cannot be reached: {error}") from None
            time.sleep(0.02)


def cable(node: NodeLayout, state: str) -> None:
    """Set the node's own link `up` or `down`."""
    ip("-n", node.namespace, "link", "set", "eth0", state)
