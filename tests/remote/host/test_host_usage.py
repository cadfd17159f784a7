"""Rates of CPUs, memory, disks and network, from the text of files in /proc."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import strategies as st

from tests.support import fuzzed
from torchfab.remote.host import host_usage

STAT = "cpu  100 5 40 800 50 1 4 0 7 0\ncpu0 50 5 20 400 25 1 2 0 7 0\nintr 1\n"
MEMINFO = "MemTotal:       1000 kB\nMemFree:         100 kB\nMemAvailable:    600 kB\nHugePages_Total:    0\n"
DISKSTATS = """\
   8       0 sda 10 0 2000 5 20 0 4000 6 0 7 8 0 0 0 0 0 0
   8       1 sda1 10 0 2000 5 20 0 4000 6 0 7 8 0 0 0 0 0 0
 253       0 dm-0 10 0 2000 5 20 0 4000 6 0 7 8 0 0 0 0 0 0
   7       0 loop0 10 0 2000 5 20 0 4000 6 0 7 8
"""
NETWORK = """\
Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop
    lo: 999 1 0 0 0 0 0 0 999 1 0 0 0 0 0 0
  eth0:100 1 0 0 0 0 0 0 30 1 0 0 0 0 0 0
   ib0: 1000 1 0 0 0 0 0 0 300 1 0 0 0 0 0 0
"""


def sample(at: float, **values: Any) -> dict[str, Any]:
    base = {"cpu": [0, 0], "memory": [1, 2], "load": 0.5, "disk": [0, 0], "network": [0, 0], "cpus": 4}
    return {"at": at, **base, **values}


def test_waiting_for_a_disk_is_not_busy_and_guests_count_once() -> None:
    assert host_usage.cpu_ticks(STAT) == [150, 1000]


def test_reclaimable_memory_is_not_in_use() -> None:
    assert host_usage.memory(MEMINFO) == [400 * 1024, 1000 * 1024]
    old = MEMINFO.replace("MemAvailable", "Other")  # before Linux 3.14
    assert host_usage.memory(old) == [900 * 1024, 1000 * 1024]


def test_only_whole_disks_are_counted() -> None:
    assert host_usage.disk_bytes(DISKSTATS, ["sda", "dm-0", "loop0"]) == [2000 * 512, 4000 * 512]


def test_all_interfaces_but_loopback_are_counted() -> None:
    assert host_usage.network_bytes(NETWORK) == [1100, 330]


def test_the_load_average_of_the_last_minute_is_read() -> None:
    assert host_usage.load("0.52 0.58 0.59 1/389 12345\n") == 0.52


def test_rates_are_per_second() -> None:
    before, now = sample(10.0), sample(12.0, cpu=[30, 120], disk=[4096, 0], network=[0, 500])
    rates = host_usage.rates(before, now)
    assert rates["cpu"] == 0.25
    assert (rates["disk_read"], rates["disk_written"], rates["received"], rates["sent"]) == (2048, 0, 0, 250)


@pytest.mark.parametrize("name", ["cpu_ticks", "memory", "load", "network_bytes"])
def test_an_empty_file_gives_zeros(name: str) -> None:
    assert getattr(host_usage, name)("") in ([0, 0], 0.0)


counters = st.lists(st.integers(0, 1 << 62), min_size=2, max_size=2)


@fuzzed(before=counters, now=counters, seconds=st.floats(0, 1e6))
def test_rates_are_never_negative(before: list[int], now: list[int], seconds: float) -> None:
    names = ("cpu", "disk", "network")
    rates = host_usage.rates(
        sample(1.0, **dict.fromkeys(names, before)), sample(1.0 + seconds, **dict.fromkeys(names, now))
    )
    assert 0 <= rates["cpu"] <= 1
    assert min(rates["disk_read"], rates["disk_written"], rates["received"], rates["sent"]) >= 0


def test_the_counters_of_this_machine_can_be_read() -> None:
    now = host_usage.read_counters()
    assert now["memory"][1] > now["memory"][0] > 0
    assert now["cpu"][1] > 0
