"""Why an attempt ended."""

from __future__ import annotations

from tests.why import evidence_factory
from tests.why.evidence_factory import diagnose_nodes
from torchfab.core.specs import Node
from torchfab.core.status import JobStatus, NodeStatus, State
from torchfab.supervise import outcome
from torchfab.supervise.attempt_monitor import Trigger


def test_success_on_all_nodes_counts_when_one_is_unreachable_later() -> None:
    nodes = tuple(NodeStatus(Node(rank, f"node{rank + 1}"), State.SUCCEEDED) for rank in (0, 1))
    later = diagnose_nodes(
        evidence_factory.node(0, [evidence_factory.process("succeeded", evidence_factory.rank(0, 0))]),
        evidence_factory.unreachable(1),
    )
    assert outcome._cause(later, Trigger("ended", JobStatus(nodes, 2), None))[0] == "succeeded"
