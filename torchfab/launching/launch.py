"""Launch a job on the tmux runtime, with any launcher: request facts from the nodes, plan, start."""

from __future__ import annotations

import os
import shlex
import time
from collections.abc import Container, Sequence
from dataclasses import replace
from pathlib import PurePosixPath
from typing import Any

from torchfab.cli.flags import JobFlags, LaunchFlags
from torchfab.config.connection_settings import ConnectionSettings
from torchfab.core import command, dry_run, environment, inventory, requirements_file, specs
from torchfab.core.console import progress, write_err, write_verbatim
from torchfab.core.errors import HostError, HostsFailedError, Interrupted, TorchfabError, UsageError
from torchfab.core.format import plural
from torchfab.core.specs import Facts, Job, Node, Plan, Slot
from torchfab.doctor import Clock, Finding, same_machine
from torchfab.launchers import AnyLauncher, Launcher
from torchfab.launchers.probe import with_probe
from torchfab.launching import deepspeed_env, shell_script, transaction
from torchfab.launching.context import CommandContext, setup_commands
from torchfab.launching.hosts import read_inventory
from torchfab.launching.interpreter import default_python
from torchfab.launching.interrupts import DeferInterrupts, InterruptibleOnce
from torchfab.records import Record, Records, launch_request
from torchfab.records.launch_request import LaunchRequest
from torchfab.runtimes import tmux
from torchfab.transport.messages.launch import SetupFacts

_FLAGS_OF_SUPERVISE = ("restarts", "stall", "backoff", "notify", "tmux")

# ---- from flags to a job


def make_job(launcher: AnyLauncher, flags: JobFlags, own: Any, ctx: CommandContext) -> Job:
    """Create a job from flags, with every default filled in.

    Parameters
    ----------
    launcher : module
        The launcher.
    flags, own : dataclass
        The flags that all launches share, and those of this launcher.
    ctx : CommandContext
        The context of the command.

    Returns
    -------
    Job
        The job.

    Raises
    ------
    UsageError
        A flag's value is wrong.
    """
    script = tuple(ctx.config["script"]) if ctx.script is None else ctx.script
    if not script or not script[0]:
        raise _no_script(script, ctx)
    what = ctx.command or command.parse(script, lambda path: looked_at(os.path.join(flags.workdir or ctx.cwd, path)))
    for note in environment.joined_pairs(flags.env):
        write_err(f"note: {note}")
    env = {
        **environment.select_forwarded(ctx.environ, ctx.config["forward"]),
        **environment.parse_env_flags(flags.env, ctx.environ),
    }
    plain, secret = environment.split_secrets(env)
    workdir = flags.workdir or ctx.cwd
    name = flags.name or default_name(command.script_words(script), ctx.now)
    return Job(
        name=name,
        job_id=f"{name}-{ctx.token}",
        launcher=launcher.NAME,
        script=what.script,
        is_program=what.is_program,
        files=what.files,
        python_version=what.python_version,
        workdir=workdir,
        python=_interpreter(flags, what, ctx),
        master_addr=getattr(flags, "master_addr", ""),
        port=getattr(flags, "port", 0),
        env=plain,
        secrets=secret,
        node_dir=specs.node_dir(ctx.config["node_dir"], workdir),
        grace_s=float(ctx.config["grace_s"]) if flags.grace is None else flags.grace,
        options=launcher.options(own),
        ssh_options=ctx.settings.ssh_options,
        mask_key=ctx.mask_key,
        setup=setup_commands(flags.setup, ctx) if flags.setup or flags.setting_of_setup else "",
        python_is_default=not (flags.python or what.python),
        before=environment.check_setup(flags.before, "--before"),
        after=environment.check_setup(flags.after, "--after"),
        setup_timeout_s=float(ctx.config["setup_timeout_s"]),
        hook_timeout_s=float(ctx.config["hook_timeout_s"]),
        probe=bool(ctx.config["probe"]) and not getattr(flags, "no_probe", True),
    )


def _no_script(script: Sequence[str], ctx: CommandContext) -> UsageError:
    if ctx.script is None and not script:
        example = "or set script in torchfab.yaml; torchfab init --example writes a script to try"
        return UsageError("no script is given", f"write it after --: -- train.py --batch-size 64; {example}")
    problem = "an empty argument" if script else "nothing"
    return UsageError(f"there is {problem} after --", "write the script there: -- train.py --batch-size 64")


def _interpreter(flags: JobFlags, what: command.Command, ctx: CommandContext) -> str:
    """Return the interpreter: of `--python`, or of `-- /venv/bin/python train.py`, else the default."""
    is_given = flags.python and flags.python != type(flags).python
    if what.python and is_given and what.python != flags.python:
        raise UsageError(f"-- {what.python} and --python {flags.python} name two interpreters", "leave one of them out")
    return what.python or flags.python or default_python(ctx.environ, ctx.root)


def looked_at(path: str) -> command.Look | None:
    """Return the `#!` line and the execute permission of a file of this machine.

    Parameters
    ----------
    path : str
        The file.

    Returns
    -------
    Look or None
        None if there is no such file.
    """
    try:
        with open(path, "rb") as file:
            line = file.readline(256)
    except (OSError, ValueError):
        return None
    words = line[2:].decode(errors="replace").split() if line.startswith(b"#!") else []
    return command.Look(tuple(words), os.access(path, os.X_OK))


def default_name(script: Sequence[str], now: float) -> str:
    """Return the default name of a job.

    Parameters
    ----------
    script : sequence of str
        The script, or another command, with its arguments.
    now : float
        Launch time, in seconds since the epoch.

    Returns
    -------
    str
        The name of the script or module, and the time.
    """
    if script[0] == "-c":
        return f"code-{transaction.time_stamp(now)}"
    is_module = script[0] == "-m" and len(script) > 1
    stem = script[1] if is_module else PurePosixPath(script[0] if not script[0].startswith("-") else script[-1]).stem
    clean = "".join(char if char.isascii() and char.isalnum() else "-" for char in stem).strip("-")[:40]
    return f"{clean or 'job'}-{transaction.time_stamp(now)}"


# ---- request, plan, start


def launch(
    launcher: Launcher, flags: LaunchFlags, own: Any, ctx: CommandContext, announce: bool = True
) -> Record | None:
    """Launch a job on the tmux runtime, or print the dry run.

    Parameters
    ----------
    launcher : module
        The launcher.
    flags, own : dataclass
        The flags that all launches share, and those of this launcher.
    ctx : CommandContext
        The context of the command.
    announce : bool
        Print the launched job. Default True.

    Returns
    -------
    Record or None
        The record of the job; None for a dry run.

    Raises
    ------
    TorchfabError
        The launch failed; nothing runs: processes that had started were stopped again.
    """
    given = [name for name in _FLAGS_OF_SUPERVISE if getattr(flags, name) not in (None, "", False)]
    if given:
        raise UsageError(f"--{given[0]} works with --supervise only", "add --supervise, or leave it out")
    request = build_request(launcher, flags, own, ctx)
    if flags.dry_run:
        show(request, ctx)
        return None
    return execute(request, ctx, announce=announce)


def show(request: LaunchRequest, ctx: CommandContext, skip: Container[str] = ()) -> None:
    """Print the dry run of a launch.

    Parameters
    ----------
    request : LaunchRequest
        The launch.
    ctx : CommandContext
        The context of the command.
    skip : container of str
        Labels of nodes to leave out. Default: none.
    """
    write_verbatim(dry_run_text(request, ctx, skip))


def dry_run_text(request: LaunchRequest, ctx: CommandContext, skip: Container[str] = ()) -> str:
    """Return the dry run of a launch.

    Parameters
    ----------
    request : LaunchRequest
        The launch.
    ctx : CommandContext
        The context of the command.
    skip : container of str
        Labels of nodes to leave out. Default: none.

    Returns
    -------
    str
        A shell script that does the same without torchfab.
    """
    nodes, slots = launch_request.select_nodes(request.nodes, request.slots, choose(request.nodes, request.count, skip))
    return _dry_run(request.launcher, request.job, nodes, slots, ctx)


def execute(request: LaunchRequest, ctx: CommandContext, skip: Container[str] = (), announce: bool = True) -> Record:
    """Launch a job.

    Parameters
    ----------
    request : LaunchRequest
        The launch.
    ctx : CommandContext
        The context of the command.
    skip : container of str
        Labels of nodes to leave out. Default: none.
    announce : bool
        Print the launched job. Default True.

    Returns
    -------
    Record
        The record of the job.

    Raises
    ------
    Interrupted
        Ctrl-C, or `fab stop`.
    """
    launcher = request.launcher
    nodes, slots = launch_request.select_nodes(request.nodes, request.slots, choose(request.nodes, request.count, skip))
    name = request.job.name
    try:
        with transaction.claimed_name(ctx.records, *transaction.names_to_try(name, ctx.now)) as folder:
            request, name = request.renamed(folder.name), folder.name
            request.save(folder)
            prepared = tmux.prepare(
                request.job, nodes, launcher.requirements(request.job), ctx.settings, True, progress
            )
            record, plan = _start(launcher, request.job, slots, prepared, ctx, attempt=1)
        ctx.records.end_launch(name)
    except KeyboardInterrupt:
        raise _interrupted(name, ctx.records) from None
    if announce:
        _announce(plan, time.time() - ctx.now)
        _note_not_forwarded(request.job, nodes, ctx)
    return record


def _note_not_forwarded(job: Job, nodes: Sequence[Node], ctx: CommandContext) -> None:
    """Print a note about variables of this terminal that may matter and are not forwarded to the nodes."""
    names = environment.not_forwarded(ctx.environ, {*job.env, *job.secrets})
    if names and not all(node.is_local for node in nodes):
        are = "is" if len(names) == 1 else "are"
        write_err(f"note: {', '.join(names)} {are} set here and not forwarded: --env {names[0]}")


def _interrupted(name: str, records: Records) -> Interrupted:
    if transaction.has_started(records, name):
        return Interrupted(f"interrupted, but job {name} had started by then: it runs", f"to end it: fab stop {name}")
    return Interrupted("interrupted; nothing was left running")


def build_request(
    launcher: Launcher, flags: LaunchFlags, own: Any, ctx: CommandContext, skip: Container[str] = ()
) -> LaunchRequest:
    """Create the launch request of flags, for `--nodes` nodes, or for all nodes that are not skipped.

    Parameters
    ----------
    launcher : module
        The launcher.
    flags, own : dataclass
        The flags that all launches share, and those of this launcher.
    ctx : CommandContext
        The context of the command.
    skip : container of str
        Labels of nodes to leave out. Default: none.

    Returns
    -------
    LaunchRequest
        The request; its nodes include the skipped ones and the spares.
    """
    job = make_job(launcher, flags, own, ctx)
    nodes, slots = read_inventory(flags, ctx)
    for node in nodes:
        for variable, _ in node.env:
            environment.check_not_reserved(variable, f"{node.origin}: env.{variable}")
    if note := deepspeed_env.describe_unread(job.script, ctx.cwd, ctx.config["forward"], {*job.env, *job.secrets}):
        write_err(f"note: {note}")
    if job.is_program and (note := shell_script.describe_launcher(job.script, ctx.cwd)):
        write_err(f"note: {note}")
    count = flags.nodes or sum(node.label not in skip for node in nodes) or len(nodes)
    return LaunchRequest(job, vars(own), nodes, slots, count)


def choose(nodes: Sequence[Node], count: int, skip: Container[str] = ()) -> tuple[Node, ...]:
    """Return the first `count` usable nodes; the hosts beyond are spares.

    Parameters
    ----------
    nodes : sequence of Node
        The hosts of the file.
    count : int
        The number of nodes.
    skip : container of str
        Labels of nodes to leave out. Default: none.

    Returns
    -------
    tuple of Node
        `count` nodes.

    Raises
    ------
    UsageError
        There are fewer usable nodes.
    """
    found = tuple(node for node in nodes if node.label not in skip)
    if len(found) < count:
        left_out = [node.label for node in nodes if node.label in skip]
        lemons = f"; left out as lemons: {inventory.fold(left_out)}" if left_out else ""
        fix = (
            "fab lemons shows why; fab lemons --forgive HOST readmits"
            if left_out
            else "name more hosts, or use fewer with --nodes"
        )
        raise UsageError(
            f"the job needs {count} nodes, and the hosts file has {len(found)} that can be used{lemons}", fix
        )
    return found[:count]


def relaunch(
    request: LaunchRequest, nodes: Sequence[Node], new_port: bool, previous: Record, ctx: CommandContext
) -> Record:
    """Launch the next attempt of a job; no process of the previous attempt may run on these nodes.

    Parameters
    ----------
    request : LaunchRequest
        The first launch of the job.
    nodes : sequence of Node
        The nodes to use, from those of the request.
    new_port : bool
        Use another port, because processes of an earlier attempt may still hold the old one.
    previous : Record
        The previous attempt.
    ctx : CommandContext
        The context of the command.

    Returns
    -------
    Record
        The record of the new attempt.

    Raises
    ------
    TorchfabError
        It was not started. The record shows whether it counts as an attempt.
    """
    launcher, job = request.launcher, request.next_job(ctx.token, new_port)
    if nodes[0].label != previous.nodes[0].label:  # --master-addr is the address of the replaced node
        job = replace(job, master_addr="")
    nodes, slots = launch_request.select_nodes(request.nodes, request.slots, nodes)
    prepared = tmux.prepare(job, nodes, launcher.requirements(job), ctx.settings, True, progress)
    return _start(launcher, job, slots, prepared, ctx, previous.attempt + 1)[0]


def _start(
    launcher: Launcher,
    job: Job,
    slots: Sequence[Slot],
    prepared: tmux.Prepared,
    ctx: CommandContext,
    attempt: int,
) -> tuple[Record, Plan]:
    """Plan with the facts of the nodes, write the record, and start the job."""
    try:
        nodes = prepared.nodes
        same_machine.check(nodes, {rank: each.facts for rank, each in prepared.answers.items()})
        _check_python_versions(job, prepared)
        warnings = _print_warnings(prepared, ctx)
        plan = with_probe(specs.with_files(launcher.plan(job, nodes, slots, prepared.facts)))
        record = ctx.records.write(plan, tmux.NAME, ctx.now, ctx.settings, attempt)
        for each in warnings:
            record.note("warning", **each.as_json())
        with InterruptibleOnce():
            tmux.start(plan, prepared, progress)
            with DeferInterrupts():
                record.note("started", attempt=attempt)
                record.remember("running", None, ended=False)
    finally:
        prepared.close()
    return record, plan


def _check_python_versions(job: Job, prepared: tmux.Prepared) -> None:
    """Check that the interpreters of all nodes have the version that the job needs."""
    wanted = job.python_version
    reasons: dict[str, TorchfabError] = {}
    for node in prepared.nodes:
        version = prepared.answers[node.rank].facts.python
        if wanted and version.split(".")[:2] != wanted.split("."):
            problem = f"{job.on(node).python} is Python {version}, and Python {wanted} is needed there"
            fix = f"give an interpreter of Python {wanted}: with --python, or with python= in the hosts file"
            reasons[node.label] = HostError(problem, fix)
    if reasons:
        raise HostsFailedError(
            f"{len(reasons)} of {len(prepared.nodes)} hosts cannot run a function that Python {wanted} has pickled; "
            "nothing was started",
            reasons,
        )


def _announce(plan: Plan, seconds: float) -> None:
    outcome = f"{plural(plan.world_size, 'rank')} on {plural(len(plan.nodes), 'node')}, started in {seconds:.1f} s"
    shown = {key: value for key, value in plan.defaults.items() if key not in ("job", "nodes")}
    transaction.announce(plan.job.name, outcome, shown, ("logs --follow", "status", "attach", "stop"))


def _dry_run(launcher: Launcher, job: Job, nodes: Sequence[Node], slots: Sequence[Slot], ctx: CommandContext) -> str:
    notes = [
        "",
        "Pasted into bash, this launches the same job without torchfab (and without its supervisor and records).",
    ]
    facts: Sequence[Facts] | None = launcher.facts_from_flags(job, nodes)
    if facts is not None and not any(job.on(node).setup for node in nodes):
        notes.append("The flags determine everything, so no node was contacted: GPUs are assumed where ranks run.")
    else:
        prepared = tmux.prepare(job, nodes, launcher.requirements(job), ctx.settings, False, progress)
        prepared.close()
        same_machine.check(nodes, {rank: each.facts for rank, each in prepared.answers.items()})
        _print_warnings(prepared, ctx)
        facts, nodes = prepared.facts, prepared.nodes
        notes += describe_setups(prepared)
    if job.after:
        notes.append(f"Left out, because it needs the supervisor: --after {shlex.quote(job.after)}")
    plan = launcher.plan(job, nodes, slots, facts)
    return dry_run.render_dry_run(plan, lambda each: _shell_argv(each.node, ctx.settings), notes)


def describe_setups(prepared: tmux.Prepared) -> list[str]:
    """Return a line for each outcome of the setup commands, with the nodes that had it.

    Parameters
    ----------
    prepared : Prepared
        The result of phase one.

    Returns
    -------
    list of str
        Empty without setup commands.
    """
    hosts: dict[str, list[str]] = {}
    for node in prepared.nodes:
        setup = prepared.answers[node.rank].facts.setup
        if setup:
            hosts.setdefault(_setup_outcome(setup), []).append(node.label)
    return [f"setup on {inventory.fold(labels)}: {outcome}" for outcome, labels in hosts.items()]


def _setup_outcome(setup: SetupFacts) -> str:
    changed = f"sets {', '.join(setup.changed)}" if setup.changed else "changes no variable"
    removed = f"; removes {', '.join(setup.removed)}" if setup.removed else ""
    python = f"; the interpreter is {setup.python}" if setup.python else ""
    return f"{setup.shell} {changed}{removed}{python}"


def _shell_argv(node: Node, settings: ConnectionSettings) -> tuple[str, ...]:
    shell = ("bash", "-s")
    return shell if node.is_local else (*tmux.ssh_argv(node, settings), "--", node.host, *shell)


def _print_warnings(prepared: tmux.Prepared, ctx: CommandContext) -> tuple[Finding, ...]:
    """Print the warnings of phase one on stderr, equal ones of several nodes as one; return them."""
    from torchfab.doctor import launch_warnings, render

    answers = prepared.answers
    clocks = {rank: Clock(each.clock_ahead_s, (each.received - each.sent) / 2) for rank, each in answers.items()}
    facts = {rank: each.facts for rank, each in answers.items()}
    lists = requirements_file.digests(ctx.root, {each.packages.source for each in facts.values() if each.packages})
    found = launch_warnings.warnings(prepared.nodes, facts, clocks, lists)
    for each in found:
        write_err(render.render_finding(each))
    return found
