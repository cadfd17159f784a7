"""The section `torchfab` of Fabric's configuration, checked: a wrong setting is an error that names it.

The settings themselves, with what they mean, stand in fabric.yaml.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torchfab.core.errors import UsageError

_SECONDS = (
    *("connect_timeout_s", "prepare_timeout_s", "start_timeout_s", "answer_timeout_s", "reach_timeout_s"),
    *("network_timeout_s", "notify_timeout_s", "sync_timeout_s"),
)
_GRACES = ("grace_s", "failure_grace_s", "stall_s", "backoff_s", "lost_s")
_COUNTS = {"fanout": 1, "restarts": 0}
_TEXTS = ("hostfile", "gpufile", "node_dir", "records", "agent_python")
_STACK_SIGNALS = ("", "SIGUSR1", "SIGUSR2")
_MOST = 1e9  # seconds, hosts, restarts: nobody means more
_LISTS = ("script", "forward")


def check(config: Mapping[str, Any]) -> None:
    """Raise UsageError for the first setting that has a value which it cannot have."""
    for name, value in config.items():
        wanted = _wanted(name, value)
        if wanted:
            raise UsageError(
                f"torchfab.{name} is {wanted}, got {value!r}",
                f"correct it in fabric.yaml, in the file of fab -f, or in FABRIC_TORCHFAB_{name.upper()}",
            )


def _wanted(name: str, value: Any) -> str:
    """Return what the setting should be; empty when it is that."""
    if name in _COUNTS:
        least = _COUNTS[name]
        return "" if _is_number(value, least) and value == int(value) else f"a number of at least {least}"
    if name in _SECONDS:
        return "" if _is_number(value, 0.001) else "a number of seconds above 0"
    if name in _GRACES:
        return "" if _is_number(value, 0) else "a number of seconds"
    if name in _TEXTS:
        return "" if isinstance(value, str) and value.strip() else "a text"
    if name in _LISTS:
        return "" if _is_list(value) else "a list of texts"
    wrong_signal = name == "stacks_signal" and value not in _STACK_SIGNALS
    return "SIGUSR1, SIGUSR2, or empty for none" if wrong_signal else ""


def _is_number(value: Any, least: float) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and least <= value < _MOST


def _is_list(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(each, str) for each in value)
