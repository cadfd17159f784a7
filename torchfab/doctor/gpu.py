"""What is wrong with the GPUs of one node, from what nvidia-smi and the kernel told there. Pure."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from typing import Any

from torchfab.doctor.finding import ERROR, WARNING, Finding
from torchfab.doctor.model import NodeReport

_REBOOT = "take the node out of the hosts file, then reset the GPU (nvidia-smi --gpu-reset -i N) or reboot"
_XID = re.compile(r"NVRM: Xid \((?:PCI:)?([0-9a-fA-F:.]+)[^)]*\): (\d+)(.*)")
_SXID = re.compile(r"SXid \((?:PCI:)?([0-9a-fA-F:.]+)[^)]*\): (\d+), (Fatal|Non-fatal)(.*)")
_BUS = re.compile(r"GPU (?:at )?(?:PCI:)?([0-9a-fA-F]{4,8}:[0-9a-fA-F]{2}:[0-9a-fA-F]{2})")
_RECOVERY = re.compile(r"recovery action changed from .* to 0x(?P<code>[0-9a-fA-F]+) \((?P<action>[^)]*)\)")
_AFTER = re.compile(r"caused by previous Xid (\d+)")
# What the driver says without an Xid.
_COMPLAINTS = (
    ("fallen off the bus", "has fallen off the bus"),
    ("RmInitAdapter failed", "cannot be initialised"),
    ("RESET_REQUIRED", "needs a reset"),
    ("to be reset", "needs a reset"),
)
# Of NVIDIA's catalogue (docs.nvidia.com/deploy/xid-errors): what the driver or a program can do wrong too, and what
# only a GPU does that is sick, or was until it was reset.
_XIDS = {
    13: "a program's fault, or bad memory",
    31: "a program's memory fault",
    32: "a corrupted stream of commands",
    38: "an error of the driver's firmware",
    43: "a program was stopped by a fault",
    45: "a program was cleaned up",
    48: "a memory error that ECC could not correct",
    62: "its micro-controller has halted",
    63: "a memory row was remapped",
    64: "a memory row could not be remapped",
    74: "NVLink error",
    79: "the GPU has fallen off the bus",
    92: "many single-bit memory errors",
    94: "contained memory error",
    95: "uncontained memory error",
    109: "a context switch took too long: a program's kernel, or the GPU, hung",
    119: "the GPU's system processor does not answer",
    120: "the GPU's system processor failed",
    140: "a memory error that ECC could not correct",
    143: "the GPU could not be initialised",
    145: "NVLink error",
    149: "NVLink error",
    171: "more on a memory error that ECC could not correct",
}
_SICK_XIDS = {48, 62, 64, 74, 79, 95, 119, 120, 140, 143, 145, 149, 171}
_FIXES = (
    (
        "version mismatch",
        "the driver was updated under the running kernel module: reboot, or reload the nvidia modules",
    ),
    (
        "NVML: Unknown Error",
        "in a container: it has lost its devices, restart it; on a host: reboot",
    ),
    ("infoROM is corrupted", "the board's own records are damaged: it may go on working; tell its vendor"),
    ("couldn't communicate", "the kernel module is not loaded: modprobe nvidia, or install the driver for this kernel"),
    ("did not answer", "the driver hangs; dmesg names the GPU (NVRM, Xid); reboot the node"),
    ("is not there", "install nvidia-utils of the driver's own version; without it the GPUs are not looked at"),
)


def findings(seen: NodeReport) -> Iterator[Finding]:
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


def _xids(host: str, lines: Sequence[str]) -> Iterator[Finding]:
    found: dict[tuple[str, int], list[str]] = {}
    for match in filter(None, map(_XID.search, lines)):
        found.setdefault((match[1].lower(), int(match[2])), []).append(match[3])
    sick = set()
    for (bus, code), texts in found.items():
        words, is_sick = _xid(code, texts)
        sick |= {bus} if is_sick else set()
        yield _reported(host, f"Xid {code}{words} of GPU {bus}", len(texts), is_sick)
    yield from _sxids(host, lines)
    yield from _without_xid(host, lines, sick)


def _xid(code: int, texts: Sequence[str]) -> tuple[str, bool]:
    """Return what an Xid means, in brackets, and whether the GPU is sick, by the number and by what is said with it."""
    if code == 154 and (recovery := _RECOVERY.search(texts[-1])):
        return f" (the driver asks for: {recovery['action']})", int(recovery["code"], 16) != 0
    if code == 45 and (after := _AFTER.search(texts[-1])):
        before = int(after[1])
        return f" (a program was cleaned up after Xid {before}{_words(before)})", before in _SICK_XIDS
    return _words(code), code in _SICK_XIDS and not all("Nonfatal" in text for text in texts)


def _words(code: int) -> str:
    return f" ({_XIDS[code]})" if code in _XIDS else ""


def _sxids(host: str, lines: Iterable[str]) -> Iterator[Finding]:
    found = Counter(match.groups() for match in map(_SXID.search, lines) if match)
    for (bus, code, weight, text), count in found.items():
        yield _reported(
            host, f"SXid {code} ({weight.lower()}{text}) of NVSwitch {bus.lower()}", count, weight == "Fatal"
        )


def _without_xid(host: str, lines: Iterable[str], sick: Container[str]) -> Iterator[Finding]:
    """Yield what the driver says of GPUs without an Xid; nothing of those that an Xid has told to be sick."""
    told = set()
    for line in lines:
        words = next((words for sign, words in _COMPLAINTS if sign in line and not _XID.search(line)), "")
        bus = match[1].lower() if (match := _BUS.search(line)) else ""
        if words and bus not in sick and not (sick and not bus) and (bus, words) not in told:
            told.add((bus, words))
            which = f"GPU {bus}" if bus else "a GPU"
            yield _reported(host, f"that {which} {words}", 1, True)


def _reported(host: str, what: str, count: int, is_sick: bool) -> Finding:
    times = f", {count} times" if count > 1 else ""
    fix = _REBOOT if is_sick else "see dmesg there, and NVIDIA's list of Xid errors"
    severity = ERROR if is_sick else WARNING
    return Finding("gpu-xid", severity, (host,), f"the driver reported {what} within the last day{times}", fix=fix)


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
