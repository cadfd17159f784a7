"""What phase one of a launch saw that may hurt: told on stderr, equal nodes as one; none of it stops a launch."""

from __future__ import annotations

from torchfab.commandline import tell
from torchfab.doctor import Clock, Finding, glance, show
from torchfab.runtimes.tmux import Prepared


def tell_of(prepared: Prepared) -> tuple[Finding, ...]:
    """Tell the warnings of phase one, and return them."""
    clocks = {}
    for rank, (asked, answered) in prepared.asked.items():
        ahead_s = prepared.told[rank]["time"] - (asked + answered) / 2
        clocks[rank] = Clock(ahead_s, (answered - asked) / 2)
    found = glance.warnings(prepared.nodes, prepared.told, clocks)
    for each in found:
        tell(show.paragraph(each))
    return found
