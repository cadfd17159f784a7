"""Measure what one rank more costs a node, on this machine: CPU milliseconds and MB, printed as JSON.

`python per_rank.py [PROGRAM]`: PROGRAM is the working tree of torchfab to measure (default: this one). Jobs of one and
of eight ranks are launched with launch-per-gpu. Everything on the node that is not a rank (supervisors, tmux, the
windows) counts; memory is the proportional set size, once all ranks run.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
from launching.running import run  # noqa: E402 (it lies outside any package)

MANY, ROUNDS, SETTLE_S = 8, 3, 2.0


def children() -> dict[int, list[int]]:
    """Return the children of every process."""
    found: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:  # it has ended
            continue
        found.setdefault(int(fields[1]), []).append(int(path.parent.name))
    return found


def below(root: int, tree: dict[int, list[int]]) -> Iterator[int]:
    """Yield a process and all below it."""
    yield root
    for child in tree.get(root, []):
        yield from below(child, tree)


def others(ranks: list[int]) -> list[int]:
    """Return the processes of the job that are not ranks: all below the tmux server, whose parent is init."""
    tree = children()
    parents = {child: parent for parent, found in tree.items() for child in found}
    servers = set()
    for rank in ranks:
        pid = rank
        while parents[pid] > 1:
            pid = parents[pid]
        servers.add(pid)
    return [pid for server in servers for pid in below(server, tree) if pid not in ranks]


def pss_mb(pid: int) -> float:
    """Return the proportional set size of a process."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024


def cpu_ms(pid: int) -> float:
    """Return the CPU of a process, and of its children that have ended."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) * 1000 / os.sysconf("SC_CLK_TCK")


def cost(program: Path, folder: Path, count: int) -> tuple[float, float]:
    """Return CPU (ms) and memory (MB) of everything of a job of `count` ranks that is not a rank."""
    starts, gpus, name = folder / f"starts-{time.time_ns()}", folder / f"gpus-{count}", f"ranks-{time.time_ns()}"
    starts.mkdir()
    gpus.write_text("localhost\n" * count)
    env = {"FABRIC_TORCHFAB_RECORDS": str(folder / "jobs"), "FABRIC_TORCHFAB_NODE_DIR": str(folder / "node")}

    def fab(*words: str) -> None:
        done = run((sys.executable, "-m", "fabric", *words), 120, env, program)
        if done.code:
            raise SystemExit(done.output_tail)

    job = ("--name", name, "--gpufile", str(gpus), "--workdir", str(HERE), "--python", sys.executable)
    fab("launch-per-gpu", *job, "--", "rank.py", str(starts), "3600")
    try:
        while len(names := os.listdir(starts)) < count:
            time.sleep(0.1)
        time.sleep(SETTLE_S)
        found = others([int(each.rpartition("-")[2]) for each in names])
        return sum(map(cpu_ms, found)), sum(map(pss_mb, found))
    finally:
        fab("stop", name)


def main() -> None:
    """Measure and print."""
    program = Path(sys.argv[1]) if len(sys.argv) > 1 else HERE.parents[1]
    with tempfile.TemporaryDirectory() as folder:
        pairs = [(cost(program, Path(folder), 1), cost(program, Path(folder), MANY)) for _ in range(ROUNDS)]
    cpu, memory = ([(many[at] - one[at]) / (MANY - 1) for one, many in pairs] for at in (0, 1))
    first = [one[1] for one, _ in pairs]
    found = {"rank_cpu_ms": cpu, "rank_mb": memory, "first_rank_mb": first}
    print(json.dumps({name: statistics.median(values) for name, values in found.items()} | {"code": 0}))


if __name__ == "__main__":
    main()
