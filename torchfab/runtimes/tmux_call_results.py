"""Fetch the results of a function call from the nodes of a job, in chunks, into local files."""

from __future__ import annotations

import base64
import binascii
from pathlib import Path
from typing import Literal

from torchfab.core.errors import HostError, HostsFailedError, TorchfabError
from torchfab.core.lazy_dataclass import dataclass
from torchfab.core.specs import Node
from torchfab.records import Record
from torchfab.runtimes.tmux_logs import address
from torchfab.transport.messages.calls import ChunkRequest, OutcomesRequest, RankOutcome
from torchfab.transport.session import Session
from torchfab.transport.session_pool import SessionPool, request_all

Kind = Literal["result", "failure"]


@dataclass(frozen=True)
class Outcome:
    """How the call ended on a rank, and on which node it ran."""

    node: Node
    of_rank: RankOutcome


def outcomes(record: Record) -> dict[int, Outcome]:
    """Query all nodes for how the call ended on their ranks.

    Parameters
    ----------
    record : Record
        The job.

    Returns
    -------
    dict of int to Outcome
        By rank; ranks without a result, because they were killed or still run, are missing.

    Raises
    ------
    HostsFailedError
        Nodes did not answer.
    """
    found: dict[int, Outcome] = {}
    failed: dict[str, TorchfabError] = {}
    timeout_s = record.settings.answer_timeout_s
    for node, result in request_all(
        record.nodes, record.settings, lambda node: OutcomesRequest(**address(record, node)), timeout_s
    ):
        if isinstance(result, TorchfabError):
            failed[node.label] = result
        else:
            found.update({each.rank: Outcome(node, each) for each in result.value.ranks})
    if failed:
        raise HostsFailedError(
            f"{len(failed)} of {len(record.nodes)} hosts did not report the results of their ranks", failed
        )
    return dict(sorted(found.items()))


def fetch(record: Record, wanted: dict[int, Outcome], kind: Kind, folder: Path) -> dict[int, Path]:
    """Copy the pickled results, or exceptions, of some ranks into a folder of this machine.

    Parameters
    ----------
    record : Record
        The job.
    wanted : dict of int to Outcome
        The ranks; each has a file of this kind.
    kind : {"result", "failure"}
        Which file of each rank.
    folder : Path
        The folder; it exists.

    Returns
    -------
    dict of int to Path
        The files by rank.

    Raises
    ------
    HostsFailedError
        Nodes did not send them.
    """
    by_node: dict[int, list[Outcome]] = {}
    for each in wanted.values():
        by_node.setdefault(each.node.rank, []).append(each)
    nodes = [node for node in record.nodes if node.rank in by_node]
    paths = {rank: folder / f"{kind}-{rank}.pickle" for rank in wanted}

    def copy(node: Node, session: Session) -> None:
        for each in by_node[node.rank]:
            _copy(record, each, kind, paths[each.of_rank.rank], session)

    with SessionPool(nodes, record.settings) as sessions:
        failed = {node.label: error for node, error in sessions.map(copy) if isinstance(error, TorchfabError)}
    if failed:
        raise HostsFailedError(f"{len(failed)} of {len(nodes)} hosts did not send the results of their ranks", failed)
    return paths


def _copy(record: Record, outcome: Outcome, kind: Kind, path: Path, session: Session) -> None:
    size, done = outcome.of_rank.files[kind], 0
    # Without the redaction key: with it, the node would search the data for the job's secrets.
    fields = {**address(record, outcome.node), "mask_key": ""}
    with path.open("wb") as file:
        while done < size:
            request = ChunkRequest(**fields, rank=outcome.of_rank.rank, kind=kind, offset=done)
            answer = session.request(request, record.settings.answer_timeout_s)
            try:
                data = base64.b64decode(answer.data, validate=True)
            except binascii.Error as error:
                raise HostError(f"the {kind} of rank {outcome.of_rank.rank} is not base64: {error}") from None
            if not data or done + len(data) > size:
                raise HostError(f"the {kind} of rank {outcome.of_rank.rank} has changed while it was read")
            done += file.write(data)
