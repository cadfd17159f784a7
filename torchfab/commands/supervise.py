"""`fab supervise`, and launches with `--supervise`: from flags to a supervisor."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from torchfab.cli.flags import LaunchFlags
from torchfab.core.console import write_err, write_out
from torchfab.core.errors import TorchfabError, UsageError
from torchfab.core.inventory import fold
from torchfab.launch import launch
from torchfab.launch.context import CommandContext
from torchfab.launchers import Launcher
from torchfab.records import Record, launch_request
from torchfab.records.launch_request import LaunchRequest
from torchfab.supervise import detach, lease
from torchfab.supervise.job_supervisor import JobSupervisor
from torchfab.supervise.model import Policy
from torchfab.supervise.quarantine import Quarantine


@dataclass(frozen=True)
class SuperviseFlags:
    """How a job is to be supervised, by its flags; None or empty: as before, or as the settings have it."""

    restarts: int | None = None
    stall: float | None = None
    backoff: float | None = None
    notify: str = ""

    def policy(self, before: Policy) -> Policy:
        """Return the policy of before with what the flags say instead."""
        return replace(
            before,
            restarts=before.restarts if self.restarts is None else self.restarts,
            stall_s=before.stall_s if self.stall is None else self.stall,
            backoff_s=before.backoff_s if self.backoff is None else self.backoff,
            notify=self.notify or before.notify,
        )


def default_policy(ctx: CommandContext) -> Policy:
    """Return the policy that the settings give."""
    config = ctx.config
    return Policy(
        restarts=int(config["restarts"]),
        stall_s=float(config["stall_s"]),
        backoff_s=float(config["backoff_s"]),
        lost_s=float(config["lost_s"]),
        notify_timeout_s=float(config["notify_timeout_s"]),
    )


# ---- launches with --supervise


def launch_supervised(launcher: Launcher, flags: LaunchFlags, own: Any, ctx: CommandContext, fab: Sequence[str]) -> int:
    """Launch a job without the lemons, and supervise it; return its exit code.

    Parameters
    ----------
    fab : sequence of str
        The command that runs `fab` of this project again.
    """
    wishes = SuperviseFlags(flags.restarts, flags.stall, flags.backoff, flags.notify)
    policy = wishes.policy(default_policy(ctx))
    lemons = Quarantine(ctx.records.root).all()
    asked = replace(launch.build_request(launcher, flags, own, ctx, lemons), policy=policy.as_json())
    skipped = [node.label for node in asked.nodes if node.label in lemons]
    if skipped:
        write_err(f"left out as lemons: {fold(skipped)}; why: fab lemons")
    if flags.dry_run:
        launch.show(asked, ctx, lemons)
        return 0
    record = launch.execute(asked, ctx, lemons)
    if flags.tmux:
        return _in_tmux(record, flags.follow, fab, ctx, asked)
    return _supervise(asked, record, policy, ctx, flags.follow, "")


# ---- fab supervise


def take_up(
    record: Record, wishes: SuperviseFlags, follow: bool, tmux: bool, ctx: CommandContext, fab: Sequence[str]
) -> int:
    """Supervise a job that was launched before; return its exit code.

    Raises
    ------
    UsageError
        It cannot be launched again, it has ended well or was stopped, or somebody supervises it.
    """
    asked = launch_request.load(record.folder, ctx.environ)
    policy = wishes.policy(Policy(**{**default_policy(ctx).as_json(), **asked.policy}))
    if policy.as_json() != asked.policy:
        asked = replace(asked, policy=policy.as_json())
        asked.save(record.folder)
    if lease.stop_asked(record.folder):
        raise UsageError(
            f"job {record.name} was asked to stop (fab stop), and is not launched again",
            "launch it anew with another --name, and the same --experiment-name, to go on from its last checkpoint",
        )
    if tmux:
        lease.check_free(record.folder)  # else the one that is there would be taken for ours
        return _in_tmux(record, follow, fab, ctx, asked)
    return _supervise(asked, record, policy, ctx, follow, ctx.environ.get(detach.SESSION, ""))


def _supervise(
    asked: LaunchRequest, record: Record, policy: Policy, ctx: CommandContext, follow: bool, where: str
) -> int:
    held = lease.SupervisorLease(record.folder, where)
    again = any(event["event"] == "supervised" for event in record.events())
    supervisor = JobSupervisor(asked, policy, ctx, record, follow)
    supervisor.journal.note("supervised", _first_words(asked, record, policy, again))
    try:
        return supervisor.run()
    except KeyboardInterrupt:
        name = record.name
        runs = supervisor.journal.pending_outcome() is None
        how = "and it goes on" if runs else "and it does not run now"
        write_err(f"\nnobody supervises job {name} any more, {how}; to take it up again: fab supervise {name}")
        write_err(f"fab status {name} | to end it: fab stop {name}")
        return 130
    finally:
        held.release()


def _first_words(asked: LaunchRequest, record: Record, policy: Policy, again: bool) -> str:
    running = [node.label for node in record.nodes]
    spares = [node.label for node in asked.nodes if node.label not in running]
    words = f"{'taken up again' if again else 'supervised'}: attempt {record.attempt} on {fold(running)}"
    words += f", spare {fold(spares)}" if spares else ", no spare"
    stall = f"silence of {policy.stall_s:g} s is a hang" if policy.stall_s else "hangs are not looked for"
    return f"{words}; {policy.restarts} restarts without progress, {stall}"


def _in_tmux(record: Record, follow: bool, fab: Sequence[str], ctx: CommandContext, asked: LaunchRequest) -> int:
    argv = [*fab, "supervise", record.name, *(["--follow"] if follow else [])]
    environ = {**ctx.environ, **asked.job.secrets}  # also those that came with --env
    session = detach.start(record.name, argv, environ, ctx.cwd, record.folder)
    within_s = ctx.settings.start_timeout_s
    deadline = time.monotonic() + within_s
    while lease.holder(record.folder) is None:
        if time.monotonic() > deadline:
            raise TorchfabError(
                f"the supervisor in tmux did not begin within {within_s:g} s",
                f"the job runs; see what it says without tmux: fab supervise {record.name}",
            )
        time.sleep(0.1)
    write_out(f"job {record.name} is supervised in tmux; see it: tmux -L torchfab attach -t ={session}")
    return 0


def fab_argv(root: str, config: str) -> tuple[str, ...]:
    """Return the command that runs this project's `fab` again, from anywhere."""
    return (sys.executable, "-m", "fabric", "-r", root, *(("-f", config) if config else ()))
