"""Jobs on the cluster, their pods and their logs."""

from __future__ import annotations

from typing import Any

from tests.kube.api import API
from tests.kube.in_process import Here
from tests.kube.pods import ended, pods_of, running, set_status

ALL = ["jobs/gpt2", "services/gpt2"]


def launched(here: Here, **flags: Any) -> list[str]:
    """Launch a job, and make its pods; return their names."""
    here.launch(**flags)
    return pods_of(here.api, "gpt2")


def start(api: API, *pods: str) -> None:
    for index, pod in enumerate(pods):
        api.write(pod, f"[rank{2 * index}]:step 1")
        set_status(api, pod, running(), nodeName=f"worker-{index}")


def write_logs(api: API, *pods: str) -> None:
    """Write two lines of each rank, and one of torchrun, into the logs of two pods of two ranks."""
    start(api, *pods)
    for index, pod in enumerate(pods):
        for step, rank in ((2, 2 * index), (1, 2 * index + 1), (2, 2 * index + 1)):
            api.write(pod, f"[rank{rank}]:step {step}")
        api.write(pod, f"W1120 torchrun {index}")


def finish(api: API, code: int, *pods: str) -> None:
    for pod in pods:
        set_status(api, pod, ended(code))
        api.close_log(pod)
