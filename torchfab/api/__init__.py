"""The Python API: `from torchfab import launch, job, jobs`. Functions return or raise where commands print.

It is the layer above `commands`, calls their functions, and suppresses their output.
"""

from torchfab.api.handle import Job, job, jobs
from torchfab.api.launcher import dry_run, launch
from torchfab.api.results import FirstFailure, JobInfo, LogLine, NodeStatus, RankStatus, Status, Stopped, Why
from torchfab.core.errors import (
    FunctionError,
    HostError,
    HostsFailedError,
    Interrupted,
    InventoryError,
    JobFailedError,
    JobNameError,
    TorchfabError,
    UsageError,
    WaitTimeoutError,
)
from torchfab.core.status import State

__all__ = [
    "FirstFailure",
    "FunctionError",
    "HostError",
    "HostsFailedError",
    "Interrupted",
    "InventoryError",
    "Job",
    "JobFailedError",
    "JobInfo",
    "JobNameError",
    "LogLine",
    "NodeStatus",
    "RankStatus",
    "State",
    "Status",
    "Stopped",
    "TorchfabError",
    "UsageError",
    "WaitTimeoutError",
    "Why",
    "dry_run",
    "job",
    "jobs",
    "launch",
]
