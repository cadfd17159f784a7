"""See a job through: watch an attempt, decide, stop what is left of it, launch it again."""

from __future__ import annotations

import os
import secrets as random_source
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torchfab import dumping, launch, runtimes
from torchfab.asked import Asked
from torchfab.commandline import say, tell
from torchfab.errors import HostsFailedError, TorchfabError
from torchfab.inventory import fold
from torchfab.job import Node
from torchfab.records import Record
from torchfab.status import duration
from torchfab.supervise import inquest, lock, remains, story
from torchfab.supervise.deciding import decide, progressed
from torchfab.supervise.eyes import Eyes, Sight
from torchfab.supervise.lemons import Lemon, Lemons
from torchfab.supervise.notify import Notifier
from torchfab.supervise.values import Decision, Ending, Past, Policy
from torchfab.surroundings import Surroundings
from torchfab.watch import Printer
from torchfab.why import page

_CATCH_UP_S = 30.0
# What a notifier is told of.
_TOLD_ON: tuple[str, ...] = ("attempt", "text", "code", "hosts")
_NEWS = ("outcome", "restart", "lemon", "stall", "end")


class StopAskedError(TorchfabError):
    """Somebody said `fab stop` while the job was to be launched again."""


@dataclass
class Supervisor:
    """See one job through; whoever makes one holds its lock.

    Parameters
    ----------
    asked : Asked
        What it takes to launch it again.
    record : Record
        Its current attempt.
    policy : Policy
        How to go about it.
    around : Surroundings
        Where we are.
    show_logs : bool
        Whether its log lines are printed.
    """

    asked: Asked
    record: Record
    policy: Policy
    around: Surroundings
    show_logs: bool = False
    just_taken_up: bool = False
    farthest: int = 0
    stopping: dict[int, set[str]] = field(default_factory=dict)
    stopping_lock: threading.Lock = field(default_factory=threading.Lock)
    over: threading.Event = field(default_factory=threading.Event)
    notifier: Notifier = field(init=False)

    def __post_init__(self) -> None:
        self.notifier = Notifier(self.policy.notify, lambda text: tell(text))
        self.farthest = max((each.ending.step or 0 for each in self._past()), default=0)
        self.stopping = story.left_behind(self.record.events())

    # ---- the story

    def _past(self) -> tuple[Past, ...]:
        return story.history(self.record.events(), self.record.attempt)

    def note(self, event: str, text: str = "", **details: Any) -> None:
        """Write an event into the record, print it, and tell it on."""
        for value in self.asked.job.secrets.values():
            text = text.replace(value, "***") if len(value) > 3 else text
        known = {"attempt": self.record.attempt, **details, **({"text": text} if text else {})}
        self.record.note(event, **known)
        now = time.time()
        if text:
            tell(story.line({"time": now, "event": event, "text": text}))
        if event in _NEWS:
            small = {key: known[key] for key in _TOLD_ON if key in known}
            self.notifier.tell({"job": self.record.name, "event": event, "time": now, **small})

    # ---- the loop

    def run(self) -> int:
        """Supervise until the job has ended for good; return its exit code."""
        threading.Thread(target=self._keep_catching_up, daemon=True).start()
        try:
            while True:
                ending, page_of_why = self._ending()
                if lock.stop_asked(self.record.folder):
                    return self._end_stopped()
                decision = decide(self._past(), ending, self.policy)
                if not decision.restart:
                    return self._end(ending, decision, page_of_why)
                if (refusal := self._restart(decision)) is not None:
                    return self._end(ending, refusal, page_of_why)
        except StopAskedError:
            return self._end_stopped()
        finally:
            self.over.set()
            self.notifier.close()

    def _ending(self) -> tuple[Ending, str]:
        """Watch the attempt to its end, and stop what is left of it; return how it ended, noted once."""
        known = story.open_ending(self.record.events(), self.record.attempt)
        if known is not None:  # it could not be launched; or the supervisor before us noted it, and died
            if self.just_taken_up:
                self._stop_rest()
            self.just_taken_up = False
            return known, ""
        self.just_taken_up = False
        eyes = Eyes(
            self.record,
            self.policy,
            float(self.around.config["failure_grace_s"]),
            lambda: lock.stop_asked(self.record.folder),
            self._seen,
            Printer() if self.show_logs else None,
        )
        sight = eyes.look()
        if sight.what == "stop":
            return Ending(self.record.attempt, "stopped", "stopped"), ""
        return self._hold_inquest(sight)

    def _seen(self, event: str, text: str, **details: Any) -> None:
        if event != "step":
            self.note(event, text, **details)
        elif details["step"] > self.farthest and self.record.attempt > 1:
            step, before, self.farthest = details["step"], self.farthest, sys.maxsize  # said once in an attempt
            farthest = f", farther than any attempt before ({before})" if before else ""
            self.note("progress", f"attempt {self.record.attempt} is at step {step}{farthest}", step=step)

    def _hold_inquest(self, sight: Sight) -> tuple[Ending, str]:
        ending, told = inquest.hold(self.record, sight)
        if ending.kind == "stall":
            self._keep_stacks(ending)
        self._tell_ending(ending)
        if ending.kind in ("succeeded", "stopped"):
            self._note_ending(ending)
            return ending, page.text(told)
        stuck = self._stop_rest()
        patience_s = 0.0 if sight.what == "lost" else self.policy.lost_s
        found = inquest.sick(self.record.nodes, self.asked, self.record.settings, patience_s)
        # Who was out of reach and is back is as good as any.
        kept = {host: why for host, why in ending.bad.items() if host in found or host not in told.silent}
        ending = replace(ending, bad={**kept, **found, **stuck})
        self._note_ending(ending)
        return ending, page.text(told)

    def _tell_ending(self, ending: Ending) -> None:
        at = f" at step {ending.step}" if ending.step is not None else ""
        lived = duration(ending.lived_s)
        if ending.kind == "succeeded":
            words = f"attempt {ending.attempt} succeeded after {lived}{at}"
        else:
            words = f"attempt {ending.attempt} failed after {lived}{at}: {ending.words}"
        self.note("outcome", words, code=ending.code)

    def _note_ending(self, ending: Ending) -> None:
        self.note(story.ENDED, **story.of_ending(ending))
        before = [past.ending for past in self._past()]
        if progressed(before, ending):
            self.farthest = max([ending.step or 0, *(each.step or 0 for each in before)])

    def _keep_stacks(self, ending: Ending) -> None:
        path = self.record.folder / f"stacks-{self.record.attempt}.txt"
        try:
            text = dumping.text(self.record)
            handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with os.fdopen(handle, "w", errors="backslashreplace") as file:
                file.write(text + "\n")
        except (TorchfabError, OSError) as error:
            self.note("stall", f"{ending.words}; its stacks could not be had: {error}")
            return
        self.note("stall", f"{ending.words}; {text.splitlines()[0]}; the stacks: {path}", path=str(path))

    # ---- stopping what is left

    def _stop_rest(self) -> dict[str, str]:
        """Stop the attempt on all its nodes; return those on which it cannot be ended, and why."""
        nodes = [node.label for node in self.record.nodes]
        reports = runtimes.of(self.record.runtime).stop(self.record, self.asked.job.grace_s)
        away = [report.node.label for report in reports if report.error is not None]
        stuck = {report.node.label: f"{report.left[0]} cannot be killed" for report in reports if report.left}
        clean = [host for host in nodes if host not in away and host not in stuck]
        words = [f"attempt {self.record.attempt}: no process of it is left on {fold(clean)}"] if clean else []
        if away or stuck:
            self.stopping.setdefault(self.record.attempt, set()).update([*away, *stuck])
            self.note("left behind", attempt=self.record.attempt, hosts=[*away, *stuck])
            words.append(
                f"on {fold([*away, *stuck])} it may still run: the next attempt has another id and port, which that "
                "cannot join; it is stopped there when it can be asked"
            )
        self.note("stopped", "; ".join(words), hosts=clean)
        return stuck

    def catch_up(self, before_launch: bool = False) -> None:
        """Stop earlier attempts on nodes that could not be asked, as soon as they can be.

        Parameters
        ----------
        before_launch : bool
            Whether nothing of the current attempt runs. Default False: its own nodes are left alone.
        """
        busy = set() if before_launch else {node.label for node in self.record.nodes}
        with self.stopping_lock:
            for attempt, hosts in list(self.stopping.items()):
                self._stop_earlier(attempt, hosts - busy)

    def _stop_earlier(self, attempt: int, wanted: set[str]) -> None:
        for report in remains.stop(self.record, attempt, wanted, self.asked.job.grace_s):
            if report.error is None and not report.left:
                host = report.node.label
                self.stopping[attempt].discard(host)
                self.note("caught up", remains.words(report, attempt), attempt=attempt, hosts=[host])
        if not self.stopping[attempt]:
            del self.stopping[attempt]

    def _keep_catching_up(self) -> None:
        while not self.over.wait(_CATCH_UP_S):
            if self.stopping:
                self.catch_up()

    # ---- launching again

    def _restart(self, decision: Decision) -> Decision | None:
        """Launch it again, on healthy nodes; return why not, where that cannot be."""
        self._leave_out(decision)
        if decision.wait_s:
            self._wait(decision)
        nodes = self._healthy_nodes()
        if nodes is None:
            return Decision(False, self._too_few())
        if self.stopping:
            self.catch_up(before_launch=True)
        hosts, following = [node.label for node in nodes], self.record.attempt + 1
        text = f"{decision.reason}: attempt {following} on {fold(hosts)}"
        self.note(story.RESTART, text, replaced=bool(decision.drop), hosts=hosts, next=following)
        self._launch(nodes)
        return None

    def _leave_out(self, decision: Decision) -> None:
        if not decision.drop:
            return
        now = time.time()
        lemons = {host: Lemon(reason, now, self.record.name) for host, reason in decision.drop.items()}
        Lemons(self.around.records.root).add(lemons)
        for host, reason in decision.drop.items():
            self.note("lemon", f"{host} is left out from now on (fab lemons): {reason}", hosts=[host])

    def _wait(self, decision: Decision) -> None:
        if decision.wait_s >= 1:
            self.note("waiting", f"waits {duration(decision.wait_s)} before {decision.reason}")
        deadline = time.monotonic() + decision.wait_s
        while time.monotonic() < deadline:
            if lock.stop_asked(self.record.folder):
                raise StopAskedError("stop")
            time.sleep(0.1)

    def _healthy_nodes(self) -> tuple[Node, ...] | None:
        """Return the first nodes that are no lemons and doctor finds fit; None where there are too few."""
        lemons = Lemons(self.around.records.root)
        fit: set[str] = set()
        while True:
            usable = [node for node in self.asked.nodes if node.label not in lemons.all()]
            if len(usable) < self._least():
                return None
            chosen = tuple(usable[: self.asked.count])
            unknown = [node for node in chosen if node.label not in fit]
            if not unknown:
                return chosen
            sick = inquest.sick(unknown, self.asked, self.record.settings, 0.0)
            fit |= {node.label for node in unknown if node.label not in sick}
            self._leave_out(Decision(True, "", drop=sick))

    def _least(self) -> int:
        """Return with how few nodes it may run: an elastic job with fewer than it was asked for."""
        return min(self.asked.count, self.record.min_nodes or self.asked.count)

    def _too_few(self) -> str:
        lemons = Lemons(self.around.records.root).all()
        usable = [node.label for node in self.asked.nodes if node.label not in lemons]
        names = fold([node.label for node in self.asked.nodes if node.label in lemons])
        return f"no spare is left: {self.asked.count} nodes are wanted, {len(usable)} are fit; lemons: {names}"

    def _launch(self, nodes: Sequence[Node]) -> None:
        """Launch the next attempt under the lock that `fab stop` waits for."""
        before = self.record
        try:
            with lock.restarting(before.folder):
                if lock.stop_asked(before.folder):
                    raise StopAskedError("stop")
                now = replace(self.around, now=time.time(), token=random_source.token_hex(4), settings=before.settings)
                launch.again(self.asked, nodes, bool(self.stopping), before, now)
                self._take_over()
        except StopAskedError:
            raise
        except TorchfabError as error:
            self._take_over()
            self._note_failed_launch(error, before)
            return
        record = self.record
        master = record.chosen.get("master", "?")
        self.note("running", f"attempt {record.attempt} runs: {record.world_size} ranks, master {master}")

    def _take_over(self) -> None:
        settings = self.record.settings
        self.record = replace(self.around.records.get(self.record.name), settings=settings)

    def _note_failed_launch(self, error: TorchfabError, before: Record) -> None:
        """Note a launch that failed as the end of an attempt, whether or not its record was written."""
        bad: dict[str, str] = {}
        words = error.message
        if isinstance(error, HostsFailedError):
            bad = {host: reason.message.splitlines()[0] for host, reason in error.reasons.items()}
            words += "; " + "; ".join(f"{host}: {reason}" for host, reason in list(bad.items())[:3])
            # Only what doctor finds as well is held against a node.
            nodes = [node for node in self.asked.nodes if node.label in bad]
            bad = dict(inquest.sick(nodes, self.asked, self.record.settings, 0.0))
        code = 1
        ending = Ending(self.record.attempt, "launch", "launch", words, bad=bad, code=code)
        if self.record.job_id != before.job_id:
            self._stop_rest()
        self.note(story.ENDED, f"it could not be launched: {words}", **story.of_ending(ending))

    # ---- the end

    def _end(self, ending: Ending, decision: Decision, page_of_why: str) -> int:
        code = ending.code if ending.code is not None else int(ending.kind != "succeeded")
        self.record.remember(*_state(ending, code), True)
        restarts = self.record.attempt - 1
        after = "" if not restarts else f" after {restarts} restart{'s' if restarts > 1 else ''}"
        if ending.kind in ("succeeded", "stopped"):
            self.note("end", f"job {self.record.name} {_ENDED[ending.kind]}{after}", code=code)
        else:
            self.note("end", f"job {self.record.name} is given up{after}: {decision.reason}", code=code)
            if page_of_why:
                say(page_of_why)
            tell(f"exit code {code}; fab why {self.record.name} | fab logs {self.record.name}")
        self._say_what_is_left()
        return code

    def _end_stopped(self) -> int:
        self.note("end", f"job {self.record.name} was asked to stop: no restart", code=143)
        self._say_what_is_left()
        return 143

    def _say_what_is_left(self) -> None:
        self.catch_up()
        for attempt, hosts in self.stopping.items():
            names = fold(sorted(hosts))
            tell(f"attempt {attempt} may still run on {names}; when it is back: fab stop {self.record.name}")


_ENDED = {"succeeded": "succeeded", "stopped": "was stopped"}


def _state(ending: Ending, code: int) -> tuple[str, int]:
    return (ending.kind if ending.kind in _ENDED else "failed"), code
