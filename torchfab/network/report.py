"""Collect the benchmark results, find slow nodes and links, and render them. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import field
from typing import Annotated, Any, TypeAlias

import msgspec
from msgspec import Meta, Struct

from torchfab.core.format import align_columns, format_bytes, format_seconds, plural
from torchfab.core.inventory import fold
from torchfab.core.lazy_dataclass import dataclass

MARK = "torchfab-network "
SLOW_FRACTION = 0.5  # of the typical bandwidth of these nodes
MAX_LINKS = 10
_Count: TypeAlias = Annotated[int, Meta(ge=0, le=10**15)]
_Amount: TypeAlias = Annotated[float, Meta(ge=0, le=1e15)]


class Interface(Struct, frozen=True):
    """The network interface that a node uses, with its address and its speed in Gbit/s; None if unknown."""

    name: str | None
    gbit: _Amount | None
    address: str = ""


class Hello(Struct, frozen=True, tag_field="kind", tag="hello"):
    """The first result that rank 0 of `torchfab.remote.shims.network_benchmark` prints.

    Parameters
    ----------
    settings : dict of str to str
        Versions and settings that matter, by name.
    """

    ranks: _Count
    backend: str
    interfaces: list[Interface]
    settings: dict[str, str]
    torch: str = ""


class SizeResult(Struct, frozen=True, tag_field="kind", tag="size"):
    """The measurement of one message size: times in seconds, bandwidths in Gbit/s."""

    bytes: _Count
    count: _Count
    p50_s: _Amount
    max_s: _Amount
    algbw_gbit: _Amount
    busbw_gbit: _Amount


class Round(Struct, frozen=True, tag_field="kind", tag="round"):
    """A round of pairs: node ranks a and b, Gbit/s, latency in seconds; its number, and that of all rounds."""

    pairs: list[tuple[_Count, _Count, _Amount, _Amount]]
    round: _Count
    rounds: _Count


class Finished(Struct, frozen=True, tag_field="kind", tag="done"):
    """The last result."""


_DECODER = msgspec.json.Decoder(Hello | SizeResult | Round | Finished)


@dataclass(frozen=True)
class Link:
    """The measurement between two nodes.

    Parameters
    ----------
    a, b : int
        Their node ranks.
    gbit : float
        Bus bandwidth of an all-reduce between their ranks, Gbit/s.
    latency_s : float
        Duration of the fastest all-reduce of a few bytes, in seconds.
    """

    a: int
    b: int
    gbit: float
    latency_s: float


@dataclass
class BenchmarkResult:
    """The results that rank 0 has printed so far.

    Parameters
    ----------
    hello : Hello, optional
        Backend, versions, and the interface of each node.
    sizes : list of SizeResult
        One for each message size.
    links : list of Link
        The measurements between pairs of nodes.
    rounds : tuple of int
        Number of rounds of pairs that were measured, and of all rounds.
    done : bool
        Whether the benchmark has finished.
    nodes : int
        Number of nodes: links to a higher node rank are ignored.
    """

    hello: Hello | None = None
    sizes: list[SizeResult] = field(default_factory=list)
    links: list[Link] = field(default_factory=list)
    rounds: tuple[int, int] = (0, 0)
    done: bool = False
    nodes: int = 1_000_000

    def feed(self, text: str) -> None:
        """Read a log line, and add it if it is a result.

        Parameters
        ----------
        text : str
            Any line of the log of rank 0.
        """
        if not text.startswith(MARK):
            return
        try:
            result = _DECODER.decode(text[len(MARK) :].encode("utf-8", "surrogateescape"))
        except (msgspec.MsgspecError, RecursionError, UnicodeError):  # a log line that only looks like a result
            return
        if isinstance(result, Hello):
            self.hello = result
        elif isinstance(result, SizeResult):
            self.sizes.append(result)
        elif isinstance(result, Round):
            self.links += [Link(*values) for values in result.pairs if max(values[:2]) < self.nodes]
            self.rounds = (result.round, result.rounds)
        else:
            self.done = self.done or self.hello is not None


# ---- slow nodes and links


@dataclass(frozen=True)
class SlowLinks:
    """The nodes and links that are slower than the others.

    Parameters
    ----------
    typical : float
        Typical bandwidth between nodes that are not slow, Gbit/s.
    nodes : Mapping of int to tuple of Link
        Slow nodes, each with its links, all of which are slow.
    links : tuple of Link
        Slow links between the other nodes, the slowest first.
    """

    typical: float
    nodes: Mapping[int, tuple[Link, ...]]
    links: tuple[Link, ...]


def find_slow(links: Sequence[Link]) -> SlowLinks | None:
    """Find slow nodes and links: those with less than half of the typical bandwidth.

    All links of a slow node are slow, and with few nodes these can be most of all links. The typical bandwidth is
    therefore the median of the best link of each node: the best link of a healthy node leads to another healthy node.

    Parameters
    ----------
    links : sequence of Link
        The measured pairs.

    Returns
    -------
    SlowLinks or None
        None if fewer than 3 nodes were measured: then there is nothing to compare.
    """
    by_node = {
        rank: [link for link in links if rank in (link.a, link.b)] for link in links for rank in (link.a, link.b)
    }
    if len(by_node) < 3:
        return None
    best = {rank: max(link.gbit for link in own) for rank, own in by_node.items()}
    usual = statistics.median(best.values())
    slow = {rank: tuple(by_node[rank]) for rank in sorted(by_node) if best[rank] < SLOW_FRACTION * usual}
    others = [link for link in links if link.a not in slow and link.b not in slow]
    usual = statistics.median(link.gbit for link in others) if others else usual
    worst = sorted((link for link in others if link.gbit < SLOW_FRACTION * usual), key=lambda link: link.gbit)
    return SlowLinks(usual, slow, tuple(worst))


def slow_lines(verdict: SlowLinks, hosts: Sequence[str]) -> list[str]:
    """Return the slow nodes and links as human-readable lines.

    Parameters
    ----------
    verdict : SlowLinks
        As `find_slow` returns it.
    hosts : sequence of str
        By node rank.

    Returns
    -------
    list of str
        One line that says so if nothing is slow.
    """
    lines = []
    for rank, links in verdict.nodes.items():
        gbits = [link.gbit for link in links]
        similar = max(gbits) < 1.2 * min(gbits)
        bandwidth = (
            format_gbit(statistics.median(gbits))
            if similar
            else f"{format_gbit(min(gbits))} to {format_gbit(max(gbits))}"
        )
        lines.append(f"{hosts[rank]}: {bandwidth} Gbit/s to every other node, median is {format_gbit(verdict.typical)}")
    lines += [
        f"{hosts[link.a]} - {hosts[link.b]}: {format_gbit(link.gbit)} Gbit/s, median is {format_gbit(verdict.typical)}"
        for link in verdict.links[:MAX_LINKS]
    ]
    if len(verdict.links) > MAX_LINKS:
        lines.append(f"and {len(verdict.links) - MAX_LINKS} more slow links: --json has them all")
    return lines or [f"no node and no link is slow: {format_gbit(verdict.typical)} Gbit/s between two nodes (median)"]


# ---- text


def format_gbit(value: float) -> str:
    """Return a bandwidth with three significant digits: `0.0941`, `9.41`, `94.1`, `941`.

    Parameters
    ----------
    value : float
        In Gbit/s.

    Returns
    -------
    str
        Without a unit.
    """
    return f"{value:.0f}" if value >= 99.95 else f"{value:#.3g}"


def render(measured: BenchmarkResult, hosts: Sequence[str]) -> str:
    """Return the results as human-readable text.

    Parameters
    ----------
    measured : BenchmarkResult
        Of a finished benchmark.
    hosts : sequence of str
        By node rank.

    Returns
    -------
    str
        A table of sizes, and the measurements between pairs.
    """
    lines = [_describe_job(measured, hosts), ""]
    rows = [["size", "times", "time (p50)", "max", "algbw Gbit/s", "busbw Gbit/s"]]
    rows += [_size_row(each) for each in measured.sizes]
    lines.append(align_columns(rows))
    if measured.sizes:
        first, best = measured.sizes[0], max(measured.sizes, key=lambda each: each.busbw_gbit)
        lines += ["", f"latency: {format_seconds(first.p50_s)} for {format_bytes(first.bytes)}"]
        lines.append(f"bandwidth: {format_gbit(best.busbw_gbit)} Gbit/s on the bus, with {format_bytes(best.bytes)}")
    if measured.links:
        lines += ["", *pair_lines(measured, hosts)]
    return "\n".join(lines)


def _describe_job(measured: BenchmarkResult, hosts: Sequence[str]) -> str:
    hello = measured.hello
    assert hello is not None  # the benchmark has finished
    hosts_by_interface: dict[str, list[str]] = {}
    for host, each in zip(hosts, hello.interfaces, strict=False):
        speed = f" ({each.gbit:g} Gbit/s)" if each.gbit else ""
        hosts_by_interface.setdefault((each.name or "an unknown interface") + speed, []).append(host)
    interfaces = ", ".join(f"{fold(names)} by {interface}" for interface, names in hosts_by_interface.items())
    settings = "".join(f", {name}={value}" for name, value in hello.settings.items())
    where = f"{plural(hello.ranks, 'rank')} on {plural(len(hosts), 'node')}"
    return f"all-reduce of {where}, {hello.backend}, {interfaces}{settings}"


def _size_row(each: SizeResult) -> list[str]:
    times = [format_seconds(each.p50_s), format_seconds(each.max_s)]
    return [
        format_bytes(each.bytes),
        str(each.count),
        *times,
        format_gbit(each.algbw_gbit),
        format_gbit(each.busbw_gbit),
    ]


def pair_lines(measured: BenchmarkResult, hosts: Sequence[str]) -> list[str]:
    """Return the measurements between pairs of nodes as human-readable lines.

    Parameters
    ----------
    measured : BenchmarkResult
        With links.
    hosts : sequence of str
        By node rank.

    Returns
    -------
    list of str
        A matrix for up to 16 nodes, and the slow nodes and links.
    """
    done, total = measured.rounds
    pairs = "1 pair" if len(measured.links) == 1 else f"{len(measured.links)} pairs"
    note = "" if done == total else "; the time limit was reached: raise it with --seconds"
    lines = [f"pairs of nodes, Gbit/s ({done} of {total} rounds, {pairs}{note})"]
    if len(hosts) <= 16:
        lines.append(align_columns(matrix(measured.links, hosts)))
    verdict = find_slow(measured.links)
    return [*lines, "", *slow_lines(verdict, hosts)] if verdict else lines


def matrix(links: Iterable[Link], hosts: Sequence[str]) -> list[list[str]]:
    """Return the rows of a table of hosts by hosts, with the bandwidth between each pair.

    Parameters
    ----------
    links : iterable of Link
        The measured pairs.
    hosts : sequence of str
        By node rank.

    Returns
    -------
    list of list of str
        The first row and column hold the hosts; `-` where a pair was not measured.
    """
    by_pair = {(link.a, link.b): link.gbit for link in links}
    rows = [["", *hosts]]
    for a, host in enumerate(hosts):
        found = [by_pair.get((min(a, b), max(a, b))) for b in range(len(hosts))]
        rows.append([host, *("-" if value is None else format_gbit(value) for value in found)])
    return rows


def as_json(measured: BenchmarkResult, hosts: Sequence[str]) -> dict[str, Any]:
    """Return the results as JSON values.

    Parameters
    ----------
    measured : BenchmarkResult
        Of a finished benchmark.
    hosts : sequence of str
        By node rank.

    Returns
    -------
    dict
        As `fab network --json` prints it.
    """
    hello, *sizes = [
        {name: value for name, value in msgspec.to_builtins(each).items() if name != "kind"}
        for each in (measured.hello, *measured.sizes)
    ]
    pairs = [
        {"hosts": [hosts[each.a], hosts[each.b]], "busbw_gbit": each.gbit, "latency_s": each.latency_s}
        for each in measured.links
    ]
    verdict = find_slow(measured.links)
    slow = {
        "usual_gbit": verdict.typical if verdict else None,
        "nodes": [hosts[rank] for rank in verdict.nodes] if verdict else [],
        "links": [[hosts[each.a], hosts[each.b]] for each in verdict.links] if verdict else [],
    }
    return {"hosts": list(hosts), **hello, "sizes": sizes, "pairs": pairs, "slow": slow}
