"""What stands after `--`: a Python script, a module, code, a shell script, a program; how a rank runs it.

Pure but for `look`, which says what a file of this machine is.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from torchfab.core.errors import UsageError

PYTHON = "python"  # as the first word of a program: the training interpreter of each node
_PYTHON = re.compile(r"(.*/)?python(\d+(\.\d+)?)?")
_SHELLS = ("sh", "bash", "zsh", "dash", "ksh", "fish")
_SCRIPT_SUFFIXES = (".sh", ".bash")
# Commands that start ranks by themselves, inside of each rank: the task that does the same.
_LAUNCHERS = {
    "torchrun": "launch-per-node",
    "torch.distributed.run": "launch-per-node",
    "torch.distributed.launch": "launch-per-node",
    "deepspeed": "launch-deepspeed",
    "deepspeed.launcher.runner": "launch-deepspeed",
    "mpirun": "launch-mpi",
    "mpiexec": "launch-mpi",
    "horovodrun": "launch-mpi",
    "srun": "launch-slurm",
    "sbatch": "launch-slurm",
    "colossalai": "launch-colossalai",
    "composer": "launch-per-node",
}
# Their flags without a value; of all others the next word is the value.
_SWITCHES = (
    *("--standalone", "--no-python", "--no_python", "--run-path", "--use-env", "--use_env", "--no_ssh"),
    *("--oversubscribe", "--allow-run-as-root"),
)
_ACCELERATE = ("accelerate", "accelerate.commands.launch", "accelerate-launch", "accelerate.commands.accelerate_cli")


@dataclass(frozen=True)
class Command:
    """What every rank runs.

    Parameters
    ----------
    script : tuple of str
        A Python script or `-m` and a module, with its arguments; with `is_program` the whole command.
    is_program : bool
        Whether it is run as it stands, not by the training interpreter.
    python : str
        The interpreter that it names; empty for that of `--python`.
    files : Mapping of str to str
        Files that it needs on every node, as `Job.files`. Default: none.
    python_version : str
        As `Job.python_version`. Default: any.
    """

    script: tuple[str, ...]
    is_program: bool = False
    python: str = ""
    files: Mapping[str, str] = field(default_factory=dict)
    python_version: str = ""


@dataclass(frozen=True)
class Look:
    """What a file of this machine is.

    Parameters
    ----------
    interpreter : tuple of str
        The words of its `#!` line; empty where it has none.
    is_executable : bool
        Whether its run bit is set.
    """

    interpreter: tuple[str, ...] = ()
    is_executable: bool = False


Looker = Callable[[str], "Look | None"]


def parse(words: Sequence[str], look: Looker) -> Command:
    """Return how the words after `--` are run.

    Parameters
    ----------
    words : sequence of str
        The words; at least one.
    look : callable
        What a path is here, relative to the working directory; None where there is no such file.

    Returns
    -------
    Command

    Raises
    ------
    UsageError
        The command starts ranks by itself, or names no script.
    """
    first = words[0]
    if _PYTHON.fullmatch(first) and not _is_plain_file(first, look):
        return _python(words)
    if first in ("-m", "-c"):
        return _python((PYTHON, *words))
    if first.startswith("-"):
        raise UsageError(f"a script or a command stands after --, got {first!r}", "for example: -- train.py --lr 3")
    name = os.path.basename(first)
    if look(first) is None:
        _refuse_launcher(name, words[1:])
        if name in _ACCELERATE and list(words[1:2]) == ["launch"]:
            return _accelerate(words[:2], words[2:])
    return _file(tuple(words), look)


def _is_plain_file(word: str, look: Looker) -> bool:
    """Return whether a word that looks like an interpreter's name is a file here without its run bit."""
    found = look(word)
    return found is not None and not found.is_executable


def _python(words: Sequence[str]) -> Command:
    """Return the command of `python [flags] script`, where the interpreter's flags are kept."""
    interpreter = "" if words[0] in ("python", "python3") else words[0]
    flags, rest = _python_flags(words[1:])
    if not rest:
        raise UsageError(f"{shlex.join(words)} names no script", "write it after --: -- train.py --lr 3e-4")
    if rest[0] == "-m" and len(rest) > 1:
        _refuse_launcher(rest[1], rest[2:])
        if rest[1] in _ACCELERATE:
            return _accelerate((*words[:1], *flags, *rest[:2]), rest[2:], interpreter)
    if flags or rest[0] == "-c":
        return Command((PYTHON, "-u", *flags, *rest), True, interpreter)
    return Command(tuple(rest), False, interpreter)


def _python_flags(words: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Split the words after `python` into the interpreter's flags, without `-u`, and the rest."""
    flags: list[str] = []
    at = 0
    while at < len(words) and words[at].startswith("-") and words[at] not in ("-m", "-c", "-"):
        takes_value = words[at] in ("-W", "-X", "--check-hash-based-pycs")
        flags += words[at : at + 1 + takes_value] if words[at] != "-u" else ()
        at += 1 + takes_value
    return tuple(flags), tuple(words[at:])


def _accelerate(head: Sequence[str], rest: Sequence[str], python: str = "") -> Command:
    """Return `accelerate launch` as a command of one rank: the launcher has set what accelerate would set."""
    own = ("--num_processes", "1", "--num_machines", "1")
    words = (PYTHON, *head[1:]) if _PYTHON.fullmatch(head[0]) else tuple(head)
    for flag in ("--multi_gpu", "--num_processes", "--num_machines", "--machine_rank", "--main_process_ip"):
        if flag in rest or flag.replace("_", "-") in rest:
            fix = f"leave it out: -- accelerate launch {shlex.join([word for word in rest if word != flag])}"
            raise UsageError(f"accelerate launch {flag}: the launcher starts the ranks, one accelerate in each", fix)
    return Command((*words, *own, *rest), True, python)


def _refuse_launcher(name: str, rest: Sequence[str]) -> None:
    if name not in _LAUNCHERS:
        return
    line = shlex.join(["fab", _LAUNCHERS[name], "--", *_without_flags(rest)])
    raise UsageError(f"{name} would start ranks inside of every rank", f"leave it out: {line}")


def _without_flags(words: Sequence[str]) -> tuple[str, ...]:
    """Return what a launcher like torchrun runs, without the launcher's own flags and a `python` in front of it."""
    at = 0
    while at < len(words) and words[at].startswith("-") and words[at] not in ("-m", "--module"):
        at += 1 if "=" in words[at] or words[at] in _SWITCHES else 2
    rest = tuple(words[at:])
    if rest[:1] == ("run",):
        return _without_flags(rest[1:])
    if rest and _PYTHON.fullmatch(rest[0]):
        rest = rest[1:]
    return ("-m", *rest[1:]) if rest[:1] == ("--module",) else rest or ("train.py",)


def _file(words: tuple[str, ...], look: Looker) -> Command:
    """Return the command of a script or a program."""
    first = words[0]
    found = look(first)
    if first.endswith((".py", ".pyc")):
        return Command(words)
    if found is None:
        return _elsewhere(words)
    here = first if "/" in first else f"./{first}"
    if any(_PYTHON.fullmatch(word) for word in map(os.path.basename, found.interpreter)):
        return Command(words)
    if found.is_executable:
        return Command((here, *words[1:]), True)
    if found.interpreter:
        return Command((*found.interpreter, *words), True)
    return _plain_file(words)


def _plain_file(words: tuple[str, ...]) -> Command:
    """Return the command of a file without run bit and interpreter line: its name says what it is."""
    first = words[0]
    if first.endswith(_SCRIPT_SUFFIXES):
        return Command(("bash", *words), True)
    if os.path.splitext(first)[1]:
        raise UsageError(
            f"{first} is no Python script (.py), and has neither a run bit nor an interpreter line (#!)",
            f"{shlex.join(['chmod', '+x', first])} if it is a program; or name what runs it: -- python {first}",
        )
    return Command(words)


def _elsewhere(words: tuple[str, ...]) -> Command:
    """Return the command of a file that only the nodes have, or of a program on their PATH."""
    if words[0].endswith(_SCRIPT_SUFFIXES):
        return Command(("bash", *words), True)
    return Command(words, "/" not in words[0])


def checked_file(command: Sequence[str]) -> str:
    """Return the file that a program's command needs on the nodes besides the program; empty for none."""
    if "/" in command[0]:
        return command[0]
    interpreted = os.path.basename(command[0]) in (*_SHELLS, "env", "perl", "ruby", "julia", "Rscript", "node")
    if interpreted and len(command) > 1 and not command[1].startswith("-") and "=" not in command[1]:
        return command[1] if "." in command[1] or "/" in command[1] else ""
    return ""
