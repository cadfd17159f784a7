"""What the probes measured, what it means, and how it is told; pure."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torchfab.core.format import columns
from torchfab.core.inventory import fold
from torchfab.transport.schema import Row, Span, fits

MARK = "torchfab-network "
SLOW = 0.5  # of what is usual among these nodes
MOST_LINKS = 10
_COUNT, _AMOUNT = Span(0, 1e15, int), Span(0, 1e15)
# What rank 0 of torchfab.remote.shims.network_benchmark prints, by its kind; any other line is not a result.
_TOLD: Mapping[str, Any] = {
    "hello": {
        "ranks": _COUNT,
        "backend": str,
        "interfaces": [{"name": (str, type(None)), "gbit": (_AMOUNT, type(None))}],
        "told": {"*": str},
    },
    "size": {
        **dict.fromkeys(("bytes", "count"), _COUNT),
        **dict.fromkeys(("p50_s", "max_s", "algbw_gbit", "busbw_gbit"), _AMOUNT),
    },
    "round": {"pairs": [Row((_COUNT, _COUNT, _AMOUNT, _AMOUNT))], "round": _COUNT, "rounds": _COUNT},
    "done": {},
}


@dataclass(frozen=True)
class Link:
    """What was measured between two nodes.

    Parameters
    ----------
    a, b : int
        Their node ranks.
    gbit : float
        Bus bandwidth of an all-reduce between their ranks, Gbit/s.
    latency_s : float
        Of the quickest all-reduce of a few bytes.
    """

    a: int
    b: int
    gbit: float
    latency_s: float


@dataclass
class Measured:
    """All that rank 0 has told.

    Parameters
    ----------
    hello : Mapping
        Backend, versions, the interface of each node.
    sizes : list of Mapping
        For each message size: bytes, count, p50_s, max_s, algbw_gbit, busbw_gbit.
    links : list of Link
        What was measured between pairs.
    rounds : tuple of int
        How many rounds of pairs were measured, and how many there are.
    done : bool
        Whether it was told to its end.
    nodes : int
        How many nodes there are: a link to any other is none.
    """

    hello: Mapping[str, Any] = field(default_factory=dict)
    sizes: list[Mapping[str, Any]] = field(default_factory=list)
    links: list[Link] = field(default_factory=list)
    rounds: tuple[int, int] = (0, 0)
    done: bool = False
    nodes: int = 1_000_000

    def take(self, text: str) -> None:
        """Take in a log line, if it is a result."""
        told = _told(text)
        if told["kind"] == "hello":
            self.hello = told
        elif told["kind"] == "size":
            self.sizes.append(told)
        elif told["kind"] == "round":
            self.links += [Link(*values) for values in told["pairs"] if max(values[:2]) < self.nodes]
            self.rounds = (told["round"], told["rounds"])
        self.done = self.done or bool(told["kind"] == "done" and self.hello)


def _told(text: str) -> Mapping[str, Any]:
    """Return the result in a log line; of the empty kind where there is none."""
    try:
        told: Any = json.loads(text[len(MARK) :]) if text.startswith(MARK) else None
    except (ValueError, RecursionError):
        told = None
    kind = told.get("kind") if isinstance(told, dict) else None
    return told if isinstance(kind, str) and kind in _TOLD and fits(told, _TOLD[kind]) else {"kind": ""}


# ---- what is slow


@dataclass(frozen=True)
class Verdict:
    """What stands out between pairs of nodes.

    Parameters
    ----------
    usual : float
        Gbit/s between nodes that are not slow.
    nodes : Mapping of int to tuple of Link
        The slow nodes, each with its links: all of them are slow.
    links : tuple of Link
        Slow links between other nodes, the worst first.
    """

    usual: float
    nodes: Mapping[int, tuple[Link, ...]]
    links: tuple[Link, ...]


def judge(links: Sequence[Link]) -> Verdict | None:
    """Return what is slow: less than half of what is usual. None where there is nothing to compare.

    A slow node makes all links to it slow, and with few nodes these are most of all links. So what is usual is taken
    from the best link of each node: that of a healthy node leads to another healthy one.
    """
    of = {rank: [link for link in links if rank in (link.a, link.b)] for link in links for rank in (link.a, link.b)}
    if len(of) < 3:
        return None
    best = {rank: max(link.gbit for link in mine) for rank, mine in of.items()}
    usual = statistics.median(best.values())
    slow = {rank: tuple(of[rank]) for rank in sorted(of) if best[rank] < SLOW * usual}
    others = [link for link in links if link.a not in slow and link.b not in slow]
    usual = statistics.median(link.gbit for link in others) if others else usual
    worst = sorted((link for link in others if link.gbit < SLOW * usual), key=lambda link: link.gbit)
    return Verdict(usual, slow, tuple(worst))


def verdict_lines(verdict: Verdict, hosts: Sequence[str]) -> list[str]:
    """Return in words which nodes and links are slow, or that none is."""
    lines = []
    for rank, links in verdict.nodes.items():
        gbits = [link.gbit for link in links]
        alike = max(gbits) < 1.2 * min(gbits)
        span = gbit(statistics.median(gbits)) if alike else f"{gbit(min(gbits))} to {gbit(max(gbits))}"
        lines.append(f"{hosts[rank]}: {span} Gbit/s to every other node, median is {gbit(verdict.usual)}")
    lines += [
        f"{hosts[link.a]} - {hosts[link.b]}: {gbit(link.gbit)} Gbit/s, median is {gbit(verdict.usual)}"
        for link in verdict.links[:MOST_LINKS]
    ]
    if len(verdict.links) > MOST_LINKS:
        lines.append(f"and {len(verdict.links) - MOST_LINKS} more slow links: --json has them all")
    return lines or [f"no node and no link is slow: {gbit(verdict.usual)} Gbit/s between two nodes (median)"]


# ---- words


def gbit(value: float) -> str:
    """Return Gbit/s with three digits that mean something: `0.0941`, `9.41`, `94.1`, `941`."""
    return f"{value:.0f}" if value >= 99.95 else f"{value:#.3g}"


def seconds(value: float) -> str:
    """Return a time for people: `85 us`, `1.24 ms`, `2.31 s`."""
    for unit, factor in (("us", 1e6), ("ms", 1e3)):
        if value * factor < 999.5:
            return f"{value * factor:.3g} {unit}"
    return f"{value:.3g} s"


def bytes_text(count: int) -> str:
    """Return a message size: `1 KiB`, `64 MiB`."""
    power = min(3, max(0, count.bit_length() - 1) // 10)
    return f"{count >> (10 * power)} {('B', 'KiB', 'MiB', 'GiB')[power]}"


def text(measured: Measured, hosts: Sequence[str]) -> str:
    """Return what was measured, for people."""
    lines = [_head(measured, hosts), ""]
    rows = [["size", "times", "time (p50)", "max", "algbw Gbit/s", "busbw Gbit/s"]]
    rows += [_size_row(each) for each in measured.sizes]
    lines.append(columns(rows))
    if measured.sizes:
        first, best = measured.sizes[0], max(measured.sizes, key=lambda each: float(each["busbw_gbit"]))
        lines += ["", f"latency: {seconds(first['p50_s'])} for {bytes_text(first['bytes'])}"]
        lines.append(f"bandwidth: {gbit(best['busbw_gbit'])} Gbit/s on the bus, with {bytes_text(best['bytes'])}")
    if measured.links:
        lines += ["", *pair_lines(measured, hosts)]
    return "\n".join(lines)


def _head(measured: Measured, hosts: Sequence[str]) -> str:
    hello = measured.hello
    over: dict[str, list[str]] = {}
    for host, each in zip(hosts, hello.get("interfaces", ()), strict=False):
        speed = f" ({each['gbit']:g} Gbit/s)" if each["gbit"] else ""
        over.setdefault((each["name"] or "an unknown interface") + speed, []).append(host)
    ways = ", ".join(f"{fold(names)} by {way}" for way, names in over.items())
    told = "".join(f", {name}={value}" for name, value in hello.get("told", {}).items())
    return f"all-reduce of {hello['ranks']} ranks on {len(hosts)} nodes, {hello['backend']}, {ways}{told}"


def _size_row(each: Mapping[str, Any]) -> list[str]:
    times = [seconds(each["p50_s"]), seconds(each["max_s"])]
    return [bytes_text(each["bytes"]), str(each["count"]), *times, gbit(each["algbw_gbit"]), gbit(each["busbw_gbit"])]


def pair_lines(measured: Measured, hosts: Sequence[str]) -> list[str]:
    """Return what was measured between pairs: a matrix for few nodes, and what is slow."""
    ran, of = measured.rounds
    pairs = "1 pair" if len(measured.links) == 1 else f"{len(measured.links)} pairs"
    note = "" if ran == of else "; the seconds were over: give more with --seconds"
    lines = [f"pairs of nodes, Gbit/s ({ran} of {of} rounds, {pairs}{note})"]
    if len(hosts) <= 16:
        lines.append(columns(matrix(measured.links, hosts)))
    verdict = judge(measured.links)
    return [*lines, "", *verdict_lines(verdict, hosts)] if verdict else lines


def matrix(links: Iterable[Link], hosts: Sequence[str]) -> list[list[str]]:
    """Return the rows of a table in which two hosts meet at what was measured between them."""
    of = {(link.a, link.b): link.gbit for link in links}
    rows = [["", *hosts]]
    for a, host in enumerate(hosts):
        found = [of.get((min(a, b), max(a, b))) for b in range(len(hosts))]
        rows.append([host, *("-" if value is None else gbit(value) for value in found)])
    return rows


def as_json(measured: Measured, hosts: Sequence[str]) -> dict[str, Any]:
    """Return the same for machines."""
    hello = {name: value for name, value in measured.hello.items() if name != "kind"}
    sizes = [{name: value for name, value in each.items() if name != "kind"} for each in measured.sizes]
    pairs = [
        {"hosts": [hosts[each.a], hosts[each.b]], "busbw_gbit": each.gbit, "latency_s": each.latency_s}
        for each in measured.links
    ]
    verdict = judge(measured.links)
    slow = {
        "usual_gbit": verdict.usual if verdict else None,
        "nodes": [hosts[rank] for rank in verdict.nodes] if verdict else [],
        "links": [[hosts[each.a], hosts[each.b]] for each in verdict.links] if verdict else [],
    }
    return {"hosts": list(hosts), **hello, "sizes": sizes, "pairs": pairs, "slow": slow}
