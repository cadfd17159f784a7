"""The questions to the nodes, in two rounds over one connection each: look at yourself, then at the way to node 0."""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torchfab.config.connection_settings import ConnectionSettings
from torchfab.core.errors import TorchfabError
from torchfab.core.specs import Node
from torchfab.doctor import connectivity, consistency, gpu, node
from torchfab.doctor.finding import Finding, merged
from torchfab.doctor.model import CheckRequirements, Clock, NodeReport, Report
from torchfab.transport.pool import SessionPool, problem_in
from torchfab.transport.session import Session

CLOCK_SAMPLES = 5


def examine(nodes: Sequence[Node], settings: ConnectionSettings, wanted: CheckRequirements) -> Report:
    """Ask all nodes at once, and return what is wrong with them; what cannot be reached is a finding among others.

    Parameters
    ----------
    wanted : Wanted
        What a job would need of them.
    """
    begun = time.monotonic()
    with SessionPool(nodes, settings) as sessions:
        seen = _look(sessions, wanted)
        seen = _try_the_way(sessions, wanted, seen)
    ordered = tuple(seen[each.rank] for each in nodes)
    return Report(ordered, findings(ordered, wanted, settings), time.monotonic() - begun)


def findings(
    nodes: Sequence[NodeReport], wanted: CheckRequirements, settings: ConnectionSettings
) -> tuple[Finding, ...]:
    """Return what is wrong, from what the nodes told; pure."""
    found = [
        *(finding for each in nodes for finding in node.findings(each, wanted)),
        *(finding for each in nodes for finding in gpu.findings(each)),
        *consistency.findings(nodes, wanted),
        *connectivity.findings(nodes, wanted),
    ]
    return merged(found, [each.host for each in nodes])


# ---- the first round


def _look(sessions: SessionPool, wanted: CheckRequirements) -> dict[int, NodeReport]:
    token = f".torchfab-doctor-{secrets.token_hex(6)}"
    first = sessions.nodes[0].rank

    def act(each: Node, session: Session) -> tuple[Clock, Mapping[str, Any]]:
        clock = read_clock(session, sessions.settings.answer_timeout_s)
        request = _look_request(wanted, sessions.settings, token if each.rank == first else "", each.rank == first)
        told = session.ask(request, sessions.settings.answer_timeout_s)
        if (problem := problem_in(told)) is not None:
            raise problem
        return clock, told

    found = {}
    for each, result in sessions.map(act):
        connect_s = sessions.connect_s.get(each.rank)
        if isinstance(result, TorchfabError):
            found[each.rank] = NodeReport(each, error=result, connect_s=connect_s)
        else:
            found[each.rank] = NodeReport(each, result[1], clock=result[0], connect_s=connect_s)
    return found


def _look_request(wanted: CheckRequirements, settings: ConnectionSettings, token: str, listens: bool) -> dict[str, Any]:
    return {
        "op": "checkup",
        "python": wanted.python,
        "python_timeout_s": settings.answer_timeout_s * 2 / 3,
        "python_path": wanted.env.get("PYTHONPATH"),
        "workdir": wanted.workdir,
        "node_dir": wanted.node_dir,
        "names": None if wanted.names is None else list(wanted.names),
        "variables": list(connectivity.VARIABLES),
        "token": token,
        "port": wanted.port if listens else None,
    }


def read_clock(session: Session, timeout_s: float) -> Clock:
    """Return how a node's clock stands to ours: of several readings that of the shortest round trip, as NTP does."""
    readings = []
    for _ in range(CLOCK_SAMPLES):
        asked, begun = time.time(), time.monotonic()
        there = session.ask({"op": "clock"}, timeout_s)["time"]
        trip_s = time.monotonic() - begun
        readings.append(Clock(there - (asked + trip_s / 2), trip_s / 2))
    return min(readings, key=lambda reading: reading.within_s)


# ---- the second round


def _try_the_way(
    sessions: SessionPool, wanted: CheckRequirements, seen: dict[int, NodeReport]
) -> dict[int, NodeReport]:
    first = seen[sessions.nodes[0].rank]
    asked = consistency.asked_for_files(list(seen.values()))

    def request(each: Node) -> dict[str, Any]:
        port = first.part("port") or {}
        places = first.part("places") or {}
        return {
            "op": "reach",
            "address": connectivity.address_of(first.node, wanted),
            "port": None if port.get("problem") else port.get("port"),
            "greeting": port.get("greeting"),
            "timeout_s": sessions.settings.reach_timeout_s,
            "tokens": {name: place["token"] for name, place in places.items() if place.get("token")},
            "files": each.rank in asked,
            "workdir": wanted.workdir,
            "names": None if wanted.names is None else list(wanted.names),
        }

    within_s = sessions.settings.answer_timeout_s + sessions.settings.reach_timeout_s
    for each, result in sessions.request(request, within_s):
        before = seen[each.rank]
        if isinstance(result, TorchfabError):
            seen[each.rank] = replace(before, error=before.error or result)
        else:
            seen[each.rank] = replace(before, connectivity=result.value)
    return seen
