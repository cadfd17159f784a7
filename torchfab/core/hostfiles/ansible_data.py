"""Inventories of ansible in YAML, and the JSON that `ansible-inventory --list` prints."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torchfab.core.hostfiles import ansible_ini
from torchfab.core.hostfiles.ansible import Group, Inventory
from torchfab.core.hostfiles.dialect import Source
from torchfab.core.hostfiles.structured import number_of

MAX_DEPTH = 100  # a group that contains itself through an alias would recurse forever
_KEYS = ("hosts", "children", "vars")


def read(source: Source, document: Any) -> Inventory | None:
    """Read an inventory.

    Parameters
    ----------
    source : Source
        The file, for messages.
    document : any
        Its content, as `structured.load` returns it.

    Returns
    -------
    dict of str to Group, or None
        None if the document is not an inventory.

    Raises
    ------
    InventoryError
        A group is not valid.
    """
    if not isinstance(document, dict):
        return None
    if "_meta" in document or any(map(_is_listed_group, document.values())):
        return _read_listing(document)
    return _read_tree(source, document) if _is_tree(document) else None


def _is_tree(document: Mapping[str, Any]) -> bool:
    """Return whether the values of a document are groups as in YAML inventories."""
    filled = [each for each in document.values() if each is not None]
    return bool(filled) and all(isinstance(each, dict) and each and set(each) <= set(_KEYS) for each in filled)


def _read_tree(source: Source, document: Mapping[str, Any]) -> Inventory:
    inventory: Inventory = {}
    stack = [(name, value, 0) for name, value in reversed(list(document.items()))]
    while stack:
        name, value, depth = stack.pop()
        if depth > MAX_DEPTH:
            raise source.error(number_of(name), f"the group {name!r} contains itself", "correct its children")
        content = _mapping(source, name, f"the group {name!r}", value)
        hosts, children, variables = (_mapping(source, name, f"{key} of {name!r}", content.get(key)) for key in _KEYS)
        group = inventory.setdefault(name, Group())
        group.variables.update(_texts(variables))
        for pattern, values in hosts.items():
            for host in ansible_ini.expand(source, number_of(pattern), pattern):
                group.hosts.setdefault(host, {}).update(_texts(values))
        group.children += children
        stack += [(child, each, depth + 1) for child, each in reversed(list(children.items()))]
    return inventory


def _mapping(source: Source, name: str, what: str, value: Any) -> Mapping[str, Any]:
    if value is None or isinstance(value, dict):
        return value or {}
    fix = "write each name on a line of its own, with a colon: node1:"
    raise source.error(number_of(name), f"an inventory of ansible in which {what} is not a mapping", fix)


def _texts(variables: Any) -> dict[str, str]:
    if not isinstance(variables, dict):
        return {}
    return {key: value for key, value in variables.items() if isinstance(value, str)}


# ---- ansible-inventory --list


def _is_listed_group(value: Any) -> bool:
    return isinstance(value, dict) and any(isinstance(value.get(name), list) for name in ("hosts", "children"))


def _read_listing(document: Mapping[str, Any]) -> Inventory:
    meta = document.get("_meta")
    hostvars = meta.get("hostvars") if isinstance(meta, dict) else None
    variables = hostvars if isinstance(hostvars, dict) else {}
    inventory: Inventory = {}
    for name, value in document.items():
        if name == "_meta":
            continue
        group = {"hosts": value} if isinstance(value, list) else value if isinstance(value, dict) else {}
        hosts = {host: _texts(variables.get(host)) for host in _list(group.get("hosts"))}
        inventory[name] = Group(hosts, _list(group.get("children")), _texts(group.get("vars")))
    for child in [child for group in inventory.values() for child in group.children]:
        inventory.setdefault(child, Group())  # ansible-inventory leaves out groups without hosts
    return inventory


def _list(value: Any) -> list[str]:
    return [each for each in value if isinstance(each, str)] if isinstance(value, list) else []
