"""The value of `gpus=`: devices by index, ranges of indices, UUIDs and names of MIG devices."""

from __future__ import annotations

import re

from torchfab.core.hostlines.words import Line

MAX_DEVICES = 1024
_PREFIXES = ("cuda", "gpu:", "gpu0", "hip", "xpu")
_RANGE = re.compile(r"(\d{1,4})-(\d{1,4})")
_DEVICE = re.compile(r"\d{1,4}|(GPU|MIG)-[A-Za-z0-9/-]+")


def parse(line: Line, text: str) -> tuple[str, ...]:
    """Parse a list of devices.

    Parameters
    ----------
    line : Line
        The line, for messages.
    text : str
        `0-3,6`, or `GPU-8932f937-d72c,MIG-...`.

    Returns
    -------
    tuple of str
        Each device once, in the order of the text.

    Raises
    ------
    InventoryError
        The text is not a list of devices, or names one twice.
    """
    devices: list[str] = []
    for part in text.split(","):
        ends = _RANGE.fullmatch(part)
        if ends and int(ends[1]) <= int(ends[2]) < MAX_DEVICES:
            devices += map(str, range(int(ends[1]), int(ends[2]) + 1))
        elif not ends and _DEVICE.fullmatch(part):
            devices.append(part)
        else:
            raise _error(line, text)
    if len(set(devices)) < len(devices):
        raise _error(line, text)
    return tuple(devices)


def _error(line: Line, text: str) -> Exception:
    fix = "name each device once, for example gpus=2,3 or gpus=0-3; or slots=4"
    if text.lower() in ("all", "auto", "any"):
        fix = "leave gpus= out: without it, all devices are used"
    if (backward := re.fullmatch(r"(\d{1,4})-(\d{1,4})", text)) and int(backward[1]) > int(backward[2]):
        fix = f"a range begins with the lower number: gpus={backward[2]}-{backward[1]}"
    if (
        plain := re.sub(r"\b(?:cuda|gpu|hip|xpu):?(?=\d)", "", text.lower())
        if text.lower().startswith(_PREFIXES)
        else ""
    ):
        fix = f"devices are numbers here: gpus={plain}"
    return line.error(f"gpus={text}: not a list of devices", fix)
