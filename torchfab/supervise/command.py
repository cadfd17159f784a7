"""`fab supervise`, `fab lemons`, and launches with `--supervise`: from flags to a supervisor."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any

from torchfab import asked as asked_of
from torchfab import launch
from torchfab.asked import Asked
from torchfab.commandline import say, tell
from torchfab.errors import TorchfabError, UsageError
from torchfab.flags import LaunchFlags
from torchfab.inventory import fold
from torchfab.records import Record
from torchfab.supervise import handover, lock
from torchfab.supervise.lemons import Lemons
from torchfab.supervise.supervisor import Supervisor
from torchfab.supervise.values import Policy
from torchfab.surroundings import Surroundings


@dataclass(frozen=True)
class Wishes:
    """How a job is to be supervised, as flags say it; empty: as before, or as the settings have it."""

    restarts: str = ""
    stall: str = ""
    backoff: str = ""
    notify: str = ""

    def policy(self, before: Policy) -> Policy:
        """Return the policy of before with what the flags say instead.

        Raises
        ------
        UsageError
            A flag's value is wrong.
        """
        if self.restarts and not (self.restarts.isascii() and self.restarts.isdigit() and len(self.restarts) < 7):
            raise UsageError(f"--restarts is a number, got {self.restarts!r}")
        return replace(
            before,
            restarts=int(self.restarts) if self.restarts else before.restarts,
            stall_s=launch.seconds("--stall", self.stall) if self.stall else before.stall_s,
            backoff_s=launch.seconds("--backoff", self.backoff) if self.backoff else before.backoff_s,
            notify=self.notify or before.notify,
        )


def default_policy(around: Surroundings) -> Policy:
    """Return the policy that the settings give."""
    config = around.config
    return Policy(
        restarts=int(config["restarts"]),
        stall_s=float(config["stall_s"]),
        backoff_s=float(config["backoff_s"]),
        lost_s=float(config["lost_s"]),
        notify_timeout_s=float(config["notify_timeout_s"]),
    )


# ---- launches with --supervise


def launch_supervised(
    launcher: ModuleType, flags: LaunchFlags, own: Any, around: Surroundings, fab: Sequence[str]
) -> int:
    """Launch a job without the lemons, and supervise it; return its exit code.

    Parameters
    ----------
    fab : sequence of str
        The command that runs `fab` of this project again.
    """
    wishes = Wishes(flags.restarts, flags.stall, flags.backoff, flags.notify)
    policy = wishes.policy(default_policy(around))
    lemons = Lemons(around.records.root).all()
    asked = replace(launch.ask_for(launcher, flags, own, around, lemons), policy=policy.as_json())
    skipped = [node.label for node in asked.nodes if node.label in lemons]
    if skipped:
        tell(f"left out as lemons: {fold(skipped)}; why: fab lemons")
    if flags.dry_run:
        launch.show(asked, around, lemons)
        return 0
    record = launch.carry_out(asked, around, lemons)
    if flags.tmux:
        return _in_tmux(record, flags.follow, fab, around, asked)
    return _supervise(asked, record, policy, around, flags.follow, "")


# ---- fab supervise


def take_up(record: Record, wishes: Wishes, follow: bool, tmux: bool, around: Surroundings, fab: Sequence[str]) -> int:
    """Supervise a job that was launched before; return its exit code.

    Raises
    ------
    UsageError
        It cannot be launched again, it has ended well or was stopped, or somebody supervises it.
    """
    asked = asked_of.load(record.folder, around.environ)
    policy = wishes.policy(Policy(**{**default_policy(around).as_json(), **asked.policy}))
    if policy.as_json() != asked.policy:
        asked = replace(asked, policy=policy.as_json())
        asked.save(record.folder)
    if lock.stop_asked(record.folder):
        raise UsageError(
            f"job {record.name} was asked to stop (fab stop), and is not launched again",
            "launch it anew with another --name, and the same --experiment-name, to go on from its last checkpoint",
        )
    if tmux:
        lock.check_free(record.folder)  # else the one that is there would be taken for ours
        return _in_tmux(record, follow, fab, around, asked)
    return _supervise(asked, record, policy, around, follow, around.environ.get(handover.SESSION, ""))


def _supervise(asked: Asked, record: Record, policy: Policy, around: Surroundings, follow: bool, where: str) -> int:
    held = lock.Supervised(record.folder, where)
    again = any(event["event"] == "supervised" for event in record.events())
    supervisor = Supervisor(asked, policy, around, record, follow)
    supervisor.scribe.note("supervised", _first_words(asked, record, policy, again))
    try:
        return supervisor.run()
    except KeyboardInterrupt:
        name = record.name
        runs = supervisor.scribe.open_ending() is None
        how = "and it goes on" if runs else "and it does not run now"
        tell(f"\nnobody supervises job {name} any more, {how}; to take it up again: fab supervise {name}")
        tell(f"fab status {name} | to end it: fab stop {name}")
        return 130
    finally:
        held.release()


def _first_words(asked: Asked, record: Record, policy: Policy, again: bool) -> str:
    running = [node.label for node in record.nodes]
    spares = [node.label for node in asked.nodes if node.label not in running]
    words = f"{'taken up again' if again else 'supervised'}: attempt {record.attempt} on {fold(running)}"
    words += f", spare {fold(spares)}" if spares else ", no spare"
    stall = f"silence of {policy.stall_s:g} s is a hang" if policy.stall_s else "hangs are not looked for"
    return f"{words}; {policy.restarts} restarts without progress, {stall}"


def _in_tmux(record: Record, follow: bool, fab: Sequence[str], around: Surroundings, asked: Asked) -> int:
    argv = [*fab, "supervise", record.name, *(["--follow"] if follow else [])]
    environ = {**around.environ, **asked.job.secrets}  # also those that came with --env
    session = handover.start(record.name, argv, environ, around.cwd, record.folder)
    within_s = around.settings.start_timeout_s
    deadline = time.monotonic() + within_s
    while lock.holder(record.folder) is None:
        if time.monotonic() > deadline:
            raise TorchfabError(
                f"the supervisor in tmux did not begin within {within_s:g} s",
                f"the job runs; see what it says without tmux: fab supervise {record.name}",
            )
        time.sleep(0.1)
    say(f"job {record.name} is supervised in tmux; see it: tmux -L torchfab attach -t ={session}")
    return 0


# ---- fab lemons


def show_lemons(around: Surroundings, forgive: str, as_json: bool) -> int:
    """Print the lemons, or forgive one or `all`; return 1 if there was none to forgive."""
    lemons = Lemons(around.records.root)
    if forgive:
        gone = lemons.forgive(forgive)
        say(f"forgiven: {fold(gone)}" if gone else f"{forgive} is no lemon")
        return 0 if gone else 1
    found = lemons.all()
    if as_json:
        say(json.dumps({host: vars(lemon) for host, lemon in found.items()}, indent=2))
    elif not found:
        say("no lemons")
    for host, lemon in found.items() if not as_json else ():
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(lemon.time))
        say(f"{host}  since {when}, job {lemon.job}: {lemon.reason}")
    return 0


def fab_argv(root: str, config: str) -> tuple[str, ...]:
    """Return the command that runs this project's `fab` again, from anywhere."""
    return (sys.executable, "-m", "fabric", "-r", root, *(("-f", config) if config else ()))
