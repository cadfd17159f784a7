"""One attempt is watched until the supervisor must act."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from hypothesis import strategies as st

from tests.supervise.factories import POLICY
from tests.support import fuzzed
from torchfab.config.connection_settings import ConnectionSettings
from torchfab.core.events import NodeEnded
from torchfab.core.specs import Node
from torchfab.core.status import JobStatus, NodeStatus
from torchfab.records import Record
from torchfab.supervise.monitor import AttemptMonitor, step_in

# ---- steps


@pytest.mark.parametrize(
    ("text", "step"),
    [
        ("step=10/40 loss=6.7", 10),
        ("Step: 7", 7),
        ('{"global_step": 12, "loss": 1}', 12),
        ("{'step': 3}", 3),
        ("steps=5, step=9", 9),
        ("timestep=4", None),
        ("footstep 3", None),
        ("step_ms=12.5", None),
        ("step=1e9999999999999999999999", None),
        ("step=99999999999999999999", None),
        ("steps: 10 loss: 2.5", 10),
        ("[deepspeed] steps: 10 loss: 2.5", 10),
        ("train step: 5", 5),
        ("  Gradient Accumulation steps = 4", None),
        ("  Total optimization steps = 500", None),
        ("step=7 of max steps: 500", 7),
        ("--warmup-steps=100", None),
        ("", None),
    ],
)
def test_step_in_a_log_line(text: str, step: int | None) -> None:
    assert step_in(text) == step


@fuzzed(st.text())
def test_step_in_accepts_any_line(text: str) -> None:
    step = step_in(text)
    assert step is None or step >= 0


# ---- nodes that reported the end of the job and are out of reach afterwards


def make_monitor(*states: str, min_nodes: int) -> AttemptMonitor:
    """Return a monitor of 3 nodes: the first two are out of reach, the first ones ended in these states."""
    nodes = tuple(Node(rank, f"n{rank}") for rank in range(3))
    job = (
        Path("jobs/gpt2"),
        "gpt2",
        "gpt2-0a1b2c3d",
        "per-node",
        "tmux",
        0.0,
        ("train.py",),
        nodes,
        "/x",
        3,
        min_nodes,
    )
    monitor = AttemptMonitor(
        Record(*job, ConnectionSettings(), {}, {}), POLICY, 0.0, lambda: False, lambda *_, **__: None
    )
    for rank, state in enumerate(states):
        monitor.tracker.apply(NodeEnded(NodeStatus(nodes[rank], state)))
    monitor.tracker.apply_polled(JobStatus((NodeStatus(nodes[2], "running"),), 1))
    monitor.away = {rank: time.monotonic() - 1000 for rank in (0, 1)}
    return monitor


def test_a_node_switched_off_after_success_is_not_lost() -> None:
    assert make_monitor("succeeded", "succeeded", min_nodes=3)._classify() is None
    assert make_monitor("succeeded", min_nodes=3)._classify() == "lost"


def test_an_absent_succeeded_node_does_not_replace_a_running_one() -> None:
    assert make_monitor("succeeded", "succeeded", min_nodes=2)._classify() is None
