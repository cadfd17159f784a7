"""Stacks of ranks, for the tests of their groups and reports."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tests.factories import make_nodes
from torchfab.core.errors import TorchfabError
from torchfab.stacks.model import Frame, NodeStacks, RankStack, StackDump, Thread

LIB = "/venv/lib/python3.11/site-packages/"
C10D = LIB + "torch/distributed/distributed_c10d.py"
TRAIN = "/home/me/project/train.py"
MAIN = Frame("<module>", TRAIN, 90)
WRAPPER = Frame("_exception_logger.<locals>.wrapper", LIB + "torch/distributed/c10d_logger.py", 83)
NODES = make_nodes("node1", "node2", "node3")


def own(function: str, line: int, source: str = "") -> Frame:
    return Frame(function, TRAIN, line, source)


def library(path: str, function: str) -> Frame:
    return Frame(function, LIB + path, 5)


ALL_REDUCE = (Frame("all_reduce", C10D, 3252), WRAPPER, own("reduce_loss", 8), own("train", 16), MAIN)
ALL_GATHER = (Frame("all_gather", C10D, 4001), WRAPPER, own("gather_stats", 30), own("train", 18), MAIN)


def rank(number: int | None, frames: Sequence[Frame], node: int = 0, **values: Any) -> RankStack:
    threads = (Thread("MainThread", tuple(frames)),) if frames else ()
    base: dict[str, Any] = {"state": "S", "by": "py-spy", "threads": threads}
    return RankStack(NODES[node], "agent", number, 4000 + (number or 0), **{**base, **values})


def dump(*ranks: RankStack, unheard: Mapping[str, TorchfabError] | None = None, **rights: Any) -> StackDump:
    nodes = [NodeStacks(node, tuple(each for each in ranks if each.node == node), "", rights) for node in NODES]
    return StackDump(tuple(node for node in nodes if node.ranks), unheard or {})


PRIVATE = "Failed to get process executable name. Check that the process is running.: Permission denied (os error 13)"
