"""What the launchers with a head put on the nodes: each stands alone, and is run here as it is run there."""

from __future__ import annotations

import ast
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.integration.fab import eventually

SHIMS = sorted((Path(__file__).parents[2] / "torchfab" / "remote" / "shims").glob("*.py"))
SHOW = "import json, os, sys; print(json.dumps([sys.argv[1:], dict(os.environ)]))"


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Give a folder, with a blank in its name, that holds the shims and what they expect."""
    folder = tmp_path / "a place"
    for name in ("logs", "errors", "bin"):
        (folder / name).mkdir(parents=True)
    for path in SHIMS:
        shutil.copy(path, folder)
    return folder


def start(place: Path, shim: str, *words: str, env: Mapping[str, str] | None = None) -> subprocess.Popen[str]:
    argv = (sys.executable, "-I", "-S", str(place / f"{shim}.py"), *words)
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("TORCHFAB", "RANK", "PMI"))}
    return subprocess.Popen(argv, env={**clean, **(env or {})}, stdout=subprocess.PIPE, text=True)


def run(place: Path, shim: str, *words: str, env: Mapping[str, str] | None = None) -> tuple[int, str]:
    return ended(start(place, shim, *words, env=env))


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Wait for a process; return its exit code, and what it printed."""
    stdout, _ = process.communicate(timeout=30)
    return process.returncode, stdout


# What a shim is about: the launcher that it stands in for, the library whose speed it measures.
NEEDED = {"colossalai_run": {"fabric", "colossalai"}, "network_benchmark": {"torch"}}


@pytest.mark.parametrize("path", SHIMS, ids=lambda path: path.stem)
def test_a_shim_is_python_3_9_and_nothing_of_ours(path: Path) -> None:
    tree = ast.parse(path.read_text(), feature_version=(3, 9))
    imported = [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    imported += [node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    imported = [name for name in imported if name != "rsh" or path.stem != "head"]
    outside = {name.partition(".")[0] for name in imported} - set(sys.stdlib_module_names)
    assert outside <= NEEDED.get(path.stem, set())


# ---- rank


@pytest.mark.parametrize(
    "told",
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
def test_a_rank_hears_its_place_in_the_words_of_torch(place: Path, told: Mapping[str, str]) -> None:
    code, stdout = run(place, "rank", "--logs", sys.executable, "-c", SHOW, "a b", "--", "$x", "", env=told)
    assert (code, stdout) == (0, "")
    argv, env = json.loads((place / "logs" / "rank-3.log").read_text())
    assert argv == ["a b", "--", "$x", ""]
    wanted = {"RANK": "3", "LOCAL_RANK": "1", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2"}
    assert {name: env[name] for name in wanted} == wanted
    assert env["TORCHELASTIC_ERROR_FILE"] == str(place / "errors" / "rank-3.json")
    assert (place / "logs" / "rank-3.log").stat().st_mode & 0o777 == 0o600


def test_a_rank_takes_its_script_from_the_file_beside_it(place: Path) -> None:
    (place / "script.json").write_text(json.dumps([sys.executable, "-c", SHOW, "it's", "é"]))
    code, stdout = run(place, "rank", "--script", "--local_rank=0", env={"RANK": "0"})
    assert (code, json.loads(stdout)[0]) == (0, ["it's", "é", "--local_rank=0"])


@pytest.mark.parametrize(("code", "wanted"), [("sys.exit(7)", 7), ("os.kill(os.getpid(), 9)", -9)])
def test_a_rank_ends_as_its_script_ends(place: Path, code: str, wanted: int) -> None:
    assert run(place, "rank", "--logs", sys.executable, "-c", f"import os, sys; {code}", env={"RANK": "0"})[0] == wanted


def test_a_rank_passes_signals_on_and_gives_its_script_the_time_to_end(place: Path) -> None:
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
    assert eventually((place / "up").exists, 20)
    process.send_signal(signal.SIGTERM)
    assert ended(process)[0] == 5


def test_a_rank_without_a_place_says_so(place: Path) -> None:
    code, _ = run(place, "rank", "--logs", "true")
    assert code == 1


def test_a_rank_of_mpich_that_fails_aborts_the_others(place: Path) -> None:
    reader, writer = os.pipe()
    os.set_inheritable(writer, True)
    env = {"PMI_RANK": "0", "MPI_LOCALRANKID": "0", "PMI_SIZE": "1", "MPI_LOCALNRANKS": "1", "PMI_FD": str(writer)}
    argv = (sys.executable, str(place / "rank.py"), "--logs", sys.executable, "-c", "raise SystemExit(7)")
    done = subprocess.run(argv, env={**os.environ, **env}, pass_fds=[writer], check=False)
    assert (done.returncode, os.read(reader, 100)) == (7, b"cmd=abort exitcode=7\n")
    os.close(reader)
    os.close(writer)


# ---- gate


def test_a_gate_runs_what_is_delivered_where_it_waits(place: Path) -> None:
    inside = start(place, "relay", "await", env={"SECRET": "inside"})
    visit = run(place, "relay", "deliver", 'echo "$SECRET"; exit 7', env={"SECRET": "outside"})
    assert ended(inside) == (7, "inside\n")
    assert visit == (7, "")


def test_a_gate_takes_one_command(place: Path) -> None:
    inside = start(place, "relay", "await")
    visitor = start(place, "relay", "deliver", "sleep 60")
    assert eventually((place / "command.json").exists, 20)
    assert run(place, "relay", "deliver", "touch forbidden")[0] == 0
    inside.send_signal(signal.SIGTERM)
    assert (ended(inside)[0], ended(visitor)[0]) == (143, 143)
    assert not Path("forbidden").exists()


@pytest.mark.parametrize("how", ["killed", "hung up"])
def test_a_gate_ends_its_command_when_the_visitor_has_gone(place: Path, how: str) -> None:
    inside = start(place, "relay", "await")
    visitor = start(place, "relay", "deliver", "sleep 60")
    assert eventually((place / "command.json").exists, 20)
    time.sleep(0.3)
    assert visitor.stdout is not None
    if how == "killed":
        visitor.kill()
    else:
        visitor.stdout.close()
    assert ended(inside) == (1, "torchfab: the head has hung up\n")
    visitor.wait(20)
    visitor.stdout.close()


def test_a_gate_ends_with_the_code_of_its_first_rank_that_failed(place: Path) -> None:
    ranks = [
        {"pid": 1, "ended": 3.0, "code": 1},
        {"pid": 2, "ended": 2.0, "code": 7},
        {"pid": 3, "ended": 1.0, "code": 0},
        {"pid": 4, "ended": None, "code": None},
    ]
    (place / "ranks.json").write_text(json.dumps(ranks))
    inside = start(place, "relay", "await")
    assert run(place, "relay", "deliver", "true")[0] == 7
    assert ended(inside)[0] == 7


# ---- ssh


def know(place: Path, nodes: Mapping[str, Mapping[str, object]], fail_fast: bool = False) -> None:
    (place / "nodes.json").write_text(json.dumps({"nodes": nodes, "fail_fast": fail_fast}))


def program(place: Path, name: str) -> None:
    """Make a program that prints its words, in a folder of PATH."""
    path = place / name
    path.write_text(f"#!{sys.executable}\nimport json, sys; print(json.dumps(sys.argv[1:]))\n")
    path.chmod(0o755)


def test_the_ssh_of_a_head_goes_our_way_to_the_gate(place: Path) -> None:
    program(place, "ssh")
    know(place, {"10.0.0.2": {"ssh": ["ssh", "-F", "/nowhere", "-p", "22", "--", "b"], "gate": ["gate", "deliver"]}})
    path = {"PATH": f"{place / 'bin'}:{place}:/usr/bin:/bin"}
    code, stdout = run(place, "rsh", "-2", "-x", "-l", "root", "10.0.0.2", "cd /;", 'echo "a b"', env=path)
    # The configuration of the launch machine is not here, so this machine's own holds.
    assert (code, json.loads(stdout)) == (0, ["-p", "22", "--", "b", "exec gate deliver 'cd /; echo \"a b\"'"])


def test_a_node_without_a_gate_is_this_one(place: Path) -> None:
    know(place, {"a": {"ssh": [], "gate": []}})
    assert run(place, "rsh", "-x", "a", "echo", "$((1 + 1))", "; exit 3") == (3, "2\n")


def test_the_pkill_of_deepspeed_is_not_run(place: Path) -> None:
    know(place, {"a": {"ssh": [], "gate": []}})
    assert run(place, "rsh", "a", "pkill -f ", "nothing; echo ran") == (0, "")


def test_a_host_that_is_no_node_is_not_reached(place: Path) -> None:
    know(place, {"a": {"ssh": [], "gate": []}})
    assert run(place, "rsh", "b", "echo ran") == (255, "")


def test_a_node_that_fails_ends_the_head(place: Path) -> None:
    know(place, {"a": {"ssh": [], "gate": []}}, fail_fast=True)
    code = "import subprocess, sys, time; subprocess.run(sys.argv[1:]); time.sleep(60)"
    argv = (sys.executable, "-c", code, sys.executable, str(place / "rsh.py"), "a", "exit 7")
    head = subprocess.Popen(argv, env={**os.environ, "TORCHFAB_JOB_ID": "x-1"})
    assert head.wait(20) == -signal.SIGTERM


# ---- head


def test_a_head_that_ends_tells_the_gates_to_which_it_never_came(place: Path) -> None:
    (other := place / "other").mkdir()
    shutil.copy(place / "relay.py", other)
    gate = [sys.executable, "-I", "-S", str(other / "relay.py"), "deliver"]
    know(place, {"a": {"ssh": [], "gate": []}, "b": {"ssh": [], "gate": gate}}, fail_fast=True)
    inside = subprocess.Popen([*gate[:-1], "await"], stdout=subprocess.PIPE, text=True)
    assert run(place, "head", "sh", "-c", "exit 3")[0] == 3
    assert ended(inside) == (0, "torchfab: the head ended with 3 before it came here\n")


def test_a_head_leaves_alone_the_gates_to_which_it_came(place: Path) -> None:
    gate = [sys.executable, "-c", "raise SystemExit('again')"]
    know(place, {"b": {"ssh": [], "gate": gate}})
    (place / "visited-b").touch()
    assert run(place, "head", "true") == (0, "")


def test_a_head_passes_signals_on(place: Path) -> None:
    know(place, {"a": {"ssh": [], "gate": []}})
    code = "import signal, sys, time; signal.signal(15, lambda *_: sys.exit(5)); open(sys.argv[1], 'w'); time.sleep(60)"
    process = start(place, "head", sys.executable, "-W", "ignore", "-c", code, str(place / "up"))
    assert eventually((place / "up").exists, 20)
    process.send_signal(signal.SIGTERM)
    assert ended(process)[0] == 5
