"""`fab sync` copies to real nodes with disks of their own, through real sshd and rsync."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.fab import Done, Fab
from tests.integration.faults_injected import start_up_file
from tests.integration.jobs import ok
from tests.support import require


@pytest.fixture
def far(fab: Fab) -> Iterator[Fab]:
    """Return a fab whose workdir is on a separate disk on every node; by default nodes share this machine's."""
    require("rsync")
    with contextlib.ExitStack() as stack:
        for index in range(2):
            stack.enter_context(mounted(fab, index, "-t", "tmpfs", "tmpfs", over=fab.workdir))
        yield fab


@contextlib.contextmanager
def mounted(fab: Fab, index: int, *words: str, over: Path | str) -> Iterator[None]:
    """Mount something in the namespace of one node's sshd."""
    inside = ("nsenter", "-t", str(fab.cluster.node(index).sshd_pid), "-m")
    subprocess.run([*inside, "mount", *words, str(over)], check=True)
    try:
        yield
    finally:
        subprocess.run([*inside, "umount", str(over)], check=True)


def there(fab: Fab, index: int) -> Path:
    """Return the workdir of that node."""
    return Path(f"/proc/{fab.cluster.node(index).sshd_pid}/root{fab.workdir}")


def sync(fab: Fab, *words: str) -> Done:
    return fab("sync", "--hostfile", str(fab.cluster.hostfile), *words)


def document(fab: Fab, *words: str) -> dict[str, dict[str, object]]:
    document = json.loads(sync(fab, "--json", *words).stdout)
    return {node["host"]: node for node in document["hosts"]}


def test_sync_copies_all_files_and_keeps_ignored_ones(far: Fab) -> None:
    subprocess.run([require("git"), "init", "-q", str(far.workdir)], check=True)
    far.write(".gitignore", "*.pt\n!best.pt\n")
    far.write("model.pt", "large")
    far.write("best.pt", "an exception")
    far.write("it's $HOME.py", "print()")
    (there(far, 1) / "own.pt").write_text("written by a job")
    (there(far, 1) / "old.py").write_text("")
    done = ok(sync(far))
    assert "node[1-2]: 4 files copied" in done.stdout, done
    assert "2 nodes hold the same 4 files" in done.stdout, done
    names = {path.name for path in there(far, 1).iterdir()}
    assert names == {".gitignore", "light.py", "it's $HOME.py", "best.pt", "own.pt", "old.py"}
    assert (there(far, 0) / "it's $HOME.py").read_text() == "print()"
    ok(sync(far, "--delete"))
    assert {path.name for path in there(far, 1).iterdir()} == names - {"old.py"}  # ignored: never removed
    assert not list(far.workdir.glob(".torchfab-sync-*"))


def test_a_node_that_shares_the_directory_is_skipped(fab: Fab) -> None:
    require("rsync")
    with mounted(fab, 1, "-t", "tmpfs", "tmpfs", over=fab.workdir):
        nodes = document(fab)
    assert (nodes["node1"]["shared"], nodes["node2"]["shared"]) == (True, False)
    assert (nodes["node1"]["files_copied"], nodes["node2"]["files_copied"]) == (0, 1)
    done = ok(fab("-H", "localhost", "sync"))
    assert "localhost: shares this directory" in done.stdout, done


def test_a_node_with_different_files_is_named_with_the_files(far: Fab) -> None:
    ok(sync(far))
    # Same size and time, other content: rsync skips it, and a hash detects it.
    path = there(far, 1) / "light.py"
    before = path.stat()
    path.write_text(path.read_text().replace("light", "LIGHT"))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    done = sync(far)
    assert done.rc == 1, done
    assert "node2: 0 files copied, 0 B; 0 are missing and 1 differ there: light.py" in done.stdout, done
    assert "node1 " not in done.stdout.splitlines()[-1], done


def test_failing_nodes_are_reported_and_the_others_are_copied_to(far: Fab) -> None:
    with mounted(far, 0, "--bind", "/dev/null", over=require("rsync")):
        done = sync(far)
    assert done.rc == 1, done
    assert "node1: rsync is not installed there" in done.stderr, done
    assert "apt-get install -y rsync" in done.stderr, done
    assert (there(far, 1) / "light.py").exists()
    with start_up_file(far.cluster.node(1), "echo welcome\n"):
        done = sync(far)
    assert done.rc == 1, done
    assert "is your shell clean" in done.stderr, done
    assert "node1: 1 files copied" in done.stdout, done


def test_a_dead_host_delays_no_other(far: Fab) -> None:
    far.cluster.partition(1)
    try:
        done = far("-t", "2", "sync", "--hostfile", str(far.cluster.hostfile))
    finally:
        far.cluster.heal(1)
    assert done.rc == 1, done
    assert "node2: no answer from" in done.stderr, done
    assert (there(far, 0) / "light.py").exists()


def test_a_dry_run_of_sync_prints_rsync_and_connects_nowhere(fab: Fab) -> None:
    done = ok(fab("-H", "[fd00::2]:22,me@nowhere.invalid", "sync", "--dry-run", "--workdir", "/far away"))
    first, second = done.stdout.splitlines()
    assert first.endswith("'[fd00::2]:/far away/'"), done
    assert "-l me " in second, done
