"""`--setup` in a login shell: what it changes is taken as data, and its failures say what was printed."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import strategies as st

from tests.hostile import environments, texts
from tests.support import fuzzed, require
from torchfab.remote.host import login_setup

SHELLS = ("bash", "zsh", "fish", "tcsh", "dash")
# Sets A, changes PATH, removes GONE: as each shell writes it.
SETS = {
    "fish": "set -gx A 'two  words'; set -gx PATH /first $PATH; set -e GONE",
    "tcsh": "setenv A 'two  words'; setenv PATH /first:$PATH; unsetenv GONE",
}
SH_SETS = "export A='two  words' PATH=/first:$PATH; unset GONE"


@pytest.fixture
def before(tmp_path: Path) -> dict[str, str]:
    """The environment of a node's program: a home without start-up files."""
    return {"HOME": str(tmp_path), "PATH": os.environ["PATH"], "GONE": "1", "KEPT": "k", "TMPDIR": str(tmp_path)}


def run(setup: str, before: Mapping[str, str], shell: str = "bash", timeout_s: float = 20) -> dict[str, str]:
    return login_setup.run(setup, before["HOME"], timeout_s, before, require(shell))


def failure(setup: str, before: Mapping[str, str], shell: str = "bash", timeout_s: float = 20) -> str:
    with pytest.raises(login_setup.SetupError) as caught:
        run(setup, before, shell, timeout_s)
    return f"{caught.value.what}\n{caught.value.fix}"


@pytest.mark.parametrize("shell", SHELLS)
def test_what_a_shell_changes_is_taken(shell: str, before: dict[str, str]) -> None:
    after = run(SETS.get(shell, SH_SETS), before, shell)
    assert {name: after.get(name) for name in ("A", "GONE", "KEPT", "HOME")} == {
        "A": "two  words",
        "GONE": None,
        "KEPT": "k",
        "HOME": before["HOME"],
    }
    assert after["PATH"].startswith("/first:")  # /etc/profile may have set the rest anew
    assert not set(after) & {"SHLVL", "PWD", "_", "TERM", "SHELL", "TORCHFAB_SETUP", "VENDOR"}


@pytest.mark.parametrize("shell", SHELLS)
def test_a_failing_command_is_reported_with_its_output(shell: str, before: dict[str, str]) -> None:
    text = failure("echo looking; no-such-command --load cuda", before, shell)
    assert f"--setup failed in {require(shell)}: it ended with status" in text or "before its last command" in text
    assert "no-such-command" in text
    assert "no job control" not in text


@pytest.mark.parametrize(
    ("shell", "name", "start_up"),
    [
        ("bash", ".bash_profile", "echo welcome; case $- in *i*) tool() { export TOOL=$1; } ;; esac"),
        ("zsh", ".zshrc", "echo welcome; tool() { export TOOL=$1; }"),
        ("fish", ".config/fish/config.fish", "echo welcome; function tool; set -gx TOOL $argv[1]; end"),
        ("tcsh", ".tcshrc", "echo welcome; alias tool 'setenv TOOL \\!:1'"),
    ],
)
def test_start_up_files_define_commands_and_may_print(
    shell: str, name: str, start_up: str, before: dict[str, str]
) -> None:
    path = Path(before["HOME"], name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(start_up + "\n")
    assert run("tool yes", before, shell)["TOOL"] == "yes"
    history = [each.name for each in Path(before["HOME"]).rglob("*hist*") if each.is_file()]
    assert history == []


def test_what_setup_leaves_running_is_not_waited_for(before: dict[str, str]) -> None:
    assert run("sleep 30 & export A=1 B=$!", before, timeout_s=20)["A"] == "1"


def test_a_setup_that_waits_for_input_reads_its_end(before: dict[str, str]) -> None:
    assert "it ended with status 1" in failure("read answer", before)


def test_a_setup_that_does_not_end_is_killed(before: dict[str, str]) -> None:
    text = failure("echo so far; sleep 60", before, timeout_s=1)
    assert text.splitlines() == [
        f"--setup failed in {shutil.which('bash')}: it did not end within 1 s",
        "    so far",
        "the commands must not wait for input; if they are slow, raise the setting setup_timeout_s",
    ]


def test_a_setup_that_exits_is_named(before: dict[str, str]) -> None:
    assert "the shell ended before its last command (exit, exec)" in failure("exit 0", before)


def test_a_start_up_file_that_replaces_the_shell_is_named(before: dict[str, str]) -> None:
    Path(before["HOME"], ".bash_profile").write_text("echo hello; exec true\n")
    assert "a start-up file of the shell ended or replaced it" in failure("true", before)


def test_nothing_is_left_in_the_temporary_folder(
    before: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    run("export A=1", before)
    failure("false", before)
    assert list(tmp_path.glob("torchfab-setup-*")) == []


def test_the_login_shell_is_that_of_the_passwd_database(monkeypatch: pytest.MonkeyPatch) -> None:
    for shell, expected in ((require("bash"), require("bash")), ("/usr/sbin/nologin", "/bin/sh"), ("", "/bin/sh")):
        entry = type("Entry", (), {"pw_shell": shell})
        monkeypatch.setattr("pwd.getpwuid", lambda uid, entry=entry: entry)
        assert login_setup.login_shell() == expected


def test_the_interpreter_that_setup_puts_first_is_found(tmp_path: Path) -> None:
    (tmp_path / "python").symlink_to(sys.executable)
    before = {"PATH": os.environ["PATH"]}
    after = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    assert login_setup.find_python(before, after) == str(tmp_path / "python")
    assert login_setup.find_python(before, {**before, "A": "1"}) == ""
    assert login_setup.find_python(after, {"PATH": "/nowhere"}) == ""


# ---- the environment as data


def rendered(env: Mapping[str, str]) -> bytes:
    return b"".join(os.fsencode(f"{name}={value}") + b"\0" for name, value in env.items())


@fuzzed(environments())
def test_an_environment_is_parsed_as_it_was(env: dict[str, str]) -> None:
    assert login_setup.parse(rendered(env)) == env


@fuzzed(st.binary(max_size=80))
def test_any_bytes_are_parsed(data: bytes) -> None:
    assert all(isinstance(name, str) for name in login_setup.parse(data))


@fuzzed(environments(), environments())
def test_merging_takes_all_that_a_setup_changed(before: dict[str, str], after: dict[str, str]) -> None:
    noise = {"_": "/bin/x", "SHLVL": "2", "BASH_FUNC_module%%": "() { :; }", "PS1": "$ "}
    assert login_setup.merge(before, {**after, **noise}) == after


@fuzzed(environments(), environments())
def test_changes_are_what_differs(before: dict[str, str], after: dict[str, str]) -> None:
    changed, removed = login_setup.changes(before, after)
    kept = {name: value for name, value in before.items() if name not in removed}
    assert {**kept, **{name: after[name] for name in changed}} == after
    assert not set(changed) & set(removed)


@fuzzed(texts())
def test_a_shells_own_variables_stay_as_they_were(text: str) -> None:
    before = {"PWD": "/a", "TERM": text}
    assert login_setup.merge(before, {"PWD": text, "SHLVL": "1"}) == before
