"""`torchfab init`: the files of a project, none of which replaces one that is there."""

from __future__ import annotations

from pathlib import Path

import pytest

from torchfab.commands import init
from torchfab.config import defaults, settings_file
from torchfab.core import inventory

ROOT = Path(__file__).parents[2]


def run(folder: Path, hosts: str = "", with_example: bool = False) -> None:
    assert init.run(str(folder), hosts, with_example) == 0


def test_an_empty_folder_becomes_a_project(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fabfile.py", "gpus", "hosts", "torchfab.yaml"]
    assert [node.host for node in inventory.parse_hosts((tmp_path / "hosts").read_text(), "hosts")] == ["localhost"]
    assert len(inventory.parse_gpus((tmp_path / "gpus").read_text(), "gpus")[1]) == 2
    assert settings_file.read(tmp_path / "torchfab.yaml", ()).sections == {}
    assert "from torchfab.fabfile import *" in (tmp_path / "fabfile.py").read_text()
    assert len((tmp_path / "fabfile.py").read_text().splitlines()) == 3
    out = capsys.readouterr().out
    assert out.count("wrote") == 4
    assert out.splitlines()[-1].startswith("next: write host names into hosts; ")


def test_every_commented_setting_is_its_default(tmp_path: Path) -> None:
    run(tmp_path)
    lines = (tmp_path / "torchfab.yaml").read_text().splitlines()
    given = "\n".join(line[1:] for line in lines if line.startswith("#") and line[1:2].islower())
    found = settings_file.parse(given, "torchfab.yaml", ()).sections["torchfab"]
    assert len(found) > 5
    assert {**found, "script": []} == {name: defaults.SETTINGS[name] for name in found}


def test_hosts_of_the_command_line_are_written(tmp_path: Path) -> None:
    run(tmp_path, hosts="ann@node[1-2],node7")
    nodes = inventory.parse_hosts((tmp_path / "hosts").read_text(), "hosts")
    assert [node.host for node in nodes] == ["node1", "node2", "node7"]


def test_files_that_exist_stay_and_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("hosts", "fabfile.py", "torchfab.yaml"):
        (tmp_path / name).write_text("# mine\n")
    (tmp_path / "gpus").symlink_to("nowhere")
    run(tmp_path, with_example=True)
    out = capsys.readouterr().out.splitlines()
    assert out[:5] == [
        "exists  hosts",
        "exists  gpus",
        "exists  torchfab.yaml; for a launch without -- SCRIPT, add: script: [train_llm.py]",
        "exists  fabfile.py; for torchfab's tasks in fab, add: from torchfab.fabfile import *",
        "wrote   train_llm.py",
    ]
    assert {(tmp_path / name).read_text() for name in ("hosts", "fabfile.py", "torchfab.yaml")} == {"# mine\n"}
    run(tmp_path, with_example=True)
    assert "wrote" not in capsys.readouterr().out


def test_the_example_is_the_script_of_a_launch_without_one(tmp_path: Path) -> None:
    run(tmp_path, with_example=True)
    assert (tmp_path / "train_llm.py").read_text() == (ROOT / "train_llm.py").read_text()
    found = settings_file.read(tmp_path / "torchfab.yaml", ())
    assert found.sections == {"torchfab": {"script": ["train_llm.py"]}}


def test_a_project_inside_another_is_announced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(tmp_path)
    inner = tmp_path / "inner"
    inner.mkdir()
    run(inner)
    assert f"is inside the project {tmp_path}" in capsys.readouterr().err
