"""Measure how many log lines per second `logs --follow` merges on one core, from 64 hosts with 8 ranks; print JSON.

    lines.py alike|different|flood

Everything is real except the network: frames as nodes send them pass through sessions, merge and folding to a file.
`alike`: all ranks write the same line per step, as most training scripts do. `different`: every line differs. `flood`:
one rank writes as much as all others together, which write one line per second each.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from torchfab.cli import executor
from torchfab.config.connection_settings import ConnectionSettings
from torchfab.core.specs import Node
from torchfab.monitoring.job_watcher import JobWatcher, Printer
from torchfab.records import Record
from torchfab.transport import bundle, node_streams
from torchfab.transport.session import Session

NODES, RANKS, STEPS = 64, 8, 400
_CHUNK = 1 << 16


class Frames:
    """A channel that delivers prepared data of a node."""

    def __init__(self, data: bytes) -> None:
        self.data, self.position = data, 0

    def write(self, data: bytes) -> None:
        """Ignore a request."""

    def read(self, timeout_s: float) -> bytes | None:
        """Return the next chunk; None at the end."""
        chunk = self.data[self.position : self.position + _CHUNK]
        self.position += len(chunk)
        return chunk or None

    def exit_status(self) -> tuple[int | None, str]:
        """Return that it was cut off."""
        return None, ""

    def close(self) -> None:
        """Do nothing."""


def frames(node: int, kind: str) -> Iterator[bytes]:
    """Yield the frames of one node."""
    yield frame({"past": True})
    ranks = range(node * RANKS, (node + 1) * RANKS)
    for step in range(STEPS):
        now = 1e9 + step / 10
        if kind == "flood":
            lines = [[rank, now, f"step {step} of {rank}"] for rank in ranks if step % 40 == 0]
            lines += [[0, now, f"debug {number} of {step}"] for number in range(500 if node == 0 else 0)]
        else:
            lines = [[rank, now, text_of(step, rank, kind)] for rank in ranks]
        if lines:
            yield frame({"lines": lines}) + frame({"offsets": {f"/job/rank-{rank}/output.log": step for rank in ranks}})
    end = {"processes": [], "now": time.time(), "exists": True, "stop_asked": None}
    yield frame({"end": end})


def text_of(step: int, rank: int, kind: str) -> str:
    """Return a line as training scripts write them."""
    end = f" rank {rank}" if kind == "different" else ""
    return f"step {step} | loss {7 - step / 100:.4f} | 12345 tokens/s | lr 3.00e-04{end}"


def frame(value: Any) -> bytes:
    """Return one frame as `torchfab.remote.server` sends it."""
    data = json.dumps(value).encode()
    return b"\x1e%d\n%b" % (len(data), data)


def watch(kind: str) -> dict[str, Any]:
    """Follow a job whose nodes send everything at once; return the cost."""
    data = [b"".join(frames(node, kind)) for node in range(NODES)]
    nodes = tuple(Node(rank, f"node{rank:03}") for rank in range(NODES))
    record = Record(Path("/nowhere"), "x", "x-0", "per-gpu", "tmux", 0.0, ("x.py",), nodes, "/n", NODES * RANKS, NODES,
                    ConnectionSettings(), {})  # fmt: skip
    vars(node_streams)["open_session"] = lambda connection, settings: Session(
        connection.node, Frames(data[connection.node.rank])
    )
    bundle.packed()
    executor.reduce_gc_frequency()  # as every fab command does
    begun, used = time.time(), time.process_time()
    JobWatcher(record, Printer()).run({"follow": True, "lines": 0, "ranks": None, "grep": None})
    wall_s, cpu_s = time.time() - begun, time.process_time() - used
    count = sum(each.count(b"step") + each.count(b"debug") for each in data)
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"lines": count, "wall_s": wall_s, "cpu_s": cpu_s, "lines_per_s": count / cpu_s, "peak_mb": peak_mb,
            "data_mb": sum(map(len, data)) / 2**20}  # fmt: skip


def main() -> None:
    """Measure with stdout redirected to /dev/null, then print the result."""
    out = os.dup(1)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 1)
        found = watch(sys.argv[1])
        sys.stdout.flush()
        os.dup2(out, 1)
    print(json.dumps({**found, "code": 0}))


if __name__ == "__main__":
    main()
