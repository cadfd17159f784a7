"""Redact a job's secrets in the logs and status of its pods, as `torchfab.remote.job.redaction` does on a node.

The pods carry keyed digests of the secrets as an annotation; only the job's record holds the key. The archived pods and
logs contain neither digests nor secrets.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from torchfab.remote.job import redaction

ANNOTATION = "torchfab/masks"
_LONGEST_LINE = 64 * 1024

Redact = Callable[[Any], Any]


def with_digests(item: Mapping[str, Any], secrets: Mapping[str, str], key: str) -> Mapping[str, Any]:
    """Annotate the pod templates of an object with the digests of the job's secrets.

    Parameters
    ----------
    item : Mapping
        A Job, a JobSet, or an object without pods. It is modified.
    secrets : Mapping of str to str
        Values by name.
    key : str
        Key of the digests, hexadecimal; empty: redact nothing.

    Returns
    -------
    Mapping
        The object.
    """
    digests = redaction.digests(dict(secrets), key)
    for template in _pod_templates(item) if digests else ():
        template["metadata"].setdefault("annotations", {})[ANNOTATION] = json.dumps(digests)
    return item


def _pod_templates(item: Mapping[str, Any]) -> list[Any]:
    if item["kind"] == "JobSet":
        return [each["template"]["spec"]["template"] for each in item["spec"]["replicatedJobs"]]
    return [item["spec"]["template"]] if item["kind"] == "Job" else []


def redactor(pods: Sequence[Mapping[str, Any]], key: str) -> Redact | None:
    """Return the function that redacts the secrets of the job to which the pods belong.

    Parameters
    ----------
    pods : sequence of Mapping
        Pods of one job.
    key : str
        Key of the digests, hexadecimal.

    Returns
    -------
    callable, optional
        Takes and returns a text or JSON value; None if there is nothing to redact.
    """
    for pod in pods:
        text = (pod["metadata"].get("annotations") or {}).get(ANNOTATION)
        if text and key:
            return _load_redactor(text, key)
    return None


def _load_redactor(text: str, key: str) -> Redact | None:
    try:
        return redaction.make_redactor(json.loads(text), key)
    except (ValueError, TypeError, LookupError, OverflowError, re.error):  # the annotation was overwritten
        return None


def redact_blocks(blocks: Iterable[bytes], redact: Redact | None) -> Iterator[bytes]:
    """Redact the secrets in a log. A line is passed on as soon as it is complete.

    Parameters
    ----------
    blocks : iterable of bytes
        The log, cut anywhere.
    redact : callable, optional
        From `redactor`; None: pass the blocks on unchanged.

    Returns
    -------
    iterator of bytes
        The redacted log.
    """
    if redact is None:
        yield from blocks
        return
    rest = b""
    for block in blocks:
        complete, end, rest = (rest + block).rpartition(b"\n")
        if len(rest) > _LONGEST_LINE:
            complete, end, rest = complete + end + rest, b"", b""
        if complete or end:
            yield _redact_bytes(complete, redact) + end
    if rest:
        yield _redact_bytes(rest, redact)


def _redact_bytes(data: bytes, redact: Redact) -> bytes:
    text: str = redact(data.decode("utf-8", "surrogateescape"))
    return text.encode("utf-8", "surrogateescape")
