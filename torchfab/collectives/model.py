"""Collectives of ranks as immutable values, from the reports of the nodes (`torchfab.remote.job.recorder`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import field
from typing import Any

from torchfab.core.inventory import fold_ranks
from torchfab.core.lazy_dataclass import dataclass

DEFAULT_GROUP = "0"  # the name that torch gives to the group of all ranks
_TYPES = {
    "Float": "float32",
    "Double": "float64",
    "Half": "float16",
    "BFloat16": "bfloat16",
    "Long": "int64",
    "Int": "int32",
    "Short": "int16",
    "Char": "int8",
    "Byte": "uint8",
    "Bool": "bool",
}


@dataclass(frozen=True)
class CodeLine:
    """A line of Python code that is being executed: its function, file and number."""

    function: str
    file: str
    line: int

    @property
    def is_torch(self) -> bool:
        """Whether it is torch's own code, or Python's."""
        return "/torch/" in self.file or self.file.startswith("<")

    @property
    def is_own(self) -> bool:
        """Whether it is the user's code: not in the standard library or an installed package."""
        return not (self.is_torch or "-packages/" in self.file or "/lib/python" in self.file)

    @property
    def short(self) -> str:
        """The place as a message names it: `train.py:31`."""
        return f"{self.file.rpartition('/')[2]}:{self.line}"


def users_line(frames: Sequence[CodeLine]) -> CodeLine | None:
    """Return the line of the user's code in a stack.

    Parameters
    ----------
    frames : sequence of CodeLine
        The stack, the innermost frame first.

    Returns
    -------
    CodeLine or None
        The innermost frame of the user's own files, otherwise the innermost frame outside torch; None if there is none.
    """
    own = next((each for each in frames if each.is_own), None)
    return own or next((each for each in frames if not each.is_torch), None)


@dataclass(frozen=True)
class Tensors:
    """Shapes and types of the tensors of a call, one type for each shape."""

    sizes: tuple[tuple[int, ...], ...] = ()
    types: tuple[str, ...] = ()

    @property
    def numel(self) -> int:
        """Number of elements of all tensors together."""
        total = 0
        for size in self.sizes:
            count = 1
            for length in size:
                count *= length
            total += count
        return total

    def __str__(self) -> str:
        """Return them as a message names them: `float32[4, 2]`."""
        shown = [
            f"{name}[{', '.join(str(each) for each in size)}]"
            for size, name in zip(self.sizes[:2], self.types[:2], strict=False)
        ]
        more = f" and {len(self.sizes) - 2} more" if len(self.sizes) > 2 else ""
        return ", ".join(shown) + more


@dataclass(frozen=True)
class Call:
    """One call of a collective by one rank.

    Parameters
    ----------
    group : str
        Name of the process group.
    number : int
        Its number among the collectives of the group on this rank, from 1: ranks must call equal ones.
    operation : str
        As torch names it: `all_reduce`.
    inputs, outputs : Tensors
        Its tensors.
    has_ended : bool
        Whether it is complete.
    age_s : float
        Seconds since it was called.
    line : CodeLine, optional
        The line of the user's code that called it; None if it is not known.
    """

    group: str
    number: int
    operation: str
    inputs: Tensors = Tensors()
    outputs: Tensors = Tensors()
    has_ended: bool = False
    age_s: float = 0.0
    line: CodeLine | None = None

    @property
    def details(self) -> str:
        """Shape and place, in brackets after the call: ` (float32[4], train.py:31)`; empty if neither is known."""
        parts = [str(self.inputs), self.line.short if self.line else ""]
        shown = ", ".join(part for part in parts if part)
        return f" ({shown})" if shown else ""


@dataclass(frozen=True)
class Group:
    """A process group.

    Parameters
    ----------
    name : str
        Torch's name for it; equal on all of its ranks.
    description : str
        `default_pg`, or what the script gave.
    ranks : tuple of int
        Its ranks; empty if they are not known.
    """

    name: str
    description: str
    ranks: tuple[int, ...] = ()

    @property
    def suffix(self) -> str:
        """The text for it after a call in a message; empty for the group of all ranks."""
        if self.name == DEFAULT_GROUP:
            return ""
        if self.description and self.description != "undefined":
            return f" of group {self.description}"
        return f" of the group of ranks {fold_ranks(self.ranks)}" if self.ranks else f" of group {self.name}"


@dataclass(frozen=True)
class RankHistory:
    """The latest collectives of one rank.

    Parameters
    ----------
    rank : int
        The rank.
    host : str
        Its node.
    groups : tuple of Group
        The groups that it belongs to.
    calls : tuple of Call
        In the order of each group.
    line : CodeLine, optional
        The current line of the user's code; None if it is not known.
    has_ended : bool
        Whether the process has ended. Its calls are then mostly unknown.
    """

    rank: int
    host: str = ""
    groups: tuple[Group, ...] = ()
    calls: tuple[Call, ...] = ()
    line: CodeLine | None = None
    has_ended: bool = False

    def of_group(self, name: str) -> dict[int, Call]:
        """Return its calls in a group by number; of calls that were coalesced into one number, the first.

        Parameters
        ----------
        name : str
            The group.

        Returns
        -------
        dict of int to Call
        """
        found: dict[int, Call] = {}
        for call in self.calls:
            if call.group == name:
                found.setdefault(call.number, call)
        return found

    @property
    def waiting(self) -> tuple[Call, ...]:
        """Its calls that have not ended."""
        return tuple(call for call in self.calls if not call.has_ended)


@dataclass(frozen=True)
class Snapshot:
    """The collectives of a job.

    Parameters
    ----------
    ranks : Mapping of int to RankHistory
        The ranks that answered, and those that have ended.
    silent : Mapping of int to str
        The running ranks whose collectives are not known, with the reason.
    """

    ranks: Mapping[int, RankHistory] = field(default_factory=dict)
    silent: Mapping[int, str] = field(default_factory=dict)


def history_from_report(host: str, report: Mapping[str, Any]) -> RankHistory:
    """Return the collectives of a rank.

    Parameters
    ----------
    host : str
        Its node.
    report : Mapping
        As `torchfab.remote.job.recorder.describe` returns it, and `stack`: its frames, the innermost first.

    Returns
    -------
    RankHistory
    """
    here = users_line(_lines(report.get("stack") or ()))
    calls = tuple(_call(row, here) for row in report["calls"])
    groups = tuple(Group(name, description, tuple(ranks)) for name, description, ranks in report["groups"])
    return RankHistory(report["rank"], host, groups, calls, here)


def _call(row: Sequence[Any], here: CodeLine | None) -> Call:
    group, number, operation, in_sizes, in_types, out_sizes, out_types, has_ended, age_s, frames = row
    line = users_line(_lines(frames)) or (None if has_ended else here)
    tensors = _tensors(in_sizes, in_types), _tensors(out_sizes, out_types)
    return Call(group, number, operation, *tensors, has_ended, age_s, line)


def _tensors(sizes: Sequence[Any], types: Sequence[str]) -> Tensors:
    names = tuple(_TYPES.get(name, name.lower()) for name in types)
    return Tensors(tuple(tuple(size) for size in sizes), names)


def _lines(frames: Sequence[Any]) -> list[CodeLine]:
    return [CodeLine(*frame[:3]) for frame in frames]
