"""A launch: ask, plan, act. The one way from flags to a running job, whichever launcher and runtime."""

from __future__ import annotations

import sys
import time
from collections.abc import Container, Sequence
from dataclasses import replace
from pathlib import PurePosixPath
from typing import Any

from torchfab.cli.flags import JobFlags, LaunchFlags
from torchfab.config.connection_settings import ConnectionSettings
from torchfab.core import dry_run, environment, inventory, specs
from torchfab.core.console import progress, write_err, write_out
from torchfab.core.errors import Interrupted, UsageError
from torchfab.core.specs import Facts, Job, Node, Plan, Slot
from torchfab.doctor import Clock, Finding, launch_warnings, render, same_machine
from torchfab.launch import deepspeed_env, transaction
from torchfab.launch.context import CommandContext
from torchfab.launch.hosts import read_inventory
from torchfab.launch.interrupts import DeferInterrupts, InterruptibleOnce
from torchfab.launchers import AnyLauncher, Launcher
from torchfab.records import Record, Records, launch_request
from torchfab.records.launch_request import LaunchRequest
from torchfab.runtimes import tmux

_SUPERVISED = ("restarts", "stall", "backoff", "notify", "tmux")

# ---- from flags to a job


def make_job(launcher: AnyLauncher, flags: JobFlags, own: Any, ctx: CommandContext) -> Job:
    """Return the job that the flags ask for, with every default filled in.

    Raises
    ------
    UsageError
        A flag's value is wrong.
    """
    script = tuple(ctx.config["script"]) if ctx.words is None else ctx.words
    if not script or not script[0]:
        what = "an empty word" if script else "nothing"
        raise UsageError(f"{what} stands after --", "write the script there: -- train.py --batch-size 64")
    env = {**environment.select_forwarded(ctx.environ, ctx.config["forward"]), **environment.parse_env_flags(flags.env)}
    shown, secret = environment.split_secrets(env)
    workdir = flags.workdir or ctx.cwd
    name = flags.name or _default_name(script, ctx.now)
    return Job(
        name=name,
        job_id=f"{name}-{ctx.token}",
        launcher=launcher.NAME,
        script=script,
        workdir=workdir,
        python=flags.python or sys.executable,
        master_addr=getattr(flags, "master_addr", ""),
        port=getattr(flags, "port", 0),
        env=shown,
        secrets=secret,
        node_dir=specs.node_dir(ctx.config["node_dir"], workdir),
        grace_s=float(ctx.config["grace_s"]) if flags.grace is None else flags.grace,
        options=launcher.options(own),
        ssh_options=ctx.settings.ssh_options,
        mask_key=ctx.mask_key,
    )


def _default_name(script: Sequence[str], now: float) -> str:
    is_module = script[0] == "-m" and len(script) > 1
    stem = script[1] if is_module else PurePosixPath(script[0] if not script[0].startswith("-") else script[-1]).stem
    clean = "".join(sign if sign.isascii() and sign.isalnum() else "-" for sign in stem).strip("-")[:40]
    return f"{clean or 'job'}-{time.strftime('%m%d-%H%M%S', time.localtime(now))}"


# ---- ask, plan, act


def launch(
    launcher: Launcher, flags: LaunchFlags, own: Any, ctx: CommandContext, announce: bool = True
) -> Record | None:
    """Launch a job on the tmux runtime, or print what would be launched.

    Parameters
    ----------
    announce : bool
        Print what was launched. Default True.

    Returns
    -------
    Record or None
        The record of the job; None for a dry run.

    Raises
    ------
    TorchfabError
        Something is wrong; nothing was started, or what had started was stopped again.
    """
    alone = [name for name in _SUPERVISED if getattr(flags, name) not in (None, "", False)]
    if alone:
        raise UsageError(f"--{alone[0]} is for a job that is supervised", "add --supervise, or leave it out")
    asked = build_request(launcher, flags, own, ctx)
    if flags.dry_run:
        show(asked, ctx)
        return None
    return execute(asked, ctx, announce=announce)


def show(asked: LaunchRequest, ctx: CommandContext, skip: Container[str] = ()) -> None:
    """Print what would be launched; the parameters are those of `carry_out`."""
    nodes, slots = launch_request.select_nodes(asked.nodes, asked.slots, choose(asked.nodes, asked.count, skip))
    write_out(_dry_run(asked.launcher, asked.job, nodes, slots, ctx))


def execute(asked: LaunchRequest, ctx: CommandContext, skip: Container[str] = (), announce: bool = True) -> Record:
    """Launch what was asked for.

    Parameters
    ----------
    skip : container of str
        Labels of nodes to leave out. Default: none.
    announce : bool
        Print what was launched. Default True.
    """
    launcher = asked.launcher
    nodes, slots = launch_request.select_nodes(asked.nodes, asked.slots, choose(asked.nodes, asked.count, skip))
    name = asked.job.name
    try:
        with transaction.claimed_name(ctx.records, name) as folder:
            asked.save(folder)
            prepared = tmux.prepare(asked.job, nodes, launcher.requirements(asked.job), ctx.settings, True, progress)
            record, plan = _start(launcher, asked.job, slots, prepared, ctx, attempt=1)
        ctx.records.end_launch(name)
    except KeyboardInterrupt:
        raise _interrupted(name, ctx.records) from None
    if announce:
        _announce(plan, time.time() - ctx.now)
    return record


def _interrupted(name: str, records: Records) -> Interrupted:
    if transaction.has_started(records, name):
        return Interrupted(f"interrupted, but job {name} had started by then: it runs", f"to end it: fab stop {name}")
    return Interrupted("interrupted; nothing was left running")


def build_request(
    launcher: Launcher, flags: LaunchFlags, own: Any, ctx: CommandContext, skip: Container[str] = ()
) -> LaunchRequest:
    """Return what the flags ask for, on as many nodes as `--nodes` says, or on all that are not skipped."""
    job = make_job(launcher, flags, own, ctx)
    nodes, slots = read_inventory(flags, ctx)
    if note := deepspeed_env.look(job.script, ctx.cwd, ctx.config["forward"], {*job.env, *job.secrets}):
        write_err(f"note: {note}")
    count = flags.nodes or sum(node.label not in skip for node in nodes) or len(nodes)
    return LaunchRequest(job, vars(own), nodes, slots, count)


def choose(nodes: Sequence[Node], count: int, skip: Container[str] = ()) -> tuple[Node, ...]:
    """Return the first `count` nodes that are not to be skipped, by their labels; the lines beyond are spares.

    Raises
    ------
    UsageError
        There are not as many.
    """
    found = tuple(node for node in nodes if node.label not in skip)
    if len(found) < count:
        left_out = [node.label for node in nodes if node.label in skip]
        lemons = f"; left out as lemons: {inventory.fold(left_out)}" if left_out else ""
        fix = "fab lemons says why, and forgives" if left_out else "name more hosts, or ask for fewer"
        raise UsageError(f"{count} nodes are wanted, and the hosts file has {len(found)} that can be used{lemons}", fix)
    return found[:count]


def relaunch(
    asked: LaunchRequest, nodes: Sequence[Node], new_port: bool, before: Record, ctx: CommandContext
) -> Record:
    """Launch a job once more, under its name, as its next attempt; nothing of the one before runs on these nodes.

    Parameters
    ----------
    nodes : sequence of Node
        On which nodes of those asked for.
    new_port : bool
        Whether processes of an earlier attempt may still hold the port.
    before : Record
        The attempt before.

    Raises
    ------
    TorchfabError
        It was not started. Whether it counts as an attempt is seen in the record.
    """
    launcher, job = asked.launcher, asked.next_job(ctx.token, new_port)
    if nodes[0].label != before.nodes[0].label:  # an address that was given is that of the node that is gone
        job = replace(job, master_addr="")
    nodes, slots = launch_request.select_nodes(asked.nodes, asked.slots, nodes)
    prepared = tmux.prepare(job, nodes, launcher.requirements(job), ctx.settings, True, progress)
    return _start(launcher, job, slots, prepared, ctx, before.attempt + 1)[0]


def _start(
    launcher: Launcher,
    job: Job,
    slots: Sequence[Slot],
    prepared: tmux.Prepared,
    ctx: CommandContext,
    attempt: int,
) -> tuple[Record, Plan]:
    """Plan on what the nodes told, write it down, and start it."""
    try:
        nodes = prepared.nodes
        same_machine.check(nodes, {rank: each.facts for rank, each in prepared.answers.items()})
        warnings = _print_warnings(prepared)
        plan = launcher.plan(job, nodes, slots, prepared.facts)
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


def _announce(plan: Plan, seconds: float) -> None:
    outcome = f"{plan.world_size} ranks on {len(plan.nodes)} nodes, started in {seconds:.1f} s"
    shown = {key: value for key, value in plan.defaults.items() if key not in ("job", "nodes")}
    transaction.announce(plan.job.name, outcome, shown, ("logs --follow", "status", "attach", "stop"))


def _dry_run(launcher: Launcher, job: Job, nodes: Sequence[Node], slots: Sequence[Slot], ctx: CommandContext) -> str:
    notes = [
        "",
        "Pasted into bash, this launches the same job without torchfab (and without its supervisor and records).",
    ]
    facts: Sequence[Facts] | None = launcher.facts_from_flags(job, nodes)
    if facts is not None:
        notes.append("The flags leave nothing to ask the nodes, so none was asked: GPUs are assumed where ranks are.")
    else:
        prepared = tmux.prepare(job, nodes, launcher.requirements(job), ctx.settings, False, progress)
        prepared.close()
        same_machine.check(nodes, {rank: each.facts for rank, each in prepared.answers.items()})
        _print_warnings(prepared)
        facts = prepared.facts
    plan = launcher.plan(job, nodes, slots, facts)
    return dry_run.render_dry_run(plan, lambda each: _shell_argv(each.node, ctx.settings), notes)


def _shell_argv(node: Node, settings: ConnectionSettings) -> tuple[str, ...]:
    shell = ("bash", "-s")
    return shell if node.is_local else (*tmux.ssh_argv(node, settings), "--", node.host, *shell)


def _print_warnings(prepared: tmux.Prepared) -> tuple[Finding, ...]:
    """Print the warnings of phase one on stderr, equal ones of several nodes as one; return them."""
    answers = prepared.answers
    clocks = {rank: Clock(each.clock_ahead_s, (each.received - each.sent) / 2) for rank, each in answers.items()}
    facts = {rank: each.facts for rank, each in answers.items()}
    found = launch_warnings.warnings(prepared.nodes, facts, clocks)
    for each in found:
        write_err(render.render_finding(each))
    return found
