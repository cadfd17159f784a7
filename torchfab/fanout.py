"""Do one thing for many hosts at once, with bounded threads that never keep the program from ending."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

# When nobody has been done for so long, all threads are stuck with silent hosts: the others get threads of their own.
STUCK_S = 2.0
MOST_TIMES = 4


def fan_out(
    items: Iterable[Item], act: Callable[[Item], Result], limit: int
) -> Iterator[tuple[Item, Result | Exception]]:
    """Call `act` on every item in `limit` threads; yield each item with its result, or its exception.

    A slow item delays no other: while all threads wait for slow ones, up to 4 times as many are started. The threads
    are daemons: after Ctrl-C the program does not wait for a host that is silent.
    """
    waiting: queue.SimpleQueue[Item] = queue.SimpleQueue()
    done: queue.SimpleQueue[tuple[Item, Result | Exception]] = queue.SimpleQueue()
    count = 0
    for item in items:
        waiting.put(item)
        count += 1

    def work() -> None:
        while True:
            try:
                item = waiting.get_nowait()
            except queue.Empty:
                return
            try:
                done.put((item, act(item)))
            except Exception as error:
                done.put((item, error))

    def start(threads: int) -> int:
        for _ in range(threads):
            threading.Thread(target=work, daemon=True).start()
        return threads

    started = start(min(limit, count))
    for _ in range(count):
        while (result := _within(done, STUCK_S)) is None:
            started += start(min(limit, waiting.qsize(), MOST_TIMES * limit - started))
        yield result


def _within(done: queue.SimpleQueue[Item], seconds: float) -> Item | None:
    try:
        return done.get(timeout=seconds)
    except queue.Empty:
        return None
