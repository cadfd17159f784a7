"""The project of a folder: the nearest one upwards with settings of torchfab."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from torchfab.config import project


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("torchfab.yaml", ""),
        ("fabric.yaml", "tasks: {}\ntorchfab:\n  stall_s: 5\n"),
        ("fabric.yml", '"torchfab" : {stall_s: 5}\n'),
        ("fabric.json", '{"run": {}, \n "torchfab": {}}'),
    ],
)
def test_a_folder_below_settings_of_torchfab_is_in_the_project(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    below = tmp_path / "a" / "b"
    below.mkdir(parents=True)
    assert project.find(below) == tmp_path
    assert project.find(tmp_path) == tmp_path


def test_the_nearest_project_counts(tmp_path: Path) -> None:
    inner = tmp_path / "inner"
    inner.mkdir()
    for folder in (tmp_path, inner):
        (folder / "torchfab.yaml").touch()
    assert project.find(inner / "not yet there") == inner


@pytest.mark.parametrize("text", ["run: {echo: true}\n", "mine:\n  torchfab_like: 1\n", "# torchfab:\n"])
def test_settings_of_fabric_alone_make_no_project(tmp_path: Path, text: str) -> None:
    (tmp_path / "fabric.yaml").write_text(text)
    assert project.find(tmp_path) != tmp_path


@pytest.mark.skipif(os.geteuid() != 0, reason="gives a file to another user")
@pytest.mark.parametrize(("mode", "counts"), [(0o777, False), (0o775, True)])
def test_settings_that_anybody_may_have_put_there_do_not_count(tmp_path: Path, mode: int, counts: bool) -> None:
    path = tmp_path / "torchfab.yaml"
    path.touch()
    os.chown(path, 65534, 65534)
    tmp_path.chmod(mode)
    assert (project.find(tmp_path) == tmp_path) is counts


def test_a_relative_folder_is_that_of_the_current_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "torchfab.yaml").touch()
    monkeypatch.chdir(tmp_path)
    assert project.find(Path()) == tmp_path
