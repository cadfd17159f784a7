"""The health of a node's NVIDIA GPUs, from `nvidia-smi -q -x`, which works with every driver: it names no fields.

Elements come and go with the driver version (clocks_throttle_reasons became clocks_event_reasons in 535); a missing
element, or N/A, means unknown. Nothing here needs a GPU: `parse` takes the text.
"""

from __future__ import annotations

import glob
import re
import time

from torchfab.remote.host import nvidia_smi

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any
    from xml.etree.ElementTree import Element

TIMEOUT_S = 20
_END = "</nvidia_smi_log>"
XID_AGE_S = 24 * 3600
# The text of a field, or of the whole output, when the driver has lost a GPU. A healthy GPU may show it too, in the
# fields of its power.
_SICK = re.compile(r"Unknown Error|GPU is lost|requires reset|\bERR!|fallen off the bus", re.IGNORECASE)
_LOST = re.compile(r"GPU is lost|requires reset|fallen off the bus", re.IGNORECASE)
_UNKNOWN = {
    *("", "N/A", "[N/A]", "None", "[Not Supported]", "Not Supported", "[Insufficient Permissions]"),
    "Requested functionality has been deprecated",
}
_SLOWDOWNS = ("hw_slowdown", "hw_thermal_slowdown", "hw_power_brake_slowdown", "sw_thermal_slowdown")


def collect() -> dict[str, Any]:
    """Collect the state of the GPUs and the driver's errors of the last day.

    Returns
    -------
    dict
        `devices`, the number of GPUs that the kernel module knows: 0 without the module; `driver`, `cuda` and `gpus`
        from nvidia-smi, or `problem`; `xids`, the driver's errors of the last day in the kernel log (Xid, SXid, GPUs
        that do not start); `xids_unread`, why the log could not be read.
    """
    devices = len(glob.glob("/proc/driver/nvidia/gpus/*") or glob.glob("/dev/nvidia[0-9]*"))
    report = run_nvidia_smi()
    if report.get("missing") and not devices:
        return {"devices": 0, "gpus": []}
    return {"devices": devices, **report, **(_xids() if devices else {})}


def _xids() -> dict[str, Any]:
    from torchfab.remote.host import kernel_log

    log = kernel_log.read_since(time.time() - XID_AGE_S)
    lines = [text for _, text in log["lines"] if "NVRM: " in text or "SXid (" in text]
    return {"xids": lines, "xids_unread": log["unread"]}


def run_nvidia_smi() -> dict[str, Any]:
    """Run nvidia-smi and parse its output.

    Returns
    -------
    dict
        As `parse` returns it; also `missing` if nvidia-smi is not installed.
    """
    try:
        code, text = nvidia_smi.run("-q", "-x", timeout_s=TIMEOUT_S)
    except nvidia_smi.NotInstalledError as error:
        return {"gpus": [], "missing": True, "problem": str(error)}
    except nvidia_smi.NvidiaSmiError as error:
        return {"gpus": [], "problem": str(error)}
    return parse(text, code)


def parse(text: str, code: int = 0) -> dict[str, Any]:
    """Parse the output of `nvidia-smi -q -x`.

    Parameters
    ----------
    text : str
        Its stdout and stderr.
    code : int
        Its exit code. Default 0.

    Returns
    -------
    dict
        `gpus`; `driver` and `cuda` if there is an XML document; `problem`, what it printed instead of or outside it.
    """
    from xml.etree import ElementTree  # imported late: machines without GPUs do not need it

    begin, last = text.find("<?xml"), text.rfind(_END)
    end = last + len(_END)
    if begin < 0 or last < 0:
        problem = " ".join(text.split())[:300] or f"nvidia-smi ended with {code} and printed nothing"
        return {"gpus": [], "problem": "" if nvidia_smi.reports_no_gpu(problem) else problem}
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
    """Return the first version that is given, without the deprecation note that driver 610 appends to the old ones."""
    return next((text.split()[0] for text in (_text(root, path) for path in paths) if text), "")


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
    """Return the number of uncorrectable errors since the driver was loaded; None if ECC is off or unknown.

    By driver: double_bit/total (before 450), sram_uncorrectable, since 550 sram_uncorrectable_parity and _secded. MIG
    devices have counts of their own; the counts of the GPU may include them.
    """
    of_gpu = _sum(element, "ecc_errors/volatile/*")
    of_mig = _sum(element, "mig_devices/mig_device/ecc_error_count/volatile_count/*")
    counts = (_number(_text(element, "ecc_errors/volatile/double_bit/total")), of_gpu, of_mig)
    return max((count for count in counts if count is not None), default=None)


def _sum(element: Element, path: str) -> int | None:
    texts = [(each.text or "").strip() for each in element.findall(path) if "uncorrectable" in each.tag]
    known = [count for count in map(_number, texts) if count is not None]
    return sum(known) if known else None


def _repair(element: Element) -> str:
    """Return the repair that a GPU needs, most severe first; empty if it needs none."""
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
        "ecc_errors/aggregate/sram_threshold_exceeded": "too many SRAM errors: have it replaced",
    }
    found = [problem for path, problem in pending.items() if _text(element, path) == "Yes"]
    action = _text(element, "gpu_recovery_action")
    return found[0] if found else (f"the driver requests: {action}" if action else "")


def _is_slowed(element: Element, name: str) -> bool:
    paths = (f"clocks_{kind}_reasons/clocks_{kind}_reason_{name}" for kind in ("event", "throttle"))
    return any(_text(element, path) == "Active" for path in paths)


def _computes(element: Element) -> bool:
    return "C" in _text(element, "type")  # C, or C+G; G alone is a graphics process


def _process(element: Element) -> dict[str, Any]:
    return {
        "pid": _number(_text(element, "pid")),
        "name": _text(element, "process_name"),
        "memory_mib": _number(_text(element, "used_memory")),
    }
