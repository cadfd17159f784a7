"""`host:N`, where N is a number of processes: MPICH, MVAPICH, Intel MPI and Horovod. SSH reads it as a port."""

from __future__ import annotations

import re

from torchfab.core.errors import InventoryError
from torchfab.core.hostfiles.dialect import Dialect, Source, Translation
from torchfab.core.hostlines.targets import split_list
from torchfab.core.hostlines.words import Line

# host:processes, and in MVAPICH's files host:processes:device
_COUNTED = re.compile(
    r"(?P<host>(?:[^@\s]+@)?(?:[A-Za-z0-9_.{}\[\],-]+|\[[0-9A-Fa-f:.]+\])):(?P<count>\d{1,5})(?::[^:\s]+)?"
)
_LARGEST_COUNT = 64  # plausible as a number of processes per node, and not as a port of sshd
_FIRST_SSH_PORT = 22


def ambiguity(source: Source) -> InventoryError | None:
    """Return the error for an ambiguous `host:N`: a port, or a number of processes.

    Parameters
    ----------
    source : Source
        The text.

    Returns
    -------
    InventoryError or None
        None if no `host:N` occurs, or each N is certainly a port.
    """
    counted = [(number, match) for number, line in source.lines for match in _unsettled(line)]
    counts = [int(match["count"]) for _, match in counted]
    hosts = sum(len(split_list(line[0])) for _, line in source.lines)
    low = [index for index, count in enumerate(counts) if 0 < count < _FIRST_SSH_PORT]
    alike = counts and len(counts) == hosts and max(counts) <= _LARGEST_COUNT and set(counts) != {_FIRST_SSH_PORT}
    if not low and not alike:
        return None
    number, match = counted[low[0] if low else 0]
    host, count = match["host"], match["count"]
    return source.error(
        number,
        f"{match[0]} means {count} process{'' if count == '1' else 'es'} to MPICH, Intel MPI and Horovod, "
        f"and port {count} to SSH",
        f"write {host} slots={count} for processes, or {host} port={count} for the port; "
        "or give --hostfile-format mpich, or --hostfile-format torchfab for ports",
    )


def _unsettled(line: tuple[str, ...]) -> list[re.Match[str]]:
    """Return each `host:N` of a line, unless a key of the line shows what N is."""
    if any(word.startswith(("slots=", "gpus=", "port=")) for word in line[1:]):
        return []
    return [match for part in split_list(line[0]) if (match := _COUNTED.fullmatch(part))]


def translate(source: Source) -> Translation:
    """Translate `host:N` to `host slots=N`; a host without a number runs one process.

    Parameters
    ----------
    source : Source
        The text of the file.

    Returns
    -------
    Translation
        With a note for each key that is not converted.
    """
    lines: list[Line] = []
    notes: list[str] = []
    for number, line in source.lines:
        options = [word for word in line[1:] if not word.startswith("binding=")]
        notes += [f"{source.line(number).origin}: {word} is left out" for word in line[1:] if word not in options]
        keys = [re.sub("^ifhn=", "address=", word) for word in options]
        for part in split_list(line[0]):
            match = _COUNTED.fullmatch(part)
            host, count = (match["host"], match["count"]) if match else (part, "1")
            given = any(word.startswith("slots=") for word in keys)
            lines.append(source.line(number, host, *(() if given else (f"slots={int(count)}",)), *keys))
    return Translation(lines, notes)


def _has_ifhn(source: Source) -> bool:
    return any(word.startswith(("ifhn=", "binding=")) for _, line in source.lines for word in line[1:])


DIALECT = Dialect(
    ("mpich", "intel", "horovod", "mvapich"), "a hosts file of MPICH (host:processes)", _has_ifhn, translate
)
