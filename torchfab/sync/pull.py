"""Plan which files to copy from which host: equal files once, different ones into a folder per host. Pure.

If every host writes a part of a checkpoint, the parts are copied into one folder: hosts get separate folders only
for files that differ between them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import field
from pathlib import PurePosixPath

from torchfab.core.errors import HostError
from torchfab.core.lazy_dataclass import dataclass
from torchfab.core.specs import Node


@dataclass(frozen=True)
class Match:
    """One match of a pattern on one host.

    Parameters
    ----------
    node : Node
        The host.
    base, name : str
        The folder that names are relative to, and the name that matched.
    files : Mapping of str to int
        Sizes in bytes by name.
    links : Mapping of str to str
        Targets of symbolic links by name.
    """

    node: Node
    base: str
    name: str
    files: Mapping[str, int]
    links: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Transfer:
    """Files to copy from one host into one local folder.

    Parameters
    ----------
    node : Node
        The host.
    base : str
        The folder on the host that the names are relative to.
    folder : str
        The local folder, relative to that of `--to`; empty: that folder itself.
    files : Mapping of str to int
        Sizes in bytes by name.
    links : Mapping of str to str
        Targets of the symbolic links to make, by name.
    """

    node: Node
    base: str
    folder: str
    files: Mapping[str, int]
    links: Mapping[str, str]

    @property
    def size_bytes(self) -> int:
        """The size of all files."""
        return sum(self.files.values())


Place = tuple[int, str, str]  # node rank, base, name of a file


def check_name(name: str) -> None:
    """Check that a name sent by a host is inside the folder that files are copied into.

    Parameters
    ----------
    name : str
        The name.

    Raises
    ------
    HostError
        The name is outside.
    """
    if name.startswith("/") or "\0" in name or ".." in PurePosixPath(name).parts or not name:
        problem = f"it sent a name that would leave the folder: {name!r}"
        raise HostError(problem, "check that the host runs torchfab's program unmodified")


def shared_files(matches: Iterable[Match]) -> dict[str, list[Place]]:
    """Return the files that several hosts have with the same size, so that only digests can tell whether they differ.

    Parameters
    ----------
    matches : iterable of Match
        The matches of all hosts.

    Returns
    -------
    dict of str to list of Place
        Their places, by name.
    """
    places: dict[str, dict[int, tuple[str, int]]] = {}
    for match in matches:
        for name, size in match.files.items():
            places.setdefault(name, {})[match.node.rank] = (match.base, size)
    return {
        name: [(rank, base, name) for rank, (base, _) in found.items()]
        for name, found in places.items()
        if len(found) > 1 and len({size for _, size in found.values()}) == 1
    }


def differing_names(matches: Sequence[Match], digests: Mapping[Place, str]) -> set[str]:
    """Return the names whose content differs between hosts.

    Parameters
    ----------
    matches : sequence of Match
        The matches of all hosts.
    digests : Mapping of Place to str
        Digests of the files that `shared_files` returns; a missing or empty one counts as different.

    Returns
    -------
    set of str
        Names of files and links.
    """
    contents: dict[str, dict[int, tuple[int, str]]] = {}
    for match in matches:
        for name, size in match.files.items():
            place = (match.node.rank, match.base, name)
            digest = digests.get(place) or f"unknown {match.node.rank}"
            contents.setdefault(name, {})[match.node.rank] = (size, digest)
        for name, target in match.links.items():
            contents.setdefault(name, {})[match.node.rank] = (-1, target)
    return {name for name, found in contents.items() if len(set(found.values())) > 1} | _inside_files(contents)


def _inside_files(contents: Iterable[str]) -> set[str]:
    """Return names that are a file on one host and a folder on another, and the names below that folder."""
    names = set(contents)
    found = set()
    for name in names:
        for parent in map(str, PurePosixPath(name).parents):
            if parent in names:
                found |= {name, parent}
    return found


def transfers(matches: Sequence[Match], differing: set[str]) -> list[Transfer]:
    """Return the files to copy: equal ones once, from the first host that has them.

    The files of one match stay together: if any of them differs between hosts, each host's go into a folder per host.

    Parameters
    ----------
    matches : sequence of Match
        Of all hosts, in the order of node ranks.
    differing : set of str
        As `differing_names` returns it.

    Returns
    -------
    list of Transfer
        Transfers with at least one file or link each.
    """
    apart = _kept_apart(matches, differing)
    files: dict[tuple[int, str, str], dict[str, int]] = {}
    links: dict[tuple[int, str, str], dict[str, str]] = {}
    nodes = {match.node.rank: match.node for match in matches}
    taken: set[tuple[str, str]] = set()
    for match in matches:
        folder = match.node.label.replace("/", "_") if match.name in apart else ""
        key = (match.node.rank, match.base, folder)
        for name in [*match.files, *match.links]:
            if (folder, name) in taken:
                continue
            taken.add((folder, name))
            if name in match.files:
                files.setdefault(key, {})[name] = match.files[name]
            else:
                links.setdefault(key, {})[name] = match.links[name]
    return [
        Transfer(nodes[key[0]], key[1], key[2], files.get(key, {}), links.get(key, {}))
        for key in dict.fromkeys([*files, *links])
    ]


def _kept_apart(matches: Sequence[Match], differing: set[str]) -> set[str]:
    """Return the names of matches that need a folder per host: a file differs, or is in a match with such a file."""
    names_by_match: dict[str, set[str]] = {}
    for match in matches:
        names_by_match.setdefault(match.name, set()).update(match.files, match.links)
    apart: set[str] = set()
    touched = set(differing)
    while more := {name for name, names in names_by_match.items() if name not in apart and names & touched}:
        apart |= more
        touched |= set().union(*(names_by_match[name] for name in more))
    return apart
