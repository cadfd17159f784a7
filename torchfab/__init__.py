"""torchfab: launch distributed PyTorch training on machines that you reach by SSH.

    from torchfab import launch
    job = launch(["train.py", "--lr", "3e-4"], hosts=["node1", "node2"])
    print(job.wait())

Everything but the version is imported when it is first used, so that commands do not load what programs need.
"""

__version__ = "0.1.0"
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

TYPE_CHECKING = False
if TYPE_CHECKING:
    from torchfab.api import (
        FirstFailure,
        FunctionError,
        HostError,
        HostsFailedError,
        Interrupted,
        InventoryError,
        Job,
        JobFailedError,
        JobInfo,
        JobNameError,
        LogLine,
        NodeStatus,
        RankStatus,
        State,
        Status,
        Stopped,
        TorchfabError,
        UsageError,
        WaitTimeoutError,
        Why,
        dry_run,
        job,
        jobs,
        launch,
    )


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from torchfab import api

    return getattr(api, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
