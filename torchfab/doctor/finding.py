"""One thing that is wrong, and how many of them become one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

# An error keeps a launch from starting or finishing, or from computing what it should; a warning may; a note is news.
ERROR, WARNING, NOTE = "error", "warning", "note"
_ORDER = (ERROR, WARNING, NOTE)


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong, on some hosts alike.

    Parameters
    ----------
    kind : str
        What it is, for machines: `clock-skew`.
    severity : str
        ERROR, WARNING or NOTE.
    hosts : tuple of str
        Whom it is about, as written in the hosts file.
    what : str
        What is wrong, in one line.
    expected, found : str
        What would be right (often: what most nodes have), and what is there; empty where `what` says it.
    fix : str
        What to do about it.
    """

    kind: str
    severity: str
    hosts: tuple[str, ...]
    what: str
    expected: str = ""
    found: str = ""
    fix: str = ""

    def as_json(self) -> dict[str, Any]:
        """Return it as JSON."""
        return {**asdict(self), "hosts": list(self.hosts)}


def merged(findings: Iterable[Finding], hosts: Sequence[str]) -> tuple[Finding, ...]:
    """Return findings that differ in their hosts only as one, hosts in the order of `hosts`, the worst first."""
    alike: dict[Finding, set[str]] = {}
    for finding in findings:
        alike.setdefault(replace(finding, hosts=()), set()).update(finding.hosts)
    order = {host: index for index, host in enumerate(hosts)}
    found = [
        replace(finding, hosts=tuple(sorted(about, key=lambda host: order.get(host, -1))))
        for finding, about in alike.items()
    ]
    return tuple(sorted(found, key=lambda finding: _ORDER.index(finding.severity)))


def odd_ones(values: Mapping[str, str]) -> tuple[str, dict[str, list[str]]]:
    """Return what most hosts have, and the hosts that have something else, by what they have.

    Where two values are as frequent, the one of the earlier host counts as right: node 0 is in every job.
    """
    counts = Counter(values.values())
    usual = max(counts, key=lambda value: counts[value]) if counts else ""  # max takes the first of equals
    others: dict[str, list[str]] = {}
    for host, value in values.items():
        if value != usual:
            others.setdefault(value, []).append(host)
    return usual, others


def differing(kind: str, severity: str, values: Mapping[str, str], what: str, fix: str) -> list[Finding]:
    """Return a finding for each group of hosts that has another value than most."""
    usual, others = odd_ones(values)
    return [
        Finding(kind, severity, tuple(hosts), what, usual or "none", value or "none", fix)
        for value, hosts in others.items()
    ]
