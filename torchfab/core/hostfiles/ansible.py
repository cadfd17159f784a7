"""Inventories of ansible: groups of hosts with variables. `ansible_ini` and `ansible_data` read them."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import field

from torchfab.core.hostfiles import groups
from torchfab.core.hostfiles.dialect import Source, Translation
from torchfab.core.hostfiles.structured import number_of
from torchfab.core.hostlines.words import Line
from torchfab.core.lazy_dataclass import dataclass

TITLE = "an inventory of ansible"
# The part of our line that a host variable sets. Later names win, as in ansible.
_PARTS = {
    "ansible_ssh_host": "host",
    "ansible_host": "host",
    "ansible_ssh_user": "user",
    "ansible_user": "user",
    "ansible_ssh_port": "port",
    "ansible_port": "port",
    "slots": "slots",
    "gpus": "gpus",
    "address": "address",
}
# Login settings, which are not converted.
_LOGIN = (
    *("ansible_ssh_private_key_file", "ansible_private_key_file", "ansible_ssh_common_args", "ansible_ssh_extra_args"),
    *("ansible_ssh_pass", "ansible_password"),
)


@dataclass
class Group:
    """A group of an inventory.

    Attributes
    ----------
    hosts : dict of str to dict
        The variables of each of its own hosts.
    children : list of str
        The groups within it.
    variables : dict of str to str
        The variables of all hosts in it.
    """

    hosts: dict[str, dict[str, str]] = field(default_factory=dict)
    children: list[str] = field(default_factory=list)
    variables: dict[str, str] = field(default_factory=dict)


Inventory = dict[str, Group]


def translate(source: Source, inventory: Inventory) -> Translation:
    """Translate an inventory to lines of our own grammar.

    Parameters
    ----------
    source : Source
        The file, and the selected groups.
    inventory : dict of str to Group
        Its groups.

    Returns
    -------
    Translation

    Raises
    ------
    InventoryError
        A group is unknown or contains itself, or a variable is a template.
    """
    _check_children(source, inventory)
    depths = _depths(source, inventory)
    members = _members(inventory, depths)
    chosen = groups.choose(source, members) if source.groups else list(members["all"])
    variables = _variables(inventory, members, depths)
    lines = [_line(source, host, variables[host]) for host in chosen]
    used = {name for host in chosen for name in variables[host]}
    notes = [f"{source.origin}: {name} is left out: put it into ssh's configuration" for name in _LOGIN if name in used]
    return Translation(lines, notes, [name for name in inventory if members[name] and name not in ("all", "ungrouped")])


def _check_children(source: Source, inventory: Inventory) -> None:
    """Raise the error about a group of other groups that names one which does not exist, as ansible does."""
    for name, group in inventory.items():
        for child in group.children:
            if child not in inventory:
                near = difflib.get_close_matches(child, list(inventory), 1, 0.6)
                fix = f"did you mean {near[0]}?" if near else f"write [{child}] with its hosts, or leave it out"
                raise source.error(number_of(child), f"the group {name} contains {child}, which does not exist", fix)


def _depths(source: Source, inventory: Inventory) -> dict[str, int]:
    """Return the depth of each group below the outermost one; variables of deeper groups win."""
    depths = {name: 0 if name == "all" else 1 for name in inventory}
    for _ in range(len(inventory) + 1):
        deeper = {
            child: depths[name] + 1
            for name, group in inventory.items()
            for child in group.children
            if depths[child] <= depths[name]
        }
        if not deeper:
            return depths
        depths.update(deeper)
    name = max(depths, key=lambda each: depths[each])
    raise source.error(number_of(name), f"the group {name!r} contains itself", "correct its children")


def _members(inventory: Inventory, depths: Mapping[str, int]) -> dict[str, dict[str, None]]:
    """Return the hosts of each group and of the groups in it, in the order of the file."""
    members: dict[str, dict[str, None]] = {}
    for name in sorted(inventory, key=lambda each: -depths[each]):
        group = inventory[name]
        members[name] = dict.fromkeys(group.hosts)
        for child in group.children:
            members[name].update(members[child])
    everything = {host: None for name in inventory for host in members[name]}
    return {**{name: members[name] for name in inventory}, "all": everything}


def _variables(
    inventory: Inventory, members: Mapping[str, Mapping[str, None]], depths: Mapping[str, int]
) -> dict[str, dict[str, str]]:
    """Return the variables of each host: those of a host win over those of its groups."""
    found: dict[str, dict[str, str]] = {host: {} for host in members["all"]}
    for name in sorted(inventory, key=lambda each: (depths[each], each)):
        if inventory[name].variables:
            for host in members[name]:
                found[host].update(inventory[name].variables)
    for group in inventory.values():
        for host, variables in group.hosts.items():
            found[host].update(variables)
    return found


def _line(source: Source, name: str, variables: Mapping[str, str]) -> Line:
    parts = {"host": str(name)}
    for variable, part in _PARTS.items():
        if variable in variables:
            parts[part] = _plain(source, name, variable, variables[variable])
    host = parts.pop("host")
    if variables.get("ansible_connection") == "local":
        host, parts = "localhost", {key: value for key, value in parts.items() if key not in ("user", "port")}
    bracketed = f"[{host}]" if host.count(":") > 1 and not host.startswith("[") else host
    return source.line(number_of(name), bracketed, *(f"{key}={value}" for key, value in parts.items()))


def _plain(source: Source, host: str, variable: str, value: str) -> str:
    if "{{" in value:
        fix = "write its value, or pass the output of: ansible-inventory --list"
        raise source.error(number_of(host), f"{variable}={value} of {host} is a template", fix)
    return value
