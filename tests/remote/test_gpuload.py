"""nvidia-smi --query-gpu and --query-compute-apps, as drivers of several versions print them."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torchfab.remote import gpuload

A, B = "GPU-5d5ba0d6-d33d-2b2c-524d-9e3d8d2b8a77", "GPU-2f0a1f9c-6f2a-9a5e-1f4b-8d7a3c1e5b90"
# Driver 418 on a V100, 470 on a GeForce, 535 on an A100 in MIG mode, 550 on an H100, 560 on a GH200 without a limit.
V100 = f"0, {A}, Tesla V100-SXM2-32GB, 97, 287.12, 300.00, 30110, 32480, 61\n"
GEFORCE = f"0, {A}, GeForce GT 710, [Not Supported], [Not Supported], [Not Supported], 120, 981, 41\n"
MIG = f"0, {A}, NVIDIA A100-SXM4-40GB, [N/A], 58.42, 400.00, 37, 40960, 33\n"
H100 = f"0, {A}, NVIDIA H100 80GB HBM3, 100, 681.55, 700.00, 71203, 81559, 63\n"
SECOND = f"1, {B}, NVIDIA H100 80GB HBM3, 0, 71.03, 700.00, 4, 81559, 30\n"
GH200 = f"0, {A}, NVIDIA GH200 480GB, 12, 102.3, [N/A], 600, 97871, 29\n"
SICK = f"1, {B}, NVIDIA A100-SXM4-80GB, [Unknown Error], [GPU requires reset], 400.00, [N/A], [N/A], ERR!\n"


def first(text: str) -> dict[str, Any]:
    gpus, problem = gpuload.parse(text)
    assert problem == ""
    return gpus[0]


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        (V100, (97, 287.12, 300, 30110, 32480, 61)),
        (GEFORCE, (None, None, None, 120, 981, 41)),
        (MIG, (None, 58.42, 400, 37, 40960, 33)),
        (H100, (100, 681.55, 700, 71203, 81559, 63)),
        (GH200, (12, 102.3, None, 600, 97871, 29)),
    ],
    ids=["V100", "GeForce", "MIG", "H100", "GH200"],
)
def test_every_drivers_numbers_are_read_and_what_is_not_told_is_not_known(
    text: str, numbers: tuple[float | None, ...]
) -> None:
    gpu = first(text)
    names = ("utilization", "power", "power_limit", "memory", "memory_total", "temperature")
    assert tuple(gpu[name] for name in names) == numbers
    assert (gpu["index"], gpu["uuid"], gpu["sick"]) == (0, A, "")


def test_a_sick_gpu_is_told_beside_a_healthy_one() -> None:
    gpus, _ = gpuload.parse(H100 + SICK)
    assert [gpu["sick"] for gpu in gpus] == ["", "Unknown Error"]
    assert gpus[1]["power"] is None
    assert gpus[1]["power_limit"] == 400


@pytest.mark.parametrize(
    ("text", "code", "told"),
    [
        ("No devices were found\n", 6, ""),
        ("NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.\n", 9, "communicate"),
        ("Failed to initialize NVML: Driver/library version mismatch\n", 18, "version mismatch"),
        ("Unable to determine the device handle for GPU 0000:3B:00.0: GPU is lost.\n", 15, "GPU is lost"),
        ('Field "power.limit" is not a valid field to query.\n', 2, "not a valid field"),
        ("", 255, "ended with 255"),
        ("", 0, ""),
    ],
)
def test_a_complaint_is_told_instead_of_numbers(text: str, code: int, told: str) -> None:
    gpus, problem = gpuload.parse(text, code)
    assert gpus == []
    assert told in problem
    assert bool(told) == bool(problem)


def test_a_warning_beside_the_numbers_costs_no_numbers() -> None:
    gpus, problem = gpuload.parse("WARNING: infoROM is corrupted at gpu 0000:3B:00.0\n" + H100, 14)
    assert len(gpus) == 1
    assert "infoROM" in problem


def test_processes_are_those_of_their_gpu_under_whatever_name() -> None:
    apps = gpuload.parse_apps(
        f"{A}, 4711, 70110, /opt/my env/bin/python, really\n"
        f"{A}, 4712, [N/A], [Not Found]\n"
        f"{B}, 4713, 512, [Insufficient Permissions]\n"
        "No running processes found\n"
    )
    gpus = gpuload.with_processes(gpuload.parse(H100 + SECOND)[0], apps)
    assert [[each["pid"] for each in gpu["processes"]] for gpu in gpus] == [[4711, 4712], [4713]]
    assert gpus[0]["processes"][0] == {"pid": 4711, "memory": 70110.0, "name": "/opt/my env/bin/python, really"}
    assert gpus[0]["processes"][1]["memory"] is None


@given(st.text())
def test_no_output_breaks_the_parsers(text: str) -> None:
    gpus, _ = gpuload.parse(text)
    assert gpuload.with_processes(gpus, gpuload.parse_apps(text)) is not None


@given(st.text())
def test_a_cell_is_a_finite_number_or_nothing(cell: str) -> None:
    value = gpuload.number(cell)
    assert value is None or abs(value) < 1e12


@pytest.mark.parametrize("cell", ["nan", "inf", "-inf", "1e99", "[N/A]", ""])
def test_what_json_or_a_table_could_not_hold_is_no_number(cell: str) -> None:
    assert gpuload.number(cell) is None
