"""The values that supervision decides on: policy, attempt outcomes, decisions. All are frozen."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import asdict, field
from typing import Any

from torchfab.core.errors import UsageError
from torchfab.core.lazy_dataclass import dataclass

LONGEST_WAIT_S = 600.0
PROGRESS_S = 600.0


@dataclass(frozen=True)
class Policy:
    """How a job is supervised.

    Parameters
    ----------
    restarts : int
        The largest number of restarts without progress. Default 3.
    stall_s : float
        Seconds without a log line of any rank after which the job counts as hanging. 0: never. Default 300.
    backoff_s : float
        Seconds to wait before the first restart. Doubles with every further one, up to 600 s. Default 10.
    lost_s : float
        Seconds out of reach after which a node counts as lost. Default 60.
    notify : str
        A command or an http(s) URL that receives events. Empty: none.
    notify_timeout_s : float
        Time limit in seconds for each event. Default 10.

    Raises
    ------
    UsageError
        `notify` cannot be parsed as a command.
    """

    restarts: int = 3
    stall_s: float = 300.0
    backoff_s: float = 10.0
    lost_s: float = 60.0
    notify: str = ""
    notify_timeout_s: float = 10.0

    def __post_init__(self) -> None:
        if not self.notify:
            return
        try:
            argv = shlex.split(self.notify)
        except ValueError as error:
            raise UsageError(f"--notify {self.notify!r}: {error}", "a command, or an http(s) URL") from None
        if not argv:
            raise UsageError("--notify names neither a command nor a URL")

    def as_json(self) -> dict[str, Any]:
        """Convert to a JSON object.

        Returns
        -------
        dict
            The fields by name.
        """
        return asdict(self)

    def wait_s(self, used: int) -> float:
        """Return the wait before the next restart.

        Parameters
        ----------
        used : int
            The number of restarts since the last progress.

        Returns
        -------
        float
            In seconds.
        """
        return float(min(LONGEST_WAIT_S, self.backoff_s * 2 ** min(used, 30)))


@dataclass(frozen=True)
class AttemptOutcome:
    """How an attempt ended: all that a decision depends on.

    The field names are JSON keys in the record's events.

    Parameters
    ----------
    attempt : int
        The number of the attempt, from 1.
    kind, name : str
        Kind and name of the cause as in `torchfab.why`. Besides: `stall` (it hung), `launch` (it could not be started).
    words : str
        The cause, human-readable.
    fingerprint : str
        Equal for equal failures. Empty if unknown.
    bad : Mapping of str to str
        Nodes that were found to be lost or sick, each with the reason.
    blamed : tuple of str
        Nodes that only the script's own output blames.
    step : int, optional
        The largest step in the logs. None if they contain no steps.
    lived_s : float
        How long the attempt ran, in seconds.
    code : int, optional
        The job's exit code.
    """

    attempt: int
    kind: str
    name: str
    words: str = ""
    fingerprint: str = ""
    bad: Mapping[str, str] = field(default_factory=dict)
    blamed: tuple[str, ...] = ()
    step: int | None = None
    lived_s: float = 0.0
    code: int | None = None


@dataclass(frozen=True)
class PreviousAttempt:
    """An attempt that was followed by a restart.

    Parameters
    ----------
    outcome : AttemptOutcome
        How it ended.
    replaced : bool
        Whether nodes were replaced for the restart. Default False.
    """

    outcome: AttemptOutcome
    replaced: bool = False


@dataclass(frozen=True)
class Decision:
    """What to do after an attempt.

    Parameters
    ----------
    restart : bool
        Whether to launch again.
    reason : str
        Why, human-readable.
    drop : Mapping of str to str
        Nodes to put into quarantine, each with the reason.
    wait_s : float
        Seconds to wait before the restart.
    used : int
        The number of restarts without progress, this one included. 0 if this restart does not count.
    """

    restart: bool
    reason: str
    drop: Mapping[str, str] = field(default_factory=dict)
    wait_s: float = 0.0
    used: int = 0
