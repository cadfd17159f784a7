"""Collect the nodes' reports in two rounds over one connection per node: a probe, then the connection to node 0."""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from dataclasses import replace

from torchfab.config.connection_settings import ConnectionSettings
from torchfab.core.clock import Clock
from torchfab.core.errors import TorchfabError
from torchfab.core.specs import Node
from torchfab.doctor import connectivity, consistency, gpu, node
from torchfab.doctor.finding import Finding, merge_findings
from torchfab.doctor.model import CheckRequirements, NodeReport, Report
from torchfab.transport.clock import read_clock
from torchfab.transport.messages.doctor import (
    ConnectivityRequest,
    ListeningPort,
    ProbeAnswer,
    ProbeRequest,
)
from torchfab.transport.session import Session
from torchfab.transport.session_pool import SessionPool


def examine(nodes: Sequence[Node], settings: ConnectionSettings, requirements: CheckRequirements) -> Report:
    """Check all nodes concurrently. A node that cannot be reached is a finding, not an exception.

    Parameters
    ----------
    nodes : sequence of Node
        The nodes of the job, node 0 first.
    settings : ConnectionSettings
        How to connect to them.
    requirements : CheckRequirements
        What the job needs.

    Returns
    -------
    Report
        Findings and reports of all nodes.
    """
    begun = time.monotonic()
    with SessionPool(nodes, settings) as sessions:
        reports = _probe(sessions, requirements)
        reports = _check_connectivity(sessions, requirements, reports)
    ordered = tuple(reports[each.rank] for each in nodes)
    return Report(ordered, findings(ordered, requirements, settings), time.monotonic() - begun)


def findings(
    nodes: Sequence[NodeReport], requirements: CheckRequirements, settings: ConnectionSettings
) -> tuple[Finding, ...]:
    """Derive the findings from the nodes' reports. Pure.

    Parameters
    ----------
    nodes : sequence of NodeReport
        All nodes, node 0 first.
    requirements : CheckRequirements
        What the job needs.
    settings : ConnectionSettings
        How the nodes were connected to.

    Returns
    -------
    tuple of Finding
        The worst first.
    """
    found = [
        *(finding for each in nodes for finding in node.findings(each, requirements.on(each.node))),
        *(finding for each in nodes for finding in gpu.findings(each)),
        *consistency.findings(nodes, requirements),
        *connectivity.findings(nodes, requirements),
    ]
    return merge_findings(found, [each.host for each in nodes])


# ---- the first round


def _probe(sessions: SessionPool, requirements: CheckRequirements) -> dict[int, NodeReport]:
    token = f".torchfab-doctor-{secrets.token_hex(6)}"
    first = sessions.nodes[0].rank

    def act(each: Node, session: Session) -> tuple[Clock, ProbeAnswer]:
        clock = read_clock(session, sessions.settings.answer_timeout_s)
        wanted = requirements.on(each)
        request = _probe_request(wanted, sessions.settings, token if each.rank == first else "", each.rank == first)
        setup_s = wanted.setup_timeout_s if wanted.setup else 0
        return clock, session.request(request, sessions.settings.answer_timeout_s + setup_s)

    reports = {}
    for each, result in sessions.map(act):
        connect_s = sessions.connect_s.get(each.rank)
        if isinstance(result, TorchfabError):
            reports[each.rank] = NodeReport(each, error=result, connect_s=connect_s)
        else:
            reports[each.rank] = NodeReport(each, result[1], clock=result[0], connect_s=connect_s)
    return reports


def _probe_request(
    requirements: CheckRequirements, settings: ConnectionSettings, token: str, listens: bool
) -> ProbeRequest:
    return ProbeRequest(
        python=requirements.python,
        python_timeout_s=settings.answer_timeout_s * 2 / 3,
        python_path=requirements.env.get("PYTHONPATH"),
        workdir=requirements.workdir,
        node_dir=requirements.node_dir,
        names=None if requirements.names is None else list(requirements.names),
        variables=list(connectivity.VARIABLES),
        token=token,
        port=requirements.port if listens else None,
        setup=requirements.setup,
        setup_timeout_s=requirements.setup_timeout_s,
        python_is_default=requirements.python_is_default,
    )


# ---- the second round


def _check_connectivity(
    sessions: SessionPool, requirements: CheckRequirements, reports: dict[int, NodeReport]
) -> dict[int, NodeReport]:
    first = reports[sessions.nodes[0].rank]
    file_listers = consistency.ranks_to_list_files(list(reports.values()))

    port = first.parts.port or ListeningPort()
    places = first.parts.places or {}

    def request(each: Node) -> ConnectivityRequest:
        return ConnectivityRequest(
            address=connectivity.master_address(first.node, requirements),
            port=None if port.problem else port.port,
            greeting=port.greeting,
            timeout_s=sessions.settings.reach_timeout_s,
            tokens={name: place.token for name, place in places.items() if place.token},
            files=each.rank in file_listers,
            workdir=requirements.on(each).workdir,
            names=None if requirements.names is None else list(requirements.names),
        )

    within_s = sessions.settings.answer_timeout_s + sessions.settings.reach_timeout_s
    for each, result in sessions.request(request, within_s):
        before = reports[each.rank]
        if isinstance(result, TorchfabError):
            reports[each.rank] = replace(before, error=before.error or result)
        else:
            reports[each.rank] = replace(before, connectivity=result.value)
    return reports
