"""The current load of a node's NVIDIA GPUs, from `nvidia-smi --query-gpu`: cheap enough to run every second.

(`nvidia-smi -q -x` reports far more, but takes a second; `fab doctor` uses it.) A value that the driver does not report
is None: `[N/A]` and `[Not Supported]`, depending on version, board and MIG mode. The parsers take text and need no GPU.
"""

from __future__ import annotations

from torchfab.remote.host import nvidia_smi
from torchfab.remote.procfs import int_or_none

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

TIMEOUT_S = 10
# Fields that every driver since 2014 knows: a single unknown field makes the whole query fail.
FIELDS = (
    *("index", "uuid", "name", "utilization.gpu", "power.draw", "power.limit"),
    *("memory.used", "memory.total", "temperature.gpu"),
)
APP_FIELDS = ("gpu_uuid", "pid", "used_memory", "process_name")


def collect() -> dict[str, Any]:
    """Query the GPUs and their processes.

    Returns
    -------
    dict
        `gpus`, one entry for each, with its `processes`; `problem`, the error that nvidia-smi printed. Without
        nvidia-smi both are empty.
    """
    try:
        code, text = _query("--query-gpu=" + ",".join(FIELDS))
        _, apps = _query("--query-compute-apps=" + ",".join(APP_FIELDS))
    except nvidia_smi.NotInstalledError:
        return {"gpus": [], "problem": ""}
    except nvidia_smi.NvidiaSmiError as error:
        return {"gpus": [], "problem": str(error)}
    gpus, problem = parse(text, code)
    return {"gpus": with_processes(gpus, parse_apps(apps)), "problem": problem}


def _query(query: str) -> tuple[int, str]:
    return nvidia_smi.run(query, nvidia_smi.CSV_FORMAT, timeout_s=TIMEOUT_S)


def parse(text: str, code: int = 0) -> tuple[list[dict[str, Any]], str]:
    """Parse the output of `--query-gpu`.

    Parameters
    ----------
    text : str
        Its stdout and stderr.
    code : int
        Its exit code. Default 0.

    Returns
    -------
    list of dict
        One entry for each GPU: `index`, `uuid`, `name`, `utilization` in percent, `power` and `power_limit` in watts,
        `memory` and `memory_total` in MiB, `temperature` in degrees Celsius; None for values that are not reported.
    str
        The error that nvidia-smi printed; empty if there was none.
    """
    gpus, complaints = [], []
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.split(",")]
        if len(cells) == len(FIELDS) and int_or_none(cells[0]) is not None:
            gpus.append(_gpu(cells))
        elif line.strip():
            complaints.append(line.strip())
    complaint = " ".join(complaints)[:300]
    if nvidia_smi.reports_no_gpu(complaint):
        complaint = ""
    return gpus, complaint or ("" if gpus or code in (0, 6) else f"nvidia-smi ended with {code}")


def _gpu(cells: list[str]) -> dict[str, Any]:
    names = ("utilization", "power", "power_limit", "memory", "memory_total", "temperature")
    numbers = dict(zip(names, map(parse_number, cells[3:])))
    # A lost or faulty GPU shows it in its fields: [Unknown Error], [GPU requires reset], ERR!
    sick = next((cell.strip("[]") for field, cell in zip(FIELDS, cells) if _is_sick(field, cell)), "")
    return {"index": int(cells[0]), "uuid": cells[1], "name": cells[2], **numbers, "sick": sick}


def _is_sick(field: str, cell: str) -> bool:
    """Return whether a field shows a faulty GPU; on a healthy one only the fields of its power may show an error."""
    if any(text in cell for text in ("GPU is lost", "requires reset")):
        return True
    return not field.startswith("power") and any(text in cell for text in ("Unknown Error", "ERR!"))


def parse_number(cell: str) -> float | None:
    """Parse a cell as a number.

    Parameters
    ----------
    cell : str
        Its text.

    Returns
    -------
    float or None
        None if it is not a finite number: `[N/A]`, `[Not Supported]`, `[Unknown Error]`.
    """
    try:
        value = float(cell)
    except ValueError:
        return None
    return value if abs(value) < 1e12 else None  # and not inf or nan


def parse_apps(text: str) -> list[dict[str, Any]]:
    """Parse the output of `--query-compute-apps`.

    Parameters
    ----------
    text : str
        Its stdout and stderr.

    Returns
    -------
    list of dict
        One entry for each process: `uuid` of its GPU, `pid`, `memory` in MiB or None, `name`.
    """
    apps = []
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.split(",", len(APP_FIELDS) - 1)]
        if len(cells) == len(APP_FIELDS) and (pid := int_or_none(cells[1])) is not None:
            app = {"uuid": cells[0], "pid": pid, "memory": parse_number(cells[2]), "name": cells[3]}
            apps.append(app)
    return apps


def with_processes(gpus: list[dict[str, Any]], apps: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Add to each GPU its processes.

    Parameters
    ----------
    gpus : list of dict
        As `parse` returns them.
    apps : list of dict
        As `parse_apps` returns them.

    Returns
    -------
    list of dict
        The GPUs, each with `processes`: `pid`, `memory`, `name`.
    """
    by_uuid: dict[str, list[dict[str, Any]]] = {}
    for app in apps:
        by_uuid.setdefault(app["uuid"], []).append({key: app[key] for key in ("pid", "memory", "name")})
    return [{**gpu, "processes": by_uuid.get(gpu["uuid"], [])} for gpu in gpus]
