"""Measure what known_hosts costs a launch: a file of hashed lines is read once, and searched for every host.

    python bench/known_hosts.py                          2000 lines, 1 and 64 hosts
    python bench/known_hosts.py --lines 10000 --hosts 512

Hashed lines (`HashKnownHosts yes`, Debian's default) must be tried one by one: each has its own salt.
"""

from __future__ import annotations

import argparse
import base64
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from paramiko.hostkeys import HostKeys

from torchfab.transport.ssh import known_hosts

KIND = "ssh-ed25519"


def key(number: int) -> str:
    """Return a key in known_hosts format, a different one for each number."""
    parts = (KIND.encode(), number.to_bytes(32, "big"))
    blob = b"".join(len(part).to_bytes(4, "big") + part for part in parts)
    return f"{KIND} {base64.b64encode(blob).decode()}"


def write(path: Path, lines: int) -> None:
    """Write a file of hashed lines, one for each of node0, node1, ..."""
    names = (known_hosts.hashed(f"node{number}", os.urandom(20)) for number in range(lines))
    path.write_text("".join(f"{name} {key(number)}\n" for number, name in enumerate(names)))


def ours(path: Path, hosts: int) -> int:
    """Read the file and look up hosts as a launch does; return the number of lines found."""
    known = known_hosts.KnownFile(str(path), path.read_text())
    return sum(len(known.lines(f"node{number}")) for number in range(hosts))


def paramikos(path: Path, hosts: int) -> int:
    """Do the same with paramiko's own reader."""
    known = HostKeys(str(path))
    return sum(known.lookup(f"node{number}") is not None for number in range(hosts))


def seconds(work: Callable[[Path, int], int], path: Path, hosts: int, rounds: int) -> float:
    """Return the median time of some rounds, in seconds."""
    times = []
    for _ in range(rounds):
        begun = time.perf_counter()
        found = work(path, hosts)
        times.append(time.perf_counter() - begun)
        assert found == hosts, f"{found} of {hosts} hosts were found"
    return statistics.median(times)


def main() -> int:
    """Measure, and print a line for each number of hosts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lines", type=int, default=2000)
    parser.add_argument("--hosts", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5, help="the result is their median")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "known_hosts")
        write(path, args.lines)
        for hosts in (1, args.hosts):
            own = seconds(ours, path, hosts, args.rounds)
            theirs = seconds(paramikos, path, hosts, 1)  # it hashes twice per line and host, in Python
            print(f"{args.lines} hashed lines, {hosts} hosts: {own:.3f} s; paramiko's own reader: {theirs:.3f} s")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
