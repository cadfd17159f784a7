"""Measure how fast a job runs on a node from its logs: steps per second if it logs `step=12`, else lines per second."""

from __future__ import annotations

import re
from collections import deque

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import Any

_STEP = re.compile(r"\bstep\s?[=:]\s?(\d{1,12})(?:\s?/\s?(\d{1,12}))?", re.IGNORECASE)
WINDOW_S = 60.0


class StepRate:
    """Compute rates over the last minute that contains log lines."""

    def __init__(self) -> None:
        self.steps: deque[tuple[float, int]] = deque()  # (time in seconds, highest step logged by then)
        self.lines: deque[tuple[float, int]] = deque()  # (time in seconds, number of lines logged by then)
        self.total_steps: int | None = None

    def feed(self, lines: Iterable[Sequence[Any]]) -> None:
        """Add log lines.

        Parameters
        ----------
        lines : iterable of [label, seconds, text]
            In the order of time.
        """
        for _, when, text in lines:
            _append(self.lines, when, (self.lines[-1][1] if self.lines else 0) + 1)
            match = _STEP.search(text)
            if match:
                self._feed_step(when, int(match[1]), int(match[2]) if match[2] else None)

    def _feed_step(self, when: float, step: int, total: int | None) -> None:
        if self.steps and step < self.steps[-1][1]:  # the job was restarted
            self.steps.clear()
        self.total_steps = total
        _append(self.steps, when, step)

    def report(self, now: float) -> dict[str, Any]:
        """Return the current step and rates.

        Parameters
        ----------
        now : float
            Seconds since the epoch.

        Returns
        -------
        dict
            `step`, `steps` (total), `steps_s` (steps per second), `lines_s` (lines per second), `silent_s` (seconds
            since the last line); each None where unknown.
        """
        last = max((when for when, _ in self.lines), default=None)
        return {
            "step": self.steps[-1][1] if self.steps else None,
            "steps": self.total_steps,
            "steps_s": rate(self.steps),
            "lines_s": rate(self.lines),
            "silent_s": None if last is None else max(0.0, now - last),
        }


def _append(points: deque[tuple[float, int]], when: float, count: int) -> None:
    """Add a point: of several points at one time, only the last is kept; points older than the window are dropped."""
    if points and when <= points[-1][0]:
        points[-1] = (points[-1][0], count)
        return
    points.append((when, count))
    while points[0][0] < when - WINDOW_S and len(points) > 2:
        points.popleft()


def rate(points: Sequence[tuple[float, int]]) -> float | None:
    """Return the growth of a count per second between the first and the last point.

    Parameters
    ----------
    points : sequence of (float, int)
        Time in seconds, and count.

    Returns
    -------
    float or None
        None for fewer than two points.
    """
    if len(points) < 2:
        return None
    (first, low), (last, high) = points[0], points[-1]
    return (high - low) / (last - first) if last > first else None
