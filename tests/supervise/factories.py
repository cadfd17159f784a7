"""Outcomes of attempts, for the tests of supervision."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from hypothesis import strategies as st

from torchfab.supervise.model import AttemptOutcome, Policy

POLICY = Policy(restarts=2, backoff_s=10)
BUG = AttemptOutcome(0, "script", "exception", "the script raised ValueError", "abc", step=10)
KILLED = AttemptOutcome(0, "killed", "killed", "SIGKILL came from outside", "def", step=10)
HANG = AttemptOutcome(0, "stall", "stall", "no rank has logged", step=10)
LOST = AttemptOutcome(
    0, "node", "node-unreachable", "b cannot be reached", "ghi", bad={"b": "cannot be reached"}, step=10
)
FULL = AttemptOutcome(0, "node", "disk-full", "no space was left", "jkl", blamed=("b",), step=10)

OUTCOMES = st.lists(
    st.builds(
        replace, st.sampled_from([BUG, KILLED, HANG, LOST, FULL]), step=st.none() | st.integers(0, 3),
        lived_s=st.sampled_from([1.0, 700.0]),
    ),
    min_size=1, max_size=12,
)  # fmt: skip


def numbered(outcomes: Sequence[AttemptOutcome]) -> list[AttemptOutcome]:
    return [replace(outcome, attempt=number) for number, outcome in enumerate(outcomes, start=1)]
