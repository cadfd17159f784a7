"""Control groups of the kernel, where this machine has them: version 2, and hierarchies of version 1."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.remote.place import wait_for
from torchfab.remote import procfs
from torchfab.remote.host import cgroup

ROOT = Path(__file__).parents[3]
NAMES = {"version 2": "", "freezer": "freezer", "pids": "pids"}


@pytest.fixture(params=list(NAMES))
def group(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[cgroup.Group]:
    """A new group in one kind of hierarchy."""
    own = cgroup._mounts().get(NAMES[request.param])
    if own is None:
        pytest.skip(f"this machine has no hierarchy of {request.param}")
    monkeypatch.setattr(cgroup, "own_folders", lambda: [own[1]])
    made = cgroup.make(f"torchfab-test-{os.getpid()}-{NAMES[request.param]}")
    if made is None:
        pytest.skip(f"this user may make no group of {request.param}")
    yield made
    made.kill()
    wait_for(made.remove)


def inside(group: cgroup.Group, *argv: str, **more: object) -> subprocess.Popen[bytes]:
    """Start a program in a group."""
    return subprocess.Popen(argv, preexec_fn=group.join, **more)  # type: ignore[call-overload, no-any-return]  # noqa: PLW1509


def test_a_group_lists_ends_and_outlives_its_processes(group: cgroup.Group) -> None:
    assert group.is_empty()
    child = inside(group, "sh", "-c", "setsid sleep 600 & env -i sleep 600 & wait")
    wait_for(lambda: len(group.members()) == 3)
    assert not group.is_empty()
    assert not group.remove(), "the kernel keeps a group with processes"
    group.kill()
    assert child.wait(10) == -signal.SIGKILL
    wait_for(group.is_empty)
    assert group.remove()
    assert not group.exists()


def test_a_group_without_its_kill_file_is_frozen_and_killed(
    group: cgroup.Group, monkeypatch: pytest.MonkeyPatch
) -> None:
    child = inside(group, "sh", "-c", "sleep 600 & wait")
    wait_for(lambda: len(group.members()) == 2)
    group._freeze_and_kill()  # as on Linux before 5.14
    assert child.wait(10) == -signal.SIGKILL
    wait_for(group.is_empty)


def test_groups_below_are_ended_and_removed_too(group: cgroup.Group) -> None:
    below = cgroup.Group(os.path.join(group.path, "below"))
    os.mkdir(below.path)
    child = inside(below, "sleep", "600")
    assert group.members() == [child.pid]
    assert not group.is_empty()
    group.kill()
    assert child.wait(10) == -signal.SIGKILL


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a program run as another user")
def test_the_owner_of_a_group_ends_processes_of_other_users_in_it(tmp_path: Path) -> None:
    """As an ordinary user in a delegated group: the kernel does what no signal of that user could."""
    mount = cgroup._mounts().get("")
    if mount is None:
        pytest.skip("this machine has no cgroup version 2")
    group = cgroup.Group(os.path.join(mount[1], f"torchfab-test-{os.getpid()}-owned"))
    os.mkdir(group.path)
    try:
        if not os.path.exists(os.path.join(group.path, "cgroup.kill")):
            pytest.skip("Linux before 5.14")
        os.chown(os.path.join(group.path, "cgroup.kill"), 65534, 65534)
        child = inside(group, "sleep", "600")  # of root
        code = "import os, sys; os.setuid(65534); fd = os.open(sys.argv[1], os.O_WRONLY); os.write(fd, b'1')"
        subprocess.run(["/usr/bin/python3", "-c", code, os.path.join(group.path, "cgroup.kill")], check=True)
        assert child.wait(10) == -signal.SIGKILL
    finally:
        group.kill()
        wait_for(group.remove)


def test_where_nothing_is_mounted_there_is_no_group(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cgroup, "_mounts", dict)
    assert cgroup.make("torchfab-test") is None


def test_a_folder_that_is_no_group_is_not_taken_for_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cgroup.procs").touch()
    monkeypatch.setattr(cgroup, "own_folders", lambda: [str(tmp_path)])
    assert cgroup.make("torchfab-test") is None
    assert not (tmp_path / "torchfab-test").exists()


@pytest.mark.parametrize(
    ("own", "mounts", "folders"),
    [
        ("0::/user.slice/a b\n", {"": ("/", "/sys/fs/cgroup")}, ["/sys/fs/cgroup/user.slice/a b"]),
        ("0::/x/y\n", {"": ("/x", "/sys/fs/cgroup")}, ["/sys/fs/cgroup/y"]),
        ("0::/x\n", {"": ("/x", "/sys/fs/cgroup")}, ["/sys/fs/cgroup"]),
        ("0::/xy\n", {"": ("/x", "/sys/fs/cgroup")}, []),
        ("0::/../other\n", {"": ("/x", "/sys/fs/cgroup")}, []),
        ("4:cpu,pids:/a\n2:freezer:/b\n", {"pids": ("/", "/p"), "freezer": ("/", "/f")}, ["/f/b", "/p/a"]),
        ("nonsense\n", {}, []),
    ],
)
def test_a_group_of_this_process_is_found_below_its_mount(
    own: str, mounts: dict[str, tuple[str, str]], folders: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cgroup, "_mounts", lambda: mounts)
    monkeypatch.setattr(cgroup, "_lines", lambda path: own.splitlines())
    assert cgroup.own_folders() == folders


def test_this_process_can_enter_a_group_and_come_back() -> None:
    made = cgroup.make(f"torchfab-test-{os.getpid()}-visit")
    if made is None:
        pytest.skip("this user may make no group")
    code = (
        "import os, sys; from torchfab.remote.host import cgroup; group = cgroup.Group(sys.argv[1]); group.join();"
        "assert os.getpid() in group.members(); cgroup.Group(os.path.dirname(group.path)).join(); print(group.remove())"
    )
    words = [sys.executable, "-c", code, made.path]
    done = subprocess.run(words, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.stdout == "True\n", done
    assert procfs.is_running(os.getpid())
