"""Lists of hosts in JSON or YAML: MLX's `[{"ssh": "me@h", "ips": ["10.0.0.2"]}]`, and plain lists of names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torchfab.core.hostfiles.dialect import Source, Translation
from torchfab.core.hostfiles.structured import number_of
from torchfab.core.hostlines.words import Line

MLX, PLAIN = "a hosts file of MLX (JSON)", "a list of hosts"


def title(document: Any) -> str:
    """Return the description of a document: a hosts file of MLX, or a plain list of hosts; else an empty text."""
    entries = _entries(document)
    if not entries:
        return ""
    if all(isinstance(each, dict) and "ssh" in each for each in entries):
        return MLX
    return PLAIN if all(isinstance(each, str) for each in entries) else ""


def _entries(document: Any) -> list[Any]:
    """Return the hosts: the document itself, or its `hosts`, as in newer versions of MLX and in SageMaker."""
    value = document.get("hosts") if isinstance(document, dict) else document
    return value if isinstance(value, list) else []


def translate(source: Source, document: Any) -> Translation:
    """Translate a list of hosts.

    Parameters
    ----------
    source : Source
        The file, for messages.
    document : any
        A document for which `title` is not empty.

    Returns
    -------
    Translation

    Raises
    ------
    InventoryError
        A host is not valid.
    """
    entries = _entries(document)
    if isinstance(entries[0], dict):
        notes = [f"{source.origin}: {key} is left out: --env sets variables" for key in ("envs",) if key in document]
        return Translation([_mlx_line(source, each) for each in entries], notes)
    lines = [source.line(number_of(each), *(each.split() or [""])) for each in entries]
    return Translation(lines)


def _mlx_line(source: Source, entry: Mapping[str, Any]) -> Line:
    host, addresses = entry["ssh"], entry.get("ips") or []
    if not isinstance(host, str) or not host.strip():
        raise source.error(number_of(next(iter(entry), "")), f'"ssh" of {MLX} is not a host', '{"ssh": "me@node1"}')
    if not isinstance(addresses, list) or not all(isinstance(each, str) for each in addresses):
        raise source.error(number_of(host), f'"ips" of {host} is not a list of addresses', '"ips": ["10.0.0.2"]')
    user, at, name = host.strip().rpartition("@")
    bracketed = f"{user}{at}[{name}]" if name.count(":") > 1 and not name.startswith("[") else host.strip()
    return source.line(number_of(host), bracketed, *(f"address={each}" for each in addresses[:1]))
