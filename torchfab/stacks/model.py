"""What the nodes tell of their ranks' stacks, as values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torchfab.core.errors import TorchfabError
from torchfab.core.specs import Node


@dataclass(frozen=True)
class Frame:
    """One call: the function, its file, the line where it is, and the text of that line where it could be read.

    A native frame (`--native`) has line 0, and as its file a library.
    """

    function: str
    file: str
    line: int
    source: str = ""

    @property
    def name(self) -> str:
        """The function without its class, which not every Python tells."""
        return self.function.rpartition(".")[2]

    @property
    def is_native(self) -> bool:
        """Whether it is C or C++."""
        return self.line == 0 or not self.file.endswith((".py", ">"))

    @property
    def is_own(self) -> bool:
        """Whether it is the user's code: not the standard library's, nor an installed package's."""
        return not (
            self.is_native or self.file.startswith("<") or "-packages/" in self.file or "/lib/python" in self.file
        )

    @property
    def short_file(self) -> str:
        """The file as a reader knows it: without what is above site-packages, the library, or the script's folder."""
        for sign in ("-packages/", "/lib/python"):
            if sign in self.file:
                rest = self.file.rpartition(sign)[2]
                return rest if sign == "-packages/" else rest.partition("/")[2]
        return self.file.rpartition("/")[2]


@dataclass(frozen=True)
class Thread:
    """One thread of a process; the innermost frame first."""

    name: str
    frames: tuple[Frame, ...]
    active: bool = False


@dataclass(frozen=True)
class RankStack:
    """What one rank is doing.

    Parameters
    ----------
    node : Node
        Where.
    process : str
        The process of the job that it belongs to.
    rank : int, optional
        None for a process that has not started its ranks.
    pid : int
        The interpreter's.
    state : str
        As in /proc/PID/stat: R runs, S sleeps, D waits uninterruptibly, T is stopped by a signal, Z has ended.
    cpu : float
        How much it computes: 1.0 is one core.
    waits_in : str
        The kernel function that it waits in; empty where that is not told.
    tracer : int
        Pid of a debugger that holds it; 0 for none.
    by : str
        How its stacks were had: py-spy, or the name of the signal that faulthandler answered.
    threads : tuple of Thread
        The main thread first; empty where there is no stack.
    problem, signal : str
        Why py-spy gave none, and why the signal did not; empty where it did.
    ended : bool
        Whether it has ended; `code` is its exit code, where known.
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
    """What one node told.

    Parameters
    ----------
    spy : str
        Where its py-spy was found: beside the interpreter, on the PATH, or sent; empty: nowhere.
    rights : Mapping
        What decides whether a process may look into another: `ptrace_scope`, `cap_sys_ptrace`, `uid`.
    """

    node: Node
    ranks: tuple[RankStack, ...]
    spy: str = ""
    rights: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Dump:
    """What all nodes told, and which of them could not be asked, and why."""

    nodes: tuple[NodeStacks, ...]
    unheard: Mapping[str, TorchfabError] = field(default_factory=dict)

    @property
    def running(self) -> list[RankStack]:
        """The ranks that have not ended."""
        return [each for node in self.nodes for each in node.ranks if not each.ended]

    @property
    def ended(self) -> list[RankStack]:
        """Those that have."""
        return [each for node in self.nodes for each in node.ranks if each.ended]

    @property
    def is_whole(self) -> bool:
        """Whether every node was heard, and every rank that runs has a stack."""
        return not self.unheard and all(each.threads for each in self.running)


def from_answer(node: Node, answer: Mapping[str, Any]) -> NodeStacks:
    """Return what a node told (see `torchfab.remote.stacks.dump.answer`)."""
    ranks = tuple(_rank_stack(node, each) for each in answer["ranks"])
    return NodeStacks(node, ranks, answer["spy"], answer["rights"])


def _rank_stack(node: Node, told: Mapping[str, Any]) -> RankStack:
    known = ("process", "rank", "pid", "code", "state", "cpu", "waits_in", "tracer", "by", "problem", "signal")
    values = {name: told[name] for name in known if name in told}
    threads = tuple(_thread(each) for each in told.get("threads", ()))
    return RankStack(node, threads=threads, ended=told["ended"] is not None, **values)


def _thread(told: Mapping[str, Any]) -> Thread:
    return Thread(told["name"], tuple(Frame(*frame) for frame in told["frames"]), told["active"])
