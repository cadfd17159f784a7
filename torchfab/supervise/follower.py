"""Follow a job to its end, through all attempts that a supervisor launches."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from typing import Any

from torchfab.core.console import write_err
from torchfab.core.status import JobStatus
from torchfab.monitoring.first_failure import with_first_failure
from torchfab.monitoring.job_watcher import JobWatcher
from torchfab.records import Record
from torchfab.supervise import supervisor_status


class JobFollower:
    """Follows a job to the end of its last attempt.

    Parameters
    ----------
    watch : JobWatcher
        Follows the current attempt.
    """

    def __init__(self, watch: JobWatcher) -> None:
        self.watch = watch

    @property
    def record(self) -> Record:
        """The attempt that is followed."""
        return self.watch.record

    def steps(self, request: Mapping[str, Any]) -> Generator[None, None, None]:
        """Follow the job, in steps of at most half a second without an event.

        Parameters
        ----------
        request : Mapping
            Which log lines to show, as for the runtime's `follow`.

        Yields
        ------
        None
            A caller may stop iterating; the job is not affected.
        """
        while True:
            yield from self.watch.steps(request)
            if self.watch.tracker.status().state == "succeeded":
                return
            following = yield from supervisor_status.next_attempt(self.record)
            if following is None:
                return
            write_err(f"{self.record.name}: attempt {following.attempt}, launched by its supervisor")
            old = self.watch
            self.watch = JobWatcher(following, old.printer.fresh(), old.failure_grace_s, stall_s=old.stall_s)

    def final_status(self) -> JobStatus:
        """Return the final status of the job, with the rank that failed first, and save it in the record.

        Returns
        -------
        JobStatus
            The final status. Call this after the last step.
        """
        found = self.watch.tracker.status()
        self.record.remember(found.state, found.exit_code, found.has_ended)
        return with_first_failure(self.record, found)
