"""The benchmark of `fab network`, run on the nodes: all-reduce between all ranks, then between pairs of nodes.

Rank 0 prints each result as one line of JSON after MARK. It makes all decisions that the ranks must share (how often,
whether to continue) by its clock and writes them to the store. Uses torch.distributed and no other part of torchfab.
"""

from __future__ import annotations

import array
import fcntl
import json
import os
import socket
import statistics
import struct
import sys
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from functools import partial
from typing import Any

MARK = "torchfab-network "
SIZES = tuple(1024 << (2 * power) for power in range(11))  # 1 KiB to 1 GiB
PAIR_BYTES = 256 * 1024
MOST_PAIR_BYTES = 256 * 1024 * 1024
_ALL_RANKS_SHARE = 0.5  # share of the time; the other half is for the pairs
_MARGIN_S = 30.0  # `fab network` gives up before the ranks do, and reports why
_SLOW = 0.5  # share of the nominal speed of the slowest interface


def bus_factor(ranks: int) -> float:
    """Return the ratio of bus bandwidth to algorithm bandwidth of an all-reduce: 2(n-1)/n.

    Every rank must send and receive each byte that many times, whatever the algorithm. Therefore the bus bandwidth can
    be compared with that of the hardware for any number of ranks (nccl-tests, doc/PERFORMANCE.md).

    Parameters
    ----------
    ranks : int
        Number of ranks.

    Returns
    -------
    float
    """
    return 2 * (ranks - 1) / ranks


def rounds(count: int) -> list[list[tuple[int, int]]]:
    """Schedule all pairs of nodes in rounds of disjoint pairs: the circle method of round-robin tournaments.

    One node keeps its place, the others move by one place each round, and nodes that face each other form a pair. With
    an odd number of nodes, one of them pauses in each round.

    Parameters
    ----------
    count : int
        Number of nodes.

    Returns
    -------
    list of list of tuple
        The rounds; each pair is in ascending order.
    """
    circle: list[int | None] = [*range(count), *([None] if count % 2 else [])]
    found = []
    for _ in range(len(circle) - 1):
        facing = zip(circle[: len(circle) // 2], reversed(circle), strict=False)
        found.append([(min(a, b), max(a, b)) for a, b in facing if a is not None and b is not None])
        circle = [circle[0], circle[-1], *circle[1:-1]]
    return found


def is_slow(gbits: Sequence[float], interfaces: Sequence[dict[str, Any]]) -> bool:
    """Return whether the best bus bandwidth is below half of the slowest interface's speed, or that is unknown.

    Parameters
    ----------
    gbits : sequence of float
        Measured bus bandwidths, Gbit/s.
    interfaces : sequence of dict
        Each with `gbit`, its nominal speed, or None.

    Returns
    -------
    bool
    """
    speeds = [each["gbit"] for each in interfaces]
    return None in speeds or not gbits or max(gbits) < _SLOW * min(speeds)


class Benchmark:
    """The benchmark of one rank.

    Parameters
    ----------
    request : dict
        `seconds` for all measurements; `patience_s`, how long ranks may take to find each other; `pairs` (False: only
        if the network is slow); `backend`; `nodes`, the ranks of each node.
    torch, dist : modules
        torch and torch.distributed: imported late, so that the pure functions can be tested without them.
    """

    def __init__(self, request: dict[str, Any], torch: Any, dist: Any) -> None:
        self.torch, self.dist, self.request = torch, dist, request
        self.rank, self.world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        self.nodes: list[list[int]] = request["nodes"]
        self.node = next(index for index, ranks in enumerate(self.nodes) if self.rank in ranks)
        self.timeout = timedelta(seconds=request["seconds"] + request["patience_s"] + _MARGIN_S)
        self.on_gpu = request["backend"] == "nccl"
        self.device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if self.on_gpu else torch.device("cpu")
        if self.on_gpu:
            torch.cuda.set_device(self.device)
        master = (os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]))
        store = dist.TCPStore(*master, self.world, self.rank == 0, self.timeout)
        dist.init_process_group(
            request["backend"], store=store, rank=self.rank, world_size=self.world, timeout=self.timeout
        )
        self.store = dist.PrefixStore("torchfab", store)

    def run(self) -> None:
        """Measure; rank 0 prints the results."""
        interfaces = self._exchange_interfaces()
        begun = time.monotonic()
        until = begun + self.request["seconds"] * _ALL_RANKS_SHARE
        gbits = self._measure_sizes(until)
        if self._agree("pairs", lambda: self._should_measure_pairs(gbits, interfaces)):
            self._measure_pairs(begun + self.request["seconds"])
        self.emit({"kind": "done"})
        self._shut_down()

    def _should_measure_pairs(self, gbits: Sequence[float], interfaces: Sequence[dict[str, Any]]) -> bool:
        if self.request["pairs"]:
            return len(self.nodes) > 1
        return len(self.nodes) > 2 and is_slow(gbits, interfaces)  # with two nodes, the pair was already measured

    def emit(self, value: dict[str, Any]) -> None:
        """Print a result, if this is rank 0.

        Parameters
        ----------
        value : dict
            The result; its `kind` is hello, size, round or done.
        """
        if self.rank == 0:
            print(MARK + json.dumps(value), flush=True)

    def _exchange_interfaces(self) -> list[dict[str, Any]]:
        """Send the interface of each node to rank 0; return those of all nodes on rank 0, nothing elsewhere."""
        if self.rank == self.nodes[self.node][0]:
            self.store.set(f"interface/{self.node}", json.dumps(interface(os.environ["MASTER_ADDR"])))
        if self.rank:
            return []
        found = [json.loads(self.store.get(f"interface/{node}")) for node in range(len(self.nodes))]
        variables = {name: os.environ[name] for name in _VARIABLES if name in os.environ}
        version = {"torch": self.torch.__version__, "backend": self.request["backend"], "ranks": self.world}
        self.emit({"kind": "hello", **version, "interfaces": found, "settings": variables})
        return found

    def _agree(self, name: str, decide: Callable[[], Any]) -> Any:
        """Let rank 0 decide; return its decision on every rank."""
        if self.rank == 0:
            self.store.set(name, json.dumps(decide()))
        return json.loads(self.store.get(name))

    def _shut_down(self) -> None:
        """Wait on rank 0 until every rank is done: rank 0 serves the store."""
        self.store.set(f"bye/{self.rank}", "1")
        if self.rank == 0:
            self.store.wait([f"bye/{rank}" for rank in range(self.world)], self.timeout)
        self.dist.destroy_process_group()

    # ---- all ranks

    def _measure_sizes(self, until: float) -> list[float]:
        """Measure one size after another, as long as the next one is expected to finish in time."""
        most = self._most_bytes()
        share_s, last_s, gbits = max(0.1, until - time.monotonic()) / len(SIZES), 0.0, []
        for size in SIZES:
            expected_s = 4 * last_s * 5  # four times the bytes; two warm-up runs and three measured ones
            ends = time.monotonic() + expected_s
            if not self._agree(f"size/{size}", partial(_fits, size, most, ends, until)):
                break
            tensor = self._tensor(size)
            self._time(tensor, None, 1)
            count = self._agree(f"count/{size}", partial(_count, self._time(tensor, None, 1)[0], share_s))
            times = self._time(tensor, None, count)
            last_s = statistics.median(times)
            gbit = size * 8 / last_s / 1e9
            gbits.append(gbit * bus_factor(self.world))
            result = {"bytes": size, "count": count, "p50_s": last_s, "max_s": max(times)}
            self.emit({"kind": "size", **result, "algbw_gbit": gbit, "busbw_gbit": gbits[-1]})
        return gbits

    def _most_bytes(self) -> int:
        """Return the largest message that fits three times into half of the free memory of every rank."""
        if self.on_gpu:
            free = self.torch.cuda.mem_get_info(self.device)[0]
        else:
            free = available_bytes() // len(self.nodes[self.node])
        self.store.set(f"room/{self.rank}", str(free // 6))
        return int(self._agree("room", self._least_room))

    def _least_room(self) -> int:
        return min(int(self.store.get(f"room/{rank}")) for rank in range(self.world))

    def _tensor(self, size: int) -> Any:
        return self.torch.zeros(max(1, size // 4), dtype=self.torch.float32, device=self.device)

    def _time(self, tensor: Any, group: Any, count: int) -> list[float]:
        """Run all-reduces; return the duration of each on this rank, in seconds."""
        times = []
        for _ in range(count):
            begun = time.perf_counter()
            self.dist.all_reduce(tensor, group=group)
            if self.on_gpu:
                self.torch.cuda.synchronize(self.device)
            times.append(time.perf_counter() - begun)
        return times

    # ---- pairs of nodes

    def _measure_pairs(self, until: float) -> None:
        schedule = rounds(len(self.nodes))
        for index, pairs in enumerate(schedule):
            left_s = until - time.monotonic()
            share_s = self._agree(f"round/{index}", partial(_share, left_s, len(schedule) - index))
            if not share_s:
                return
            mine = next((pair for pair in pairs if self.node in pair), None)
            if mine:
                self._measure_pair(index, mine, max(0.2, min(2.0, share_s)))
            if self.rank == 0:
                found = [[*pair, *json.loads(self.store.get(f"pair/{index}/{pair[0]}"))] for pair in pairs]
                self.emit({"kind": "round", "round": index + 1, "rounds": len(schedule), "pairs": found})
            self._agree(f"over/{index}", bool)  # so that rounds do not overlap

    def _measure_pair(self, index: int, pair: tuple[int, int], share_s: float) -> None:
        """Measure between the ranks of two nodes; the first of them stores Gbit/s and the latency in seconds."""
        ranks = sorted(self.nodes[pair[0]] + self.nodes[pair[1]])
        leads = self.rank == self.nodes[pair[0]][0]
        group = self.dist.new_group(ranks, timeout=self.timeout, use_local_synchronization=True)
        small = self._tensor(4)
        self._time(small, group, 2)
        latency_s = min(self._time(small, group, 5))
        first = self._tensor(PAIR_BYTES)
        self._time(first, group, 1)
        once_s = self._time(first, group, 1)[0]
        key = f"bytes/{index}/{pair[0]}"
        if leads:
            fitting = int(PAIR_BYTES * share_s / 4 / max(once_s, 1e-6))
            self.store.set(key, str(max(PAIR_BYTES, min(MOST_PAIR_BYTES, fitting))))
        size = int(self.store.get(key))
        best_s = min(self._time(self._tensor(size), group, 2))
        if leads:
            gbit = size * 8 / best_s / 1e9 * bus_factor(len(ranks))
            self.store.set(f"pair/{index}/{pair[0]}", json.dumps([gbit, latency_s]))
        self.dist.destroy_process_group(group)


def _fits(size: int, most: int, ends: float, until: float) -> bool:
    return size <= most and ends < until


def _count(once_s: float, share_s: float) -> int:
    return max(3, min(100, int(share_s / max(once_s, 1e-6))))


def _share(left_s: float, rounds_left: int) -> float:
    return max(0.0, left_s) / rounds_left


# ---- interfaces

_VARIABLES = ("NCCL_SOCKET_IFNAME", "NCCL_IB_HCA", "NCCL_IB_DISABLE", "GLOO_SOCKET_IFNAME")


def interface(towards: str) -> dict[str, Any]:
    """Find the interface by which this machine reaches an address.

    Parameters
    ----------
    towards : str
        A host name or an address.

    Returns
    -------
    dict
        `name`, `address`, `gbit` (None: unknown).
    """
    address = _own_address(towards)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            if address and _ioctl_address(probe, name) == address:
                return {"name": name, "address": address, "gbit": _speed(probe, name)}
    return {"name": "", "address": address, "gbit": None}


def _own_address(towards: str) -> str:
    try:
        family, kind, _, _, address = socket.getaddrinfo(towards, 9, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind) as probe:
            probe.connect(address)  # a datagram socket: no packet is sent
            return str(probe.getsockname()[0])
    except OSError:
        return ""


def _ioctl_address(probe: socket.socket, name: str) -> str:
    try:
        answer = fcntl.ioctl(probe, 0x8915, struct.pack("16s16x", name.encode()))  # SIOCGIFADDR, netdevice(7)
    except OSError:
        return ""
    return socket.inet_ntoa(answer[20:24])


def _speed(probe: socket.socket, name: str) -> float | None:
    """Return the speed of an interface in Gbit/s, by ETHTOOL_GSET (linux/ethtool.h); None if unknown."""
    command = array.array("B", struct.pack("I40x", 1))
    try:
        fcntl.ioctl(probe, 0x8946, struct.pack("16sP8x", name.encode(), command.buffer_info()[0]))  # SIOCETHTOOL
    except OSError:
        return None
    low, high = struct.unpack_from("H", command, 12)[0], struct.unpack_from("H", command, 28)[0]
    megabits = low + (high << 16)
    return megabits / 1000 if 0 < megabits < 0xFFFF0000 and low != 0xFFFF else None


def available_bytes() -> int:
    """Return the memory that is available without swapping.

    Returns
    -------
    int
        Bytes; 1 GiB if the kernel does not report it.
    """
    with open("/proc/meminfo") as file:
        for line in file:
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return 1 << 30


def main(args: Sequence[str]) -> None:
    """Run the benchmark of one rank.

    Parameters
    ----------
    args : sequence of str
        One argument: the request, as JSON.
    """
    import torch
    import torch.distributed as dist

    Benchmark(json.loads(args[0]), torch, dist).run()


if __name__ == "__main__":
    main(sys.argv[1:])
