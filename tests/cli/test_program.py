"""The program of `fab`: one line and exit code 2 where the command line or the settings are wrong."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fabric.main import Fab

from torchfab import fabfile
from torchfab.cli import program
from torchfab.cli.flags import FlagTask
from torchfab.cli.program import FabfileLoader, Program, TorchfabProgram, make_program
from torchfab.core import program_name

ROOT = Path(__file__).parents[2]


class Ended:
    """How a command line ended: its exit code and output."""

    def __init__(self, code: object, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err


@pytest.fixture
def fab(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path):  # type: ignore[no-untyped-def]
    """Run a command line in a project of its own, whose fabric.yaml may be given."""
    monkeypatch.setenv("FABRIC_TORCHFAB_RECORDS", str(tmp_path / "records"))
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)

    def run(*words: str, settings: bytes | None = None) -> Ended:
        root = ROOT
        if settings is not None:
            root = tmp_path
            (root / "fabfile.py").write_text((ROOT / "fabfile.py").read_text())
            (root / "fabric.yaml").write_bytes(settings)
        argv = ["fab", "-r", str(root), *words]
        monkeypatch.setattr(sys, "argv", argv)
        code: object = 0
        try:
            make_program().run(argv)
        except SystemExit as ended:
            code = ended.code
        captured = capsys.readouterr()
        return Ended(code, captured.out, captured.err)

    return run


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("statsu", "there is no task statsu; did you mean status?"),
        ("--help statsu", "there is no task statsu; did you mean status?"),
        ("-l statsu", "there is no task statsu; did you mean status?"),
        ("-F tree -l", "-F (--list-format) must be flat, nested or json, got 'tree'"),
        ("-t abc jobs", "takes a whole number, got 'abc'"),
        ("jobs -t abc", "takes a whole number, got 'abc'"),
        ("-t 0 jobs", "-t must be at least 1 second, got 0"),
        ("-t -1 jobs", "-t must be at least 1 second, got -1"),
        ("launch-per-node --master_port 1", "launch-per-node has no flag --master_port; did you mean --port?"),
        ("launch-per-node --num_nodes=2", "launch-per-node has no flag --num_nodes; did you mean --nodes?"),
        ("logs --tail 5", "logs has no flag --tail; did you mean --lines?"),
        ("logs -f", "-f is --config of fab and needs a file; did you mean fab logs --follow?"),
        ("-- train.py", "there is no task before --: fab launch-per-node -- train.py"),
        ("-H a -H b jobs", "-H (--hosts) is given twice"),
        ("-H a --hosts=b jobs", "-H (--hosts) is given twice"),
        ("-H a jobs -H b", "-H (--hosts) is given twice"),
        ("-S . jobs", "-S .: it is a folder"),
        ("-f nowhere.yaml jobs", "-f nowhere.yaml: there is no such file"),
        ("-f . jobs", "-f .: it is a folder"),
        ("-H a launch-slurm -- x.py", "-H names hosts, and a scheduler chooses its own"),
        ("signal USR9", "the signal is one of USR1, USR2, HUP, CONT, URG, WINCH, got 'USR9'"),
        ("launch-slurm -- A=1 python x.py", "--env A=1 -- python x.py"),
        ("-c nowhere jobs", "there is no nowhere.py in"),
        ("launch-per-node status", "launch-per-node is followed by the task status"),
        ("launch-per-node --env -- train.py", "--env needs a value"),
    ],
)  # fmt: skip
def test_a_wrong_command_line_is_one_error(fab, line: str, expected: str) -> None:  # type: ignore[no-untyped-def]
    ended = fab(*line.split())
    assert (ended.code, ended.out) == (2, "")
    assert ended.err.startswith("error: ")
    assert expected in ended.err


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (b"5", "fabric.yaml holds no settings, got 5"),
        (b"hello", "fabric.yaml holds no settings, got 'hello'"),
        (b"[a]", "fabric.yaml holds no settings, got ['a']"),
        (b"a: [", "fabric.yaml cannot be read"),
        (b"\xff\xfe", "fabric.yaml cannot be read: 'utf-8' codec"),
        (b"torchfab: 3", "torchfab is a section, got 3"),
        (b"torchfab: {hostfile: 5}", "torchfab.hostfile must be a text, got 5"),
        (b"torchfab: {fanuot: 5}", "torchfab.fanuot names no setting; did you mean torchfab.fanout?"),
        (b"torchfab: {5: 5}", "the names of settings in torchfab are texts"),
        (b"torchfb: {fanout: 5}", "there is no section torchfb; did you mean torchfab?"),
        (b"5: 5", "the name of a section is a text, got 5"),
        (b"tasks: {executor_class: 5}", "tasks.executor_class is not an executor class: 5"),
        (b"tasks: {executor_class: nowhere.Executor}", "tasks.executor_class is not an executor class"),
        (b"tasks: {executor_class: pathlib.Path}", "tasks.executor_class is not an executor class"),
        (b"tasks: 5", "settings files contradict each other"),
        (b"connect_kwargs: {timeout: abc}", "connect_kwargs.timeout is a number of seconds, got 'abc'"),
        (b"connect_kwargs: {key_filename: 5}", "connect_kwargs.key_filename is a path or a list of paths, got 5"),
    ],
)  # fmt: skip
def test_a_wrong_file_of_settings_is_one_error(fab, settings: bytes, expected: str) -> None:  # type: ignore[no-untyped-def]
    ended = fab("jobs", settings=settings)
    assert (ended.code, ended.out) == (2, "")
    assert expected in ended.err


@pytest.mark.parametrize("settings", [b"", b"# nothing", b"torchfab:\n  # nothing", b"mine: {a: 5}"])
def test_settings_that_are_not_given_have_defaults(fab, settings: bytes) -> None:  # type: ignore[no-untyped-def]
    assert fab("jobs", settings=settings).out.startswith("no job was launched")


def test_a_variable_of_a_misspelt_setting_is_an_error(fab, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setenv("FABRIC_TORCHFAB_FANUOT", "3")
    assert "did you mean FABRIC_TORCHFAB_FANOUT?" in fab("jobs").err


def test_the_version_is_torchfabs_first(fab) -> None:  # type: ignore[no-untyped-def]
    assert fab("--version").out.startswith("torchfab 0.")


def test_list_of_a_task_is_its_help(fab) -> None:  # type: ignore[no-untyped-def]
    assert "--watch" in fab("-l", "status").out


@pytest.mark.parametrize("task", ["launch-per-node", "launch-slurm", "status", "logs", "trust", "import"])
def test_help_explains_each_flag(fab, task: str) -> None:  # type: ignore[no-untyped-def]
    flags = [line for line in fab("--help", task).out.splitlines() if line.startswith("  --")]
    assert flags
    assert [line for line in flags if len(line.split(maxsplit=1)) < 2] == []


def test_fab_alone_prints_its_help(fab) -> None:  # type: ignore[no-untyped-def]
    alone = fab()
    assert alone.out.startswith("Usage: fab")
    assert alone.err == ""


def test_flags_that_may_repeat_add_up(fab) -> None:  # type: ignore[no-untyped-def]
    missing = fab("-i", str(ROOT / "README.md"), "jobs", "-i", "no-such-key")
    assert "fab -i no-such-key: there is no such file" in missing.err


def test_a_running_program_of_fabric_becomes_ours() -> None:
    class Loading:
        def __init__(self, running: Fab) -> None:
            self.running = running

    def load(self: Fab) -> None:
        program.adopt()

    running = Fab(version="3", name="Fabric")
    load(running)
    assert type(running) is Program


def test_only_the_flags_of_named_tasks_are_read(fab, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    read: list[str] = []
    arguments = FlagTask.get_arguments

    def get_arguments(task: FlagTask, ignore_unknown_help: bool | None = None) -> Any:
        read.append(task.name)
        return arguments(task, ignore_unknown_help)

    monkeypatch.setattr(FlagTask, "get_arguments", get_arguments)
    assert fab("--list").code == 0
    assert not read
    assert fab("--help=lemons").code == 0
    assert set(read) == {"lemons"}


# ---- compiled modules


def test_our_modules_are_kept_compiled_unless_the_user_forbids_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for forbidden in (0, 1):
        monkeypatch.setattr(sys, "dont_write_bytecode", not forbidden)
        with monkeypatch.context() as patch:
            patch.setattr(sys, "flags", SimpleNamespace(dont_write_bytecode=forbidden))
            program.keep_compiled_modules()
        assert sys.dont_write_bytecode is bool(forbidden)


def test_a_fabfile_is_not_kept_compiled(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "fabfile.py").write_text("import beside_the_fabfile\nfound = True\n")
    (tmp_path / "beside_the_fabfile.py").write_text("")
    before = dict(sys.modules)
    try:
        module, folder = FabfileLoader(start=str(tmp_path)).load("fabfile")
    finally:
        sys.modules.clear()
        sys.modules.update(before)
    assert (module.found, folder) == (True, str(tmp_path))
    assert [path.name.partition(".")[0] for path in (tmp_path / "__pycache__").iterdir()] == ["beside_the_fabfile"]


# ---- the command `torchfab`


@pytest.fixture
def torchfab(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path):  # type: ignore[no-untyped-def]
    """Run `torchfab` in a folder below a project, or below no project."""
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    monkeypatch.setattr(program_name, "_called", [program_name.called()])
    below = tmp_path / "a" / "b"
    below.mkdir(parents=True)
    monkeypatch.chdir(below)

    def run(*words: str, settings: bytes | None = None) -> Ended:
        if settings is not None:
            (tmp_path / "torchfab.yaml").write_bytes(settings)
        argv = ["torchfab", *words]
        monkeypatch.setattr(sys, "argv", argv)
        code: object = 0
        try:
            TorchfabProgram.make(lambda: fabfile).run(argv)
        except SystemExit as ended:
            code = ended.code
        captured = capsys.readouterr()
        return Ended(code, captured.out, captured.err)

    return run


def test_settings_are_found_upwards_and_paths_are_theirs(torchfab, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    ended = torchfab("launch-per-node", "--", "x.py", settings=b"hostfile: lists/nodes\n")
    assert ended.code == 2
    assert str(tmp_path / "lists" / "nodes") in ended.err


def test_without_a_project_it_is_the_current_folder(torchfab, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    ended = torchfab("launch-per-node", "--", "x.py")
    assert str(tmp_path / "a" / "b" / "hosts") in ended.err


def test_a_fabfile_of_the_project_is_not_run(torchfab, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "fabfile.py").write_text("raise SystemExit('run')\n")
    assert torchfab("jobs", settings=b"").out.startswith("no job was launched from here")


def test_messages_name_the_command_that_was_called(torchfab) -> None:  # type: ignore[no-untyped-def]
    assert torchfab("jobs").out.endswith("to launch one: torchfab launch-per-node --follow\n")
    assert torchfab("train.py").err.endswith("torchfab launch-per-node -- train.py\n")


@pytest.mark.parametrize(
    ("called_as", "name"), [(("-m", "torchfab"), "torchfab"), ((str(ROOT / "torchfab" / "__main__.py"),), "fab")]
)
def test_only_the_file_of_the_program_in_a_clone_is_named_fab(called_as: tuple[str, ...], name: str) -> None:
    line = [sys.executable, *called_as, "--", "train.py"]
    ended = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (
        2,
        f"error: there is no task before --: {name} launch-per-node -- train.py\n",
    )


def test_help_shows_the_tasks_and_the_flags(torchfab) -> None:  # type: ignore[no-untyped-def]
    shown = torchfab("--help").out
    assert shown.startswith("Usage: torchfab [flags] TASK")
    assert "  launch-per-node " in shown
    assert "-r STRING, --search-root=STRING" in shown
    assert max(map(len, shown.splitlines())) <= 80


@pytest.mark.parametrize(
    ("settings", "line", "expected"),
    [
        (b"fanuot: 5", "jobs", "torchfab.yaml:1: fanuot names no setting; did you mean fanout?"),
        (b"a: [", "jobs", "torchfab.yaml:1 is not YAML"),
        (b"\xff", "jobs", "torchfab.yaml cannot be read"),
        (b"5", "jobs", "torchfab.yaml: it holds no settings, got 5"),
        (b"hostfile: 5", "jobs", "torchfab.yaml:1: hostfile must be a text, got 5"),
        (b"", "launch-per-node", "no script is given"),
        (b"", "-c x jobs", "torchfab has no flag -c"),
        (b"", "-r nowhere jobs", "-r nowhere: there is no such folder"),
    ],
)
def test_a_mistake_of_an_installed_user_is_one_error(torchfab, settings: bytes, line: str, expected: str) -> None:  # type: ignore[no-untyped-def]
    ended = torchfab(*line.split(), settings=settings)
    assert (ended.code, ended.out) == (2, "")
    assert ended.err.startswith("error: ")
    assert expected in ended.err


def test_a_fabfile_of_ones_own_has_the_settings_of_torchfab_yaml(fab, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "torchfab.yaml").write_text("fanout: 7\n")
    shown = fab("config", "--show-origin", settings=b"torchfab: {fanout: 5, stall_s: 9}")
    assert re.search(r"^fanout +torchfab.yaml:1 +7$", shown.out, re.MULTILINE)
    assert re.search(r"^stall_s +fabric.yaml:1 +9$", shown.out, re.MULTILINE)
