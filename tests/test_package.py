"""The package: what it needs, what it exports, and that nothing of it is imported early."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from invoke import Collection
from packaging.requirements import Requirement

import fabfile
import torchfab
from torchfab import api
from torchfab import fabfile as tasks

ROOT = Path(__file__).parents[1]
# Python 3.10 has no tomllib; there pytest brings tomli.
TOML = importlib.import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")
PROJECT = TOML.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]


def pins(name: str) -> dict[str, str]:
    """Return the versions that a file of requirements pins, by lower-case name."""
    found = re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / name).read_text(), re.MULTILINE)
    return {package.lower(): version for package, version in found}


def test_the_package_takes_what_the_clone_pins() -> None:
    clone = {**pins("requirements-dev.txt"), **pins("requirements.txt")}
    wanted = map(Requirement, [*PROJECT["dependencies"], *(each for extra in EXTRAS.values() for each in extra)])
    for requirement in wanted:
        assert clone[requirement.name.lower()] in requirement.specifier, requirement


def test_without_extras_nothing_heavy_is_needed() -> None:
    names = {Requirement(each).name.lower() for each in PROJECT["dependencies"]}
    assert not names & {"torch", "transformers", "datasets", "kubernetes", "deepspeed", "numpy"}
    assert sorted(EXTRAS) == ["deepspeed", "kubernetes", "mcp", "otlp", "stacks", "train"]


def test_libraries_whose_private_parts_are_used_are_exact() -> None:
    exact = {Requirement(each).name for each in PROJECT["dependencies"] if "==" in each}
    assert exact == {"fabric", "invoke", "paramiko"}


def test_a_fabfile_of_ones_own_takes_all_tasks_and_nothing_else() -> None:
    listed = set(Collection.from_module(tasks).task_names)
    assert {"launch-per-node", "status", "import", "init", "config"} <= listed
    assert set(Collection.from_module(fabfile).task_names) == listed
    public = {name for name in vars(fabfile) if not name.startswith("__")}
    assert public == set(tasks.__all__)


def test_importing_the_package_loads_no_module_of_others() -> None:
    code = "import sys; before = set(sys.modules); import torchfab; print(sorted(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "['torchfab']\n"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The names of the files in the wheel of this checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    argv = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(argv, cwd=ROOT, check=True, capture_output=True)
    (path,) = folder.glob("torchfab-*-py3-none-any.whl")
    return zipfile.ZipFile(path).namelist()


def test_the_wheel_holds_every_module_and_the_example(wheel: list[str]) -> None:
    modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / "torchfab").rglob("*.py")}
    inside = {name for name in wheel if ".dist-info/" not in name}
    assert inside == modules | {"torchfab/example/train_llm.py", "torchfab/py.typed"}


def test_the_package_exports_the_python_api() -> None:
    assert torchfab.__all__ == api.__all__
    assert all(getattr(torchfab, name) is getattr(api, name) for name in torchfab.__all__)
