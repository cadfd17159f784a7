"""Launch a supervised job again: choose its nodes, wait, and launch under the lock that `fab stop` waits for."""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import field, replace

from torchfab.core.console import write_err
from torchfab.core.errors import HostsFailedError, TorchfabError
from torchfab.core.format import duration
from torchfab.core.inventory import fold
from torchfab.core.lazy_dataclass import dataclass
from torchfab.core.specs import Node
from torchfab.launching import launch
from torchfab.launching.context import CommandContext
from torchfab.records import Record
from torchfab.records.launch_request import LaunchRequest
from torchfab.supervise import gpu_memory, history, job_locks, outcome
from torchfab.supervise.event_journal import EventJournal
from torchfab.supervise.model import AttemptOutcome, Decision
from torchfab.supervise.orphans import OrphanedAttempts
from torchfab.supervise.quarantine import Lemon, Quarantine

_POLL_S = 0.1


class StopRequestedError(TorchfabError):
    """`fab stop` was run before the job was launched again."""


@dataclass
class Relauncher:
    """Launches one job again, any number of times.

    Parameters
    ----------
    request : LaunchRequest
        The job.
    ctx : CommandContext
        Configuration, environment and records of this command.
    journal : EventJournal
        The job's events and its current record.
    orphans : OrphanedAttempts
        Where earlier attempts may still run.
    """

    request: LaunchRequest
    ctx: CommandContext
    journal: EventJournal
    orphans: OrphanedAttempts
    unwritten: set[str] = field(default_factory=set)  # hosts in quarantine for this job only

    @property
    def record(self) -> Record:
        """The current attempt."""
        return self.journal.record

    def restart(self, decision: Decision) -> str:
        """Launch the job again on healthy nodes.

        A launch that fails is recorded as the outcome of an attempt. The caller decides on it next.

        Parameters
        ----------
        decision : Decision
            The nodes to replace, and the wait before the launch.

        Returns
        -------
        str
            Why a restart is impossible. Empty if the job was launched, or the launch failed.

        Raises
        ------
        StopRequestedError
            `fab stop` was run.
        """
        self._quarantine(decision.drop)
        self._wait(decision)
        nodes = self._healthy_nodes()
        if nodes is None:
            return self._describe_shortage()
        if self.orphans.hosts:
            self.orphans.stop_reachable(all_hosts=True)
        self._await_gpu_memory(nodes)
        hosts, following = [node.label for node in nodes], self.record.attempt + 1
        text = f"{decision.reason}: attempt {following} on {fold(hosts)}"
        self.journal.note(history.RESTART, text, replaced=bool(decision.drop), hosts=hosts, next=following)
        self._launch(nodes)
        return ""

    def _wait(self, decision: Decision) -> None:
        if decision.wait_s >= 1:
            self.journal.note("waiting", f"waiting {duration(decision.wait_s)} before {decision.reason}")
        deadline = time.monotonic() + decision.wait_s
        while time.monotonic() < deadline:
            self._check_stop()
            time.sleep(_POLL_S)

    def _await_gpu_memory(self, nodes: Sequence[Node]) -> None:
        timeout_s = float(self.ctx.config["gpu_memory_timeout_s"])
        first = min((float(event["time"]) for event in self.journal.events), default=self.record.created)
        gpu_memory.await_free(nodes, self.record.settings, self.journal, first, timeout_s, self._check_stop)

    def _check_stop(self) -> None:
        if job_locks.stop_requested(self.record.folder):
            raise StopRequestedError("a stop was requested")

    # ---- the nodes

    def _quarantine(self, drop: Mapping[str, str]) -> None:
        if not drop:
            return
        now, name = time.time(), self.record.name
        try:
            Quarantine(self.ctx.records.root).add({host: Lemon(reason, now, name) for host, reason in drop.items()})
        except TorchfabError as error:  # at least this job leaves them out
            self.unwritten |= set(drop)
            write_err(f"the list of lemons could not be written: {error}")
        for host, reason in drop.items():
            self.journal.note("lemon", f"{host} is quarantined from now on (fab lemons): {reason}", hosts=[host])

    def _usable(self) -> list[Node]:
        try:
            lemons = Quarantine(self.ctx.records.root).all()
        except TorchfabError as error:
            write_err(f"lemons of other jobs are unknown: {error}")
            lemons = {}
        return [node for node in self.request.nodes if node.label not in {*lemons, *self.unwritten}]

    def _healthy_nodes(self) -> tuple[Node, ...] | None:
        """Return the first nodes that are not in quarantine and pass doctor's checks; None if there are too few."""
        healthy: set[str] = set()
        while True:
            usable = self._usable()
            if len(usable) < self._min_count():
                return None
            selected = tuple(usable[: self.request.count])
            unchecked = [node for node in selected if node.label not in healthy]
            if not unchecked:
                return selected
            unhealthy = outcome.unhealthy_nodes(unchecked, self.request, self.record.settings, 0.0)
            healthy |= {node.label for node in unchecked if node.label not in unhealthy}
            self._quarantine(unhealthy)

    def _min_count(self) -> int:
        """Return the smallest number of nodes that the job runs on; an elastic job needs fewer than requested."""
        return min(self.request.count, self.record.min_nodes or self.request.count)

    def _describe_shortage(self) -> str:
        usable = [node.label for node in self._usable()]
        names = fold([node.label for node in self.request.nodes if node.label not in usable])
        return f"no spare is left: {self.request.count} nodes are required, {len(usable)} are usable; lemons: {names}"

    # ---- the launch

    def _launch(self, nodes: Sequence[Node]) -> None:
        before = self.record
        ctx = replace(self.ctx, now=time.time(), token=secrets.token_hex(4), settings=before.settings)
        try:
            with job_locks.restarting(before.folder):
                self._check_stop()
                launch.relaunch(self.request, nodes, bool(self.orphans.hosts), before, ctx)
                self._reload_record()
        except StopRequestedError:
            raise
        except TorchfabError as error:
            self._reload_record()
            self._note_failure(error)
            return
        record = self.record
        master = record.defaults.get("master", "?")
        self.journal.note("running", f"attempt {record.attempt} runs: {record.world_size} ranks, master {master}")

    def _reload_record(self) -> None:
        settings = self.record.settings
        self.journal.record = replace(self.ctx.records.get(self.record.name), settings=settings)

    def _note_failure(self, error: TorchfabError) -> None:
        """Record a failed launch as the outcome of an attempt, whether or not its record was written.

        A node on which it failed counts as unhealthy only if doctor finds something there as well.
        """
        words, bad = error.message, {}
        if isinstance(error, HostsFailedError):
            first = [f"{host}: {reason.message.splitlines()[0]}" for host, reason in list(error.reasons.items())[:3]]
            words = "; ".join([words, *first])
            nodes = [node for node in self.request.nodes if node.label in error.reasons]
            bad = dict(outcome.unhealthy_nodes(nodes, self.request, self.record.settings, 0.0))
        failed = AttemptOutcome(self.record.attempt, "launch", "launch", words, bad=bad, code=1)
        self.journal.note(history.ENDED, f"it could not be launched: {words}", **history.outcome_as_json(failed))
