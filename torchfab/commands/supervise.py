"""`fab supervise` and launches with `--supervise`: run a job's supervisor here or in tmux."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torchfab.cli.flags import LaunchFlags
from torchfab.core.console import write_err, write_out
from torchfab.core.errors import TorchfabError, UsageError
from torchfab.core.inventory import fold
from torchfab.core.lazy_dataclass import dataclass
from torchfab.launchers import Launcher
from torchfab.launching import launch
from torchfab.launching.context import CommandContext
from torchfab.records import Record, launch_request
from torchfab.records.launch_request import LaunchRequest
from torchfab.supervise import detach, job_locks
from torchfab.supervise.job_supervisor import JobSupervisor
from torchfab.supervise.model import Policy
from torchfab.supervise.quarantine import Quarantine


@dataclass(frozen=True)
class SuperviseFlags:
    """Flags that change a restart policy. None or an empty text keeps the previous value, or the setting."""

    restarts: int | None = None
    stall: float | None = None
    backoff: float | None = None
    notify: str = ""

    def policy(self, before: Policy) -> Policy:
        """Apply the flags to a policy.

        Parameters
        ----------
        before : Policy
            The previous policy.

        Returns
        -------
        Policy
            The policy with the values of the flags that are set.

        Raises
        ------
        UsageError
            The value of --notify is neither a command nor a URL.
        """
        return replace(
            before,
            restarts=before.restarts if self.restarts is None else self.restarts,
            stall_s=before.stall_s if self.stall is None else self.stall,
            backoff_s=before.backoff_s if self.backoff is None else self.backoff,
            notify=self.notify or before.notify,
        )


def default_policy(ctx: CommandContext) -> Policy:
    """Return the restart policy of the settings.

    Parameters
    ----------
    ctx : CommandContext
        Configuration of this command.

    Returns
    -------
    Policy
        The policy.
    """
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
    """Launch a job on the hosts that are not quarantined, and supervise it.

    Parameters
    ----------
    launcher : module
        Plans what runs.
    flags, own : dataclass
        The flags that all launches share, and those of this launcher.
    ctx : CommandContext
        Working directory, environment, configuration and records.
    fab : sequence of str
        The command that runs this project's `fab` again.

    Returns
    -------
    int
        Exit code: that of the job; 0 for a dry run or a supervisor in tmux.
    """
    supervise_flags = SuperviseFlags(flags.restarts, flags.stall, flags.backoff, flags.notify)
    policy = supervise_flags.policy(default_policy(ctx))
    lemons = Quarantine(ctx.records.root).all()
    request = replace(launch.build_request(launcher, flags, own, ctx, lemons), policy=policy.as_json())
    skipped = [node.label for node in request.nodes if node.label in lemons]
    if skipped:
        write_err(f"lemons, left out: {fold(skipped)}; for the reasons: fab lemons")
    if flags.dry_run:
        launch.show(request, ctx, lemons)
        return 0
    record = launch.execute(request, ctx, lemons)
    if flags.tmux:
        return _in_tmux(record, flags.follow, fab, ctx, request)
    return _supervise(request, record, policy, ctx, flags.follow, "")


# ---- fab supervise


def supervise_existing(
    record: Record, supervise_flags: SuperviseFlags, follow: bool, tmux: bool, ctx: CommandContext, fab: Sequence[str]
) -> int:
    """Supervise a job that was launched before.

    Parameters
    ----------
    record : Record
        The job.
    supervise_flags : SuperviseFlags
        Changes of its restart policy.
    follow : bool
        Print the job's logs.
    tmux : bool
        Run the supervisor in tmux, and return.
    ctx : CommandContext
        Working directory, environment, configuration and records.
    fab : sequence of str
        The command that runs this project's `fab` again.

    Returns
    -------
    int
        Exit code: that of the job; 0 for a supervisor in tmux.

    Raises
    ------
    UsageError
        The job cannot be relaunched, has succeeded, was stopped, or is supervised already.
    """
    request = launch_request.load(record.folder, ctx.environ)
    policy = supervise_flags.policy(Policy(**{**default_policy(ctx).as_json(), **request.policy}))
    if policy.as_json() != request.policy:
        request = replace(request, policy=policy.as_json())
        request.save(record.folder)
    if job_locks.stop_requested(record.folder):
        raise UsageError(
            f"job {record.name} was stopped with fab stop, and is not launched again",
            "launch it under another --name with the same --experiment-name, to resume from its last checkpoint",
        )
    if tmux:
        job_locks.check_free(record.folder)  # otherwise an existing supervisor would be mistaken for the new one
        return _in_tmux(record, follow, fab, ctx, request)
    return _supervise(request, record, policy, ctx, follow, ctx.environ.get(detach.SESSION, ""))


def _supervise(
    request: LaunchRequest, record: Record, policy: Policy, ctx: CommandContext, follow: bool, where: str
) -> int:
    lock = job_locks.SupervisorLock(record.folder, where)
    resumed = any(event["event"] == "supervised" for event in record.events())
    supervisor = JobSupervisor(request, policy, ctx, record, follow)
    supervisor.journal.note("supervised", _start_message(request, record, policy, resumed))
    try:
        return supervisor.run()
    except KeyboardInterrupt:
        name = record.name
        runs = supervisor.journal.pending_outcome() is None
        how = "which is still running" if runs else "which is not running now"
        write_err(f"\nno supervisor watches job {name} any more, {how}; to resume: fab supervise {name}")
        write_err(f"fab status {name} | to end it: fab stop {name}")
        return 130
    finally:
        lock.release()


def _start_message(request: LaunchRequest, record: Record, policy: Policy, resumed: bool) -> str:
    running = [node.label for node in record.nodes]
    spares = [node.label for node in request.nodes if node.label not in running]
    message = f"{'supervision resumed' if resumed else 'supervised'}: attempt {record.attempt} on {fold(running)}"
    message += f", spare {fold(spares)}" if spares else ", no spare"
    stall = f"{policy.stall_s:g} s without a log line count as a hang" if policy.stall_s else "hangs are not detected"
    return f"{message}; {policy.restarts} restarts without progress, {stall}"


def _in_tmux(record: Record, follow: bool, fab: Sequence[str], ctx: CommandContext, request: LaunchRequest) -> int:
    argv = [*fab, "supervise", record.name, *(["--follow"] if follow else [])]
    environ = {**ctx.environ, **request.job.secrets}  # including values given with --env
    session = detach.start(record.name, argv, environ, ctx.cwd, record.folder)
    within_s = ctx.settings.start_timeout_s
    deadline = time.monotonic() + within_s
    while job_locks.holder(record.folder) is None:
        if time.monotonic() > deadline:
            raise TorchfabError(
                f"the supervisor in tmux did not start within {within_s:g} s",
                f"the job is running; to see the error, supervise it without tmux: fab supervise {record.name}",
            )
        time.sleep(0.1)
    write_out(f"job {record.name} is supervised in tmux; to watch: tmux -L torchfab attach -t ={session}")
    return 0
