"""Parse the words after `--` (a Python script, a module, code, a shell script, a program) into the command of a rank.

Pure except for `look`, which inspects a file of this machine.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import field

from torchfab.core import shell_words
from torchfab.core.errors import UsageError
from torchfab.core.flag_values import is_whole
from torchfab.core.lazy_dataclass import dataclass

PYTHON = "python"  # as the first word of a program, it means the training interpreter of each node
_PYTHON = re.compile(r"(.*/)?python(\d+(\.\d+)?)?")
SHELLS = shell_words.SHELLS
_SCRIPT_SUFFIXES = (".sh", ".bash")
# Commands that would start ranks inside each rank, and the task that replaces them.
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
    "torchx": "launch-per-node",
}
_LIGHTNING = (("fabric", "run"), ("lightning", "run", "model"), ("lightning", "run"))  # they run torchrun
# Their flags without a value; for all others the next word is the value.
_SWITCHES = (
    *("--standalone", "--no-python", "--no_python", "--run-path", "--use-env", "--use_env", "--no_ssh"),
    *("--oversubscribe", "--allow-run-as-root"),
)
# Their flags for the number of ranks per node, which --nproc-per-node replaces.
_RANKS_PER_NODE = ("--nproc-per-node", "--num-gpus", "--devices")
# The words before the flags of `accelerate launch`, which is a launcher too.
_ACCELERATE = (
    ("accelerate", "launch"),
    ("accelerate-launch",),
    ("-m", "accelerate.commands.launch"),
    ("-m", "accelerate.commands.accelerate_cli", "launch"),
)
# Its flags without a value; for all others the next word is the value.
_ACCELERATE_SWITCHES = frozenset(
    (
        *("quiet", "q", "cpu", "multi-gpu", "tpu", "enable-cpu-affinity", "same-network", "m", "module", "no-python"),
        *("dynamo-use-fullgraph", "dynamo-use-dynamic", "dynamo-use-regional-compilation", "downcast-bf16", "debug"),
        *("use-deepspeed", "use-fsdp", "use-megatron-lm", "use-parallelism-config", "use-xpu", "use-mps-device"),
        *("tpu-cluster", "no-tpu-cluster", "tpu-use-sudo", "fp8-use-autocast-during-eval"),
    )
)
# Flags that the launcher sets; and flags that make accelerate run its own torchrun inside every rank.
_ACCELERATE_RANKS = ("multi-gpu", "num-processes", "num-machines", "machine-rank", "main-process-ip")
_ACCELERATE_NESTED = ("use-deepspeed", "use-fsdp", "use-megatron-lm", "tpu", "config-file")


@dataclass(frozen=True)
class Command:
    """The command that every rank runs.

    Parameters
    ----------
    script : tuple of str
        A Python script or `-m` and a module, with its arguments; with `is_program` the whole command.
    is_program : bool
        Whether it is run directly, not by the training interpreter.
    python : str
        The interpreter in the command; empty for that of `--python`.
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
    """The properties of a file of this machine.

    Parameters
    ----------
    interpreter : tuple of str
        The words of its `#!` line; empty if it has none.
    is_executable : bool
        Whether its executable bit is set.
    """

    interpreter: tuple[str, ...] = ()
    is_executable: bool = False


Looker = Callable[[str], "Look | None"]


def parse(words: Sequence[str], look: Looker) -> Command:
    """Parse the words after `--`.

    Parameters
    ----------
    words : sequence of str
        The words; at least one.
    look : callable
        Returns the properties of a path relative to the working directory; None if there is no such file.

    Returns
    -------
    Command

    Raises
    ------
    UsageError
        The command would start ranks itself, or names no script.
    """
    first = words[0]
    shell_words.check(words, look(first) is not None)
    _refuse_wrapped_launcher(words)
    if _PYTHON.fullmatch(first) and not _is_plain_file(first, look):
        return _python(words)
    if first in ("-m", "-c"):
        return _python((PYTHON, *words))
    if first.startswith("-"):
        raise UsageError(f"expected a script or a command after --, got {first!r}", "for example: -- train.py --lr 3")
    name = os.path.basename(first)
    if look(first) is None:
        _refuse_launcher(name, words[1:])
        if head := _accelerate_head((name, *words[1:])):
            return _accelerate((first, *words[1 : len(head)]), words[len(head) :])
    return _file(tuple(words), look)


def _is_plain_file(word: str, look: Looker) -> bool:
    """Return whether a word that looks like an interpreter's name is a non-executable file here."""
    found = look(word)
    return found is not None and not found.is_executable


def _python(words: Sequence[str]) -> Command:
    """Return the command of `python [flags] script`, with the interpreter's flags."""
    interpreter = "" if words[0] in ("python", "python3") else words[0]
    flags, rest = _python_flags(words[1:])
    if not rest:
        raise UsageError(f"{shlex.join(words)} names no script", "write it after --: -- train.py --lr 3e-4")
    if rest[0] in ("-m", "-c") and len(rest) == 1:
        what = "module" if rest[0] == "-m" else "code"
        raise UsageError(
            f"{rest[0]} needs a {what} behind it".replace("a code", "code"),
            "for example: -- -m package.train --lr 3e-4",
        )
    if rest[0] == "-m":
        _refuse_launcher(rest[1], rest[2:])
        if head := _accelerate_head(rest):
            return _accelerate(("accelerate", "launch"), rest[len(head) :], interpreter)
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


def _accelerate_head(words: Sequence[str]) -> tuple[str, ...]:
    """Return the words of `accelerate launch` at the beginning of a command; empty for another command."""
    return next((head for head in _ACCELERATE if tuple(words[: len(head)]) == head), ())


def _accelerate(head: Sequence[str], rest: Sequence[str], python: str = "") -> Command:
    """Return `accelerate launch` as a command of one rank: the launcher sets what accelerate would set."""
    flags, script = _accelerate_flags(rest)
    kept = [word for name, words in flags if name not in _ACCELERATE_RANKS for word in words]
    for name, words in flags:
        typed = words[0].partition("=")[0]
        if name in _ACCELERATE_NESTED:
            fix = "run the script itself, with accelerate's settings as --env: fab import prints that line for a "
            fix += "configuration of accelerate, and for a script that holds this command"
            raise UsageError(f"accelerate launch {typed}: every rank would start its own job", fix)
        if name in _ACCELERATE_RANKS:
            ranks = _accelerate_ranks_per_node(flags)
            task = f"{shlex.join(['fab', 'launch-per-node', '--nproc-per-node', ranks])} " if ranks else ""
            fix = f"omit it: {task}-- {shlex.join(['accelerate', 'launch', *kept, *script])}"
            raise UsageError(f"accelerate launch {typed}: the launcher starts the ranks, one accelerate in each", fix)
    own = ("--num_processes", "1", "--num_machines", "1")
    return Command((*head, *own, *kept, *script), True, python)


def _accelerate_ranks_per_node(flags: Sequence[tuple[str, tuple[str, ...]]]) -> str:
    """Return the ranks per node of `accelerate launch`, whose --num_processes counts the ranks of all machines.

    Empty if the flags do not give it as a whole number.
    """
    values = {name: words[-1].rpartition("=")[2] for name, words in flags}
    total, machines = values.get("num-processes", ""), values.get("num-machines", "1")
    if not (is_whole(total) and is_whole(machines)) or min(int(total), int(machines)) < 1 or int(total) % int(machines):
        return ""
    return str(int(total) // int(machines))


def _accelerate_flags(words: Sequence[str]) -> tuple[list[tuple[str, tuple[str, ...]]], tuple[str, ...]]:
    """Return the flags of `accelerate launch`, each with its name and words, and the script with its arguments."""
    flags = []
    at = 0
    while at < len(words) and words[at].startswith("-"):
        name = words[at].partition("=")[0].lstrip("-").replace("_", "-")
        count = 1 if "=" in words[at] or name in _ACCELERATE_SWITCHES else 2
        flags.append((name, tuple(words[at : at + count])))
        at += count
    return flags, tuple(words[at:])


def _refuse_wrapped_launcher(words: Sequence[str]) -> None:
    """Refuse a launcher behind programs that only run another one: `env A=1 torchrun`, `bash -c 'torchrun …'`."""
    inner = shell_words.without_wrappers(words)
    if inner is not words and inner:
        name = os.path.basename(inner[0])
        _refuse_launcher(name, inner[1:])
        if _PYTHON.fullmatch(name):
            _, rest = _python_flags(inner[1:])
            if rest[:1] == ("-m",) and len(rest) > 1:
                _refuse_launcher(rest[1], rest[2:])


def _refuse_launcher(name: str, rest: Sequence[str]) -> None:
    words = (name, *rest)
    head = next((head for head in _LIGHTNING if words[: len(head)] == head), (name,))
    task = _LAUNCHERS.get(name) or ("launch-per-node" if head in _LIGHTNING else "")
    if task:
        count, command = _without_flags(words[len(head) :])
        ranks = ["--nproc-per-node", count] if count else []
        line = shlex.join(["fab", task, *ranks, "--", *command])
        raise UsageError(f"{shlex.join(head)} would start ranks inside every rank", f"omit it: {line}")


def _without_flags(words: Sequence[str], count: str = "") -> tuple[str, tuple[str, ...]]:
    """Return what a launcher like torchrun runs, without the launcher's own flags and a leading `python`.

    The number of ranks per node comes before it; empty if the flags do not give it as a number.
    """
    at = 0
    while at < len(words) and words[at].startswith("-") and words[at] not in ("-m", "--module"):
        name, equals, value = words[at].partition("=")
        width = 1 if equals or name in _SWITCHES else 2
        value = value if equals else "".join(words[at + 1 : at + width])
        if name.replace("_", "-") in _RANKS_PER_NODE and is_whole(value):
            count = value
        at += width
    rest = tuple(words[at:])
    if rest[:1] == ("run",):
        return _without_flags(rest[1:], count)
    if rest and _PYTHON.fullmatch(rest[0]):
        rest = rest[1:]
    return count, ("-m", *rest[1:]) if rest[:1] == ("--module",) else rest or ("train.py",)


def _file(words: tuple[str, ...], look: Looker) -> Command:
    """Return the command of a script or a program."""
    first = words[0]
    found = look(first)
    if first.endswith((".py", ".pyc")):
        return Command(words)
    if first.endswith(".ipynb"):
        fix = (
            f"make a script of it: jupyter nbconvert --to script {first}; or launch from the notebook (docs/python.md)"
        )
        raise UsageError(f"{first} is a notebook, which no interpreter runs", fix)
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
    """Return the command of a non-executable file without interpreter line, by its file name."""
    first = words[0]
    if first.endswith(_SCRIPT_SUFFIXES):
        return Command(("bash", *words), True)
    if os.path.splitext(first)[1]:
        raise UsageError(
            f"{first} is not a Python script (.py), is not executable, and has no interpreter line (#!)",
            f"{shlex.join(['chmod', '+x', first])} if it is a program; or name what runs it: -- python {first}",
        )
    return Command(words)


def _elsewhere(words: tuple[str, ...]) -> Command:
    """Return the command of a file that only the nodes have, or of a program on their PATH."""
    if words[0].endswith(_SCRIPT_SUFFIXES):
        return Command(("bash", *words), True)
    return Command(words, "/" not in words[0])


def script_words(words: Sequence[str]) -> tuple[str, ...]:
    """Return the script or module of a command with its arguments, without a leading interpreter or accelerate.

    Parameters
    ----------
    words : sequence of str
        The words after `--`; at least one.

    Returns
    -------
    tuple of str
        `("train.py", …)`, `("-m", "pkg")`; the words themselves for another command.
    """
    words = tuple(words)
    if _PYTHON.fullmatch(words[0]):
        words = _python_flags(words[1:])[1] or words
    if head := _accelerate_head((os.path.basename(words[0]), *words[1:])):
        return _accelerate_flags(words[len(head) :])[1] or words
    if os.path.basename(words[0]) in SHELLS and len(words) > 1 and not words[1].startswith("-"):
        return words[1:]
    return words


def checked_file(command: Sequence[str]) -> str:
    """Return the file that a program's command needs on the nodes in addition to the program; empty for none."""
    if "/" in command[0]:
        return command[0]
    interpreted = os.path.basename(command[0]) in (*SHELLS, "env", "perl", "ruby", "julia", "Rscript", "node")
    if interpreted and len(command) > 1 and not command[1].startswith("-") and "=" not in command[1]:
        return command[1] if "." in command[1] or "/" in command[1] else ""
    return ""
