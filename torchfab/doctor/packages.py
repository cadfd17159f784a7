"""Findings about environments that `env push` made: from which list of packages. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torchfab.doctor.finding import WARNING, Finding, minority_findings
from torchfab.transport.messages.launch import PackagesMark

FIX = "make it anew: fab env push"


def findings(marks: Mapping[str, PackagesMark | None], here: Mapping[str, str]) -> Iterator[Finding]:
    """Yield what differs between the environments, and from the list of packages on the launch machine.

    Parameters
    ----------
    marks : mapping of str to PackagesMark or None
        The mark of each host; None where `env push` did not make the environment.
    here : mapping of str to str
        Digests of the lists of the project on the launch machine, by name.

    Yields
    ------
    Finding
        Of severity WARNING; none where no host has a mark.
    """
    known = {host: mark for host, mark in marks.items() if mark is not None}
    bare = tuple(host for host in marks if host not in known)
    if known and bare:
        what = "env push made the environment of other hosts, but not that of its interpreter"
        yield Finding("packages-unknown", WARNING, bare, what, fix=FIX)
    old = {host: mark for host, mark in known.items() if here.get(mark.source, mark.digest) != mark.digest}
    for host, mark in old.items():
        what = f"its environment was made from another {mark.source} than the one of the project here"
        yield Finding("packages-old", WARNING, (host,), what, fix=FIX)
    digests = {host: mark.digest[:8] for host, mark in known.items() if host not in old}
    what = "its environment was made from another list of packages than elsewhere"
    yield from minority_findings("packages-differ", WARNING, digests, what, FIX)
