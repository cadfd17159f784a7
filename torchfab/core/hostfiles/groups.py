"""Select hosts by group in files with groups: ansible inventories, groups files of ClusterShell."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping

from torchfab.core.hostfiles.dialect import Source


def choose(source: Source, groups: Mapping[str, Collection[str]]) -> list[str]:
    """Return the hosts of the selected groups; of all groups if none is selected.

    Parameters
    ----------
    source : Source
        The file, and the selected groups.
    groups : Mapping of str to collection of str
        The hosts of each group.

    Returns
    -------
    list of str
        Each host once, in the order of the groups.

    Raises
    ------
    InventoryError
        The file has no such group, or the group has no host.
    """
    for name in source.groups:
        if name not in groups:
            near = difflib.get_close_matches(name, list(groups), 1)
            meant = f"; did you mean @{near[0]}?" if near else ""
            raise source.error(0, f"has no group {name!r}{meant}", f"its groups: {listed(groups)}")
        if not groups[name]:
            raise source.error(0, f"the group {name!r} has no host", f"its groups: {listed(groups)}")
    names = source.groups or tuple(groups)
    return list(dict.fromkeys(host for name in names for host in groups[name]))


def listed(groups: Mapping[str, Collection[str]]) -> str:
    """Return the names of groups with their numbers of hosts, at most eight of them.

    Parameters
    ----------
    groups : Mapping of str to collection of str
        The hosts of each group.

    Returns
    -------
    str
        `gpu (8), cpu (2)`; `none` if no group has a host.
    """
    names = [f"{name} ({len(hosts)})" for name, hosts in groups.items() if hosts]
    more = [f"and {len(names) - 8} more"] if len(names) > 8 else []
    return ", ".join([*names[:8], *more]) or "none"
