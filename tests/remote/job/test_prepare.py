"""Phase one on a node: facts, checks, the folder, the port."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from torchfab.remote import job_files
from torchfab.remote.job.prepare import Preparation, reserve_port

FakeTmux = Callable[..., None]


@pytest.fixture(autouse=True)
def _good_tmux(fake_tmux: FakeTmux) -> None:
    """A tmux of a supported version without sessions, by default."""
    fake_tmux("tmux 3.3a")


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., Preparation]]:
    """Give make(**values): a preparation in a working directory that has a train.py; discarded at the end."""
    (tmp_path / "project").mkdir()
    (tmp_path / "project" / "train.py").write_text("")
    made: list[Preparation] = []

    def build(**values: Any) -> Preparation:
        base = {
            "job_id": "a-01",
            "session": "a-node0",
            "node_rank": 0,
            "node_dir": str(tmp_path / "node dir"),
            "workdir": str(tmp_path / "project"),
            "python": sys.executable,
            "script": "train.py",
            "modules": ["json"],
            "python_path": None,
            "master_addr": "127.0.0.1",
            "peers": [],
            "one_machine": True,
            "port": 0,
            "write": True,
        }
        made.append(Preparation({**base, **values}))
        return made[-1]

    yield build
    for each in made:
        each.discard()


def problems(preparation: Preparation) -> list[str]:
    return [f"{each['what']} | {each['fix']}" for each in preparation.run("the program")["problems"]]


def left(path: Path) -> list[str]:
    return sorted(str(each.relative_to(path)) for each in path.rglob("*")) if path.exists() else []


# ---- when all is well


def test_the_facts_of_a_node_are_returned(
    make: Callable[..., Preparation], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,5")
    answer = make().run("the program")
    facts = answer["facts"]
    assert answer["problems"] == []
    assert facts["folder"] == str(tmp_path / "node dir" / "jobs" / "a-01" / "node-0")
    assert (facts["gpus"], facts["cpus"]) == (3, len(os.sched_getaffinity(0)))
    assert (facts["tmux"], facts["python"]) == ("3.3", ".".join(map(str, sys.version_info[:3])))
    assert facts["port"] > 0
    assert facts["hostname"] == socket.gethostname()
    assert facts["glance"]["disk"]["path"] == str(tmp_path / "node dir")
    assert facts["glance"]["script"]


def test_the_jobs_folder_is_made_private_with_the_program_in_it(
    make: Callable[..., Preparation], tmp_path: Path
) -> None:
    preparation = make()
    preparation.run("the program")
    folder = Path(preparation.folder)
    assert (folder / job_files.BUNDLE).read_text() == "the program"
    assert [stat.S_IMODE(path.stat().st_mode) for path in (folder, folder.parent, folder / job_files.BUNDLE)] == [
        0o700,
        0o700,
        0o600,
    ]
    assert (tmp_path / "node dir" / ".gitignore").read_text() == "*\n"


def test_a_dry_run_makes_nothing(make: Callable[..., Preparation], tmp_path: Path) -> None:
    assert problems(make(write=False)) == []
    assert left(tmp_path / "node dir") == []


def test_discard_undoes_the_preparation(make: Callable[..., Preparation], tmp_path: Path) -> None:
    preparation = make()
    port = preparation.run("the program")["facts"]["port"]
    preparation.discard()
    assert left(tmp_path / "node dir") == [".gitignore", "jobs"]
    reserve_port(port).close()
    preparation.discard()


def test_discard_keeps_the_folders_of_other_nodes(make: Callable[..., Preparation]) -> None:
    first, second = make(), make(node_rank=1, port=None)
    first.run("x")
    second.run("x")
    first.discard()
    assert (os.path.exists(first.folder), os.path.exists(second.folder)) == (False, True)


def test_two_jobs_get_different_ports(make: Callable[..., Preparation]) -> None:
    ports = [make(job_id=f"a-{number}").run("x")["facts"]["port"] for number in range(10)]
    assert len(set(ports)) == 10


def test_a_node_without_a_port_reservation_returns_none(make: Callable[..., Preparation]) -> None:
    assert make(port=None).run("x")["facts"]["port"] is None


# ---- problems


def test_a_folder_that_cannot_be_made_is_named(make: Callable[..., Preparation], tmp_path: Path) -> None:
    (tmp_path / "node dir").write_text("a file")
    (problem,) = problems(make())
    assert problem.startswith(f"cannot write {tmp_path}/node dir: ")


def test_an_existing_folder_is_not_reused(make: Callable[..., Preparation]) -> None:
    first, second = make(), make()
    assert problems(first) == []
    (problem,) = problems(second)
    assert "File exists" in problem
    second.discard()
    assert os.path.exists(first.folder)


def test_all_problems_are_reported_at_once_and_nothing_is_made(
    make: Callable[..., Preparation], fake_tmux: FakeTmux, tmp_path: Path
) -> None:
    fake_tmux("tmux 2.0")
    found = problems(make(workdir="/no/such", python="/no/python", master_addr="no.such.host.invalid"))
    assert len(found) == 4
    assert left(tmp_path / "node dir") == []


# ---- the port


def listener(port: int, family: socket.AddressFamily = socket.AF_INET) -> socket.socket:
    """Return a socket that listens as torch's store does: with SO_REUSEADDR, on all addresses."""
    made = socket.socket(family, socket.SOCK_STREAM)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if family == socket.AF_INET6:
        made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    try:
        made.bind(("", port))
        made.listen()
    except OSError:
        made.close()
        raise
    return made


def test_a_port_that_is_in_use_is_named(make: Callable[..., Preparation]) -> None:
    with listener(0) as other:
        port = other.getsockname()[1]
        assert problems(make(port=port)) == [
            f"port {port} is in use | choose another --port, or omit it to use a free one"
        ]


@pytest.mark.parametrize("free", [True, False])
@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_the_rendezvous_store_can_listen_on_a_reserved_port(family: socket.AddressFamily, free: bool) -> None:
    with contextlib.closing(reserve_port(0)) as first:
        port = first.getsockname()[1]
        if free:
            check_listening(port, family)
    if not free:
        with contextlib.closing(reserve_port(port)):
            check_listening(port, family)


def check_listening(port: int, family: socket.AddressFamily) -> None:
    try:
        store = listener(port, family)
    except OSError as error:
        if family == socket.AF_INET6 and error.errno != errno.EADDRINUSE:
            pytest.skip(f"no IPv6 here: {error}")
        raise
    with store, socket.create_connection(("127.0.0.1", port), 5):
        pass


def test_a_reserved_port_is_not_given_to_another_program() -> None:
    with contextlib.closing(reserve_port(0)) as first:
        port = first.getsockname()[1]
        with socket.socket() as other, pytest.raises(OSError, match="in use"):
            other.bind(("", port))


def test_a_released_port_is_free_again(make: Callable[..., Preparation]) -> None:
    preparation = make()
    port = preparation.run("x")["facts"]["port"]
    preparation.release_port()
    with socket.socket() as other:
        other.bind(("", port))
