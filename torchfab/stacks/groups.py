"""Group equal stacks, the odd ones first: if a job hangs, the few ranks that differ are usually the cause."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torchfab.core.lazy_dataclass import dataclass
from torchfab.stacks import interpret
from torchfab.stacks.interpret import Meaning
from torchfab.stacks.model import Frame, RankStack

# Process states in which a healthy rank does not stay for long.
STATE_NAMES = {
    "T": "stopped by a signal (state T)",
    "t": "held by a debugger (state t)",
    "D": "waiting in the kernel, uninterruptibly (state D)",
    "Z": "ended, and its parent has not noticed (state Z)",
}
_UNHEALTHY = ("T", "t", "Z")  # without D: a slow disk causes it too


@dataclass(frozen=True)
class Group:
    """Ranks whose stacks are equal.

    Parameters
    ----------
    meaning : Meaning
        The interpretation of their stacks.
    state : str
        The process state that they share if it is in STATE_NAMES; otherwise empty.
    ranks : tuple of RankStack
        Sorted by rank.
    """

    meaning: Meaning
    state: str
    ranks: tuple[RankStack, ...]

    @property
    def activity(self) -> str:
        """The activity of the ranks, as the text after `rank 3 is`."""
        parts = [STATE_NAMES[self.state]] if self.state else []
        own, frames = self.meaning.own, self.ranks[0].frames
        if self.meaning.activity:
            parts.append(self.meaning.activity + (f" of {_location(own)}" if own else ""))
        elif own or frames:
            parts.append(f"in {_location(own or frames[0])}")
        elif not parts:
            parts.append("in no Python function: it is starting or ending")
        return ", ".join(parts)

    @property
    def waits(self) -> bool:
        """Whether the ranks wait for something that may never happen."""
        return self.meaning.waits and not self.state


def _location(frame: Frame) -> str:
    return frame.short_file if frame.function == "<module>" else frame.function


def group(stacks: Sequence[RankStack], exact: bool = False) -> list[Group]:
    """Group ranks by equal stacks.

    Two stacks are equal if their functions are equal. If they wait (in a collective, for a batch), the line numbers of
    the user's code must be equal too: ranks in two different all_reduce calls of one function are a typical bug. If
    they compute, line numbers differ by chance and are ignored. Frames below a recognised call, such as the inside of a
    collective, are ignored.

    Parameters
    ----------
    stacks : sequence of RankStack
        The stacks of running ranks.
    exact : bool
        Whether to compare every frame and every line number. Default False.

    Returns
    -------
    list of Group
        First those in an unhealthy process state, then the smallest.
    """
    groups: dict[Any, list[RankStack]] = {}
    meanings: dict[Any, Meaning] = {}
    for stack in stacks:
        meaning = interpret.find_meaning(stack.frames)
        key = _group_key(stack, meaning, exact)
        meanings[key] = meaning
        groups.setdefault(key, []).append(stack)
    result = [Group(meanings[key], key[0], tuple(sorted(ranks, key=_rank_order))) for key, ranks in groups.items()]
    return sorted(result, key=_sort_key)


def _sort_key(group: Group) -> tuple[Any, ...]:
    # Among groups of the same size, those that wait for other ranks come last: the other groups are the likely cause.
    return group.state not in _UNHEALTHY, len(group.ranks), group.meaning.for_ranks, _rank_order(group.ranks[0])


def _group_key(stack: RankStack, meaning: Meaning, exact: bool) -> tuple[Any, ...]:
    state = stack.state if stack.state in STATE_NAMES else ""
    if exact:
        return state, tuple((frame.name, frame.file, frame.line) for frame in stack.frames)
    frames = [frame for frame in stack.frames[meaning.depth :] if not frame.is_native]
    return (
        state,
        meaning.activity,
        tuple((frame.name, frame.file, frame.line if meaning.waits and frame.is_own else 0) for frame in frames),
    )


def _rank_order(stack: RankStack) -> tuple[bool, int, int, str]:
    return stack.rank is None, stack.rank or 0, stack.node.rank, stack.process
