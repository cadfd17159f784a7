"""Candidates for the word at the cursor, and the scripts in real shells."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from fabric.main import make_program
from hypothesis import strategies as st
from invoke import Collection

import fabfile
from tests.support import fuzzed, require
from torchfab.cli import completion
from torchfab.cli.completion import Known
from torchfab.core.errors import UsageError

COLLECTION = Collection.from_module(fabfile)
TASKS = {str(context.name): context for context in COLLECTION.to_contexts()}
TAKING = [name for name in TASKS if getattr(COLLECTION[name], "takes_command", False)]
KNOWN = Known(
    make_program().initial_context, TASKS, TAKING, lambda: ["gpt2", "gpt3", "logs-test"], lambda: ["node1", "node2"]
)


def complete(line: str) -> list[str]:
    """Return the candidates for the last word of a line; a blank at its end begins an empty word."""
    return completion.candidates(line.split(" "), KNOWN)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("stat", ["status"]),
        ("launch-per-", ["launch-per-gpu", "launch-per-node"]),
        ("status ", ["gpt2", "gpt3", "logs-test"]),
        ("status gpt", ["gpt2", "gpt3"]),
        ("status gpt2 ", []),
        ("logs --rank 0 gpt3", ["gpt3"]),
        ("logs --foll", ["--follow"]),
        ("logs --follow ", ["gpt2", "gpt3", "logs-test"]),
        ("logs --follow --no", ["--no-fold"]),
        ("-H ", ["node1", "node2"]),
        ("-H node1,", ["node1,node1", "node1,node2"]),
        ("-H node1 sta", ["stacks", "status"]),
        ("status -H no", ["node1", "node2"]),
        ("attach --node node1", ["node1"]),
        ("-S ", []),
        ("launch-per-node --hostfile ", []),
        ("launch-per-node --name x ", ["--"]),
        ("launch-per-node --name x -- tr", []),
        ("run --timeout 5 ", ["--"]),
        ("prof", ["profile"]),
        ("profile gpt", ["gpt2", "gpt3"]),
        ("profile --sec", ["--seconds"]),
        ("pull gpt", ["gpt2", "gpt3"]),
        ("pull gpt2 gpt", []),
        ("forward gpt2 t", ["tensorboard"]),
        ("completion ", ["bash", "fish", "zsh"]),
        ("--vers", ["--version"]),
        ("xyzzy stat", ["status"]),
    ],
)
def test_a_word_is_completed(line: str, expected: list[str]) -> None:
    assert complete(line) == expected


def test_an_empty_line_is_completed_with_all_tasks() -> None:
    assert complete("") == sorted(TASKS)
    assert completion.candidates([], KNOWN) == sorted(TASKS)


@fuzzed(
    st.lists(st.one_of(st.sampled_from(["status", "-H", "--name", "--", "logs", "pull", "a"]), st.text(max_size=5)))
)
def test_any_words_are_completed_without_an_error(words: list[str]) -> None:
    assert all(each.startswith(words[-1] if words else "") for each in completion.candidates(words, KNOWN))


def test_another_shell_is_refused() -> None:
    with pytest.raises(UsageError, match="completion for bash, zsh, fish, got 'tcsh'"):
        completion.script("tcsh", "fab")


# ---- real shells

BASH = """
source <(torchfab completion bash)
COMP_WORDS=(torchfab status 'gp') COMP_CWORD=2
_torchfab_complete torchfab gp status
printf '%s\\n' "${COMPREPLY[@]}"
COMP_WORDS=(torchfab -H '') COMP_CWORD=2
_torchfab_complete torchfab '' -H
printf '%s\\n' "${COMPREPLY[@]}"
complete -p torchfab
"""
ZSH = """
autoload -Uz compinit && compinit -u
source <(torchfab completion zsh)
compadd() { shift; print -l -- "$@" }
words=(torchfab status gp) CURRENT=3
_torchfab
words=(torchfab -H '') CURRENT=3
_torchfab
print "complete $_comps[torchfab] torchfab"
"""
FISH = """
torchfab completion fish | source
complete -C 'torchfab status gp'
complete -C 'torchfab -H '
echo 'complete -F _torchfab_complete torchfab'
"""


@pytest.mark.parametrize(
    ("shell", "argv", "script"),
    [("bash", ("--norc",), BASH), ("zsh", ("-f",), ZSH), ("fish", ("--no-config",), FISH)],
)
def test_the_shell_completes_jobs_and_hosts(tmp_path: Path, shell: str, argv: tuple[str, ...], script: str) -> None:
    program = require(shell)
    (tmp_path / "torchfab.yaml").write_text("hostfile: hosts\nrecords: records\n")
    (tmp_path / "hosts").write_text("node1\nnode2\n")
    for job in ("gpt2", "gpt3", "other"):
        (tmp_path / "records" / job).mkdir(parents=True)
        (tmp_path / "records" / job / "record.json").write_text("{}")
    command = tmp_path / "bin" / "torchfab"
    command.parent.mkdir()
    command.write_text(f"#!{sys.executable}\nfrom torchfab.__main__ import main\nmain()\n")
    command.chmod(0o755)
    root = Path(__file__).parents[2]
    env = {"PATH": f"{command.parent}:{os.environ['PATH']}", "HOME": str(tmp_path), "PYTHONPATH": str(root)}
    (tmp_path / "script").write_text(script)
    done = subprocess.run(
        [program, *argv, str(tmp_path / "script")],
        check=False,
        cwd=tmp_path,
        env=env,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    assert lines[:4] == ["gpt2", "gpt3", "node1", "node2"]
    assert lines[-1].endswith(" torchfab")
