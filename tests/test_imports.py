"""Who may import whom: the shape of the house, as tests."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
REMOTE = sorted((ROOT / "torchfab" / "remote").glob("*.py"))
LAUNCHERS = sorted((ROOT / "torchfab" / "launchers").glob("*.py"))
LIFE = sorted((ROOT / "torchfab" / "life").glob("[a-z]*.py"))
BLOCKED = ("fabric", "paramiko", "invoke", "torch", "transformers", "datasets")
PLANNING = (
    *("errors", "job", "inventory", "environment", "render", "status", "logview", "stall", "events"),
    *("why.page", "why.story"),
    *("launchers", *(f"launchers.{path.stem}" for path in LAUNCHERS if path.stem != "__init__")),
)
# What each module may import of torchfab, at run time: the imports point one way, and this table has no circle.
ABOVE_ALL = {"fabfile", "tasks", "torchfab.rehearsal"}
DIRECTION: dict[str, set[str]] = {
    "errors": set(),
    "job": {"errors"},
    "inventory": {"errors", "job"},
    "environment": {"errors"},
    "launchers": {"errors", "job", "inventory", "environment", "launchers", "manifest", "sbatch", "shims"},
    "sbatch": {"errors"},
    "slurmstate": {"job", "records", "status"},
    "why": {"inventory", "job", "logview", "remote", "status", "why"},
    "allocation": {"errors", "inventory", "job"},
    "manifest": {"errors", "job", "manifest"},
    "pods": {
        *("errors", "job", "inventory", "manifest", "status", "events", "records", "fanout", "remote", "pods", "why"),
        *("shapes",),
    },
    "render": {"job"},
    "status": {"inventory", "job"},
    "logview": {"inventory"},
    "shapes": {"logview"},
    "answers": {"shapes"},
    "stall": {"inventory", "logview", "status"},
    "alarm": {"commandline", "errors", "stall", "status"},
    "events": {"errors", "job", "status"},
    "stacks": {"errors", "inventory", "job", "logview", "stacks"},
    "columns": set(),
    "bundle": set(),
    "fanout": set(),
    "deadlines": set(),
    "shims": set(),
    "asking": {"errors", "fanout", "job", "session", "settings", "ssh"},
    "records": {"errors", "job", "records", "settings"},
    "ssh": {"bundle", "commandline", "deadlines", "errors", "fanout", "job", "session", "settings", "ssh"},
}

# The same inside a few rooms.
INSIDE: dict[str, set[str]] = {
    "ssh.patience": {"deadlines", "fanout"},
    "ssh.transport": set(),
    "ssh.knownhosts": set(),
    "ssh.hostcerts": set(),
    "ssh.config": {"errors", "ssh.index"},
    "ssh.index": {"ssh.config"},  # for its types alone
    "ssh.routes": {"errors", "ssh.config"},
    "ssh.agents": {"ssh.routes"},
    "ssh.hostkeys": {"errors", "ssh.knownhosts", "ssh.hostcerts", "ssh.routes", "ssh.transport"},
    "ssh.explaining": {"errors"},
    "ssh.logins": {"errors", "ssh.explaining", "ssh.patience", "ssh.connecting", "ssh.hostkeys"},
    "ssh.pipes": {"bundle", "errors", "settings", "ssh.explaining", "ssh.logins", "ssh.patience", "ssh.connecting"},
    "sync.rsync": {"errors"},
    "sync.exceptions": {"sync.rsync"},
    "sync.results": {"errors", "inventory", "job", "sync.rsync"},
    "top.load": {"columns", "inventory", "job", "stall", "status", "sync.results"},
}

# All of doctor but its way out: what nodes told becomes findings and text, without asking anybody.
DOCTOR = ("finding", "report", "node", "gpu", "between", "way", "show")


def names_imported(path: Path) -> set[str]:
    """Return the dotted names of all modules that a file imports, inside functions too."""
    names: set[str] = set()
    for statement in ast.walk(ast.parse(path.read_text())):
        if isinstance(statement, ast.Import):
            names |= {alias.name for alias in statement.names}
        elif isinstance(statement, ast.ImportFrom):
            assert statement.level == 0, f"{path} imports relatively"
            module = statement.module or ""
            names |= {f"{module}.{alias.name}" for alias in statement.names} if module == "torchfab" else {module}
            if module in ("torchfab.launchers", "torchfab.remote", "torchfab.ssh", "torchfab.sync", "torchfab.top"):
                names |= {f"{module}.{alias.name}" for alias in statement.names}
    return names


def rooms_imported(path: Path) -> set[str]:
    """Return the modules and packages directly below torchfab that a file imports."""
    return {name.split(".")[1] for name in names_imported(path) if name.startswith("torchfab.")}


def run_python(*words: str) -> str:
    done = subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def modules_after(code: str) -> set[str]:
    """Return the modules that a fresh interpreter has loaded after some code."""
    return set(json.loads(run_python("-c", f"{code}\nimport sys, json; print(json.dumps(list(sys.modules)))")))


def test_every_planning_module_imports_without_fabric_and_torch() -> None:
    lines = ["import sys", f"for name in {BLOCKED!r}: sys.modules[name] = None"]
    run_python("-c", "\n".join([*lines, *(f"import torchfab.{name}" for name in PLANNING)]))


def test_planning_modules_load_neither_fabric_nor_torch_nor_clustershell() -> None:
    loaded = modules_after("\n".join(f"import torchfab.{name}" for name in PLANNING))
    assert not loaded & {*BLOCKED, "ClusterShell", "numpy"}


@pytest.mark.parametrize("room", sorted(DIRECTION))
def test_imports_point_one_way(room: str) -> None:
    path = ROOT / "torchfab" / room
    paths = sorted(path.glob("*.py")) if path.is_dir() else [path.with_suffix(".py")]
    for each in paths:
        assert rooms_imported(each) <= DIRECTION[room], each.name


@pytest.mark.parametrize("module", sorted(INSIDE))
def test_imports_point_one_way_inside_rooms_too(module: str) -> None:
    room, name = module.split(".")
    names = names_imported(ROOT / "torchfab" / room / f"{name}.py") - {f"torchfab.{room}"}
    ours = {name.removeprefix("torchfab.") for name in names if name.startswith("torchfab.")}
    assert ours <= INSIDE[module]


@pytest.mark.parametrize("module", DOCTOR)
def test_what_doctor_concludes_is_pure(module: str) -> None:
    path = ROOT / "torchfab" / "doctor" / f"{module}.py"
    assert rooms_imported(path) <= {"doctor", "errors", "inventory", "job"}
    assert "torchfab.doctor.asking" not in names_imported(path)


@pytest.mark.parametrize("module", ["values", "deciding", "story"])
def test_what_a_supervisor_decides_is_pure(module: str) -> None:
    path = ROOT / "torchfab" / "supervise" / f"{module}.py"
    assert rooms_imported(path) <= {"supervise", "errors"}
    ours = {name.rpartition(".")[2] for name in names_imported(path) if name.startswith("torchfab.supervise")}
    assert ours <= {"values"}


def test_errors_imports_nothing_of_ours_and_nothing_installed() -> None:
    assert names_imported(ROOT / "torchfab" / "errors.py") <= {"__future__", "collections.abc"}


def test_no_launcher_knows_a_runtime_and_no_runtime_knows_a_launcher() -> None:
    launchers = [rooms_imported(path) for path in LAUNCHERS]
    runtimes = [rooms_imported(path) for path in sorted((ROOT / "torchfab" / "runtimes").glob("*.py"))]
    assert launchers
    assert runtimes
    assert not any("runtimes" in rooms for rooms in launchers)
    assert not any("launchers" in rooms for rooms in runtimes)


def test_nothing_below_imports_what_is_above() -> None:
    below = [path for path in (ROOT / "torchfab").rglob("*.py") if "rehearsal" not in path.parts]
    guilty = {str(path.relative_to(ROOT)): names_imported(path) & ABOVE_ALL for path in below}
    assert below
    assert not {path: names for path, names in guilty.items() if names}


def test_only_a_few_modules_import_connections() -> None:
    # colossal.py replaces the connection that `colossalai run` makes, and makes none.
    allowed = {
        "explaining.py",
        "connecting.py",
        "transport.py",
        "agents.py",
        "hostkeys.py",
        "hostcerts.py",
        "flags.py",
        "commandline.py",
        "colossal.py",
    }
    for path in sorted((ROOT / "torchfab").rglob("*.py")):
        roots = {name.partition(".")[0] for name in names_imported(path)}
        assert path.name in allowed or not roots & {"fabric", "paramiko"}, path.name


def test_the_training_script_knows_nothing_of_torchfab() -> None:
    names = names_imported(ROOT / "train_llm.py")
    assert not [name for name in names if name.split(".")[0] in ("torchfab", "fabric", "invoke")]


# ---- what runs on a node


@pytest.mark.parametrize("path", REMOTE, ids=lambda path: path.stem)
def test_what_runs_on_a_node_imports_the_standard_library_only(path: Path) -> None:
    for name in names_imported(path):
        assert name.split(".")[0] in sys.stdlib_module_names or name.startswith("torchfab.remote"), name


@pytest.mark.parametrize("path", REMOTE, ids=lambda path: path.stem)
def test_what_runs_on_a_node_is_python_3_9(path: Path) -> None:
    ast.parse(path.read_text(), feature_version=(3, 9))


@pytest.mark.parametrize("path", REMOTE, ids=lambda path: path.stem)
def test_what_runs_on_a_node_evaluates_no_annotations(path: Path) -> None:
    tree = ast.parse(path.read_text())
    first = [node for node in tree.body if isinstance(node, ast.ImportFrom)][:1]
    assert path.stem == "__init__" or [node.module for node in first] == ["__future__"]


def test_what_runs_on_a_node_does_not_load_typing() -> None:
    names = ", ".join(f"torchfab.remote.{path.stem}" for path in REMOTE if path.stem != "__init__")
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import {names}; print('typing' in sys.modules)"
    assert run_python("-I", "-S", "-c", code) == "False\n"


# ---- fab


def test_the_fabfile_loads_nothing_heavy_that_fab_itself_does_not() -> None:
    fab = modules_after("import fabric.main")
    ours = modules_after("import fabric.main, fabfile")
    roots = {name.partition(".")[0] for name in ours - fab}
    assert not roots & {"torch", "transformers", "datasets", "numpy", "ClusterShell", "rich", "paramiko", "yaml"}


def test_fab_lists_every_task_with_what_it_does() -> None:
    listed = run_python("-m", "fabric", "--list").splitlines()
    # Help that does not fit into 80 columns goes on in lines that are indented further.
    tasks = [line.split(maxsplit=1) for line in listed if re.match("  [a-z]", line)]
    assert {"launch-per-node", "launch-per-gpu", "jobs", "status", "logs", "why", "wait", "attach", "stop"} <= {
        task[0] for task in tasks
    }
    assert all(len(task) == 2 for task in tasks), tasks


def test_a_command_about_a_job_on_this_machine_loads_neither_connections_nor_the_checks_of_a_launch() -> None:
    commands = ", ".join(f"torchfab.life.{path.stem}" for path in LIFE)
    code = f"import {commands}, types, torchfab.runtimes.tmux, torchfab.ssh; from torchfab.job import Node\n"
    code += "torchfab.life.stall_s('', types.SimpleNamespace(config={'stall_s': 600}))\n"
    loaded = modules_after(code + "torchfab.ssh.connections([Node(0, 'localhost')], None)")
    ours = {"torchfab.ssh.connecting", "torchfab.launch", "torchfab.doctor"}
    assert not loaded & {*ours, "ClusterShell", "rich", "kubernetes", "torch"}
