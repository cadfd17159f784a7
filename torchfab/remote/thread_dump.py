"""Parse the stacks that Python's faulthandler writes."""

from __future__ import annotations

import re

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_HEAD = re.compile(r"(?:Thread|Current thread) 0x([0-9a-fA-F]+)(?: \[(.*)\])? \(most recent call first\):")
_FRAME = re.compile(r'  File "(.*)", line (\d{1,9}) in (.+)')


def parse(text: str) -> list[dict[str, Any]]:
    """Parse the first dump in a text.

    faulthandler lists threads from the newest to the oldest, which is the main thread. Other lines in between, such as
    those of a training that continues, are skipped; a second dump is ignored.

    Parameters
    ----------
    text : str
        The text of a log.

    Returns
    -------
    list of dict
        The threads, the main thread first; a frame is `[function, file, line]`.
    """
    threads: list[dict[str, Any]] = []
    known: set[str] = set()
    for line in text.splitlines():
        head = _HEAD.fullmatch(line)
        if head and head[1] in known:
            break
        if head:
            known.add(head[1])
            threads.append({"name": head[2] or f"0x{head[1].lstrip('0')}", "active": False, "gil": False, "frames": []})
        frame = _FRAME.fullmatch(line)
        if frame and threads:
            threads[-1]["frames"].append([frame[3], frame[1], int(frame[2])])
    return threads[::-1]
