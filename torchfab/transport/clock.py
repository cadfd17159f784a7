"""Measure the offset of a node's clock."""

from __future__ import annotations

import time

from torchfab.core.clock import Clock
from torchfab.transport.messages.doctor import ClockRequest
from torchfab.transport.session import Session


def read_clock(session: Session, timeout_s: float, readings: int = 5) -> Clock:
    """Measure the offset of a node's clock: of several readings, take that with the shortest round trip, as NTP does.

    Parameters
    ----------
    session : Session
        The session with the node.
    timeout_s : float
        Time limit in seconds for each reading.
    readings : int
        How many. Default 5.

    Returns
    -------
    Clock
        The offset and its uncertainty.
    """
    found = []
    for _ in range(readings):
        sent, begun = time.time(), time.monotonic()
        remote = session.request(ClockRequest(), timeout_s).time
        trip_s = time.monotonic() - begun
        found.append(Clock(remote - (sent + trip_s / 2), trip_s / 2))
    return min(found, key=lambda reading: reading.within_s)
