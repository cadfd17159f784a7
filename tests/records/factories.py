"""Plans, and their records."""

from __future__ import annotations

from typing import Any

from tests.factories import make_facts, make_job, make_nodes
from torchfab.config.connection_settings import ConnectionSettings
from torchfab.core.specs import Plan
from torchfab.launchers import per_node
from torchfab.records import Record, Records

SETTINGS = ConnectionSettings(
    ssh_config="/home/ann/it's.cfg", identities=("/a", "/b c"), connect_timeout_s=3.5, fanout=7
)
NODES = make_nodes({"host": "node1", "user": "ann", "port": 2222, "gpus": ("0", "1")}, {"host": "node2", "slots": 3})


def plan_named(name: str = "gpt2", **values: Any) -> Plan:
    job = make_job(name=name, options=per_node.options(per_node.Flags()), **values)
    return per_node.plan(job, NODES, (), make_facts(2, 3))


def write(records: Records, plan: Plan, created: float = 1000.0) -> Record:
    records.claim(plan.job.name)
    return records.write(plan, "tmux", created, SETTINGS)
