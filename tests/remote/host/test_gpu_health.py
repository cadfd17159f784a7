"""Parse the output of `nvidia-smi -q -x` of several driver versions.

Most are recordings that others have published (tests/recorded/INDEX.md). tests/remote/host/nvidia-smi holds
hand-written output, for states without a known recording.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.recorded.recordings import recording
from torchfab.remote.host import gpu_health

FOLDER = Path(__file__).parent / "nvidia-smi"


def parsed(name: str) -> dict[str, Any]:
    return gpu_health.parse((FOLDER / name).read_text())


T4 = recording("xml", "515.105.01-tesla-t4.xml")
MIG = recording("xml", "535.54.03-a100-sxm4-80gb-mig.xml")
BLACKWELL = recording("xml", "590.44.01-rtx-pro-6000-blackwell.xml")


def test_the_note_after_the_version_of_driver_610_is_left_out() -> None:
    head = dict(
        line.split(" : ", 1) for line in recording("words", "q-head-610.43.02.txt").splitlines() if " : " in line
    )
    probe = {name.strip(): text for name, text in head.items()}
    text = BLACKWELL.replace(">590.44.01</driver", f">{probe['Driver Version']}</driver")
    text = text.replace(">13.1</cuda_version>", f">{probe['CUDA Version']}</cuda_version>")
    assert [gpu_health.parse(text)[key] for key in ("driver", "cuda")] == ["610.43.02", "13.3"]
    # As it may be in CUDA 14, by what the note says: no recording yet.
    text = BLACKWELL.replace("driver_version>", "kmd_version>").replace("cuda_version>", "cuda_umd_version>")
    assert [gpu_health.parse(text)[key] for key in ("driver", "cuda")] == ["590.44.01", "13.1"]


def test_the_old_names_of_ecc_errors_and_slowdowns_are_known() -> None:
    (v100,) = parsed("driver-418-v100.xml")["gpus"]
    assert (v100["ecc"], v100["slowdown"]) == (2, ["hw_slowdown", "hw_power_brake_slowdown"])
    assert v100["repair"] == "memory pages wait to be retired"
    assert v100["memory_mib"] == 32480


def test_compute_processes_hold_a_gpu_and_graphics_ones_do_not() -> None:
    assert "<type>G</type>" in recording("xml", "470.74-geforce-gt-1030.xml")
    (h100,) = parsed("driver-550-h100.xml")["gpus"]
    assert [(each["pid"], each["memory_mib"]) for each in h100["processes"]] == [(4711, 70000), (4712, None)]


def test_mig_devices_are_not_gpus_but_their_memory_errors_count() -> None:
    assert [each["mig"] for each in parsed("driver-535-a100-mig.xml")["gpus"]] == [True, False]
    part = "<volatile_count>\n                        <sram_uncorrectable>"
    assert part in MIG
    (a100,) = gpu_health.parse(MIG.replace(f"{part}0", f"{part}3"))["gpus"]
    assert a100["ecc"] == 3


# Recorded elements, each with a state that no recording was found of.
STATES = {
    "<reset_required>No": ("<reset_required>Yes", "it needs a reset"),
    "<drain_and_reset_recommended>No": ("<drain_and_reset_recommended>Yes", "it should be drained and reset"),
    "<ecc_errors>": ("<ecc_errors><channel_repair_pending>Yes</channel_repair_pending>", "a memory channel waits"),
    "</volatile>": ("</volatile><tpc_repair_pending>Yes</tpc_repair_pending>", "a TPC waits to be repaired"),
    "<aggregate>": ("<aggregate><sram_threshold_exceeded>Yes</sram_threshold_exceeded>", "too many SRAM errors"),
}


@pytest.mark.parametrize("element", STATES)
def test_pending_repairs_of_a_gpu_are_reported(element: str) -> None:
    state, text = STATES[element]
    assert element in MIG
    (a100,) = gpu_health.parse(MIG.replace(element, state))["gpus"]
    assert text in a100["repair"]


def test_a_gpu_without_a_power_reading_alone_is_not_lost() -> None:
    (t4,) = gpu_health.parse(T4.replace("<power_draw>", "<power_draw>[Unknown Error] "))["gpus"]
    assert t4["sick"] == ""
    (t4,) = gpu_health.parse(T4.replace("<power_draw>", "<power_draw>[GPU requires reset] "))["gpus"]
    assert "requires reset" in t4["sick"]


def test_na_values_are_unknown_and_not_a_fault() -> None:
    first, second = parsed("driver-590-no-ecc.xml")["gpus"]
    assert (first["ecc"], first["repair"], first["sick"], first["mig"]) == (None, "", "", False)
    assert second["repair"] == "a memory row could not be remapped"


def test_empty_output_is_reported_with_the_exit_code() -> None:
    assert gpu_health.parse("", 9)["problem"] == "nvidia-smi ended with 9 and printed nothing"
