"""Timers: call a function when a step takes too long. One thread serves all timers.

A threading.Timer needs a thread of its own, and every step of a thousand connections has a timer.
"""

from __future__ import annotations

import heapq
import itertools
import threading
import time
from collections.abc import Callable


class Timer:
    """A call at a given time, unless it is cancelled before.

    Parameters
    ----------
    at : float
        The time, by time.monotonic.
    act : callable
        Called in a new thread, so it may take long.
    """

    def __init__(self, at: float, act: Callable[[], object]) -> None:
        self.at = at
        self._act: Callable[[], object] | None = act  # None once called or cancelled: frees its objects
        self._lock = threading.Lock()

    def cancel(self) -> None:
        """Cancel the call."""
        self._claim()

    def fire(self) -> None:
        """Call the function now, unless it was already called or cancelled."""
        act = self._claim()
        if act is not None:
            threading.Thread(target=act, daemon=True).start()

    def _claim(self) -> Callable[[], object] | None:
        with self._lock:
            act, self._act = self._act, None
        return act


class _TimerThread:
    """The thread, and the timers that it waits for, the earliest first."""

    def __init__(self) -> None:
        self._waiting: list[tuple[float, int, Timer]] = []
        self._numbers = itertools.count()  # orders timers of the same time
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    def add(self, timer: Timer) -> None:
        with self._changed:
            entry = (timer.at, next(self._numbers), timer)
            heapq.heappush(self._waiting, entry)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="timers", daemon=True)
                self._thread.start()
            elif self._waiting[0] is entry:  # otherwise an earlier timer wakes the thread first
                self._changed.notify()

    def _run(self) -> None:
        while True:
            self._next().fire()

    def _next(self) -> Timer:
        with self._changed:
            while not self._waiting or (left_s := self._waiting[0][0] - time.monotonic()) > 0:
                self._changed.wait(left_s if self._waiting else None)
            return heapq.heappop(self._waiting)[2]


_timer_thread = _TimerThread()


def after(seconds: float, act: Callable[[], object]) -> Timer:
    """Call a function after some time, unless the timer is cancelled before.

    Parameters
    ----------
    seconds : float
        The delay.
    act : callable
        The function.

    Returns
    -------
    Timer
        With it, the call can be cancelled.
    """
    timer = Timer(time.monotonic() + seconds, act)
    _timer_thread.add(timer)
    return timer
