"""The defaults of the section `torchfab`, for settings that no settings file contains.

fabric.yaml of the clone has the same values, with comments; a test compares the two. They differ in two settings: in
the clone, a launch without a script runs train_llm.py, and records are in jobs.
"""

from __future__ import annotations

import copy
from types import MappingProxyType
from typing import Any

EXECUTOR = "torchfab.cli.executor.Executor"
# Names of variables that are forwarded from the launch machine to every process, as shell patterns.
FORWARD = (
    "NCCL_*",
    "GLOO_*",
    "UCX_*",
    "FI_*",
    "TORCH_*",
    "TORCHINDUCTOR_*",
    "PYTORCH_*",
    "CUDA_LAUNCH_BLOCKING",
    "CUDA_DEVICE_MAX_CONNECTIONS",
    "CUBLAS_*",
    "HF_*",
    "HUGGINGFACE_*",
    "HUGGING_FACE_*",
    "TRANSFORMERS_*",
    "TOKENIZERS_*",
    "WANDB_*",
    "MLFLOW_*",
    "COMET_*",
    "NEPTUNE_*",
    "ACCELERATE_*",
    "DS_*",
    "TRITON_*",
    "NVTE_*",
    "CCL_*",
    "RCCL_*",
    "HSA_*",
    "OMP_*",
    "MKL_*",
    "KMP_*",
    "LOGLEVEL",
    "PYTHONFAULTHANDLER",
    "PYTHONUNBUFFERED",
    "PYTHONPATH",
    "PYTHONHASHSEED",
    "*_proxy",
    "*_PROXY",
)

SETTINGS = MappingProxyType(
    {
        "script": [],
        "hostfile": "hosts",
        "gpufile": "gpus",
        "forward": list(FORWARD),
        "node_dir": ".torchfab",
        "records": ".torchfab/records",
        "agent_python": "python3",
        "setup": "",
        "fanout": 64,
        "connect_timeout_s": 10,
        "prepare_timeout_s": 60,
        "setup_timeout_s": 60,
        "hook_timeout_s": 300,
        "start_timeout_s": 30,
        "answer_timeout_s": 30,
        "reach_timeout_s": 3,
        "network_timeout_s": 90,
        "sync_timeout_s": 60,
        "notify_timeout_s": 10,
        "grace_s": 10,
        "failure_grace_s": 30,
        "stall_s": 300,
        "restarts": 3,
        "backoff_s": 10,
        "lost_s": 60,
        "gpu_memory_timeout_s": 60,
        "stacks_signal": "SIGUSR2",
        "probe": True,
        "tmux_conf": "",
    }
)


def sections() -> dict[str, Any]:
    """Return the defaults as Fabric's configuration takes them.

    Returns
    -------
    dict of str to Any
        The sections `torchfab` and `tasks`; a new copy.
    """
    return {"torchfab": copy.deepcopy(dict(SETTINGS)), "tasks": {"executor_class": EXECUTOR, "auto_dash_names": True}}
