"""Run a command inside a node: an argv prefix that enters its namespaces, replaces /etc files and switches the user."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Iterable
from pathlib import Path

from testbed.layout import Account, Layout, NodeLayout
from testbed.templates import environment_args

PROJECT = Path(__file__).resolve().parents[1]

# Arguments: the node's host name (empty: keep), pairs of SOURCE TARGET, --, the command. The mounts are private.
ENTER = """set -e
if [ -n "$1" ]; then echo "$1" > /proc/sys/kernel/hostname; fi
shift
while [ "$1" != -- ]; do mount --rbind "$1" "$2"; shift 2; done
shift
exec "$@"
"""


def prefix(node: NodeLayout) -> tuple[str, ...]:
    """Return the argv prefix that runs a command in this node as its user, in the caller's environment and folder."""
    layout = node.cluster
    if not layout.account.private:
        return ()
    netns = layout.kind == "netns" and node.remote
    network = ("nsenter", f"--net=/run/netns/{node.namespace}") if netns else ()
    unshare = ("unshare", "--mount", *(("--uts",) if netns else ()), "--propagation", "private")
    mounts = [str(path) for pair in _mounts(node) for path in pair]
    script = ("sh", "-c", ENTER, "enter", node.name if netns else "", *mounts, "--")
    return (*network, *unshare, *script, *_switch(layout.account))


def session(node: NodeLayout) -> tuple[str, ...]:
    """Return the prefix that runs a command in this node as an SSH session would: HOME, user, tmux folder, the mark."""
    account = node.cluster.account
    variables = {**node.environment, "USER": account.name, "LOGNAME": account.name, "SHELL": account.shell}
    return (*prefix(node), "env", *environment_args(variables))


def _switch(account: Account) -> tuple[str, ...]:
    if not account.switched:
        return ()
    return ("setpriv", f"--reuid={account.uid}", f"--regid={account.gid}", "--clear-groups")


def _mounts(node: NodeLayout) -> list[tuple[Path, Path]]:
    # The whole folder is mounted, not files in it: the kernel unmounts a file everywhere when it is replaced in the
    # machine's own /etc, as useradd does.
    pairs = [(node.cluster.etc, Path("/etc")), (node.directory / "passwd", Path("/etc/passwd"))]
    if node.cluster.kind == "netns" and node.remote:
        pairs.append((node.cluster.hosts, Path("/etc/hosts")))
    return [*pairs, *(exposures(node.cluster) if node.cluster.account.switched else [])]


def exposures(layout: Layout) -> list[tuple[Path, Path]]:
    """Return the mounts that expose our Python and project to the user, if they are under a folder closed to it.

    Other users cannot run a Python under /root (mode 700). In the node's own mount namespace, a folder that holds only
    that Python covers /root.
    """
    pairs: list[tuple[Path, Path]] = []
    covers: dict[Path, Path] = {}
    for path in _outermost({Path(sys.base_prefix).resolve(), Path(sys.prefix).resolve(), PROJECT}):
        if closed := closed_ancestor(path, layout.account):
            covers[closed] = layout.run_dir / "cover" / closed.relative_to("/")
            pairs.append((path, covers[closed] / path.relative_to(closed)))
    return [*pairs, *((cover, closed) for closed, cover in covers.items())]


def _outermost(paths: Iterable[Path]) -> list[Path]:
    return sorted(path for path in paths if not any(other in path.parents for other in paths))


def closed_ancestor(path: Path, account: Account) -> Path | None:
    """Return the first folder on the path to `path` that the account may not search; None if there is none."""
    return next((folder for folder in [*reversed(path.parents), path] if not _searchable(folder, account)), None)


def _searchable(folder: Path, account: Account) -> bool:
    status = os.stat(folder)
    if status.st_uid == account.uid:
        return bool(status.st_mode & stat.S_IXUSR)
    return bool(status.st_mode & (stat.S_IXGRP if status.st_gid == account.gid else stat.S_IXOTH))
