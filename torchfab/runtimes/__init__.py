"""Runtimes decide *where a job lives*, and how to see and stop it there. They do not know launchers.

A runtime module offers

    NAME                                      its name, as in the record
    prepare(job, nodes, needs, ...)           phase one on every node; nothing is started
    start(plan, prepared, ...)                phase two
    status(record) -> JobStatus               how the job is
    follow(record, request) -> events         its logs, and the end of each node
    stop(record, grace_s) -> StopReports      end it, with proof
    attach_argv(record, ...) -> argv          a terminal on one of its processes
"""

from __future__ import annotations

import importlib
from types import ModuleType


def of(name: str) -> ModuleType:
    """Return the runtime module of that name; it is imported only when a job needs it."""
    return importlib.import_module(f"torchfab.runtimes.{name}")
