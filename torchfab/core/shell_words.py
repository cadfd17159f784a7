"""Words after `--` that are meant for a shell, and commands that only run another one."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Sequence

from torchfab.core import environment
from torchfab.core.errors import UsageError

_ASSIGNMENT = re.compile(r"[A-Za-z_][A-Za-z0-9_]*=.*", re.DOTALL)
_OPERATORS = re.compile(r"[|&;<>`$\n]")
SHELLS = ("sh", "bash", "zsh", "dash", "ksh", "fish")
# Programs that run the command behind their own flags, with the flags that take a value.
_WRAPPERS = {
    "env": ("-u", "--unset", "-C", "--chdir", "-S"),
    "nohup": (),
    "time": ("-f", "-o"),
    "nice": ("-n",),
    "ionice": ("-c", "-n"),
    "stdbuf": (),
    "setsid": (),
    "timeout": ("-k", "-s"),
    "taskset": (),
    "numactl": ("-C", "-N", "-m", "-i", "-p"),
    "xvfb-run": ("-n", "-s", "-e"),
    "sudo": ("-u", "-g"),
    "exec": (),
}
_RUNNERS = ("uv", "poetry", "pdm", "hatch", "pipenv", "rye", "conda", "mamba", "micromamba")  # `uv run COMMAND`
_RUNNER_VALUES = ("-n", "--name", "-p", "--prefix", "--with", "--python", "-e", "--extra", "--group", "--project")
_BEHIND_ONE_WORD = ("timeout", "taskset")  # a duration, a mask


def check(words: Sequence[str], is_file: bool) -> None:
    """Refuse words that only a shell would understand: no shell reads them.

    Parameters
    ----------
    words : sequence of str
        The words after `--`; at least one.
    is_file : bool
        Whether the first word is a file here.

    Raises
    ------
    UsageError
        With the line to write instead.
    """
    first = words[0]
    if _ASSIGNMENT.fullmatch(first) and not is_file:
        count = _count_assignments(words)
        flags = " ".join(f"--env {shlex.quote(_shown(word))}" for word in words[:count])
        what = f"{_shown(first)} is a shell's way to set a variable, and no shell reads the words"
        raise UsageError(what, f"{flags} -- {shlex.join(words[count:]) or 'train.py'}")
    if len(words) == 1 and not is_file and any(map(str.isspace, first)):
        raise UsageError(f"{first!r} is one word, and no shell reads it on the nodes", _split(first))
    if os.path.basename(first) == "nohup" and words[-1] == "&":
        raise UsageError("& behind the command: no shell reads it", "leave both out: jobs run in the background anyway")


def _shown(assignment: str) -> str:
    """Return an assignment as a value of --env; of a secret the name alone, which takes the value from here."""
    name = assignment.partition("=")[0]
    return name if environment.is_secret(name) else assignment


def _count_assignments(words: Sequence[str]) -> int:
    return next((at for at, word in enumerate(words) if not _ASSIGNMENT.fullmatch(word)), len(words))


def _split(text: str) -> str:
    if _OPERATORS.search(text):
        return f"name the shell: -- bash -c {shlex.quote(text)}"
    try:
        return f"write its words: -- {shlex.join(shlex.split(text))}"
    except ValueError:  # a quote that is not closed
        return f"write its words without quotes around them all: -- {text}"


def without_wrappers(words: Sequence[str]) -> Sequence[str]:
    """Return the command that is run in the end, without `env A=1`, `uv run`, `bash -c '…'` and the like in front.

    Parameters
    ----------
    words : sequence of str
        A command.

    Returns
    -------
    sequence of str
        The same object where nothing stands in front.
    """
    for _ in range(8):
        inner = _unwrapped(words)
        if inner is None:
            return words
        words = inner
    return words


def _unwrapped(words: Sequence[str]) -> Sequence[str] | None:
    name = os.path.basename(words[0]) if words else ""
    if name in _WRAPPERS:
        rest = _behind_flags(words[1:], _WRAPPERS[name])[name in _BEHIND_ONE_WORD :]
        return rest[_count_assignments(rest) :]
    if name in _RUNNERS and "run" in words[1:3]:
        return _behind_flags(words[words.index("run") + 1 :], _RUNNER_VALUES)
    if name in SHELLS and len(words) > 2 and re.fullmatch(r"-[a-z]*c", words[1]):
        return _simple_command(words[2])
    return None


def _behind_flags(words: Sequence[str], with_value: Sequence[str]) -> Sequence[str]:
    at = 0
    while at < len(words) and words[at].startswith("-"):
        if words[at] == "--":
            return words[at + 1 :]
        at += 2 if words[at] in with_value else 1
    return words[at:]


def _simple_command(text: str) -> Sequence[str] | None:
    """Return the words of a shell's command; of several, those of the last."""
    last = re.split(r"&&|\|\||;|\n", text.strip())[-1]
    try:
        words = shlex.split(last)
    except ValueError:
        return None
    return words[_count_assignments(words) :] or None
