"""A rehearsal cluster's life: up, use, break, mend, down."""

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
    """One host of the cluster, for tests that look inside or break it.

    Attributes
    ----------
    index : int
        From 0, as node_rank.
    name, address, port, home, tmux_dir
        How to reach it, and where its user lives.
    """

    def __init__(self, place: NodeLayout) -> None:
        self.place = place
        self.index, self.name, self.address, self.port = place.index, place.name, place.address, place.port
        self.home, self.tmux_dir = place.home, place.tmux_dir

    @property
    def sshd_pid(self) -> int | None:
        """The pid of the node's sshd; None while it is down."""
        process = Server(self.place).process()
        return process.pid if process else None

    def command(self, *argv: str) -> tuple[str, ...]:
        """Give the argv that runs `argv` inside the node without SSH, with a session's HOME and tmux folder."""
        return (*namespaces.session(self.place), *argv)


class Cluster:
    """A running rehearsal cluster; make one with `up`, find one again with `load`."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self._servers = [Server(place) for place in layout.nodes]

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
            How many, 1 to 250; default 2.
        kind : {"netns", "loopback"}
            Network namespaces (root only), or addresses of the loopback interface (anybody).
        directory : Path, optional
            Where ssh_config, hosts and gpus are written; default a new folder that goes with the cluster.
        user : str, optional
            As root: run the loopback nodes as this ordinary user, who need not exist. Default: as the caller.
        keep : bool
            Keep it when this process ends; otherwise the next `clean` takes it for a leftover. Default False.

        Returns
        -------
        Cluster
            Every node accepts logins.

        Raises
        ------
        RehearsalError
            A program or a right is missing, a number is wrong, or an sshd did not start; nothing is left then.
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
        record = {**self.layout.to_json(), "owner": vars(owner) if owner else None}
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
        """Find the cluster whose launch files lie in `directory`; None when there is none."""
        try:
            return cls(Layout.from_json(json.loads((directory / "run" / "cluster.json").read_text())))
        except FileNotFoundError:
            (directory / "run").unlink(missing_ok=True)  # it points nowhere: the machine was restarted
            return None

    @classmethod
    def clean(cls) -> list[Cluster]:
        """Take down the caller's clusters whose owner died without doing so (a killed test session); give them."""
        left = [cluster for number in NUMBERS if (cluster := _orphan(number))]
        for cluster in left:
            cluster.down()
        return left

    @property
    def hosts(self) -> tuple[str, ...]:
        """The nodes' names, in the order of their node_rank."""
        return tuple(place.name for place in self.layout.nodes)

    @property
    def summary(self) -> str:
        """What and whose it is, in one line."""
        first, last = self.layout.nodes[0], self.layout.nodes[-1]
        names = first.name if first == last else f"{first.name} to {last.name}"
        where = f"{self.layout.account.name}@{first.address}:{first.port}"
        return f"{self.layout.kind} cluster {names} (the first is {where}), homes under {self.layout.run_dir}"

    @property
    def directory(self) -> Path:
        """Where the launch files lie."""
        return self.layout.directory

    @property
    def ssh_config(self) -> Path:
        """For `ssh -F` and `fab -S`."""
        return self.directory / "ssh_config"

    @property
    def hostfile(self) -> Path:
        """One node a line."""
        return self.directory / "hosts"

    @property
    def gpufile(self) -> Path:
        """Every node twice."""
        return self.directory / "gpus"

    @property
    def known_hosts(self) -> Path:
        """The true host keys; the ssh config names it."""
        return self.layout.known_hosts

    @property
    def key(self) -> Path:
        """The private key that logs in; the ssh config names it."""
        return self.layout.key

    def node(self, index: int) -> Node:
        """Give one node, counted from 0."""
        return Node(self.layout.nodes[index])

    def on_launch_machine(self, *argv: str) -> tuple[str, ...]:
        """Give the argv that runs `argv` on this machine as the nodes' user, with a private home and tmux folder."""
        return (*namespaces.session(self.layout.launch), *argv)

    def checkout(self) -> Path:
        """Copy the project's sources to where the nodes' user may write, the first time; give the copy's folder."""
        copy = self.layout.run_dir / "checkout"
        return copy if copy.exists() else files.copy_project(self.layout)

    def partition(self, index: int) -> None:
        """Cut the node off: its packets are lost, its processes go on."""
        network.cable(self._cabled(index), "down")

    def heal(self, index: int) -> None:
        """Undo `partition`, and wait until this machine reaches the node."""
        node = self._cabled(index)
        network.cable(node, "up")
        network.await_reachable(node)

    def _cabled(self, index: int) -> NodeLayout:
        if self.layout.kind != "netns":
            raise RehearsalError("a loopback node has no link to cut", fix="use kind netns")
        return self.layout.nodes[index]

    def kill_sshd(self, index: int) -> None:
        """Kill the node's sshd and its connections; what runs on the node goes on, nobody can log in."""
        self._servers[index].kill()

    def start_sshd(self, index: int) -> None:
        """Start the node's sshd again, on the same address with the same key."""
        self._servers[index].start()
        self._servers[index].wait()

    def processes(self) -> set[Process]:
        """Give every living process of the cluster: sshd, sessions, and whatever they started."""
        found = processes.marked(self.layout.token)
        found |= processes.descendants({process for server in self._servers if (process := server.process())})
        if self.layout.kind == "netns":
            found |= processes.living(network.pids(self.layout))
        return found

    def down(self) -> None:
        """End every process of the cluster, then remove its network and files; repeating it is harmless."""
        with self._alone() as there:
            if there:
                self._end_processes()
                if self.layout.kind == "netns":
                    network.remove(self.layout)
                files.remove_all(self.layout)
        for server in self._servers:
            server.reap()

    @contextlib.contextmanager
    def _alone(self) -> Iterator[bool]:
        """Let one at a time take the cluster down; give whether it is still there."""
        try:
            folder = os.open(self.layout.run_dir, os.O_RDONLY)
        except FileNotFoundError:
            yield False
            return
        try:
            fcntl.flock(folder, fcntl.LOCK_EX)
            # No link is left of a folder that another has removed; its number may have been claimed again since.
            yield os.fstat(folder).st_nlink > 0 and self._is_mine()
        finally:
            os.close(folder)

    def _is_mine(self) -> bool:
        record = self.layout.run_dir / "cluster.json"
        return not record.exists() or Layout.from_json(json.loads(record.read_text())).token == self.layout.token

    def _end_processes(self) -> None:
        seen: set[Process] = set()  # a connection's sshd is nobody's child once the listener has gone

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
    if directory and (there := Cluster.load(directory)):
        message = f"{directory} already has a cluster of {there.layout.size} nodes"
        raise RehearsalError(message, fix="take it down first: inv cluster --down")


def _orphan(number: int) -> Cluster | None:
    try:
        record = json.loads((run_dir(number) / "cluster.json").read_text())
        mine = run_dir(number).stat().st_uid == os.geteuid()
    except (OSError, json.JSONDecodeError):
        return None
    owner = record["owner"]
    return Cluster(Layout.from_json(record)) if mine and owner and not Process(**owner).alive() else None
