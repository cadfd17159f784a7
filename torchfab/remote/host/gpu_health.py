"""The NVIDIA GPUs of a node, from `nvidia-smi -q -x`: the one output whose fields no driver version refuses to tell.

Elements come and go with the driver (clocks_throttle_reasons became clocks_event_reasons in 535); what is not there, or
reads N/A, is not known. Nothing here needs a GPU: `parse` takes the text.
"""

from __future__ import annotations

import glob
import re
import subprocess
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any
    from xml.etree.ElementTree import Element

TIMEOUT_S = 20
_END = "</nvidia_smi_log>"
XID_AGE_S = 24 * 3600
# What stands in a field, or instead of the whole document, when the driver has lost a GPU; of a healthy one too, where
# it fails to tell of its power.
_SICK = re.compile(r"Unknown Error|GPU is lost|requires reset|\bERR!|fallen off the bus", re.IGNORECASE)
_LOST = re.compile(r"GPU is lost|requires reset|fallen off the bus", re.IGNORECASE)
_UNKNOWN = {
    *("", "N/A", "[N/A]", "None", "[Not Supported]", "Not Supported", "[Insufficient Permissions]"),
    "Requested functionality has been deprecated",
}
_SLOWDOWNS = ("hw_slowdown", "hw_thermal_slowdown", "hw_power_brake_slowdown", "sw_thermal_slowdown")


def look() -> dict[str, Any]:
    """Return `devices` (how many the kernel has), and of nvidia-smi: `driver`, `cuda`, `gpus`, or `problem`.

    `xids` are the driver's complaints of the last day in the kernel's log (Xid, SXid, GPUs that do not start),
    `xids_unread` why it could not be read.
    A machine without NVIDIA's kernel module has no devices.
    """
    devices = len(glob.glob("/proc/driver/nvidia/gpus/*") or glob.glob("/dev/nvidia[0-9]*"))
    told = ask()
    if told.get("missing") and not devices:
        return {"devices": 0, "gpus": []}
    return {"devices": devices, **told, **(_xids() if devices else {})}


def _xids() -> dict[str, Any]:
    from torchfab.remote.host import kernel_log

    said = kernel_log.said(time.time() - XID_AGE_S)
    lines = [text for _, text in said["lines"] if "NVRM: " in text or "SXid (" in text]
    return {"xids": lines, "xids_unread": said["unread"]}


def ask() -> dict[str, Any]:
    """Run nvidia-smi and return what it tells."""
    try:
        done = subprocess.run(
            ["nvidia-smi", "-q", "-x"],
            check=False,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=TIMEOUT_S,
        )
    except FileNotFoundError:
        return {"gpus": [], "missing": True, "problem": "nvidia-smi is not there"}
    except subprocess.TimeoutExpired:
        return {"gpus": [], "problem": f"nvidia-smi did not answer within {TIMEOUT_S} s"}
    except OSError as error:
        return {"gpus": [], "problem": f"nvidia-smi does not run: {error.strerror}"}
    return parse(done.stdout, done.returncode)


def parse(text: str, code: int = 0) -> dict[str, Any]:
    """Return `driver`, `cuda`, `gpus`, and `problem` where nvidia-smi complains instead of, or beside, its document."""
    from xml.etree import ElementTree  # not for machines without GPUs

    begin, last = text.find("<?xml"), text.rfind(_END)
    end = last + len(_END)
    if begin < 0 or last < 0:
        what = " ".join(text.split())[:300] or f"nvidia-smi ended with {code} and said nothing"
        return {"gpus": [], "problem": "" if _has_none(what) else what}
    try:
        root = ElementTree.fromstring(text[begin:end])
    except ElementTree.ParseError as error:
        return {"gpus": [], "problem": f"the output of nvidia-smi -q -x cannot be read: {error}"}
    return {
        "driver": _version(root, "driver_version", "kmd_version"),
        "cuda": _version(root, "cuda_version", "cuda_umd_version"),
        "gpus": [_gpu(each) for each in root.findall("gpu")],
        "problem": " ".join(f"{text[:begin]} {text[end:]}".split())[:300],
    }


def _version(root: Element, *paths: str) -> str:
    """Return the first that is told; driver 610 puts a note on its future behind the old ones."""
    return next((text.split()[0] for text in (_text(root, path) for path in paths) if text), "")


def _has_none(text: str) -> bool:
    return text.startswith("No devices were found")


def _gpu(element: Element) -> dict[str, Any]:
    sick = next((each.text.strip() for each in element.iter() if each.text and _is_sick(each.tag, each.text)), "")
    return {
        "bus": element.get("id", ""),
        "name": _text(element, "product_name"),
        "uuid": _text(element, "uuid"),
        "memory_mib": _number(_text(element, "fb_memory_usage/total")),
        "mig": _text(element, "mig_mode/current_mig") == "Enabled",
        "sick": sick,
        "ecc": _ecc(element),
        "repair": _repair(element),
        "slowdown": [name for name in _SLOWDOWNS if _is_slowed(element, name)],
        "processes": [_process(each) for each in element.findall("processes/process_info") if _computes(each)],
    }


def _is_sick(tag: str, text: str) -> bool:
    return bool((_LOST if "power" in tag else _SICK).search(text))


def _text(element: Element, path: str) -> str:
    text = (element.findtext(path) or "").strip()
    return "" if text in _UNKNOWN else text


def _number(text: str) -> int | None:
    match = re.match(r"[0-9]{1,18}", text)
    return int(match[0]) if match else None


def _ecc(element: Element) -> int | None:
    """Return how many errors since the driver was loaded could not be corrected; None where ECC is off or unknown.

    By driver: double_bit/total (before 450), sram_uncorrectable, since 550 sram_uncorrectable_parity and _secded. MIG
    devices have counts of their own; those of the GPU may hold them too.
    """
    whole = _sum(element, "ecc_errors/volatile/*")
    parts = _sum(element, "mig_devices/mig_device/ecc_error_count/volatile_count/*")
    counts = (_number(_text(element, "ecc_errors/volatile/double_bit/total")), whole, parts)
    return max((count for count in counts if count is not None), default=None)


def _sum(element: Element, path: str) -> int | None:
    texts = [(each.text or "").strip() for each in element.findall(path) if "uncorrectable" in each.tag]
    known = [count for count in map(_number, texts) if count is not None]
    return sum(known) if known else None


def _repair(element: Element) -> str:
    """Return what the memory of a GPU waits for, or cannot do any more; empty when nothing."""
    if _text(element, "remapped_rows/remapped_row_failure") == "Yes":
        return "a memory row could not be remapped"
    if _text(element, "ecc_errors/unrepairable_memory") == "Yes":
        return "its memory cannot be repaired"
    pending = {
        "remapped_rows/remapped_row_pending": "memory rows wait to be remapped",
        "retired_pages/pending_retirement": "memory pages wait to be retired",
        "retired_pages/pending_blacklist": "memory pages wait to be retired",
        "ecc_errors/channel_repair_pending": "a memory channel waits to be repaired",
        "ecc_errors/tpc_repair_pending": "a TPC waits to be repaired",
        "gpu_reset_status/reset_required": "it needs a reset",
        "gpu_reset_status/drain_and_reset_recommended": "it should be drained and reset",
        "ecc_errors/aggregate/sram_threshold_exceeded": "more SRAM errors than are tolerated: have it replaced",
    }
    found = [words for path, words in pending.items() if _text(element, path) == "Yes"]
    action = _text(element, "gpu_recovery_action")
    return found[0] if found else (f"the driver asks for: {action}" if action else "")


def _is_slowed(element: Element, name: str) -> bool:
    paths = (f"clocks_{word}_reasons/clocks_{word}_reason_{name}" for word in ("event", "throttle"))
    return any(_text(element, path) == "Active" for path in paths)


def _computes(element: Element) -> bool:
    return "C" in _text(element, "type")  # C, or C+G; G alone draws a desktop


def _process(element: Element) -> dict[str, Any]:
    return {
        "pid": _number(_text(element, "pid")),
        "name": _text(element, "process_name"),
        "memory_mib": _number(_text(element, "used_memory")),
    }
