"""What is wrong with the GPUs of one node, from what nvidia-smi and the kernel told there. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torchfab.doctor.finding import ERROR, WARNING, Finding
from torchfab.doctor.report import Seen

_REBOOT = "take the node out of the hosts file, then reset the GPU (nvidia-smi --gpu-reset -i N) or reboot"
_FIXES = (
    (
        "version mismatch",
        "the driver was updated under the running kernel module: reboot, or reload the nvidia modules",
    ),
    ("couldn't communicate", "the kernel module is not loaded: modprobe nvidia, or install the driver for this kernel"),
    ("did not answer", "the driver hangs; dmesg names the GPU (NVRM, Xid); reboot the node"),
    ("is not there", "install nvidia-utils of the driver's own version; without it the GPUs are not looked at"),
)


def findings(seen: Seen) -> Iterator[Finding]:
    """Yield what is wrong with the GPUs of a node."""
    told = seen.part("gpus")
    if told is None:
        return
    if told.get("problem"):
        severity = WARNING if told.get("missing") or told["gpus"] else ERROR
        yield Finding("gpu-driver", severity, (seen.host,), told["problem"], fix=_fix(told["problem"]))
    elif told["devices"] > len(told["gpus"]):
        expected, found = str(told["devices"]), str(len(told["gpus"]))
        what = "the driver has lost GPUs: the kernel lists more than nvidia-smi"
        yield Finding("gpu-lost", ERROR, (seen.host,), what, expected, found, _REBOOT)
    for index, each in enumerate(told["gpus"]):
        yield from _one(seen.host, index, each)


def _fix(problem: str) -> str:
    return next((fix for sign, fix in _FIXES if sign in problem), _REBOOT)


def _one(host: str, index: int, gpu: Mapping[str, Any]) -> Iterator[Finding]:
    name = f"GPU {index} ({gpu['bus'].lower()})"
    if gpu["sick"]:
        yield Finding("gpu-lost", ERROR, (host,), f"{name} does not answer: {gpu['sick']}", fix=_REBOOT)
    if gpu["ecc"]:
        what = f"{name} has had memory errors that ECC could not correct"
        yield Finding("gpu-ecc", ERROR, (host,), what, "0", str(gpu["ecc"]), _REBOOT)
    if gpu["repair"]:
        yield Finding("gpu-repair", WARNING, (host,), f"{name}: {gpu['repair']}", fix=_REBOOT)
    if gpu["slowdown"]:
        what = f"{name} is slowed down: {', '.join(each.replace('_', ' ') for each in gpu['slowdown'])}"
        fix = "look at its cooling and power supply: nvidia-smi -q -d PERFORMANCE,TEMPERATURE,POWER"
        yield Finding("gpu-slow", WARNING, (host,), what, fix=fix)
    if gpu["processes"]:
        yield Finding(
            *("gpu-busy", WARNING, (host,), f"{name} is held by {_holders(gpu['processes'])}"),
            fix="end them if they are left over, or leave the node to them",
        )


def _holders(processes: list[dict[str, Any]]) -> str:
    shown = [f"pid {each['pid']} ({each['name'] or 'unknown'}{_memory(each)})" for each in processes[:3]]
    more = f" and {len(processes) - 3} more" if len(processes) > 3 else ""
    return ", ".join(shown) + more


def _memory(process: Mapping[str, Any]) -> str:
    return "" if process["memory_mib"] is None else f", {process['memory_mib']} MiB"
