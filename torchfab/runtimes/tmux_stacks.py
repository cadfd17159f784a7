"""Collect the stacks of all ranks over one connection per node; send py-spy to nodes that lack it."""

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

import msgspec

from torchfab.core.errors import TorchfabError
from torchfab.core.specs import Node
from torchfab.records import Record
from torchfab.runtimes.tmux_logs import address
from torchfab.stacks.model import NodeStacks, StackDump, from_answer
from torchfab.transport.messages.stacks import StacksAnswer, StacksRequest
from torchfab.transport.session import Session
from torchfab.transport.session_pool import SessionPool

# Work on the node besides py-spy's timeout: listing processes, waiting for the answer to a signal, a second py-spy run.
_OVERHEAD_S = 10.0


def stacks(record: Record, request: Mapping[str, Any]) -> StackDump:
    """Request the stacks of all ranks from all nodes at once.

    Parameters
    ----------
    record : Record
        The job.
    request : Mapping
        `ranks`, `native`, `timeout_s`, `signal`: as `torchfab.remote.stacks.dump.answer` takes them.

    Returns
    -------
    Dump
        The stacks by node, and the errors of the nodes that did not answer.
    """
    timeout_s = record.settings.answer_timeout_s + _OVERHEAD_S + 2 * request["timeout_s"]

    def collect(node: Node, session: Session) -> StacksAnswer:
        node_request = StacksRequest(**address(record, node), **request)
        answer = session.request(node_request, timeout_s)
        if answer.wants:
            with_program = msgspec.structs.replace(node_request, program=program_for(answer.machine))
            answer = session.request(with_program, timeout_s)
        return answer

    found: dict[int, NodeStacks] = {}
    failed: dict[str, TorchfabError] = {}
    with SessionPool(record.nodes, record.settings) as sessions:
        for node, result in sessions.map(collect):
            if isinstance(result, TorchfabError):
                failed[node.label] = result
            else:
                found[node.rank] = from_answer(node, msgspec.to_builtins(result))
    return StackDump(tuple(found[rank] for rank in sorted(found)), failed)


def program_for(machine: str) -> str:
    """Return this machine's py-spy program for sending to a node.

    Parameters
    ----------
    machine : str
        The node's processor architecture, as `uname -m` prints it.

    Returns
    -------
    str
        The program, compressed (zlib) and base64-encoded; empty if this machine has no py-spy for that architecture.
    """
    local = os.uname()
    return _encoded_pyspy() if (local.sysname, local.machine) == ("Linux", machine) else ""


@cache
def _encoded_pyspy() -> str:
    in_venv = Path(sys.executable).with_name("py-spy")
    path = str(in_venv) if in_venv.is_file() else shutil.which("py-spy")
    return base64.b64encode(zlib.compress(Path(path).read_bytes(), 6)).decode() if path else ""
