"""Start, use, break, repair and remove a rehearsal cluster."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

from testbed import allocation, files, namespaces, network, processes
from testbed.layout import MAX_NODES, NUMBERS, Kind, Layout, NodeLayout, RehearsalError, as_kind, run_dir
from testbed.processes import Process
from testbed.sshd import Server


class Node:
    """One host of the cluster, for tests that inspect or break it.

    Attributes
    ----------
    index : int
        From 0, as node_rank.
    name, address, port, home, tmux_dir
        Address and port of its sshd, home and tmux folder of its user.
    """

    def __init__(self, layout: NodeLayout) -> None:
        self.layout = layout
        self.index, self.name, self.address, self.port = layout.index, layout.name, layout.address, layout.port
        self.home, self.tmux_dir = layout.home, layout.tmux_dir

    @property
    def sshd_pid(self) -> int | None:
        """The pid of the node's sshd; None while it is down."""
        process = Server(self.layout).process()
        return process.pid if process else None

    def command(self, *argv: str) -> tuple[str, ...]:
        """Return the argv that runs `argv` inside the node without SSH, with a session's HOME and tmux folder."""
        return (*namespaces.session(self.layout), *argv)


class Cluster:
    """A running rehearsal cluster; start one with `up`, find it again with `load`."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self._servers = [Server(node) for node in layout.nodes]

    @classmethod
    def up(
        cls,
        nodes: int = 2,
        kind: Kind = "netns",
        directory: Path | None = None,
        user: str | None = None,
        keep: bool = False,
    ) -> Cluster:
        """Start a cluster.

        Parameters
        ----------
        nodes : int
            Number of nodes, 1 to 250; default 2.
        kind : {"netns", "loopback"}
            Network namespaces (root only), or addresses of the loopback interface (any user).
        directory : Path, optional
            Where ssh_config, hosts and gpus are written; default a new folder that is removed with the cluster.
        user : str, optional
            As root: run the loopback nodes as this ordinary user, which need not exist. Default: the caller.
        keep : bool
            Keep it when this process ends; otherwise the next `clean` removes it as a leftover. Default False.

        Returns
        -------
        Cluster
            Every node accepts logins.

        Raises
        ------
        RehearsalError
            A program or a permission is missing, a number is wrong, or an sshd did not start. Nothing is left then.
        """
        _check(nodes, kind, directory)
        layout = allocation.claim(nodes, kind, directory, user)
        cluster = cls(layout)
        try:
            cluster._record(None if keep else Process.of(os.getpid()))
            cluster._start()
        except BaseException:
            cluster.down()
            raise
        return cluster

    def _record(self, owner: Process | None) -> None:
        record = {**self.layout.to_json(), "owner": vars(owner) if owner else None, "pid_namespace": _pid_namespace()}
        (self.layout.run_dir / "cluster.json").write_text(json.dumps(record, indent=1))
        if self.layout.directory != self.layout.run_dir / "launch":
            self.layout.directory.mkdir(parents=True, exist_ok=True)
            (self.layout.directory / "run").symlink_to(self.layout.run_dir)

    def _start(self) -> None:
        files.write_all(self.layout)
        if self.layout.kind == "netns":
            network.build(self.layout)
        for server in self._servers:
            server.start()
        for server in self._servers:
            server.wait()

    @classmethod
    def load(cls, directory: Path) -> Cluster | None:
        """Return the cluster whose launch files are in `directory`; None if there is none."""
        try:
            return cls(Layout.from_json(json.loads((directory / "run" / "cluster.json").read_text())))
        except FileNotFoundError:
            (directory / "run").unlink(missing_ok=True)  # a dangling link: the machine was restarted
            return None

    @classmethod
    def clean(cls) -> list[Cluster]:
        """Remove the caller's clusters whose owner died without removing them (a killed test session); return them."""
        left = [cluster for number in NUMBERS if (cluster := _orphan(number))]
        for cluster in left:
            cluster.down()
        return left

    @property
    def hosts(self) -> tuple[str, ...]:
        """The nodes' names, in the order of their node_rank."""
        return tuple(node.name for node in self.layout.nodes)

    @property
    def summary(self) -> str:
        """Kind, nodes, account and folder, in one line."""
        first, last = self.layout.nodes[0], self.layout.nodes[-1]
        names = first.name if first == last else f"{first.name} to {last.name}"
        where = f"{self.layout.account.name}@{first.address}:{first.port}"
        return f"{self.layout.kind} cluster {names} (the first is {where}), homes under {self.layout.run_dir}"

    @property
    def directory(self) -> Path:
        """Folder of the launch files."""
        return self.layout.directory

    @property
    def ssh_config(self) -> Path:
        """For `ssh -F` and `fab -S`."""
        return self.directory / "ssh_config"

    @property
    def hostfile(self) -> Path:
        """The hosts file: one node per line."""
        return self.directory / "hosts"

    @property
    def gpufile(self) -> Path:
        """The gpus file: every node twice."""
        return self.directory / "gpus"

    @property
    def known_hosts(self) -> Path:
        """The known_hosts file with the true host keys; the ssh config names it."""
        return self.layout.known_hosts

    @property
    def key(self) -> Path:
        """The private key that logs in; the ssh config names it."""
        return self.layout.key

    def node(self, index: int) -> Node:
        """Return one node, counted from 0."""
        return Node(self.layout.nodes[index])

    def on_launch_machine(self, *argv: str) -> tuple[str, ...]:
        """Return the argv that runs `argv` on this machine as the nodes' user, with a private home and tmux folder."""
        return (*namespaces.session(self.layout.launch), *argv)

    def checkout(self) -> Path:
        """Copy the project's sources to where the nodes' user may write, once; return the folder of the copy."""
        copy = self.layout.run_dir / "checkout"
        return copy if copy.exists() else files.copy_project(self.layout)

    def partition(self, index: int) -> None:
        """Disconnect the node: its packets are lost, its processes continue."""
        network.cable(self._node_with_link(index), "down")

    def heal(self, index: int) -> None:
        """Undo `partition`, and wait until this machine reaches the node."""
        node = self._node_with_link(index)
        network.cable(node, "up")
        network.await_reachable(node)

    def _node_with_link(self, index: int) -> NodeLayout:
        if self.layout.kind != "netns":
            raise RehearsalError("a loopback node has no link to cut", fix="use kind netns")
        return self.layout.nodes[index]

    def kill_sshd(self, index: int) -> None:
        """Kill the node's sshd and its connections; processes on the node continue, logins fail."""
        self._servers[index].kill()

    def start_sshd(self, index: int) -> None:
        """Start the node's sshd again, on the same address with the same key."""
        self._servers[index].start()
        self._servers[index].wait()

    def processes(self) -> set[Process]:
        """Return every living process of the cluster: sshd, sessions, and their descendants."""
        found = processes.marked(self.layout.token)
        found |= processes.descendants({process for server in self._servers if (process := server.process())})
        if self.layout.kind == "netns":
            found |= processes.living(network.pids(self.layout))
        return found

    def down(self) -> None:
        """End every process of the cluster, then remove its network and files; repeating it is harmless."""
        with self._locked() as exists:
            if exists:
                self._end_processes()
                if self.layout.kind == "netns":
                    network.remove(self.layout)
                files.remove_all(self.layout)
        for server in self._servers:
            server.reap()

    @contextlib.contextmanager
    def _locked(self) -> Iterator[bool]:
        """Lock the cluster, so that one process at a time removes it; yield whether it still exists."""
        try:
            folder = os.open(self.layout.run_dir, os.O_RDONLY)
        except FileNotFoundError:
            yield False
            return
        try:
            fcntl.flock(folder, fcntl.LOCK_EX)
            # A folder that another process has removed has no link left; its number may have been claimed again since.
            yield os.fstat(folder).st_nlink > 0 and self._is_mine()
        finally:
            os.close(folder)

    def _is_mine(self) -> bool:
        record = self.layout.run_dir / "cluster.json"
        return not record.exists() or Layout.from_json(json.loads(record.read_text())).token == self.layout.token

    def _end_processes(self) -> None:
        seen: set[Process] = set()  # a connection's sshd is orphaned once the listener has gone

        def left() -> set[Process]:
            seen.update(self.processes())
            return {process for process in seen if process.alive()}

        processes.end(left)

    def __enter__(self) -> Cluster:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.down()


def _check(nodes: int, kind: Kind, directory: Path | None) -> None:
    as_kind(kind)
    if not 1 <= nodes <= MAX_NODES:
        raise RehearsalError(f"a cluster has 1 to {MAX_NODES} nodes, not {nodes}")
    if directory and (existing := Cluster.load(directory)):
        message = f"{directory} already has a cluster of {existing.layout.size} nodes"
        raise RehearsalError(message, fix="take it down first: inv cluster --down")


def _orphan(number: int) -> Cluster | None:
    try:
        record = json.loads((run_dir(number) / "cluster.json").read_text())
        mine = run_dir(number).stat().st_uid == os.geteuid()
    except (OSError, json.JSONDecodeError):
        return None
    owner = record["owner"]
    mine = (
        mine and record.get("pid_namespace") == _pid_namespace()
    )  # in another pid namespace a living owner is not visible
    return Cluster(Layout.from_json(record)) if mine and owner and not Process(**owner).alive() else None


def _pid_namespace() -> str:
    return os.readlink("/proc/self/ns/pid")
