"""How fast a job goes on a node, from its logs: steps a second where it logs `step=12`, else lines a second."""

from __future__ import annotations

import re
from collections import deque

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import Any

_STEP = re.compile(r"\bstep\s?[=:]\s?(\d{1,12})(?:\s?/\s?(\d{1,12}))?", re.IGNORECASE)
WINDOW_S = 60.0


class Pace:
    """Take log lines in, and tell the pace of the last minute in which there were any."""

    def __init__(self) -> None:
        self.steps: deque[tuple[float, int]] = deque()  # when (seconds), and the highest step logged then
        self.lines: deque[tuple[float, int]] = deque()  # when, and how many lines had come by then
        self.total: int | None = None

    def take(self, lines: Iterable[Sequence[Any]]) -> None:
        """Take lines in, each `[label, seconds, text]`, in the order of time."""
        for _, when, text in lines:
            _append(self.lines, when, (self.lines[-1][1] if self.lines else 0) + 1)
            match = _STEP.search(text)
            if match:
                self._take_step(when, int(match[1]), int(match[2]) if match[2] else None)

    def _take_step(self, when: float, step: int, total: int | None) -> None:
        if self.steps and step < self.steps[-1][1]:  # it was started again
            self.steps.clear()
        self.total = total
        _append(self.steps, when, step)

    def tell(self, now: float) -> dict[str, Any]:
        """Return `step`, `steps` (of how many) and `steps_s` (a second), `lines_s`, `silent_s`; None: not known."""
        last = max((when for when, _ in self.lines), default=None)
        return {
            "step": self.steps[-1][1] if self.steps else None,
            "steps": self.total,
            "steps_s": rate(self.steps),
            "lines_s": rate(self.lines),
            "silent_s": None if last is None else max(0.0, now - last),
        }


def _append(points: deque[tuple[float, int]], when: float, count: int) -> None:
    """Add a point; of several at one time the last counts, and what is older than the window goes."""
    if points and when <= points[-1][0]:
        points[-1] = (points[-1][0], count)
        return
    points.append((when, count))
    while points[0][0] < when - WINDOW_S and len(points) > 2:
        points.popleft()


def rate(points: Sequence[tuple[float, int]]) -> float | None:
    """Return by how much a count grew a second between the first and the last point; None from fewer than two."""
    if len(points) < 2:
        return None
    (first, low), (last, high) = points[0], points[-1]
    return (high - low) / (last - first) if last > first else None
