"""See a job through: watch an attempt, decide, stop what is left of it, launch it again."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, field, replace
from typing import Any

from torchfab import runtimes
from torchfab.core.console import write_err, write_out
from torchfab.core.errors import TorchfabError
from torchfab.core.inventory import fold
from torchfab.core.status import SIGTERM_CODE, duration
from torchfab.launch.context import CommandContext
from torchfab.monitoring import stack_dump
from torchfab.monitoring.watcher import Printer
from torchfab.records import Record
from torchfab.records.launch_request import LaunchRequest
from torchfab.supervise import history, lease, outcome
from torchfab.supervise.event_journal import EventJournal
from torchfab.supervise.model import AttemptOutcome, Policy
from torchfab.supervise.monitor import AttemptMonitor
from torchfab.supervise.notifier import Notifier
from torchfab.supervise.orphans import OrphanedAttempts
from torchfab.supervise.policy import decide, progressed
from torchfab.supervise.relauncher import Relauncher, StopAskedError
from torchfab.why import report as page

_ENDED = {"succeeded": "succeeded", "stopped": "was stopped"}


@dataclass
class JobSupervisor:
    """See one job through; whoever makes one holds its lock.

    Parameters
    ----------
    asked : Asked
        What it takes to launch it again.
    policy : Policy
        How to go about it.
    ctx : CommandContext
        Where we are.
    first : Record
        The attempt that it begins with.
    show_logs : bool
        Whether its log lines are printed. Default False.
    """

    asked: LaunchRequest
    policy: Policy
    ctx: CommandContext
    first: Record
    show_logs: bool = False
    farthest: int = 0
    scribe: EventJournal = field(init=False)
    stragglers: OrphanedAttempts = field(init=False)
    relauncher: Relauncher = field(init=False)

    def __post_init__(self) -> None:
        notifier = Notifier(self.policy.notify, write_err, self.policy.notify_timeout_s)
        self.scribe = EventJournal(self.first, self.asked.job.secrets.values(), notifier)
        self.stragglers = OrphanedAttempts(self.scribe, self.asked.job.grace_s)
        self.relauncher = Relauncher(self.asked, self.ctx, self.scribe, self.stragglers)
        known = self.scribe.open_ending()
        endings = [*(past.outcome for past in self.scribe.past()), *([known] if known else [])]
        self.farthest = max((ending.step or 0 for ending in endings), default=0)

    @property
    def record(self) -> Record:
        """The current attempt."""
        return self.scribe.record

    def run(self) -> int:
        """Supervise until the job has ended for good; return its exit code."""
        self.stragglers.start()
        try:
            return self._run()
        except StopAskedError:
            return self._end_stopped()
        finally:
            self.stragglers.over.set()
            self.scribe.notifier.close()

    def _run(self) -> int:
        # Where a supervisor before us noted an ending and died, we go on from there.
        known = self.scribe.open_ending()
        ending, why = (self._examine(known), "") if known else self._see_through()
        while True:
            if lease.stop_asked(self.record.folder):
                return self._end_stopped()
            decision = decide(self.scribe.past(), ending, self.policy)
            refusal = self.relauncher.restart(decision) if decision.restart else decision.reason
            if refusal:
                return self._end(ending, refusal, why)
            failed = self.scribe.open_ending()
            ending, why = (self._examine(failed), "") if failed else self._see_through()

    # ---- one attempt

    def _see_through(self) -> tuple[AttemptOutcome, str]:
        """Watch the attempt to its end, and stop what is left of it; return how it ended, and the page of `fab why`."""
        eyes = AttemptMonitor(
            self.record,
            self.policy,
            float(self.ctx.config["failure_grace_s"]),
            lambda: lease.stop_asked(self.record.folder),
            self._seen,
            Printer() if self.show_logs else None,
        )
        sight = eyes.wait()
        if sight.kind == "stop":
            return AttemptOutcome(self.record.attempt, "stopped", "stopped"), ""
        ending, told = outcome.hold(self.record, sight)
        if ending.kind == "stall":
            self._keep_stacks(ending)
        self._tell_ending(ending)
        # Noted before it is stopped: whoever takes over from here must not take that for a `fab stop`.
        self._note_ending(ending)
        patience_s = 0.0 if sight.kind == "lost" else self.policy.lost_s
        return self._examine(ending, patience_s), page.text(told)

    def _seen(self, event: str, text: str, **details: Any) -> None:
        if event != "step":
            self.scribe.note(event, text, **details)
        elif details["step"] > self.farthest and self.record.attempt > 1:
            step, before, self.farthest = details["step"], self.farthest, sys.maxsize  # said once in an attempt
            farthest = f", farther than any attempt before ({before})" if before else ""
            self.scribe.note("progress", f"attempt {self.record.attempt} is at step {step}{farthest}", step=step)

    def _tell_ending(self, ending: AttemptOutcome) -> None:
        at = f" at step {ending.step}" if ending.step is not None else ""
        how = f"{_ENDED.get(ending.kind, 'failed')} after {duration(ending.lived_s)}{at}"
        why = "" if ending.kind in _ENDED else f": {ending.words}"
        self.scribe.note("outcome", f"attempt {ending.attempt} {how}{why}", code=ending.code)

    def _note_ending(self, ending: AttemptOutcome) -> None:
        self.scribe.note(history.ENDED, **history.of_ending(ending))
        before = [past.outcome for past in self.scribe.past()]
        if progressed(before, ending):
            self.farthest = max([ending.step or 0, *(each.step or 0 for each in before)])

    def _examine(self, ending: AttemptOutcome, patience_s: float = 0.0) -> AttemptOutcome:
        """Stop what is left of an attempt that went wrong; return its ending with what doctor finds on its nodes."""
        if ending.kind in _ENDED:
            return ending
        stuck = self._stop_rest()
        found = outcome.sick(self.record.nodes, self.asked, self.record.settings, patience_s)
        examined = replace(ending, bad={**ending.bad, **found, **stuck})
        if examined != ending:
            self.scribe.note(history.ENDED, **history.of_ending(examined))
        return examined

    def _keep_stacks(self, ending: AttemptOutcome) -> None:
        path = self.record.folder / f"stacks-{self.record.attempt}.txt"
        try:
            text = stack_dump.text(self.record)
            handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with os.fdopen(handle, "w", errors="backslashreplace") as file:
                file.write(text + "\n")
        except (TorchfabError, OSError) as error:
            self.scribe.note("stall", f"{ending.words}; its stacks could not be had: {error}")
            return
        self.scribe.note("stall", f"{ending.words}; {text.splitlines()[0]}; the stacks: {path}", path=str(path))

    def _stop_rest(self) -> dict[str, str]:
        """Stop the attempt on all its nodes; return those on which it cannot be ended, and why."""
        record = self.record
        reports = runtimes.load(record.runtime).stop(record, self.asked.job.grace_s)
        away = [report.node.label for report in reports if report.error is not None]
        stuck = {report.node.label: f"{report.left[0]} cannot be killed" for report in reports if report.left}
        clean = [node.label for node in record.nodes if node.label not in away and node.label not in stuck]
        words = [f"attempt {record.attempt}: no process of it is left on {fold(clean)}"] if clean else []
        if away or stuck:
            self.stragglers.add(record.attempt, [*away, *stuck])
            words.append(
                f"on {fold([*away, *stuck])} it may still run: the next attempt has another id and port, which that "
                "cannot join; it is stopped there when it can be asked"
            )
        self.scribe.note("stopped", "; ".join(words), hosts=clean)
        return stuck

    # ---- the end

    def _end(self, ending: AttemptOutcome, reason: str, why: str) -> int:
        name, code = self.record.name, ending.code if ending.code is not None else int(ending.kind != "succeeded")
        self.record.remember(ending.kind if ending.kind in _ENDED else "failed", code, True)
        restarts = self.record.attempt - 1
        after = "" if not restarts else f" after {restarts} restart{'s' if restarts > 1 else ''}"
        if ending.kind in _ENDED:
            self.scribe.note("end", f"job {name} {_ENDED[ending.kind]}{after}", code=code)
        else:
            self.scribe.note("end", f"job {name} is given up{after}: {reason}", code=code)
            if why:
                write_out(why)
            write_err(f"exit code {code}; fab why {name} | fab logs {name}")
        self._say_what_is_left()
        return code

    def _end_stopped(self) -> int:
        self.scribe.note("end", f"job {self.record.name} was asked to stop: no restart", code=SIGTERM_CODE)
        self._say_what_is_left()
        return SIGTERM_CODE

    def _say_what_is_left(self) -> None:
        self.stragglers.catch_up()
        for attempt, hosts in self.stragglers.hosts.items():
            names = fold(sorted(hosts))
            write_err(f"attempt {attempt} may still run on {names}; when it is back: fab stop {self.record.name}")
