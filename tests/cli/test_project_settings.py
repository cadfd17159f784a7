"""The settings that a Python program reads are those of a command line in the same folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from torchfab.cli import project_settings
from torchfab.core.errors import UsageError


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()


def test_the_nearest_project_its_files_and_variables_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "home" / ".fabric.yaml").write_text("torchfab:\n  fanout: 3\n  stall_s: 7\n  restarts: 1\n")
    (tmp_path / "fabric.yaml").write_text("torchfab:\n  stall_s: 8\n  hostfile: other\n")
    (tmp_path / "torchfab.yaml").write_text("stall_s: 9\n")
    (tmp_path / "src").mkdir()
    monkeypatch.setenv("FABRIC_TORCHFAB_RESTARTS", "5")
    config, folder = project_settings.load(tmp_path / "src")
    assert folder == tmp_path
    found = {name: config.torchfab[name] for name in ("fanout", "stall_s", "hostfile", "restarts", "gpufile")}
    assert found == {"fanout": 3, "stall_s": 9, "hostfile": "other", "restarts": 5, "gpufile": "gpus"}


def test_a_folder_without_settings_is_its_own_project(tmp_path: Path) -> None:
    config, folder = project_settings.load(tmp_path / "home")
    assert folder == tmp_path / "home"
    assert config.torchfab.records == ".torchfab/records"


def test_connection_flags_are_those_of_the_command_line(tmp_path: Path) -> None:
    (tmp_path / "config").touch()
    config, _ = project_settings.load(tmp_path, str(tmp_path / "config"), ["/a", "/b"], 3.0)
    assert dict(config.connect_kwargs) == {"key_filename": ["/a", "/b"], "timeout": 3.0}
    assert config._runtime_ssh_path == str(tmp_path / "config")


@pytest.mark.parametrize(
    ("name", "text", "problem"),
    [
        ("fabric.yaml", "torchfab: [\n", "fabric.yaml"),
        ("fabric.yaml", "- torchfab:\n", "fabric.yaml"),
        ("fabric.yaml", "torchfab: x\n", "torchfab is a section, got 'x'"),
        ("torchfab.yaml", "fan_out: 3\n", "did you mean fanout"),
    ],
)
def test_a_wrong_file_is_an_error_without_a_traceback(name: str, text: str, problem: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(UsageError, match=problem):
        project_settings.load(tmp_path)


def test_a_wrong_variable_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FABRIC_TORCHFAB_FANOUT", "many")
    with pytest.raises(UsageError, match="FABRIC_TORCHFAB_FANOUT"):
        project_settings.load(tmp_path)
