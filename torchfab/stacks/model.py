"""Stacks of ranks, threads and frames, as immutable values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from typing import Any

from torchfab.collectives.model import RankHistory, Snapshot, history_from_report
from torchfab.core.errors import TorchfabError
from torchfab.core.lazy_dataclass import dataclass
from torchfab.core.specs import Node


@dataclass(frozen=True)
class Frame:
    """One call in a stack. A native frame (`--native`) has line 0, and its file is a shared library.

    Parameters
    ----------
    function, file : str
        Function name, with its class if Python reports it, and file path.
    line : int
        The line that is being executed.
    source : str
        Text of that line; empty if it could not be read.
    """

    function: str
    file: str
    line: int
    source: str = ""

    @property
    def name(self) -> str:
        """The function name without its class, which not every Python version reports."""
        return self.function.rpartition(".")[2]

    @property
    def is_native(self) -> bool:
        """Whether it is C or C++."""
        return self.line == 0 or not self.file.endswith((".py", ">"))

    @property
    def is_own(self) -> bool:
        """Whether it is the user's code: not in the standard library or an installed package."""
        return not (
            self.is_native or self.file.startswith("<") or "-packages/" in self.file or "/lib/python" in self.file
        )

    @property
    def short_file(self) -> str:
        """The file path relative to site-packages or the standard library; of a script, only the file name."""
        for marker in ("-packages/", "/lib/python"):
            if marker in self.file:
                rest = self.file.rpartition(marker)[2]
                return rest if marker == "-packages/" else rest.partition("/")[2]
        return self.file.rpartition("/")[2]


@dataclass(frozen=True)
class Thread:
    """One thread of a process; the innermost frame comes first."""

    name: str
    frames: tuple[Frame, ...]
    active: bool = False


@dataclass(frozen=True)
class RankStack:
    """The stacks and the process state of one rank.

    Parameters
    ----------
    node : Node
        The node that it runs on.
    process : str
        Name of the launcher process that it belongs to.
    rank : int, optional
        None for a process that has not started its ranks.
    pid : int
        Of the Python interpreter.
    state : str
        As in /proc/PID/stat: R runs, S sleeps, D waits uninterruptibly, T is stopped by a signal, Z has ended.
    cpu : float
        CPU usage: 1.0 is one core.
    waits_in : str
        The kernel function that it waits in; empty if unknown.
    tracer : int
        Pid of a debugger that is attached to it; 0 for none.
    by : str
        Source of the stacks: `py-spy`, or the name of the signal that faulthandler handled.
    threads : tuple of Thread
        The main thread first; empty if there is no stack.
    problem, signal : str
        Why py-spy and the signal returned no stack; empty if they did.
    ended : bool
        Whether it has ended; `code` is its exit code, if known.
    """

    node: Node
    process: str
    rank: int | None
    pid: int
    state: str = ""
    cpu: float = 0.0
    waits_in: str = ""
    tracer: int = 0
    by: str = ""
    threads: tuple[Thread, ...] = ()
    problem: str = ""
    signal: str = ""
    ended: bool = False
    code: int | None = None

    @property
    def frames(self) -> tuple[Frame, ...]:
        """The main thread's stack, the innermost frame first."""
        return self.threads[0].frames if self.threads else ()


@dataclass(frozen=True)
class NodeStacks:
    """The stacks of all ranks on one node.

    Parameters
    ----------
    node : Node
        The node.
    ranks : tuple of RankStack
        The job's ranks on this node, including those that have ended.
    py_spy : str
        Where py-spy was found: beside the interpreter, on the PATH, or sent; empty if nowhere.
    rights : Mapping
        The settings that determine whether a process may trace another one: `ptrace_scope`, `cap_sys_ptrace`, `uid`.
    collectives : tuple of RankHistory
        The collectives of the ranks whose probe answered.
    """

    node: Node
    ranks: tuple[RankStack, ...]
    py_spy: str = ""
    rights: Mapping[str, Any] = field(default_factory=dict)
    collectives: tuple[RankHistory, ...] = ()


@dataclass(frozen=True)
class StackDump:
    """The stacks of a whole job.

    Parameters
    ----------
    nodes : tuple of NodeStacks
        The nodes that answered.
    unreachable : Mapping of str to TorchfabError
        The hosts that could not be queried, with the reason.
    """

    nodes: tuple[NodeStacks, ...]
    unreachable: Mapping[str, TorchfabError] = field(default_factory=dict)

    @property
    def running(self) -> list[RankStack]:
        """The ranks that have not ended."""
        return [each for node in self.nodes for each in node.ranks if not each.ended]

    @property
    def ended(self) -> list[RankStack]:
        """The ranks that have ended."""
        return [each for node in self.nodes for each in node.ranks if each.ended]

    @property
    def is_whole(self) -> bool:
        """Whether every node answered, and every rank that runs has a stack."""
        return not self.unreachable and all(each.threads for each in self.running)

    @property
    def collectives(self) -> Snapshot:
        """The collectives of the ranks whose probe answered, and the ranks that have ended."""
        ended = {
            each.rank: RankHistory(each.rank, each.node.label, has_ended=True)
            for each in self.ended
            if each.rank is not None
        }
        return Snapshot({**ended, **{each.rank: each for node in self.nodes for each in node.collectives}})


def from_answer(node: Node, answer: Mapping[str, Any]) -> NodeStacks:
    """Convert a node's answer to a NodeStacks.

    Parameters
    ----------
    node : Node
        The node that answered.
    answer : Mapping
        As `torchfab.remote.stacks.dump.answer` returns it.

    Returns
    -------
    NodeStacks
        With the ranks in the order of the answer.
    """
    ranks = tuple(_rank_stack(node, each) for each in answer["ranks"])
    collectives = tuple(history_from_report(node.label, each) for each in answer.get("collectives", ()))
    return NodeStacks(node, ranks, answer["spy"], answer["rights"], collectives)


def _rank_stack(node: Node, report: Mapping[str, Any]) -> RankStack:
    known = ("process", "rank", "pid", "code", "state", "cpu", "waits_in", "tracer", "by", "problem", "signal")
    values = {name: report[name] for name in known if name in report}
    threads = tuple(_thread(each) for each in report.get("threads", ()))
    return RankStack(node, threads=threads, ended=report["ended"] is not None, **values)


def _thread(report: Mapping[str, Any]) -> Thread:
    return Thread(report["name"], tuple(Frame(*frame) for frame in report["frames"]), report["active"])
