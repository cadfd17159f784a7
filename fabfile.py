"""torchfab: launch distributed PyTorch training on machines that you reach by SSH.

    fab launch-per-node --follow                         the embedded default, on the hosts in `hosts`
    fab launch-per-node --name gpt2 -- train.py --lr 3e-4    your script; everything after -- is its own
    fab status | fab logs --follow | fab stop            the life of the latest job

What a launch runs is written in torchfab/launchers/, one file each; `--dry-run` prints it.
"""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from invoke import Context

from torchfab.cli import excepthook
from torchfab.cli.flags import (
    DoctorFlags,
    GpuLaunchFlags,
    JobFlags,
    LaunchFlags,
    NetworkFlags,
    PodFlags,
    SyncFlags,
    TrustFlags,
    flag,
    host_task,
    job_task,
    launch_task,
    plain_task,
)
from torchfab.launchers import colossalai, deepspeed, kubernetes, mpi, per_gpu, per_node, slurm

if TYPE_CHECKING:
    from torchfab.launch.context import CommandContext

ROOT = Path(__file__).resolve().parent
excepthook.install()

# ---- launching


@launch_task(per_node.Flags)
def launch_per_node(c: Context, flags: LaunchFlags, own: Any) -> int:
    """Run torchrun once per line of `hosts`."""
    return _launch(c, per_node, flags, own)


@launch_task(per_gpu.Flags, GpuLaunchFlags)
def launch_per_gpu(c: Context, flags: LaunchFlags, own: Any) -> int:
    """Run python once per line of `gpus`, with its rank in the environment."""
    return _launch(c, per_gpu, flags, own)


@launch_task(deepspeed.Flags)
def launch_deepspeed(c: Context, flags: LaunchFlags, own: Any) -> int:
    """Run deepspeed once per line of `hosts`, or once for all of them."""
    return _launch(c, deepspeed, flags, own)


@launch_task(mpi.Flags)
def launch_mpi(c: Context, flags: LaunchFlags, own: Any) -> int:
    """Run mpirun on the first of `hosts`, which starts the ranks on all of them."""
    return _launch(c, mpi, flags, own)


@launch_task(colossalai.Flags)
def launch_colossalai(c: Context, flags: LaunchFlags, own: Any) -> int:
    """Run colossalai on the first of `hosts`, which runs torchrun on all of them."""
    return _launch(c, colossalai, flags, own)


@launch_task(slurm.Flags, JobFlags)
def launch_slurm(c: Context, flags: JobFlags, own: Any) -> int:
    """Hand the script to Slurm: torchrun once per node of an allocation."""
    return _submit(c, slurm, flags, own)


@launch_task(kubernetes.Flags, PodFlags)
def launch_kubernetes(c: Context, flags: JobFlags, own: Any) -> int:
    """Run torchrun in the pods of a Kubernetes Job."""
    return _submit(c, kubernetes, flags, own)


def _launch(c: Context, launcher: ModuleType, flags: LaunchFlags, own: Any) -> int:
    from torchfab.commands.launch import launch

    return launch(launcher, flags, own, _context(c), _fab(c))


def _submit(c: Context, launcher: ModuleType, flags: JobFlags, own: Any) -> int:
    from torchfab.commands.launch import submit

    return submit(launcher, flags, own, _context(c))


# ---- the life of a job


@job_task(
    job=flag("", "Name of a job. [all of them; with --events the latest]"),
    json=flag(False, "Print JSON."),
    remove=flag(False, "Remove the record and the logs of the named job, which must have ended."),
    events=flag(False, "Print what happened to one job, a line each."),
)
def jobs(c: Context, job: str, json: bool, remove: bool, events: bool) -> int:
    """List the jobs that were launched from here."""
    from torchfab.commands.jobs import run

    return run(_context(c), job, as_json=json, remove=remove, events=events)


@job_task(
    watch=flag(False, "Show it again every 2 seconds until the job ends."),
    json=flag(False, "Print JSON."),
    stall=flag("", "Say that it may hang when no rank has logged for so many seconds; 0: never. [300]"),
)
def status(c: Context, job: str, watch: bool, json: bool, stall: str) -> int:
    """Say how a job is: each node's state, ranks, pids, last log line."""
    from torchfab.commands import job_lookup
    from torchfab.commands.status import show_status

    ctx = _context(c)
    return show_status(job_lookup.find(job, ctx), watch, json, job_lookup.stall_s(stall, ctx))


@job_task(
    follow=flag(False, "Go on until the job ends, and exit with its code."),
    rank=flag("", "Only these ranks: 0,2-5."),
    lines=flag("", "The last N lines of each log file, or all. [1000]"),
    grep=flag("", "Only lines that this regular expression finds."),
    no_fold=flag(False, "Do not fold equal lines of several ranks into one."),
    stall=flag("", "With --follow: say that it may hang when no rank has logged for so many seconds; 0: never. [300]"),
    attempt=flag("", "Of a job that was restarted: which attempt, from 1. [the current one]"),
)
def logs(
    c: Context, job: str, *, follow: bool, rank: str, lines: str, grep: str, no_fold: bool, stall: str, attempt: str
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
def why(c: Context, job: str, json: bool, attempt: str) -> int:
    """Say why a job ended: what failed first, where, its traceback, and what followed."""
    from torchfab.commands import job_lookup
    from torchfab.commands.why import show_why

    return show_why(job_lookup.find(job, _context(c), attempt), json)


@job_task(
    rank=flag("", "Only these ranks: 0,2-5."),
    native=flag(False, "Show the frames of C and C++ too; takes longer."),
    all=flag(False, "Show every frame, and the threads besides the main one."),
    exact=flag(False, "Stacks are equal only where every line is. [functions; and lines where ranks wait]"),
    timeout=flag("", "Seconds for each rank. [10; 60 with --native]"),
    json=flag(False, "Print JSON."),
)
def stacks(
    c: Context,
    job: str,
    rank: str,
    native: bool,
    all: bool,  # noqa: A002  # the flag's name
    exact: bool,
    timeout: str,
    json: bool,
) -> int:
    """Say what every rank is doing: their stacks, equal ones as one, the odd ranks first."""
    from torchfab.commands import job_lookup
    from torchfab.commands.stacks import StackOptions, seconds, show_stacks

    record = job_lookup.find(job, _context(c))
    timeout_s = seconds("--timeout", timeout or "0")
    return show_stacks(record, StackOptions(rank, native, all, exact, c.config.torchfab.stacks_signal, timeout_s), json)


@job_task()
def wait(c: Context, job: str) -> int:
    """Wait for a job to end, and exit with its code."""
    from torchfab.commands import job_lookup
    from torchfab.commands import logs as log_commands

    ctx = _context(c)
    return log_commands.wait(job_lookup.find(job, ctx), ctx.config["failure_grace_s"], ctx.config["stall_s"])


@job_task(
    node=flag("", "Host, or node rank. [0]"),
    rank=flag("", "The node of this rank, and its window where it has one of its own."),
)
def attach(c: Context, job: str, node: str, rank: str) -> int:
    """Open a terminal on a job: its tmux session, or a shell in its pod."""
    from torchfab.commands import job_lookup
    from torchfab.commands.attach import attach_argv, run

    return run(attach_argv(job_lookup.find(job, _context(c)), node, rank))


@job_task(
    restarts=flag("", "How often it is restarted without progress. [as launched; 3]"),
    stall=flag("", "Seconds without a log line of any rank after which it hangs; 0: never. [as launched; 300]"),
    backoff=flag("", "Seconds before the first restart; doubles with each. [as launched; 10]"),
    notify=flag("", "Command or URL that is told what happens. [as launched]"),
    follow=flag(False, "Show its logs, too."),
    tmux=flag(False, "Supervise in this machine's private tmux server, and return."),
)
def supervise(
    c: Context, job: str, *, restarts: str, stall: str, backoff: str, notify: str, follow: bool, tmux: bool
) -> int:
    """See a job through failures, lost nodes and hangs; take it up again where its supervisor has died."""
    from torchfab.commands import job_lookup
    from torchfab.commands.supervise import SuperviseFlags, take_up

    ctx, wishes = _context(c), SuperviseFlags(restarts, stall, backoff, notify)
    return take_up(job_lookup.find(job, ctx), wishes, follow, tmux, ctx, _fab(c))


@job_task(grace=flag("", "Seconds between SIGTERM and SIGKILL. [as launched; 10]"))
def stop(c: Context, job: str, grace: str) -> int:
    """Stop a job on all its nodes, and prove that nothing of it is left."""
    from torchfab.commands.stop import run

    return run(job, grace, _context(c))


# ---- the cluster itself


@host_task(SyncFlags)
def sync(c: Context, flags: SyncFlags) -> int:
    """Copy the working directory to all nodes, and prove that they hold the same files."""
    from torchfab.commands.sync import run

    return run(flags, _context(c))


@host_task(TrustFlags)
def trust(c: Context, flags: TrustFlags) -> int:
    """Show the host keys of all hosts, ask once, and write the new ones into known_hosts."""
    from torchfab.commands.trust import run

    return run(flags, _context(c))


@host_task(DoctorFlags)
def doctor(c: Context, flags: DoctorFlags) -> int:
    """Say what is wrong with the hosts, each and between them, and how to fix it."""
    from torchfab.commands.doctor import run

    return run(flags, _context(c))


@job_task(
    job=flag("", "Name of a job: its hosts, its pace. [all hosts of the file, and the latest job's pace]"),
    hostfile=flag("", "File with one host a line, or slurm: the hosts of this allocation. [hosts]"),
    interval=flag("2", "Seconds between two looks. [2]"),
    once=flag(False, "Look once, and end; with exit code 1 if a host did not answer."),
    json=flag(False, "Print JSON: with --once a document, else a line each time."),
)
def top(c: Context, job: str, hostfile: str, interval: str, once: bool, json: bool) -> int:
    """Show live what the hosts, or those of a job, do, and how fast the job goes; Ctrl-C ends it."""
    from torchfab.commands.top import run

    return run(job, hostfile, interval, once, json, _context(c))


@host_task(NetworkFlags)
def network(c: Context, flags: NetworkFlags) -> int:
    """Measure bandwidth and latency between all hosts, and name the slow host or link."""
    from torchfab.commands.network import run

    return run(flags, _context(c))


@plain_task(
    forgive=flag("", "Take this host off the list; all: every host."),
    json=flag(False, "Print JSON."),
)
def lemons(c: Context, forgive: str, json: bool) -> int:
    """List the hosts that supervised launches leave out, and why; or forgive them."""
    from torchfab.commands.lemons import show_lemons

    return show_lemons(_context(c), forgive, json)


def _fab(c: Context) -> tuple[str, ...]:
    """Return the command that runs this project's `fab` again, for a supervisor in tmux."""
    from torchfab.commands.supervise import fab_argv

    return fab_argv(str(ROOT), c.config._runtime_path or "")


def _context(c: Context) -> CommandContext:
    from torchfab.launch.context import command_context

    return command_context(c, ROOT)
