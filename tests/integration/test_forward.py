"""`fab forward`: a port of a real node on this machine's loopback address."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

from tests.integration.fab import Fab, eventually
from tests.integration.faults_injected import refused

SERVER = """
import socket, sys
server = socket.create_server(("127.0.0.1", int(sys.argv[-1])))
while True:
    client, _ = server.accept()
    client.sendall(b"hello " + client.recv(100))
    client.close()
"""


@contextmanager
def serving(fab: Fab, index: int, port: int, *name: str) -> Iterator[None]:
    """Run a server on the loopback address of one node, under the name of a program."""
    script = fab.write(name[0] if name else "server.py", SERVER)
    argv = [*fab.cluster.node(index).command(), "python3", str(script), *name[1:], str(port)]
    process = subprocess.Popen(argv)
    try:
        yield
    finally:
        process.kill()
        process.wait()


@contextmanager
def forwarding(fab: Fab, *words: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Run `fab forward`; yield the process and the URL that it prints. It is ended by Ctrl-C, as a user ends it."""
    process = fab.start("-H", ",".join(fab.cluster.hosts), "forward", *words)
    assert process.stdout
    try:
        yield process, process.stdout.readline().strip()
    finally:
        os.kill(process.pid, signal.SIGINT)
        process.communicate(timeout=30)
        assert process.returncode == 0


def ask(fab: Fab, url: str) -> str:
    """Connect like a browser on the launch machine; return the server's answer, empty for a refusal."""
    code = (
        "import socket,sys;s=socket.create_connection(('127.0.0.1',int(sys.argv[1])));s.sendall(b'you');"
        "print(s.recv(100).decode())"
    )
    argv = fab.cluster.on_launch_machine("python3", "-c", code, url.rpartition(":")[2])
    return subprocess.run(argv, capture_output=True, text=True, check=False).stdout.strip()


def test_a_port_of_a_node_is_forwarded_until_ctrl_c(fab: Fab) -> None:
    with serving(fab, 1, 7461), forwarding(fab, "17461:7461", "--host", "node2") as (_, url):
        assert url == "http://127.0.0.1:17461"
        assert eventually(lambda: ask(fab, url) == "hello you", 10)
        assert ask(fab, url) == "hello you"
    assert ask(fab, url) == ""


def test_tensorboard_is_found_on_the_node_where_it_listens(fab: Fab) -> None:
    with serving(fab, 1, 7462, "tensorboard", "--logdir", "runs"), forwarding(fab, "17462:tensorboard") as (_, url):
        assert url == "http://127.0.0.1:17462"
        assert eventually(lambda: ask(fab, url) == "hello you", 10)
    done = fab("-H", ",".join(fab.cluster.hosts), "forward", "tensorboard")
    refused(done, "no TensorBoard of this user listens on node[1-2]", "nohup tensorboard --logdir runs")


def test_what_cannot_be_forwarded_is_an_error(fab: Fab) -> None:
    refused(
        fab("forward", "x:y"),
        "fab forward takes a job's name (optional), then tensorboard, PORT or LOCAL:PORT",
        "got 'x:y'",
    )
    refused(
        fab("-H", "node1", "forward", "7463", "--host", "node9"),
        "no host 'node9' among the hosts of this command",
        "its hosts: node1",
    )
    refused(fab("-H", "localhost", "forward", "7463"), "port 7463 is already on this machine")


def test_a_port_in_use_is_an_error(loopback_fab: Fab) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = loopback_fab("-H", loopback_fab.cluster.hosts[0], "forward", f"{port}:7464")
        refused(done, f"port {port} of this machine is in use", ":7464")
