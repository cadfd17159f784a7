"""The Python API: `from torchfab import launch, job, jobs`. What commands print, functions return or raise.

It is a layer beside `commands`: both call the packages below, and neither calls the other.
"""

from torchfab.api.handle import Job, job, jobs
from torchfab.api.launcher import launch
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
    "job",
    "jobs",
    "launch",
]
