"""Deadlines: what is to be called when a step takes too long; one thread waits for all of them.

A threading.Timer would be a thread for each, and every step of each of a thousand connections has one.
"""

from __future__ import annotations

import heapq
import itertools
import threading
import time
from collections.abc import Callable


class Timer:
    """A call that is made at its time, unless it was cancelled before.

    Parameters
    ----------
    at : float
        When, by time.monotonic.
    act : callable
        What is called then, in a thread of its own: it may take long.
    """

    def __init__(self, at: float, act: Callable[[], object]) -> None:
        self.at = at
        self._act: Callable[[], object] | None = act  # None: it was made or cancelled; and then holds nothing any more
        self._lock = threading.Lock()

    def cancel(self) -> None:
        """Make the call not be made."""
        self._claim()

    def fire(self) -> None:
        """Make the call, unless it was made or cancelled before."""
        act = self._claim()
        if act is not None:
            threading.Thread(target=act, daemon=True).start()

    def _claim(self) -> Callable[[], object] | None:
        with self._lock:
            act, self._act = self._act, None
        return act


class _TimerThread:
    """The thread, and the deadlines that it waits for, the earliest first."""

    def __init__(self) -> None:
        self._waiting: list[tuple[float, int, Timer]] = []
        self._numbers = itertools.count()  # of two deadlines at one moment
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    def add(self, deadline: Timer) -> None:
        with self._changed:
            entry = (deadline.at, next(self._numbers), deadline)
            heapq.heappush(self._waiting, entry)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="deadlines", daemon=True)
                self._thread.start()
            elif self._waiting[0] is entry:  # else it wakes before this one by itself
                self._changed.notify()

    def _run(self) -> None:
        while True:
            self._next().fire()

    def _next(self) -> Timer:
        with self._changed:
            while not self._waiting or (left_s := self._waiting[0][0] - time.monotonic()) > 0:
                self._changed.wait(left_s if self._waiting else None)
            return heapq.heappop(self._waiting)[2]


_watch = _TimerThread()


def after(seconds: float, act: Callable[[], object]) -> Timer:
    """Call `act` in so many seconds, unless what is returned is cancelled by then."""
    deadline = Timer(time.monotonic() + seconds, act)
    _watch.add(deadline)
    return deadline
