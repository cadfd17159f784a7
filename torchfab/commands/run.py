"""`fab run -- CMD`: run any command on all hosts at once; equal output is printed once."""

from __future__ import annotations

import os
import re
import shlex
import signal
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from torchfab import documents
from torchfab.cli.flags import RunFlags
from torchfab.core.console import progress, write_err, write_out, write_verbatim
from torchfab.core.environment import joined_pairs, parse_env_flags
from torchfab.core.errors import HostError, HostsFailedError, Interrupted, TorchfabError, UsageError, failed_as_json
from torchfab.core.inventory import fold
from torchfab.core.specs import Node, interpreter_path
from torchfab.launching.context import CommandContext, setup_commands
from torchfab.launching.hosts import read_nodes
from torchfab.launching.interpreter import default_python
from torchfab.transport.messages.run import RunEnd, RunRequest
from torchfab.transport.remote_command import HostRun, RunsInterrupted, run_on_all

MOST_BYTES = 1024 * 1024  # of each output stream of each host
TIMED_OUT = 124  # as timeout(1)
_ASSIGNMENT = re.compile(r"[A-Za-z_][A-Za-z0-9_]*=.*", re.DOTALL)
_OPERATORS = re.compile(r"[|&;<>`$*?(){}\n]")


def run(flags: RunFlags, ctx: CommandContext) -> int:
    """Run the command after `--` on all hosts, and print its output.

    Parameters
    ----------
    flags : RunFlags
        The flags of `fab run`.
    ctx : CommandContext
        The command line, the working directory and the settings.

    Returns
    -------
    int
        Exit code: 0.

    Raises
    ------
    UsageError
        A flag is invalid, or the words after `--` are not a command.
    HostsFailedError
        Hosts failed, or the command failed on hosts; `exit_code` is the command's highest one.
    Interrupted
        Ctrl-C: the command was ended on all hosts.
    """
    request = request_for(flags, ctx)
    nodes = read_nodes(flags.hostfile, ctx, flags.hostfile_format)
    try:
        runs = run_on_all(nodes, ctx.settings, request, lambda done: progress("running", done, len(nodes)))
    except RunsInterrupted as stopped:
        progress("running", len(nodes), len(nodes))  # clears the progress display
        _print(stopped.runs, flags.json)
        raise interrupted(stopped.runs) from None
    _print(runs, flags.json)
    error = failure(runs)
    if error is not None:
        raise error
    return 0


def request_for(flags: RunFlags, ctx: CommandContext) -> Callable[[Node], RunRequest]:
    """Return the function that builds a node's request.

    Parameters
    ----------
    flags : RunFlags
        The flags of `fab run`.
    ctx : CommandContext
        The command line, the working directory and the settings.

    Returns
    -------
    callable
        Returns the request for a node.

    Raises
    ------
    UsageError
        A flag is invalid, or the words after `--` are not a command.
    """
    argv = command_of(ctx.script or (), os.path.exists)
    workdir = flags.workdir or ctx.cwd
    if not workdir.startswith("/"):
        raise UsageError(f"--workdir must be an absolute path, got {workdir!r}")
    env = parse_env_flags(flags.env, ctx.environ)
    for note in joined_pairs(flags.env):
        write_err(f"note: {note}")
    setup = setup_commands(flags.setup, ctx)
    python = flags.python or default_python(ctx.environ, ctx.root)

    def request(node: Node) -> RunRequest:
        return RunRequest(
            argv=list(argv),
            workdir=node.workdir or workdir,
            path=list(interpreter_path(node.python or python)),
            env={**env, **dict(node.env)},
            timeout_s=flags.timeout,
            most_bytes=MOST_BYTES,
            setup=node.setup or setup,
            setup_timeout_s=float(ctx.config["setup_timeout_s"]),
            python_is_default=not (node.python or flags.python),
        )

    return request


def command_of(words: Sequence[str], exists: Callable[[str], bool]) -> tuple[str, ...]:
    """Return the words after `--` as a command; reject words that need a shell.

    Parameters
    ----------
    words : sequence of str
        The words. No shell on a node interprets them.
    exists : callable
        Returns whether a local file of this name exists.

    Returns
    -------
    tuple of str
        The command.

    Raises
    ------
    UsageError
        There are no words, or they need a shell.
    """
    if not words or not words[0]:
        raise UsageError("fab run needs a command after --", "for example: fab run -- nvidia-smi -L")
    first = words[0]
    line = shlex.join(["fab", "run", "--", "bash", "-c", first if len(words) == 1 else " ".join(words)])
    if _ASSIGNMENT.fullmatch(first):
        name = first.partition("=")[0]
        raise UsageError(
            f"{name}=… is shell syntax for setting a variable", f"fab run --env {name}=… -- {shlex.join(words[1:])}"
        )
    if len(words) == 1 and _is_shell_line(first) and not exists(first):
        raise UsageError(f"{first!r} is a single word, and no shell interprets it on the hosts", line)
    return tuple(words)


def _is_shell_line(word: str) -> bool:
    return bool(_OPERATORS.search(word)) or (any(map(str.isspace, word)) and not word.startswith(("/", "./", "~")))


# ---- results


def _print(runs: Sequence[HostRun], as_json: bool) -> None:
    if as_json:
        write_out(documents.encode(to_json(runs)))
        return
    for line in folded(runs, lambda run: run.out):
        write_verbatim(line)
    for line in [*folded(runs, lambda run: run.err), *notes(runs)]:
        write_err(line)


def folded(runs: Iterable[HostRun], lines_of: Callable[[HostRun], Sequence[str]]) -> list[str]:
    """Return the output of all hosts: equal output once, below the folded names of its hosts.

    Parameters
    ----------
    runs : iterable of HostRun
        The hosts.
    lines_of : callable
        Returns the lines of a host.

    Returns
    -------
    list of str
        The lines; hosts without output are omitted.
    """
    hosts_by_lines: dict[tuple[str, ...], list[str]] = {}
    for run in runs:
        if lines := tuple(lines_of(run)):
            hosts_by_lines.setdefault(lines, []).append(run.node.label)
    return [text for lines, hosts in hosts_by_lines.items() for text in (f"{fold(hosts)}:", *_indented(lines))]


def _indented(lines: Iterable[str]) -> list[str]:
    return [f"  {line}" if line else "" for line in lines]


def notes(runs: Iterable[HostRun]) -> list[str]:
    """Return notes on the output: hosts without output, and truncated output.

    Parameters
    ----------
    runs : iterable of HostRun
        The hosts.

    Returns
    -------
    list of str
        One line per kind.
    """
    ended = [run for run in runs if run.end is not None]
    silent = [run.node.label for run in ended if not (run.out or run.err or exit_code(run))]
    cut = [run.node.label for run in ended if run.end and run.end.dropped]
    found = [f"{fold(silent)}: exit code 0, no output"] if silent else []
    if cut:
        most = f"{MOST_BYTES // 2**20} MiB"
        found.append(f"{fold(cut)}: more than {most} of output: the middle is omitted")
    return found


def exit_code(run: HostRun) -> int:
    """Return the exit code of the command on a host, as a shell reports it.

    Parameters
    ----------
    run : HostRun
        The host.

    Returns
    -------
    int
        128 + n for signal n; 124 after a timeout; 1 if it did not run.
    """
    if run.end is None:
        return 1
    if run.end.timed_out:
        return TIMED_OUT
    code = run.end.code
    return 1 if code is None else 128 - code if code < 0 else code


def failure(runs: Sequence[HostRun]) -> HostsFailedError | None:
    """Return the error of the hosts on which the command failed.

    Parameters
    ----------
    runs : sequence of HostRun
        All hosts.

    Returns
    -------
    HostsFailedError or None
        None if it succeeded on all hosts; otherwise with the highest exit code.
    """
    reasons = {run.node.label: reason for run in runs if (reason := _reason(run)) is not None}
    if not reasons:
        return None
    hosts = "hosts" if len(runs) != 1 else "host"
    error = HostsFailedError(f"the command failed on {len(reasons)} of {len(runs)} {hosts}", reasons)
    error.exit_code = max(min(exit_code(run), 255) for run in runs)
    return error


def _reason(run: HostRun) -> TorchfabError | None:
    if run.error is not None or run.end is None:
        return run.error
    end = run.end
    left = f"; still running: {', '.join(end.left)}" if end.left else ""
    if end.timed_out:
        return HostError(f"did not end within --timeout; it was ended after {end.seconds:.0f} s{left}")
    if end.stopped:
        return HostError(f"was ended{left}")
    return HostError(_how_it_ended(end)) if end.code else None


def _how_it_ended(end: RunEnd) -> str:
    code = end.code or 0
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"was killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"was killed by signal {-code}"


def interrupted(runs: Sequence[HostRun]) -> TorchfabError:
    """Return the error after Ctrl-C: the hosts on which the command was ended, failed, or may still run.

    Parameters
    ----------
    runs : sequence of HostRun
        All hosts.

    Returns
    -------
    TorchfabError
        With the exit code of Ctrl-C.
    """
    ended = [run.node.label for run in runs if run.end and run.end.stopped and not run.end.left]
    doubtful = {run.node.label: reason for run in runs if (reason := _reason(run)) and run.node.label not in ended}
    done = f"interrupted: the command was ended on {fold(ended)}" if ended else "interrupted"
    if not doubtful:
        return Interrupted(done)
    error = HostsFailedError(f"{done}; {len(doubtful)} hosts failed", doubtful)
    error.exit_code = Interrupted.exit_code
    return error


def to_json(runs: Sequence[HostRun]) -> dict[str, Any]:
    """Return the results as JSON values.

    Parameters
    ----------
    runs : sequence of HostRun
        All hosts.

    Returns
    -------
    dict
        The value that `fab run --json` prints: the hosts that ran the command in `hosts`, the others in `failed`.
    """
    failed: Mapping[str, TorchfabError] = {run.node.label: run.error for run in runs if run.error is not None}
    return {
        "hosts": [_host_json(run, run.end) for run in runs if run.end is not None],
        "failed": failed_as_json(failed),
    }


def _host_json(run: HostRun, end: RunEnd) -> dict[str, Any]:
    return {
        "host": run.node.label,
        "exit_code": exit_code(run),
        "signal": -end.code if end.code is not None and end.code < 0 else None,
        "timed_out": end.timed_out,
        "duration_s": round(end.seconds, 3),
        "stdout": "\n".join(run.out),
        "stderr": "\n".join(run.err),
        "left_out_bytes": end.dropped,
    }
