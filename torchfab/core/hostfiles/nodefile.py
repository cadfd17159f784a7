"""Node files of schedulers: PBS and LSF name a host once per slot, SGE writes `node1 4 all.q@node1 UNDEFINED`."""

from __future__ import annotations

from collections.abc import Mapping

from torchfab.core.errors import InventoryError
from torchfab.core.flag_values import is_whole
from torchfab.core.hostfiles.dialect import Dialect, Source, Translation

# The variable in which each scheduler gives the path of the file for this terminal's job.
VARIABLES = {"PBS_NODEFILE": "pbs", "OAR_NODEFILE": "pbs", "LSB_DJOB_HOSTFILE": "lsf", "PE_HOSTFILE": "sge"}
_NO_COMPUTE_NODES = ("batch", "login", "launch")


def format_of(path: str, environ: Mapping[str, str]) -> str:
    """Return the format of a file that a scheduler wrote for this terminal's job; empty for any other file.

    Parameters
    ----------
    path : str
        The path, as in the scheduler's variable.
    environ : Mapping of str to str
        The environment of this terminal.

    Returns
    -------
    str
        `pbs`, `lsf`, `sge`, or empty.
    """
    return next((name for variable, name in VARIABLES.items() if path and environ.get(variable) == path), "")


def repetition(source: Source) -> InventoryError | None:
    """Return the error for an ambiguous repetition: a host on several lines may have one slot per line.

    Parameters
    ----------
    source : Source
        The text. For a text with keys, None is returned.

    Returns
    -------
    InventoryError or None
        None if no host occurs twice.
    """
    if any(len(line) > 1 for _, line in source.lines):
        return None
    seen: dict[str, int] = {}
    counts = _counts(source)
    for number, (host, *_) in source.lines:
        if host in seen:
            there = source.line(seen[host]).origin
            return source.error(
                number,
                f"{host} is already listed in {there}",
                f"write it once: {host} slots={counts[host]}; for a node file of PBS or LSF, which names a host once "
                "per slot, give --hostfile-format pbs, or lsf, which omits the batch node",
            )
        seen[host] = number
    return None


def _counts(source: Source) -> dict[str, int]:
    counts: dict[str, int] = {}
    for _, (host, *_) in source.lines:
        counts[host] = counts.get(host, 0) + 1
    return counts


def _slots(source: Source, skip: str = "") -> Translation:
    """Return one line per host; its slots are the number of its lines."""
    first: dict[str, int] = {}
    for number, line in source.lines:
        if len(line) > 1:
            raise source.error(number, f"{line[1]!r} after the host", "a node file has one host name per line")
        first.setdefault(line[0], number)
    counts = _counts(source)
    return Translation(
        [source.line(number, host, f"slots={counts[host]}") for host, number in first.items() if host != skip]
    )


def _never(source: Source) -> bool:
    return False


PBS = Dialect(("pbs", "torque", "oar", "nodefile"), "a node file of PBS", _never, _slots)

# ---- LSF


def _is_host_list(source: Source) -> bool:
    """Return whether the text is the value of LSB_MCPU_HOSTS: `node1 4 node2 4`."""
    words = [word for _, line in source.lines for word in line]
    if len(source.lines) != 1 or len(words) < 4 or len(words) % 2:
        return False
    return all(map(is_whole, words[1::2])) and not any(is_whole(word) or "=" in word for word in words[::2])


def _lsf(source: Source) -> Translation:
    if _is_host_list(source):
        number, words = source.lines[0]
        pairs = list(zip(words[::2], words[1::2], strict=True))
        lines = [source.line(number, host, f"slots={int(count)}") for host, count in pairs if not _is_batch(host)]
        return Translation(lines, [_left_out(source, number, host) for host, _ in pairs if _is_batch(host)])
    batch = _batch_host(source)
    number = source.lines[0][0] if source.lines else 0
    return Translation(_slots(source, batch).lines, [_left_out(source, number, batch)] if batch else [])


def _is_batch(host: str) -> bool:
    return host.startswith(_NO_COMPUTE_NODES)


def _batch_host(source: Source) -> str:
    """Return the host of the first line if it is the batch node: it has one line, while others have several."""
    counts = _counts(source)
    first = source.lines[0][1][0] if source.lines else ""
    others = [count for host, count in counts.items() if host != first]
    alone = counts.get(first) == 1 and bool(others)
    return first if alone and (_is_batch(first) or max(others) > 1) else ""


def _left_out(source: Source, number: int, host: str) -> str:
    return f"{source.line(number).origin}: {host} is left out: the batch node, on which no ranks run"


LSF = Dialect(("lsf",), "a node file of LSF", _is_host_list, _lsf)

# ---- SGE


def _is_sge(source: Source) -> bool:
    return bool(source.lines) and all(
        len(line) in (3, 4) and is_whole(line[1]) and "@" in line[2] for _, line in source.lines
    )


def _sge(source: Source) -> Translation:
    """Return one line per host; a host has a line per queue, and their slots add up."""
    counts: dict[str, int] = {}
    first: dict[str, int] = {}
    for number, line in source.lines:
        if len(line) < 2 or not is_whole(line[1]):
            raise source.error(
                number,
                f"{' '.join(line)!r} is not a line of SGE's pe_hostfile",
                "its lines are: node1 4 all.q@node1 UNDEFINED; for a host once per slot give --hostfile-format pbs",
            )
        counts[line[0]] = counts.get(line[0], 0) + int(line[1])
        first.setdefault(line[0], number)
    return Translation([source.line(first[host], host, f"slots={count}") for host, count in counts.items()])


SGE = Dialect(("sge", "uge"), "a node file of SGE", _is_sge, _sge)
