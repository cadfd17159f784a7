"""A Plan as shell that works without torchfab: what `--dry-run` prints. Pasted into bash, it launches the same job."""

from __future__ import annotations

import posixpath
import shlex
from collections.abc import Callable, Iterable, Sequence

from torchfab.core.specs import NodePlan, Plan, Process, session_name

SSHArgv = Callable[[NodePlan], Sequence[str]]


def dry_run(plan: Plan, ssh_argv: SSHArgv, notes: Sequence[str] = ()) -> str:
    """Return the shell of a whole launch.

    Parameters
    ----------
    plan : Plan
        What is to run.
    ssh_argv : callable
        The command that runs a shell on a node and reads its script from stdin.
    notes : sequence of str
        What a reader must know, as comments.
    """
    head = [f"{key}: {value}" for key, value in plan.defaults.items()]
    comments = [f"# {line}" for text in (*head, *notes) for line in text.splitlines()]
    return "\n\n".join(
        ["\n".join(comments), *(node_shell(plan, each, ssh_argv) for wave in plan.start_order for each in wave)]
    )


def node_shell(plan: Plan, each: NodePlan, ssh_argv: SSHArgv) -> str:
    """Return the shell that starts one node's part of a job, to be typed on the launch machine."""
    script = "\n".join(_node_script(plan, each))
    word = _delimiter("TORCHFAB", script)
    title = f"# node {each.node.rank}: {each.node.label}"
    command = shlex.join(ssh_argv(each))
    if not plan.job.secrets:
        return f"{title}\n{command} <<'{word}'\n{script}\n{word}"
    # Secret values are taken from the shell that this is pasted into: printf is a builtin, nothing of it is seen in ps.
    exports = "\n".join(f"printf 'export {name}=%q\\n' \"${{{name}?}}\"" for name in sorted(plan.job.secrets))
    return f"{title}\n{{\n{exports}\ncat <<'{word}'\n{script}\n{word}\n}} | {command}"


def _node_script(plan: Plan, each: NodePlan) -> Iterable[str]:
    yield "umask 077"
    for process in each.processes:
        yield from _process_script(plan, each, process)
    session = session_name(plan.job.name, each.node.rank)
    for index, process in enumerate(each.processes):
        new = ("new-window", "-d", "-t", f"={session}:") if index else ("new-session", "-d", "-s", session)
        command = ("bash", _path(each, process, "run.sh"))
        yield shlex.join(["tmux", "-L", "torchfab", *new, "-n", process.name, *command])


def _process_script(plan: Plan, each: NodePlan, process: Process) -> Iterable[str]:
    path = shlex.quote(_path(each, process, "run.sh"))
    secrets = sorted(plan.job.secrets) if process.secrets else []
    yield "mkdir -p " + shlex.join(_folders(each, process))
    for name, text in process.files.items():
        yield from _here_document(shlex.quote(_path(each, process, name)), ">", "FILE", text.removesuffix("\n"))
        if text.startswith("#!"):
            yield f"chmod 700 {shlex.quote(_path(each, process, name))}"
    if secrets:
        yield f": > {path}"
        yield from (f"printf 'export {name}=%q\\n' \"${name}\" >> {path}" for name in secrets)
    yield from _here_document(path, ">>" if secrets else ">", "RUN", "\n".join(_run_script(plan, each, process)))


def _folders(each: NodePlan, process: Process) -> list[str]:
    own = f"{each.folder}/{process.name}"
    folders = [f"{own}/{name}" for name in process.folders]
    folders += [posixpath.dirname(f"{own}/{name}") for name in process.files]
    return list(dict.fromkeys(folders)) or [own]


def _here_document(path: str, into: str, word: str, text: str) -> Iterable[str]:
    word = _delimiter(word, text)
    yield from (f"cat {into} {path} <<'{word}'", text, word)


def _run_script(plan: Plan, each: NodePlan, process: Process) -> Iterable[str]:
    yield f"cd {shlex.quote(plan.job.workdir)} || exit"
    yield from (f"export {name}={shlex.quote(value)}" for name, value in process.env.items())
    if process.path:
        yield f'export PATH={shlex.quote(":".join(process.path))}:"$PATH"'
    log = shlex.quote(_path(each, process, "output.log"))
    yield f"exec {_in_lines(process.argv)} > >(tee -a {log}) 2>&1 < /dev/null"


def _in_lines(argv: Sequence[str]) -> str:
    """Return a command as shell with a line for each of its options."""
    words = [shlex.quote(word) for word in argv]
    return " ".join(f"\\\n  {word}" if word.startswith("--") else word for word in words)


def _path(each: NodePlan, process: Process, name: str) -> str:
    return f"{each.folder}/{process.name}/{name}"


def _delimiter(word: str, text: str) -> str:
    """Return a word that is no line of `text`, to end a here-document with."""
    lines = set(text.split("\n"))
    number = 0
    while (word if not number else f"{word}{number}") in lines:
        number += 1
    return word if not number else f"{word}{number}"
