"""Metrics of made hosts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.factories import make_nodes
from tests.monitoring.test_host_load import snapshot
from torchfab.config.connection_settings import ConnectionSettings
from torchfab.metrics import prometheus
from torchfab.metrics.families import Family, families
from torchfab.monitoring.host_load import job_status
from torchfab.records import Record

NODES = make_nodes("node1")
_JOB = (Path("/nowhere"), "gpt2", "gpt2-0a1b2c3d", "per-node", "tmux", 1.5e9, ("x.py",), NODES, "/x", 2, 1)
RECORD = Record(*_JOB, ConnectionSettings(), {})


def found(*loads: dict[str, Any] | str | None, record: Record | None = None, **more: Any) -> list[Family]:
    """Return the metrics of hosts with these loads, and of a job on them."""
    hosts = snapshot(*loads, **more)
    return families(hosts, record, job_status(hosts))


def values(measured: Sequence[Family], label: str = "host") -> dict[str, dict[str, float]]:
    """Return the values by name and by the value of a label."""
    return {
        prometheus.name_of(each): {labels[label]: value for labels, value in each.samples if label in labels}
        for each in measured
    }
