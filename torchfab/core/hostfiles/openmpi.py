"""Hostfiles of Open MPI (and PRRTE): `node1 slots = 8 max_slots=8`. Its rankfiles are refused."""

from __future__ import annotations

import re

from torchfab.core.hostfiles.dialect import Dialect, Source, Translation
from torchfab.core.hostlines.words import Line, unquote

_COUNTS = ("slots", "count", "cpus", "cpu", "slot")
_LIMITS = ("max_slots", "max-slots", "slots_max", "slots-max", "slot_max", "cpu_max", "count_max")
_TOPOLOGY = ("boards", "sockets", "sockets_per_board", "cores", "cores_per_socket", "slot_list", "topology")
_USERS = ("username", "user_name", "user-name")
_RANK = re.compile(r"rank\s+\d+\s*=", re.IGNORECASE)
_OURS = ("gpus", "address", "user", "port", "python", "workdir")


def _pairs(line: tuple[str, ...]) -> tuple[str, ...]:
    """Return the words of a line, with `slots = 8`, `slots= 8` and `slots =8` as one word."""
    found = [line[0]]
    for word in line[1:]:
        opens = "=" not in word[1:] and word.startswith("=") and len(found) > 1 and "=" not in found[-1]
        goes_on = "=" not in word and len(found) > 1 and found[-1].endswith("=")
        if opens or goes_on:
            found[-1] += word
        else:
            found.append(word)
    return tuple(found)


def _is_rankfile(line: tuple[str, ...]) -> bool:
    return bool(_RANK.match(" ".join(line)))


def matches(source: Source) -> bool:
    """Return whether a line has a key of Open MPI, or blanks around its `=`.

    Parameters
    ----------
    source : Source
        The text of the file.

    Returns
    -------
    bool
    """
    return any(_is_openmpi(line) for _, line in source.lines)


def _is_openmpi(line: tuple[str, ...]) -> bool:
    keys = {word.partition("=")[0].lower() for word in _pairs(line)[1:] if "=" in word}
    leading = line[0].startswith(("^", "+")) and len(line[0]) > 1
    return _pairs(line) != line or _is_rankfile(line) or leading or bool(keys & {*_LIMITS, *_TOPOLOGY, *_USERS})


def translate(source: Source) -> Translation:
    """Translate to our keys; maximum slots and topology are omitted, with a note.

    Parameters
    ----------
    source : Source
        The text of the file.

    Returns
    -------
    Translation
        With a note for each key that is not converted.

    Raises
    ------
    InventoryError
        A line excludes a host, or is a line of a rankfile.
    """
    lines: list[Line] = []
    dropped: dict[str, int] = {}
    for number, line in source.lines:
        _refuse(source, number, line)
        words = _pairs(line)
        keys = []
        for word in words[1:]:
            key, equals, value = word.partition("=")
            if equals and key.lower() in (*_LIMITS, *_TOPOLOGY):
                dropped.setdefault(key.lower(), number)
            else:
                keys.append(f"{_our_key(key)}={unquote(value)}" if equals else word)
        lines.append(source.line(number, unquote(words[0]), *keys))
    notes = [
        f"{source.line(number).origin}: {key}= is left out: slots= alone counts" for key, number in dropped.items()
    ]
    return Translation(lines, notes)


def _our_key(key: str) -> str:
    lower = key.lower()
    return "slots" if lower in _COUNTS else "user" if lower in _USERS else key if key in _OURS else lower


def _refuse(source: Source, number: int, line: tuple[str, ...]) -> None:
    if _is_rankfile(line):
        host = re.sub(r"^.*?=\s*", "", " ".join(line)).partition(" ")[0]
        raise source.error(
            number,
            "a rankfile of Open MPI, which binds each rank to cores",
            f"write one line per rank into a gpus file, in the order of the ranks: {host} (and fab launch-per-gpu)",
        )
    if line[0].startswith("^"):
        raise source.error(
            number, f"{line[0]}: an exclusion of Open MPI", f"leave the line out, or write {line[0][1:]} slots=0"
        )
    if line[0].startswith("+"):
        raise source.error(
            number, f"{line[0]}: a relative host of Open MPI, which counts the hosts of an allocation", "write its name"
        )


DIALECT = Dialect(("openmpi", "ompi", "prrte"), "a hostfile of Open MPI", matches, translate)
