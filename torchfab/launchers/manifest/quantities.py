"""Values of flags as Kubernetes takes them: names, quantities, volumes, tolerations; wrong ones are refused here."""

from __future__ import annotations

import re
from collections.abc import Sequence

from torchfab.core.errors import JobNameError, UsageError
from torchfab.core.flag_values import WholeNumber

LONGEST_LABEL = 63  # of a DNS label, in characters (RFC 1035)
EFFECTS = ("NoSchedule", "PreferNoSchedule", "NoExecute")
_LABEL = re.compile(r"[a-z]([a-z0-9-]*[a-z0-9])?")
_DOMAIN = re.compile(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*")
_LABEL_VALUE = re.compile(r"([A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?)?")
_QUANTITY = re.compile(r"[0-9]+(\.[0-9]+)?(m|k|M|G|T|P|E|Ki|Mi|Gi|Ti|Pi|Ei)?")


def object_name(job_name: str, last_pod: str) -> str:
    """Return the name of a job's objects: its own in lower case, with `-` for `_`.

    Parameters
    ----------
    job_name : str
        The job's name.
    last_pod : str
        What follows it in the host name of the last pod: `-1`.

    Raises
    ------
    JobNameError
        It begins or ends as no DNS name does, or is too long for the pods' host names.
    """
    name = job_name.lower().replace("_", "-")
    if not _LABEL.fullmatch(name):
        words = f"{name!r} cannot name a Service: DNS wants a letter first, and a letter or digit last"
        raise JobNameError(words, "choose another --name")
    length = len(name) + len(last_pod)
    if length > LONGEST_LABEL:
        words = f"the last pod's host name, {name}{last_pod}, has {length} characters, and DNS takes {LONGEST_LABEL}"
        raise JobNameError(words, f"choose a --name of at most {LONGEST_LABEL - len(last_pod)} characters")
    return name


def domain(flag: str, text: str) -> str:
    """Return the name of an object (a DNS subdomain), or raise UsageError."""
    if len(text) > 253 or not _DOMAIN.fullmatch(text):
        raise UsageError(f"{flag} names an object with lower-case letters, digits, '-' and '.'; got {text!r}")
    return text


def quantity(flag: str, text: str) -> str:
    """Return an amount of cores or bytes (`16`, `500m`, `64Gi`), or raise UsageError."""
    if not _QUANTITY.fullmatch(text) or not float(re.match(r"[0-9.]+", text)[0]):  # type: ignore[index]
        raise UsageError(f"{flag} is an amount as Kubernetes writes it, such as 16, 500m or 64Gi; got {text!r}")
    return text


def cores(text: str) -> int:
    """Return how many whole cores an amount is (`16`, `2500m`); 0 where none was given."""
    if not text or not text.rstrip("m").replace(".", "", 1).isdigit():
        return 0
    return int(float(text[:-1]) / 1000) if text.endswith("m") else int(float(text))


def image(text: str) -> str:
    """Return the image, or raise UsageError."""
    if not text:
        raise UsageError("no --image was given: the container needs one", "--image pytorch/pytorch:latest")
    if re.search(r"\s", text) or not text.isprintable():
        raise UsageError(f"--image names a container image, got {text!r}")
    return text


def qualified_name(flag: str, text: str) -> str:
    """Return a label's key or a resource's name, `[domain/]name`, or raise UsageError."""
    prefix, slash, name = text.rpartition("/")
    if not (name and _LABEL_VALUE.fullmatch(name)) or (slash and not _DOMAIN.fullmatch(prefix)):
        raise UsageError(f"{flag}: {text!r} is no name such as disk or example.com/disk")
    return text


def node_selector(texts: Sequence[str]) -> dict[str, str]:
    """Return the labels that a node must have, each given as K=V, or raise UsageError."""
    found: dict[str, str] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals:
            raise UsageError(f"--node-selector expects KEY=VALUE, got {text!r}", f"--node-selector {text}=VALUE")
        if not _LABEL_VALUE.fullmatch(value):
            raise UsageError(f"--node-selector: {value!r} cannot be a label's value")
        if found.setdefault(qualified_name("--node-selector", key), value) != value:
            raise UsageError(f"--node-selector names {key} twice: no node has both {found[key]!r} and {value!r}")
    return found


def toleration(text: str) -> dict[str, str]:
    """Return a toleration given as KEY[=VALUE][:EFFECT], as `kubectl taint` writes taints, or raise UsageError."""
    rest, colon, effect = text.partition(":")
    key, equals, value = rest.partition("=")
    if colon and effect not in EFFECTS:
        raise UsageError(f"--toleration {text!r}: the effect is {', '.join(EFFECTS)}, got {effect!r}")
    if not key or not _LABEL_VALUE.fullmatch(value):
        raise UsageError(f"--toleration is KEY[=VALUE][:EFFECT], got {text!r}")
    qualified_name("--toleration", key)
    matched = {"operator": "Equal", "value": value} if equals else {"operator": "Exists"}
    return {"key": key, **matched, **({"effect": effect} if colon else {})}


def volumes(texts: Sequence[str]) -> list[dict[str, str]]:
    """Return the claims and where they are mounted, each given as NAME:/path, or raise UsageError."""
    found: list[dict[str, str]] = []
    for text in texts:
        name, _, path = text.partition(":")
        if not path.startswith("/") or ":" in path or ".." in path.split("/"):
            raise UsageError(f"--pvc is NAME:/path, got {text!r}", f"--pvc {name or 'NAME'}:/data")
        clean = "/" + "/".join(part for part in path.split("/") if part)
        if clean in ("/", "/dev/shm", *(each["path"] for each in found)):
            raise UsageError(f"--pvc {text!r}: {clean} cannot be mounted over")
        found.append({"claim": domain("--pvc", name), "path": clean})
    return found


def user(text: str) -> int | None:
    """Return the user id to run as; None for the image's own user; or raise UsageError."""
    return None if text == "image" else WholeNumber().parse("--user image, or", text)
