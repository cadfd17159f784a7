"""`@gpu`: a group of nodes, as defined by the configuration of ClusterShell on this machine."""

from __future__ import annotations

import os
import sys

from torchfab.core.hostlines.words import Line

_FIX = "define it in ~/.config/clustershell (groups.conf and groups.d), or write the hosts here"


def resolve(line: Line, pattern: str) -> list[str]:
    """Return the hosts of a group.

    Parameters
    ----------
    line : Line
        The line, for messages.
    pattern : str
        `@gpu`, `@source:gpu`, `@gpu!node3`.

    Returns
    -------
    list of str
        Sorted by name.

    Raises
    ------
    InventoryError
        ClusterShell is not configured, or has no such group.
    """
    from ClusterShell.NodeSet import ILLEGAL_GROUP_CHARS, NodeSet, NodeSetException
    from ClusterShell.NodeUtils import GroupResolverConfig, GroupResolverError, GroupSourceError

    files = _configuration()
    if not files:
        raise line.error(f"{pattern} is a group of ClusterShell, which has no groups on this machine", _FIX)
    resolver = GroupResolverConfig(files, illegal_chars=ILLEGAL_GROUP_CHARS)
    try:
        hosts: list[str] = list(NodeSet(pattern, resolver=resolver))
    except (NodeSetException, GroupResolverError, GroupSourceError, ValueError, OSError) as error:
        raise line.error(f"{pattern}: ClusterShell cannot resolve this group: {error}", _FIX) from None
    if not hosts:
        raise line.error(f"{pattern}: ClusterShell has no host in this group", _FIX)
    return hosts


def _configuration() -> list[str]:
    """Return the existing groups files, without the example that pip installs with ClusterShell.

    That example defines groups as common as `@gpu` and `@compute`, with hosts that do not exist.
    """
    from ClusterShell.Defaults import config_paths

    packaged = os.path.join(sys.prefix, "")
    found: list[str] = config_paths("groups.conf")
    return [path for path in found if os.path.isfile(path) and not os.path.abspath(path).startswith(packaged)]
