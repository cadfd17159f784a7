"""Profile the ranks of a job at one instant, and fetch their traces.

The instant is given in the time of each node: its clock is read several times, and the reading with the shortest round
trip counts, which is wrong by half of that at most.
"""

from __future__ import annotations

import base64
import binascii
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from torchfab.core.clock import Clock
from torchfab.core.errors import HostError, TorchfabError
from torchfab.core.specs import Node
from torchfab.profiling.model import Call, JobProfile, RankProfile, Unprofiled
from torchfab.records import Record
from torchfab.runtimes.tmux_logs import address
from torchfab.transport.clock import read_clock
from torchfab.transport.messages.profile import (
    ProfileRequest,
    ProfileResultRequest,
    RankProfileReport,
    RemoveTracesRequest,
    TraceChunkRequest,
)
from torchfab.transport.session import Session
from torchfab.transport.session_pool import SessionPool

_READINGS = 9  # of a clock
_LEAD_S = 2.0  # until the ranks begin: all nodes have the request, and the ranks are ready
_LEAD_OF_NODE_S = 0.01
_TRACE_S = 120.0  # for the ranks to write their traces


def profile(record: Record, ranks: Sequence[int] | None, seconds: float, folder: Path) -> JobProfile:
    """Profile the ranks of a job.

    Parameters
    ----------
    record : Record
        The job.
    ranks : sequence of int, optional
        Which ranks. None: all.
    seconds : float
        How long.
    folder : Path
        A folder for the traces; it exists.

    Returns
    -------
    JobProfile
        The traces, ranks without one, and nodes that did not answer.
    """
    with SessionPool(record.nodes, record.settings) as sessions:
        job = _Profile(record, ranks, seconds, folder, _clocks(sessions, record.settings.answer_timeout_s))
        for _ in sessions.map(job.begin):  # a node that fails here fails below, too
            pass
        results = list(sessions.map(job.fetch))
    reports = [(node, each) for node, found in results if not isinstance(found, TorchfabError) for each in found]
    return JobProfile(
        tuple(sorted((job.profile_of(*each) for each in reports if not each[1].problem), key=_rank)),
        tuple(
            sorted(
                (Unprofiled(each.rank, node.label, each.problem) for node, each in reports if each.problem), key=_rank
            )
        ),
        _largest_error(job.clocks.values()),
        {node.label: found.message.splitlines()[0] for node, found in results if isinstance(found, TorchfabError)},
    )


def _rank(each: RankProfile | Unprofiled) -> int:
    return each.rank


class _Profile:
    """A profile of a job: what each node is asked for."""

    def __init__(
        self,
        record: Record,
        ranks: Sequence[int] | None,
        seconds: float,
        folder: Path,
        clocks: Mapping[int, Clock],
    ) -> None:
        self.record, self.seconds, self.folder, self.clocks = record, seconds, folder, clocks
        self.ranks = None if ranks is None else list(ranks)
        self.answer_s = record.settings.answer_timeout_s
        self.lead_s = _LEAD_S + _LEAD_OF_NODE_S * len(record.nodes)
        self.start = time.time() + self.lead_s

    def begin(self, node: Node, session: Session) -> None:
        """Let a node start the profile."""
        self._check_clock(node)
        request = ProfileRequest(
            **address(self.record, node),
            ranks=self.ranks,
            start=self.start + self.clocks[node.rank].ahead_s,
            seconds=self.seconds,
            lead_s=self.lead_s,
            timeout_s=_TRACE_S,
        )
        session.request(request, self.answer_s)

    def fetch(self, node: Node, session: Session) -> list[RankProfileReport]:
        """Wait for the profiles of a node, and fetch the traces."""
        self._check_clock(node)
        where = address(self.record, node)
        wait_s = self.lead_s + self.seconds + _TRACE_S + self.answer_s
        reports = session.request(ProfileResultRequest(**where), wait_s).ranks
        for each in reports:
            if not each.problem:
                _copy(self.record, node, each, _path(self.folder, each.rank), session)
        session.request(RemoveTracesRequest(**where), self.answer_s)
        return reports

    def _check_clock(self, node: Node) -> None:
        if node.rank not in self.clocks:
            raise HostError("its clock could not be read")

    def profile_of(self, node: Node, report: RankProfileReport) -> RankProfile:
        """Return the profile of a rank whose trace is there."""
        calls = tuple(Call(each.group, each.number, each.operation, each.time) for each in report.calls)
        times = (report.begun, report.ended, self.clocks[node.rank].ahead_s)
        return RankProfile(report.rank, node.label, _path(self.folder, report.rank), *times, calls, report.devices)


def _clocks(sessions: SessionPool, timeout_s: float) -> dict[int, Clock]:
    found = sessions.map(lambda _, session: read_clock(session, timeout_s, _READINGS))
    return {node.rank: clock for node, clock in found if isinstance(clock, Clock)}


def _largest_error(clocks: Iterable[Clock]) -> float:
    """Return how far two clocks may be apart after the correction: two nodes, each with its uncertainty."""
    two = sorted((each.within_s for each in clocks), reverse=True)[:2]
    return sum(two) if len(two) > 1 else 0.0


def _path(folder: Path, rank: int) -> Path:
    return folder / f"{rank}.json.gz"


def _copy(record: Record, node: Node, report: RankProfileReport, path: Path, session: Session) -> None:
    # Without the key of the job's secrets, by which the node would look for them in the data.
    fields, done = {**address(record, node), "mask_key": "", "rank": report.rank, "pid": report.pid}, 0
    with path.open("wb") as file:
        while done < report.size:
            answer = session.request(TraceChunkRequest(**fields, offset=done), record.settings.answer_timeout_s)
            try:
                data = base64.b64decode(answer.data, validate=True)
            except binascii.Error as error:
                raise HostError(f"the trace of rank {report.rank} is not base64: {error}") from None
            if not data or done + len(data) > report.size:
                raise HostError(f"the trace of rank {report.rank} has changed while it was read")
            done += file.write(data)
