"""Secrets of a job are hidden in what its pods say, as `torchfab.remote.job.redaction` hides them on a node.

The pods carry the digests as an annotation; the key of these is in the job's record alone, and what is kept in the
record of pods and logs has no digests, and no secrets, any more.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from torchfab.remote.job import redaction

ANNOTATION = "torchfab/masks"
_LONGEST_LINE = 64 * 1024

Hide = Callable[[Any], Any]


def annotated(item: Mapping[str, Any], secrets: Mapping[str, str], key: str) -> Mapping[str, Any]:
    """Return an object of a job whose pods carry the digests of the job's secrets.

    Parameters
    ----------
    item : Mapping
        A Job, a JobSet, or what has no pods.
    secrets : Mapping of str to str
        Values by name.
    key : str
        Hexadecimal; empty: nothing is hidden.
    """
    found = redaction.digests(dict(secrets), key)
    for template in _templates(item) if found else ():
        template["metadata"].setdefault("annotations", {})[ANNOTATION] = json.dumps(found)
    return item


def _templates(item: Mapping[str, Any]) -> list[Any]:
    if item["kind"] == "JobSet":
        return [each["template"]["spec"]["template"] for each in item["spec"]["replicatedJobs"]]
    return [item["spec"]["template"]] if item["kind"] == "Job" else []


def hider(pods: Sequence[Mapping[str, Any]], key: str) -> Hide | None:
    """Return what hides the secrets of the job that these pods are of; None where nothing is to be hidden."""
    for pod in pods:
        text = (pod["metadata"].get("annotations") or {}).get(ANNOTATION)
        if text and key:
            return _hider(text, key)
    return None


def _hider(text: str, key: str) -> Hide | None:
    try:
        return redaction.hider(json.loads(text), key)
    except (ValueError, TypeError, LookupError, OverflowError, re.error):  # somebody has written something else there
        return None


def hidden(blocks: Iterable[bytes], hide: Hide | None) -> Iterator[bytes]:
    """Yield a log's blocks without the secrets in them, as soon as a line is whole."""
    if hide is None:
        yield from blocks
        return
    rest = b""
    for block in blocks:
        whole, end, rest = (rest + block).rpartition(b"\n")
        if len(rest) > _LONGEST_LINE:
            whole, end, rest = whole + end + rest, b"", b""
        if whole or end:
            yield _hidden(whole, hide) + end
    if rest:
        yield _hidden(rest, hide)


def _hidden(data: bytes, hide: Hide) -> bytes:
    text: str = hide(data.decode("utf-8", "surrogateescape"))
    return text.encode("utf-8", "surrogateescape")
