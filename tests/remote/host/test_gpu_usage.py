"""nvidia-smi --query-gpu and --query-compute-apps, as printed by several driver versions."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import strategies as st

from tests.recorded.recordings import recording
from tests.support import fuzzed
from torchfab.remote.host import gpu_usage

A, B = "GPU-5d5ba0d6-d33d-2b2c-524d-9e3d8d2b8a77", "GPU-2f0a1f9c-6f2a-9a5e-1f4b-8d7a3c1e5b90"
# Written by hand, as no recording was found: driver 418 on a V100, 470 on a GeForce, 550 on an H100, 560 on a GH200
# without a power limit, a faulty A100.
V100 = f"0, {A}, Tesla V100-SXM2-32GB, 97, 287.12, 300.00, 30110, 32480, 61\n"
GEFORCE = f"0, {A}, GeForce GT 710, [Not Supported], [Not Supported], [Not Supported], 120, 981, 41\n"
H100 = f"0, {A}, NVIDIA H100 80GB HBM3, 100, 681.55, 700.00, 71203, 81559, 63\n"
SECOND = f"1, {B}, NVIDIA H100 80GB HBM3, 0, 71.03, 700.00, 4, 81559, 30\n"
GH200 = f"0, {A}, NVIDIA GH200 480GB, 12, 102.3, [N/A], 600, 97871, 29\n"
SICK = f"1, {B}, NVIDIA A100-SXM4-80GB, [Unknown Error], [GPU requires reset], 400.00, [N/A], [N/A], ERR!\n"


def cells(name: str, kind: str) -> list[dict[str, str]]:
    """Return the rows of a recorded table as dicts by column name, without units, as `nounits` prints them."""
    head, *rows = recording("csv", f"{name}.{kind}.csv").splitlines()
    names = [column.partition(" [")[0] for column in head.split(", ")]
    unit = re.compile(r" (MiB|W|%)$")
    return [dict(zip(names, (unit.sub("", cell) for cell in line.split(", ")), strict=True)) for line in rows]


def row(name: str) -> str:
    """Return the row of a recorded GPU with the fields that the query names."""
    (only,) = cells(name, "columns")
    return ", ".join(only[field] for field in gpu_usage.FIELDS) + "\n"


def first(text: str) -> dict[str, Any]:
    gpus, problem = gpu_usage.parse(text)
    assert problem == ""
    return gpus[0]


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        (V100, (97, 287.12, 300, 30110, 32480, 61)),
        (GEFORCE, (None, None, None, 120, 981, 41)),
        (row("580.173.02-h200-mig-idle"), (None, 89.93, 700, 44, 143771, 37)),
        (row("590.48.01-h100-mig-load"), (None, 433.78, 700, 11125, 81559, 53)),
        (row("595.71.05-geforce-rtx-2080-super-load"), (8, 111.5, 250, 819, 8192, 45)),
        (H100, (100, 681.55, 700, 71203, 81559, 63)),
        (GH200, (12, 102.3, None, 600, 97871, 29)),
    ],
    ids=["V100", "GeForce", "580", "590", "595", "H100", "GH200"],
)
def test_values_of_every_driver_are_read_and_missing_ones_are_none(
    text: str, numbers: tuple[float | None, ...]
) -> None:
    gpu = first(text)
    names = ("utilization", "power", "power_limit", "memory", "memory_total", "temperature")
    assert tuple(gpu[name] for name in names) == numbers
    assert (gpu["index"], gpu["sick"]) == (0, "")


def test_a_gpu_with_only_its_power_unknown_is_not_sick() -> None:
    assert first(H100.replace("681.55, 700.00", "[Unknown Error], ERR!"))["sick"] == ""
    assert first(H100.replace("681.55", "[GPU requires reset]"))["sick"] == "GPU requires reset"
    assert first(H100.replace(" 100,", " [Unknown Error],"))["sick"] == "Unknown Error"


def test_a_sick_gpu_is_reported_beside_a_healthy_one() -> None:
    gpus, _ = gpu_usage.parse(H100 + SICK)
    assert [gpu["sick"] for gpu in gpus] == ["", "Unknown Error"]
    assert gpus[1]["power"] is None
    assert gpus[1]["power_limit"] == 400


@pytest.mark.parametrize(
    ("text", "code", "expected"),
    [
        (recording("words", "no-devices-575.51.03.txt"), 6, ""),
        (recording("words", "no-driver-440.txt"), 9, "communicate"),
        (recording("words", "mismatch-550.144.txt"), 18, "version mismatch"),
        (recording("words", "lost-2018-gpu-is-lost.txt"), 15, "GPU is lost"),
        (recording("words", "field-not-valid.txt"), 2, "not a valid field"),
        ("", 255, "ended with 255"),
        ("", 0, ""),
    ],
)
def test_an_error_message_is_returned_without_gpus(text: str, code: int, expected: str) -> None:
    gpus, problem = gpu_usage.parse(text, code)
    assert gpus == []
    assert expected in problem
    assert bool(expected) == bool(problem)


def test_a_warning_does_not_hide_the_values() -> None:
    gpus, problem = gpu_usage.parse(H100 + recording("words", "inforom-warning.txt"), 14)
    assert len(gpus) == 1
    assert "infoROM" in problem


def test_processes_in_mig_mode_belong_to_the_whole_gpu() -> None:
    name = "590.48.01-h100-mig-load"
    renamed = [{**app, "used_memory": app["used_gpu_memory"]} for app in cells(name, "compute-apps")]
    apps = "".join(", ".join(app[field] for field in gpu_usage.APP_FIELDS) + "\n" for app in renamed)
    (gpu,) = gpu_usage.with_processes(gpu_usage.parse(row(name))[0], gpu_usage.parse_apps(apps))
    assert [(each["pid"], each["memory"]) for each in gpu["processes"]] == [(21180, 2296), (21181, 1272), (21198, 7484)]


def test_processes_are_assigned_to_their_gpu_whatever_their_names() -> None:
    apps = gpu_usage.parse_apps(
        f"{A}, 4711, 70110, /opt/my env/bin/python, really\n"
        f"{A}, 4712, [N/A], [Not Found]\n"
        f"{B}, 4713, 512, [Insufficient Permissions]\n"
        "No running processes found\n"
    )
    gpus = gpu_usage.with_processes(gpu_usage.parse(H100 + SECOND)[0], apps)
    assert [[each["pid"] for each in gpu["processes"]] for gpu in gpus] == [[4711, 4712], [4713]]
    assert gpus[0]["processes"][0] == {"pid": 4711, "memory": 70110.0, "name": "/opt/my env/bin/python, really"}
    assert gpus[0]["processes"][1]["memory"] is None


@fuzzed(st.text())
def test_the_parsers_accept_any_text(text: str) -> None:
    gpus, _ = gpu_usage.parse(text)
    assert gpu_usage.with_processes(gpus, gpu_usage.parse_apps(text)) is not None


@fuzzed(st.text())
def test_a_cell_is_a_finite_number_or_none(cell: str) -> None:
    value = gpu_usage.parse_number(cell)
    assert value is None or abs(value) < 1e12


@pytest.mark.parametrize("cell", ["nan", "inf", "-inf", "1e99", "[N/A]", ""])
def test_a_cell_without_a_finite_number_is_none(cell: str) -> None:
    assert gpu_usage.parse_number(cell) is None
