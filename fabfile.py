"""torchfab: launch distributed PyTorch training on machines that you reach by SSH.

    fab launch-per-node --follow                         the embedded default, on the hosts in `hosts`
    fab launch-per-node --name gpt2 -- train.py --lr 3e-4    your script; everything after -- is its own
    fab status | fab logs --follow | fab stop            the life of the latest job

What a launch runs is written in torchfab/launchers/, one file each; `--dry-run` prints it. With `--debug`, every
command logs each step of each connection on stderr.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torchfab.cli import excepthook, program
from torchfab.cli.executor import TaskContext
from torchfab.cli.flags import (
    SECONDS,
    DoctorFlags,
    GpuLaunchFlags,
    JobFlags,
    LaunchFlags,
    NetworkFlags,
    PodFlags,
    SyncFlags,
    TrustFlags,
    host_task,
    job_task,
    launch_task,
    plain_task,
)
from torchfab.core.flag_values import NumberOr, Seconds, WholeNumber, flag
from torchfab.launchers import BatchLauncher, Launcher, colossalai, deepspeed, kubernetes, mpi, per_gpu, per_node, slurm

if TYPE_CHECKING:
    from torchfab.launch.context import CommandContext

ROOT = Path(__file__).resolve().parent
excepthook.install()
program.adopt()
if logging.getLogger().handlers:  # `fab --debug TASK`: Invoke has started its own debug log; the executor starts ours
    from torchfab.cli import debug_log

    debug_log.remove_invoke_handler()

# ---- launching


@launch_task(per_node.Flags)
def launch_per_node(c: TaskContext, flags: LaunchFlags, own: Any) -> int:
    """Run torchrun once per line of `hosts`."""
    return _launch(c, per_node, flags, own)


@launch_task(per_gpu.Flags, GpuLaunchFlags)
def launch_per_gpu(c: TaskContext, flags: LaunchFlags, own: Any) -> int:
    """Run python once per line of `gpus`, with its rank in the environment."""
    return _launch(c, per_gpu, flags, own)


@launch_task(deepspeed.Flags)
def launch_deepspeed(c: TaskContext, flags: LaunchFlags, own: Any) -> int:
    """Run deepspeed once per line of `hosts`, or once for all of them."""
    return _launch(c, deepspeed, flags, own)


@launch_task(mpi.Flags)
def launch_mpi(c: TaskContext, flags: LaunchFlags, own: Any) -> int:
    """Run mpirun on the first of `hosts`, which starts the ranks on all of them."""
    return _launch(c, mpi, flags, own)


@launch_task(colossalai.Flags)
def launch_colossalai(c: TaskContext, flags: LaunchFlags, own: Any) -> int:
    """Run colossalai on the first of `hosts`, which runs torchrun on all of them."""
    return _launch(c, colossalai, flags, own)


@launch_task(slurm.Flags, JobFlags)
def launch_slurm(c: TaskContext, flags: JobFlags, own: Any) -> int:
    """Hand the script to Slurm: torchrun once per node of an allocation."""
    return _submit(c, slurm, flags, own)


@launch_task(kubernetes.Flags, PodFlags)
def launch_kubernetes(c: TaskContext, flags: JobFlags, own: Any) -> int:
    """Run torchrun in the pods of a Kubernetes Job."""
    return _submit(c, kubernetes, flags, own)


def _launch(c: TaskContext, launcher: Launcher, flags: LaunchFlags, own: Any) -> int:
    from torchfab.commands.launch import launch

    return launch(launcher, flags, own, _context(c), _fab(c))


def _submit(c: TaskContext, launcher: BatchLauncher, flags: JobFlags, own: Any) -> int:
    from torchfab.commands.launch import submit

    return submit(launcher, flags, own, _context(c))


# ---- the life of a job


@job_task(
    job=flag("", "Name of a job. [all of them; with --events the latest]"),
    json=flag(False, "Print JSON."),
    remove=flag(False, "Remove the record and the logs of the named job, which must have ended."),
    events=flag(False, "Print what happened to one job, a line each."),
)
def jobs(c: TaskContext, job: str, json: bool, remove: bool, events: bool) -> int:
    """List the jobs that were launched from here."""
    from torchfab.commands.jobs import run

    return run(_context(c), job, as_json=json, remove=remove, events=events)


@job_task(
    watch=flag(False, "Show it again every 2 seconds until the job ends."),
    json=flag(False, "Print JSON."),
    stall=flag(None, "Say that it may hang when no rank has logged for so many seconds; 0: never. [300]", SECONDS),
)
def status(c: TaskContext, job: str, watch: bool, json: bool, stall: float | None) -> int:
    """Say how a job is: each node's state, ranks, pids, last log line."""
    from torchfab.commands import job_lookup
    from torchfab.commands.status import show_status

    ctx = _context(c)
    return show_status(job_lookup.find(job, ctx), watch, json, job_lookup.stall_s(stall, ctx))


@job_task(
    follow=flag(False, "Go on until the job ends, and exit with its code."),
    rank=flag("", "Only these ranks: 0,2-5."),
    lines=flag(1000, "The last N lines of each log file, or all. [1000]", NumberOr(("all",))),
    grep=flag("", "Only lines that this regular expression finds."),
    no_fold=flag(False, "Do not fold equal lines of several ranks into one."),
    stall=flag(
        None,
        "With --follow: say that it may hang when no rank has logged for so many seconds; 0: never. [300]",
        SECONDS,
    ),
    attempt=flag("", "Of a job that was restarted: which attempt, from 1. [the current one]"),
)
def logs(
    c: TaskContext,
    job: str,
    *,
    follow: bool,
    rank: str,
    lines: int | str,
    grep: str,
    no_fold: bool,
    stall: float | None,
    attempt: str,
) -> int:
    """Print the logs of all ranks, merged, each line with its host and rank."""
    from torchfab.commands import job_lookup
    from torchfab.commands.logs import log_request, show_logs

    ctx, request = _context(c), log_request(rank, lines, grep, follow)
    return show_logs(job_lookup.find(job, ctx, attempt), request, not no_fold, job_lookup.stall_s(stall, ctx))


@job_task(
    json=flag(False, "Print JSON."),
    attempt=flag("", "Of a job that was restarted: which attempt, from 1. [the current one]"),
)
def why(c: TaskContext, job: str, json: bool, attempt: str) -> int:
    """Say why a job ended: what failed first, where, its traceback, and what followed."""
    from torchfab.commands import job_lookup
    from torchfab.commands.why import show_why

    return show_why(job_lookup.find(job, _context(c), attempt), json)


@job_task(
    rank=flag("", "Only these ranks: 0,2-5."),
    native=flag(False, "Show the frames of C and C++ too; takes longer."),
    all=flag(False, "Show every frame, and the threads besides the main one."),
    exact=flag(False, "Stacks are equal only where every line is. [functions; and lines where ranks wait]"),
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
    """Say what every rank is doing: their stacks, equal ones as one, the odd ranks first."""
    from torchfab.commands import job_lookup
    from torchfab.commands.stacks import StackOptions, show_stacks

    record = job_lookup.find(job, _context(c))
    return show_stacks(record, StackOptions(rank, native, all, exact, c.config.torchfab.stacks_signal, timeout), json)


@job_task()
def wait(c: TaskContext, job: str) -> int:
    """Wait for a job to end, and exit with its code."""
    from torchfab.commands import job_lookup
    from torchfab.commands import logs as log_commands

    ctx = _context(c)
    return log_commands.wait(job_lookup.find(job, ctx), ctx.config["failure_grace_s"], ctx.config["stall_s"])


@job_task(
    node=flag("", "Host, or node rank. [0]"),
    rank=flag("", "The node of this rank, and its window where it has one of its own."),
)
def attach(c: TaskContext, job: str, node: str, rank: str) -> int:
    """Open a terminal on a job: its tmux session, or a shell in its pod."""
    from torchfab.commands import job_lookup
    from torchfab.commands.attach import attach_argv, run

    return run(attach_argv(job_lookup.find(job, _context(c)), node, rank))


@job_task(
    restarts=flag(None, "How often it is restarted without progress. [as launched; 3]", WholeNumber()),
    stall=flag(
        None, "Seconds without a log line of any rank after which it hangs; 0: never. [as launched; 300]", SECONDS
    ),
    backoff=flag(None, "Seconds before the first restart; doubles with each. [as launched; 10]", SECONDS),
    notify=flag("", "Command or URL that is told what happens. [as launched]"),
    follow=flag(False, "Show its logs, too."),
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
    """See a job through failures, lost nodes and hangs; take it up again where its supervisor has died."""
    from torchfab.commands import job_lookup
    from torchfab.commands.supervise import SuperviseFlags, supervise_existing

    ctx, wishes = _context(c), SuperviseFlags(restarts, stall, backoff, notify)
    return supervise_existing(job_lookup.find(job, ctx), wishes, follow, tmux, ctx, _fab(c))


@job_task(grace=flag(None, "Seconds between SIGTERM and SIGKILL. [as launched; 10]", SECONDS))
def stop(c: TaskContext, job: str, grace: float | None) -> int:
    """Stop a job on all its nodes, and prove that nothing of it is left."""
    from torchfab.commands.stop import run

    return run(job, grace, _context(c))


# ---- the cluster itself


@host_task(SyncFlags)
def sync(c: TaskContext, flags: SyncFlags) -> int:
    """Copy the working directory to all nodes, and prove that they hold the same files."""
    from torchfab.commands.sync import run

    return run(flags, _context(c))


@host_task(TrustFlags)
def trust(c: TaskContext, flags: TrustFlags) -> int:
    """Show the host keys of all hosts, ask once, and write the new ones into known_hosts."""
    from torchfab.commands.trust import run

    return run(flags, _context(c))


@host_task(DoctorFlags)
def doctor(c: TaskContext, flags: DoctorFlags) -> int:
    """Say what is wrong with the hosts, each and between them, and how to fix it."""
    from torchfab.commands.doctor import run

    return run(flags, _context(c))


@job_task(
    job=flag("", "Name of a job: its hosts, its pace. [all hosts of the file, and the latest job's pace]"),
    hostfile=flag("", "File with one host a line, or slurm: the hosts of this allocation. [hosts]"),
    interval=flag(2.0, "Seconds between two looks. [2]", Seconds(low=0.1)),
    once=flag(False, "Look once, and end; with exit code 1 if a host did not answer."),
    json=flag(False, "Print JSON: with --once a document, else a line each time."),
)
def top(c: TaskContext, job: str, hostfile: str, interval: float, once: bool, json: bool) -> int:
    """Show live what the hosts, or those of a job, do, and how fast the job goes; Ctrl-C ends it."""
    from torchfab.commands.top import run

    return run(job, hostfile, interval, once, json, _context(c))


@host_task(NetworkFlags)
def network(c: TaskContext, flags: NetworkFlags) -> int:
    """Measure bandwidth and latency between all hosts, and name the slow host or link."""
    from torchfab.commands.network import run

    return run(flags, _context(c))


@plain_task(
    forgive=flag("", "Take this host off the list; all: every host."),
    json=flag(False, "Print JSON."),
)
def lemons(c: TaskContext, forgive: str, json: bool) -> int:
    """List the hosts that supervised launches leave out, and why; or forgive them."""
    from torchfab.commands.lemons import show_lemons

    return show_lemons(_context(c), forgive, json)


def _fab(c: TaskContext) -> tuple[str, ...]:
    """Return the command that runs this project's `fab` again, for a supervisor in tmux."""
    from torchfab.commands.supervise import fab_argv

    return fab_argv(str(ROOT), c.config._runtime_path or "")


def _context(c: TaskContext) -> CommandContext:
    from torchfab.launch.context import command_context

    return command_context(c, ROOT)
