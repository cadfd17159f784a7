"""Tables, goals and a plot from the results."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from launching.goals import goals
from launching.store import Store
from launching.tools import OURS

TOOL_LABELS = {
    OURS: "torchfab",
    "seed": "the tutorial's lines (one ssh after the other)",
    "xargs": "xargs -P 64 ssh",
    "pdsh": "pdsh -f 64",
    "clush": "clush -f 64",
    "parallel-ssh": "parallel-ssh, 64 at once",
    "asyncssh": "asyncssh, 64 at once",
    "mpirun": "mpirun (Open MPI)",
}
KINDS = {
    "true": "Fan-out: `true` on every host",
    "per-node": "Whole: one process a host (launch-per-node)",
    "per-gpu": "Whole: eight processes a host (launch-per-gpu)",
}
NOTES = {
    "true": "torchfab has no command that runs `true`: its own connections do it, host keys checked, in a program that "
    "starts Python and imports Fabric, as every `fab` command does.",
    "per-node": "torchrun is replaced by a program that says when it began and ends: torchrun imports torch, 2 s of "
    "CPU a node, which on one machine would be all that is measured. torchfab asks that interpreter its questions, "
    "and makes all its checks; the others make none.",
    "per-gpu": "A rank is a Python script that says when it began and ends. The tutorial's lines log in once a rank; "
    "pdsh, clush, parallel-ssh and asyncssh run one script a host, which opens eight tmux sessions; mpirun starts "
    "processes without tmux.",
}


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def write(store: Store, folder: Path, before: Store | None = None) -> str:
    """Write launch.md and launch.png; return the text. With results of an earlier version, its figures stand beside."""
    parts = [
        goals_text(store, before),
        *(_comparison(store, kind, kex) for kind, kex in _compared(store)),
        *_others(store),
    ]
    text = "# Launching: torchfab and the tools one would use instead\n\n" + "\n".join(part for part in parts if part)
    text += f"\n{machine(store)}\n\nMade by `inv bench-launch`; every figure is a median over the rounds.\n"
    if list(store.select(part="fan-out")) or list(store.select(part="whole")):
        draw(store, folder / "launch.png")
        text += "\n![Wall time and client CPU by number of hosts](launch.png)\n"
    (folder / "launch.md").write_text(text)
    return text


def goals_text(store: Store, before: Store | None = None) -> str:
    """Return the goals with their measurements, and those of an earlier version if there are any."""
    earlier = {each.what: each.shown for each in goals(before)} if before and before.results else {}
    column = [f"before ({_version(before)})"] if before and earlier else []
    rows = [
        [each.what, *([earlier[each.what] or "not measured"] if earlier else []), each.shown, each.goal, each.verdict]
        for each in goals(store)
    ]
    return "## Goals\n\n" + table(["what", *column, "measured", "goal", ""], rows)


def _version(store: Store) -> str:
    return str(store.results[0]["values"].get("versions", {}).get(OURS, "an earlier version")).removesuffix("-dirty")


def _compared(store: Store) -> list[tuple[str, str]]:
    found = {(each["kind"], each["kex"]) for part in ("fan-out", "whole") for each in store.select(part=part)}
    return sorted(found, key=lambda pair: (list(KINDS).index(pair[0]), pair[1]))


def _comparison(store: Store, kind: str, kex: str) -> str:
    query = {"kind": kind, "kex": kex}
    rows, measured = [], [tool for tool in TOOL_LABELS if list(store.select(**query, tool=tool))]
    for hosts in sorted(store.known("hosts", **query)):
        rows += [_row(store, tool, {**query, "hosts": hosts, "tool": tool}) for tool in measured]
    words = "curve25519 on both sides" if kex == "curve25519" else "OpenSSH's default key exchange"
    whole = kind != "true"
    head = ["hosts", "tool", *(["all run after"] if whole else []), "wall", "client CPU", "client memory", "nodes' CPU"]
    head += [*(["start skew"] if whole else []), "failures"]
    return f"## {KINDS[kind]}, {words}\n\n{NOTES[kind]}\n\n" + table(head, rows)


def _row(store: Store, tool: str, query: dict[str, Any]) -> list[str]:
    results = list(store.select(**query))
    whole = query["kind"] != "true"
    columns = 8 if whole else 6
    if not results:
        return [str(query["hosts"]), TOOL_LABELS[tool], "not measured", *[""] * (columns - 2)]

    def shown(value: str, words: Callable[[float], str]) -> str:
        median = store.median(value, **query)
        return "" if median is None else words(median)

    return [
        *(str(query["hosts"]), TOOL_LABELS[tool]),
        *([shown("running_s", seconds)] if whole else []),
        *(shown("wall_s", seconds), shown("cpu_s", seconds), shown("memory_mb", lambda mb: f"{mb:.0f} MB")),
        shown("nodes_cpu_s", seconds),
        *([shown("skew_s", seconds)] if whole else []),
        _failures(results),
    ]


def _failures(results: list[dict[str, Any]]) -> str:
    late = sum(each["code"] == 124 for each in results)
    failed = sum(each["code"] not in (0, 124) for each in results)
    missing = max(each.get("missing", 0) for each in results)
    words = [f"{missing} ranks did not start" if missing else "", f"{failed} of {len(results)} runs" if failed else ""]
    words.append(f"{late} of {len(results)} runs over the limit" if late else "")
    return "; ".join(word for word in words if word) or "none"


def seconds(value: float) -> str:
    """Return seconds, formatted."""
    return f"{value:.2f} s" if value < 10 else f"{value:.0f} s"


def _others(store: Store) -> list[str]:
    return [_life(store), _lines(store), _start_up(store), _node(store), _first_step(store)]


def _life(store: Store) -> str:
    rows = []
    for hosts in sorted(store.known("hosts", part="life")):
        query = {"part": "life", "hosts": hosts}
        times = [store.median(f"{what}_s", **query) for what in ("bare", "status", "logs", "stop")]
        rows.append([str(hosts), *("" if time is None else seconds(time) for time in times)])
    if not rows:
        return ""
    head = ["hosts", "bare login on every host", "`fab status`", "`fab logs`", "`fab stop`, with proof"]
    return "## The life of a job: one process a host\n\n" + table(head, rows)


def _lines(store: Store) -> str:
    rows = []
    for kind in store.known("kind", part="lines"):
        query = {"part": "lines", "kind": kind}
        rate, peak = store.median("lines_per_s", **query), store.median("peak_mb", **query)
        rows.append([kind, f"{rate:.0f}" if rate else "failed", f"{peak:.0f} MB" if peak else ""])
    return (
        "## Log lines merged, 64 hosts of 8 ranks\n\n" + table(["lines", "a second of CPU", "memory"], rows)
        if rows
        else ""
    )


def _start_up(store: Store) -> str:
    query = {"part": "start-up"}
    times = {what: store.median(f"{what}_s", **query) for what in ("list", "status", "import_fabric")}
    if not times["list"]:
        return ""
    words = {"list": "`fab --list`", "status": "`fab status` of a local job", "import_fabric": "`import fabric` alone"}
    text = "## Start-up\n\n" + table(["what", "wall"], [[words[what], seconds(s)] for what, s in times.items() if s])
    imports = next(store.select(part="imports"), None)
    if imports is None or "packages" not in imports:
        return text
    rows = [[name, f"{ms:.1f} ms"] for name, ms in imports["packages"]]
    return (
        text
        + f"\nImports of `fab --list`, {imports['total_ms']:.0f} ms under -X importtime:\n\n"
        + table(["package", "its own modules"], rows)
    )


def _node(store: Store) -> str:
    names = {
        "python_ms": ("a bare interpreter starts", "{:.0f} ms of CPU"),
        "supervisor_ms": ("a supervisor, with its start, beyond its process", "{:.0f} ms of CPU"),
        "rss_mb": ("a supervisor's memory", "{:.1f} MB"),
        "pss_mb": ("of it, not shared with others", "{:.1f} MB"),
        "watching_ms_per_s": ("a supervisor that watches", "{:.1f} ms of CPU a second"),
        "sent_bytes": ("sent to each host: torchfab's program", "{:.0f} bytes"),
        "first_rank_mb": ("a job of one rank, without the rank: supervisor and tmux", "{:.1f} MB"),
        "rank_mb": ("a rank more, without the rank", "{:.2f} MB"),
        "rank_cpu_ms": ("a rank more, until all run, without the rank", "{:.1f} ms of CPU"),
    }
    found = {name: store.median(name) for name in names}
    rows = [[words, shape.format(found[name])] for name, (words, shape) in names.items() if found[name] is not None]
    return "## On a node\n\n" + table(["what", "cost"], rows) if rows else ""


def _first_step(store: Store) -> str:
    query = {"part": "first-step"}
    words = {
        "prepared_s": "torchfab: start, connect, check and prepare both nodes, plan",
        "agents_s": "torchfab: both torchrun started under supervisors",
        "ranks_s": "torchrun: imports, rendezvous, both ranks started",
        "step_s": "train_llm.py: imports, process group, data, model, first step",
        "total_s": "from the command to the first step",
    }
    found = {name: store.median(name, **query) for name in words}
    total = found["total_s"]
    if not total:
        return ""
    rows = [[words[name], seconds(s), f"{s / total:.0%}"] for name, s in found.items() if s is not None]
    return "## Time to the first step: train_llm.py on two hosts\n\n" + table(["phase", "time", "share"], rows)


def machine(store: Store) -> str:
    """Return the machine and the relevant versions."""
    info = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*: (.*)", info.read_text()) if info.exists() else []
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    cpu = names[0] if names else platform.machine()
    box = f"{os.cpu_count()} cores of {cpu}, {pages:.0f} GB, Linux {platform.release()}"
    last = store.results[-1]["values"] if store.results else {}
    versions = ", ".join(f"{name} {number}" for name, number in last.get("versions", {}).items() if number)
    days = sorted({each["values"]["when"] for each in store.results})
    when = " to ".join(dict.fromkeys([*days[:1], *days[-1:]]))
    load = f"load average {os.getloadavg()[0]:.1f} when this was written"
    return f"{box}; Python {platform.python_version()}; {versions}; measured {when}; {load}."


def draw(store: Store, path: Path) -> None:
    """Plot wall time and client CPU over the number of hosts, for each comparison."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    # A single number of hosts is not a curve; the tables have its figures. It is plotted only if there is nothing else.
    several = [each for each in _compared(store) if len(store.known("hosts", kind=each[0], kex=each[1])) > 1]
    compared = several or _compared(store)
    figure, axes = pyplot.subplots(2, len(compared), figsize=(5 * len(compared), 8), squeeze=False)
    for column, (kind, kex) in enumerate(compared):
        for axis, value, words in zip(axes[:, column], ("wall_s", "cpu_s"), ("wall", "client CPU"), strict=True):
            for number, tool in enumerate(TOOL_LABELS):
                hosts = sorted(store.known("hosts", kind=kind, kex=kex, tool=tool))
                medians = [store.median(value, kind=kind, kex=kex, tool=tool, hosts=count, code=0) for count in hosts]
                points = [(count, median) for count, median in zip(hosts, medians, strict=True) if median]
                # A tool has the same colour in every plot, also if others are missing.
                style = {"linewidth": 2.5, "color": "black"} if tool == OURS else {"color": f"C{number}"}
                axis.plot(*zip(*points, strict=True), marker="o", label=tool, **style) if points else None
            axis.set(xscale="log", yscale="log", xlabel="hosts", ylabel=f"{words}, seconds", title=f"{kind}, {kex}")
            counts = sorted(store.known("hosts", kind=kind, kex=kex))
            axis.set_xticks(counts, [str(count) for count in counts])
            axis.minorticks_off()
            axis.grid(alpha=0.3)
    axes[0][0].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=100)
    pyplot.close(figure)


BEGIN, END = "<!-- measured: begin (written by inv bench-launch) -->\n", "<!-- measured: end -->"


def cost_model(store: Store) -> str:
    """Return the costs of a host and a process, as a table for docs/scale.md; empty with too few results."""
    query = {"kind": "per-node", "kex": "curve25519", "tool": OURS}
    counts = [
        count for count in sorted(store.known("hosts", **query)) if store.median("cpu_s", code=0, **query, hosts=count)
    ]
    if len(counts) < 2:
        return ""
    few, many = (counts[0], counts[-1])
    rows = [
        ["the launch machine, fixed", *_fixed_and_slope(store, query, few, many, fixed=True)],
        ["the launch machine, a host more", *_fixed_and_slope(store, query, few, many, fixed=False)],
    ]
    nodes = store.median("nodes_cpu_s", **query, hosts=many)
    rows.append([f"a node: login, checks, one process ({many} at once on this machine)", _ms(nodes, many), ""])
    cpu, memory = store.median("rank_cpu_ms", part="ranks"), store.median("rank_mb", part="ranks")
    if cpu and memory:
        rows.append(["a node, a rank more, beyond the rank itself", f"{cpu:.1f} ms", f"{memory:.2f} MB"])
    return f"Between {few} and {many} hosts, `launch-per-node`:\n\n" + table(["who pays", "CPU", "memory"], rows)


def user_figures(store: Store) -> str:
    """Return the three figures that matter to a user, as a table for the README; empty if one is missing."""
    fan_out = {"part": "fan-out", "kind": "true", "kex": "curve25519"}
    counts, times = (64, 1000), {}
    for tool in (OURS, "pdsh"):
        times[tool] = [store.median("wall_s", **fan_out, tool=tool, hosts=count, code=0) for count in counts]
    phases = [store.median(name, part="first-step") for name in ("prepared_s", "agents_s", "total_s")]
    memory = [store.median(name, part="ranks") for name in ("first_rank_mb", "rank_mb")]
    if None in (*times[OURS], *times["pdsh"], *phases, *memory):
        return ""
    ours, theirs = (" and ".join(seconds(each or 0.0) for each in times[tool]) for tool in (OURS, "pdsh"))
    prepared, agents, total = (each or 0.0 for each in phases)
    first, more = (each or 0.0 for each in memory)
    rows = [
        ["log in and run `true` on 64 and on 1,000 hosts, host keys checked", f"{ours}; pdsh {theirs}"],
        [
            "from the command to the first training step on 2 hosts",
            f"{seconds(total)}, of which torchfab {seconds(prepared + agents)}",
        ],
        ["memory on a node: supervisor and tmux; each rank more", f"{first:.1f} MB; {more:.2f} MB"],
    ]
    return table(["what", "measured"], rows)


def _ms(total_s: float | None, hosts: int) -> str:
    return "" if total_s is None else f"{1000 * total_s / hosts:.0f} ms"


def _fixed_and_slope(store: Store, query: dict[str, Any], few: int, many: int, fixed: bool) -> list[str]:
    """Return CPU and memory by the straight line through the smallest and the largest number of hosts."""
    words = []
    for value, scale, unit in (("cpu_s", 1000, "ms"), ("memory_mb", 1, "MB")):
        low, high = (store.median(value, code=0, **query, hosts=count) or 0.0 for count in (few, many))
        slope = scale * (high - low) / (many - few)
        shown = scale * low - slope * few if fixed else slope
        words.append(f"{shown:.2g} {unit}" if shown < 10 else f"{shown:.0f} {unit}")
    return words


def write_into(path: Path, text: str) -> None:
    """Replace the text between the marks in a document."""
    before, _, rest = path.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if end and text:
        path.write_text(f"{before}{BEGIN}{text}{END}{after}")
