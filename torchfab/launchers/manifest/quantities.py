"""Parsers of flag values for Kubernetes: names, quantities, volumes and tolerations."""

from __future__ import annotations

import re
from collections.abc import Sequence

from torchfab.core.errors import JobNameError, UsageError
from torchfab.core.flag_values import WholeNumber

LONGEST_LABEL = 63  # characters in a DNS label (RFC 1035)
EFFECTS = ("NoSchedule", "PreferNoSchedule", "NoExecute")
_LABEL = re.compile(r"[a-z]([a-z0-9-]*[a-z0-9])?")
_DOMAIN = re.compile(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*")
_LABEL_VALUE = re.compile(r"([A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?)?")
_QUANTITY = re.compile(r"[0-9]+(\.[0-9]+)?(m|k|M|G|T|P|E|Ki|Mi|Gi|Ti|Pi|Ei)?")


def object_name(job_name: str, last_pod: str) -> str:
    """Return the name of a job's objects: the job's name in lower case, with `-` for `_`.

    Parameters
    ----------
    job_name : str
        The job's name.
    last_pod : str
        The suffix of the last pod's host name: `-1`.

    Returns
    -------
    str

    Raises
    ------
    JobNameError
        The name is not a DNS label, or is too long for the host names of the pods.
    """
    name = job_name.lower().replace("_", "-")
    if not _LABEL.fullmatch(name):
        problem = f"{name!r} cannot name a Service: a DNS name starts with a letter, and ends with a letter or digit"
        raise JobNameError(problem, "choose another --name")
    length = len(name) + len(last_pod)
    if length > LONGEST_LABEL:
        problem = f"the last pod's host name, {name}{last_pod}, has {length} characters, and DNS allows {LONGEST_LABEL}"
        raise JobNameError(problem, f"choose a --name of at most {LONGEST_LABEL - len(last_pod)} characters")
    return name


def domain(flag: str, text: str) -> str:
    """Check the name of an object: a DNS subdomain.

    Parameters
    ----------
    flag, text : str
        The flag, for the error, and its value.

    Returns
    -------
    str
        The same name.

    Raises
    ------
    UsageError
        The value is not a DNS subdomain.
    """
    if len(text) > 253 or not _DOMAIN.fullmatch(text):
        raise UsageError(f"{flag} names an object with lower-case letters, digits, '-' and '.'; got {text!r}")
    return text


def quantity(flag: str, text: str) -> str:
    """Check a quantity of cores or bytes: `16`, `500m`, `64Gi`.

    Parameters
    ----------
    flag, text : str
        The flag, for the error, and its value.

    Returns
    -------
    str
        The same quantity.

    Raises
    ------
    UsageError
        The value is not a quantity, or is 0.
    """
    if not _QUANTITY.fullmatch(text) or not float(re.match(r"[0-9.]+", text)[0]):  # type: ignore[index]
        raise UsageError(f"{flag} is an amount as Kubernetes writes it, such as 16, 500m or 64Gi; got {text!r}")
    return text


def cores(text: str) -> int:
    """Convert a quantity of cores (`16`, `2500m`) to whole cores.

    Parameters
    ----------
    text : str
        The quantity; empty: not given.

    Returns
    -------
    int
        0 if it is not given.
    """
    if not text or not text.rstrip("m").replace(".", "", 1).isdigit():
        return 0
    return int(float(text[:-1]) / 1000) if text.endswith("m") else int(float(text))


def image(text: str) -> str:
    """Check the value of `--image`.

    Parameters
    ----------
    text : str
        The value.

    Returns
    -------
    str
        The same image.

    Raises
    ------
    UsageError
        The value is empty, or has blanks or control characters.
    """
    if not text:
        raise UsageError("no --image was given: the container needs one", "--image pytorch/pytorch:latest")
    if re.search(r"\s", text) or not text.isprintable():
        raise UsageError(f"--image names a container image, got {text!r}")
    return text


def qualified_name(flag: str, text: str) -> str:
    """Check the key of a label or the name of a resource: `[domain/]name`.

    Parameters
    ----------
    flag, text : str
        The flag, for the error, and its value.

    Returns
    -------
    str
        The same name.

    Raises
    ------
    UsageError
        The value is not a qualified name.
    """
    prefix, slash, name = text.rpartition("/")
    if not (name and _LABEL_VALUE.fullmatch(name)) or (slash and not _DOMAIN.fullmatch(prefix)):
        raise UsageError(f"{flag}: {text!r} is not a name such as disk or example.com/disk")
    return text


def node_selector(texts: Sequence[str]) -> dict[str, str]:
    """Parse the labels that a node must have.

    Parameters
    ----------
    texts : sequence of str
        Each is KEY=VALUE.

    Returns
    -------
    dict of str to str

    Raises
    ------
    UsageError
        A label is invalid, or one key has two values.
    """
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
    """Parse a toleration, in the syntax of `kubectl taint`.

    Parameters
    ----------
    text : str
        KEY[=VALUE][:EFFECT].

    Returns
    -------
    dict of str to str
        Its object in the manifest.

    Raises
    ------
    UsageError
        The value is not a toleration.
    """
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
    """Parse the persistent volume claims.

    Parameters
    ----------
    texts : sequence of str
        Each is NAME:/path.

    Returns
    -------
    list of dict
        `claim` and `path`, where it is mounted.

    Raises
    ------
    UsageError
        A name is invalid, or a path cannot be mounted over.
    """
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
    """Parse the value of `--user`.

    Parameters
    ----------
    text : str
        A user id, or `image`.

    Returns
    -------
    int or None
        None: the image's own user.
    """
    return None if text == "image" else WholeNumber(form="image, or ").parse("--user", text)
