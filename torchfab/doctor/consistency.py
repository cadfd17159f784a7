"""What is not the same on all nodes and should be: versions, GPUs, clocks, code, disks. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torchfab.doctor.finding import ERROR, WARNING, Finding, differing, odd_ones
from torchfab.doctor.model import CheckRequirements, NodeReport

# The rendezvous of torchrun takes a node for dead whose last heartbeat is 15 s old by another node's clock.
BROKEN_CLOCK_S = 10.0
SKEWED_CLOCK_S = 0.5


def findings(nodes: Sequence[NodeReport], wanted: CheckRequirements) -> Iterator[Finding]:
    """Yield what differs between the nodes."""
    for each in CONSISTENCY_CHECKS:
        values = {seen.host: value for seen in nodes if (value := each.value(seen)) is not None}
        yield from differing(each.kind, each.severity, values, each.what, each.fix)
    yield from clocks(nodes)
    yield from _code(nodes, wanted)
    yield from _shared(nodes)


# ---- what is simply compared


@dataclass(frozen=True)
class ConsistencyCheck:
    """Something that all nodes should have alike.

    Parameters
    ----------
    value : callable
        What a node has, as text; None where it is not known there, or another finding says why.
    """

    kind: str
    severity: str
    value: Callable[[NodeReport], str | None]
    what: str
    fix: str


def python(seen: NodeReport) -> str | None:
    """Return the version of the training interpreter."""
    return _of_python(seen, "python")


def torch(seen: NodeReport) -> str | None:
    """Return the version of torch."""
    return _of_python(seen, "torch") or None


def cuda(seen: NodeReport) -> str | None:
    """Return the version of CUDA that torch was built with."""
    return _of_python(seen, "cuda") if torch(seen) else None


def nccl(seen: NodeReport) -> str | None:
    """Return the version of NCCL that came with torch."""
    return _of_python(seen, "nccl") if torch(seen) else None


def _of_python(seen: NodeReport, name: str) -> str | None:
    told = seen.part("python")
    return None if told is None or told.get("problem") else str(told[name])


def driver(seen: NodeReport) -> str | None:
    """Return the version of the NVIDIA driver; None on a machine without GPUs."""
    return (seen.part("gpus") or {}).get("driver") or None


def gpus(seen: NodeReport) -> str | None:
    """Return number and kind of the GPUs: `8 NVIDIA H100 80GB HBM3`."""
    told = seen.part("gpus")
    if told is None or told.get("problem"):
        return None
    names = [each["name"] + (" (MIG)" if each["mig"] else "") for each in told["gpus"]]
    kinds = dict.fromkeys(names)
    return ", ".join(f"{names.count(name)} {name}" for name in kinds) or "none"


def tmux(seen: NodeReport) -> str | None:
    """Return the version of tmux."""
    return (seen.part("tmux") or {}).get("version") or None


def open_files(seen: NodeReport) -> str | None:
    """Return the limit of open files."""
    told = seen.part("limits")
    return None if told is None else str(told["files"] if told["files"] is not None else "unlimited")


_INSTALL = "install the same version everywhere, or give one that is the same with --python"
CONSISTENCY_CHECKS = (
    ConsistencyCheck("python-differs", WARNING, python, "python is another version than elsewhere", _INSTALL),
    ConsistencyCheck("torch-differs", ERROR, torch, "torch is another version than elsewhere", _INSTALL),
    ConsistencyCheck("cuda-differs", ERROR, cuda, "torch was built with another CUDA than elsewhere", _INSTALL),
    ConsistencyCheck("nccl-differs", ERROR, nccl, "NCCL is another version than elsewhere", _INSTALL),
    ConsistencyCheck(
        "driver-differs", WARNING, driver, "the driver is another version than elsewhere", "install the same driver"
    ),
    ConsistencyCheck(
        *("gpus-differ", ERROR, gpus, "the GPUs are not those of the other nodes"),
        "see nvidia-smi -L and dmesg there; if it is meant: leave the node out, or launch-per-gpu with a gpus file",
    ),
)


# ---- clocks


def clocks(nodes: Sequence[NodeReport], most_s: float = SKEWED_CLOCK_S) -> Iterator[Finding]:
    """Yield the nodes whose clock is off by more than `most_s`: from the middle of all clocks, ours among them."""
    known = {seen.host: seen.clock for seen in nodes if seen.clock is not None}
    middle = statistics.median_low([0.0, *(clock.ahead_s for clock in known.values())])
    for host, clock in known.items():
        off = clock.ahead_s - middle
        if abs(off) - clock.within_s <= most_s:
            continue
        broken = abs(off) > BROKEN_CLOCK_S
        what = "its clock is off" + (": torchrun's rendezvous takes it for dead" if broken else "")
        yield Finding(
            *("clock-skew", ERROR if broken else WARNING, (host,), what, f"within {most_s * 1000:.0f} ms"),
            f"{milliseconds(off)} (known to {clock.within_s * 1000:.1f} ms)",
            "let it follow a time server there: timedatectl set-ntp true, or chronyc makestep",
        )


def milliseconds(seconds: float) -> str:
    """Return an offset for people, in milliseconds: `+5000 ms`."""
    count = seconds * 1000
    if abs(count) < 0.05:
        return "0 ms"
    return f"{count:+.1f} ms" if abs(count) < 10 else f"{count:+.0f} ms"


# ---- code


def code(seen: NodeReport) -> str | None:
    """Return the digest of the code in the working directory; None where there is none to compare."""
    told = seen.part("code")
    return told["digest"] if told and told["whole"] else None


def asked_for_files(nodes: Sequence[NodeReport]) -> set[int]:
    """Return the ranks of nodes that must tell their files one by one: one of each kind of code, where they differ."""
    ranks: dict[str, int] = {}
    for seen in sorted(nodes, key=lambda seen: seen.node.rank):
        if (digest := code(seen)) is not None:
            ranks.setdefault(digest, seen.node.rank)
    return set(ranks.values()) if len(ranks) > 1 else set()


def _code(nodes: Sequence[NodeReport], wanted: CheckRequirements) -> Iterator[Finding]:
    values = {seen.host: digest for seen in nodes if (digest := code(seen)) is not None}
    usual, others = odd_ones(values)
    files = {code(seen): seen.connectivity["files"] for seen in nodes if seen.connectivity.get("files") is not None}
    for digest, hosts in others.items():
        names = _other_files(files.get(usual, {}), files.get(digest, {}))
        what = f"the code in {wanted.workdir} is not that of the other nodes" + (f": {names}" if names else "")
        yield Finding("code-differs", ERROR, tuple(hosts), what, usual, digest, "copy it to all nodes: fab sync")
    if wanted.digest and usual and usual != wanted.digest:
        hosts = [host for host, digest in values.items() if digest == usual]
        what = f"the code in {wanted.workdir} is not that of this machine"
        yield Finding(
            *("code-not-ours", WARNING, tuple(hosts), what, wanted.digest, usual),
            "copy it to the nodes, if it is meant to be the same: fab sync",
        )


def _other_files(usual: Mapping[str, str], found: Mapping[str, str]) -> str:
    odd = sorted(name for name in {*usual, *found} if usual.get(name, "") != found.get(name, ""))
    words = [f"{name} is missing" if not found.get(name) else name for name in odd[:3]]
    return ", ".join(words) + (f" and {len(odd) - 3} more files" if len(odd) > 3 else "")


# ---- shared disks


def sees(seen: NodeReport, place: str) -> bool | None:
    """Return whether a node sees the file that node 0 has made in a place; None where it was not asked."""
    told: Mapping[str, Any] = seen.connectivity.get("sees", {})
    return told.get(place)


def shared(nodes: Sequence[NodeReport], place: str) -> bool | None:
    """Return whether all nodes besides node 0 share a place with it; None where there is nobody to ask."""
    answers = [answer for seen in nodes[1:] if (answer := sees(seen, place)) is not None]
    return all(answers) if answers else None


def _shared(nodes: Sequence[NodeReport]) -> Iterator[Finding]:
    words = {True: "shared with node 0", False: "its own"}
    values = {seen.host: words[answer] for seen in nodes[1:] if (answer := sees(seen, "workdir")) is not None}
    yield from differing(
        *("workdir-not-shared", WARNING, values, "the disk of the working directory is not as on the other nodes"),
        "see whether the file system is mounted there: findmnt -T, mount -a",
    )
