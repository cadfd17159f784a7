"""The findings from the output of nvidia-smi and the kernel log, of several driver versions.

Most are recordings that others have published (tests/recorded/INDEX.md). tests/remote/host/nvidia-smi holds
hand-written output, for states without a known recording.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import strategies as some

from tests.doctor.factories import GPU, make_node
from tests.recorded.recordings import names, recording
from tests.support import fuzzed
from torchfab.doctor import gpu
from torchfab.remote.host import gpu_health, kernel_log

FOLDER = Path(__file__).parents[1] / "remote" / "host" / "nvidia-smi"


def parsed(name: str) -> dict[str, Any]:
    return gpu_health.parse((FOLDER / name).read_text())


T4 = recording("xml", "515.105.01-tesla-t4.xml")


def kinds(probe: dict[str, Any], devices: int | None = None) -> list[tuple[str, str]]:
    """Return kind and severity of the findings for this output of nvidia-smi."""
    count = len(probe["gpus"]) if devices is None else devices
    node = make_node(0, {"gpus": {"missing": False, "devices": count, **probe}})
    return [(finding.kind, finding.severity) for finding in gpu.findings(node)]


# Driver, CUDA, name, memory in MiB, memory errors that were not corrected, MIG, processes.
RECORDED: dict[str, tuple[Any, ...]] = {
    "418.43-geforce-gtx-1660-ti.xml": ("418.43", "10.1", "Graphics Device", 5912, None, False, []),
    "470.74-geforce-gt-1030.xml": ("470.74", "11.4", "NVIDIA GeForce GT 1030", 1998, None, False, []),
    "515.105.01-tesla-t4.xml": ("515.105.01", "11.7", "Tesla T4", 15360, 0, False, [(5762, "python", 1005)]),
    "535.54.03-a100-sxm4-80gb-mig.xml": ("535.54.03", "12.2", "NVIDIA A100-SXM4-80GB", 81920, 0, True, []),
    "590.44.01-rtx-pro-6000-blackwell.xml": (
        *("590.44.01", "13.1", "NVIDIA RTX PRO 6000 Blackwell Max-Q Workstation Edition", 97887, None, False),
        [(116860, "/root/src/llama.cpp/build/bin/llama-server", 65710)],
    ),
}


def test_each_recorded_document_is_in_the_table_above() -> None:
    assert sorted(RECORDED) == names("xml")


@pytest.mark.parametrize("name", RECORDED)
def test_recordings_of_healthy_gpus_are_read(name: str) -> None:
    probe = gpu_health.parse(recording("xml", name))
    (one,) = probe["gpus"]
    processes = [(each["pid"], each["name"], each["memory_mib"]) for each in one["processes"]]
    read = (probe["driver"], probe["cuda"], *(one[key] for key in ("name", "memory_mib", "ecc", "mig")), processes)
    assert read == RECORDED[name]
    assert (probe["problem"], one["sick"], one["repair"], one["slowdown"]) == ("", "", "", [])
    assert kinds({"gpus": [{**one, "processes": []}]}) == []


def test_new_element_names_are_known_and_corrected_errors_ignored() -> None:
    (h100,) = parsed("driver-550-h100.xml")["gpus"]
    assert (h100["ecc"], h100["slowdown"]) == (3, ["hw_slowdown", "hw_thermal_slowdown"])
    assert h100["repair"] == "memory rows wait to be remapped"
    assert kinds(parsed("driver-550-h100.xml")) == [
        ("gpu-ecc", "error"),
        ("gpu-repair", "warning"),
        ("gpu-slow", "warning"),
        ("gpu-busy", "warning"),
    ]


def test_a_gpu_that_answers_unknown_error_is_lost() -> None:
    probe = parsed("unknown-error.xml")
    assert probe["gpus"][0]["sick"] == "[Unknown Error]"
    assert kinds(probe) == [("gpu-lost", "error")]


def test_no_devices_is_not_a_problem_if_the_kernel_has_none() -> None:
    probe = gpu_health.parse(recording("words", "no-devices-575.51.03.txt"))
    assert probe == {"gpus": [], "problem": ""}
    assert kinds(probe) == []
    assert kinds(probe, devices=8) == [("gpu-lost", "error")]


COMPLAINTS = {
    "mismatch-460.txt": "reboot, or reload",
    "mismatch-550.144.txt": "reboot, or reload",
    "mismatch-570.124.txt": "reboot, or reload",
    "no-driver-440.txt": "modprobe nvidia",
    "lost-2018-gpu-is-lost.txt": "reset the GPU",
    "lost-520.61.05-unknown-error.txt": "reset the GPU",
    "lost-535.161.07-unknown-error.txt": "reset the GPU",
    "lost-610.57.04-unknown-error-and-no-devices.txt": "reset the GPU",
    "not-found-515.43.04.txt": "reset the GPU",
    "nvml-unknown-error-in-container.txt": "in a container",
}


@pytest.mark.parametrize("name", COMPLAINTS)
def test_a_message_instead_of_xml_is_an_error_with_its_fix(name: str) -> None:
    text = recording("words", name)
    probe = gpu_health.parse(text, 1)
    assert kinds(probe, devices=1) == [("gpu-driver", "error")]
    (finding,) = gpu.findings(make_node(0, {"gpus": {"devices": 1, **probe}}))
    assert finding.what == " ".join(text.split())
    assert COMPLAINTS[name] in finding.fix


@pytest.mark.parametrize("where", ["before", "after"])
def test_a_message_beside_the_xml_is_a_warning_and_the_xml_is_read(where: str) -> None:
    warning = recording("words", "inforom-warning.txt")
    probe = gpu_health.parse(warning + T4 if where == "before" else T4 + warning)
    assert probe["problem"] == warning.strip()
    assert len(probe["gpus"]) == 1
    assert kinds(probe)[0] == ("gpu-driver", "warning")


def test_xids_are_counted_per_gpu_and_number() -> None:
    lines = [
        "NVRM: Xid (PCI:0000:3b:00): 79, pid='<unknown>', name=<unknown>, GPU has fallen off the bus.",
        "NVRM: Xid (PCI:0000:5E:00): 31, pid=4711, name=python, Ch 00000008, MMU Fault: ENGINE GRAPHICS",
        "NVRM: Xid (PCI:0000:5e:00): 31, pid=4712, name=python, Ch 00000009, MMU Fault: ENGINE GRAPHICS",
        "NVRM: Xid (PCI:0000:5E:00 GPU-I:05): 94, pid=1, Contained: SM (0x1)",
    ]
    every = list(gpu.findings(make_node(0, {"gpus": {"devices": 2, "xids": lines}})))
    assert [(each.kind, each.severity) for each in every] == [
        ("gpu-xid", each) for each in ("error", "warning", "warning")
    ]
    assert "Xid 79 (the GPU has fallen off the bus) of GPU 0000:3b:00 within the last day" in every[0].what
    assert every[1].what.endswith("of GPU 0000:5e:00 within the last day, 2 times")


# The findings from each recorded kernel log: severity, and a part of the text.
KERNEL: dict[str, list[tuple[str, str]]] = {
    "fallen-without-xid-2014.txt": [("error", "that GPU 0000:01:00 has fallen off the bus")],
    "fallen-without-xid-570.158.01.txt": [("error", "that a GPU has fallen off the bus")],
    "gsp-boot-failed-2026.txt": [("error", "a GPU needs a reset"), ("error", "GPU 0000:a1:00 cannot be initialised")],
    "reset-required-2026.txt": [("error", "that a GPU needs a reset")],
    "sxid-570.195.03.txt": [("warning", "SXid 22013 (non-fatal, Link 44 Minion Link DLREQ interrupt) of NVSwitch 00")],
    "xid-2015-31-32.txt": [("warning", "Xid 32"), ("warning", "Xid 31 (a program's memory fault) of GPU 0000:01:00")],
    "xid-2023-63-bloom.txt": [("warning", "Xid 63 (a memory row was remapped) of GPU 0000:10:1c within the last day")],
    "xid-2024-109.txt": [("warning", "Xid 109 (a context switch took too long")],
    "xid-2024-31-62-45.txt": [("warning", "Xid 31"), ("error", "Xid 62 (its micro-"), ("warning", "Xid 45 (a program")],
    "xid-2024-48-64-rminit.txt": [
        *(("error", "Xid 48 (a memory error that ECC could not correct) of GPU 0000:07:00"), ("error", "Xid 64")),
        ("error", "that GPU 0000:0a:00 cannot be initialised"),
    ],
    "xid-2025-119-h100.txt": [("error", "Xid 119 (the GPU's system processor does not answer) of GPU 0000:9b:00")],
    "xid-2025-13-43-storm.txt": [("warning", "Xid 13"), ("warning", "Xid 43")],
    "xid-2025-145-149-blackwell.txt": [
        *(("error", "Xid 149 (NVLink error) of GPU 0019:01:00"), ("error", "Xid 149 (NVLink error) of GPU 0000:00:00")),
        ("warning", "Xid 145 (NVLink error) of GPU 0018:01:00"),
    ],
    "xid-2026-154-talos.txt": [("error", "Xid 154 (the driver requests: GPU Reset Required) of GPU 0000:0b:00")],
    "xid-535.161.07-79.txt": [("error", "Xid 79 (the GPU has fallen off the bus) of GPU 0000:a1:00")],
    "xid-535.183.01-43-31-94.txt": [("warning", "Xid 43"), ("warning", "Xid 31"), ("warning", "Xid 94 (contained")],
    "xid-575.51.02-120.txt": [("error", "Xid 120 (the GPU's system processor failed) of GPU 0000:02:00")],
    "xid-590.48.01-38-109.txt": [("warning", "Xid 38 (an error of the driver's firmware)"), ("warning", "Xid 109")],
    "xid-590.48.01-45-by-145-149.txt": [
        ("error", "Xid 45 (a program was cleaned up after Xid 149 (NVLink error)) of GPU 0000:dc:00"),
        *(("error", "after Xid 145 (NVLink error)) of GPU 0000:ed:00"), ("error", "of GPU 0000:ba:00")),
    ],
    "xid-595.71.05-79.txt": [("error", "Xid 79 (the GPU has fallen off the bus) of GPU 0000:06:00")],
}  # fmt: skip


def test_each_recorded_log_of_a_kernel_is_in_the_table_above() -> None:
    of_others = ("oom-", "kmsg-")  # tests/remote/job/test_evidence.py
    assert sorted(KERNEL) == [name for name in names("kernel") if not name.startswith(of_others)]


@pytest.mark.parametrize("name", KERNEL)
def test_recorded_kernel_messages_become_findings(name: str) -> None:
    kept = kernel_log._kept([[1.0, line] for line in recording("kernel", name).splitlines()], 0.0)
    every = list(
        gpu.findings(make_node(0, {"gpus": {"devices": 1, "gpus": [GPU], "xids": [text for _, text in kept]}}))
    )
    assert [each.severity for each in every] == [severity for severity, _ in KERNEL[name]]
    for finding, (_, text) in zip(every, KERNEL[name], strict=True):
        assert text in finding.what


def test_a_completed_recovery_is_not_an_error() -> None:
    line = recording("kernel", "xid-2026-154-talos.txt")
    over = line.replace("from 0x0 (None) to 0x1 (GPU Reset Required)", "from 0x1 (GPU Reset Required) to 0x0 (None)")
    (finding,) = gpu.findings(make_node(0, {"gpus": {"devices": 1, "gpus": [GPU], "xids": [line, over]}}))
    assert finding.severity == "warning"


@fuzzed(some.text(max_size=200), some.integers(0, 3000))
def test_parse_accepts_any_text_and_truncated_xml(text: str, cut: int) -> None:
    whole = (FOLDER / "driver-550-h100.xml").read_text()
    for each in (text, whole[:cut], whole[:cut] + text + whole[cut:]):
        probe = gpu_health.parse(each)
        assert isinstance(probe["gpus"], list)
        list(gpu.findings(make_node(0, {"gpus": {"devices": 1, "gpus": [GPU], **probe}})))
