"""Goals of the benchmark, and whether the measurements meet them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from launching.store import Store
from launching.tools import OURS


@dataclass(frozen=True)
class Goal:
    """A goal.

    Parameters
    ----------
    what : str
        What is measured.
    value : float or None
        The measurement; None if there is none.
    most : float
        Upper limit; with `least`, the lower limit.
    unit : str
        Of both.
    """

    what: str
    value: float | None
    most: float
    unit: str = ""
    least: bool = False

    @property
    def shown(self) -> str:
        """The measurement, formatted."""
        return "" if self.value is None else _format(self.value, self.unit)

    @property
    def goal(self) -> str:
        """The goal, formatted."""
        return f"{'≥' if self.least else '≤'} {_format(self.most, self.unit)}"

    @property
    def verdict(self) -> str:
        """`met`, `missed` or `not measured`."""
        if self.value is None:
            return "not measured"
        return "met" if (self.value >= self.most if self.least else self.value <= self.most) else "missed"


def _format(value: float, unit: str) -> str:
    shown = f"{value:.0f}" if value >= 100 or value == int(value) else f"{value:.3g}"
    return f"{shown} {unit}".strip()


def goals(store: Store) -> Iterator[Goal]:
    """Yield all goals."""
    yield from _fan_out(store)
    yield from _whole(store)
    yield from _life(store)
    yield from _one_machine(store)


def _fan_out(store: Store) -> Iterator[Goal]:
    for kex, most, counts in (("curve25519", 1.0, (64, 1000)), ("default", 0.35, (64,))):
        for hosts in counts:
            query = {"kind": "true", "kex": kex, "hosts": hosts}
            ratio = _ratio(store, "wall_s", query, OURS, "pdsh")
            yield Goal(f"`true` on {hosts} hosts, {kex}: torchfab's wall time against pdsh's", ratio, most, "x")
    cpu = store.median("cpu_s", kind="true", kex="curve25519", hosts=1000, tool=OURS)
    yield Goal("`true` on 1000 hosts: client CPU a host", cpu, 8, "ms")  # seconds of 1000 hosts


def _whole(store: Store) -> Iterator[Goal]:
    per_gpu = {"kind": "per-gpu", "kex": "curve25519", "hosts": 64}
    ratio = _ratio(store, "running_s", per_gpu, OURS, "clush")
    yield Goal("launch-per-gpu, 64 x 8: until all run, against clush", ratio, 1.2, "x")
    nodes = store.median("nodes_cpu_s", **per_gpu, tool=OURS)
    yield Goal("launch-per-gpu, 64 x 8: CPU of all nodes", nodes, 30, "s")
    per_node = {"kind": "per-node", "kex": "curve25519", "tool": OURS}
    nodes = store.median("nodes_cpu_s", **per_node, hosts=64)
    yield Goal("launch-per-node on 64 hosts: CPU of all nodes", nodes, 11, "s")
    yield from _skew(store, per_node)
    yield from _thousand(store, {**per_node, "hosts": 1000})


def _skew(store: Store, per_node: Mapping[str, Any]) -> Iterator[Goal]:
    login = store.median("wall_s", part="fan-out", kind="true", kex="curve25519", hosts=2, tool="pdsh")
    skew = store.median("skew_s", **per_node, hosts=64)
    value = skew / login if skew and login else None
    yield Goal("start skew of 64 hosts, against a login (`true` on 2 hosts by pdsh)", value, 1.5, "x")


def _thousand(store: Store, query: Mapping[str, Any]) -> Iterator[Goal]:
    found = list(store.select(**query))
    missing = max((each.get("missing", 1) + (each["code"] != 0) for each in found), default=None)
    yield Goal("launch-per-node on 1000 hosts: failures", missing, 0)
    memory = store.median("memory_mb", **query)
    yield Goal("launch-per-node on 1000 hosts: client memory a host", memory and memory * 1.024, 300, "kB")
    cpu = store.median("cpu_s", **query)
    yield Goal("launch-per-node on 1000 hosts: client CPU a host", cpu, 8, "ms")  # seconds of 1000 hosts
    small = store.median("cpu_s", **{**query, "hosts": 64})
    growth = (cpu / 1000) / (small / 64) if cpu and small else None
    yield Goal("client CPU a host at 1000 against 64 (linear: 1)", growth, 1.2, "x")


def _life(store: Store) -> Iterator[Goal]:
    for hosts in (2, 64):
        query = {"part": "life", "hosts": hosts}
        bare, status, stop = (store.median(f"{what}_s", **query) for what in ("bare", "status", "stop"))
        yield Goal(f"status of {hosts} hosts against bare logins", status / bare if bare and status else None, 1.2, "x")
        yield Goal(
            f"stop of {hosts} hosts, with proof, against status", stop / status if stop and status else None, 1.5, "x"
        )
    for hosts in sorted(store.known("hosts", part="dead")):
        found = [each["dead_s"] - each["alive_s"] - each["timeout_s"] for each in store.select(part="dead", hosts=hosts)
                 if "dead_s" in each]  # fmt: skip
        yield Goal(f"one silent host among {hosts}: beyond its time-out", max(found, default=None), 1, "s")


def _one_machine(store: Store) -> Iterator[Goal]:
    for kind in ("alike", "different", "flood"):
        rate = store.median("lines_per_s", part="lines", kind=kind)
        yield Goal(f"log lines merged a second on one core, {kind}", rate, 200_000, "lines/s", least=True)
    yield Goal("`fab --list`", store.median("list_s", part="start-up"), 0.5, "s")
    yield Goal("`fab status` of a job on this machine", store.median("status_s", part="start-up"), 0.5, "s")
    yield Goal("`fab jobs` with 1,000 records", store.median("jobs_s", part="records"), 0.7, "s")
    yield Goal("`fab logs --lines 10` of a log of 2 GB", store.median("log_s", part="records"), 1, "s")
    yield Goal("`fab logs --lines 10` of a log of 2 GB: memory", store.median("log_mb", part="records"), 60, "MB")
    yield Goal("a rank more on a node: memory beyond itself", store.median("rank_mb", part="ranks"), 3, "MB")
    query = {"part": "first-step"}
    total = store.median("total_s", **query)
    own = [store.median(name, **query) or 0.0 for name in ("prepared_s", "agents_s")]
    yield Goal("torchfab's share of the time to the first step", sum(own) / total if total else None, 0.1)


def _ratio(store: Store, value: str, query: Mapping[str, Any], tool: str, other: str) -> float | None:
    ours, theirs = (store.median(value, **{**query, "tool": each}) for each in (tool, other))
    return ours / theirs if ours and theirs else None
