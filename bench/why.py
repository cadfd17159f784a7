#!/usr/bin/env python
"""Measure `fab why` on jobs with large logs: `inv bench-why`. Writes bench/results/why.md and a table of the docs.

A job of 64 ranks runs for real on rehearsal hosts, and fails: one rank raises, the others lose it. Then the log of each
rank grows to the size that is measured, with lines of a training before what the rank had printed, and of the rank that
raised also thousands of C++ frames after it. Every answer must name that rank and its exception.

The hosts are loopback addresses of this machine, and their logs are links to few files, so the kernel has them in
memory. What one host takes for logs that are not in memory is measured beside it.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parent.parent)]
from launching import tools  # noqa: E402 (they are beside this file, outside any package)
from launching.hosts import Hosts  # noqa: E402
from launching.running import Cost, run  # noqa: E402
from launching.store import Store  # noqa: E402

from torchfab.why.evidence import search_limits  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench" / "results"
PAGE = ROOT / "docs" / "reliability.md"
BEGIN, END = "<!-- the cost of why: written by `inv bench-why` -->", "<!-- end of the cost of why -->"
GB = 10**9
LIMIT_S = 600
RANK = """\
import os, sys, time
out, rank, size = sys.argv[1], int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
open(f"{out}/{rank}", "w").close()
while len(os.listdir(out)) < size:
    time.sleep(0.1)
if rank < size - 1:
    time.sleep(2)
    raise RuntimeError("[../third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer [10.0.0.2]:2475")
time.sleep(1)
raise ValueError("no label in batch 17")
"""
FRAME = "frame #{}: c10d::ProcessGroupNCCL::WorkNCCL::checkAndThrow() + 0x1a (0x7f2b4c in libtorch_cuda.so)\n"
# What one node does for `why`, in an interpreter of its own, as on a node.
NODE = """\
import json, resource, sys, time
sys.path.insert(0, sys.argv[1])
from torchfab.remote.job import evidence
begun = time.monotonic()
answer = json.dumps(evidence.handle(json.loads(sys.argv[2])))
peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
cpu_s = time.process_time()
print(json.dumps({"wall_s": time.monotonic() - begun, "cpu_s": cpu_s, "memory_mb": peak_mb, "bytes": len(answer)}))
assert "ValueError: no label in batch 17" in answer
"""


@dataclass(frozen=True)
class Case:
    """A job to measure.

    Parameters
    ----------
    hosts, ranks : int
        Hosts, and ranks on each.
    node_gb : float
        Size of the logs of each host, in 10^9 bytes.
    """

    hosts: int
    ranks: int
    node_gb: float

    @property
    def key(self) -> dict[str, Any]:
        """Identifies its result."""
        return {"part": "why", "hosts": self.hosts, "ranks": self.ranks, "node_gb": self.node_gb}


CASES = {"ranks": Case(8, 8, 1.0), "hosts": Case(64, 1, 0.02), "log": Case(1, 1, 10.0)}


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--only", nargs="+", choices=CASES, default=list(CASES), help="jobs to measure (default: all)")
    add("--rounds", type=int, default=3, help="how often each command runs (default 3; the best counts)")
    add("--scale", type=float, default=1.0, help="multiply the sizes of the logs by this; below 1 nothing is saved")
    return parser.parse_args(argv)


# ---- the job


def make_job(case: Case, hosts: Hosts) -> None:
    """Run a job that fails, and make its logs large."""
    out = hosts.folder / "out"
    out.mkdir()
    (hosts.folder / "rank.py").write_text(RANK)
    hostfile = hosts.files.hostfile(case.hosts, case.ranks)
    flags = ("--name", "x", "--workdir", str(hosts.folder), "--python", sys.executable, "--gpufile", str(hostfile))
    _fab(hosts, "launch-per-gpu", *flags, "--", "rank.py", str(out))
    _fab(hosts, "wait", "x", expected=1)
    grow_logs(case, hosts)


def grow_logs(case: Case, hosts: Hosts) -> None:
    """Insert lines of a training before the output of each rank; ranks with equal output share one file."""
    size = int(case.node_gb * GB / case.ranks)
    made: dict[str, Path] = {}
    for path in sorted(hosts.folder.glob("*/.torchfab/jobs/x-*/node-*/rank-*/output.log")):
        text, times = path.read_text(), path.stat()
        if "ValueError" in text:
            text += "".join(FRAME.format(number) for number in range(5000))
        shown = text.replace(path.parent.name, "")
        if shown not in made:
            made[shown] = hosts.folder / f"log-{len(made)}"
            write_log(made[shown], size, text)
        path.unlink()
        os.link(made[shown], path)
        os.utime(path, (times.st_atime, times.st_mtime))
        write_times(path.parent / "timeline", path.stat().st_size, times.st_mtime)


def write_log(path: Path, size: int, text: str) -> None:
    """Write lines of a training up to a size, and a text after them."""
    block = training_lines(20_000)
    with path.open("wb") as file:
        while file.tell() + len(block) < size - len(text):
            file.write(block)
        file.write(text.encode())


def training_lines(count: int) -> bytes:
    """Return lines of a training, of two kinds, about 150 bytes each."""
    draw = random.Random(0)
    lines = []
    for step in range(count):
        lines.append(
            f"2026-11-29 10:{step // 60 % 60:02d}:{step % 60:02d},{step % 1000:03d} INFO trainer.loop: step={step} "
            f"loss={draw.random() * 4:.4f} lr={draw.random() / 1000:.3e} grad_norm={draw.random():.3f} "
            f"tokens/s={draw.randint(10_000, 99_999)} memory_gb={draw.random() * 80:.1f}\n"
        )
        if step % 50 == 0:
            lines.append(f"Epoch 1:  {step % 100}%|#####     | {step}/20000 [10:{step % 60:02d}<1:02, 3.1it/s]\n")
    return "".join(lines).encode()


def write_times(path: Path, size: int, ended: float) -> None:
    """Write the times at which the log reached each size, as a supervisor does: each second, here for the last hour."""
    lines = [f"{ended - 3600 + second:.2f} {size * second // 3600} output.log\n" for second in range(1, 3601)]
    path.write_text("".join(lines))


# ---- measuring


def measure(case: Case, rounds: int) -> dict[str, Any]:
    """Return the figures of a case."""
    with Hosts(case.hosts) as hosts:
        make_job(case, hosts)
        _check(hosts, case)
        before = float(hosts.ask("cpu")["cpu_s"])
        why = [_fab(hosts, "why", "x", "--json") for _ in range(rounds)]
        nodes_cpu_s = (float(hosts.ask("cpu")["cpu_s"]) - before) / rounds
        status = [_fab(hosts, "logs", "x", "--lines", "1") for _ in range(rounds)]
        cold, warm = list(node_figures(hosts, rounds))
    return {
        "why_s": min(each.wall_s for each in why),
        "ssh_s": min(each.wall_s for each in status),
        "cpu_s": min(each.cpu_s for each in why),
        "memory_mb": max(each.memory_mb for each in why),
        "nodes_cpu_s": nodes_cpu_s,
        "cold_s": cold["wall_s"],
        "warm_s": warm["wall_s"],
        "node_cpu_s": warm["cpu_s"],
        "node_mb": max(cold["memory_mb"], warm["memory_mb"]),
        "sent_mb": warm["bytes"] / 1e6,
        "when": time.strftime("%Y-%m-%d"),
    }


def _check(hosts: Hosts, case: Case) -> None:
    command = tools.fab(hosts.files, "why", "x", "--json")
    env = {**os.environ, **dict(command.env)}
    done = subprocess.run(command.argv, env=env, cwd=ROOT, capture_output=True, text=True, check=True)
    answer = json.loads(done.stdout)
    found = (answer["first"]["rank"], answer["cause"]["words"])
    assert found == (case.hosts * case.ranks - 1, "the script raised ValueError: no label in batch 17"), answer


def node_figures(hosts: Hosts, rounds: int) -> Iterator[dict[str, Any]]:
    """Yield the cost on the node of the rank that raised: with logs not in memory, and the best of several rounds."""
    node = max(hosts.folder.glob("*/.torchfab/jobs/x-*/node-*"), key=lambda path: int(path.name.partition("-")[2]))
    for path in node.glob("*/output.log"):
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    rank, job = int(node.name.partition("-")[2]), node.parent.name
    limits = search_limits(len(hosts.files.hosts), 30)
    request = {"node_dir": str(node.parents[2]), "job_id": job, "node_rank": rank, **limits}
    yield _node(request)
    yield min((_node(request) for _ in range(rounds)), key=lambda each: float(each["wall_s"]))


def _node(request: dict[str, Any]) -> dict[str, Any]:
    argv = (sys.executable, "-I", "-S", "-c", NODE, str(ROOT), json.dumps(request))
    found: dict[str, Any] = json.loads(subprocess.run(argv, capture_output=True, text=True, check=True).stdout)
    return found


def _fab(hosts: Hosts, *words: str, expected: int = 0) -> Cost:
    command = tools.fab(hosts.files, *words)
    cost = run(command.argv, LIMIT_S, dict(command.env), ROOT)
    assert cost.code == expected, (words, cost.output_tail)
    return cost


# ---- reporting


def render(store: Store) -> str:
    """Return the table of all saved results."""
    found = [each for each in store.results if each["key"]["part"] == "why"]
    rows = [
        ("job", "`why`", "beyond ssh", "launch machine", "a node", "its logs not in memory", "it sends"),
        ("---",) * 7,
        *(_row(each["key"], each["values"]) for each in found),
    ]
    when = max((each["values"]["when"] for each in found), default="")
    made = f"Made on {when}: {os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}."
    return "\n".join([made, "", *(f"| {' | '.join(row)} |" for row in rows)])


def _row(key: dict[str, Any], values: dict[str, Any]) -> tuple[str, ...]:
    size = f"{key['node_gb']:g} GB"
    what = f"{key['hosts']} nodes × {key['ranks']} ranks, {size} of logs a node"
    what = f"1 rank, one log of {size}" if key["hosts"] * key["ranks"] == 1 else what
    return (
        what,
        f"{values['why_s']:.1f} s",
        f"{max(0.0, values['why_s'] - values['ssh_s']):.1f} s",
        f"{values['cpu_s']:.1f} s of CPU, {values['memory_mb']:.0f} MB",
        f"{values['warm_s']:.1f} s ({values['node_cpu_s']:.1f} s of CPU), {values['node_mb']:.0f} MB",
        f"{values['cold_s']:.1f} s",
        f"{values['sent_mb']:.2f} MB",
    )


def write_page(page: Path, table: str) -> None:
    """Replace the table in a page of the docs."""
    before, begin, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    assert begin, f"{page} has no {BEGIN}"
    assert end, f"{page} has no {END}"
    page.write_text(f"{before}{BEGIN}\n{table}\n{END}{after}", encoding="utf-8")


def main(argv: list[str] | None = None) -> int:
    """Measure, and write the tables."""
    options = parse_arguments(argv)
    with tempfile.TemporaryDirectory() as scratch:
        store = Store((RESULTS if options.scale >= 1 else Path(scratch)) / "why.jsonl")
        for name in options.only:
            case = CASES[name]
            case = Case(case.hosts, case.ranks, case.node_gb * options.scale)
            values = measure(case, options.rounds)
            store.results = [each for each in store.results if each["key"] != case.key]
            store.add(case.key, values)
        print(render(store))
        if options.scale >= 1:
            store.path.write_text("".join(json.dumps(each) + "\n" for each in store.results))
            (RESULTS / "why.md").write_text(f"# What `fab why` costs\n\n{render(store)}\n", encoding="utf-8")
            write_page(PAGE, render(store))
    return 0


if __name__ == "__main__":
    sys.exit(main())
