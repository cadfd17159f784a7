"""torchfab: launch distributed PyTorch training on machines that you reach by SSH.

    fab launch-per-node --follow                         the embedded default, on the hosts in `hosts`
    fab launch-per-node --name gpt2 -- train.py --lr 3e-4    your script with its arguments, after --
    fab status | fab logs --follow | fab stop            the latest job

torchfab/launchers/ has one file per launcher, which decides what runs; `--dry-run` prints it. With `--debug`, every
command logs each step of each connection on stderr.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from torchfab import launchers
from torchfab.cli import excepthook, program
from torchfab.cli.executor import TaskContext
from torchfab.cli.flags import (
    HOSTFILE_FORMAT_HELP,
    HOSTFILE_HELP,
    SECONDS,
    DoctorFlags,
    FlagTask,
    JobFlags,
    LaunchFlags,
    NetworkFlags,
    PushEnvFlags,
    RunFlags,
    SignalTask,
    SyncFlags,
    TrustFlags,
    command_task,
    file_task,
    host_task,
    job_task,
    plain_task,
    words_task,
)
from torchfab.core.flag_values import NumberOr, Seconds, WholeNumber, flag
from torchfab.launching.launcher_table import launch_task

if TYPE_CHECKING:
    from torchfab.launching.context import CommandContext

excepthook.install()
program.adopt()
if logging.getLogger().handlers:  # `fab --debug TASK`: Invoke has enabled its own debug log; the executor enables ours
    from torchfab.cli import debug_log

    debug_log.remove_invoke_handler()

# ---- launching


@launch_task("per-node")
def launch_per_node(c: TaskContext, flags: LaunchFlags, own: Any) -> int:
    """Run torchrun once per line of `hosts`."""
    return _launch(c, "per-node", flags, own)


@launch_task("per-gpu")
def launch_per_gpu(c: TaskContext, flags: LaunchFlags, own: Any) -> int:
    """Run python once per line of `gpus`, with its rank in the environment."""
    return _launch(c, "per-gpu", flags, own)


@launch_task("deepspeed")
def launch_deepspeed(c: TaskContext, flags: LaunchFlags, own: Any) -> int:
    """Run deepspeed once per line of `hosts`, or once for all of them."""
    return _launch(c, "deepspeed", flags, own)


@launch_task("mpi")
def launch_mpi(c: TaskContext, flags: LaunchFlags, own: Any) -> int:
    """Run mpirun on the first of `hosts`, which starts the ranks on all of them."""
    return _launch(c, "mpi", flags, own)


@launch_task("colossalai")
def launch_colossalai(c: TaskContext, flags: LaunchFlags, own: Any) -> int:
    """Run colossalai on the first of `hosts`, which runs torchrun on all of them."""
    return _launch(c, "colossalai", flags, own)


@launch_task("slurm")
def launch_slurm(c: TaskContext, flags: JobFlags, own: Any) -> int:
    """Submit the script to Slurm: torchrun once per node of an allocation."""
    return _submit(c, "slurm", flags, own)


@launch_task("kubernetes")
def launch_kubernetes(c: TaskContext, flags: JobFlags, own: Any) -> int:
    """Run torchrun in the pods of a Kubernetes Job."""
    return _submit(c, "kubernetes", flags, own)


def _launch(c: TaskContext, launcher: str, flags: LaunchFlags, own: Any) -> int:
    from torchfab.commands.launch import run_launch

    return run_launch(launchers.load(launcher), flags, own, _context(c), _fab(c))


def _submit(c: TaskContext, launcher: str, flags: JobFlags, own: Any) -> int:
    from torchfab.commands.launch import run_submit

    return run_submit(launchers.load_batch(launcher), flags, own, _context(c))


# ---- jobs


@job_task(
    job=flag("", "Name of a job. [all of them; with --events the latest]"),
    json=flag(False, "Print JSON."),
    remove=flag(False, "Remove the record and the logs of the named job, which must have ended."),
    events=flag(False, "Print the events of one job, one per line."),
)
def jobs(c: TaskContext, job: str, json: bool, remove: bool, events: bool) -> int:
    """List the jobs that were launched from here."""
    from torchfab.commands.jobs import run

    return run(_context(c), job, as_json=json, remove=remove, events=events)


@job_task(
    watch=flag(False, "Refresh every 2 seconds until the job ends."),
    json=flag(False, "Print JSON."),
    stall=flag(None, "Report a possible hang after this many seconds without a log line; 0: never. [300]", SECONDS),
)
def status(c: TaskContext, job: str, watch: bool, json: bool, stall: float | None) -> int:
    """Show the status of a job: each node's state, ranks, pids and last log line."""
    from torchfab.commands.status import show_status
    from torchfab.launching import job_lookup

    ctx = _context(c)
    return show_status(job_lookup.find(job, ctx), watch, json, job_lookup.stall_s(stall, ctx))


@job_task(
    follow=flag(False, "Follow until the job ends, and exit with its code."),
    rank=flag("", "Only these ranks: 0,2-5."),
    lines=flag(1000, "The last N lines of each log file, or all. [1000]", NumberOr(("all",))),
    all=flag(False, "All lines, with torchrun's own traceback and report, which are otherwise omitted."),
    grep=flag("", "Only lines that match this regular expression."),
    no_fold=flag(False, "Do not fold equal lines of several ranks into one."),
    stall=flag(
        None,
        "With --follow: report a possible hang after this many seconds without a log line; 0: never. [300]",
        SECONDS,
    ),
    attempt=flag("", "Attempt of a restarted job, from 1. [the current one]"),
)
def logs(
    c: TaskContext,
    job: str,
    *,
    follow: bool,
    rank: str,
    lines: int | str,
    all: bool,  # noqa: A002
    grep: str,
    no_fold: bool,
    stall: float | None,
    attempt: str,
) -> int:
    """Print the logs of all ranks, merged, each line with its host and rank."""
    from torchfab.commands.logs import show_logs
    from torchfab.launching import job_lookup
    from torchfab.monitoring.job_watcher import Printer
    from torchfab.monitoring.log_request import log_request

    ctx, request = _context(c), log_request(rank, "all" if all else lines, grep, follow)
    printer = Printer(folding=not no_fold, reports=all or bool(grep))
    return show_logs(job_lookup.find(job, ctx, attempt), request, printer, job_lookup.stall_s(stall, ctx))


@job_task(
    json=flag(False, "Print JSON."),
    attempt=flag("", "Attempt of a restarted job, from 1. [the current one]"),
)
def why(c: TaskContext, job: str, json: bool, attempt: str) -> int:
    """Explain why a job ended: the first failure with its host and traceback, and what followed."""
    from torchfab.commands.why import show_why
    from torchfab.launching import job_lookup

    return show_why(job_lookup.find(job, _context(c), attempt), json)


@job_task(
    rank=flag("", "Only these ranks: 0,2-5."),
    native=flag(False, "Also show frames of C and C++; slower."),
    all=flag(False, "Show every frame, and the threads besides the main one."),
    exact=flag(
        False, "Group only stacks with equal line numbers. [equal functions; where ranks wait, equal line numbers]"
    ),
    timeout=flag(0.0, "Seconds for each rank. [10; 60 with --native]", SECONDS),
    json=flag(False, "Print JSON."),
)
def stacks(
    c: TaskContext,
    job: str,
    rank: str,
    native: bool,
    all: bool,  # noqa: A002  # the flag's name
    exact: bool,
    timeout: float,
    json: bool,
) -> int:
    """Show the stack of every rank: equal stacks grouped, ranks that differ first."""
    from torchfab.commands.stacks import StackOptions, show_stacks
    from torchfab.launching import job_lookup

    record = job_lookup.find(job, _context(c))
    return show_stacks(record, StackOptions(rank, native, all, exact, c.config.torchfab.stacks_signal, timeout), json)


@job_task(
    seconds=flag(3.0, "How long, up to 60. [3]", SECONDS),
    rank=flag("", "Only these ranks: 0,2-5."),
    output=flag("", "The file, *.json.gz. [profile-JOB-TIME.json.gz in the current folder]"),
    json=flag(False, "Print JSON."),
    open=flag(False, "Serve the trace on this machine for ui.perfetto.dev, until Ctrl-C; nothing is uploaded."),
)
def profile(
    c: TaskContext,
    job: str,
    *,
    seconds: float,
    rank: str,
    output: str,
    json: bool,
    open: bool,  # noqa: A002  # the flag's name
) -> int:
    """Profile all ranks at one instant: one trace for Perfetto, and where the time goes."""
    from torchfab.commands.profile import ProfileOptions, show_profile
    from torchfab.launching import job_lookup

    return show_profile(job_lookup.find(job, _context(c)), ProfileOptions(seconds, rank, output), json, open)


@job_task()
def wait(c: TaskContext, job: str) -> int:
    """Wait for a job to end, and exit with its code."""
    import torchfab.commands.logs
    from torchfab.launching import job_lookup

    ctx = _context(c)
    return torchfab.commands.logs.wait(job_lookup.find(job, ctx), ctx.config["failure_grace_s"], ctx.config["stall_s"])


@job_task(
    node=flag("", "Host, or node rank. [0]"),
    rank=flag("", "The node of this rank, and the rank's own window if it has one."),
)
def attach(c: TaskContext, job: str, node: str, rank: str) -> int:
    """Open a terminal on a job: its tmux session, or a shell in its pod."""
    from torchfab.commands.attach import attach_argv, run
    from torchfab.launching import job_lookup

    return run(attach_argv(job_lookup.find(job, _context(c)), node, rank))


@job_task(
    restarts=flag(None, "Maximum number of restarts without progress. [as launched; 3]", WholeNumber()),
    stall=flag(
        None, "Seconds without a log line after which the job counts as hung; 0: never. [as launched; 300]", SECONDS
    ),
    backoff=flag(None, "Seconds before the first restart; doubles with each. [as launched; 10]", SECONDS),
    notify=flag("", "Command or URL that receives the job's events. [as launched]"),
    follow=flag(False, "Also print the job's logs."),
    tmux=flag(False, "Supervise in this machine's private tmux server, and return."),
)
def supervise(
    c: TaskContext,
    job: str,
    *,
    restarts: int | None,
    stall: float | None,
    backoff: float | None,
    notify: str,
    follow: bool,
    tmux: bool,
) -> int:
    """Restart a job after failures, lost nodes and hangs; also replaces a supervisor that has died."""
    from torchfab.commands.supervise import SuperviseFlags, supervise_existing
    from torchfab.launching import job_lookup

    ctx, overrides = _context(c), SuperviseFlags(restarts, stall, backoff, notify)
    return supervise_existing(job_lookup.find(job, ctx), overrides, follow, tmux, ctx, _fab(c))


@job_task(
    SignalTask,
    signal=flag("", "USR1, USR2, HUP, CONT, URG or WINCH; TERM and KILL: fab stop."),
    rank=flag("", "Only these ranks: 0,2-5."),
)
def signal(c: TaskContext, job: str, signal: str, rank: str) -> int:
    """Send a signal once to each rank of a job: `fab signal gpt2 USR1`; the job is optional."""
    from torchfab.commands.signal import parse, send_signal
    from torchfab.launching import job_lookup

    job, name = parse(job, signal)
    return send_signal(job_lookup.find(job, _context(c)), name, rank)


@job_task(
    signal=flag("USR1", "The signal on which the script saves a checkpoint: USR1, USR2 or HUP. [USR1]"),
    dir=flag((), "Folder of the checkpoints; repeatable. [from the script's arguments, or the usual folders]"),
    timeout=flag(300.0, "Seconds to wait for the checkpoint. [300]", SECONDS),
)
def checkpoint(
    c: TaskContext,
    job: str,
    signal: str,
    dir: tuple[str, ...],  # noqa: A002  # the flag's name
    timeout: float,
) -> int:
    """Make a running job save a checkpoint, and wait until the checkpoint is complete."""
    from torchfab.commands.checkpoint import save_checkpoint
    from torchfab.commands.signal import notice
    from torchfab.launching import job_lookup

    name = notice(signal, job)
    return save_checkpoint(job_lookup.find(job, _context(c)), name, dir, timeout)


@job_task(grace=flag(None, "Seconds between SIGTERM and SIGKILL. [as launched; 10]", SECONDS))
def stop(c: TaskContext, job: str, grace: float | None) -> int:
    """Stop a job on all its nodes, and verify that no process of it is left."""
    from torchfab.commands.stop import run

    return run(job, grace, _context(c))


@words_task(
    "[job] PATH…",
    words=flag("", "Paths and patterns on the job's nodes; the job's name may come first. [the latest job]"),
    to=flag("", "Folder to copy into. [pulled/JOB]"),
    rank=flag("", "Only from the nodes of these ranks: 0,2-5."),
)
def pull(c: TaskContext, words: tuple[str, ...], to: str, rank: str) -> int:
    """Copy files of a job (checkpoints, traces, logs) from the nodes; continues partial copies."""
    from torchfab.commands.pull import run

    return run(words, to, rank, _context(c))


@words_task(
    "[job] PORT",
    words=flag("", "PORT of a node, LOCAL:PORT, or tensorboard; the job's name may come first. [the latest job]"),
    host=flag("", "Host or node rank. [0; with tensorboard the node on which it runs]"),
)
def forward(c: TaskContext, words: tuple[str, ...], host: str) -> int:
    """Forward a port of a job's node to this machine's loopback address, and print the URL; Ctrl-C ends it."""
    from torchfab.commands.forward import run

    return run(words, host, _context(c))


# ---- hosts


@command_task(RunFlags)
def run(c: TaskContext, flags: RunFlags) -> int:
    """Run the command after -- on all hosts at once; equal output is printed once."""
    from torchfab.commands.run import run

    return run(flags, _context(c))


@host_task(SyncFlags)
def sync(c: TaskContext, flags: SyncFlags) -> int:
    """Copy the working directory to all nodes, and verify that they have the same files."""
    from torchfab.commands.sync import run

    return run(flags, _context(c))


@words_task("push", PushEnvFlags, words=flag("", "push: create the environment, or create it again after a change."))
def env(c: TaskContext, words: tuple[str, ...], **flags: Any) -> int:
    """Create the same environment of the project's packages (uv.lock, requirements.txt) on all nodes: env push."""
    from torchfab.commands.env import run

    return run(words, PushEnvFlags(**flags), _context(c))


@host_task(TrustFlags)
def trust(c: TaskContext, flags: TrustFlags) -> int:
    """Show the host keys of all hosts, ask once, and write the new ones into known_hosts."""
    from torchfab.commands.trust import run

    return run(flags, _context(c))


@host_task(DoctorFlags)
def doctor(c: TaskContext, flags: DoctorFlags) -> int:
    """Find problems of the hosts and between the hosts, with a fix for each."""
    from torchfab.commands.doctor import run

    return run(flags, _context(c))


@job_task(
    job=flag("", "Name of a job: its hosts and step rate. [all hosts of the file, and the latest job's step rate]"),
    hostfile=flag("", HOSTFILE_HELP),
    hostfile_format=flag("", HOSTFILE_FORMAT_HELP),
    interval=flag(2.0, "Seconds between updates. [2]", Seconds(low=0.1)),
    once=flag(False, "Print one update and exit; exit code 1 if a host did not answer."),
    json=flag(False, "Print JSON: one document with --once, otherwise one line per update."),
)
def top(c: TaskContext, job: str, hostfile: str, hostfile_format: str, interval: float, once: bool, json: bool) -> int:
    """Show the live load of all hosts, or of a job's hosts, and the job's step rate; Ctrl-C ends it."""
    from torchfab.commands.top import run

    return run(job, hostfile, interval, once, json, _context(c), hostfile_format)


@job_task(
    job=flag("", "Name of a job: its hosts and state. [all hosts of the file, and the latest job]"),
    hostfile=flag("", HOSTFILE_HELP),
    hostfile_format=flag("", HOSTFILE_FORMAT_HELP),
    output=flag("", "Write them into this file, atomically: for node_exporter, DIR/torchfab.prom. [stdout]"),
    otlp=flag("", "Send them to the OpenTelemetry collector of this URL: http://HOST:4318."),
    every=flag(0.0, "With --output or --otlp: again every so many seconds, until Ctrl-C. [once]", Seconds(low=1)),
)
def metrics(
    c: TaskContext, job: str, *, hostfile: str, hostfile_format: str, output: str, otlp: str, every: float
) -> int:
    """Print the load of hosts and the state of a job as metrics: Prometheus' text format, or OTLP."""
    from torchfab.commands.metrics import MetricsOptions, run

    return run(job, hostfile, hostfile_format, MetricsOptions(output, otlp, every), _context(c))


@host_task(NetworkFlags)
def network(c: TaskContext, flags: NetworkFlags) -> int:
    """Measure bandwidth and latency between all hosts, and name the slow host or link."""
    from torchfab.commands.network import run

    return run(flags, _context(c))


@plain_task(
    forgive=flag("", "Remove this host from the list; all: every host."),
    json=flag(False, "Print JSON."),
)
def lemons(c: TaskContext, forgive: str, json: bool) -> int:
    """List lemons (hosts that supervised launches leave out), with the reasons; or remove hosts from the list."""
    from torchfab.commands.lemons import show_lemons

    return show_lemons(_context(c), forgive, json)


# ---- the project


@plain_task(
    example=flag(False, "Also write train_llm.py, the script of launches that name none."),
)
def init(c: TaskContext, example: bool) -> int:
    """Make the current folder a project: write hosts, gpus, torchfab.yaml and fabfile.py; keep existing files."""
    import os

    from torchfab.commands.init import run

    return run(os.getcwd(), c.command_line.hosts, example)


@plain_task(
    show_origin=flag(False, "Print the origin of each value: default, file:line, environment variable, flag."),
    json=flag(False, "Print JSON, with origins."),
)
def config(c: TaskContext, show_origin: bool, json: bool) -> int:
    """Print every setting and its value; with --show-origin also the origin of the value."""
    from torchfab.commands.config import run

    return run(c, show_origin, json)


@words_task(
    "SHELL",
    words=flag("", "bash, zsh or fish."),
)
def completion(c: TaskContext, words: tuple[str, ...]) -> int:
    """Print the completion script of a shell: tasks, flags, jobs and hosts."""
    from torchfab.commands.completion import run

    return run(words)


# ---- other programs


@plain_task(
    allow=flag("", "Also offer the tools that change something: launch, stop, or launch,stop. [tools that only read]"),
)
def mcp(c: TaskContext, allow: str) -> int:
    """Serve commands as tools for agents: the Model Context Protocol, on stdin and stdout."""
    from torchfab.commands.mcp import run

    return run(allow, _fab(c), _context(c))


# ---- files of other launchers


@file_task("import", file=flag("", "A batch script, or a configuration of accelerate, DeepSpeed, Ray or Kubernetes."))
def import_file(c: TaskContext, file: str) -> int:
    """Convert a launch file of another tool to a command line, and list the settings that were not converted."""
    from torchfab.commands.import_file import run

    return run(file, _context(c))


def _fab(c: TaskContext) -> tuple[str, ...]:
    """Return the command that runs this project's `fab` again, for a supervisor in tmux."""
    from torchfab.launching.context import fab_argv

    return fab_argv(str(c.command_line.project), c.config._runtime_path or "")


def _context(c: TaskContext) -> CommandContext:
    from torchfab.launching.context import command_context

    return command_context(c, c.command_line.project)


__all__ = [name for name, value in vars().copy().items() if isinstance(value, FlagTask)]  # for `import *`
