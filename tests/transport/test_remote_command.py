"""A command on this machine through the whole path: session, node program, process."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from tests.support import refusal
from torchfab.config.connection_settings import ConnectionSettings
from torchfab.core.specs import Node
from torchfab.remote import procfs
from torchfab.transport.messages.run import RunRequest
from torchfab.transport.remote_command import HostRun, RunsInterrupted, run_on_all

HERE = Node(0, "localhost")
# A child in a session of its own, as daemons have, which ignores SIGTERM.
STUBBORN = "(trap '' TERM; echo $BASHPID > pid; exec setsid sleep 60) & wait"


def request(workdir: Path, *argv: str, timeout_s: float = 0.0) -> Callable[[Node], RunRequest]:
    made = RunRequest(
        argv=list(argv),
        workdir=str(workdir),
        path=[str(workdir / "bin")],
        env={"COLOR": "a b"},
        timeout_s=timeout_s,
        most_bytes=1 << 20,
    )
    return lambda node: made


def run(workdir: Path, *argv: str, timeout_s: float = 0.0) -> HostRun:
    (found,) = run_on_all([HERE], ConnectionSettings(), request(workdir, *argv, timeout_s=timeout_s), lambda done: None)
    return found


def pid_of(workdir: Path) -> int:
    deadline = time.monotonic() + 20
    while (
        not (text := (workdir / "pid").read_text() if (workdir / "pid").exists() else "")
        and time.monotonic() < deadline
    ):
        time.sleep(0.02)
    return int(text)


def test_output_and_exit_code_of_a_command(tmp_path: Path) -> None:
    found = run(tmp_path, "bash", "-c", 'echo "$COLOR" "$@"; pwd; echo bad >&2; exit 7', "-", "it's; $HOME", "")
    assert found.out == ["a b it's; $HOME ", str(tmp_path)]
    assert found.err == ["bad"]
    assert found.end is not None
    assert (found.end.code, found.end.timed_out, found.end.stopped) == (7, False, False)


def test_its_input_is_empty_and_path_begins_with_the_interpreter(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "nvidia-smi").write_text("#!/bin/sh\ncat; echo ours\n")
    (tmp_path / "bin" / "nvidia-smi").chmod(0o755)
    assert run(tmp_path, "nvidia-smi").out == ["ours"]


def test_setup_changes_the_environment_and_its_failure_is_the_error(tmp_path: Path) -> None:
    made = request(tmp_path, "bash", "-c", "echo $FLAVOUR $COLOR")(HERE)

    def with_setup(text: str) -> HostRun:
        changed = msgspec.structs.replace(made, setup=text, setup_timeout_s=20.0)
        (found,) = run_on_all([HERE], ConnectionSettings(), lambda node: changed, lambda done: None)
        return found

    assert with_setup("export FLAVOUR=sweet COLOR=red").out == ["sweet a b"]
    failed = with_setup("echo no such module; false")
    assert failed.end is None
    assert "no such module" in str(failed.error)


def test_a_signal_is_a_negative_code(tmp_path: Path) -> None:
    found = run(tmp_path, "bash", "-c", "kill -9 $$")
    assert found.end is not None
    assert found.end.code == -9


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (
            ("no-such-program",),
            "there is no program no-such-program on PATH\n  fix: install it there; a shell's own command",
        ),
        (("./gone",), "there is no program ./gone\n"),
        (("plain.sh",), "plain.sh is a file\n  fix: run it as ./plain.sh, or name what runs it: -- bash plain.sh"),
        (("./plain.sh",), "./plain.sh is not executable"),
        (("folder",), "folder is a folder"),
        (("./folder",), "./folder is a folder"),
        (("./bare",), "./bare cannot be run: Exec format error\n  fix: name what runs it: -- bash ./bare"),
    ],
)
def test_a_command_that_cannot_start_says_why(tmp_path: Path, argv: tuple[str, ...], expected: str) -> None:
    (tmp_path / "plain.sh").write_text("echo a\n")
    (tmp_path / "bare").write_text("echo a\n")
    (tmp_path / "bare").chmod(0o755)
    (tmp_path / "folder").mkdir()
    found = run(tmp_path, *argv)
    assert found.end is None
    assert expected in str(found.error)


def test_a_missing_working_directory_is_named(tmp_path: Path) -> None:
    assert f"the working directory {tmp_path}/gone does not exist" in str(run(tmp_path / "gone", "true").error)


def test_a_process_in_the_background_does_not_delay_the_end(tmp_path: Path) -> None:
    started = time.monotonic()
    found = run(tmp_path, "bash", "-c", "echo $$ > pid; echo here; exec 3>&1; (sleep 60 & echo $! > pid)")
    assert found.out == ["here"]
    assert time.monotonic() - started < 20
    os.kill(pid_of(tmp_path), 9)  # it goes on, as behind ssh


def test_a_command_whose_time_is_up_is_ended_with_all_its_descendants(tmp_path: Path) -> None:
    found = run(tmp_path, "bash", "-c", "echo begun; " + STUBBORN, timeout_s=1.0)
    assert found.end is not None
    assert (found.out, found.end.timed_out, found.end.left) == (["begun"], True, [])
    assert not procfs.is_running(pid_of(tmp_path))


def test_ctrl_c_ends_the_command_and_keeps_what_it_wrote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def sleep(seconds: float) -> None:
        if (tmp_path / "pid").exists():
            monkeypatch.undo()
            raise KeyboardInterrupt

    monkeypatch.setattr("torchfab.transport.remote_command.time.sleep", sleep)
    argv = ("bash", "-c", "echo begun; " + STUBBORN)
    error = refusal(
        RunsInterrupted, lambda: run_on_all([HERE], ConnectionSettings(), request(tmp_path, *argv), lambda done: None)
    )
    assert error is not None
    (found,) = error.runs
    assert found.out == ["begun"]
    assert found.end is not None
    assert found.end.stopped
    assert not procfs.is_running(pid_of(tmp_path))


def test_huge_output_is_bounded(tmp_path: Path) -> None:
    found = run(tmp_path, "bash", "-c", "head -c 30000000 /dev/urandom; echo; echo end")
    assert found.end is not None
    assert found.end.code == 0
    assert found.end.dropped > 28_000_000
    assert found.out[-1] == "end"
    assert sum(map(len, found.out)) < 2_000_000
