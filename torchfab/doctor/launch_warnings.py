"""Derive warnings from the nodes' answers in phase one of a launch. Pure. A warning never stops a launch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType

from torchfab.core.clock import Clock
from torchfab.core.flag_values import is_whole
from torchfab.core.specs import Node
from torchfab.doctor import packages
from torchfab.doctor.consistency import clock_findings
from torchfab.doctor.finding import WARNING, Finding, merge_findings, minority_findings
from torchfab.doctor.model import NodeReport
from torchfab.doctor.node import nearly_full
from torchfab.transport.messages.launch import NodeFacts, QuickProbe

SKEWED_CLOCK_S = 3.0  # phase one reads the clock once; the whole phase counts as the round trip


def warnings(
    nodes: Sequence[Node],
    answers: Mapping[int, NodeFacts],
    clock_offsets: Mapping[int, Clock],
    lists: Mapping[str, str] = MappingProxyType({}),
) -> tuple[Finding, ...]:
    """Return the warnings of a launch.

    Parameters
    ----------
    nodes : sequence of Node
        The nodes of the job.
    answers : Mapping of int to NodeFacts
        The answers of phase one, by node rank.
    clock_offsets : Mapping of int to Clock
        The known clock offsets, by node rank.
    lists : Mapping of str to str
        Digests of the project's local package lists, by name. Default: none.

    Returns
    -------
    tuple of Finding
        Of severity WARNING.
    """
    found = [
        *(finding for node in nodes for finding in _node_warnings(node.label, answers[node.rank].glance)),
        *(finding for node in nodes for finding in _devices(node, answers[node.rank].gpus)),
        *_torch(nodes, answers),
        *_script(nodes, answers),
        *packages.findings({node.label: answers[node.rank].packages for node in nodes}, lists),
        *_clocks(nodes, clock_offsets),
    ]
    return merge_findings(found, [node.label for node in nodes])


def _node_warnings(host: str, probe: QuickProbe) -> Iterator[Finding]:
    disk, holders = probe.disk, probe.holders
    if disk:
        yield from nearly_full(host, disk, "logs of jobs")
    if holders:
        shown = ", ".join(f"pid {each.pid}" for each in holders[:4])
        more = f" and {len(holders) - 4} more" if len(holders) > 4 else ""
        what = f"other processes use its GPUs: {shown}{more}"
        yield Finding("gpu-busy", WARNING, (host,), what, fix="end them if they are left over: fab doctor lists them")
    if names := probe.launcher_variables:
        what = f"its login environment has variables of launchers, which ranks do not inherit: {', '.join(names)}"
        yield Finding(
            "launcher-variables", WARNING, (host,), what, fix="remove them from the login shell's files there"
        )


def _devices(node: Node, count: int) -> Iterator[Finding]:
    """Yield warnings about the devices in the hosts file, compared with the number of GPUs of the node."""
    named = f"gpus={','.join(node.gpus)} in {node.origin}"
    if any(is_whole(device) and int(device) >= count for device in node.gpus):
        has = f"{count} GPU{'s' if count != 1 else ''}" if count else "no GPU"
        yield Finding(
            *("gpu-unknown", WARNING, (node.label,), f"{named}: the node has {has}"),
            fix="give existing devices, counted from 0; nvidia-smi -L lists them",
        )
    if node.gpus and node.slots and node.slots > len(node.gpus):
        yield Finding(
            *(
                "gpu-shared",
                WARNING,
                (node.label,),
                f"slots={node.slots}, and {named}: some ranks have no device of their own",
            ),
            fix="give as many devices as slots, or omit slots=",
        )


def _torch(nodes: Sequence[Node], answers: Mapping[int, NodeFacts]) -> list[Finding]:
    versions = {node.label: answers[node.rank].versions.get("torch") for node in nodes}
    values = {host: version for host, version in versions.items() if version}
    what = "the version of torch differs from the other nodes"
    return minority_findings(
        "torch-differs", WARNING, values, what, "install the same version everywhere, or give --python"
    )


def _script(nodes: Sequence[Node], answers: Mapping[int, NodeFacts]) -> list[Finding]:
    digests = {node.label: answers[node.rank].glance.script for node in nodes}
    values = {host: digest[:8] for host, digest in digests.items() if digest}
    what = "the script differs from the other nodes"
    return minority_findings("code-differs", WARNING, values, what, "copy the code to all nodes: fab sync")


def _clocks(nodes: Sequence[Node], clock_offsets: Mapping[int, Clock]) -> Iterator[Finding]:
    reports = [NodeReport(node, clock=clock_offsets[node.rank]) for node in nodes if node.rank in clock_offsets]
    for finding in clock_findings(reports, SKEWED_CLOCK_S):
        yield Finding(**{**vars(finding), "severity": WARNING})
