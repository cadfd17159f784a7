"""nvidia-smi's words of several driver versions, and what follows from them; tests/doctor/nvidia-smi says whose."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as some

from tests.doctor.factories import GPU, seen
from torchfab.doctor import gpu
from torchfab.remote import gpus

FOLDER = Path(__file__).parent / "nvidia-smi"


def parsed(name: str) -> dict[str, Any]:
    return gpus.parse((FOLDER / name).read_text())


def kinds(told: dict[str, Any], devices: int | None = None) -> list[tuple[str, str]]:
    """Give what is found on a node that told this: kind and severity."""
    count = len(told["gpus"]) if devices is None else devices
    node = seen(0, {"gpus": {"missing": False, "devices": count, **told}})
    return [(finding.kind, finding.severity) for finding in gpu.findings(node)]


VERSIONS = {
    "driver-418-v100.xml": ("418.126.02", "10.1", ["Tesla V100-SXM2-32GB"]),
    "driver-515-t4.xml": ("515.65.01", "11.7", ["Tesla T4"]),
    "driver-535-a100-mig.xml": ("535.104.05", "12.2", ["NVIDIA A100-SXM4-80GB"] * 2),
    "driver-550-h100.xml": ("550.90.07", "12.4", ["NVIDIA H100 80GB HBM3"]),
    "driver-590-no-ecc.xml": ("590.44.01", "13.1", ["NVIDIA RTX A5000"] * 2),
}


@pytest.mark.parametrize("name", VERSIONS)
def test_every_driver_tells_its_version_and_its_gpus(name: str) -> None:
    told = parsed(name)
    assert (told["driver"], told["cuda"], [each["name"] for each in told["gpus"]]) == VERSIONS[name]
    assert told["problem"] == ""


def test_the_old_names_of_ecc_errors_and_slowdowns_are_known() -> None:
    (v100,) = parsed("driver-418-v100.xml")["gpus"]
    assert (v100["ecc"], v100["slowdown"]) == (2, ["hw_slowdown", "hw_power_brake_slowdown"])
    assert v100["repair"] == "memory pages wait to be retired"
    assert v100["memory_mib"] == 32480


def test_the_new_names_are_known_and_correctable_errors_do_not_count() -> None:
    (h100,) = parsed("driver-550-h100.xml")["gpus"]
    assert (h100["ecc"], h100["slowdown"]) == (3, ["hw_slowdown", "hw_thermal_slowdown"])
    assert h100["repair"] == "memory rows wait to be remapped"
    assert kinds(parsed("driver-550-h100.xml")) == [
        ("gpu-ecc", "error"),
        ("gpu-repair", "warning"),
        ("gpu-slow", "warning"),
        ("gpu-busy", "warning"),
    ]


def test_what_computes_holds_a_gpu_and_what_only_draws_does_not() -> None:
    (t4,) = parsed("driver-515-t4.xml")["gpus"]
    assert t4["processes"] == [{"pid": 4711, "name": "python3", "memory_mib": 1025}]
    (h100,) = parsed("driver-550-h100.xml")["gpus"]
    assert [(each["pid"], each["memory_mib"]) for each in h100["processes"]] == [(4711, 70000), (4712, None)]


def test_an_idle_gpu_at_its_power_limit_is_healthy() -> None:
    (t4,) = parsed("driver-515-t4.xml")["gpus"]
    assert kinds({"gpus": [{**t4, "processes": []}]}) == []


def test_mig_is_told_per_gpu_and_its_instances_are_no_gpus() -> None:
    first, second = parsed("driver-535-a100-mig.xml")["gpus"]
    assert (first["mig"], second["mig"]) == (True, False)
    assert first["memory_mib"] == 81920
    assert second["repair"] == "it needs a reset"


def test_what_reads_na_is_not_known_and_no_fault() -> None:
    first, second = parsed("driver-590-no-ecc.xml")["gpus"]
    assert (first["ecc"], first["repair"], first["sick"], first["mig"]) == (None, "", "", False)
    assert second["repair"] == "a memory row could not be remapped"


def test_a_gpu_that_answers_unknown_error_is_lost() -> None:
    told = parsed("unknown-error.xml")
    assert told["gpus"][0]["sick"] == "[Unknown Error]"
    assert kinds(told) == [("gpu-lost", "error")]


def test_no_devices_is_no_problem_where_the_kernel_has_none() -> None:
    told = parsed("no-devices.txt")
    assert told == {"gpus": [], "problem": ""}
    assert kinds(told) == []
    assert kinds(told, devices=8) == [("gpu-lost", "error")]


COMPLAINTS = {"mismatch.txt": "reboot", "no-driver.txt": "modprobe nvidia", "lost.txt": "reset the GPU"}


@pytest.mark.parametrize("name", COMPLAINTS)
def test_what_is_said_instead_of_a_document_is_an_error_with_its_fix(name: str) -> None:
    told = parsed(name)
    assert kinds(told, devices=1) == [("gpu-driver", "error")]
    (finding,) = gpu.findings(seen(0, {"gpus": {"devices": 1, **told}}))
    assert (FOLDER / name).read_text().split()[0] in finding.what
    assert COMPLAINTS[name] in finding.fix


def test_a_complaint_before_the_document_is_told_and_the_document_is_read() -> None:
    told = gpus.parse("WARNING: infoROM is corrupted\n" + (FOLDER / "driver-515-t4.xml").read_text())
    assert told["problem"] == "WARNING: infoROM is corrupted"
    assert len(told["gpus"]) == 1
    assert kinds(told)[0] == ("gpu-driver", "warning")


def test_nothing_at_all_is_told_with_the_exit_code() -> None:
    assert gpus.parse("", 9)["problem"] == "nvidia-smi ended with 9 and said nothing"


def test_complaints_of_the_driver_are_counted_and_told_apart() -> None:
    lines = [
        "NVRM: Xid (PCI:0000:3b:00): 79, pid='<unknown>', name=<unknown>, GPU has fallen off the bus.",
        "NVRM: Xid (PCI:0000:5E:00): 31, pid=4711, name=python, Ch 00000008, MMU Fault: ENGINE GRAPHICS",
        "NVRM: Xid (PCI:0000:5e:00): 31, pid=4712, name=python, Ch 00000009, MMU Fault: ENGINE GRAPHICS",
        "NVRM: Xid (PCI:0000:5E:00 GPU-I:05): 94, pid=1, Contained: SM (0x1)",
    ]
    every = list(gpu.findings(seen(0, {"gpus": {"devices": 2, "xids": lines}})))
    assert [(each.kind, each.severity) for each in every] == [
        ("gpu-xid", each) for each in ("error", "warning", "warning")
    ]
    assert "Xid 79 (the GPU has fallen off the bus) of GPU 0000:3b:00 within the last day" in every[0].what
    assert every[1].what.endswith("of GPU 0000:5e:00 within the last day, 2 times")


@given(some.text(max_size=200), some.integers(0, 3000))
def test_no_text_and_no_half_of_a_document_is_met_with_an_exception(text: str, cut: int) -> None:
    whole = (FOLDER / "driver-550-h100.xml").read_text()
    for each in (text, whole[:cut], whole[:cut] + text + whole[cut:]):
        told = gpus.parse(each)
        assert isinstance(told["gpus"], list)
        list(gpu.findings(seen(0, {"gpus": {"devices": 1, "gpus": [GPU], **told}})))
