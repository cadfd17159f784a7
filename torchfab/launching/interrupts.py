"""Handling of Ctrl-C and of the signal of `fab stop` during a launch.

Python delivers signals only to its main thread. A launch in another thread does not change signal handlers.
"""

from __future__ import annotations

import signal
import threading
from typing import Any

from torchfab.core.console import write_err

STOP_SIGNAL = signal.SIGUSR1  # sent by `fab stop` to a launch, which then rolls back


class StopOnSignal:
    """Treat SIGUSR1 (sent by `fab stop`) like Ctrl-C inside the block.

    Afterwards the program's own handler is restored; without one the signal is ignored, because it may still arrive.
    """

    def __enter__(self) -> None:
        self.handlers = _handlers(STOP_SIGNAL)
        for number in self.handlers:
            signal.signal(number, signal.default_int_handler)

    def __exit__(self, *_: Any) -> None:
        for number, handler in self.handlers.items():
            signal.signal(number, handler if callable(handler) else signal.SIG_IGN)


class InterruptibleOnce:
    """Raise KeyboardInterrupt for the first Ctrl-C inside the block; ignore later ones: the rollback must finish."""

    def __enter__(self) -> None:
        self.handlers = _handlers(signal.SIGINT, STOP_SIGNAL)
        for number in self.handlers:
            signal.signal(number, self._interrupt)

    def _interrupt(self, *_: Any) -> None:
        for number in self.handlers:
            signal.signal(number, signal.SIG_IGN)
        write_err("\ninterrupted: rolling back the launch")
        raise KeyboardInterrupt

    def __exit__(self, *_: Any) -> None:
        for number, handler in self.handlers.items():
            signal.signal(number, handler)


class DeferInterrupts:
    """Defer Ctrl-C until the block ends: the job is running and must be recorded first."""

    def __enter__(self) -> None:
        self.interrupted = False
        self.handlers = _handlers(signal.SIGINT, STOP_SIGNAL)
        for number in self.handlers:
            signal.signal(number, self._defer)

    def _defer(self, *_: Any) -> None:
        self.interrupted = True

    def __exit__(self, *_: Any) -> None:
        for number, handler in self.handlers.items():
            signal.signal(number, handler)
        if self.interrupted:
            raise KeyboardInterrupt


def _handlers(*numbers: signal.Signals) -> dict[signal.Signals, Any]:
    """Return handlers of signals, without those that cannot be changed: in another thread, or set by C code."""
    if threading.current_thread() is not threading.main_thread():
        return {}
    found = {number: signal.getsignal(number) for number in numbers}
    return {number: handler for number, handler in found.items() if handler is not None}
