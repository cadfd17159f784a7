"""Do one thing for many hosts at once, with bounded threads that never keep the program from ending."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def fan_out(
    items: Iterable[Item], act: Callable[[Item], Result], limit: int
) -> Iterator[tuple[Item, Result | Exception]]:
    """Call `act` on every item in at most `limit` threads; yield each item with its result, or its exception.

    A slow item delays no other. The threads are daemons: after Ctrl-C the program does not wait for a host that is
    silent.
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

    for _ in range(min(limit, count)):
        threading.Thread(target=work, daemon=True).start()
    for _ in range(count):
        yield done.get()
