"""Phase one on a node: facts, checks, the folder, the port."""

from __future__ import annotations

import errno
import os
import socket
import stat
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from torchfab.remote import files, tmux
from torchfab.remote.job import prepare
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
    assert (folder / files.BUNDLE).read_text() == "the program"
    assert [stat.S_IMODE(path.stat().st_mode) for path in (folder, folder.parent, folder / files.BUNDLE)] == [
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


# ---- one problem each


def test_a_missing_working_directory_is_named(make: Callable[..., Preparation]) -> None:
    assert problems(make(workdir="/no/such/folder")) == [
        "the working directory /no/such/folder does not exist | copy your code there, or give --workdir"
    ]


def test_a_missing_script_is_named(make: Callable[..., Preparation], tmp_path: Path) -> None:
    assert problems(make(script="it's.py")) == [
        f"the script {tmp_path}/project/it's.py does not exist | copy your code there, or give --workdir"
    ]


def test_a_folder_is_not_a_script(make: Callable[..., Preparation], tmp_path: Path) -> None:
    assert problems(make(script=".")) == [
        f"the script {tmp_path}/project/. is not a file | copy your code there, or give --workdir"
    ]


def test_a_script_may_be_an_absolute_path_or_a_module(make: Callable[..., Preparation], tmp_path: Path) -> None:
    assert problems(make(script=str(tmp_path / "project" / "train.py"))) == []
    assert problems(make(script=None, job_id="a-02")) == []


def test_a_missing_python_is_named(make: Callable[..., Preparation]) -> None:
    assert problems(make(python="/no/such/python")) == [
        "there is no /no/such/python | give an interpreter that exists on every node with --python"
    ]


def test_a_python_that_reads_stdin_does_not_swallow_requests(make: Callable[..., Preparation], tmp_path: Path) -> None:
    program = tmp_path / "python"
    program.write_text(f'#!/bin/sh\ncat > /dev/null\nexec {sys.executable} "$@"\n')
    program.chmod(0o755)
    ours, theirs = os.pipe()
    os.write(theirs, b"the next request")
    os.close(theirs)
    stdin = os.dup(0)
    try:
        os.dup2(ours, 0)
        assert problems(make(python=str(program))) == []
    finally:
        os.dup2(stdin, 0)
        os.close(stdin)
    assert os.read(ours, 100) == b"the next request"
    os.close(ours)


def test_a_python_may_print_invalid_utf_8(make: Callable[..., Preparation], tmp_path: Path) -> None:
    program = tmp_path / "python"
    program.write_bytes(b"#!/bin/sh\necho 'no \xff' >&2; exit 1\n")
    program.chmod(0o755)
    (problem,) = problems(make(python=str(program)))
    assert problem.startswith(f"{program} does not run: no \ufffd |")


def test_a_python_that_does_not_run_is_quoted(make: Callable[..., Preparation], tmp_path: Path) -> None:
    program = tmp_path / "python"
    program.write_text("#!/bin/sh\necho first >&2; echo broken library >&2; exit 1\n")
    program.chmod(0o755)
    assert problems(make(python=str(program))) == [
        f"{program} does not run: broken library | give an interpreter that works on every node with --python"
    ]


def test_each_missing_module_is_named(make: Callable[..., Preparation]) -> None:
    python, names = sys.executable, ("no_such_module", "json.no_such")
    assert problems(make(modules=["json", *names])) == [
        f"{python} has no module {name} | install it there: {python} -m pip install {name}; "
        "or give --workdir, or --python"
        for name in names
    ]


def test_modules_are_found_in_the_working_directory_and_on_the_jobs_path(
    make: Callable[..., Preparation], tmp_path: Path
) -> None:
    (tmp_path / "project" / "beside.py").write_text("")
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "elsewhere.py").write_text("")
    assert problems(make(modules=["beside", "elsewhere"], python_path=str(tmp_path / "lib"))) == []


def test_the_address_of_a_peer_that_does_not_resolve_is_named(make: Callable[..., Preparation]) -> None:
    (problem,) = problems(make(peers=["127.0.0.1", "no.such.host.invalid"]))
    assert problem.startswith("addresses of other nodes do not resolve there: no.such.host.invalid | ")


def test_a_missing_tmux_is_named(make: Callable[..., Preparation], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert problems(make()) == ["tmux is not installed | install it there, for example: sudo apt-get install -y tmux"]


@pytest.mark.parametrize("text", ["tmux 3.1c", "tmux 2.9a", "tmux 1.8"])
def test_an_old_tmux_is_named_with_the_required_version(
    make: Callable[..., Preparation], fake_tmux: FakeTmux, text: str
) -> None:
    fake_tmux(text)
    (problem,) = problems(make())
    assert problem == f"tmux is {text[5:8]}, 3.2 or newer is needed | install a newer tmux there"


def test_a_tmux_that_does_not_run_is_quoted(make: Callable[..., Preparation], tmp_path: Path) -> None:
    (tmp_path / "fake" / "tmux").write_text("#!/bin/sh\necho broken library >&2; exit 3\n")
    (problem,) = problems(make())
    assert problem.startswith("tmux does not run: broken library | ")


VERSIONS = {
    "tmux 3.2": (3, 2),
    "tmux 3.5a": (3, 5),
    "tmux next-3.4": (3, 4),
    "tmux master": (99, 0),
    "tmux 10.0": (10, 0),
}


@pytest.mark.parametrize(("text", "version"), VERSIONS.items())
def test_versions_of_tmux_are_parsed(fake_tmux: FakeTmux, text: str, version: tuple[int, int]) -> None:
    fake_tmux(text)
    assert tmux.version() == version


def test_an_existing_session_is_a_problem(make: Callable[..., Preparation], fake_tmux: FakeTmux) -> None:
    fake_tmux("tmux 3.3a", '[ "$*" = "-L torchfab has-session -t =a-node0" ]')
    (problem,) = problems(make())
    what, _, fix = problem.partition(" | ")
    assert what == "the tmux session a-node0 exists already, from another launch machine or folder"
    assert fix == "choose another --name, or stop that job from where it was launched"


def test_a_master_that_does_not_resolve_is_named(make: Callable[..., Preparation]) -> None:
    (problem,) = problems(make(master_addr="no.such.host.invalid"))
    assert problem.startswith("the master address no.such.host.invalid does not resolve | ")


@pytest.mark.parametrize("address", ["localhost", "127.0.0.1", "127.0.1.1", "::1"])
def test_a_master_that_is_this_machine_on_another_node_is_named(make: Callable[..., Preparation], address: str) -> None:
    (problem,) = problems(make(node_rank=1, one_machine=False, master_addr=address, port=None))
    assert problem.startswith(f"the master address {address} is this node itself here (")


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
            f"port {port} is in use | choose another --port, or leave it out for a free one"
        ]


@pytest.mark.parametrize("free", [True, False])
@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_the_rendezvous_store_can_listen_on_a_reserved_port(family: socket.AddressFamily, free: bool) -> None:
    with reserve_port(0) as first:
        port = first.getsockname()[1]
        if free:
            check_listening(port, family)
    if not free:
        with reserve_port(port):
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
    with reserve_port(0) as first:
        port = first.getsockname()[1]
        with socket.socket() as other, pytest.raises(OSError, match="in use"):
            other.bind(("", port))


def test_a_released_port_is_free_again(make: Callable[..., Preparation]) -> None:
    preparation = make()
    port = preparation.run("x")["facts"]["port"]
    preparation.release_port()
    with socket.socket() as other:
        other.bind(("", port))


# ---- GPUs


@pytest.mark.parametrize(
    ("visible", "count"), [("", 0), ("-1", 0), ("0", 1), ("0,1,2", 3), ("GPU-8932f937,GPU-1", 2), ("0, 1,", 2)]
)
def test_the_visible_devices_are_counted(visible: str, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert prepare.count_gpus() == count


# ---- what a launcher needs besides


def test_a_missing_program_is_reported_with_its_install_command(make: Callable[..., Preparation]) -> None:
    program = {"names": ["no-such-mpirun"], "install": "sudo apt-get install -y openmpi-bin", "version_flag": "-V"}
    assert problems(make(programs=[program])) == [
        "there is no no-such-mpirun on PATH | install it there: sudo apt-get install -y openmpi-bin"
    ]


def test_a_missing_module_is_reported_with_the_launchers_package(make: Callable[..., Preparation]) -> None:
    (problem,) = problems(make(modules=["json", "no_such_ai"], installs={"no_such_ai": "--no-deps no-such-ai==0.5"}))
    assert f"{sys.executable} -m pip install --no-deps no-such-ai==0.5" in problem


def test_versions_of_modules_and_programs_are_returned(make: Callable[..., Preparation]) -> None:
    program = {"names": ["python3"], "install": "", "version_flag": "--version"}
    versions = make(modules=["json", "pytest"], programs=[program]).run("the program")["facts"]["versions"]
    assert (versions["json"], versions["pytest"]) == ("", pytest.__version__)
    assert versions["python3"].startswith("3.")


def test_the_version_of_a_module_is_that_of_its_metadata(make: Callable[..., Preparation]) -> None:
    # Read from the folder's name if that contains it, otherwise from importlib.metadata.
    from importlib.metadata import version

    names = ["pytest", "hypothesis", "yaml", "json"]
    versions = make(modules=names).run("the program")["facts"]["versions"]
    assert versions == {"pytest": version("pytest"), "hypothesis": version("hypothesis"), "yaml": "", "json": ""}


def test_an_amd_gpu_that_a_container_cannot_read_is_not_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, simds in {"0": 0, "1": 320}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "properties").write_text(f"cpu_cores_count 0\nsimd_count {simds}\n")
    (tmp_path / "2" / "properties").mkdir(parents=True)  # cannot be read
    monkeypatch.setattr(prepare, "_KFD_NODES", str(tmp_path), raising=False)
    assert prepare._count_amd_gpus() == 1
