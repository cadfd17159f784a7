"""`fab trust`: its output, its question, the keys it writes, and the hosts that ssh and a launch then accept."""

from __future__ import annotations

import os
import pty
import stat
import subprocess
from pathlib import Path

import pytest

from tests.integration.fab import Done, Fab
from tests.integration.faults_injected import refused


def config_with(fab: Fab, known: Path, *lines: str) -> str:
    """Write the cluster's ssh config with another known_hosts file, and with lines before it; return its path."""
    text = fab.cluster.ssh_config.read_text().replace(str(fab.cluster.known_hosts), str(known))
    return str(fab.write("ssh_config", "\n".join([*lines, text])))


def trust(fab: Fab, config: str, *words: str) -> Done:
    return fab("-S", config, "trust", "--hostfile", str(fab.cluster.hostfile), *words)


def printed_by_ssh(fab: Fab, index: int) -> str:
    """Return the fingerprint of a node's key by `ssh-keygen -l`, as in the table."""
    key = fab.cluster.node(index).home.parent / "host_key.pub"
    bits, digest, *_, kind = subprocess.run(
        ["ssh-keygen", "-lf", str(key)], capture_output=True, text=True, check=True
    ).stdout.split()
    return f"{bits} {digest} {fab.cluster.layout.nodes[index].address} {kind}"


def ssh(fab: Fab, config: str, host: str) -> int:
    argv = fab.cluster.on_launch_machine("ssh", "-F", config, "-o", "BatchMode=yes", host, "true")
    return subprocess.run(argv, check=False, stdin=subprocess.DEVNULL, capture_output=True).returncode


def test_after_trust_ssh_and_a_launch_accept_the_new_keys(fab: Fab) -> None:
    known = fab.workdir / "new" / "known"
    config = config_with(fab, known, "HashKnownHosts yes")
    assert ssh(fab, config, "node1") != 0
    done = trust(fab, config, "--yes")
    assert done.rc == 0, done
    assert done.stdout == f"node1  new  {printed_by_ssh(fab, 0)}\nnode2  new  {printed_by_ssh(fab, 1)}\n"
    assert f"2 keys written into {known}" in done.stderr
    assert stat.S_IMODE(known.stat().st_mode) == 0o600
    assert [line[:3] for line in known.read_text().splitlines()] == ["|1|", "|1|"]
    assert ssh(fab, config, "node1") == ssh(fab, config, "node2") == 0
    again = trust(fab, config)
    assert (again.rc, again.stderr) == (0, ""), again
    assert again.stdout.count("  known  ") == 2
    assert fab("-S", config, *fab.launch("--name", "x", gpus=True)).rc == 0


def test_without_a_terminal_trust_writes_only_with_yes(fab: Fab) -> None:
    known = fab.write("known", "")
    done = trust(fab, config_with(fab, known))
    assert done.rc == 2, done
    assert "2 host keys are new, and there is no terminal for" in done.stderr
    assert "fab trust --yes" in done.stderr
    assert done.stdout.count("  new  ") == 2
    shown = trust(fab, config_with(fab, known), "--json")
    assert shown.rc == 1, shown
    assert '"standing": "new"' in shown.stdout
    assert known.read_text() == ""


@pytest.mark.parametrize(("answer", "lines", "code"), [("yes", 2, 0), ("no", 0, 1), ("", 0, 1)])
def test_one_answer_is_for_all_hosts(fab: Fab, answer: str, lines: int, code: int) -> None:
    known = fab.write("known", "")
    argv = fab.argv("-S", config_with(fab, known), "trust", "--hostfile", str(fab.cluster.hostfile))
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        argv, cwd=fab.workdir, stdin=theirs, stderr=subprocess.PIPE, stdout=subprocess.PIPE
    ) as fabric:
        os.write(ours, f"{answer}\n".encode())
        _, stderr = fabric.communicate(timeout=30)
    os.close(ours)
    os.close(theirs)
    assert fabric.returncode == code, stderr
    assert stderr.count(b"[yes/no]") == 1
    assert len(known.read_text().splitlines()) == lines


def test_a_changed_key_is_not_replaced_and_a_silent_host_is_named(fab: Fab) -> None:
    first, second = (line.split(" ", 1) for line in fab.cluster.known_hosts.read_text().splitlines())
    known = fab.write("known", f"{first[0]} {second[1]}\n")
    before = known.read_text()
    config = config_with(fab, known, "Host nowhere", "  HostName 127.0.0.1", "  Port 1")
    hosts = fab.write("three", fab.cluster.hostfile.read_text() + "nowhere\n")
    done = fab("-S", config, "trust", "--hostfile", str(hosts), "--yes")
    assert done.rc == 1, done
    assert f"node1  CHANGED  {printed_by_ssh(fab, 0)}" in done.stdout
    assert "2 of 3 hosts are not trusted" in done.stderr
    assert "node1: its host key has CHANGED: it now presents ssh-ed25519 SHA256:" in done.stderr
    assert f"({known}:1)" in done.stderr
    assert "nowhere: 127.0.0.1 port 1 refused the connection" in done.stderr
    assert known.read_text().startswith(before)
    assert len(known.read_text().splitlines()) == 2  # node2 was new and is recorded


def test_keys_of_jump_hosts_are_trusted_first(fab: Fab) -> None:
    known = fab.write("known", "")
    config = config_with(fab, known, "Host node2", "  ProxyJump node1")
    hosts = fab.write("behind", "node2\n")
    launch = fab("-S", config, "launch-per-node", "--hostfile", str(hosts), "--", "light.py", "9")
    refused(launch, "its host key is not known")
    done = fab("-S", config, "trust", "--hostfile", str(hosts), "--yes")
    assert done.rc == 0, done
    assert [line.split()[:2] for line in done.stdout.splitlines()] == [["node1", "new"], ["node2", "new"]]
    assert ssh(fab, config, "node2") == 0
    started = fab("-S", config, "launch-per-node", "--hostfile", str(hosts), "--name", "j", "--", "light.py", "9")
    assert started.rc == 0, started
