"""What `fab sync` did on each node, and how it is told; pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torchfab.core.errors import TorchfabError
from torchfab.core.inventory import fold
from torchfab.core.specs import Node
from torchfab.sync.rsync import Stats

_NOTHING = Stats(0, 0)


@dataclass(frozen=True)
class Result:
    """What was done on one node.

    Parameters
    ----------
    shared : bool
        Its directory is this one; nothing was done.
    stats : Stats
        What was copied.
    checked, missing, differing : int
        How many files were compared, are not there, or are not equal.
    names : tuple of str
        The first of those.
    """

    node: Node
    shared: bool
    stats: Stats = _NOTHING
    checked: int = 0
    missing: int = 0
    differing: int = 0
    names: tuple[str, ...] = ()

    @property
    def is_odd(self) -> bool:
        """Whether the node does not hold what was copied."""
        return bool(self.missing or self.differing)


def words(results: Sequence[Result], files: int, seconds: float) -> list[str]:
    """Return what was done, for people; nodes that did alike in one line, those that are not equal last."""
    alike: dict[str, list[str]] = {}
    for result in sorted(results, key=lambda result: result.is_odd):
        alike.setdefault(_words_of(result, files), []).append(result.node.label)
    lines = [f"{fold(hosts)}: {text}" for text, hosts in alike.items()]
    odd = [result.node.label for result in results if result.is_odd]
    if odd:
        lines.append(f"{fold(odd)} does not hold the same files; did one change meanwhile? fab sync again")
    elif results and all(result.shared or result.checked == files for result in results):
        lines.append(f"{len(results)} nodes hold the same {files} files ({seconds:.1f} s)")
    return lines


def _words_of(result: Result, files: int) -> str:
    if result.shared:
        return "sees this very directory; nothing to copy"
    sent = f"{result.stats.files} files copied, {size(result.stats.size_bytes)}"
    if result.is_odd:
        names = ", ".join(result.names[:5])
        return f"{sent}; {result.missing} are missing and {result.differing} differ there: {names}"
    return sent + (f"; only {result.checked} could be compared in time" if result.checked < files else "")


def size(count: float) -> str:
    """Return a number of bytes for people."""
    power = min(4, max(0, int(count).bit_length() - 1) // 10)
    unit = ("B", "KiB", "MiB", "GiB", "TiB")[power]
    return f"{count:.0f} B" if power == 0 else f"{count / 1024**power:.1f} {unit}"


def as_document(results: Sequence[Result], failed: Mapping[str, TorchfabError], files: int) -> dict[str, Any]:
    """Return the same as JSON."""
    nodes = [
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
    errors = {host: {"error": error.message, "fix": error.fix} for host, error in failed.items()}
    return {"files": files, "nodes": nodes, "failed": errors}
