"""Supervise a job: watch an attempt, stop what is left of it, decide, launch it again."""

from __future__ import annotations

import os
import sys
from dataclasses import field, replace
from typing import Any

from torchfab import runtimes
from torchfab.core.console import write_err, write_out
from torchfab.core.errors import TorchfabError
from torchfab.core.format import duration
from torchfab.core.inventory import fold
from torchfab.core.lazy_dataclass import dataclass
from torchfab.core.status import SIGTERM_CODE
from torchfab.launching.context import CommandContext
from torchfab.monitoring import stack_dump
from torchfab.monitoring.job_watcher import Printer
from torchfab.records import Record
from torchfab.records.launch_request import LaunchRequest
from torchfab.supervise import history, job_locks, outcome
from torchfab.supervise.attempt_monitor import AttemptMonitor
from torchfab.supervise.event_journal import EventJournal
from torchfab.supervise.model import AttemptOutcome, Policy
from torchfab.supervise.notifier import Notifier
from torchfab.supervise.orphans import OrphanedAttempts
from torchfab.supervise.policy import decide, progressed
from torchfab.supervise.relauncher import Relauncher, StopRequestedError
from torchfab.why import report

_FINAL_KINDS = {"succeeded": "succeeded", "stopped": "was stopped"}


@dataclass
class JobSupervisor:
    """Supervises one job. The caller holds its `SupervisorLock`.

    Parameters
    ----------
    request : LaunchRequest
        The job, to launch it again.
    policy : Policy
        When to restart it.
    ctx : CommandContext
        Configuration, environment and records of this command.
    first : Record
        The attempt that supervision starts with.
    show_logs : bool
        Whether to print the job's log lines. Default False.
    """

    request: LaunchRequest
    policy: Policy
    ctx: CommandContext
    first: Record
    show_logs: bool = False
    farthest: int = 0  # the largest step of all attempts before the current one
    journal: EventJournal = field(init=False)
    orphans: OrphanedAttempts = field(init=False)
    relauncher: Relauncher = field(init=False)

    def __post_init__(self) -> None:
        notifier = Notifier(self.policy.notify, write_err, self.policy.notify_timeout_s)
        self.journal = EventJournal(self.first, self.request.job.secrets.values(), notifier)
        self.orphans = OrphanedAttempts(self.journal, self.request.job.grace_s)
        self.relauncher = Relauncher(self.request, self.ctx, self.journal, self.orphans)
        pending = self.journal.pending_outcome()
        outcomes = [*(each.outcome for each in self.journal.previous_attempts()), *([pending] if pending else [])]
        self.farthest = max((each.step or 0 for each in outcomes), default=0)

    @property
    def record(self) -> Record:
        """The current attempt."""
        return self.journal.record

    def run(self) -> int:
        """Supervise until the job has ended for good.

        Returns
        -------
        int
            The job's exit code.
        """
        self.orphans.start()
        try:
            return self._run()
        except StopRequestedError:
            return self._end_stopped()
        finally:
            self.orphans.closed.set()
            self.journal.notifier.close()

    def _run(self) -> int:
        # If a previous supervisor recorded an outcome and died, continue from there.
        pending = self.journal.pending_outcome()
        result, diagnosed = (self._examine(pending), "") if pending else self._watch()
        while True:
            if job_locks.stop_requested(self.record.folder):
                return self._end_stopped()
            decision = decide(self.journal.previous_attempts(), result, self.policy)
            refusal = self.relauncher.restart(decision) if decision.restart else decision.reason
            if refusal:
                return self._end(result, refusal, diagnosed)
            failed = self.journal.pending_outcome()
            result, diagnosed = (self._examine(failed), "") if failed else self._watch()

    # ---- one attempt

    def _watch(self) -> tuple[AttemptOutcome, str]:
        """Watch the attempt to its end and stop what is left of it; return its outcome and the report of `fab why`."""
        monitor = AttemptMonitor(
            self.record,
            self.policy,
            float(self.ctx.config["failure_grace_s"]),
            lambda: job_locks.stop_requested(self.record.folder),
            self._report,
            Printer() if self.show_logs else None,
        )
        trigger = monitor.wait()
        if trigger.kind == "stop":
            return AttemptOutcome(self.record.attempt, "stopped", "stopped"), ""
        result, diagnosed = outcome.classify(self.record, trigger)
        if result.kind == "stall":
            self._save_stacks(result)
        self._announce_outcome(result)
        # Recorded before the attempt is stopped: else a supervisor that takes over would mistake that for `fab stop`.
        self._record_outcome(result)
        patience_s = 0.0 if trigger.kind == "lost" else self.policy.lost_s
        return self._examine(result, patience_s), report.render(diagnosed)

    def _report(self, event: str, text: str, **details: Any) -> None:
        if event != "step":
            self.journal.note(event, text, **details)
        elif details["step"] > self.farthest and self.record.attempt > 1:
            step, before, self.farthest = details["step"], self.farthest, sys.maxsize  # reported once per attempt
            farthest = f", farther than any attempt before ({before})" if before else ""
            self.journal.note("progress", f"attempt {self.record.attempt} is at step {step}{farthest}", step=step)

    def _announce_outcome(self, result: AttemptOutcome) -> None:
        at = f" at step {result.step}" if result.step is not None else ""
        how = f"{_FINAL_KINDS.get(result.kind, 'failed')} after {duration(result.lived_s)}{at}"
        why = "" if result.kind in _FINAL_KINDS else f": {result.words}"
        self.journal.note("outcome", f"attempt {result.attempt} {how}{why}", code=result.code)

    def _record_outcome(self, result: AttemptOutcome) -> None:
        self.journal.note(history.ENDED, **history.outcome_as_json(result))
        before = [each.outcome for each in self.journal.previous_attempts()]
        if progressed(before, result):
            self.farthest = max([result.step or 0, *(each.step or 0 for each in before)])

    def _examine(self, result: AttemptOutcome, patience_s: float = 0.0) -> AttemptOutcome:
        """Stop what is left of a failed attempt; return its outcome with doctor's findings on its nodes."""
        if result.kind in _FINAL_KINDS:
            return result
        unkillable = self._stop_rest()
        unhealthy = outcome.unhealthy_nodes(self.record.nodes, self.request, self.record.settings, patience_s)
        examined = replace(result, bad={**result.bad, **unhealthy, **unkillable})
        if examined != result:
            self.journal.note(history.ENDED, **history.outcome_as_json(examined))
        return examined

    def _save_stacks(self, result: AttemptOutcome) -> None:
        path = self.record.folder / f"stacks-{self.record.attempt}.txt"
        try:
            text = stack_dump.render(self.record)
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with os.fdopen(fd, "w", errors="backslashreplace") as file:
                file.write(text + "\n")
        except (TorchfabError, OSError) as error:
            self.journal.note("stall", f"{result.words}; its stacks could not be collected: {error}")
            return
        said = [line for at, line in enumerate(text.splitlines()) if at == 0 or line.startswith("collectives: ")]
        self.journal.note("stall", f"{'; '.join([result.words, *said])}; the stacks: {path}", path=str(path))

    def _stop_rest(self) -> dict[str, str]:
        """Stop the attempt on all its nodes; return the hosts with processes that cannot be killed, and the reasons."""
        record = self.record
        reports = runtimes.load(record.runtime).stop(record, self.request.job.grace_s)
        unreachable = [report.node.label for report in reports if report.error is not None]
        unkillable = {report.node.label: f"{report.left[0]} cannot be killed" for report in reports if report.left}
        clean = [node.label for node in record.nodes if node.label not in unreachable and node.label not in unkillable]
        parts = [f"attempt {record.attempt}: no process of it is left on {fold(clean)}"] if clean else []
        if unreachable or unkillable:
            self.orphans.add(record.attempt, [*unreachable, *unkillable])
            hosts = fold([*unreachable, *unkillable])
            parts.append(
                f"on {hosts} it may still be running; it cannot join the next attempt, whose id and port differ; "
                "it will be stopped there when the host is reachable"
            )
        self.journal.note("stopped", "; ".join(parts), hosts=clean)
        return unkillable

    # ---- the end

    def _end(self, result: AttemptOutcome, reason: str, diagnosed: str) -> int:
        name, code = self.record.name, result.code if result.code is not None else int(result.kind != "succeeded")
        self.record.remember(result.kind if result.kind in _FINAL_KINDS else "failed", code, True)
        restarts = self.record.attempt - 1
        after = "" if not restarts else f" after {restarts} restart{'s' if restarts > 1 else ''}"
        if result.kind in _FINAL_KINDS:
            self.journal.note("end", f"job {name} {_FINAL_KINDS[result.kind]}{after}", code=code)
        else:
            self.journal.note("end", f"job {name} will not be restarted{after}: {reason}", code=code)
            if diagnosed:
                write_out(diagnosed)
            write_err(f"exit code {code}; fab why {name} | fab logs {name}")
        self._warn_of_orphans()
        return code

    def _end_stopped(self) -> int:
        self.journal.note("end", f"job {self.record.name} was stopped on request: no restart", code=SIGTERM_CODE)
        self._warn_of_orphans()
        return SIGTERM_CODE

    def _warn_of_orphans(self) -> None:
        self.orphans.stop_reachable()
        for attempt, hosts in self.orphans.hosts.items():
            names = fold(sorted(hosts))
            write_err(
                f"attempt {attempt} may still run on {names}; when it is reachable again: fab stop {self.record.name}"
            )
