"""Turn errors of Invoke's parser into one line with a suggestion: a misspelt task or flag, a script without `--`.

Invoke raises "No idea what 'X' is!". `mistake_of` reads the parser's state from its frames; `explain` is pure.
"""

from __future__ import annotations

import difflib
import os
import shlex
import traceback
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import field
from types import FrameType, MappingProxyType, TracebackType
from typing import Any

from invoke.parser import Argument, ParserContext

from torchfab.core import program_name
from torchfab.core.errors import UsageError
from torchfab.core.lazy_dataclass import dataclass

LAUNCH = "launch-"  # prefix of the tasks that take a script after `--`
RUN = "run"  # the task that takes any command after `--`
_DEFAULT_LAUNCH = "launch-per-node"
_PROGRAMS = ("python", "python3", "bash", "sh", "accelerate")  # they run a script: `fab python train.py`
# Names of the same command in other tools.
SYNONYMS = MappingProxyType(
    {
        **dict.fromkeys(("ps", "ls", "list-jobs", "history", "squeue", "queue"), "jobs"),
        **dict.fromkeys(("kill", "cancel", "delete", "down", "scancel", "terminate"), "stop"),
        **dict.fromkeys(("tail", "output", "follow"), "logs"),
        **dict.fromkeys(("launch", "submit", "start", "train", "torchrun", "up"), _DEFAULT_LAUNCH),
        **dict.fromkeys(("sbatch", "srun", "slurm"), "launch-slurm"),
        **dict.fromkeys(("mpirun", "mpiexec", "mpi"), "launch-mpi"),
        **dict.fromkeys(("deepspeed",), "launch-deepspeed"),
        **dict.fromkeys(("kubectl", "kubernetes", "k8s"), "launch-kubernetes"),
        **dict.fromkeys(("ssh", "shell"), "attach"),
        **dict.fromkeys(("exec", "cmd", "pdsh", "clush", "dsh", "pssh"), "run"),
        **dict.fromkeys(("check", "diagnose", "preflight"), "doctor"),
        **dict.fromkeys(("rsync", "push", "copy", "scp"), "sync"),
        **dict.fromkeys(("stack", "pystack", "py-spy", "dump"), "stacks"),
        **dict.fromkeys(("trace", "profiler", "nsys", "perfetto"), "profile"),
        **dict.fromkeys(("htop", "nvtop", "nvidia-smi", "gpustat"), "top"),
        **dict.fromkeys(("help",), "--help"),
        **dict.fromkeys(("list", "tasks", "commands"), "--list"),
        **dict.fromkeys(("version",), "--version"),
    }
)

# Names of the same flag in other tools; the first of the listed flags that the task has is suggested.
FLAG_SYNONYMS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        **dict.fromkeys(("master-port", "rdzv-port", "main-process-port"), ("port",)),
        **dict.fromkeys(("rdzv-endpoint", "master", "main-process-ip", "head"), ("master-addr",)),
        **dict.fromkeys(
            ("np", "n", "nproc", "num-gpus", "gpus-per-node", "ntasks-per-node"), ("nproc-per-node", "lines")
        ),
        **dict.fromkeys(("num-nodes", "num-machines", "N"), ("nodes",)),
        **dict.fromkeys(("machinefile", "inventory", "host-file", "hosts-file"), ("hostfile", "gpufile")),
        **dict.fromkeys(("hostfile", "gpufile", "gpu-file", "gpusfile"), ("gpufile", "hostfile")),
        **dict.fromkeys(("job-name", "run-name"), ("name",)),
        **dict.fromkeys(("cwd", "chdir", "wd", "directory"), ("workdir",)),
        **dict.fromkeys(("tail",), ("lines", "follow")),
        **dict.fromkeys(("preview", "print", "check"), ("dry-run",)),
        **dict.fromkeys(("x", "export", "genv"), ("env",)),
        **dict.fromkeys(("w", "refresh"), ("watch",)),
        **dict.fromkeys(("timeout", "kill-after"), ("grace", "seconds")),
    }
)


@dataclass(frozen=True)
class Mistake:
    """A word that the parser rejected, and the parser's state at that point.

    Parameters
    ----------
    word : str
        The word as it was typed.
    body : tuple of str
        All words before `--`.
    position : int
        Index of the word in `body`.
    task : str
        The task whose flags are being parsed; empty before the first task.
    positional : str
        Name of the task's positional argument, which an earlier word has filled; empty if it has none; two names are
        joined by "and one".
    tasks : tuple of str
        The names of all tasks.
    flags : Mapping of str to bool
        The flags that are valid there, and whether each takes a value.
    """

    word: str
    body: tuple[str, ...]
    position: int
    task: str = ""
    positional: str = ""
    tasks: tuple[str, ...] = ()
    flags: Mapping[str, bool] = field(default_factory=lambda: MappingProxyType({}))

    @property
    def before(self) -> str:
        """The previous word, or the flag whose value the word is (`--name=a`); empty for the first word."""
        here = self.body[self.position]
        if here != self.word:
            return here.partition("=")[0]
        return self.body[self.position - 1] if self.position > 0 else ""


def explain(mistake: Mistake) -> UsageError:
    """Return the one-line error for a rejected word, with a suggestion if there is one.

    Parameters
    ----------
    mistake : Mistake
        The word, and the state of the parser.

    Returns
    -------
    UsageError
    """
    if mistake.word.startswith("-") and len(mistake.word) > 1:
        return _unknown_flag(mistake)
    takes_value = mistake.flags.get(mistake.before)
    if takes_value or (takes_value is False and not _is_script(mistake.word)):
        return _word_after_flag(mistake)
    if mistake.task.startswith(LAUNCH):
        return _word_after_launch(mistake)
    if mistake.task == RUN:
        return _script_without_dashes(mistake)
    if mistake.positional:
        return UsageError(f"{mistake.task} takes one {mistake.positional}, got {mistake.word!r} in addition")
    return _no_task(mistake)


def _word_after_flag(mistake: Mistake) -> UsageError:
    flag = mistake.before
    if mistake.flags[flag]:
        return UsageError(f"{flag} is given twice, the second time with {mistake.word!r}; it takes one value")
    return UsageError(f"{flag} takes no value, got {mistake.word!r}")


def unknown_task(word: str, tasks: Iterable[str], after: str = "") -> UsageError:
    """Return the error for a word that names no task.

    Parameters
    ----------
    word : str
        The word.
    tasks : iterable of str
        The names of all tasks.
    after : str, default ""
        The task before the word; empty for the first word.

    Returns
    -------
    UsageError
    """
    meant = SYNONYMS.get(word.lower(), "") or nearest(word.lower().replace("_", "-"), tasks)
    where = (
        f"{after} does not take {word!r}, and there is no task of that name" if after else f"there is no task {word}"
    )
    return UsageError(f"{where}; did you mean {meant}?" if meant else f"{where}; fab --list lists them")


def nearest(word: str, names: Iterable[str]) -> str:
    """Return the name most similar to a misspelt word; empty if none is similar.

    Parameters
    ----------
    word : str
        The word.
    names : iterable of str
        The valid names.

    Returns
    -------
    str
    """
    names = sorted(names)
    found = difflib.get_close_matches(word, names, 1, 0.65)
    begun = [name for name in names if len(word) >= 3 and name.startswith(word)]
    return (begun if len(begun) == 1 else found or [""])[0]


def needs_value(spelling: str, task: str = "") -> UsageError:
    """Return the error for a flag without its value.

    Parameters
    ----------
    spelling : str
        The flag, as `spelling` returns it.
    task : str, default ""
        The task of the flag; empty for a flag of `fab` itself.

    Returns
    -------
    UsageError
    """
    return UsageError(f"{spelling} needs a value; fab --help {task} explains it".replace("  ", " "))


def flag_without_value(flag: Argument, context: ParserContext | None) -> UsageError:
    """Return the error for a flag without its value, after a task that may have another flag of that letter.

    Parameters
    ----------
    flag : Argument
        The flag, one of the task's or of `fab` itself.
    context : ParserContext or None
        The task before it.

    Returns
    -------
    UsageError
    """
    task = getattr(context, "name", None) or ""
    if flag.name == "config" and "--follow" in getattr(context, "flags", ()):
        return UsageError(f"-f is --config of fab and needs a file; did you mean fab {task} --follow?")
    return needs_value(spelling(flag), task)


def _unknown_flag(mistake: Mistake) -> UsageError:
    name = mistake.word.partition("=")[0]
    if mistake.task.startswith(LAUNCH) and name in ("-m", "-u"):
        return _script_without_dashes(mistake)
    known = [flag.lstrip("-") for flag in mistake.flags if len(flag) > 2]
    plain = name.lstrip("-").replace("_", "-")
    synonym = next((flag for flag in FLAG_SYNONYMS.get(plain, ()) if flag in known), "")
    meant = synonym or nearest(plain, known)
    where = mistake.task or program_name.called().name
    if meant:
        return UsageError(f"{where} has no flag {name}; did you mean --{meant}?")
    script = "; flags of your script go after --" if mistake.task.startswith(LAUNCH) else ""
    script = "; the command goes after --" if mistake.task == RUN else script
    return UsageError(f"{where} has no flag {name}; fab --help {mistake.task} lists them".replace("  ", " ") + script)


def _word_after_launch(mistake: Mistake) -> UsageError:
    if not _is_script(mistake.word) and nearest(mistake.word, mistake.tasks):
        return unknown_task(mistake.word, mistake.tasks, mistake.task)
    return _script_without_dashes(mistake)


def _no_task(mistake: Mistake) -> UsageError:
    if not mistake.task and (_is_script(mistake.word) or mistake.word in _PROGRAMS):
        return _script_without_dashes(mistake)
    return unknown_task(mistake.word, mistake.tasks, mistake.task)


def _script_without_dashes(mistake: Mistake) -> UsageError:
    head, tail = mistake.body[: mistake.position], mistake.body[mistake.position :]
    task = () if mistake.task else (_DEFAULT_LAUNCH,)
    line = shlex.join(["fab", *head, *task, "--", *tail])
    what = "the command goes" if mistake.task == RUN else "your script and its arguments go"
    return UsageError(f"{what} after --: {line}")


def _is_script(word: str) -> bool:
    return "/" in word or word.endswith((".py", ".sh")) or os.path.isfile(word)


# ---- the parser's state


def parse_error(error: Exception, trace: TracebackType | None, tasks: Sequence[str]) -> UsageError | None:
    """Return the explanation of a parser error of Invoke; None if only Invoke's own text is available.

    Parameters
    ----------
    error : ParseError
        The error.
    trace : traceback
        Its traceback, whose frames hold the parser.
    tasks : sequence of str
        The names of all tasks.

    Returns
    -------
    UsageError or None
        None if only Invoke's own text is available.
    """
    frames = [frame for frame, _ in traceback.walk_tb(trace)]
    parser = next((frame for frame in frames if frame.f_code.co_name == "parse_argv"), None)
    if parser is None:
        return None
    machine = parser.f_locals["machine"]
    if any(frame.f_code.co_name == "complete_flag" for frame in frames):
        return flag_without_value(machine.flag, machine.context)
    return explain(mistake_of(parser, tasks)) if str(error).startswith("No idea") else None


def mistake_of(parser: FrameType, tasks: Sequence[str]) -> Mistake:
    """Return the word at which a frame of Invoke's `Parser.parse_argv` stopped, with its context.

    Parameters
    ----------
    parser : frame
        The frame of `Parser.parse_argv`.
    tasks : sequence of str
        The names of all tasks.

    Returns
    -------
    Mistake
    """
    seen = parser.f_locals
    machine, read, mutations = seen["machine"], seen["body"], seen["mutations"]
    body = seen["argv"][: seen["ddash"]]
    # Invoke has inserted the parts of `--a=b` and `-abc` after the words that it has read.
    at = seen["index"] - (1 if mutations else 0)
    position = len(body) - (len(read) - at - len(mutations))
    context, initial = machine.context, machine.initial
    arguments = {spelled: each for known in (initial, context) for spelled, each in _spellings(known)}
    name = context.name or ""
    return Mistake(
        word=seen["orig"],
        body=tuple(body),
        position=position,
        task=name,
        positional=" and one ".join(str(each.name) for each in context.positional_args) if name else "",
        tasks=tuple(tasks),
        flags={spelled: bool(each.takes_value) for spelled, each in arguments.items()},
    )


def _spellings(context: Any) -> list[tuple[str, Any]]:
    """Return every spelling of every flag with its argument; iterating over a Lexicon skips aliases (`--hosts`)."""
    flags = getattr(context, "flags", {})
    names = [*flags, *getattr(flags, "aliases", {})]
    return [(name, flags[name]) for name in names]


def spelling(argument: Any) -> str:
    """Return the spelling of a flag: `--name`, or `-H (--hosts)` if it has a short form.

    Parameters
    ----------
    argument : Argument
        The flag, as Invoke has it.

    Returns
    -------
    str
    """
    names = sorted(argument.names, key=len)
    words = [f"-{name}" if len(name) == 1 else f"--{name.replace('_', '-')}" for name in names]
    return words[0] if len(words) == 1 else f"{words[0]} ({words[-1]})"


def list_flag_without_value(body: Sequence[str], contexts: Iterable[Any]) -> str:
    """Return a repeatable flag without a value, which Invoke accepts silently; empty if there is none.

    Parameters
    ----------
    body : sequence of str
        The words before `--`.
    contexts : iterable of ParserContext
        The contexts whose flags are valid.

    Returns
    -------
    str
    """
    flags = {spelled: each for context in contexts for spelled, each in context.flags.items()}
    for word, following in zip(body, [*body, None][1:], strict=True):
        if word in flags and flags[word].kind is list and (following is None or following in flags):
            return spelling(flags[word])
    return ""
