"""Launch a supervised job again: on which nodes, after what wait, under the lock that `fab stop` waits for."""

from __future__ import annotations

import secrets as random_source
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from torchfab.core.console import write_err
from torchfab.core.errors import HostsFailedError, TorchfabError
from torchfab.core.inventory import fold
from torchfab.core.specs import Node
from torchfab.core.status import duration
from torchfab.launch import launch
from torchfab.launch.context import CommandContext
from torchfab.records import Record
from torchfab.records.launch_request import LaunchRequest
from torchfab.supervise import history, lease, outcome
from torchfab.supervise.event_journal import EventJournal
from torchfab.supervise.model import AttemptOutcome, Decision
from torchfab.supervise.orphans import OrphanedAttempts
from torchfab.supervise.quarantine import Lemon, Quarantine

_LOOK_S = 0.1


class StopAskedError(TorchfabError):
    """Somebody said `fab stop` while the job was to be launched again."""


@dataclass
class Relauncher:
    """Launch one job again and again.

    Parameters
    ----------
    asked : Asked
        What it takes.
    ctx : CommandContext
        Where we are.
    scribe : Scribe
        Is told; its record is the current attempt.
    stragglers : Stragglers
        Where earlier attempts may still run.
    """

    asked: LaunchRequest
    ctx: CommandContext
    scribe: EventJournal
    stragglers: OrphanedAttempts
    unwritten: set[str] = field(default_factory=set)

    @property
    def record(self) -> Record:
        """The current attempt."""
        return self.scribe.record

    def restart(self, decision: Decision) -> str:
        """Launch it again, on healthy nodes; return why not, where that cannot be, else nothing.

        A launch that fails is noted as an ending, and is the next thing to decide on.

        Raises
        ------
        StopAskedError
            Somebody has asked to stop the job.
        """
        self._leave_out(decision.drop)
        self._wait(decision)
        nodes = self._healthy_nodes()
        if nodes is None:
            return self._too_few()
        if self.stragglers.hosts:
            self.stragglers.catch_up(all_hosts=True)
        hosts, following = [node.label for node in nodes], self.record.attempt + 1
        text = f"{decision.reason}: attempt {following} on {fold(hosts)}"
        self.scribe.note(history.RESTART, text, replaced=bool(decision.drop), hosts=hosts, next=following)
        self._launch(nodes)
        return ""

    def _wait(self, decision: Decision) -> None:
        if decision.wait_s >= 1:
            self.scribe.note("waiting", f"waits {duration(decision.wait_s)} before {decision.reason}")
        deadline = time.monotonic() + decision.wait_s
        while time.monotonic() < deadline:
            self._heed_stop()
            time.sleep(_LOOK_S)

    def _heed_stop(self) -> None:
        if lease.stop_asked(self.record.folder):
            raise StopAskedError("it was asked to stop")

    # ---- on which nodes

    def _leave_out(self, drop: Mapping[str, str]) -> None:
        if not drop:
            return
        now, name = time.time(), self.record.name
        try:
            Quarantine(self.ctx.records.root).add({host: Lemon(why, now, name) for host, why in drop.items()})
        except TorchfabError as error:  # left out of this job at least
            self.unwritten |= set(drop)
            write_err(f"the list of lemons could not be written: {error}")
        for host, reason in drop.items():
            self.scribe.note("lemon", f"{host} is left out from now on (fab lemons): {reason}", hosts=[host])

    def _usable(self) -> list[Node]:
        try:
            lemons = Quarantine(self.ctx.records.root).all()
        except TorchfabError as error:
            write_err(f"lemons of other jobs are not known: {error}")
            lemons = {}
        return [node for node in self.asked.nodes if node.label not in {*lemons, *self.unwritten}]

    def _healthy_nodes(self) -> tuple[Node, ...] | None:
        """Return the first nodes that are no lemons and doctor finds fit; None where there are too few."""
        fit: set[str] = set()
        while True:
            usable = self._usable()
            if len(usable) < self._least():
                return None
            chosen = tuple(usable[: self.asked.count])
            unknown = [node for node in chosen if node.label not in fit]
            if not unknown:
                return chosen
            sick = outcome.sick(unknown, self.asked, self.record.settings, 0.0)
            fit |= {node.label for node in unknown if node.label not in sick}
            self._leave_out(sick)

    def _least(self) -> int:
        """Return with how few nodes it may run: an elastic job with fewer than it was asked for."""
        return min(self.asked.count, self.record.min_nodes or self.asked.count)

    def _too_few(self) -> str:
        usable = [node.label for node in self._usable()]
        names = fold([node.label for node in self.asked.nodes if node.label not in usable])
        return f"no spare is left: {self.asked.count} nodes are wanted, {len(usable)} are fit; lemons: {names}"

    # ---- the launch itself

    def _launch(self, nodes: Sequence[Node]) -> None:
        before = self.record
        now = replace(self.ctx, now=time.time(), token=random_source.token_hex(4), settings=before.settings)
        try:
            with lease.restarting(before.folder):
                self._heed_stop()
                launch.relaunch(self.asked, nodes, bool(self.stragglers.hosts), before, now)
                self._take_over()
        except StopAskedError:
            raise
        except TorchfabError as error:
            self._take_over()
            self._note_failure(error)
            return
        record = self.record
        master = record.defaults.get("master", "?")
        self.scribe.note("running", f"attempt {record.attempt} runs: {record.world_size} ranks, master {master}")

    def _take_over(self) -> None:
        settings = self.record.settings
        self.scribe.record = replace(self.ctx.records.get(self.record.name), settings=settings)

    def _note_failure(self, error: TorchfabError) -> None:
        """Note a launch that failed as an ending, whether or not its record was written.

        A node on which it failed is held to be sick only where doctor finds something there as well.
        """
        words, bad = error.message, {}
        if isinstance(error, HostsFailedError):
            first = [f"{host}: {reason.message.splitlines()[0]}" for host, reason in list(error.reasons.items())[:3]]
            words = "; ".join([words, *first])
            nodes = [node for node in self.asked.nodes if node.label in error.reasons]
            bad = dict(outcome.sick(nodes, self.asked, self.record.settings, 0.0))
        ending = AttemptOutcome(self.record.attempt, "launch", "launch", words, bad=bad, code=1)
        self.scribe.note(history.ENDED, f"it could not be launched: {words}", **history.of_ending(ending))
