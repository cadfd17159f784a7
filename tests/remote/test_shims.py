"""The programs that launchers with a head put on the nodes, run here exactly as they run there."""

from __future__ import annotations

import ast
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest

from tests.integration.fab import eventually
from torchfab.remote import procfs

SHIMS = sorted((Path(__file__).parents[2] / "torchfab" / "remote" / "shims").glob("*.py"))
SHOW = "import json, os, sys; print(json.dumps([sys.argv[1:], dict(os.environ)]))"


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Return a folder, with a blank in its name, that holds the shims and the folders that they expect."""
    folder = tmp_path / "a place"
    for name in ("logs", "errors", "bin"):
        (folder / name).mkdir(parents=True)
    for path in SHIMS:
        shutil.copy(path, folder)
    return folder


_started: list[subprocess.Popen[str]] = []


@pytest.fixture(autouse=True)
def _end_processes() -> Iterator[None]:
    """End what a test that failed has left, and close the pipes."""
    yield
    for process in _started:
        if process.poll() is None:
            process.terminate()  # forwarded to the command
        process.wait(60)
        if process.stdout:
            process.stdout.close()
    _started.clear()


def start(place: Path, shim: str, *args: str, env: Mapping[str, str] | None = None) -> subprocess.Popen[str]:
    return begin((str(place / f"{shim}.py"), *args), env)


def begin(words: Sequence[str], env: Mapping[str, str] | None = None) -> subprocess.Popen[str]:
    """Start Python with these words."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("TORCHFAB", "RANK", "PMI"))}
    argv = (sys.executable, "-I", "-S", *words)
    _started.append(subprocess.Popen(argv, env={**clean, **(env or {})}, stdout=subprocess.PIPE, text=True))
    return _started[-1]


def run(place: Path, shim: str, *args: str, env: Mapping[str, str] | None = None) -> tuple[int, str]:
    return ended(start(place, shim, *args, env=env))


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Wait for a process; return its exit code and stdout."""
    stdout, _ = process.communicate(timeout=60)
    return process.returncode, stdout


# Modules that a shim may import: the launcher that it wraps, the library that it measures, what travels beside it.
ALLOWED = {"call": {"cloudpickle"}, "colossalai_run": {"fabric", "colossalai"}, "network_benchmark": {"torch"}}


@pytest.mark.parametrize("path", SHIMS, ids=lambda path: path.stem)
def test_a_shim_is_python_3_9_and_imports_nothing_of_torchfab(path: Path) -> None:
    tree = ast.parse(path.read_text(), feature_version=(3, 9))
    imported = [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    imported += [node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    imported = [name for name in imported if name != "rsh" or path.stem != "head"]
    outside = {name.partition(".")[0] for name in imported} - set(sys.stdlib_module_names)
    assert outside <= ALLOWED.get(path.stem, set())


# ---- signals

# A shim that gets a signal at the very moment at which it starts its command.
SIGNALLED = """
import os, runpy, signal, subprocess, sys
class Popen(subprocess.Popen):
    def __init__(self, *args, **kwargs):
        os.kill(os.getpid(), signal.SIGTERM)
        super().__init__(*args, **kwargs)
subprocess.Popen = Popen
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("rank.py", "--logs", "sleep", "60"), -signal.SIGTERM),
        (("head.py", "sleep", "60"), 128 + signal.SIGTERM),
        (("relay.py", "await"), 128 + signal.SIGTERM),
    ],
    ids=["rank", "head", "relay"],
)
def test_a_signal_that_arrives_while_the_command_starts_is_forwarded(
    place: Path, words: tuple[str, ...], code: int
) -> None:
    write_nodes(place, {})
    sender = {"pid": os.getpid(), "start": procfs.start_time(os.getpid())}
    (place / "command.json").write_text(json.dumps({"text": "exec sleep 60", **sender}))
    process = begin(("-c", SIGNALLED, str(place / words[0]), *words[1:]), env={"RANK": "0"})
    assert ended(process)[0] == code


# ---- rank


@pytest.mark.parametrize(
    "variables",
    [
        {
            "OMPI_COMM_WORLD_RANK": "3",
            "OMPI_COMM_WORLD_LOCAL_RANK": "1",
            "OMPI_COMM_WORLD_SIZE": "4",
            "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
        },
        {"PMI_RANK": "3", "MPI_LOCALRANKID": "1", "PMI_SIZE": "4", "MPI_LOCALNRANKS": "2"},
        {"RANK": "3", "LOCAL_RANK": "1", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2"},
    ],
    ids=["Open MPI", "MPICH", "torch"],
)
def test_a_rank_gets_the_variables_of_torch_distributed(place: Path, variables: Mapping[str, str]) -> None:
    code, stdout = run(place, "rank", "--logs", sys.executable, "-c", SHOW, "a b", "--", "$x", "", env=variables)
    assert (code, stdout) == (0, "")
    argv, env = json.loads((place / "logs" / "rank-3.log").read_text())
    assert argv == ["a b", "--", "$x", ""]
    expected = {"RANK": "3", "LOCAL_RANK": "1", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2"}
    assert {name: env[name] for name in expected} == expected
    assert env["TORCHELASTIC_ERROR_FILE"] == str(place / "errors" / "rank-3.json")
    assert (place / "logs" / "rank-3.log").stat().st_mode & 0o777 == 0o600


def test_a_rank_reads_its_script_from_the_file_beside_it(place: Path) -> None:
    (place / "script.json").write_text(json.dumps([sys.executable, "-c", SHOW, "it's", "é"]))
    code, stdout = run(place, "rank", "--script", "--local_rank=0", env={"RANK": "0"})
    assert (code, json.loads(stdout)[0]) == (0, ["it's", "é", "--local_rank=0"])


@pytest.mark.parametrize(("code", "expected"), [("sys.exit(7)", 7), ("os.kill(os.getpid(), 9)", -9)])
def test_a_rank_exits_as_its_script_does(place: Path, code: str, expected: int) -> None:
    assert (
        run(place, "rank", "--logs", sys.executable, "-c", f"import os, sys; {code}", env={"RANK": "0"})[0] == expected
    )


def test_a_rank_forwards_signals_and_waits_for_its_script(place: Path) -> None:
    code = """
import signal, sys, time
def end(*_):
    time.sleep(0.3)
    sys.exit(5)
signal.signal(signal.SIGTERM, end)
open(sys.argv[1], "w").close()
time.sleep(60)
"""
    process = start(place, "rank", "--logs", sys.executable, "-c", code, str(place / "up"), env={"RANK": "0"})
    assert eventually((place / "up").exists, 60)
    process.send_signal(signal.SIGTERM)
    assert ended(process)[0] == 5


def test_a_rank_without_a_rank_number_fails(place: Path) -> None:
    code, _ = run(place, "rank", "--logs", "true")
    assert code == 1


def test_a_failing_rank_of_mpich_aborts_the_others(place: Path) -> None:
    reader, writer = os.pipe()
    os.set_inheritable(writer, True)
    env = {"PMI_RANK": "0", "MPI_LOCALRANKID": "0", "PMI_SIZE": "1", "MPI_LOCALNRANKS": "1", "PMI_FD": str(writer)}
    argv = (sys.executable, str(place / "rank.py"), "--logs", sys.executable, "-c", "raise SystemExit(7)")
    done = subprocess.run(argv, env={**os.environ, **env}, pass_fds=[writer], check=False)
    assert (done.returncode, os.read(reader, 100)) == (7, b"cmd=abort exitcode=7\n")
    os.close(reader)
    os.close(writer)


# ---- relay


def touch_and_sleep(path: Path) -> str:
    """Return a shell command that makes a file and then runs until a signal ends it."""
    return f"touch '{path}'; exec sleep 60"


def test_a_relay_runs_the_command_in_its_own_environment(place: Path) -> None:
    relay = start(place, "relay", "await", env={"SECRET": "inside"})
    delivered = run(place, "relay", "deliver", 'echo "$SECRET"; exit 7', env={"SECRET": "outside"})
    assert ended(relay) == (7, "inside\n")
    assert delivered == (7, "")


def test_a_relay_runs_only_one_command(place: Path) -> None:
    relay, sender = start(place, "relay", "await"), start(place, "relay", "deliver", touch_and_sleep(place / "runs"))
    assert eventually((place / "runs").exists, 60)
    assert run(place, "relay", "deliver", f"touch '{place}/forbidden'")[0] == 0
    relay.send_signal(signal.SIGTERM)
    assert (ended(relay)[0], ended(sender)[0]) == (143, 143)
    assert not (place / "forbidden").exists()


@pytest.mark.parametrize("how", ["killed", "hung up"])
def test_a_relay_ends_its_command_when_the_sender_has_ended(place: Path, how: str) -> None:
    relay, sender = start(place, "relay", "await"), start(place, "relay", "deliver", touch_and_sleep(place / "runs"))
    assert eventually((place / "runs").exists, 60)
    assert sender.stdout is not None
    if how == "killed":
        sender.kill()
    else:
        sender.stdout.close()
    assert ended(relay) == (1, "torchfab: the head has closed the connection\n")
    sender.wait(60)
    sender.stdout.close()


def test_a_relay_exits_with_the_code_of_the_first_failed_rank(place: Path) -> None:
    ranks = [
        {"pid": 1, "ended": 3.0, "code": 1},
        {"pid": 2, "ended": 2.0, "code": 7},
        {"pid": 3, "ended": 1.0, "code": 0},
        {"pid": 4, "ended": None, "code": None},
    ]
    (place / "ranks.json").write_text(json.dumps(ranks))
    relay = start(place, "relay", "await")
    assert run(place, "relay", "deliver", "true")[0] == 7
    assert ended(relay)[0] == 7


# ---- rsh


def write_nodes(place: Path, nodes: Mapping[str, Mapping[str, object]], fail_fast: bool = False) -> None:
    (place / "nodes.json").write_text(json.dumps({"nodes": nodes, "fail_fast": fail_fast}))


def program(place: Path, name: str) -> None:
    """Create a program that prints its arguments, in a folder of PATH."""
    path = place / name
    path.write_text(f"#!{sys.executable}\nimport json, sys; print(json.dumps(sys.argv[1:]))\n")
    path.chmod(0o755)


def test_the_rsh_agent_delivers_the_command_to_the_relay(place: Path) -> None:
    program(place, "ssh")
    write_nodes(
        place, {"10.0.0.2": {"ssh": ["ssh", "-F", "/nowhere", "-p", "22", "--", "b"], "gate": ["gate", "deliver"]}}
    )
    path = {"PATH": f"{place / 'bin'}:{place}:/usr/bin:/bin"}
    code, stdout = run(place, "rsh", "-2", "-x", "-l", "root", "10.0.0.2", "cd /;", 'echo "a b"', env=path)
    # The ssh configuration of the launch machine does not exist here, so -F is dropped.
    assert (code, json.loads(stdout)) == (0, ["-p", "22", "--", "b", "exec gate deliver 'cd /; echo \"a b\"'"])


def test_a_node_without_a_relay_runs_the_command_here(place: Path) -> None:
    write_nodes(place, {"a": {"ssh": [], "gate": []}})
    assert run(place, "rsh", "-x", "a", "echo", "$((1 + 1))", "; exit 3") == (3, "2\n")


def test_the_pkill_of_deepspeed_is_not_run(place: Path) -> None:
    write_nodes(place, {"a": {"ssh": [], "gate": []}})
    assert run(place, "rsh", "a", "pkill -f ", "nothing; echo ran") == (0, "")


def test_a_host_outside_the_job_is_rejected(place: Path) -> None:
    write_nodes(place, {"a": {"ssh": [], "gate": []}})
    assert run(place, "rsh", "b", "echo ran") == (255, "")


def test_a_failing_node_ends_the_head(place: Path) -> None:
    write_nodes(place, {"a": {"ssh": [], "gate": []}}, fail_fast=True)
    code = "import subprocess, sys, time; subprocess.run(sys.argv[1:]); time.sleep(60)"
    argv = (sys.executable, "-c", code, sys.executable, str(place / "rsh.py"), "a", "exit 7")
    head = subprocess.Popen(argv, env={**os.environ, "TORCHFAB_JOB_ID": "x-1"})
    assert head.wait(60) == -signal.SIGTERM


# ---- head


def test_a_head_that_ends_notifies_the_relays_without_a_command(place: Path) -> None:
    (other := place / "other").mkdir()
    shutil.copy(place / "relay.py", other)
    relay = [sys.executable, "-I", "-S", str(other / "relay.py"), "deliver"]
    write_nodes(place, {"a": {"ssh": [], "gate": []}, "b": {"ssh": [], "gate": relay}}, fail_fast=True)
    waiting = subprocess.Popen([*relay[:-1], "await"], stdout=subprocess.PIPE, text=True)
    assert run(place, "head", "sh", "-c", "exit 3")[0] == 3
    assert ended(waiting) == (0, "torchfab: the head ended with 3 before it reached this node\n")


def test_a_head_does_not_notify_relays_that_had_a_command(place: Path) -> None:
    relay = [sys.executable, "-c", "raise SystemExit('again')"]
    write_nodes(place, {"b": {"ssh": [], "gate": relay}})
    (place / "visited-b").touch()
    assert run(place, "head", "true") == (0, "")


def test_a_head_forwards_signals(place: Path) -> None:
    write_nodes(place, {"a": {"ssh": [], "gate": []}})
    code = "import signal, sys, time; signal.signal(15, lambda *_: sys.exit(5)); open(sys.argv[1], 'w'); time.sleep(60)"
    process = start(place, "head", sys.executable, "-W", "ignore", "-c", code, str(place / "up"))
    assert eventually((place / "up").exists, 60)
    process.send_signal(signal.SIGTERM)
    assert ended(process)[0] == 5
