"""Ctrl-C and the signal of `fab stop` while a job is being launched."""

from __future__ import annotations

import signal
from typing import Any

from torchfab.core.console import write_err

STOP_SIGNAL = signal.SIGUSR1  # how `fab stop` asks a launch to take itself back


class StopOnSignal:
    """Treat SIGUSR1 (sent by `fab stop`) like Ctrl-C inside the block; ignore it afterwards."""

    def __enter__(self) -> None:
        signal.signal(STOP_SIGNAL, signal.default_int_handler)

    def __exit__(self, *_: Any) -> None:
        signal.signal(STOP_SIGNAL, signal.SIG_IGN)


class InterruptibleOnce:
    """Raise KeyboardInterrupt for the first Ctrl-C inside the block; ignore later ones: the rollback must finish."""

    def __enter__(self) -> None:
        self.before = {number: signal.getsignal(number) for number in (signal.SIGINT, STOP_SIGNAL)}
        for number in self.before:
            signal.signal(number, self._interrupt)

    def _interrupt(self, *_: Any) -> None:
        for number in self.before:
            signal.signal(number, signal.SIG_IGN)
        write_err("\ninterrupted: taking back what was started")
        raise KeyboardInterrupt

    def __exit__(self, *_: Any) -> None:
        for number, before in self.before.items():
            signal.signal(number, before)


class DeferInterrupts:
    """Defer Ctrl-C until the block ends: the job is running and must be recorded first."""

    def __enter__(self) -> None:
        self.came = False
        self.before = {number: signal.signal(number, self._note) for number in (signal.SIGINT, STOP_SIGNAL)}

    def _note(self, *_: Any) -> None:
        self.came = True

    def __exit__(self, *_: Any) -> None:
        for number, before in self.before.items():
            signal.signal(number, before)
        if self.came:
            raise KeyboardInterrupt
