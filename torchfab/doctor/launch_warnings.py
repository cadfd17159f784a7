"""What phase one of a launch saw in passing that is worth a warning; pure. A warning never stops a launch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torchfab.core.specs import Node
from torchfab.doctor.consistency import clocks
from torchfab.doctor.finding import WARNING, Finding, differing, merged
from torchfab.doctor.model import Clock, NodeReport
from torchfab.doctor.node import nearly_full

SKEWED_CLOCK_S = 3.0  # phase one takes the time once, with the whole phase as its round trip


def warnings(
    nodes: Sequence[Node], told: Mapping[int, Mapping[str, Any]], ahead: Mapping[int, Clock]
) -> tuple[Finding, ...]:
    """Return the warnings of a launch.

    Parameters
    ----------
    told : Mapping of int to Mapping
        What each node told in phase one, by its rank.
    ahead : Mapping of int to Clock
        Each node's clock, by its rank.
    """
    found = [
        *(finding for node in nodes for finding in _of_node(node.label, told[node.rank].get("glance") or {})),
        *_torch(nodes, told),
        *_script(nodes, told),
        *_clocks(nodes, ahead),
    ]
    return merged(found, [node.label for node in nodes])


def _of_node(host: str, glance: Mapping[str, Any]) -> Iterator[Finding]:
    disk, holders = glance.get("disk"), glance.get("holders", ())
    if disk:
        yield from nearly_full(host, disk, "logs of jobs")
    if holders:
        shown = ", ".join(f"pid {each['pid']}" for each in holders[:4])
        more = f" and {len(holders) - 4} more" if len(holders) > 4 else ""
        what = f"other processes hold its GPUs: {shown}{more}"
        yield Finding("gpu-busy", WARNING, (host,), what, fix="end them if they are left over: fab doctor names them")


def _torch(nodes: Sequence[Node], told: Mapping[int, Mapping[str, Any]]) -> list[Finding]:
    found = {node.label: told[node.rank].get("versions", {}).get("torch") for node in nodes}
    values = {host: version for host, version in found.items() if version}
    what = "torch is another version than elsewhere"
    return differing("torch-differs", WARNING, values, what, "install the same version everywhere, or give --python")


def _script(nodes: Sequence[Node], told: Mapping[int, Mapping[str, Any]]) -> list[Finding]:
    digests = {node.label: (told[node.rank].get("glance") or {}).get("script") for node in nodes}
    values = {host: digest[:8] for host, digest in digests.items() if digest}
    what = "the script is not the same file as elsewhere"
    return differing("code-differs", WARNING, values, what, "copy the code to all nodes: fab sync")


def _clocks(nodes: Sequence[Node], ahead: Mapping[int, Clock]) -> Iterator[Finding]:
    seen = [NodeReport(node, clock=ahead[node.rank]) for node in nodes if node.rank in ahead]
    for finding in clocks(seen, SKEWED_CLOCK_S):
        yield Finding(**{**vars(finding), "severity": WARNING})
