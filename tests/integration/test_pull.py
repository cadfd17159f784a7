"""`fab pull` from real nodes with disks of their own, through real sshd and rsync."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

from tests.integration.fab import Fab, eventually
from tests.integration.faults_injected import refused
from tests.integration.jobs import ok
from tests.integration.test_sync import far as far  # noqa: PLC0414  # a fixture
from tests.integration.test_sync import there


def put(fab: Fab, index: int, name: str, text: str) -> Path:
    """Write a file into the workdir of one node."""
    path = there(fab, index) / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def tree(folder: Path) -> dict[str, str]:
    """Return all files below a folder with their text."""
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def test_files_of_a_job_come_from_the_nodes_that_have_them(far: Fab, tmp_path: Path) -> None:
    for index in range(2):
        put(far, index, "light.py", "print('light')\n")
        put(far, index, f"it's $HOME/part-{index}.pt", f"part {index}")
        put(far, index, "it's $HOME/meta", "same")
        put(far, index, "runs/log.txt", f"log of {index}")
    ok(far(*far.launch("--name", "gpt2", "--nproc-per-node", "1", "--follow", "--", "-c", "print()")))
    done = ok(far("pull", "gpt2", "it's $HOME", "runs/*.txt", cwd=far.folder))
    pulled = far.folder / "pulled" / "gpt2"
    assert tree(pulled) == {
        "it's $HOME/part-0.pt": "part 0",
        "it's $HOME/part-1.pt": "part 1",
        "it's $HOME/meta": "same",
        "node1/runs/log.txt": "log of 0",
        "node2/runs/log.txt": "log of 1",
    }
    assert "files of the same name differ between hosts" in done.stdout, done
    assert (far.folder / "pulled" / ".gitignore").read_text() == "*\n"
    ok(far("pull", "runs", "--rank", "1", "--to", str(far.folder / "one")))
    assert tree(far.folder / "one") == {"runs/log.txt": "log of 1"}
    refused(far("pull", "gpt2", "no*such"), f"there are no files no*such in {far.workdir} on node[1-2]")
    refused(far("pull", "gpt2"), "gpt2 is a job; fab pull needs a path too")
    refused(far("pull", "runs", "--rank", "7"), "has the ranks 0-1, and no rank 7")


def test_a_failing_node_is_named_and_the_others_are_copied(far: Fab) -> None:
    put(far, 0, "a.txt", "a")
    far.cluster.partition(1)
    try:
        done = far("-t", "2", "-H", ",".join(far.cluster.hosts), "pull", "a.txt", "--to", "got")
    finally:
        far.cluster.heal(1)
    assert done.rc == 1, done
    assert "1 of 2 hosts failed; their files may be missing here" in done.stderr, done
    assert tree(far.workdir / "got") == {"a.txt": "a"}


def test_after_ctrl_c_nothing_half_written_has_its_name_and_the_copy_goes_on(far: Fab, tmp_path: Path) -> None:
    big = there(far, 0) / "big.pt"
    with big.open("wb") as file:
        subprocess.run(["head", "-c", "150M", "/dev/urandom"], stdout=file, check=True)
    words = ("-H", far.cluster.hosts[0], "pull", "big.pt", "--to", "got")
    here = far.workdir / "got"
    process = far.start(*words)
    assert eventually(lambda: any(here.glob(".big.pt.*")) or (here / "big.pt").exists(), 30)
    was_complete = (here / "big.pt").exists()
    os.kill(process.pid, signal.SIGINT)
    _, stderr = process.communicate(timeout=30)
    if not was_complete and process.returncode:
        assert process.returncode == 130, stderr
        assert "run the same command again to continue" in stderr
        assert not (here / "big.pt").exists()
    ok(far(*words))
    assert (here / "big.pt").read_bytes() == big.read_bytes()
    assert sorted(path.name for path in here.iterdir()) == ["big.pt"]
