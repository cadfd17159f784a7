"""Validate the section `torchfab` of Fabric's configuration; an error names the setting.

The settings and their meanings are in fabric.yaml.
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
_MAX = 1e9  # seconds, hosts or restarts: a larger number is a mistake
_LISTS = ("script", "forward")


def check(config: Mapping[str, Any]) -> None:
    """Check all settings.

    Parameters
    ----------
    config : mapping of str to Any
        The section `torchfab`.

    Raises
    ------
    UsageError
        The value of a setting is not valid; the first such setting is reported.
    """
    for name, value in config.items():
        expected = _expected(name, value)
        if expected:
            raise UsageError(
                f"torchfab.{name} is {expected}, got {value!r}",
                f"correct it in fabric.yaml, in the file of fab -f, or in FABRIC_TORCHFAB_{name.upper()}",
            )


def _expected(name: str, value: Any) -> str:
    """Return what the value of a setting must be; empty where the value is valid."""
    if name in _COUNTS:
        minimum = _COUNTS[name]
        return "" if _is_number(value, minimum) and value == int(value) else f"a number of at least {minimum}"
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


def _is_number(value: Any, minimum: float) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and minimum <= value < _MAX


def _is_list(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(each, str) for each in value)
