"""What the NVIDIA GPUs of a node do just now, from `nvidia-smi --query-gpu`: cheap enough to be asked every second.

(`nvidia-smi -q -x` tells far more, and takes a second for it: `fab doctor` reads that.) What a driver does not tell is
None: `[N/A]` and `[Not Supported]` by version, board and MIG mode. The parsers take text, and need no GPU.
"""

from __future__ import annotations

import subprocess

from torchfab.remote.procfs import whole

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

TIMEOUT_S = 10
# Fields that every driver since 2014 knows: one that it does not know would cost us all the others.
FIELDS = (
    *("index", "uuid", "name", "utilization.gpu", "power.draw", "power.limit"),
    *("memory.used", "memory.total", "temperature.gpu"),
)
APP_FIELDS = ("gpu_uuid", "pid", "used_memory", "process_name")
_FORMAT = "--format=csv,noheader,nounits"


def look() -> dict[str, Any]:
    """Return `gpus`, an entry each, and `problem` where nvidia-smi complains; no GPUs where there is no nvidia-smi."""
    try:
        code, text = _ask("--query-gpu=" + ",".join(FIELDS))
        _, apps = _ask("--query-compute-apps=" + ",".join(APP_FIELDS))
    except FileNotFoundError:
        return {"gpus": [], "problem": ""}
    except subprocess.TimeoutExpired:
        return {"gpus": [], "problem": f"nvidia-smi did not answer within {TIMEOUT_S} s"}
    except OSError as error:
        return {"gpus": [], "problem": f"nvidia-smi does not run: {error.strerror}"}
    gpus, problem = parse(text, code)
    return {"gpus": with_processes(gpus, parse_apps(apps)), "problem": problem}


def _ask(query: str) -> tuple[int, str]:
    done = subprocess.run(
        ["nvidia-smi", query, _FORMAT],
        check=False,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        timeout=TIMEOUT_S,
    )
    return done.returncode, done.stdout


def parse(text: str, code: int = 0) -> tuple[list[dict[str, Any]], str]:
    """Return the GPUs that `--query-gpu` printed, and what it complains of.

    A GPU has `index`, `uuid`, `name`, `utilization` in percent, `power` and `power_limit` in watts, `memory` and
    `memory_total` in MiB, `temperature` in degrees Celsius; None for what is not told.
    """
    gpus, complaints = [], []
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.split(",")]
        if len(cells) == len(FIELDS) and whole(cells[0]) is not None:
            gpus.append(_gpu(cells))
        elif line.strip():
            complaints.append(line.strip())
    complaint = " ".join(complaints)[:300]
    if complaint.startswith("No devices were found"):
        complaint = ""
    return gpus, complaint or ("" if gpus or code in (0, 6) else f"nvidia-smi ended with {code}")


def _gpu(cells: list[str]) -> dict[str, Any]:
    names = ("utilization", "power", "power_limit", "memory", "memory_total", "temperature")
    numbers = dict(zip(names, map(number, cells[3:])))
    # Of a GPU that is lost or sick the fields say so, each: [Unknown Error], [GPU requires reset], ERR!
    sick = next((cell.strip("[]") for field, cell in zip(FIELDS, cells) if _is_sick(field, cell)), "")
    return {"index": int(cells[0]), "uuid": cells[1], "name": cells[2], **numbers, "sick": sick}


def _is_sick(field: str, cell: str) -> bool:
    """Say whether a field is that of a sick GPU; a healthy one may fail to tell its power, and nothing else."""
    if any(word in cell for word in ("GPU is lost", "requires reset")):
        return True
    return not field.startswith("power") and any(word in cell for word in ("Unknown Error", "ERR!"))


def number(cell: str) -> float | None:
    """Return a number, or None for all that is none: `[N/A]`, `[Not Supported]`, `[Unknown Error]`."""
    try:
        value = float(cell)
    except ValueError:
        return None
    return value if abs(value) < 1e12 else None  # and not inf or nan


def parse_apps(text: str) -> list[dict[str, Any]]:
    """Return the processes that `--query-compute-apps` printed: `uuid`, `pid`, `memory` in MiB or None, `name`."""
    apps = []
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.split(",", len(APP_FIELDS) - 1)]
        if len(cells) == len(APP_FIELDS) and (pid := whole(cells[1])) is not None:
            app = {"uuid": cells[0], "pid": pid, "memory": number(cells[2]), "name": cells[3]}
            apps.append(app)
    return apps


def with_processes(gpus: list[dict[str, Any]], apps: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the GPUs, each with its processes: `pid`, `memory`, `name`."""
    of: dict[str, list[dict[str, Any]]] = {}
    for app in apps:
        of.setdefault(app["uuid"], []).append({key: app[key] for key in ("pid", "memory", "name")})
    return [{**gpu, "processes": of.get(gpu["uuid"], [])} for gpu in gpus]
