"""What a supervisor knows, and what it decides: frozen values."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from torchfab.core.errors import UsageError

LONGEST_WAIT_S = 600.0
PROGRESS_S = 600.0


@dataclass(frozen=True)
class Policy:
    """How a job is supervised.

    Parameters
    ----------
    restarts : int
        How often it is launched again without progress. Default 3.
    stall_s : float
        After how many seconds without a log line of any rank it is taken to hang; 0: never. Default 300.
    backoff_s : float
        How long to wait before the first restart; doubles with every further one, up to 600 s. Default 10.
    lost_s : float
        For how long a node must be out of reach to count as lost. Default 60.
    notify : str
        A command, or an http(s) URL, that is told what happens; empty: none.
    notify_timeout_s : float
        How long it may take, each time. Default 10.
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
            words = shlex.split(self.notify)
        except ValueError as error:
            raise UsageError(f"--notify {self.notify!r}: {error}", "a command, or an http(s) URL") from None
        if not words:
            raise UsageError("--notify names neither a command nor a URL")

    def as_json(self) -> dict[str, Any]:
        """Return it as JSON."""
        return asdict(self)

    def wait_s(self, used: int) -> float:
        """Return how long to wait before a restart, of which `used` went before it."""
        return float(min(LONGEST_WAIT_S, self.backoff_s * 2 ** min(used, 30)))


@dataclass(frozen=True)
class AttemptOutcome:
    """How an attempt ended, as far as a decision depends on it.

    Parameters
    ----------
    attempt : int
        Which one, from 1.
    kind, name : str
        Of the cause, as `torchfab.why` has it; besides, `stall` (it hung) and `launch` (it could not be started).
    words : str
        The cause for people.
    fingerprint : str
        Equal for two failures that are the same; empty where that cannot be said.
    bad : Mapping of str to str
        Nodes that are lost or sick by what was found there, each with the reason.
    blamed : tuple of str
        Nodes that are sick by what the script said only.
    step : int, optional
        The largest step that its logs told; None where they tell none.
    lived_s : float
        How long it ran.
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
    """An ending that a restart followed; `replaced` says whether nodes were replaced for it."""

    outcome: AttemptOutcome
    replaced: bool = False


@dataclass(frozen=True)
class Decision:
    """What to do about an ending.

    Parameters
    ----------
    restart : bool
        Whether to launch again.
    reason : str
        Why, for people.
    drop : Mapping of str to str
        Nodes to leave out from now on, each with the reason.
    wait_s : float
        How long to wait first.
    used : int
        How many restarts without progress this makes, where it counts as one; else 0.
    """

    restart: bool
    reason: str
    drop: Mapping[str, str] = field(default_factory=dict)
    wait_s: float = 0.0
    used: int = 0
