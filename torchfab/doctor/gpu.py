"""What is wrong with the GPUs of one node, from what nvidia-smi and the kernel told there. Pure."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from torchfab.doctor.finding import ERROR, WARNING, Finding
from torchfab.doctor.report import Seen

_REBOOT = "take the node out of the hosts file, then reset the GPU (nvidia-smi --gpu-reset -i N) or reboot"
_XID = re.compile(r"NVRM: Xid \((?:PCI:)?([0-9a-fA-F:.]+)[^)]*\): (\d+)")
# Of NVIDIA's catalogue (docs.nvidia.com/deploy/xid-errors): what the driver or a program can do wrong too, and what
# only a GPU does that is sick, or was until it was reset.
_XIDS = {
    13: "a program's fault, or bad memory",
    31: "a program's memory fault",
    43: "a program was stopped by a fault",
    45: "a program was cleaned up",
    48: "a memory error that ECC could not correct",
    63: "a memory row was remapped",
    64: "a memory row could not be remapped",
    74: "NVLink error",
    79: "the GPU has fallen off the bus",
    92: "many single-bit memory errors",
    94: "contained memory error",
    95: "uncontained memory error",
    119: "the GPU's system processor does not answer",
    120: "the GPU's system processor failed",
}
_SICK_XIDS = {48, 62, 64, 74, 79, 95, 119, 120, 140, 143}
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
    yield from _xids(seen.host, told.get("xids", ()))


def _fix(problem: str) -> str:
    return next((fix for sign, fix in _FIXES if sign in problem), _REBOOT)


def _xids(host: str, lines: Iterable[str]) -> Iterator[Finding]:
    counts = Counter((match[1].lower(), int(match[2])) for line in lines if (match := _XID.search(line)))
    for (bus, code), count in counts.items():
        words = f" ({_XIDS[code]})" if code in _XIDS else ""
        times = f", {count} times" if count > 1 else ""
        severity = ERROR if code in _SICK_XIDS else WARNING
        fix = _REBOOT if severity == ERROR else "see dmesg there, and NVIDIA's list of Xid errors"
        what = f"the driver reported Xid {code}{words} of GPU {bus} within the last day{times}"
        yield Finding("gpu-xid", severity, (host,), what, fix=fix)


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
