"""Call a function for many hosts in parallel, in a bounded number of daemon threads."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

# When no thread has reported progress for this long, all are stuck with silent hosts, and further threads start for the
# other hosts.
_log = logging.getLogger(__name__)
STUCK_S = 2.0
MOST_TIMES = 4

_current = threading.local()


def report_progress() -> None:
    """Report to the `fan_out` that runs the current thread that its host made progress: it is slow, not silent."""
    pool = getattr(_current, "pool", None)
    if pool is not None:
        pool.last_progress = time.monotonic()


def fan_out(
    items: Iterable[Item], act: Callable[[Item], Result], limit: int
) -> Iterator[tuple[Item, Result | Exception]]:
    """Call `act` on every item in `limit` threads; yield each item with its result, or its exception.

    A silent host does not delay others: while no thread makes progress (see `report_progress`), up to 4 times as many
    threads run. If hosts are only slow, no threads are added, which would make each of them slower. The threads are
    daemons: after Ctrl-C the program does not wait for a silent host.

    Parameters
    ----------
    items : iterable
        The items.
    act : callable
        Called with one item, in a thread.
    limit : int
        The number of threads.

    Yields
    ------
    tuple of item and result or Exception
        In the order of completion.
    """
    pool = _WorkerPool(items, act, limit)
    count = pool.pending.qsize()
    pool.start(limit)
    try:
        for _ in range(count):
            yield pool.next_done()
    finally:  # after Ctrl-C the remaining items are not needed
        pool.cancel_pending()


class _WorkerPool(Generic[Item, Result]):
    """The threads of one fan_out, the pending items, and the results."""

    def __init__(self, items: Iterable[Item], act: Callable[[Item], Result], limit: int) -> None:
        self.act, self.limit = act, limit
        self.pending: queue.SimpleQueue[Item] = queue.SimpleQueue()
        self.done: queue.SimpleQueue[tuple[Item, Result | Exception]] = queue.SimpleQueue()
        for item in items:
            self.pending.put(item)
        self.last_progress = time.monotonic()
        self.lock = threading.Lock()
        self.running = 0
        # When all workers are stuck, extra ones start as a new generation; a stuck worker exits when it returns.
        self.generation = 0
        self.surplus = 0

    def start(self, threads: int) -> None:
        """Start threads, at most one per pending item.

        Parameters
        ----------
        threads : int
            How many.
        """
        for _ in range(min(threads, self.pending.qsize())):
            with self.lock:
                self.running += 1
            threading.Thread(target=self._work, args=[self.generation], daemon=True).start()

    def next_done(self) -> tuple[Item, Result | Exception]:
        """Return the next result; while all threads are stuck, start further ones.

        Returns
        -------
        tuple of item and result or Exception
            The item, and what `act` returned or raised.
        """
        while True:
            try:
                return self.done.get(timeout=max(0.0, self.last_progress + STUCK_S - time.monotonic()))
            except queue.Empty:
                if time.monotonic() >= self.last_progress + STUCK_S:
                    self._grow()

    def cancel_pending(self) -> None:
        """Discard the pending items; calls in progress finish."""
        while self._next_pending() is not None:
            pass

    def _grow(self) -> None:
        self.last_progress = time.monotonic()
        with self.lock:
            more = min(self.limit, MOST_TIMES * self.limit - self.running, self.pending.qsize())
            self.generation += 1
            self.surplus += more
        if more:
            _log.debug("no host has responded for %g s: connecting to %d more hosts", STUCK_S, more)
        self.start(more)

    def _work(self, generation: int) -> None:
        _current.pool = self
        while (item := self._next_item(generation)) is not None:
            try:
                result: Result | Exception = self.act(item[0])
            except Exception as error:
                result = error
            self.last_progress = time.monotonic()
            self.done.put((item[0], result))

    def _next_item(self, generation: int) -> tuple[Item] | None:
        """Return the next item for a thread of a generation; None when the thread must exit."""
        with self.lock:
            is_surplus = generation < self.generation and self.surplus > 0
            item = None if is_surplus else self._next_pending()
            if item is None:
                self.surplus -= is_surplus
                self.running -= 1
            return item

    def _next_pending(self) -> tuple[Item] | None:
        try:
            return (self.pending.get_nowait(),)
        except queue.Empty:
            return None
