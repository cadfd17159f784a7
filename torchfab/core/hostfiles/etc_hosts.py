"""`/etc/hosts`: the address comes first. Such a file is read only with `--hostfile-format etc-hosts`."""

from __future__ import annotations

import ipaddress

from torchfab.core.hostfiles.dialect import Dialect, Source, Translation
from torchfab.core.hostlines.keys import LOGINS
from torchfab.core.hostlines.targets import HOST
from torchfab.core.hostlines.words import Line


def _address(word: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(word.partition("%")[0])
    except ValueError:
        return None


def _is_entry(line: tuple[str, ...]) -> bool:
    """Return whether a line is an address and names."""
    return len(line) > 1 and _address(line[0]) is not None and all(map(_is_name, line[1:]))


def _is_name(word: str) -> bool:
    return bool(HOST.fullmatch(word)) and not word.isdigit() and word not in LOGINS


def matches(source: Source) -> bool:
    """Return whether at least one line is an address followed by names.

    Parameters
    ----------
    source : Source
        The text of the file.

    Returns
    -------
    bool
    """
    return any(_is_entry(line) for _, line in source.lines)


def refuse(source: Source) -> Translation:
    """Raise the error that shows the order of our own lines.

    Parameters
    ----------
    source : Source
        A text for which `matches` is true.

    Returns
    -------
    Translation
        Never; the function has the type of a translation.

    Raises
    ------
    InventoryError
        Always.
    """
    entries = [each for each in source.lines if _is_entry(each[1])]
    number, line = next((each for each in entries if not _is_local(each[1])), entries[0])
    raise source.error(
        number,
        f"{line[0]} {line[1]}: the address comes first: is this /etc/hosts?",
        f"write the name first: {line[1]} address={line[0]}; or give --hostfile-format etc-hosts, for all of its hosts",
    )


def _is_local(line: tuple[str, ...]) -> bool:
    address = _address(line[0])
    return address is None or address.is_loopback or address.is_multicast or address.is_unspecified


def translate(source: Source) -> Translation:
    """Translate each address with its first name; skip loopback and multicast addresses.

    Parameters
    ----------
    source : Source
        The text of the file.

    Returns
    -------
    Translation
        One line per name.

    Raises
    ------
    InventoryError
        A line is not an address followed by names.
    """
    lines: list[Line] = []
    seen: set[str] = set()
    for number, line in source.lines:
        if not _is_entry(line):
            raise source.error(
                number, f"{' '.join(line)!r} is not an address followed by names", "its lines are: 10.0.0.1 node1"
            )
        if not _is_local(line) and line[1].lower() not in seen:
            seen.add(line[1].lower())
            lines.append(source.line(number, line[1], f"address={line[0]}"))
    return Translation(lines)


DIALECT = Dialect(("etc-hosts",), "a file in the order of /etc/hosts", lambda source: False, translate)
REFUSED = Dialect((), "a file in the order of /etc/hosts", matches, refuse)
