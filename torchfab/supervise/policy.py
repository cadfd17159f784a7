"""Decide what to do after an attempt. Pure.

    it succeeded, or was stopped on request         end
    a node is lost or sick                          restart on a spare node; does not use up a restart
    the same bug twice, no progress in between      end
    anything else                                   restart after a wait, up to `--restarts` times without progress

Progress: the largest step in the logs exceeds that of all attempts before. If the script logs no steps: the attempt ran
for longer than 10 minutes.
"""

from __future__ import annotations

from collections.abc import Sequence

from torchfab.supervise.model import PROGRESS_S, AttemptOutcome, Decision, Policy, PreviousAttempt

_FINAL_KINDS = ("succeeded", "stopped")
# Failures that would happen on any node: the same fingerprint twice is a bug.
_BUG_KINDS = ("script", "memory")


def decide(previous: Sequence[PreviousAttempt], outcome: AttemptOutcome, policy: Policy) -> Decision:
    """Decide what to do after an attempt.

    Parameters
    ----------
    previous : sequence of PreviousAttempt
        The attempts before it, the oldest first.
    outcome : AttemptOutcome
        How it ended.
    policy : Policy
        The limits.

    Returns
    -------
    Decision
        Whether to restart, and how.
    """
    if outcome.kind in _FINAL_KINDS:
        return Decision(False, outcome.words)
    since = _since_progress(previous, outcome)
    if outcome.bad:
        return Decision(True, "a node is replaced", dict(outcome.bad))
    if outcome.blamed:
        return _decide_on_blamed(since, outcome)
    if same := _same_bug(since, outcome):
        return Decision(
            False,
            f"the same failure as in attempt {same}, and no progress in between: a bug in the script",
        )
    used = sum(not each.replaced for each in since)
    if used >= policy.restarts:
        times = "1 restart" if used == 1 else f"{used} restarts"
        return Decision(False, f"{times} without progress; --restarts allows no more")
    return Decision(True, f"restart {used + 1} of {policy.restarts}", wait_s=policy.wait_s(used), used=used + 1)


def _decide_on_blamed(since: Sequence[PreviousAttempt], outcome: AttemptOutcome) -> Decision:
    """Replace a node that only the script's output blames, but no more than once without progress."""
    before = next((each.outcome for each in since if each.outcome.name == outcome.name and each.outcome.blamed), None)
    if before is not None:
        hosts = ", ".join(dict.fromkeys([*before.blamed, *outcome.blamed]))
        return Decision(False, f"the same on {hosts}, and no progress in between: the node is not the cause")
    return Decision(True, "a node is replaced", dict.fromkeys(outcome.blamed, outcome.words))


def _same_bug(since: Sequence[PreviousAttempt], outcome: AttemptOutcome) -> int:
    """Return the number of the latest attempt since the last progress with the same bug; 0 if there is none."""
    if outcome.kind not in _BUG_KINDS or not outcome.fingerprint:
        return 0
    same = [each.outcome.attempt for each in since if each.outcome.fingerprint == outcome.fingerprint]
    return max(same, default=0)


def _since_progress(previous: Sequence[PreviousAttempt], outcome: AttemptOutcome) -> Sequence[PreviousAttempt]:
    """Return the attempts from the last one that made progress; none if the one that ended now did."""
    outcomes = [*(each.outcome for each in previous), outcome]
    with_progress = [index for index in range(len(outcomes)) if progressed(outcomes[:index], outcomes[index])]
    return previous[with_progress[-1] :] if with_progress else previous


def progressed(before: Sequence[AttemptOutcome], outcome: AttemptOutcome) -> bool:
    """Test whether an attempt made progress.

    Parameters
    ----------
    before : sequence of AttemptOutcome
        The attempts before it.
    outcome : AttemptOutcome
        The attempt.

    Returns
    -------
    bool
        Whether it reached a larger step than all before, or without steps ran for longer than 10 minutes.
    """
    steps = [each.step for each in before if each.step is not None]
    if steps or outcome.step is not None:
        return (outcome.step or 0) > max(steps, default=0)
    return outcome.lived_s > PROGRESS_S
