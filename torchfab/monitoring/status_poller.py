"""Poll the status of a job in the background."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable

from torchfab.core.errors import TorchfabError
from torchfab.core.status import JobStatus


class StatusPoller:
    """Requests a job's status when it is due, one request at a time; a later `poll` returns the answer.

    Parameters
    ----------
    request : callable
        Requests and returns the job's status. It runs in a thread.
    due_at : float, optional
        When the first request is due, by the monotonic clock. Default None: now.

    Attributes
    ----------
    due_at : float
        When the next request is due. It may be set at any time.
    is_waiting : bool
        Whether `poll` has not returned the answer to a request yet.
    """

    def __init__(self, request: Callable[[], JobStatus], due_at: float | None = None) -> None:
        self._request = request
        self.due_at = time.monotonic() if due_at is None else due_at
        self.is_waiting = False
        self._answers: queue.SimpleQueue[JobStatus | Exception] = queue.SimpleQueue()

    def poll(self, interval_s: float) -> JobStatus | None:
        """Take the answer of the last request, or send the next one if it is due. Call this often.

        Parameters
        ----------
        interval_s : float
            Seconds from an answer, or a failed request, to the next request.

        Returns
        -------
        JobStatus or None
            None if no answer has arrived. A request that failed with a TorchfabError is repeated, not reported.

        Raises
        ------
        Exception
            The request failed with another exception than a TorchfabError.
        """
        if self.is_waiting and not self._answers.empty():
            answer = self._answers.get()
            self.is_waiting, self.due_at = False, time.monotonic() + interval_s
            if isinstance(answer, JobStatus):
                return answer
            if not isinstance(answer, TorchfabError):
                raise answer
        elif not self.is_waiting and time.monotonic() >= self.due_at:
            self.is_waiting = True
            threading.Thread(target=self._run, daemon=True).start()
        return None

    def _run(self) -> None:
        try:
            self._answers.put(self._request())
        except Exception as error:  # raised by `poll`
            self._answers.put(error)
