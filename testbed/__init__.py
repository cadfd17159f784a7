"""A rehearsal cluster: real SSH hosts on this one machine, to try a launch and to test one.

    with Cluster.up(nodes=2, kind="netns") as cluster:
        subprocess.run(["ssh", "-F", cluster.ssh_config, "node1", "hostname"])

Two kinds. `netns` (root only): every node is a network namespace with its own address on port 22, host name,
/etc/hosts, /etc/passwd and home. `loopback` (any user): every node is a separate sshd on 127.77.K.I. In both kinds the
nodes share processes, and the file system outside the homes, with this machine. Linux only.
"""

from testbed.cluster import Cluster, Node
from testbed.layout import KINDS, Kind, RehearsalError, as_kind

__all__ = ["KINDS", "Cluster", "Kind", "Node", "RehearsalError", "as_kind"]
