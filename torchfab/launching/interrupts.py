"""Handling of Ctrl-C and of the signal of `fab stop` during a launch."""

from __future__ import annotations

import signal
from typing import Any

from torchfab.core.console import write_err

STOP_SIGNAL = signal.SIGUSR1  # sent by `fab stop` to a launch, which then rolls back


class StopOnSignal:
    """Treat SIGUSR1 (sent by `fab stop`) like Ctrl-C inside the block; ignore it afterwards."""

    def __enter__(self) -> None:
        signal.signal(STOP_SIGNAL, signal.default_int_handler)

    def __exit__(self, *_: Any) -> None:
        signal.signal(STOP_SIGNAL, signal.SIG_IGN)


class InterruptibleOnce:
    """Raise KeyboardInterrupt for the first Ctrl-C inside the block; ignore later ones: the rollback must finish."""

    def __enter__(self) -> None:
        self.handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, STOP_SIGNAL)}
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
        self.handlers = {number: signal.signal(number, self._defer) for number in (signal.SIGINT, STOP_SIGNAL)}

    def _defer(self, *_: Any) -> None:
        self.interrupted = True

    def __exit__(self, *_: Any) -> None:
        for number, handler in self.handlers.items():
            signal.signal(number, handler)
        if self.interrupted:
            raise KeyboardInterrupt
