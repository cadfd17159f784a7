"""What answers look like: a node that answers otherwise is told apart where its answer is taken in.

A shape is a type, a tuple of shapes, or a set of texts; a list with the shape of its items; or a dict of names with
their shapes, of which those with a `?` may be missing. What a shape does not name may be anything.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torchfab.logview import clean

_NUMBER, _NONE = (int, float), type(None)
_MAYBE = (int, float, _NONE)
_RANK = {
    **dict.fromkeys(("rank", "local_rank", "world_size", "code", "started", "ended"), _MAYBE),
    **dict.fromkeys(("pid", "start_time", "attempt"), _NUMBER),
}
_LAST_LINE = {"time": _NUMBER, "text": str, "label": (int, str)}
_PROCESS = {
    **dict.fromkeys(("name", "reason"), str),
    "state": frozenset({"starting", "running", "succeeded", "failed", "stopped", "lost"}),
    **dict.fromkeys(("pid", "started", "ended", "code"), _MAYBE),
    **dict.fromkeys(("signal", "warned"), (str, _NONE)),
    "ranks": [_RANK],
    "last_line": (_LAST_LINE, _NONE),
    "reported": [{"rank": _NUMBER, "code": _NUMBER}],
}
_STATUS = {"processes": [_PROCESS], "now": _NUMBER, "exists": bool, "stop_asked": _MAYBE, "left?": [str]}
_FACTS = {
    **dict.fromkeys(("folder", "hostname"), str),
    **dict.fromkeys(("gpus", "cpus", "time"), _NUMBER),
    "port": _MAYBE,
    "is_root": bool,
    "versions": dict,
}
_STOPPED = {"asked": _NUMBER, "killed": [str], "left": [str], "seconds": _NUMBER}
SHAPES: Mapping[str, Any] = {
    "status": _STATUS,
    "evidence": {**_STATUS, "evidence": dict},
    "prepare": {"facts": _FACTS},
    "start": {"started": list},
    "stop": _STOPPED,
    "take_back": _STOPPED,
    "logs": {"lines?": [list], "offsets?": dict, "end?": _STATUS},
    "clock": {"time": _NUMBER},
}
_PROBLEMS = [{"what": str, "fix": str}]


def fits(answer: Mapping[str, Any], op: str) -> bool:
    """Say whether an answer is one to this request: of its shape, or a list of problems."""
    if "problems" in answer and not _fits(answer["problems"], _PROBLEMS):
        return False
    if op == "logs" and not all(_is_log_line(line) for line in answer.get("lines") or ()):
        return False
    return bool(answer.get("problems")) or _fits(answer, SHAPES.get(op, {}))


def _is_log_line(line: Any) -> bool:
    return isinstance(line, list) and len(line) == 3 and all(map(_fits, line, ((int, str), _NUMBER, str)))


def _fits(value: Any, shape: Any) -> bool:
    if isinstance(shape, dict):
        return isinstance(value, dict) and all(_has(value, name, each) for name, each in shape.items())
    if isinstance(shape, list):
        return isinstance(value, list) and all(_fits(each, shape[0]) for each in value)
    if isinstance(shape, frozenset):
        return isinstance(value, str) and value in shape
    if isinstance(shape, tuple):
        return any(_fits(value, each) for each in shape)
    if isinstance(value, bool) and shape is not bool:
        return False
    return isinstance(value, shape) and not (isinstance(value, float) and not math.isfinite(value))


def _has(value: Mapping[str, Any], name: str, shape: Any) -> bool:
    key = name.removesuffix("?")
    return _fits(value[key], shape) if key in value else name.endswith("?")


def cleaned(value: Any) -> Any:
    """Return a value whose texts steer no terminal: without escape sequences and control characters but line ends."""
    if isinstance(value, str):
        return value if value.isprintable() else "\n".join(map(clean, value.split("\n")))
    if isinstance(value, list):
        return [cleaned(each) for each in value]
    return {name: cleaned(each) for name, each in value.items()} if isinstance(value, dict) else value
