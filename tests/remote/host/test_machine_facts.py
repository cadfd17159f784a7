"""The facts about a machine that a plan needs."""

from __future__ import annotations

import os
import socket
import sys
import time
from pathlib import Path

import pytest

from torchfab.remote.host import identity, machine_facts


def test_the_facts_of_this_machine_are_collected() -> None:
    found = machine_facts.collect({"CUDA_VISIBLE_DEVICES": "0,1,5"})
    assert abs(found.pop("time") - time.time()) < 60
    assert found.pop("machine") == identity.identify()
    assert found == {
        "hostname": socket.gethostname(),
        "is_root": os.geteuid() == 0,
        "gpus": 3,
        "cpus": len(os.sched_getaffinity(0)),
        "agent_python": ".".join(map(str, sys.version_info[:3])),
    }


@pytest.mark.parametrize(
    ("visible", "count"), [("", 0), ("-1", 0), ("0", 1), ("0,1,2", 3), ("GPU-8932f937,GPU-1", 2), ("0, 1,", 2)]
)
def test_the_visible_devices_are_counted(visible: str, count: int) -> None:
    assert machine_facts.count_gpus({"CUDA_VISIBLE_DEVICES": visible}) == count


def test_an_amd_gpu_that_a_container_cannot_read_is_not_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, simds in {"0": 0, "1": 320}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "properties").write_text(f"cpu_cores_count 0\nsimd_count {simds}\n")
    (tmp_path / "2" / "properties").mkdir(parents=True)  # cannot be read
    monkeypatch.setattr(machine_facts, "_KFD_NODES", str(tmp_path), raising=False)
    assert machine_facts._count_amd_gpus() == 1
