"""Context managers that break a host or simulate a misbehaving one, and undo it at the end."""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from testbed.cluster import Node
from tests.integration.fab import Done, Fab
from tests.support import absent, require

REAL_TMUX = shutil.which("tmux") or "tmux"
SLOW_TMUX = f'case "$*" in *new-session*) sleep 1.5;; *) exec {REAL_TMUX} "$@";; esac'


def refused(done: Done, *words: str) -> None:
    """Assert that a `fab` failed with an error that has these texts, without a traceback and without a result."""
    assert done.rc not in (0, None), done
    assert done.stdout == "", done
    assert "Traceback" not in done.stderr, done
    for word in words:
        assert word in done.stderr, done


@contextlib.contextmanager
def start_up_file(node: Node, text: str) -> Iterator[None]:
    """Make `text` the start-up file of the node's login shell."""
    path = node.home / ".bashrc"
    path.write_text(text)
    try:
        yield
    finally:
        path.write_text("")


def fake_clock(seconds: int) -> str:
    """Return the start-up file of a node with a wrong clock."""
    require("faketime")
    library = next(Path("/usr").glob("lib*/**/faketime/libfaketimeMT.so.1"), None) or absent(
        "libfaketimeMT is not there"
    )
    return f"export LD_PRELOAD={library} FAKETIME={seconds:+d}s\n"


@contextlib.contextmanager
def fake_program(node: Node, name: str, script: str) -> Iterator[None]:
    """Replace a program on the node's PATH by a shell script."""
    folder = node.home / "fakes"
    folder.mkdir()
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)
    try:
        with start_up_file(node, f"PATH='{folder}':$PATH\n"):
            yield
    finally:
        shutil.rmtree(folder)


@contextlib.contextmanager
def server(greeting: bytes = b"", hang_up: bool = False) -> Iterator[int]:
    """Listen on a port of 127.0.0.1, send a greeting to each client, then hang up or stay silent; yield the port."""
    listener = socket.create_server(("127.0.0.1", 0))
    kept = []

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with contextlib.suppress(OSError):
                connection.sendall(greeting)
            if hang_up:
                connection.close()
            kept.append(connection)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()
        for connection in kept:
            connection.close()


@contextlib.contextmanager
def penalizing_sshd(address: tuple[str, int], refused: int) -> Iterator[tuple[int, list[float]]]:
    """Pass connections on to an sshd, but refuse the first ones as sshd of OpenSSH 9.8 does with penalties.

    Yields
    ------
    tuple of int and list of float
        The port on 127.0.0.1, and the times of the connections so far.
    """
    listener = socket.create_server(("127.0.0.1", 0))
    times: list[float] = []
    kept: list[socket.socket] = []

    def pump(source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)

    def serve() -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            times.append(time.monotonic())
            if len(times) <= refused:
                client.sendall(b"Not allowed at this time\r\n")
                client.close()
                continue
            sshd = socket.create_connection(address)
            kept.extend((client, sshd))
            for pair in ((client, sshd), (sshd, client)):
                threading.Thread(target=pump, args=pair, daemon=True).start()

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield listener.getsockname()[1], times
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()
        for each in kept:
            each.close()


@contextlib.contextmanager
def taken_port(node: Node, port: int) -> Iterator[None]:
    """Run a server on a port of the node that sends each client a greeting."""
    script = f"""
import socket
listener = socket.create_server(("", {port}))
print(flush=True)
while True:
    listener.accept()[0].sendall(b"hello")
"""
    with subprocess.Popen(node.command("python3", "-c", script), stdout=subprocess.PIPE) as process:
        assert process.stdout
        process.stdout.readline()
        try:
            yield
        finally:
            process.kill()


def ssh_config(fab: Fab, old: Path, new: Path) -> str:
    """Write an ssh config like the cluster's, with one file replaced by another; return its path for `fab -S`."""
    text = fab.cluster.ssh_config.read_text()
    assert str(old) in text
    return str(fab.write("ssh_config", text.replace(str(old), str(new))))


def _inside(node: Node, *argv: str) -> None:
    """Run a command in the mount namespace of the node."""
    subprocess.run(["nsenter", f"--mount=/proc/{node.sshd_pid}/ns/mnt", *argv], check=True)


@contextlib.contextmanager
def other_file(node: Node, path: str, text: str) -> Iterator[None]:
    """Replace the content of a file, on one node of a netns cluster only."""
    other = node.home / "other-file"
    other.write_text(text)
    _inside(node, "mount", "--bind", str(other), path)
    try:
        yield
    finally:
        _inside(node, "umount", "--lazy", path)


@contextlib.contextmanager
def firewall(node: Node, port: int, *target: str) -> Iterator[None]:
    """Block a port of a node of a netns cluster; `target` is iptables': DROP, REJECT ..."""
    rule = ("INPUT", "-i", "eth0", "-p", "tcp", "--dport", str(port), "-j", *target)
    subprocess.run(node.command("iptables", "-A", *rule), check=True)
    try:
        yield
    finally:
        subprocess.run(node.command("iptables", "-D", *rule), check=True)


@contextlib.contextmanager
def other_disk(node: Node, path: Path, options: str = "mode=755") -> Iterator[None]:
    """Mount an empty disk over a folder, on one node of a netns cluster only."""
    _inside(node, "mount", "-t", "tmpfs", "-o", options, "tmpfs", str(path))
    try:
        yield
    finally:
        _inside(node, "umount", "--lazy", str(path))
