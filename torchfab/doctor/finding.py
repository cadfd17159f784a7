"""A finding, and merging equal findings of several hosts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from torchfab.core.lazy_dataclass import dataclass

# ERROR: a launch cannot start, cannot finish, or computes wrong results. WARNING: it may. NOTE: information.
ERROR, WARNING, NOTE = "error", "warning", "note"
_ORDER = (ERROR, WARNING, NOTE)


@dataclass(frozen=True)
class Finding:
    """A problem that some hosts share. The field names are JSON keys.

    Parameters
    ----------
    kind : str
        The machine-readable name: `clock-skew`.
    severity : str
        ERROR, WARNING or NOTE.
    hosts : tuple of str
        The hosts, as written in the hosts file.
    what : str
        The problem, in one line.
    expected, found : str
        The right value (often the most frequent one) and the actual value. Empty if `what` contains them.
    fix : str
        How to fix it.
    """

    kind: str
    severity: str
    hosts: tuple[str, ...]
    what: str
    expected: str = ""
    found: str = ""
    fix: str = ""

    def as_json(self) -> dict[str, Any]:
        """Convert to a JSON object.

        Returns
        -------
        dict
            The fields by name.
        """
        return {**asdict(self), "hosts": list(self.hosts)}


def merge_findings(findings: Iterable[Finding], hosts: Sequence[str]) -> tuple[Finding, ...]:
    """Merge findings that are equal but for their hosts.

    Parameters
    ----------
    findings : iterable of Finding
        Findings about one or more hosts.
    hosts : sequence of str
        All hosts, in the order in which findings list them.

    Returns
    -------
    tuple of Finding
        The worst first.
    """
    groups: dict[Finding, set[str]] = {}
    for finding in findings:
        groups.setdefault(replace(finding, hosts=()), set()).update(finding.hosts)
    order = {host: index for index, host in enumerate(hosts)}
    merged = [
        replace(finding, hosts=tuple(sorted(about, key=lambda host: order.get(host, -1))))
        for finding, about in groups.items()
    ]
    return tuple(sorted(merged, key=lambda finding: _ORDER.index(finding.severity)))


def minorities(values: Mapping[str, str]) -> tuple[str, dict[str, list[str]]]:
    """Find the hosts whose value differs from the most frequent one.

    Among equally frequent values, the value of the earlier host counts as right, because node 0 is in every job.

    Parameters
    ----------
    values : Mapping of str to str
        The value of each host.

    Returns
    -------
    str
        The most frequent value.
    dict of str to list of str
        The other hosts, by value.
    """
    counts = Counter(values.values())
    usual = max(counts, key=lambda value: counts[value]) if counts else ""  # max takes the first of equals
    others: dict[str, list[str]] = {}
    for host, value in values.items():
        if value != usual:
            others.setdefault(value, []).append(host)
    return usual, others


def minority_findings(kind: str, severity: str, values: Mapping[str, str], what: str, fix: str) -> list[Finding]:
    """Make a finding for each group of hosts whose value differs from the most frequent one.

    Parameters
    ----------
    kind, severity, what, fix : str
        As in Finding.
    values : Mapping of str to str
        The value of each host.

    Returns
    -------
    list of Finding
        One per differing value.
    """
    usual, others = minorities(values)
    return [
        Finding(kind, severity, tuple(hosts), what, usual or "none", value or "none", fix)
        for value, hosts in others.items()
    ]
