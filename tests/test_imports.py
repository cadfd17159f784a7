"""Import rules that import-linter (see pyproject.toml) does not check."""

from __future__ import annotations

import ast
import importlib
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from torchfab import launchers, runtimes
from torchfab.core.errors import TorchfabError
from torchfab.launching import launcher_table
from torchfab.remote import server

ROOT = Path(__file__).parents[1]
REMOTE = [path for path in sorted((ROOT / "torchfab" / "remote").rglob("*.py")) if "shims" not in path.parts]
LAUNCHERS = sorted((ROOT / "torchfab" / "launchers").glob("*.py"))
LIFE = [ROOT / "torchfab" / "commands" / f"{name}.py" for name in ("attach", "jobs", "logs", "status", "stop", "why")]
BLOCKED = ("fabric", "paramiko", "invoke", "torch", "transformers", "datasets")
PLANNING = (
    *(f"core.{name}" for name in ("errors", "specs", "inventory", "environment", "dry_run", "status", "log_lines")),
    *("core.stall", "core.events", "why.report", "why.diagnosis"),
    *("launchers", *(f"launchers.{path.stem}" for path in LAUNCHERS if path.stem != "__init__")),
)


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
            if module.startswith("torchfab."):
                names |= {f"{module}.{alias.name}" for alias in statement.names}
    return names


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


def test_planning_modules_load_no_fabric_torch_or_clustershell() -> None:
    loaded = modules_after("\n".join(f"import torchfab.{name}" for name in PLANNING))
    assert not loaded & {*BLOCKED, "ClusterShell", "numpy"}


# The layers themselves are contracts in pyproject.toml, which import-linter checks in `inv lint`. It does not see
# imports by name, which are checked here.


def imports_by_name(path: Path) -> list[str]:
    """Return the source of the argument of each importlib.import_module call in a file."""
    calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    return [ast.unparse(call.args[0]) for call in calls if ast.unparse(call.func) == "importlib.import_module"]


def test_only_the_server_on_a_node_imports_by_name() -> None:
    found = {path.relative_to(ROOT).as_posix(): imports_by_name(path) for path in (ROOT / "torchfab").rglob("*.py")}
    assert {path: len(calls) for path, calls in found.items() if calls} == {
        "torchfab/remote/server.py": 1,
    }


@pytest.mark.parametrize("name", ["tmux", "slurm", "kubernetes"])
def test_every_runtime_is_found_by_its_name(name: str) -> None:
    assert name == runtimes.load(name).NAME


def test_every_launcher_is_found_by_its_name() -> None:
    modules = [importlib.import_module(f"torchfab.launchers.{path.stem}") for path in LAUNCHERS]
    found = [module for module in modules if hasattr(module, "facts_from_flags") and hasattr(module, "NAME")]
    assert len(found) == 6
    assert all(launchers.load(module.NAME) is module for module in found)


def test_every_launcher_has_its_row_of_shared_flags() -> None:
    modules = [importlib.import_module(f"torchfab.launchers.{path.stem}") for path in LAUNCHERS]
    names = {module.NAME for module in modules if hasattr(module, "NAME")} - {"network"}
    assert set(launcher_table.ALL) == names
    assert all(name == launchers.load_any(name).NAME for name in names)


def test_the_runtime_or_launcher_of_another_version_is_an_error() -> None:
    with pytest.raises(TorchfabError, match="there is no runtime 'ray'"):
        runtimes.load("ray")
    with pytest.raises(TorchfabError, match="there is no launcher 'ray'"):
        launchers.load("ray")


def test_every_request_of_a_node_has_a_function() -> None:
    for module, name in {**server.ANSWERS, **server.STREAMS}.values():
        assert callable(getattr(importlib.import_module(f"torchfab.remote.{module}"), name))


def test_errors_imports_nothing_of_ours_and_nothing_installed() -> None:
    assert names_imported(ROOT / "torchfab" / "core" / "errors.py") <= {"__future__", "collections.abc"}


def test_only_transport_and_cli_import_fabric_or_paramiko() -> None:
    # colossalai_run.py replaces the connection that `colossalai run` makes, and makes none.
    cli = {f"cli/{name}.py" for name in ("executor", "flags", "program", "project_settings")}
    allowed = {*cli, "remote/shims/colossalai_run.py"}
    for path in sorted((ROOT / "torchfab").rglob("*.py")):
        roots = {name.partition(".")[0] for name in names_imported(path)}
        relative = path.relative_to(ROOT / "torchfab").as_posix()
        may_import = relative in allowed or relative.startswith("transport/ssh/")
        assert may_import or not roots & {"fabric", "paramiko"}, relative


def test_the_training_script_knows_nothing_of_torchfab() -> None:
    names = names_imported(ROOT / "train_llm.py")
    assert not [name for name in names if name.split(".")[0] in ("torchfab", "fabric", "invoke")]


# ---- code that runs on nodes


@pytest.mark.parametrize("path", REMOTE, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_node_code_imports_the_standard_library_only(path: Path) -> None:
    for name in names_imported(path):
        assert name.split(".")[0] in sys.stdlib_module_names or name.startswith("torchfab.remote"), name


@pytest.mark.parametrize("path", REMOTE, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_node_code_is_python_3_9(path: Path) -> None:
    ast.parse(path.read_text(), feature_version=(3, 9))


@pytest.mark.parametrize("path", REMOTE, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_node_code_evaluates_no_annotations(path: Path) -> None:
    tree = ast.parse(path.read_text())
    first = [node for node in tree.body if isinstance(node, ast.ImportFrom)][:1]
    assert path.stem == "__init__" or [node.module for node in first] == ["__future__"]


def test_node_code_does_not_load_typing() -> None:
    modules = [path.relative_to(ROOT).with_suffix("") for path in REMOTE if path.stem != "__init__"]
    names = ", ".join(".".join(module.parts) for module in modules)
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import {names}; print('typing' in sys.modules)"
    assert run_python("-I", "-S", "-c", code) == "False\n"


# ---- fab


def test_the_fabfile_loads_no_heavy_module() -> None:
    fab = modules_after("import fabric.main")
    ours = modules_after("import fabric.main, fabfile")
    roots = {name.partition(".")[0] for name in ours - fab}
    assert not roots & {"torch", "transformers", "datasets", "numpy", "ClusterShell", "rich", "paramiko", "yaml"}


def test_fab_lists_every_task_with_its_help() -> None:
    listed = run_python("-m", "fabric", "--list").splitlines()
    # Help that does not fit into 80 columns goes on in lines that are indented further.
    tasks = [line.split(maxsplit=1) for line in listed if re.match("  [a-z]", line)]
    assert {"launch-per-node", "launch-per-gpu", "jobs", "status", "logs", "why", "wait", "attach", "stop"} <= {
        task[0] for task in tasks
    }
    assert all(len(task) == 2 for task in tasks), tasks


def test_commands_on_a_local_job_load_no_ssh_and_no_doctor() -> None:
    commands = ", ".join(f"torchfab.commands.{path.stem}" for path in LIFE)
    code = f"import {commands}, types, torchfab.runtimes.tmux, torchfab.transport.ssh\n"
    code += "from torchfab.core.specs import Node\n"
    code += "torchfab.launching.job_lookup.stall_s(None, types.SimpleNamespace(config={'stall_s': 600}))\n"
    loaded = modules_after(
        code + "torchfab.transport.ssh.NodeGroup([Node(0, 'localhost')], types.SimpleNamespace(fanout=4))"
    )
    ours = {"torchfab.transport.ssh.connect", "torchfab.launching.launch", "torchfab.doctor"}
    assert not loaded & {*ours, "ClusterShell", "rich", "kubernetes", "torch"}
