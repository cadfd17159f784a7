"""Do one thing for many hosts at once, with bounded threads that never keep the program from ending."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

# When nobody has got any further for so long, all threads are stuck with silent hosts: the others get threads of their
# own, as long as that is so.
_log = logging.getLogger(__name__)
STUCK_S = 2.0
MOST_TIMES = 4

_here = threading.local()


def report_progress() -> None:
    """Tell the `fan_out` in whose thread this is called that its host got a step further: it is slow, not silent."""
    crew = getattr(_here, "crew", None)
    if crew is not None:
        crew.moved_at = time.monotonic()


def fan_out(
    items: Iterable[Item], act: Callable[[Item], Result], limit: int
) -> Iterator[tuple[Item, Result | Exception]]:
    """Call `act` on every item in `limit` threads; yield each item with its result, or its exception.

    A silent item delays no other: while no thread gets any further (`moved` says that one did), up to 4 times as many
    are at work. Where all are merely slow, more at once would make each slower still. The threads are daemons: after
    Ctrl-C the program does not wait for a host that is silent.
    """
    crew = _WorkerPool(items, act, limit)
    count = crew.waiting.qsize()
    crew.start(limit)
    try:
        for _ in range(count):
            yield crew.next_done()
    finally:  # Ctrl-C: nobody wants the rest any more
        crew.cancel_pending()


class _WorkerPool(Generic[Item, Result]):
    """The threads of one fan_out, what waits for them, and what they have done."""

    def __init__(self, items: Iterable[Item], act: Callable[[Item], Result], limit: int) -> None:
        self.act, self.limit = act, limit
        self.waiting: queue.SimpleQueue[Item] = queue.SimpleQueue()
        self.done: queue.SimpleQueue[tuple[Item, Result | Exception]] = queue.SimpleQueue()
        for item in items:
            self.waiting.put(item)
        self.moved_at = time.monotonic()
        self.lock = threading.Lock()
        self.at_work = 0
        # Threads are relieved by younger ones when all are stuck; who was relieved leaves when it comes back.
        self.generation = 0
        self.to_leave = 0

    def start(self, threads: int) -> None:
        """Start so many threads, and no more than there are items for."""
        for _ in range(min(threads, self.waiting.qsize())):
            with self.lock:
                self.at_work += 1
            threading.Thread(target=self._work, args=[self.generation], daemon=True).start()

    def next_done(self) -> tuple[Item, Result | Exception]:
        """Return what is done next; while all are stuck, others take over what waits."""
        while True:
            try:
                return self.done.get(timeout=max(0.0, self.moved_at + STUCK_S - time.monotonic()))
            except queue.Empty:
                if time.monotonic() >= self.moved_at + STUCK_S:
                    self._grow()

    def cancel_pending(self) -> None:
        """Let nobody begin with what still waits; who is at work finishes that."""
        while self._next_waiting() is not None:
            pass

    def _grow(self) -> None:
        self.moved_at = time.monotonic()
        with self.lock:
            more = min(self.limit, MOST_TIMES * self.limit - self.at_work, self.waiting.qsize())
            self.generation += 1
            self.to_leave += more
        if more:
            _log.debug("no host responds for %g s: connecting to %d more of those that wait", STUCK_S, more)
        self.start(more)

    def _work(self, generation: int) -> None:
        _here.crew = self
        while (item := self._take(generation)) is not None:
            try:
                result: Result | Exception = self.act(item[0])
            except Exception as error:
                result = error
            self.moved_at = time.monotonic()
            self.done.put((item[0], result))

    def _take(self, generation: int) -> tuple[Item] | None:
        """Return the next item for a thread of a generation; None when it is to end."""
        with self.lock:
            relieved = generation < self.generation and self.to_leave > 0
            item = None if relieved else self._next_waiting()
            if item is None:
                self.to_leave -= relieved
                self.at_work -= 1
            return item

    def _next_waiting(self) -> tuple[Item] | None:
        try:
            return (self.waiting.get_nowait(),)
        except queue.Empty:
            return None
