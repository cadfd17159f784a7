"""Equal stacks together, the odd ones first: in a job that hangs, the few that are elsewhere are the cause."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torchfab.stacks import interpret
from torchfab.stacks.interpret import Meaning
from torchfab.stacks.model import Frame, RankStack

# States of a process in which no rank of a healthy job is for long.
STATE_WORDS = {
    "T": "stopped by a signal (state T)",
    "t": "held by a debugger (state t)",
    "D": "waiting in the kernel, uninterruptibly (state D)",
    "Z": "ended, and its parent has not noticed (state Z)",
}
_UNHEALTHY = ("T", "t", "Z")  # D alone is also a disk that is just slow


@dataclass(frozen=True)
class Group:
    """Ranks whose stacks are equal.

    Parameters
    ----------
    meaning : Meaning
        What their stacks say.
    state : str
        The state that they share, where it is not one of a healthy process; else empty.
    ranks : tuple of RankStack
        In the order of their ranks.
    """

    meaning: Meaning
    state: str
    ranks: tuple[RankStack, ...]

    @property
    def words(self) -> str:
        """What they are doing, after `is`."""
        words = [STATE_WORDS[self.state]] if self.state else []
        own, frames = self.meaning.own, self.ranks[0].frames
        if self.meaning.words:
            words.append(self.meaning.words + (f" of {_place(own)}" if own else ""))
        elif own or frames:
            words.append(f"in {_place(own or frames[0])}")
        elif not words:
            words.append("in no Python function: it begins, or ends")
        return ", ".join(words)

    @property
    def waits(self) -> bool:
        """Whether it waits for something that may never come."""
        return self.meaning.waits and not self.state


def _place(frame: Frame) -> str:
    return frame.short_file if frame.function == "<module>" else frame.function


def group(stacks: Sequence[RankStack], exact: bool = False) -> list[Group]:
    """Return the ranks in groups of equal stacks, those with a state of trouble first, then the smallest.

    Stacks are equal where the functions are. Where they wait (in a collective, for a batch), the lines of the user's
    code count too: two all_reduce in one function are a bug that one looks for. Where they compute, lines differ by
    chance. What lies below a recognised call, such as the inside of a collective, does not count.

    Parameters
    ----------
    exact : bool
        Whether every frame and every line counts. Default False.
    """
    groups: dict[Any, list[RankStack]] = {}
    said: dict[Any, Meaning] = {}
    for stack in stacks:
        found = interpret.of(stack.frames)
        key = _key(stack, found, exact)
        said[key] = found
        groups.setdefault(key, []).append(stack)
    made = [Group(said[key], key[0], tuple(sorted(ranks, key=_order))) for key, ranks in groups.items()]
    return sorted(made, key=_oddness)


def _oddness(group: Group) -> tuple[Any, ...]:
    # Of groups of one size those that wait for other ranks come last: the cause is with the others.
    return group.state not in _UNHEALTHY, len(group.ranks), group.meaning.for_ranks, _order(group.ranks[0])


def _key(stack: RankStack, found: Meaning, exact: bool) -> tuple[Any, ...]:
    state = stack.state if stack.state in STATE_WORDS else ""
    if exact:
        return state, tuple((frame.name, frame.file, frame.line) for frame in stack.frames)
    frames = [frame for frame in stack.frames[found.depth :] if not frame.is_native]
    return (
        state,
        found.words,
        tuple((frame.name, frame.file, frame.line if found.waits and frame.is_own else 0) for frame in frames),
    )


def _order(stack: RankStack) -> tuple[bool, int, int, str]:
    return stack.rank is None, stack.rank or 0, stack.node.rank, stack.process
