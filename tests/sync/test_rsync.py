"""The command line of rsync, its quoting rules, and its output."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.hostile import HOSTILE
from tests.support import require
from torchfab.sync import rsync

SSH = ("ssh", "-F", "/my config", "-p", "2222")
# A fake ssh that records its arguments, and fails.
RECORD_ARGS = "import json, sys; json.dump(sys.argv[2:], open(sys.argv[1], 'w')); sys.exit(255)"

arguments = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20)


def shell_arguments(argv: list[str], folder: Path, host: str = "node1") -> list[str]:
    """Return the arguments that rsync passes to its remote shell: ours, then its own."""
    recorded = folder / "args"
    recorded.unlink(missing_ok=True)
    shell = (sys.executable, "-S", "-c", RECORD_ARGS, str(recorded), *argv)
    subprocess.run(rsync.copy_argv(str(folder), "/there", host, shell, False), capture_output=True, check=False)
    found: list[str] = json.loads(recorded.read_text())
    return found


def split_by_rsync(argv: list[str], folder: Path) -> list[str]:
    return shell_arguments(argv, folder)[: len(argv)]


@settings(max_examples=15, deadline=None)
@given(argv=st.lists(arguments, min_size=1, max_size=4))
def test_rsync_splits_the_quoted_shell_command_correctly(
    argv: list[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    require("rsync")
    assert split_by_rsync(argv, tmp_path_factory.mktemp("rsh")) == argv


def test_rsync_splits_hostile_arguments_correctly(tmp_path: Path) -> None:
    require("rsync")
    hostile = [text for text in HOSTILE.values() if "\0" not in text]
    assert hostile
    assert split_by_rsync(hostile, tmp_path) == hostile


def test_remote_copy_uses_ssh_and_the_path_on_the_host() -> None:
    argv = rsync.copy_argv("/here it is", "/there", "node1", SSH, delete=False)
    assert argv[0] == "rsync"
    assert "--rsh=ssh -F '/my config' -p 2222" in argv
    assert argv[-3:] == ("--", "/here it is/", "node1:/there/")


def test_ipv6_host_is_in_brackets() -> None:
    assert rsync.copy_argv("/a", "/b", "fd00::2", SSH, delete=False)[-1] == "[fd00::2]:/b/"


def test_rsync_passes_an_ipv6_host_to_ssh_without_brackets(tmp_path: Path) -> None:
    require("rsync")
    assert shell_arguments(["-p", "22"], tmp_path, "fd00::2")[:4] == ["-p", "22", "fd00::2", "rsync"]


def test_local_copy_uses_no_ssh() -> None:
    argv = rsync.copy_argv("/a", "/b", "", (), delete=False)
    assert argv[-2:] == ("/a/", "/b/")
    assert not [word for word in argv if word.startswith("--rsh")]


@pytest.mark.parametrize("delete", [False, True])
def test_files_are_deleted_only_on_request(delete: bool) -> None:
    assert ("--delete" in rsync.copy_argv("/a", "/b", "n", SSH, delete)) == delete


def test_list_has_the_files_that_git_would_add_with_any_name(tmp_path: Path) -> None:
    require("rsync")
    source = tmp_path / "source"
    kept = ["train.py", "pkg/mod.py", "jobs/kept", "odd \n\\#012 'x' é", ".gitignore", "pkg/.gitignore"]
    ignored = ["a.pt", "data/d", "pkg/local", ".git/config", ".venv/v", ".torchfab/t", ".torchfab-sync-1"]
    for name in [*kept, *ignored]:
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_text("")
    (source / "link").symlink_to("nowhere at all")
    (source / ".gitignore").write_text("*.pt\n/data/\n")
    (source / "pkg" / ".gitignore").write_text("local\n")
    done = subprocess.run(rsync.list_argv(str(source)), capture_output=True, check=True)
    assert sorted(rsync.parse_list(done.stdout)) == sorted([*kept, "link"])


@pytest.mark.parametrize(
    ("text", "stats"),
    [
        (  # rsync 3.2.7
            "Number of files: 8\nNumber of regular files transferred: 4\nTotal transferred file size: 22 bytes\n",
            rsync.Stats(4, 22),
        ),
        (  # rsync 3.0, and 2.6.9 of macOS
            "Number of files: 8\nNumber of files transferred: 1,204\nTotal transferred file size: 12,345 bytes\n",
            rsync.Stats(1204, 12345),
        ),
        ("", rsync.Stats(0, 0)),
    ],
)
def test_stats_of_several_rsync_versions_are_parsed(text: str, stats: rsync.Stats) -> None:
    assert rsync.parse_stats(text) == stats


@pytest.mark.parametrize(
    ("code", "stderr", "fix"),
    [
        (255, "Permission denied (publickey).\n", "BatchMode"),
        (127, "bash: rsync: command not found\n", "apt-get install"),
        (12, "sh: 1: rsync: command not found\n", "apt-get install"),
        (2, "protocol version mismatch -- is your shell clean?\n", "start-up file"),
        (30, "io timeout after 60 seconds\n", "sync or fab pull again"),
        (11, "No space left on device (28)\n", ""),
    ],
)
def test_failed_copy_reports_the_last_lines_of_rsync_and_a_fix(code: int, stderr: str, fix: str) -> None:
    problem = rsync.copy_error(code, "line 1\nline 2\nline 3\n\n" + stderr)
    assert problem.message.splitlines() == [f"rsync ended with {code}", "line 1", "line 2", "line 3", stderr.strip()]
    assert fix in problem.fix
    assert bool(fix) == bool(problem.fix)


NOISE = """\
rsync: connection unexpectedly closed (0 bytes received so far) [sender]
rsync error: unexplained error (code 255) at io.c(228) [sender=3.2.7]
"""


@pytest.mark.parametrize(
    ("cause", "fix"),
    [
        ("/home/u/.ssh/config: line 25: Bad configuration option: usekeychain\nterminating, 2 bad options", "option"),
        ("@@@ UNPROTECTED PRIVATE KEY FILE! @@@\nPermissions 0644 for 'k' are too open.", "chmod 600"),
        ("Host key verification failed.", "fab trust"),
    ],
)
def test_cause_of_a_failed_ssh_is_kept_and_has_its_fix(cause: str, fix: str) -> None:
    problem = rsync.copy_error(255, f"{cause}\n{NOISE}")
    assert cause.splitlines()[-1] in problem.message
    assert "unexpectedly closed" not in problem.message
    assert fix in problem.fix


def test_first_line_of_a_long_error_is_kept() -> None:
    problem = rsync.copy_error(255, "the cause\n" + "".join(f"line {at}\n" for at in range(30)))
    lines = problem.message.splitlines()
    assert (lines[1], lines[-1], len(lines)) == ("the cause", "line 29", 7)
