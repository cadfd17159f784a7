"""A launch: ask, plan, act. The one way from flags to a running job, whichever launcher and runtime."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Container, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from types import ModuleType
from typing import Any

from torchfab import allocation, cautions, environment, inventory, render
from torchfab import asked as asked_of
from torchfab.asked import Asked
from torchfab.commandline import progress, say, tell
from torchfab.errors import Interrupted, TorchfabError, UsageError
from torchfab.flags import JobFlags, LaunchFlags
from torchfab.job import Facts, Job, Node, Plan, Slot
from torchfab.records import Record, Records
from torchfab.runtimes import tmux
from torchfab.settings import Settings
from torchfab.surroundings import Surroundings

_SUPERVISED = ("restarts", "stall", "backoff", "notify", "tmux")

# ---- from flags to a job


def make_job(launcher: ModuleType, flags: JobFlags, own: Any, around: Surroundings) -> Job:
    """Return the job that the flags ask for, with every default filled in.

    Raises
    ------
    UsageError
        A flag's value is wrong.
    """
    script = tuple(around.config["script"] if around.config["words"] is None else around.config["words"])
    if not script or not script[0]:
        what = "an empty word" if script else "nothing"
        raise UsageError(f"{what} stands after --", "write the script there: -- train.py --batch-size 64")
    env = {**environment.forwarded(around.environ, around.config["forward"]), **environment.parse_flags(flags.env)}
    shown, secret = environment.split_secrets(env)
    workdir = flags.workdir or around.cwd
    name = flags.name or _default_name(script, around.now)
    return Job(
        name=name,
        job_id=f"{name}-{around.token}",
        launcher=launcher.NAME,
        script=script,
        workdir=workdir,
        python=flags.python or sys.executable,
        master_addr=getattr(flags, "master_addr", ""),
        port=number("--port", getattr(flags, "port", "0")),
        env=shown,
        secrets=secret,
        node_dir=node_dir(around.config["node_dir"], workdir),
        grace_s=seconds("--grace", flags.grace or str(around.config["grace_s"])),
        options=launcher.options(own),
        ssh_options=around.settings.ssh_options,
        mask_key=around.mask_key,
    )


def _default_name(script: Sequence[str], now: float) -> str:
    is_module = script[0] == "-m" and len(script) > 1
    stem = script[1] if is_module else PurePosixPath(script[0] if not script[0].startswith("-") else script[-1]).stem
    clean = "".join(sign if sign.isascii() and sign.isalnum() else "-" for sign in stem).strip("-")[:40]
    return f"{clean or 'job'}-{time.strftime('%m%d-%H%M%S', time.localtime(now))}"


def node_dir(configured: str, workdir: str) -> str:
    """Return where jobs' folders lie on a node, from the setting: relative to the workdir, absolute, or with a ~."""
    path = str(configured)
    return path if path.startswith(("/", "~")) else f"{workdir.rstrip('/')}/{path}"


def number(flag: str, text: str) -> int:
    """Return the number that a flag says, or raise UsageError."""
    if not (text.isascii() and text.isdigit() and len(text) < 12):
        raise UsageError(f"{flag} is a number from 1 to 65535, or 0 for a free one; got {text!r}")
    return int(text)


def seconds(flag: str, text: str) -> float:
    """Return the seconds that a flag says, or raise UsageError."""
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < 1e6:
        raise UsageError(f"{flag} is a number of seconds, got {text!r}")
    return seconds


def read_inventory(flags: LaunchFlags, around: Surroundings) -> tuple[tuple[Node, ...], tuple[Slot, ...]]:
    """Return the nodes, and for a gpus file the slots, of a launch: `-H`, else the file."""
    hosts = around.config["hosts"]
    gpufile = getattr(flags, "gpufile", None)
    if gpufile is None:
        return read_nodes(flags.hostfile, around), ()
    if hosts:
        return inventory.parse_gpus(inventory.lines_of_flag(hosts), "-H")
    return inventory.read_gpus(_file(gpufile, around.config["gpufile"], around))


def read_nodes(hostfile: str, around: Surroundings) -> tuple[Node, ...]:
    """Return the hosts that a command is about: `-H`, else those of `--hostfile`, else those of the configured file."""
    if around.config["hosts"]:
        return inventory.parse_flag(around.config["hosts"])
    if hostfile == allocation.WORD:
        return allocation.nodes_of(around.environ)
    return inventory.read_hosts(_file(hostfile, around.config["hostfile"], around))


def _file(given: str, default: str, around: Surroundings) -> Path:
    return Path(around.cwd, given) if given else around.root / default


# ---- ask, plan, act


def launch(
    launcher: ModuleType, flags: LaunchFlags, own: Any, around: Surroundings, announce: bool = True
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
    alone = [name for name in _SUPERVISED if getattr(flags, name)]
    if alone:
        raise UsageError(f"--{alone[0]} is for a job that is supervised", "add --supervise, or leave it out")
    asked = ask_for(launcher, flags, own, around)
    if flags.dry_run:
        show(asked, around)
        return None
    return carry_out(asked, around, announce=announce)


def show(asked: Asked, around: Surroundings, skip: Container[str] = ()) -> None:
    """Print what would be launched; the parameters are those of `carry_out`."""
    nodes, slots = asked_of.of_nodes(asked.nodes, asked.slots, choose(asked.nodes, asked.count, skip))
    say(_dry_run(asked.launcher, asked.job, nodes, slots, around))


def carry_out(asked: Asked, around: Surroundings, skip: Container[str] = (), announce: bool = True) -> Record:
    """Launch what was asked for.

    Parameters
    ----------
    skip : container of str
        Labels of nodes to leave out. Default: none.
    announce : bool
        Print what was launched. Default True.
    """
    launcher = asked.launcher
    nodes, slots = asked_of.of_nodes(asked.nodes, asked.slots, choose(asked.nodes, asked.count, skip))
    name = asked.job.name
    folder = around.records.claim(name)
    try:
        with StoppedByName():
            asked.save(folder)
            prepared = tmux.prepare(asked.job, nodes, launcher.needs(asked.job), around.settings, True, progress)
            record, plan = _start(launcher, asked.job, slots, prepared, around, attempt=1)
        around.records.launched(name)
    except BaseException as error:
        runs = _has_started(around.records, name)
        if not (runs or (isinstance(error, TorchfabError) and error.unsure)):
            around.records.release(name)
        if isinstance(error, KeyboardInterrupt):
            raise _interrupted(name, runs) from None
        raise
    if announce:
        _announce(plan, time.time() - around.now)
    return record


def _has_started(records: Records, name: str) -> bool:
    try:
        return any(event["event"] == "started" for event in records.get(name).events())
    except TorchfabError:  # it was not even written down
        return False


def _interrupted(name: str, runs: bool) -> Interrupted:
    if runs:
        return Interrupted(f"interrupted, but job {name} had started by then: it runs", f"to end it: fab stop {name}")
    return Interrupted("interrupted; nothing was left running")


def ask_for(
    launcher: ModuleType, flags: LaunchFlags, own: Any, around: Surroundings, skip: Container[str] = ()
) -> Asked:
    """Return what the flags ask for, on as many nodes as `--nodes` says, or on all that are not skipped."""
    job = make_job(launcher, flags, own, around)
    nodes, slots = read_inventory(flags, around)
    count = _count(flags.nodes) or sum(node.label not in skip for node in nodes) or len(nodes)
    return Asked(job, vars(own), nodes, slots, count)


def _count(text: str) -> int:
    if text and not (text.isascii() and text.isdigit() and len(text) < 7 and int(text)):
        raise UsageError(f"--nodes is a number of at least 1, got {text!r}")
    return int(text or 0)


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


def again(asked: Asked, nodes: Sequence[Node], new_port: bool, before: Record, around: Surroundings) -> Record:
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
    launcher, job = asked.launcher, asked.next_job(around.token, new_port)
    if nodes[0].label != before.nodes[0].label:  # an address that was given is that of the node that is gone
        job = replace(job, master_addr="")
    nodes, slots = asked_of.of_nodes(asked.nodes, asked.slots, nodes)
    prepared = tmux.prepare(job, nodes, launcher.needs(job), around.settings, True, progress)
    return _start(launcher, job, slots, prepared, around, before.attempt + 1)[0]


def _start(
    launcher: ModuleType,
    job: Job,
    slots: Sequence[Slot],
    prepared: tmux.Prepared,
    around: Surroundings,
    attempt: int,
) -> tuple[Record, Plan]:
    """Plan on what the nodes told, write it down, and start it."""
    try:
        nodes = prepared.nodes
        warnings = cautions.tell_of(prepared)
        plan = launcher.plan(job, nodes, slots, [prepared.facts[node.rank] for node in nodes])
        record = around.records.write(plan, tmux.NAME, around.now, around.settings, attempt)
        for each in warnings:
            record.note("warning", **each.as_json())
        with InterruptibleOnce():
            tmux.start(plan, prepared, progress)
            with HeldBack():
                record.note("started", attempt=attempt)
                record.remember("running", None, ended=False)
    finally:
        prepared.close()
    return record, plan


STOP_SIGNAL = signal.SIGUSR1  # how `fab stop` asks a launch to take itself back


class StoppedByName:
    """Within it, `fab stop` of the job that is being launched is what Ctrl-C is; after it, it is ignored."""

    def __enter__(self) -> None:
        signal.signal(STOP_SIGNAL, signal.default_int_handler)

    def __exit__(self, *_: Any) -> None:
        signal.signal(STOP_SIGNAL, signal.SIG_IGN)


class InterruptibleOnce:
    """Within it the first Ctrl-C is an exception; later ones are ignored: the way back is bounded, and must finish."""

    def __enter__(self) -> None:
        self.before = {number: signal.getsignal(number) for number in (signal.SIGINT, STOP_SIGNAL)}
        for number in self.before:
            signal.signal(number, self._interrupt)

    def _interrupt(self, *_: Any) -> None:
        for number in self.before:
            signal.signal(number, signal.SIG_IGN)
        tell("\ninterrupted: taking back what was started")
        raise KeyboardInterrupt

    def __exit__(self, *_: Any) -> None:
        for number, before in self.before.items():
            signal.signal(number, before)


class HeldBack:
    """Within it Ctrl-C waits: of a job that runs by now, that must be written down before anything else."""

    def __enter__(self) -> None:
        self.came = False
        self.before = {number: signal.signal(number, self._note) for number in (signal.SIGINT, STOP_SIGNAL)}

    def _note(self, *_: Any) -> None:
        self.came = True

    def __exit__(self, *_: Any) -> None:
        for number, before in self.before.items():
            signal.signal(number, before)
        if self.came:
            raise KeyboardInterrupt


def _announce(plan: Plan, seconds: float) -> None:
    name = plan.job.name
    say(f"job {name}: {plan.world_size} ranks on {len(plan.nodes)} nodes, started in {seconds:.1f} s")
    for key in list(plan.chosen)[2:]:
        say(f"  {key:8} {plan.chosen[key]}")
    say(f"next: fab logs --follow {name} | fab status {name} | fab attach {name} | fab stop {name}")


def _dry_run(launcher: ModuleType, job: Job, nodes: Sequence[Node], slots: Sequence[Slot], around: Surroundings) -> str:
    notes = [
        "",
        "Pasted into bash, this launches the same job without torchfab (and without its supervisor and records).",
    ]
    facts: Sequence[Facts] | None = launcher.assumed(job, nodes)
    if facts is not None:
        notes.append("The flags leave nothing to ask the nodes, so none was asked: GPUs are assumed where ranks are.")
    else:
        prepared = tmux.prepare(job, nodes, launcher.needs(job), around.settings, False, progress)
        prepared.close()
        cautions.tell_of(prepared)
        facts = [prepared.facts[node.rank] for node in nodes]
    plan = launcher.plan(job, nodes, slots, facts)
    return render.dry_run(plan, lambda each: _shell_argv(each.node, around.settings), notes)


def _shell_argv(node: Node, settings: Settings) -> tuple[str, ...]:
    shell = ("bash", "-s")
    return shell if node.is_local else (*tmux.ssh_argv(node, settings), "--", node.host, *shell)
