"""Render a Plan as a shell script that works without torchfab: the output of `--dry-run`.

Pasted into bash, it launches the same job.
"""

from __future__ import annotations

import posixpath
import shlex
from collections.abc import Callable, Iterable, Sequence

from torchfab.core.specs import NodePlan, Plan, Process, search_path, session_name

SSHArgv = Callable[[NodePlan], Sequence[str]]


def render_dry_run(plan: Plan, ssh_argv: SSHArgv, notes: Sequence[str] = ()) -> str:
    """Render a whole launch as a shell script.

    Parameters
    ----------
    plan : Plan
        The plan of the launch.
    ssh_argv : callable
        Returns the command that runs a shell on a node with its script on stdin.
    notes : sequence of str
        Remarks for the reader, printed as comments.

    Returns
    -------
    str
        The script: comments, then one part per node.
    """
    head = [f"{key}: {value}" for key, value in plan.defaults.items()]
    comments = [f"# {line}" for text in (*head, *notes) for line in text.splitlines()]
    return "\n\n".join(
        ["\n".join(comments), *(node_shell(plan, part, ssh_argv) for wave in plan.start_order for part in wave)]
    )


def node_shell(plan: Plan, part: NodePlan, ssh_argv: SSHArgv) -> str:
    """Render the shell commands that start one node's part of a job.

    Parameters
    ----------
    plan : Plan
        The plan of the launch.
    part : NodePlan
        The node's part of it.
    ssh_argv : callable
        Returns the command that runs a shell on a node with its script on stdin.

    Returns
    -------
    str
        Commands to run on the launch machine.
    """
    script = "\n".join(_node_script(plan, part))
    end = _delimiter("TORCHFAB", script)
    labels = "".join(f" {key}={value}" for key, value in part.node.labels)
    title = f"# node {part.node.rank}: {part.node.label}{labels}"
    command = shlex.join(ssh_argv(part))
    if not plan.job.secrets:
        return f"{title}\n{command} <<'{end}'\n{script}\n{end}"
    # Secret values come from the shell that runs the script. printf is a builtin, so ps does not show them.
    exports = "\n".join(f"printf 'export {name}=%q\\n' \"${{{name}?}}\"" for name in sorted(plan.job.secrets))
    return f"{title}\n{{\n{exports}\ncat <<'{end}'\n{script}\n{end}\n}} | {command}"


def _node_script(plan: Plan, part: NodePlan) -> Iterable[str]:
    yield "umask 077"
    if setup := plan.job.on(part.node).setup:
        yield f"mkdir -p {shlex.quote(part.folder)}"
        yield from _here_document(shlex.quote(f"{part.folder}/setup"), ">", "SETUP", setup)
    for process in part.processes:
        yield from _process_script(plan, part, process)
    if plan.job.before:
        first = part.processes[0]
        run = f"exec {shlex.join(('sh', '-c', plan.job.before))} < /dev/null"
        yield from _script_file(plan, part, first, "before.sh", run)
        yield f"bash {shlex.quote(_path(part, first, 'before.sh'))} || exit"
    session = session_name(plan.job.name, part.node.rank)
    for index, process in enumerate(part.processes):
        new = ("new-window", "-d", "-t", f"={session}:") if index else ("new-session", "-d", "-s", session)
        command = ("bash", _path(part, process, "run.sh"))
        yield shlex.join(["tmux", "-L", "torchfab", "-f", "/dev/null", *new, "-n", process.name, *command])


def _process_script(plan: Plan, part: NodePlan, process: Process) -> Iterable[str]:
    yield "mkdir -p " + shlex.join(_folders(part, process))
    for name, text in process.files.items():
        yield from _here_document(shlex.quote(_path(part, process, name)), ">", "FILE", text.removesuffix("\n"))
        if text.startswith("#!"):
            yield f"chmod 700 {shlex.quote(_path(part, process, name))}"
    log = shlex.quote(_path(part, process, "output.log"))
    run = f"exec {_in_lines(process.argv)} > >(tee -a {log}) 2>&1 < /dev/null"
    yield from _script_file(plan, part, process, "run.sh", run)


def _script_file(plan: Plan, part: NodePlan, process: Process, name: str, run: str) -> Iterable[str]:
    """Yield the commands that write a script which runs a command in the environment of a process."""
    path = shlex.quote(_path(part, process, name))
    secrets = sorted(plan.job.secrets) if process.secrets else []
    if secrets:
        yield f": > {path}"
        yield from (f"printf 'export {each}=%q\\n' \"${each}\" >> {path}" for each in secrets)
    lines = [*_environment_lines(plan, part, process, name), run]
    yield from _here_document(path, ">>" if secrets else ">", "RUN", "\n".join(lines))


def _folders(part: NodePlan, process: Process) -> list[str]:
    own = f"{part.folder}/{process.name}"
    folders = [f"{own}/{name}" for name in process.folders]
    folders += [posixpath.dirname(f"{own}/{name}") for name in process.files]
    return list(dict.fromkeys(folders)) or [own]


def _here_document(path: str, redirection: str, delimiter: str, text: str) -> Iterable[str]:
    delimiter = _delimiter(delimiter, text)
    yield from (f"cat {redirection} {path} <<'{delimiter}'", text, delimiter)


def _environment_lines(plan: Plan, part: NodePlan, process: Process, name: str) -> Iterable[str]:
    yield f"cd {shlex.quote(plan.job.on(part.node).workdir)} || exit"
    if plan.job.on(part.node).setup:
        yield from _setup_lines(f"{part.folder}/setup", _path(part, process, name))
    yield from (f"export {variable}={shlex.quote(value)}" for variable, value in process.env.items())
    path = search_path(plan.job.on(part.node), process)
    if path:
        yield f'export PATH={shlex.quote(":".join(path))}:"$PATH"'


def _setup_lines(setup: str, script: str) -> Iterable[str]:
    """Yield the lines that run a script again as a child of the login shell, after the setup commands."""
    again = f"source {shlex.quote(setup)} && exec bash {shlex.quote(script)} ready"
    login = 'TORCHFAB_SETUP=1 exec -a "-${SHELL##*/}" "$SHELL"'
    yield f"again={shlex.quote(again)}"
    yield "case ${1-}:${SHELL##*/} in"
    yield "ready:*) unset TORCHFAB_SETUP ;;"
    yield f'*:*csh) {login} -i <<< "$again" ;;'  # with -c there is no prompt, and csh is not interactive
    yield f'*) {login} -ic "$again" ;;'
    yield "esac"


def _in_lines(argv: Sequence[str]) -> str:
    """Return a command as shell, with each option on a line of its own."""
    args = [shlex.quote(arg) for arg in argv]
    return " ".join(f"\\\n  {arg}" if arg.startswith("--") else arg for arg in args)


def _path(part: NodePlan, process: Process, name: str) -> str:
    return f"{part.folder}/{process.name}/{name}"


def _delimiter(word: str, text: str) -> str:
    """Return a delimiter for a here-document: `word`, with a number where `text` has a line equal to it."""
    lines = set(text.split("\n"))
    number = 0
    while (word if not number else f"{word}{number}") in lines:
        number += 1
    return word if not number else f"{word}{number}"
