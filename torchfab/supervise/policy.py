"""What to do when an attempt has ended: pure, and all of the policy.

    it succeeded, or was asked to stop      that is the end
    a node is lost or sick                  it is left out, a spare takes its place; no restart is used up
    the same bug twice, no progress between the report, and the end
    anything else                           again, after a while, `--restarts` times without progress

Progress: the largest step in the logs grew beyond that of all attempts before; of a script that logs no steps, the
attempt ran for longer than 10 minutes.
"""

from __future__ import annotations

from collections.abc import Sequence

from torchfab.supervise.model import PROGRESS_S, AttemptOutcome, Decision, Policy, PreviousAttempt

_ENDS = ("succeeded", "stopped")
# Would end like this anywhere: for these, the same fingerprint twice is a bug.
_OWN_DOING = ("script", "memory")


def decide(history: Sequence[PreviousAttempt], ending: AttemptOutcome, policy: Policy) -> Decision:
    """Return what to do about an ending.

    Parameters
    ----------
    history : sequence of Past
        The endings before it, the oldest first.
    """
    if ending.kind in _ENDS:
        return Decision(False, ending.words)
    since = _since_progress(history, ending)
    if ending.bad:
        return Decision(True, "a node is replaced", dict(ending.bad))
    if ending.blamed:
        return _blame(since, ending)
    if same := _same_bug(since, ending):
        return Decision(
            False, f"the same failure as in attempt {same}, and no progress between: a bug in the script, not bad luck"
        )
    used = sum(not past.replaced for past in since)
    if used >= policy.restarts:
        times = "1 restart" if used == 1 else f"{used} restarts"
        return Decision(False, f"{times} without progress; --restarts allows no more")
    return Decision(True, f"restart {used + 1} of {policy.restarts}", wait_s=policy.wait_s(used), used=used + 1)


def _blame(since: Sequence[PreviousAttempt], ending: AttemptOutcome) -> Decision:
    """Decide on a failure for which the script's own words blame the node: believed once, until there is progress."""
    before = next((past.outcome for past in since if past.outcome.name == ending.name and past.outcome.blamed), None)
    if before is not None:
        hosts = ", ".join(dict.fromkeys([*before.blamed, *ending.blamed]))
        return Decision(False, f"the same on {hosts}, and no progress between: it is not the node")
    return Decision(True, "a node is replaced", dict.fromkeys(ending.blamed, ending.words))


def _same_bug(since: Sequence[PreviousAttempt], ending: AttemptOutcome) -> int:
    """Return the latest attempt since the last progress that failed by the same bug; 0 where there is none."""
    if ending.kind not in _OWN_DOING or not ending.fingerprint:
        return 0
    same = [past.outcome.attempt for past in since if past.outcome.fingerprint == ending.fingerprint]
    return max(same, default=0)


def _since_progress(history: Sequence[PreviousAttempt], ending: AttemptOutcome) -> Sequence[PreviousAttempt]:
    """Return the endings from the last attempt on that made progress; none where the one that ended now did."""
    endings = [*(past.outcome for past in history), ending]
    moved = [index for index in range(len(endings)) if progressed(endings[:index], endings[index])]
    return history[moved[-1] :] if moved else history


def progressed(before: Sequence[AttemptOutcome], ending: AttemptOutcome) -> bool:
    """Say whether an attempt made progress, by the attempts before it."""
    steps = [each.step for each in before if each.step is not None]
    if steps or ending.step is not None:
        return (ending.step or 0) > max(steps, default=0)
    return ending.lived_s > PROGRESS_S
