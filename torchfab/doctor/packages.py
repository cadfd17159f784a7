"""Findings about environments created by `env push`: whether their package lists are equal and up to date. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torchfab.doctor.finding import WARNING, Finding, minority_findings
from torchfab.transport.messages.launch import PackagesMark

FIX = "create it again: fab env push"


def findings(marks: Mapping[str, PackagesMark | None], here: Mapping[str, str]) -> Iterator[Finding]:
    """Yield the differences between the environments, and between them and the package list on the launch machine.

    Parameters
    ----------
    marks : mapping of str to PackagesMark or None
        The mark of each host; None if `env push` did not create the environment.
    here : mapping of str to str
        Digests of the project's package lists on the launch machine, by name.

    Yields
    ------
    Finding
        Of severity WARNING; none if no host has a mark.
    """
    known = {host: mark for host, mark in marks.items() if mark is not None}
    bare = tuple(host for host in marks if host not in known)
    if known and bare:
        what = "env push created the environment of other hosts, but not that of this host's interpreter"
        yield Finding("packages-unknown", WARNING, bare, what, fix=FIX)
    old = {host: mark for host, mark in known.items() if here.get(mark.source, mark.digest) != mark.digest}
    for host, mark in old.items():
        what = f"its environment was created from another {mark.source} than the project's here"
        yield Finding("packages-old", WARNING, (host,), what, fix=FIX)
    digests = {host: mark.digest[:8] for host, mark in known.items() if host not in old}
    what = "its environment was created from another package list than on the other nodes"
    yield from minority_findings("packages-differ", WARNING, digests, what, FIX)
