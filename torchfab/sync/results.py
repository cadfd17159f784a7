"""The result of `fab sync` on each node: human-readable text, and JSON. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torchfab.core.errors import TorchfabError, failed_as_json
from torchfab.core.format import format_bytes
from torchfab.core.inventory import fold
from torchfab.core.lazy_dataclass import dataclass
from torchfab.core.specs import Node
from torchfab.sync.rsync import Stats

_NOTHING = Stats(0, 0)


@dataclass(frozen=True)
class SyncResult:
    """The result on one node.

    Parameters
    ----------
    node : Node
        The node.
    shared : bool
        Whether its directory is the local one, on a shared file system; then nothing is copied.
    stats : Stats
        Number and size of the copied files.
    checked, missing, differing : int
        Number of files that were compared, that are missing, and that differ.
    names : tuple of str
        The first missing or differing files.
    """

    node: Node
    shared: bool
    stats: Stats = _NOTHING
    checked: int = 0
    missing: int = 0
    differing: int = 0
    names: tuple[str, ...] = ()

    @property
    def differs(self) -> bool:
        """Whether the node lacks files, or its files differ."""
        return bool(self.missing or self.differing)


def summary_lines(results: Sequence[SyncResult], files: int, seconds: float) -> list[str]:
    """Return the results as human-readable lines.

    Parameters
    ----------
    results : sequence of SyncResult
        One for each node that did not fail.
    files : int
        Number of files to copy.
    seconds : float
        Duration of the sync.

    Returns
    -------
    list of str
        Nodes with equal results share one line; nodes whose files differ come last.
    """
    alike: dict[str, list[str]] = {}
    for result in sorted(results, key=lambda result: result.differs):
        alike.setdefault(_describe(result, files), []).append(result.node.label)
    lines = [f"{fold(hosts)}: {text}" for text, hosts in alike.items()]
    odd = [result.node.label for result in results if result.differs]
    if odd:
        lines.append(f"{fold(odd)} does not hold the same files; one may have changed meanwhile: run fab sync again")
    elif results and all(result.shared or result.checked == files for result in results):
        lines.append(f"{len(results)} nodes hold the same {files} files ({seconds:.1f} s)")
    return lines


def _describe(result: SyncResult, files: int) -> str:
    if result.shared:
        return "shares this directory; nothing to copy"
    sent = f"{result.stats.files} files copied, {format_bytes(result.stats.size_bytes)}"
    if result.differs:
        names = ", ".join(result.names[:5])
        return f"{sent}; {result.missing} are missing and {result.differing} differ there: {names}"
    return sent + (f"; only {result.checked} could be compared in time" if result.checked < files else "")


def as_json(results: Sequence[SyncResult], failed: Mapping[str, TorchfabError], files: int) -> dict[str, Any]:
    """Return the results as JSON values.

    Parameters
    ----------
    results : sequence of SyncResult
        One for each node that did not fail.
    failed : Mapping of str to TorchfabError
        Host -> error.
    files : int
        Number of files to copy.

    Returns
    -------
    dict
        As `fab sync --json` prints it.
    """
    hosts = [
        {
            "host": result.node.label,
            "shared": result.shared,
            "files_copied": result.stats.files,
            "bytes_copied": result.stats.size_bytes,
            "checked": result.checked,
            "missing": result.missing,
            "differing": result.differing,
            "names": list(result.names),
        }
        for result in results
    ]
    return {"files": files, "hosts": hosts, "failed": failed_as_json(failed)}
