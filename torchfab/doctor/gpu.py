"""Findings about the GPUs of one node, from nvidia-smi and the kernel log. Pure."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Container, Iterable, Iterator, Sequence

from torchfab.core.format import format_bytes
from torchfab.doctor.finding import ERROR, WARNING, Finding
from torchfab.doctor.model import NodeReport
from torchfab.transport.messages.doctor import GpuHealth
from torchfab.transport.messages.launch import GpuProcess

_REBOOT = "take the node out of the hosts file, then reset the GPU (nvidia-smi --gpu-reset -i N) or reboot"
_XID = re.compile(r"NVRM: Xid \((?:PCI:)?([0-9a-fA-F:.]+)[^)]*\): (\d+)(.*)")
_SXID = re.compile(r"SXid \((?:PCI:)?([0-9a-fA-F:.]+)[^)]*\): (\d+), (Fatal|Non-fatal)(.*)")
_BUS = re.compile(r"GPU (?:at )?(?:PCI:)?([0-9a-fA-F]{4,8}:[0-9a-fA-F]{2}:[0-9a-fA-F]{2})")
_RECOVERY = re.compile(r"recovery action changed from .* to 0x(?P<code>[0-9a-fA-F]+) \((?P<action>[^)]*)\)")
_AFTER = re.compile(r"caused by previous Xid (\d+)")
# Messages of the driver without an Xid: a part of the message, and what it means for the GPU.
_PLAIN_MESSAGES = (
    ("fallen off the bus", "has fallen off the bus"),
    ("RmInitAdapter failed", "cannot be initialised"),
    ("RESET_REQUIRED", "needs a reset"),
    ("to be reset", "needs a reset"),
)
# From NVIDIA's catalogue (docs.nvidia.com/deploy/xid-errors). Those in _SICK_XIDS come only from a faulty GPU, or
# one that was faulty until its reset; the driver or a program can also cause the others.
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
    109: "a context switch took too long: a program's kernel or the GPU hung",
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
        "in a container, which has lost its devices: restart it; on a host: reboot",
    ),
    ("infoROM is corrupted", "the board's own records are damaged: it may keep working; report it to the vendor"),
    ("couldn't communicate", "the kernel module is not loaded: modprobe nvidia, or install the driver for this kernel"),
    ("did not answer", "the driver hangs; dmesg names the GPU (NVRM, Xid); reboot the node"),
    ("is not there", "install nvidia-utils of the driver's own version; without it the GPUs are not checked"),
)


def findings(node: NodeReport) -> Iterator[Finding]:
    """Yield the findings about the GPUs of a node.

    Parameters
    ----------
    node : NodeReport
        The node.

    Yields
    ------
    Finding
        About this node.
    """
    probe = node.parts.gpus
    if probe is None:
        return
    if probe.problem:
        severity = WARNING if probe.missing or probe.gpus else ERROR
        yield Finding("gpu-driver", severity, (node.host,), probe.problem, fix=_fix(probe.problem))
    elif probe.devices > len(probe.gpus):
        expected, found = str(probe.devices), str(len(probe.gpus))
        what = "the driver has lost GPUs: the kernel lists more than nvidia-smi"
        yield Finding("gpu-lost", ERROR, (node.host,), what, expected, found, _REBOOT)
    for index, each in enumerate(probe.gpus):
        yield from _gpu_findings(node.host, index, each)
    yield from _xids(node.host, probe.xids)


def _fix(problem: str) -> str:
    return next((fix for part, fix in _FIXES if part in problem), _REBOOT)


def _xids(host: str, lines: Sequence[str]) -> Iterator[Finding]:
    found: dict[tuple[str, int], list[str]] = {}
    for match in filter(None, map(_XID.search, lines)):
        found.setdefault((match[1].lower(), int(match[2])), []).append(match[3])
    sick = set()
    for (bus, code), texts in found.items():
        meaning, is_sick = _classify_xid(code, texts)
        sick |= {bus} if is_sick else set()
        yield _driver_finding(host, f"Xid {code}{meaning} of GPU {bus}", len(texts), is_sick)
    yield from _sxids(host, lines)
    yield from _without_xid(host, lines, sick)


def _classify_xid(code: int, texts: Sequence[str]) -> tuple[str, bool]:
    """Return the meaning of an Xid in brackets, and whether the GPU is sick, from its number and the texts with it."""
    if code == 154 and (recovery := _RECOVERY.search(texts[-1])):
        return f" (the driver requests: {recovery['action']})", int(recovery["code"], 16) != 0
    if code == 45 and (after := _AFTER.search(texts[-1])):
        before = int(after[1])
        return f" (a program was cleaned up after Xid {before}{_meaning(before)})", before in _SICK_XIDS
    return _meaning(code), code in _SICK_XIDS and not all("Nonfatal" in text for text in texts)


def _meaning(code: int) -> str:
    return f" ({_XIDS[code]})" if code in _XIDS else ""


def _sxids(host: str, lines: Iterable[str]) -> Iterator[Finding]:
    found = Counter(match.groups() for match in map(_SXID.search, lines) if match)
    for (bus, code, weight, text), count in found.items():
        yield _driver_finding(
            host, f"SXid {code} ({weight.lower()}{text}) of NVSwitch {bus.lower()}", count, weight == "Fatal"
        )


def _without_xid(host: str, lines: Iterable[str], sick: Container[str]) -> Iterator[Finding]:
    """Yield findings from driver messages without an Xid, but for GPUs that an Xid already showed to be sick."""
    reported = set()
    for line in lines:
        meaning = next((meaning for part, meaning in _PLAIN_MESSAGES if part in line and not _XID.search(line)), "")
        bus = match[1].lower() if (match := _BUS.search(line)) else ""
        if meaning and bus not in sick and not (sick and not bus) and (bus, meaning) not in reported:
            reported.add((bus, meaning))
            which = f"GPU {bus}" if bus else "a GPU"
            yield _driver_finding(host, f"that {which} {meaning}", 1, True)


def _driver_finding(host: str, what: str, count: int, is_sick: bool) -> Finding:
    times = f", {count} times" if count > 1 else ""
    fix = _REBOOT if is_sick else "see dmesg there, and NVIDIA's list of Xid errors"
    severity = ERROR if is_sick else WARNING
    return Finding("gpu-xid", severity, (host,), f"the driver reported {what} within the last day{times}", fix=fix)


def _gpu_findings(host: str, index: int, gpu: GpuHealth) -> Iterator[Finding]:
    name = f"GPU {index} ({gpu.bus.lower()})"
    if gpu.sick:
        yield Finding("gpu-lost", ERROR, (host,), f"{name} does not answer: {gpu.sick}", fix=_REBOOT)
    if gpu.ecc:
        what = f"{name} has had memory errors that ECC could not correct"
        yield Finding("gpu-ecc", ERROR, (host,), what, "0", str(gpu.ecc), _REBOOT)
    if gpu.repair:
        yield Finding("gpu-repair", WARNING, (host,), f"{name}: {gpu.repair}", fix=_REBOOT)
    if gpu.slowdown:
        what = f"{name} is slowed down: {', '.join(each.replace('_', ' ') for each in gpu.slowdown)}"
        fix = "check its cooling and power supply: nvidia-smi -q -d PERFORMANCE,TEMPERATURE,POWER"
        yield Finding("gpu-slow", WARNING, (host,), what, fix=fix)
    if gpu.processes:
        yield Finding(
            *("gpu-busy", WARNING, (host,), f"{name} is in use by {_holders(gpu.processes)}"),
            fix="end them if they are left over, or exclude the node",
        )


def _holders(processes: Sequence[GpuProcess]) -> str:
    shown = [f"pid {each.pid} ({each.name or 'unknown'}{_memory(each)})" for each in processes[:3]]
    more = f" and {len(processes) - 3} more" if len(processes) > 3 else ""
    return ", ".join(shown) + more


def _memory(process: GpuProcess) -> str:
    return "" if process.memory_mib is None else f", {format_bytes(process.memory_mib * 1024**2)}"
