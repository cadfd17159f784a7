"""The stacks of a job's ranks on nodes that one reaches: one connection each, and py-spy sent where there is none."""

from __future__ import annotations

import base64
import os
import shutil
import sys
import zlib
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from torchfab.core.errors import TorchfabError
from torchfab.core.specs import Node
from torchfab.records import Record
from torchfab.runtimes.tmux_logs import address
from torchfab.stacks.model import Dump, NodeStacks, from_answer
from torchfab.transport.pool import SessionPool, problem_in
from torchfab.transport.session import Session

_BESIDES_S = 10.0  # on the node: the look at its processes, the wait for a signal's answer, a second try of py-spy


def stacks(record: Record, request: Mapping[str, Any]) -> Dump:
    """Ask every node for the stacks of its ranks, all at once.

    Parameters
    ----------
    request : Mapping
        `ranks`, `native`, `timeout_s`, `signal`: as `torchfab.remote.stacks.dump.answer` takes them.
    """
    timeout_s = record.settings.answer_timeout_s + _BESIDES_S + 2 * request["timeout_s"]

    def act(node: Node, session: Session) -> Mapping[str, Any]:
        asked = {**address(record, node), **request, "op": "stacks"}
        answer = session.ask(asked, timeout_s)
        if answer.get("wants"):
            answer = session.ask({**asked, "program": program_for(answer["machine"])}, timeout_s)
        return answer

    told: dict[int, NodeStacks] = {}
    unheard: dict[str, TorchfabError] = {}
    with SessionPool(record.nodes, record.settings) as sessions:
        for node, result in sessions.map(act):
            problem = problem_in(result)
            if problem is not None:
                unheard[node.label] = problem
            elif not isinstance(result, TorchfabError):
                told[node.rank] = from_answer(node, result)
    return Dump(tuple(told[rank] for rank in sorted(told)), unheard)


def program_for(machine: str) -> str:
    """Return this machine's py-spy as text (zlib, base64); empty where it has none, or one for other processors."""
    here = os.uname()
    return _packed() if (here.sysname, here.machine) == ("Linux", machine) else ""


@cache
def _packed() -> str:
    beside = Path(sys.executable).with_name("py-spy")
    path = str(beside) if beside.is_file() else shutil.which("py-spy")
    return base64.b64encode(zlib.compress(Path(path).read_bytes(), 6)).decode() if path else ""
