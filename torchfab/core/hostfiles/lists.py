"""Lists of hosts in JSON or YAML: MLX's `[{"ssh": "me@h", "ips": ["10.0.0.2"]}]`, and plain lists of names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torchfab.core.errors import InventoryError
from torchfab.core.flag_values import is_whole
from torchfab.core.hostfiles.dialect import Source, Translation
from torchfab.core.hostfiles.structured import number_of
from torchfab.core.hostlines import HOST_KEYS
from torchfab.core.hostlines.words import Line

_NAMES = ("hosts", "nodes", "machines", "servers", "workers")  # of a list in a document
MLX, PLAIN = "a hosts file of MLX (JSON)", "a list of hosts"


def title(document: Any) -> str:
    """Return the description of a document: a hosts file of MLX, or a plain list of hosts; else an empty text.

    Parameters
    ----------
    document : any
        The document, as `structured.load` returns it.

    Returns
    -------
    str
        `MLX`, `PLAIN`, or empty.
    """
    entries = _entries(document)
    if not entries:
        return ""
    if all(isinstance(each, dict) and "ssh" in each for each in entries):
        return MLX
    return PLAIN if all(isinstance(each, str) or _host_key(each) for each in entries) else ""


def _entries(document: Any) -> list[Any]:
    """Return the list of hosts: the document itself, or its value under one of the usual names."""
    if not isinstance(document, dict):
        return document if isinstance(document, list) else []
    for name in _NAMES:
        if isinstance(document.get(name), list):
            return list(document[name])
    return [{"host": host, **values} for host, values in document.items()] if _is_mapping(document) else []


def _is_mapping(document: Mapping[str, Any]) -> bool:
    """Return whether a document maps hosts to their keys: `{"a": {"slots": 8}}`."""
    return bool(document) and all(
        isinstance(each, dict) and each and set(each) <= {*HOST_KEYS} for each in document.values()
    )


def numbers_error(source: Source, document: Any) -> InventoryError | None:
    """Return the error for a document such as `{"a": 8}`, which can be hosts with slots, or settings of a program.

    Parameters
    ----------
    source : Source
        The file, for messages.
    document : any
        The document, as `structured.load` returns it.

    Returns
    -------
    InventoryError or None
        None for any other document.
    """
    if not isinstance(document, dict) or not document:
        return None
    if not all(isinstance(each, str) and is_whole(each, 4) for each in document.values()):
        return None
    name, slots = next(iter(document.items()))
    return source.error(
        number_of(name),
        f"a JSON or YAML document that maps names to numbers ({name}: {slots}): hosts with slots, or settings",
        f'write hosts with slots as {{"{name}": {{"slots": {slots}}}}}, or one per line: {name} slots={slots}',
    )


def _host_key(entry: Any) -> str:
    """Return which key of an entry names its host; empty for none."""
    keys = entry if isinstance(entry, dict) else {}
    return next((key for key in ("host", "hostname", "name", "node", "ip") if isinstance(keys.get(key), str)), "")


def _keyed_line(source: Source, entry: Mapping[str, Any]) -> Line:
    """Return the line of an entry with keys: `{"host": "a", "slots": 8}`."""
    name = _host_key(entry)
    words = [f"{key}={_text(value)}" for key, value in entry.items() if key != name and value is not None]
    return source.line(number_of(entry[name]), entry[name].strip(), *words)


def _text(value: Any) -> str:
    if isinstance(value, list):
        return ",".join(map(str, value))
    return value if isinstance(value, str) else ""


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
    if title(document) == PLAIN:
        return Translation([_plain_line(source, each) for each in entries])
    notes = [f"{source.origin}: {key} is left out: --env sets variables" for key in ("envs",) if key in document]
    return Translation([_mlx_line(source, each) for each in entries], notes)


def _plain_line(source: Source, entry: Any) -> Line:
    if isinstance(entry, dict):
        return _keyed_line(source, entry)
    return source.line(number_of(entry), *(entry.split() or [""]))


def _mlx_line(source: Source, entry: Mapping[str, Any]) -> Line:
    host, addresses = entry["ssh"], entry.get("ips") or []
    if not isinstance(host, str) or not host.strip():
        raise source.error(number_of(next(iter(entry), "")), f'"ssh" of {MLX} is not a host', '{"ssh": "me@node1"}')
    if not isinstance(addresses, list) or not all(isinstance(each, str) for each in addresses):
        raise source.error(number_of(host), f'"ips" of {host} is not a list of addresses', '"ips": ["10.0.0.2"]')
    user, at, name = host.strip().rpartition("@")
    bracketed = f"{user}{at}[{name}]" if name.count(":") > 1 and not name.startswith("[") else host.strip()
    return source.line(number_of(host), bracketed, *(f"address={each}" for each in addresses[:1]))
